"""Every kernel × trajectory × metric × correction draws from the law it should."""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from ozaki import MCMC, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.kernels import proposals, score_kernel
from ozaki.kernels.engine import Engine
from ozaki.kernels.target import RunContext
from ozaki.kernels.transition import KernelSpec
from ozaki.kernels.warmup import TIMES, Track, Warmup
from ozaki.scores import GaussianMixtureScore, GaussianScore, LogDensityScore
from tests.kernels.test_samples import LAWS
from tests.kernels.test_transition import ScoreOnly
from tests.kit.contracts import moments_match
from tests.kit.strategies import generator

pytestmark = pytest.mark.usefixtures("unchecked")

F64 = torch.float64
BEND, WIDTH = 0.3, 0.8  # of the valley, not so bent that single chains wait in its ends


def _banana(x):
    """x₁ ~ N(0, 1), x₂ | x₁ ~ N(b (x₁² − 1), w²)."""
    return -(x[0] ** 2) / 2 - (x[1] - BEND * (x[0] ** 2 - 1)) ** 2 / (2 * WIDTH**2)


BANANA = LogDensityScore(_banana, (2,), dtype=F64)
# E x₁ x₂ = b E (x₁³ − x₁) = 0; Var x₂ = w² + b² Var x₁², and Var x₁² = 2
BANANA_LAW = (
    torch.zeros(2, dtype=F64),
    torch.diag(torch.tensor([1.0, WIDTH**2 + 2 * BEND**2], dtype=F64)),
)
EVERY = {**LAWS, "banana": (BANANA, *BANANA_LAW)}

KERNELS = {"turning": proposals.ornstein_uhlenbeck, "leapfrog": proposals.langevin}
TRAJECTORIES: list[Any] = [0.0, math.pi / 4, math.pi / 2, "auto"]


def engine_of(law, kernel, metric, time, correction, chains=128):
    """A kernel in one metric, warmed up."""
    times = TIMES if time == "auto" else (time,)
    spec = KernelSpec(KERNELS[kernel], None, correction, momentum=True)
    track = Track(spec, metric, 0.8 if time else 0.6, 1.0, times)
    score = EVERY[law][0]
    score = ScoreOnly(score) if correction == "line_integral" else score
    g = generator(11)
    plan = Warmup((track,), score.dim, steps=100, dense_metric=True)
    engine = Engine(score, plan, generator=g)
    engine.start(score.start(chains, g))
    while engine.warming_up:
        engine.walk(8)
    assert engine.warmup.metric == metric and engine.metric is not None
    return engine


def hold(law, kernel, metric, time, correction, draws=60):
    draws = draws if time else 5 * draws  # a single step is worth less
    engine = engine_of(law, kernel, metric, time, correction)
    trails = [engine.walk() for _ in range(draws)]
    _, mean, covariance = EVERY[law]
    moments_match(torch.cat([t.position for t in trails]).transpose(0, 1), mean, covariance)
    assert not any(bool(t.info.broken.any()) for t in trails)
    for trail in trails[:3]:  # what travels beside the draws is of the draws
        want = EVERY[law][0].expand(trail.position[0])
        assert_close(trail.gradient[0], want.gradient)
        if correction == "exact":
            assert_close(trail.log_density[0], want.log_density)


ROWS = [(k, m, t) for k in KERNELS for m in ("pooled", "scores") for t in TRAJECTORIES]


LONG = ("auto", math.pi / 2)  # seven points a gradient, where only scores are known


def marked(correction):
    """The rows of a correction, those that take long under their mark."""
    for row in ROWS:
        slow = correction == "line_integral" and row[2] in LONG
        yield pytest.param(correction, *row, marks=[pytest.mark.thorough] if slow else [])


@pytest.mark.parametrize(
    ("correction", "kernel", "metric", "time"), [*marked("exact"), *marked("line_integral")]
)
def test_every_way_to_walk_has_the_moments_of_a_law_that_is_not_normal(
    correction, kernel, metric, time
):
    hold("logistic", kernel, metric, time, correction)


@pytest.mark.thorough
@pytest.mark.parametrize("law", ["gaussian", "mixture", "banana"])
@pytest.mark.parametrize("correction", ["exact", "line_integral"])
@pytest.mark.parametrize(("kernel", "metric", "time"), ROWS)
def test_and_of_the_others(kernel, metric, time, correction, law):
    hold(law, kernel, metric, time, correction, draws=180)


BUILT = {
    "Ozaki": lambda score, t: ScoreOzakiKernel(score, trajectory=t),
    "Langevin": lambda score, t: ScoreLangevinKernel(score, trajectory=t),
    "frozen": lambda score, t: ScoreOzakiKernel(score, frozen=True, trajectory=t),
    "frozen, given": lambda score, t: ScoreOzakiKernel(
        score, frozen=True, step_size=0.5, trajectory=t
    ),
    "Langevin, given": lambda score, t: ScoreLangevinKernel(score, step_size=0.1, trajectory=t),
    "learned proposal": lambda score, t: ScoreOzakiKernel(
        score, score=GaussianScore(LAWS["logistic"][1], LAWS["logistic"][2]), trajectory=t
    ),
}


@pytest.mark.parametrize("time", [0.7, "auto"])
@pytest.mark.parametrize("name", BUILT)
def test_so_do_the_kernels_as_they_are_built(name, time):
    score, mean, covariance = LAWS["logistic"]
    draws = 400 if "given" in name else 60
    mcmc = MCMC(BUILT[name](score, time), draws, 120, num_chains=128, seed=7, disable_progbar=True)
    mcmc.run()
    moments_match(mcmc.get_samples(group_by_chain=True)["x"], mean, covariance)


@pytest.mark.thorough
@pytest.mark.parametrize("name", BUILT)
def test_and_where_only_scores_are_known(name):
    if name == "learned proposal":
        pytest.skip("it needs the model's density")
    score, mean, covariance = LAWS["logistic"]
    mcmc = MCMC(
        BUILT[name](ScoreOnly(score), 0.7), 120, 150, num_chains=256, seed=8, disable_progbar=True
    )
    mcmc.run()
    moments_match(mcmc.get_samples(group_by_chain=True)["x"], mean, covariance)


# -- mixtures keep their weights ------------------------------------------------------------------


def ring():
    at = torch.arange(8, dtype=F64) * math.pi / 4
    means = 2.0 * torch.stack([at.cos(), at.sin()], -1)
    return GaussianMixtureScore(means, 0.09 * torch.eye(2, dtype=F64).expand(8, 2, 2))


def two_modes():
    """Of sd 1 and 0.3, as in the leads of the notes."""
    variances = torch.tensor([1.0, 0.09], dtype=F64)
    means = torch.tensor([[-1.5, 0.0], [1.5, 0.0]], dtype=F64)
    covariances = variances[:, None, None] * torch.eye(2, dtype=F64)
    return GaussianMixtureScore(means, covariances, [0.3, 0.7])


def watched(monkeypatch, seen):
    """Every run notes what the rule for hopeless starts moved."""

    class Seen(score_kernel.Engine):
        def start(self, position):
            if self._state is not None:
                seen.append(position.clone())
            super().start(position)

    monkeypatch.setattr(score_kernel, "Engine", Seen)


def shares(draws, means, weights):
    """Of each mode's points: 5 MCSE, an effective draw a chain and mode at the least."""
    nearest = (draws.unsqueeze(-2) - means).square().sum(-1).argmin(-1)
    for mode, weight in enumerate(weights.tolist()):
        moments_match((nearest == mode).to(F64).unsqueeze(-1), [weight], [[weight * (1 - weight)]])


def own_share(score, n=400_000):
    """The chance that a draw of the mixture lies nearest to each mode."""
    x = score.sample(n, generator(99))
    nearest = (x.unsqueeze(-2) - score.means).square().sum(-1).argmin(-1)
    return torch.bincount(nearest, minlength=len(score.means)) / n


@pytest.mark.parametrize("start", ["draws", "uniform"])
@pytest.mark.parametrize("make", [two_modes, ring])
def test_mixtures_keep_their_weights(make, start, monkeypatch):
    score, seen = make(), []
    watched(monkeypatch, seen)
    chains, g = 300, generator(5)
    x = score.sample(chains, g)
    if start == "uniform":
        x = 4 * torch.rand(chains, 2, generator=g, dtype=F64) - 2
    given = {"x": x}
    kernel = ScoreOzakiKernel(score)
    mcmc = MCMC(kernel, 100, 200, num_chains=chains, seed=5, initial_params=given)
    mcmc.run()
    assert seen == []  # no chain was moved by the rule for hopeless starts
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    shares(draws, score.means, own_share(score))


def transient(kernel, start):
    """The engine of a kernel, at the end of its transient."""
    kernel.begin(kernel.bind(), 200, RunContext(len(start), generator(5)))
    kernel.place({"x": start})
    engine = kernel.engine
    while engine.count < engine.warmup.plan.transient:
        kernel.walk(1)
    return engine


@pytest.mark.parametrize("kernel", [ScoreOzakiKernel, ScoreLangevinKernel])
def test_modes_that_no_chain_leaves_keep_the_chains_that_began_there(kernel, monkeypatch):
    """Wide, narrow, of next to no mass: the rule for hopeless starts takes none of them."""
    seen = []
    watched(monkeypatch, seen)
    means = torch.tensor([[-40.0, 0.0], [0.0, 0.0], [60.0, 0.0]], dtype=F64)
    scales = torch.tensor([9.0, 1.0, 0.0025], dtype=F64)
    covariances = scales[:, None, None] * torch.eye(2, dtype=F64)
    score = GaussianMixtureScore(means, covariances, [0.6, 1e-12, 0.4])
    begun = torch.arange(30) % 3
    normal = torch.randn(30, 2, generator=generator(1), dtype=F64)
    found = transient(kernel(score), means[begun] + scales[begun].sqrt()[:, None] * normal)
    assert seen == []
    nearest = (found.position.unsqueeze(-2) - means).square().sum(-1).argmin(-1)
    real = begun != 1  # of the third, whose mass is next to none, uphill leads away at times
    assert torch.equal(nearest[real], begun[real])


@pytest.mark.parametrize("kernel", [ScoreOzakiKernel, ScoreLangevinKernel])
def test_a_start_in_a_flat_far_tail_is_left(kernel, monkeypatch):
    """|s1| is 1 there and h at most 10⁶: from 10¹² no transient comes home."""
    seen = []
    watched(monkeypatch, seen)
    score = LogDensityScore(lambda x: -(1 + x.square()).sqrt().sum(), (2,), dtype=F64)
    start = 0.1 * torch.randn(20, 2, generator=generator(1), dtype=F64)
    far = start.clone()
    far[3] = 1e12
    found = transient(kernel(score), far)
    (moved,) = seen
    assert torch.equal(found.position, moved)
    assert float(moved.abs().max()) < 50
    assert bool((moved[3] == moved[[0, 1, 2, *range(4, 20)]]).all(-1).any())  # where another is
    seen.clear()
    transient(kernel(score), start)
    assert seen == []
