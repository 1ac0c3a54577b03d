"""Chains that are the same draws, and chains that only look so."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ozaki.diagnostics import inference_data, verdict
from ozaki.diagnostics.twins import LEAST, twins
from tests.kit.strategies import seeds


def named(x: np.ndarray) -> str:
    """What a verdict on (chains, draws, D) says of twins, or ''."""
    told = [p for p in verdict(inference_data({"x": x})).problems if "same draws" in p.what]
    assert all(p.fatal for p in told)
    return " | ".join(p.what for p in told)


def walks(rng: np.random.Generator, chains: int, draws: int, dim: int = 1) -> np.ndarray:
    """Random-walk Metropolis of a normal: three draws in four repeat the last."""
    x, out = rng.normal(size=(chains, dim)), np.empty((chains, draws, dim))
    for t in range(draws):
        y = x + 4 * rng.normal(size=x.shape)
        ok = np.log(rng.random(chains)) < ((x**2 - y**2) / 2).sum(1)
        x = np.where(ok[:, None], y, x)
        out[:, t] = x
    return out


def test_four_chains_of_one_seed_are_not_trusted():
    x = np.repeat(np.random.default_rng(0).normal(size=(1, 1000, 2)), 4, 0)
    bad = verdict(inference_data({"x": x}, {"diverging": np.zeros((4, 1000), bool)}))
    assert not bad.trusted
    assert bad.headline == (
        "Do not trust these draws: chains 0 and 1 are the same draws; chains 2, 3 as well"
    )


def test_each_way_of_being_the_same_is_told():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 1000, 2))
    assert named(x) == ""
    later = x.copy()
    later[3, 30:] = x[1, :-30]
    assert named(later) == "chains 1 and 3 are the same draws, which chain 3 makes 30 draws later"
    together = x.copy()
    together[2, 400:] = x[0, 400:]
    assert named(together) == "chains 0 and 2 are the same draws from draw 400 on"
    once = x.copy()
    once[2, 400:600] = x[0, 400:600]
    assert named(once) == "chains 0 and 2 are the same draws from draw 400 to draw 599"
    part = x.copy()
    part[2, :, 1] = x[0, :, 1]
    assert named(part) == "chains 0 and 2 are the same draws in x[1]"
    pairs = x[[0, 1, 0, 1]]
    assert named(pairs) == "chains 0 and 2 are the same draws; so are chains 1 and 3"


def test_chains_of_one_noise_come_together_up_to_rounding():
    """Begun apart, x ← ρx + noise: the difference falls as ρᵗ, to the last digits."""
    rng = np.random.default_rng(2)
    for dtype in (np.float64, np.float32):
        noise = rng.normal(size=1000).astype(dtype)
        x = np.empty((4, 1000), dtype)
        x[:, 0] = [3, -3, 0, 1]
        other = rng.normal(size=(2, 1000)).astype(dtype)
        for t in range(1, 1000):
            x[:2, t] = dtype(0.8) * x[:2, t - 1] + noise[t]
            x[2:, t] = dtype(0.8) * x[2:, t - 1] + other[:, t]
        x[1] = x[1] * (1 + 2 * np.finfo(dtype).eps)  # another order of summation
        assert "chains 0 and 1 are the same draws from draw" in named(x[..., None])


@pytest.mark.parametrize(
    "x",
    [
        np.ones((4, 50)),
        1.0 * (np.random.default_rng(3).random((4, 200)) < 0.003),
        1 * (np.random.default_rng(3).random((4, 1000)) < 0.5),
        np.tile([0, 1], (4, 100)),  # what alternates has no other way
        1.0 * np.tile([0, 1], (4, 100)),
        np.random.default_rng(3).normal(size=(4, 8)),
        np.random.default_rng(3).normal(size=(4, 5000)).astype(np.float32),
        np.random.default_rng(3).normal(size=(4, 1000)).astype(np.float16),
        np.random.default_rng(3).beta(0.1, 0.1, size=(8, 1000)),
        np.random.default_rng(3).beta(0.01, 0.01, size=(8, 1000)).astype(np.float32),
        np.random.default_rng(3).normal(size=(4, 1000)).round(2),
        1e6 + np.random.default_rng(3).normal(size=(4, 1000)).astype(np.float32),
        np.random.default_rng(3).standard_cauchy((4, 1000)) ** 5,
        walks(np.random.default_rng(3), 4, 1000)[..., 0],
    ],
    ids=lambda x: f"{x.dtype} {x.shape}",
)
def test_chains_that_only_look_alike_are_no_twins(x):
    assert twins({"x": x}) == []


def test_chains_that_begin_alike_and_part_are_no_twins():
    rng = np.random.default_rng(4)
    x = walks(rng, 4, 1000)
    x[:, :30] = x[0, 0]  # one start, from which none has moved yet
    assert named(x) == ""
    y = rng.normal(size=(4, 1000, 1))
    y[:, :20] = y[0, :20]
    assert named(y) == ""


def test_discrete_chains_are_twins_where_no_chance_makes_them_so():
    rng = np.random.default_rng(5)
    x = rng.integers(0, 2, (4, 1000, 2))
    x[3] = x[1]
    assert named(x) == "chains 1 and 3 are the same draws"
    beside = {"k": x, "y": rng.normal(size=(4, 1000))}
    assert verdict(inference_data(beside)).trusted  # discrete ones say nothing beside others


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_twins_are_found_among_any_chains(data):
    rng = np.random.default_rng(data.draw(seeds))
    chains, draws = data.draw(st.integers(2, 12)), data.draw(st.integers(60, 200))
    dim = data.draw(st.integers(1, 4))
    make = data.draw(st.sampled_from([lambda *a: rng.normal(size=a), lambda *a: walks(rng, *a)]))
    dtype = data.draw(st.sampled_from([np.float64, np.float32]))
    x = make(chains, draws, dim).astype(dtype)
    parts = {f"x[{i}]": x[..., i] for i in range(dim)}
    assert twins(parts) == []
    one, other = data.draw(st.permutations(range(chains)))[:2]
    delay = data.draw(st.sampled_from([0, 0, 1, 5, draws // 5]))
    copied = x[one, : draws - delay]
    assume((np.diff(copied[:, 0]) != 0).sum() >= LEAST)  # two that hardly move have little alike
    x[other, delay:] = copied
    found = twins({f"x[{i}]": x[..., i] for i in range(dim)})
    assert [(t.one, t.other) for t in found] in ([(one, other)], [tuple(sorted((one, other)))])
    assert found[0].delay == delay and found[0].names is None


def test_twins_in_half_precision():
    x = np.random.default_rng(0).normal(size=(4, 300)).astype(np.float16)
    assert twins({"x": x}) == []
    x[1] = x[0]
    assert [found[:2] for found in twins({"x": x})] == [(0, 1)]
