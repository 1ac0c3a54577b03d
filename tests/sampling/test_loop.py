"""Runs that are stopped, taken up and extended give the draws of runs that were not."""

import os
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from ozaki import MCMC, ScoreLangevinKernel, ScoreOzakiKernel, diagnostics, report
from ozaki.diagnostics import effective_sample_size
from ozaki.sampling import run_identity
from ozaki.sampling.run_checkpoint import FILE
from ozaki.scores import GaussianMixtureScore, GaussianScore
from tests.scores.pyro_models.test_site import Bare

pytestmark = pytest.mark.usefixtures("unchecked")

F64 = torch.float64
MIXTURE = GaussianMixtureScore(
    torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64),
    0.3 * torch.eye(2, dtype=F64).expand(2, 2, 2),
)
DATA = torch.tensor([4.1, 5.3, 3.8])


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    sd = pyro.sample("sd", dist.HalfNormal(5.0))
    pyro.sample("y", dist.Normal(mu, sd).expand([3]).to_event(1), obs=y)


KERNELS = {
    "dense": (lambda: ScoreOzakiKernel(MIXTURE, curvature="dense"), ()),
    "chosen": (lambda: ScoreOzakiKernel(MIXTURE), ()),
    "diagonal": (lambda: ScoreOzakiKernel(MIXTURE, curvature="diagonal"), ()),
    "frozen": (lambda: ScoreOzakiKernel(MIXTURE, frozen=True), ()),
    "line integral": (lambda: ScoreOzakiKernel(Bare(MIXTURE)), ()),
    "unadjusted": (lambda: ScoreLangevinKernel(Bare(MIXTURE), metropolis="none"), ()),
    "given step": (lambda: ScoreOzakiKernel(MIXTURE, step_size=0.5), ()),
    "model": (lambda: ScoreOzakiKernel(model), (DATA,)),
    "trajectories": (lambda: ScoreOzakiKernel(MIXTURE, trajectory=1.0), ()),
    "leapfrog": (lambda: ScoreLangevinKernel(MIXTURE, trajectory=0.8), ()),
    "paths": (lambda: ScoreOzakiKernel(Bare(MIXTURE), trajectory=1.0), ()),
    "unadjusted paths": (
        lambda: ScoreLangevinKernel(
            Bare(MIXTURE), metropolis="none", trajectory=0.8, step_size=0.1, jitter=0.2
        ),
        (),
    ),
    "frozen paths": (
        lambda: ScoreOzakiKernel(MIXTURE, frozen=True, step_size=0.5, trajectory=1.0),
        (),
    ),
    "a model's paths": (lambda: ScoreOzakiKernel(model, trajectory=0.7), (DATA,)),
}
WARMUP, DRAWS, EVERY = 61, 20, 7


class Killed(Exception):
    pass


def chains(name, folder=None, draws=DRAWS, stop=None, thinning=2, seed=3):
    def hook(kernel, params, stage, i):
        hook.steps += 1
        if hook.steps == stop:
            raise Killed

    hook.steps = 0
    build, args = KERNELS[name]
    mcmc = MCMC(
        build(),
        num_samples=draws,
        warmup_steps=WARMUP,
        num_chains=3,
        seed=seed,
        thinning=thinning,
        hook_fn=hook,
        disable_progbar=True,
        checkpoint=folder,
        checkpoint_every=EVERY,
    )
    try:
        mcmc.run(*args)
    except Killed:
        return None
    return mcmc


def assert_same(a, b):
    """To the last bit, figures too."""
    for name, value in a.get_samples(group_by_chain=True).items():
        assert torch.equal(value, b.get_samples(group_by_chain=True)[name]), name
    assert a.result.draws.stats.keys() == b.result.draws.stats.keys()
    for name, value in a.result.draws.stats.items():
        assert torch.equal(value, b.result.draws.stats[name]), name


@pytest.mark.parametrize("name", KERNELS)
def test_a_run_that_was_stopped_goes_on_to_the_very_draws(name, tmp_path):
    whole = chains(name, tmp_path / "whole")
    # in the transient and between windows; in the last stretch and between draws; at the last step
    for i, stops in enumerate([(4, 33), (59, 8, 20), (WARMUP + 2 * DRAWS,)]):
        folder = tmp_path / str(i)
        for stop in stops:
            assert chains(name, folder, stop=stop) is None
        resumed = chains(name, folder)
        assert_same(resumed, whole)
    # and what is finished is only read
    assert_same(chains(name, folder, stop=1), whole)


@pytest.mark.parametrize("name", ["trajectories", "leapfrog", "frozen paths"])
def test_a_hook_that_stops_every_step_sees_the_same_draws(name):
    """Hooks are called between steps, blocks are planned as without."""
    build, args = KERNELS[name]
    found = []
    for hook in (None, lambda *_: None):
        options = {"num_chains": 3, "seed": 3, "disable_progbar": True, "hook_fn": hook}
        mcmc = MCMC(build(), num_samples=DRAWS, warmup_steps=WARMUP, **options)
        mcmc.run(*args)
        found.append(mcmc)
    assert_same(*found)


@pytest.mark.parametrize("name", ["chosen", "line integral", "trajectories", "frozen paths"])
def test_extending_gives_the_draws_of_a_longer_run(name, tmp_path):
    long = chains(name, draws=31)
    short = chains(name, draws=12)
    short.extend(9)
    short.extend(10)
    assert_same(short, long)
    assert len(short.diagnostics()["acceptance rate"]) == 3
    # on disk: in the same process, or by asking for more in a later one
    first = chains(name, tmp_path / "b", draws=21)  # 61 + 42 steps: no block ends there
    first.extend(10)
    chains(name, tmp_path / "c", draws=21)
    later = chains(name, tmp_path / "c", draws=31)
    assert_same(first, later)
    assert later.diagnostics()["acceptance rate"] == first.diagnostics()["acceptance rate"]


def test_extending_after_an_interruption():
    def interrupt(kernel, params, stage, i):
        if stage == "Sample" and i == 5 and not interrupt.done:
            interrupt.done = True
            raise KeyboardInterrupt

    interrupt.done = False
    mcmc = MCMC(
        ScoreOzakiKernel(MIXTURE),
        num_samples=10,
        warmup_steps=30,
        num_chains=2,
        seed=0,
        hook_fn=interrupt,
        disable_progbar=True,
    )
    with pytest.warns(UserWarning, match="interrupted: 5 of 10"):
        mcmc.run()
    mcmc.extend(7)
    assert mcmc.get_samples(group_by_chain=True)["x"].shape == (2, 12, 2)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from ozaki import MCMC, ScoreOzakiKernel
from ozaki.scores import GaussianMixtureScore
means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
score = GaussianMixtureScore(means, 0.3 * torch.eye(2).expand(2, 2, 2))
mcmc = MCMC(ScoreOzakiKernel(score), num_samples=600, warmup_steps=200, seed=1, thinning=1,
            disable_progbar=True, checkpoint=sys.argv[1], checkpoint_every=5)
print("begun", flush=True)
mcmc.run()
torch.save(mcmc.get_samples(group_by_chain=True)["x"], sys.argv[2])
"""


def run_process(folder, out, kill_after=None):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(out)],
        stdout=subprocess.PIPE,
        env=env,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"
    if kill_after is not None:
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
    return process.wait(120)


@pytest.mark.thorough
@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_at_random_moments(kills, tmp_path):
    assert run_process(tmp_path / "whole", tmp_path / "whole.pt") == 0
    g = torch.Generator().manual_seed(0)
    for pause in (0.05 + 0.6 * torch.rand(kills, generator=g)).tolist():
        run_process(tmp_path / "killed", tmp_path / "out.pt", kill_after=pause)
    assert run_process(tmp_path / "killed", tmp_path / "out.pt") == 0
    assert torch.equal(torch.load(tmp_path / "out.pt"), torch.load(tmp_path / "whole.pt"))


# -- mistakes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    chains("chosen", folder)
    return folder


def again(folder, **changes):
    options = {
        "num_samples": DRAWS,
        "warmup_steps": WARMUP,
        "num_chains": 3,
        "seed": 3,
        "thinning": 2,
        "disable_progbar": True,
        "checkpoint": folder,
        "checkpoint_every": EVERY,
    }
    kernel = changes.pop("kernel", None) or ScoreOzakiKernel(MIXTURE)
    MCMC(kernel, **(options | changes)).run()


OTHERS = {
    "seed was 3 in the checkpoint and is 4 now": {"seed": 4},
    "warmup_steps was 61": {"warmup_steps": 62},
    "num_chains was 3": {"num_chains": 2},
    "metropolis was 'auto' in the checkpoint and is 'none' now": {
        "kernel": ScoreOzakiKernel(MIXTURE, metropolis="none")
    },
    "law was": {
        "kernel": ScoreOzakiKernel(GaussianScore(torch.zeros(2).double(), torch.eye(2).double()))
    },
    "guide was": {"kernel": ScoreOzakiKernel(MIXTURE, score=MIXTURE.smooth(0.5))},
    "num_samples must be at least the 20 draws": {"num_samples": 19},
}


@pytest.mark.parametrize("message", OTHERS)
def test_another_run_is_refused(message, kept):
    before = (kept / FILE).read_bytes()
    with pytest.raises(ValueError, match=message):
        again(kept, **OTHERS[message])
    assert (kept / FILE).read_bytes() == before


def test_other_data_are_refused(tmp_path):
    chains("model", tmp_path)
    mcmc = chains("model", tmp_path)
    with pytest.raises(ValueError, match=r"chains\.safetensors is of a run.*law was"):
        mcmc.run(DATA + 1)


def far(y):
    with pyro.plate("data", 10):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a, 1.0), obs=y)


@pytest.mark.parametrize("by", [50.0, 1e-6])
def test_one_other_entry_of_the_data_is_seen(by, tmp_path):
    def run(y, draws):
        kernel = ScoreOzakiKernel(far, step_size=0.5)
        options = {"num_chains": 2, "seed": 0, "disable_progbar": True, "checkpoint": tmp_path}
        MCMC(kernel, draws, 0, **options).run(y)

    run(torch.zeros(10), 5)
    other = torch.zeros(10)
    other[9] = by
    with pytest.raises(ValueError, match=r"data was"):
        run(other, 10)
    run(torch.zeros(10), 10)


def test_data_of_any_kind_are_known_again():
    kinds = [
        *(torch.ones(3, dtype=d) for d in (torch.float64, torch.bfloat16, torch.bool)),
        *(torch.ones(3, dtype=torch.complex64).conj(), torch.eye(3).to_sparse(), torch.ones(())),
        *(np.ones(3), np.array(["a"], object), 1, 1.0, "a", None, [1, 2], {"a": 1}),
    ]
    digests = [run_identity.of_data(kind) for kind in kinds]
    assert len(set(digests)) == len(kinds)
    assert digests == [run_identity.of_data(kind) for kind in kinds]
    assert run_identity.of_data(2 * torch.eye(3).to_sparse()) not in digests


def test_whole_numbers_of_numpy_are_whole_numbers(tmp_path):
    kernel = ScoreOzakiKernel(MIXTURE, step_size=0.5)
    numbers = {"num_samples": np.int64(5), "num_chains": np.int64(2), "warmup_steps": np.int64(0)}
    mcmc = MCMC(kernel, **numbers, seed=0, disable_progbar=True, checkpoint=tmp_path)
    mcmc.run()
    assert mcmc.to_inference_data()["posterior"].attrs["num_chains"] == 2


@pytest.mark.parametrize("fault", ["missing", "truncated", "of another"])
def test_a_damaged_block_is_told(fault, kept, tmp_path):
    chains("chosen", tmp_path)
    block = sorted(tmp_path.glob("draws-*.safetensors"))[1]
    if fault == "missing":
        block.unlink()
    elif fault == "of another":  # run of the same settings
        block.write_bytes((kept / block.name).read_bytes())
    else:
        block.write_bytes(block.read_bytes()[:-3])
    with pytest.raises(ValueError, match=rf"{block.name}.*{fault}"):
        again(tmp_path)


def test_nothing_to_extend():
    with pytest.raises(RuntimeError, match="call run"):
        MCMC(ScoreOzakiKernel(MIXTURE)).extend(10)


def unadjusted(step_size, **options):
    score = GaussianScore(torch.zeros(1).double(), torch.eye(1).double())
    kernel = ScoreLangevinKernel(score, step_size=step_size, metropolis="none")
    mcmc = MCMC(kernel, 100, 60, num_chains=500, seed=1, disable_progbar=True, **options)
    mcmc.run()
    return mcmc


@pytest.mark.parametrize("thinning", [1, 2])
def test_step_halving_finds_the_bias_of_the_step_size(thinning, monkeypatch):
    h = 1.2
    mcmc = unadjusted(h, thinning=thinning)
    # the chain's own law has variance 1/(1 − h/4), by the Lyapunov equation
    one, half = ((1 - s / 4) ** -0.5 for s in (h, h / 2))
    bias = mcmc.step_bias()
    found = bias.loc["x[0]"]
    # 4 of its errors: stricter than the policy's 5
    assert found["sd"] == pytest.approx(2 * (one / half - 1), abs=4 * found["sd_error"])
    assert found["sd"] > 10 * found["sd_error"]  # so large that the check above has teeth
    assert abs(found["mean"]) < 4 * found["mean_error"]
    written = {}
    monkeypatch.setattr(report, "write_report", lambda *args, **kwargs: written.update(kwargs))
    mcmc.report("report.html")
    assert written["bias"] is bias
    for frame, told in ((bias, True), (bias / 5, False)):
        judged = diagnostics.verdict(mcmc.to_inference_data(), bias=frame)
        what = "the step size biases the standard deviation of x[0] by"
        assert any(p.what.startswith(what) for p in judged.problems) == told
        assert any(note.startswith("Step halving: ") for note in judged.notes)


def test_chains_come_back_from_step_halving():
    one, other = unadjusted(0.5), unadjusted(0.5)
    one.step_bias()
    for mcmc in (one, other):
        mcmc.extend(50)
    assert torch.equal(one.get_samples()["x"], other.get_samples()["x"])


def test_exact_chains_have_no_bias_to_measure():
    score = GaussianScore(torch.zeros(1), torch.eye(1))
    mcmc = MCMC(ScoreLangevinKernel(score), 8, 8, disable_progbar=True)
    with pytest.raises(RuntimeError, match="call run"):
        mcmc.step_bias()
    mcmc.run()
    with pytest.raises(ValueError, match=r"metropolis must be 'none' for step_bias\(\)"):
        mcmc.step_bias()


def until_settled(folder=None, stop=None, law=MIXTURE, **options):
    def hook(kernel, params, stage, i):
        hook.steps += 1
        if hook.steps == stop:
            raise Killed

    hook.steps = 0
    given = {"num_samples": DRAWS, "num_chains": 3, "seed": 1, "disable_progbar": True, **options}
    kernel = ScoreOzakiKernel(law)
    mcmc = MCMC(kernel, warmup_steps="auto", checkpoint=folder, hook_fn=hook, **given)
    try:
        mcmc.run()
    except Killed:
        return None
    return mcmc


@pytest.mark.filterwarnings("ignore:warmup_steps='auto' ended after")
def test_a_warm_up_that_ends_by_itself_is_taken_up_and_extended(tmp_path):
    whole = until_settled(tmp_path / "whole", checkpoint_every=50)
    steps = whole.result.info["warmup_steps"]
    assert 550 <= steps <= 2000
    for i, stops in enumerate([(30, 90), (steps - 20, 30), (steps + 7,)]):
        for stop in stops:
            assert until_settled(tmp_path / str(i), stop, checkpoint_every=50) is None
        assert_same(until_settled(tmp_path / str(i), checkpoint_every=50), whole)
    short = until_settled(tmp_path / "short", num_samples=8, checkpoint_every=50)
    short.extend(DRAWS - 8)
    assert short.result.info["warmup_steps"] == steps


def test_a_warm_up_that_ends_by_itself_warns_where_chains_do_not_agree():
    far = GaussianMixtureScore(
        torch.tensor([[-20.0, 0.0], [20.0, 0.0]], dtype=F64),
        torch.eye(2, dtype=F64).expand(2, 2, 2),
    )
    starts = {"x": torch.tensor([[-20.0, 0.0], [20.0, 0.0], [20.0, 0.0]], dtype=F64)}
    with pytest.warns(UserWarning, match="ended after 2,000 steps with chains that do not agree"):
        until_settled(law=far, initial_params=starts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        until_settled(law=GaussianScore(torch.zeros(2), torch.eye(2)), num_chains=8)


class Bar:
    """A progress bar that keeps what it is told."""

    disable, n = False, 0

    def __init__(self):
        self.told = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def update(self, steps):
        self.n += steps

    def set_description(self, *given, **options):
        pass

    def set_postfix(self, figures, **options):
        self.told.append(dict(figures))


def test_the_progress_bar_tells_the_smallest_ess_once_there_are_draws(monkeypatch):
    bar = Bar()
    monkeypatch.setattr("ozaki.foundation.progress.bar", lambda **options: bar)
    score = GaussianScore(torch.zeros(2), torch.eye(2))
    mcmc = MCMC(ScoreOzakiKernel(score), num_samples=400, warmup_steps=100, num_chains=2, seed=0)
    mcmc.run()
    assert "ESS" not in bar.told[0]
    x = mcmc.get_samples(group_by_chain=True)["x"].numpy()
    each = [effective_sample_size(part) for part in np.moveaxis(x, 2, 0)]
    assert bar.told[-1]["ESS"] == f"{min(each):.0f}"
