"""Compiled steps: the same numbers as the steps that were not, for every law and kernel."""

import os
import pickle
import re
import subprocess
import sys
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.testing import assert_close

import ozaki
from ozaki.foundation import replay
from ozaki.kernels import traced
from ozaki.kernels.noise import NUMBERS, STEPS, NoiseStream
from ozaki.kernels.traced import _bmm
from ozaki.linalg import LowRank
from ozaki.scores import GaussianMixtureScore, GaussianScore
from ozaki.scores.density import LogDensityScore
from tests.kernels.test_transition import Mixed, ScoreOnly
from tests.kit.strategies import generator
from tests.kit.tolerances import rounding

pytestmark = pytest.mark.usefixtures("unchecked")
ROOMY = torch.tensor([[1.0, 0.3], [0.3, 0.5]]).double()
MIXTURE = GaussianMixtureScore(
    torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double(), torch.stack([ROOMY, ROOMY / 4])
)
HIDDEN = ScoreOnly(MIXTURE)
HALVES = Mixed(MIXTURE, GaussianScore(torch.ones(2).double(), ROOMY))
FORMULA = LogDensityScore(lambda x: -(x**4).sum() - x[0] * x[1], (2,), dtype=torch.float64)
LAWS = {"density": MIXTURE, "scores only": HIDDEN, "mixed": HALVES, "formula": FORMULA}


def regression(x, y):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x @ slope, scale + 0.1), obs=y)


@pytest.fixture
def interpreted(monkeypatch):
    """Loops run in Python, graph by graph: what is traced is tested without the compiler."""

    def loop(step, carry, share, rest):
        n, m = len(carry), len(carry) + len(share)

        def run(*tensors, rows=None):
            state, noise, others = list(tensors[:n]), tensors[n:m], tensors[m:]
            kept = []
            for parts in zip(*noise, strict=True):
                found = list(step(*state, *parts, *others))
                state = found[:n]
                kept.append(found[n:])
            if rows is not None:
                kept = [row for row, place in zip(kept, rows.tolist(), strict=True) if place >= 0]
            return [*state, *(torch.stack(part) for part in zip(*kept, strict=True))]

        return run

    monkeypatch.setattr(traced, "_LOOPS", {})
    monkeypatch.setattr(traced, "compiled_loop", loop)


def walked(kernel, *args, warmup=40, draws=10, **options):
    """A run of few steps: rounding grows with every one, and flips an acceptance in the end."""
    options = {"num_chains": 3, "seed": 4, "disable_progbar": True, **options}
    mcmc = ozaki.MCMC(kernel, num_samples=draws, warmup_steps=warmup, **options)
    mcmc.run(*args)
    return mcmc


def same(make, *args, **options):
    """One run as it stands, one compiled."""
    plain, fast = (walked(make(flag), *args, **options) for flag in (False, True))
    for name, draws in plain.get_samples(group_by_chain=True).items():
        assert_close(fast.get_samples(group_by_chain=True)[name], draws, **rounding(torch.float32))
    for name, stats in plain.result.draws.stats.items():
        # stats are sums and differences of many terms
        assert_close(fast.result.draws.stats[name], stats, **rounding(torch.float32, terms=10))
    return fast


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("correction", ["auto", pytest.param("none", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("interpreted")
def test_what_is_traced_is_what_is_walked(law, correction):
    kernel = ozaki.ScoreLangevinKernel if law == "mixed" else ozaki.ScoreOzakiKernel
    same(lambda flag: kernel(LAWS[law], metropolis=correction, compile=flag))


@pytest.mark.parametrize(
    "options",
    [
        {"frozen": True},
        {"step_size": 0.3, "jitter": 0.5},
        pytest.param({"metropolis": "none", "curvature": "diagonal"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.usefixtures("interpreted")
def test_so_it_is_with_every_option(options):
    same(lambda flag: ozaki.ScoreOzakiKernel(MIXTURE, compile=flag, **options))


@pytest.mark.usefixtures("interpreted")
def test_a_low_rank_curvature_is_traced_by_its_dense_form():
    score = GaussianScore(torch.zeros(3).double(), torch.eye(3).double() * 0.5)

    class Thin(ScoreOnly):
        default_curvature = "low_rank"

        def expand(self, x, curvature=None):
            at = self.inner.expand(x)
            if curvature is None:
                return at
            b = x.unsqueeze(-1).clamp(-0.5, 0.5)
            return at._replace(curvature=LowRank(-2 - x.square(), b), log_density=at.log_density)

    same(lambda flag: ozaki.ScoreOzakiKernel(Thin(score), curvature="low_rank", compile=flag))


@pytest.mark.thorough
@pytest.mark.usefixtures("interpreted")
def test_a_pyro_model_and_its_data():
    x = torch.randn(30, 2, generator=generator(0))
    y = x @ torch.tensor([1.0, -0.5])
    fast = same(lambda flag: ozaki.ScoreOzakiKernel(regression, compile=flag), x, y)
    # other data of the same shapes, the same kernel
    other = walked(fast.kernel, x, -y).get_samples()["slope"].mean(0)
    assert (fast.get_samples()["slope"].mean(0) - other)[0] > 1


@pytest.mark.thorough
@pytest.mark.usefixtures("interpreted")
def test_a_model_that_factorises_a_matrix():
    def model(y):
        with pyro.plate("d", 2):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        covariance = torch.diag(scale) + 0.5
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance), obs=y)

    y = torch.tensor([1.0, -0.5])
    same(lambda flag: ozaki.ScoreOzakiKernel(model, compile=flag), y)
    # a raise that depends on a value is nothing a compiled loop can hold
    assert traced._LOOPS and not any("check_errors" in code for code, _ in traced._LOOPS)


@pytest.mark.thorough
@pytest.mark.usefixtures("interpreted")
def test_data_are_arguments_of_the_loop_and_the_same_graph_is_compiled_once():
    for seed in (0, 1):
        x = torch.randn(30, 2, generator=generator(seed))
        walked(ozaki.ScoreLangevinKernel(regression, compile=True), x, x @ torch.ones(2))
    assert len(traced._LOOPS) == 1


@pytest.mark.usefixtures("interpreted")
def test_a_compiled_run_is_taken_up_and_extended(tmp_path):
    kernel = ozaki.ScoreOzakiKernel(MIXTURE, compile=True)
    options = {"checkpoint_every": 37}
    whole = walked(kernel, draws=100, checkpoint=tmp_path / "a", **options).get_samples()["x"]
    walked(kernel, draws=41, checkpoint=tmp_path / "b", **options)
    taken_up = walked(kernel, draws=100, checkpoint=tmp_path / "b", **options).get_samples()["x"]
    # up to the rounding of the steps between two savings
    assert_close(taken_up[:41], whole[:41])
    longer = walked(kernel, draws=50)
    longer.extend(50)
    assert_close(longer.get_samples()["x"], walked(kernel, draws=100).get_samples()["x"])


@pytest.mark.usefixtures("interpreted")
def test_kernels_travel_without_their_loops():
    kernel = ozaki.ScoreOzakiKernel(GaussianScore([0.0], [[1.0]]), compile=True)
    walked(kernel, warmup=30, draws=5)
    again = pickle.loads(pickle.dumps(kernel))
    assert again._compiled._loops == {}
    walked(again, warmup=30, draws=5)


def test_a_model_that_branches_on_values_is_refused():
    def forked():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(1.0 if float(x) > 0 else -1.0, 1.0), obs=torch.tensor(0.3))

    with (
        pytest.warns(UserWarning, match="cannot be vectorised"),
        pytest.raises(ValueError, match=r"compile=True needs a model that can be traced, but .*"),
    ):
        walked(ozaki.ScoreOzakiKernel(forked, compile=True))


def test_a_loop_that_gives_other_numbers_is_refused(monkeypatch):
    def wrong(step, carry, share, rest):
        n, m = len(carry), len(carry) + len(share)

        def run(*tensors, rows=None):
            found = list(step(*tensors[:n], *(t[0] for t in tensors[n:m]), *tensors[m:]))
            return [*found[: len(carry)], *(t.unsqueeze(0) * 0.5 for t in found[len(carry) :])]

        return run

    monkeypatch.setattr(traced, "_LOOPS", {})
    monkeypatch.setattr(traced, "compiled_loop", wrong)
    with pytest.raises(ValueError, match="compile=True gave another first step"):
        walked(ozaki.ScoreLangevinKernel(FORMULA, compile=True))


@pytest.mark.thorough
def test_without_a_compiler_it_says_so(tmp_path):
    """In a process of its own: torch remembers what it found of a machine's compiler."""
    program = (
        "import torch, ozaki\n"
        "from ozaki.scores import GaussianScore\n"
        "score = GaussianScore(torch.zeros(1), torch.eye(1))\n"
        "kernel = ozaki.ScoreLangevinKernel(score, step_size=0.1, compile=True)\n"
        "ozaki.MCMC(kernel, num_samples=2, warmup_steps=0).run()\n"
    )
    without = {"CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | without
    )
    assert found.returncode == 1
    last = found.stderr.strip().splitlines()[-1]
    assert re.match(r"ValueError: compile=True needs .* a C\+\+ compiler such as g\+\+", last), last


def test_options_out_of_range_are_refused():
    wrong: Any = "yes"
    with pytest.raises(ValueError, match="compile must be True or False"):
        ozaki.ScoreOzakiKernel(MIXTURE, compile=wrong)
    with pytest.raises(ValueError, match="jitter must be at least 0 and below 1"):
        ozaki.ScoreOzakiKernel(MIXTURE, jitter=1.0)


def test_products_are_rewritten_and_not_changed():
    g = generator(0)
    x = torch.randn(5, 3, generator=g)
    for a, b in (
        (x.expand(7, 5, 3), torch.randn(7, 3, 2, generator=g)),
        (torch.randn(7, 5, 3, generator=g), x.mT.expand(7, 3, 5)),
        (torch.randn(7, 5, 3, generator=g), torch.randn(7, 3, 1, generator=g)),
    ):
        assert_close(_bmm(a, b), torch.bmm(a, b))
    assert _bmm(torch.randn(2, 40, 40), torch.randn(2, 40, 40)) is NotImplemented


def test_constants_become_arguments():
    held = torch.arange(3.0)
    graph, (found,) = replay.traced(lambda x: [x * held + held], [torch.ones(3)])
    assert found is held
    assert_close(graph(2 * torch.ones(3), found)[0], 3 * held)


@pytest.mark.parametrize("chains", [1, 1000])
def test_noise_is_the_same_however_it_is_taken(chains):
    like = torch.zeros(chains, 3)
    whole, parts = NoiseStream(like, generator(0)), NoiseStream(like, generator(0))
    steps = whole.steps
    assert steps == min(STEPS, NUMBERS // (3 * chains))
    want = [whole.take(steps) for _ in range(3)]
    got = []
    while sum(len(s.normal) for s in got) < 3 * steps:
        got.append(parts.take(5))
        if len(got) == 4:  # a run that is taken up again
            kept, parts = parts.tensors, NoiseStream(like, generator(9))
            parts.restore(kept)
    for a, b in zip(zip(*want, strict=True), zip(*got, strict=True), strict=True):
        assert torch.equal(torch.cat(a), torch.cat(b))


def test_machine_code_walks_the_same_chains():
    score = GaussianScore(torch.zeros(2).double(), ROOMY)
    same(lambda flag: ozaki.ScoreLangevinKernel(score, compile=flag), draws=300)


@pytest.mark.slow
@pytest.mark.parametrize("curvature", ["diagonal", "dense"])
def test_machine_code_of_pyro_models(curvature):
    x = torch.randn(30, 2, generator=generator(0))
    y = x @ torch.tensor([1.0, -0.5])
    same(lambda flag: ozaki.ScoreOzakiKernel(regression, curvature=curvature, compile=flag), x, y)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("frozen", [False, True])
def test_machine_code_of_every_law(law, frozen):
    same(lambda flag: ozaki.ScoreOzakiKernel(LAWS[law], frozen=frozen, compile=flag))


@pytest.mark.thorough
def test_a_folder_of_compiled_code_that_cannot_be_used_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OZAKI_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(traced, "_LOOPS", {})
    with pytest.raises(OSError, match="OZAKI_CACHE must name a folder that can be written, but"):
        walked(ozaki.ScoreLangevinKernel(FORMULA, compile=True))
