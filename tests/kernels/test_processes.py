"""Any number of processes walks the chains of one, and none waits for another that has failed."""

import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import xarray as xr
from torch import distributed as dist
from torch.testing import assert_close

from ozaki import MCMC, ScoreOzakiKernel, diagnostics
from ozaki.io.atomic import lock
from ozaki.kernels import processes, trajectories, transition
from ozaki.kernels.noise import NoiseBlock
from ozaki.kernels.proposals import langevin
from ozaki.kernels.transition import KernelSpec, StepOptions
from ozaki.sampling import zarr_draws
from tests.kit.tolerances import ROUNDING, rounding
from tests.sampling.test_loop import DATA, KERNELS, MIXTURE, model

pytestmark = [pytest.mark.usefixtures("unchecked"), pytest.mark.thorough]

SMALL = {
    "num_samples": 17,
    "warmup_steps": 60,
    "num_chains": 5,
    "seed": 3,
    "thinning": 2,
    "disable_progbar": True,
}


def _process(rank, size, folder, act, args, port):
    torch.set_num_threads(1)
    if port is None:
        at = f"file://{folder}/meeting"
        dist.init_process_group("gloo", init_method=at, rank=rank, world_size=size)
    else:  # as torchrun does
        where = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": size}
        os.environ.update({name: str(value) for name, value in where.items()})
    try:
        found = act(*args)
    except BaseException as error:
        found = error, traceback.format_exc()
    torch.save(found, folder / f"{rank}.pt")
    os._exit(0)


def together(size, folder, act, *args, port=None):
    """What `act` gives in each of `size` processes, or what it raises."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.kernels.test_processes"])
    folder.mkdir()
    given = ((rank, size, folder, act, args, port) for rank in range(size))
    processes = [context.Process(target=_process, args=g) for g in given]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(120)
            assert process.exitcode == 0, "a process waits for another"
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def chains(name="chosen", extend=0, **options):
    build, args = KERNELS[name]
    mcmc = MCMC(build(), **{**SMALL, **options})
    mcmc.run(*args)
    if extend:
        mcmc.extend(extend)
    return drawn(mcmc)


def drawn(mcmc):
    samples = mcmc.get_samples(group_by_chain=True)
    return {**samples, **mcmc.result.draws.stats}, mcmc.diagnostics()


def assert_same(found, want):
    """On all processes the very same, and what one process draws up to rounding."""
    for draws, figures in found:
        assert draws.keys() == want[0].keys()
        for name, value in draws.items():
            assert torch.equal(value, found[0][0][name]), name
            assert_close(value, want[0][name], **rounding(torch.float32))
        for name, value in figures["acceptance rate"].items():
            assert value == pytest.approx(
                want[1]["acceptance rate"][name], rel=ROUNDING[torch.float32]
            )
        assert figures["divergences"] == want[1]["divergences"]


def raised(found, error, message):
    for one, trace in found:
        assert isinstance(one, error) and message in str(one), trace


# -- the same chains ------------------------------------------------------------------------------


def _all_kernels(names):
    sizes = set()

    def watched(real):
        def walk(state, *args):
            sizes.add(len(state.position))
            return real(state, *args)

        return walk

    transition.walk = watched(transition.walk)
    trajectories.walk = watched(trajectories.walk)
    return sizes, [chains(name, extend=4) for name in names]


SHARES = {
    ("chosen", "frozen", "line integral"): [{3}, {2}],
    ("unadjusted", "given step", "model"): [{2}, {2}, {1}],
    ("trajectories", "paths", "frozen paths"): [{3}, {2}],
    ("leapfrog", "unadjusted paths", "a model's paths"): [{2}, {2}, {1}],
}


@pytest.mark.parametrize("names", SHARES, ids=", ".join)
def test_every_process_walks_its_share_of_the_chains_of_one(names, tmp_path):
    found = together(len(SHARES[names]), tmp_path / "a", _all_kernels, names)
    assert [sizes for sizes, _ in found] == SHARES[names]
    for i, name in enumerate(names):
        assert_same([each[i] for _, each in found], chains(name, extend=4))


@pytest.mark.parametrize("flying", [False, True])
def test_steps_that_are_passed_on_are_the_steps_of_all(flying):
    """However many each process has; trajectories' gradients travel as well."""
    g = torch.Generator().manual_seed(0)
    like = {"dtype": torch.float64, "generator": g}
    x = torch.randn(5, 2, **like)
    noise = NoiseBlock(torch.randn(4, 5, 2, **like), torch.rand(4, 5, **like), torch.ones(4))
    method = KernelSpec(langevin, None if flying else "dense", "exact", flying)
    state, h = transition.init(MIXTURE, x, method), torch.full((5, 1), 2.0)

    def walk(state, h, noise):
        if not flying:
            return transition.walk(state, MIXTURE, method, h, noise)[1]
        splits = trajectories.splitting(h.expand(4, -1, -1))
        lengths, options = [2, 1, 3, 1], StepOptions()
        return trajectories.walk(state, MIXTURE, None, splits, lengths, noise, options)[1]

    whole = walk(state, h, noise)
    messages, counts = [], [3, 1, 1]
    for place in (slice(0, 3), slice(3, 4), slice(4, 5)):
        share = NoiseBlock(noise.normal[:, place], noise.uniform[:, place], noise.scale)
        trail = walk(transition.rows(state, place), h[place], share)
        messages.append((processes._pack(trail), trail))
    parts = [processes._unpack(m, 4, n, 2) for (m, _), n in zip(messages, counts, strict=True)]
    joined = processes._join(parts, messages[0][1])
    assert 0 < whole.info.accepted.sum() < 20  # something to tell apart
    for a, b in zip((*joined[:2], *joined.info), (*whole[:2], *whole.info), strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b)
    assert (whole.gradient is not None) == flying
    if flying:
        assert_close(joined.gradient, whole.gradient)


def _without_a_seed():
    torch.manual_seed(int(os.environ["RANK"]))
    mcmc = MCMC(ScoreOzakiKernel(model), **{**SMALL, "seed": None, "warmup_steps": 20})
    mcmc.run(DATA)
    idata = mcmc.to_inference_data(posterior_predictive=True, prior=5)
    groups = {g: idata[g].data_vars for g in diagnostics.groups(idata)}
    return {g: {n: v.values for n, v in found.items()} for g, found in groups.items()}


def test_without_a_seed_all_take_the_first_ones(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    first, second = together(2, tmp_path / "a", _without_a_seed, port=port)
    assert {"posterior_predictive", "prior"} <= first.keys()
    for group, variables in first.items():
        for name, value in variables.items():
            assert (value == second[group][name]).all(), (group, name)


# -- on disk, and what is said --------------------------------------------------------------------


class Killed(Exception):
    pass


def _stopped(stop, folder, store, only=None, error=Killed, extend=0):
    def hook(kernel, params, stage, i):
        hook.steps += 1
        if hook.steps == stop and only in (None, dist.get_rank()):
            raise error

    def write(*_):
        raise AssertionError("only the first process writes")

    hook.steps = 0
    zarr_draws.DRAWS = 5
    if dist.get_rank() > 0:
        for name in ("create", "resize", "write", "sync", "remove"):
            setattr(zarr_draws.ZarrStore, name, write)
    options = {"checkpoint": folder, "checkpoint_every": 9, "store": store, "hook_fn": hook}
    return chains(**options, extend=extend)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_on_disk_is_taken_up_by_any_number(streamed, tmp_path):
    c, d = tmp_path / "c", tmp_path / "d" if streamed else None
    raised(together(2, tmp_path / "a", _stopped, 70, c, d), Killed, "")
    raised(together(3, tmp_path / "b", _stopped, 15, c, d), Killed, "")
    want = chains(checkpoint=tmp_path / "whole", checkpoint_every=9, extend=4)
    assert_same(together(2, tmp_path / "e", _stopped, None, c, d, None, Killed, 4), want)
    if d is not None:
        tree = xr.open_datatree(d, engine="zarr", consolidated=False)
        assert tree.attrs["draws"] == 21 and tree.posterior["draw"].values.tolist() == [*range(21)]
    # and by one
    options = {"checkpoint": c, "checkpoint_every": 9, "store": d, "num_samples": 21}
    assert_same([chains(**options)], want)


def _lonely_disk(folder, store):
    """Each process has a folder of its own."""
    mine = str(dist.get_rank())
    if dist.get_rank() == 0 and not store:
        chains_of_one = {"checkpoint": folder / mine, "store": None}
        processes.dist.is_initialized, held = (lambda: False), processes.dist.is_initialized
        chains(**chains_of_one)
        processes.dist.is_initialized = held
    return chains(**({"store": folder / mine} if store else {"checkpoint": folder / mine}))


@pytest.mark.parametrize("store", [False, True])
def test_a_disk_that_is_not_shared_is_told(store, tmp_path):
    found = together(2, tmp_path / "a", _lonely_disk, tmp_path / "c", store)
    raised(found, ValueError, "on a disk that all of them share")


def _said():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        chains(warmup_steps=5)
    return [str(w.message) for w in told]


def test_the_first_process_warns_for_all(tmp_path):
    first, second = together(2, tmp_path / "a", _said)
    assert len(first) == 1 and "too few to find a step size" in first[0]
    assert second == []


# -- mistakes, and processes that fail ------------------------------------------------------------

DIFFERENT = {
    "seed was 3 in process 0 and 4 in process 1": lambda rank: chains(seed=3 + rank),
    "num_samples was 8 in process 0 and 9 in": lambda rank: chains(num_samples=8 + rank),
    "num_chains was 5 in process 0 and 6 in": lambda rank: chains(num_chains=5 + rank),
    "law was": lambda rank: MCMC(ScoreOzakiKernel(model), **SMALL).run(DATA + rank),
    "checkpoint was True in process 0 and False in process 1; give it": lambda rank: chains(
        checkpoint=None if rank else Path("never")
    ),
    "hook_fn was True in process 0 and False in process 1": lambda rank: chains(
        hook_fn=None if rank else print
    ),
    "must be at least the number of processes, 2, but was 1": lambda rank: chains(num_chains=1),
    "x was 'about 0' in process 0 and 'about 5'": lambda rank: chains(
        initial_params={"x": torch.full((5, 2), 0.5 * rank, dtype=torch.float64)}
    ),
}


def _different():
    found = {}
    for message, act in DIFFERENT.items():
        try:
            act(dist.get_rank())
        except ValueError as error:
            found[message] = str(error)
    # and nothing of it lasts
    return found, chains()


def test_processes_that_differ_are_told_by_all(tmp_path):
    both = together(2, tmp_path / "a", _different)
    for found, _ in both:
        for message in DIFFERENT:
            assert message in found[message]
    assert_same([after for _, after in both], chains())


def _failing(kind):
    real = type(MIXTURE).expand

    def expand(self, x, curvature=None):
        expand.calls += len(x) == 2 and curvature == kind  # chains that this process has
        if expand.calls > (0 if kind else 10) and dist.get_rank() == 1:
            raise ArithmeticError("of this process alone")
        return real(self, x, curvature)

    expand.calls = 0
    type(MIXTURE).expand = expand
    return chains()


@pytest.mark.parametrize("kind", ["dense", None])  # where warm-up looks at it; in a step
def test_a_process_that_cannot_walk_tells_the_others(kind, tmp_path):
    first, second = together(2, tmp_path / "a", _failing, kind)
    raised([first], RuntimeError, "process 1 could not walk its chains")
    raised([second], ArithmeticError, "of this process alone")


@pytest.mark.parametrize("error", [Killed, KeyboardInterrupt])
def test_a_process_that_ends_leaves_none_waiting(error, tmp_path):
    """Nor does it go on with draws that the others lack."""
    first, second = together(2, tmp_path / "a", _stopped, 70, None, None, 1, error)
    raised([first], RuntimeError, "another process has ended")
    raised([second], error, "")


def _first_cannot_write(folder):
    if dist.get_rank() == 0:
        with lock(folder):
            return chains(checkpoint=folder)
    return chains(checkpoint=folder)


def test_what_the_first_process_cannot_do_all_are_told(tmp_path):
    first, second = together(2, tmp_path / "a", _first_cannot_write, tmp_path / "c")
    raised([first], BlockingIOError, "is in use")
    raised([second], RuntimeError, "process 0 stopped the run: BlockingIOError")


def _compiled():
    mcmc = MCMC(ScoreOzakiKernel(MIXTURE, compile=True), **SMALL)
    mcmc.run()
    return drawn(mcmc)


@pytest.mark.slow
def test_compiled_steps_are_shared_out(tmp_path):
    assert_same(together(2, tmp_path / "a", _compiled), chains())


SCRIPT = """
import os, sys, torch
from ozaki import MCMC, ScoreOzakiKernel
from ozaki.scores import GaussianScore
mcmc = MCMC(ScoreOzakiKernel(GaussianScore([1.0, 2.0], [[1.0, 0.5], [0.5, 1.0]])), num_samples=50,
            warmup_steps=60, num_chains=5, seed=0)
mcmc.run()
torch.save(mcmc.get_samples(group_by_chain=True)["x"], f"{os.environ.get('RANK', 'one')}.pt")
"""


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    for how in ([], launcher):
        command = [sys.executable, *how, "script.py"]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
    one, first, second = (torch.load(tmp_path / f"{n}.pt") for n in ("one", 0, 1))
    assert torch.equal(first, second)
    assert_close(first, one, **rounding(torch.float32))
