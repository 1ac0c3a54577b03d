"""Draws on disk are the draws in memory, whatever befalls the run; memory holds one block."""

import os
import signal
import subprocess
import sys
import time

import arviz as az
import numpy as np
import pytest
import torch
import xarray as xr
from torch.testing import assert_close

from ozaki import MCMC, ScoreOzakiKernel, diagnostics
from ozaki.kernels.engine import Engine
from ozaki.sampling import zarr_draws, zarr_store
from ozaki.sampling.run_checkpoint import FILE
from ozaki.sampling.zarr_draws import ZarrDraws
from ozaki.sampling.zarr_store import ZarrStore
from ozaki.scores import GaussianScore
from tests.kit.contracts import ARVIZ
from tests.sampling.test_loop import KERNELS, MIXTURE

pytestmark = pytest.mark.usefixtures("unchecked", "undrawn")

WARMUP, DRAWS, EVERY, BLOCK = 25, 23, 9, 5
GROUPS = ("posterior", "sample_stats", "unconstrained_posterior")


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(zarr_draws, "DRAWS", BLOCK)
    monkeypatch.setattr(zarr_store, "sync", lambda path: None)  # the disk's milliseconds


@pytest.fixture
def killed(monkeypatch):
    """What a process that is killed does not do."""
    monkeypatch.setattr(ZarrDraws, "leave", lambda self: None)


def chains(store=None, name="chosen", hook=None, **options):
    build, args = KERNELS[name]
    given = {
        "num_samples": DRAWS,
        "warmup_steps": WARMUP,
        "num_chains": 3,
        "seed": 3,
        "thinning": 2,
        "checkpoint_every": EVERY,
        "disable_progbar": True,
    }
    mcmc = MCMC(build(), **{**given, **options}, store=store, hook_fn=hook)
    mcmc.run(*args)
    return mcmc


def raising(error, stop):
    def hook(kernel, params, stage, i):
        hook.steps += 1
        if hook.steps == stop:
            raise error

    hook.steps = 0
    return hook


def opened(path):
    return xr.open_datatree(path, engine="zarr", consolidated=False)


def assert_same(a, b):
    """Where the chains were and what is said of it to the last bit; the sites to rounding."""
    assert torch.equal(a.result.draws.position, b.result.draws.position)
    assert list(a.result.draws.stats) == list(b.result.draws.stats)
    for name, value in a.result.draws.stats.items():
        assert torch.equal(value, b.result.draws.stats[name]), name
    one, two = (m.get_samples(group_by_chain=True) for m in (a, b))
    assert list(one) == list(two)
    for name, value in one.items():
        assert_close(value, two[name])


@pytest.mark.parametrize("name", ["model", "chosen", "line integral", "trajectories", "paths"])
def test_draws_on_disk_are_those_in_memory(name, tmp_path):
    memory, disk = chains(name=name), chains(tmp_path / "d", name)
    assert_same(memory, disk)
    assert ("lp" in disk.result.draws.stats) == (name not in ("line integral", "paths"))
    assert memory._diagnostics == disk._diagnostics
    one, two = (m.to_inference_data() for m in (memory, disk))
    assert diagnostics.groups(one) == diagnostics.groups(two)
    for group in diagnostics.groups(one):
        xr.testing.assert_allclose(one[group], two[group])
        assert one[group].attrs.keys() == two[group].attrs.keys()
        for label, variable in one[group].variables.items():
            assert variable.dtype == two[group][label].dtype
    assert disk.get_samples(5).keys() == memory.get_samples(5).keys()


def test_what_arviz_reads(tmp_path):
    mcmc = chains(tmp_path / "d", "model")
    tree = opened(tmp_path / "d")
    assert tree.attrs["draws"] == DRAWS and set(tree.children) == set(GROUPS)
    for group in GROUPS:
        assert tree[group].sizes["chain"] == 3 and tree[group].sizes["draw"] == DRAWS
        assert tree[group]["draw"].values.tolist() == list(range(DRAWS))
    memory = chains(name="model").to_inference_data()
    read = tree if ARVIZ >= 1 else az.InferenceData.from_datatree(tree)
    xr.testing.assert_allclose(az.ess(read)["sd"], az.ess(memory)["sd"])
    # nothing is read before it is asked for
    posterior = mcmc.to_inference_data(log_likelihood=False).posterior
    assert not posterior["mu"].variable._in_memory
    mcmc.summary()
    mcmc.report(tmp_path / "r.html")


def test_memory_holds_one_block(tmp_path, monkeypatch):
    held, written = [], []

    def hook(kernel, params, stage, i):
        draws = mcmc._found
        tensors = [draws._position, *draws._stats.values()]
        held.append({t.untyped_storage().nbytes() // t.element_size() // 3 for t in tensors})

    real_begin, real_write = ZarrDraws.begin, ZarrStore.write

    def begin(self, engine):
        mcmc._found = self
        real_begin(self, engine)

    def write(self, first, groups):
        written.append((first, {v.shape[1] for g in groups.values() for v in g.values()}))
        real_write(self, first, groups)

    monkeypatch.setattr(ZarrDraws, "begin", begin)
    monkeypatch.setattr(ZarrStore, "write", write)
    mcmc = MCMC(
        ScoreOzakiKernel(GaussianScore([0.0], [[1.0]])),
        num_samples=4 * BLOCK + 2,
        warmup_steps=10,
        num_chains=3,
        seed=0,
        hook_fn=hook,
        disable_progbar=True,
        store=tmp_path / "d",
    )
    mcmc.run()
    assert len(held) == 4 * BLOCK + 12 and all(sizes == {BLOCK} for sizes in held)
    assert written == [(BLOCK * k, {BLOCK}) for k in range(4)] + [(4 * BLOCK, {2})]
    # the largest array sets the block: here 3 chains × 2 coordinates
    monkeypatch.setattr(zarr_draws, "NUMBERS", 19)
    assert chains(tmp_path / "e", "chosen").result.draws._archive.chunk == 3


def test_several_steps_at_once_stop_where_the_block_is_full(tmp_path, monkeypatch):
    """A compiled kernel walks as far as it may."""
    want, real = chains(name="chosen"), Engine.walk
    asked = []

    def walk(self, most=1):
        asked.append(most)
        return real(self, most)

    monkeypatch.setattr(Engine, "walk", walk)
    assert_same(chains(tmp_path / "d", "chosen"), want)
    assert max(asked[WARMUP:]) == 2 * BLOCK


# -- runs that are stopped ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Runs with a checkpoint that were not stopped."""
    return {
        name: chains(name=name, checkpoint=tmp_path_factory.mktemp("whole"))
        for name in ("chosen", "line integral", "trajectories", "paths")
    }


STOPS = {
    "in warm-up": (4,),
    "between draws and then in a block": (WARMUP + 13, 7),
    "beyond the state, twice": (WARMUP + 31, 8),
    "at the last step": (WARMUP + 2 * DRAWS,),
}


@pytest.mark.usefixtures("killed")
@pytest.mark.parametrize("when", STOPS)
@pytest.mark.parametrize("name", ["chosen", "line integral", "trajectories", "paths"])
def test_a_run_that_was_stopped_goes_on(name, when, wholes, tmp_path):
    options = {"checkpoint": tmp_path / "c", "store": tmp_path / "d", "name": name}
    for stop in STOPS[when]:
        with pytest.raises(Killed):
            chains(**options, hook=raising(Killed, stop))
    assert_same(chains(**options), wholes[name])
    assert not list((tmp_path / "c").glob("draws-*"))
    # what is finished is only read
    assert_same(chains(**options, hook=raising(Killed, 1)), wholes[name])
    assert opened(tmp_path / "d").attrs["draws"] == DRAWS


@pytest.mark.usefixtures("killed")
def test_what_lies_beyond_the_state_is_written_anew(wholes, tmp_path, monkeypatch):
    """Killed in the middle of writing a block, whose draws then differ."""
    whole, real = wholes["chosen"], ZarrStore.write
    options = {"checkpoint": tmp_path / "c", "store": tmp_path / "d"}
    for torn in (1, 3):

        def write(self, first, groups, torn=torn):
            write.calls += 1
            if write.calls == torn:
                junk = {k: {n: torch.ones_like(v) for n, v in g.items()} for k, g in groups.items()}
                real(self, first, junk)
                raise Killed
            real(self, first, groups)

        write.calls = 0
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(ZarrStore, "write", write)
            chains(**options)
    (tmp_path / "d" / "posterior" / "x" / "c" / "0" / "0.12ab.partial").touch()
    assert_same(chains(**options), whole)
    assert not list((tmp_path / "d").rglob("*.partial"))


@pytest.mark.usefixtures("killed")
@pytest.mark.parametrize("after", [False, True])
def test_killed_while_the_store_is_made(after, wholes, tmp_path, monkeypatch):
    whole, real = wholes["chosen"], ZarrStore.create
    options = {"checkpoint": tmp_path / "c", "store": tmp_path / "d"}

    def create(self, *args):
        if after:
            real(self, *args)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ZarrStore, "create", create)
        chains(**options)
    assert_same(chains(**options), whole)


def test_extending(tmp_path):
    long = chains(num_samples=31)
    short = chains(tmp_path / "a", num_samples=12)
    short.extend(9)
    short.extend(10)
    assert_same(short, long)
    assert opened(tmp_path / "a").attrs["draws"] == 31
    assert short.diagnostics()["acceptance rate"] == long.diagnostics()["acceptance rate"]
    # on disk, in a later process that asks for more
    first = chains(checkpoint=tmp_path / "c", num_samples=21)
    first.extend(10)
    options = {"checkpoint": tmp_path / "d", "store": tmp_path / "e"}
    chains(**options, num_samples=21)
    assert_same(chains(**options, num_samples=31), first)


def test_ctrl_c_keeps_what_was_made(tmp_path):
    stop = WARMUP + 2 * 8 + 1
    with pytest.warns(UserWarning, match="interrupted: 8 of 23"):
        mcmc = chains(tmp_path / "d", hook=raising(KeyboardInterrupt, stop))
    assert opened(tmp_path / "d").posterior.sizes["draw"] == 8
    whole = chains()
    assert torch.equal(mcmc.result.draws.position, whole.result.draws.position[:, :8])
    mcmc.extend(5)
    assert opened(tmp_path / "d").attrs["draws"] == 13


def test_a_run_that_fails_keeps_what_was_made_or_leaves_nothing(tmp_path):
    for error in (KeyboardInterrupt, Killed):
        with pytest.raises(error):
            chains(tmp_path / "d", hook=raising(error, WARMUP))
        assert not (tmp_path / "d").exists()
    with pytest.raises(Killed):
        chains(tmp_path / "d", hook=raising(Killed, WARMUP + 17))
    tree, whole = opened(tmp_path / "d"), chains().get_samples(group_by_chain=True)["x"]
    assert tree.attrs["draws"] == 8
    assert_close(torch.from_numpy(tree.posterior["x"].values[:, :8]), whole[:, :8])
    # what was not drawn cannot be taken for a draw
    assert np.isnan(tree.posterior["x"].values[:, 8:]).all()
    assert (tree.posterior["draw"].values[8:] == -1).all()


def test_a_full_disk_leaves_what_was_written(wholes, tmp_path, monkeypatch):
    from_zarr = sys.modules["zarr.storage._local"]
    real, whole = from_zarr._put, wholes["chosen"]

    def full(path, value, exclusive=False):
        if "/c/0/2" in path.as_posix():  # the third block
            raise OSError(28, "No space left on device")
        return real(path, value, exclusive)

    options = {"checkpoint": tmp_path / "c", "store": tmp_path / "d"}
    for given in (options, {"store": tmp_path / "alone"}):
        with (
            monkeypatch.context() as patch,
            pytest.raises(OSError, match=r"make room .* the 10 draws"),
        ):
            patch.setattr(from_zarr, "_put", full)
            chains(**given)
        tree = opened(given["store"])
        assert tree.attrs["draws"] == 10
        found = torch.from_numpy(tree.unconstrained_posterior["x"].values[:, :10])
        assert torch.equal(found, whole.result.draws.position[:, :10])
    assert_same(chains(**options), whole)


def test_what_the_state_counts_is_on_the_disk(tmp_path, monkeypatch):
    synced, real = set(), ZarrDraws.sync

    def sync(self):
        synced.clear()
        before, found = self._synced, real(self)
        files = tmp_path / "d" / "posterior" / "x" / "c" / "0"
        for k in range(before // BLOCK, -(-self.count // BLOCK)):
            assert {files, files / str(k), files / str(k) / "0"} <= synced
        return found

    def write(self, first, groups):
        put(self, first, groups)
        last = first + groups["sample_stats"]["diverging"].shape[1] - 1
        assert first // BLOCK == last // BLOCK  # each block of the files is written by itself

    put = ZarrStore.write
    monkeypatch.setattr(ZarrStore, "write", write)
    monkeypatch.setattr(zarr_store, "sync", synced.add)
    monkeypatch.setattr(ZarrDraws, "sync", sync)
    chains(tmp_path / "d", checkpoint=tmp_path / "c")


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from ozaki import MCMC, ScoreOzakiKernel, diagnostics, streaming
from ozaki.scores import GaussianMixtureScore
streaming.DRAWS = 13
means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
score = GaussianMixtureScore(means, 0.3 * torch.eye(2).expand(2, 2, 2))
mcmc = MCMC(ScoreOzakiKernel(score), num_samples=300, warmup_steps=100, seed=1,
            disable_progbar=True, checkpoint=sys.argv[1], checkpoint_every=5, store=sys.argv[2])
print("begun", flush=True)
mcmc.run()
torch.save(mcmc.get_samples(group_by_chain=True)["x"], sys.argv[3])
"""


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path):
    def run(name, kill_after=None):
        paths = [str(tmp_path / f"{name}{part}") for part in ("", ".zarr", ".pt")]
        command = [sys.executable, "-c", SCRIPT, *paths]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True)
        assert process.stdout.readline() == "begun\n"
        if kill_after is not None:
            time.sleep(kill_after)
            process.send_signal(signal.SIGKILL)
        return process.wait(300)

    assert run("whole") == 0
    g = torch.Generator().manual_seed(0)
    for pause in (0.3 + 2 * torch.rand(10, generator=g)).tolist():
        run("killed", pause)
    assert run("killed") == 0
    assert torch.equal(torch.load(tmp_path / "killed.pt"), torch.load(tmp_path / "whole.pt"))


# -- mistakes -------------------------------------------------------------------------------------


def test_what_is_there_is_refused_and_left(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "work").write_text("mine")
    chains(tmp_path / "d", "chosen")
    for there in ("file", "folder", "d"):
        for checkpoint in (None, tmp_path / f"c-{there}"):
            with pytest.raises(FileExistsError, match=f"store must be a new path, but .*{there}"):
                chains(tmp_path / there, "chosen", checkpoint=checkpoint)
    assert (tmp_path / "folder" / "work").read_text() == (tmp_path / "file").read_text() == "mine"
    assert opened(tmp_path / "d").attrs["draws"] == DRAWS
    (tmp_path / "empty").mkdir()
    chains(tmp_path / "empty", "chosen")


def test_a_folder_that_cannot_be_written_is_told_before_a_step(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="lies in a file"):
        chains(tmp_path / "file" / "d", hook=raising(AssertionError("a step"), 1))


def test_a_checkpoint_and_its_store_belong_together(tmp_path):
    options = {"name": "chosen", "checkpoint": tmp_path / "c"}
    chains(tmp_path / "d", **options)
    before = (tmp_path / "c" / FILE).read_bytes()
    chains(tmp_path / "other", "chosen")
    with pytest.raises(ValueError, match="store was True in the checkpoint and is False now"):
        chains(**options)
    with pytest.raises(ValueError, match=r"the 23 draws a chain .* holds other draws"):
        chains(tmp_path / "other", **options)
    with pytest.raises(ValueError, match=r"counts, but .*gone is missing"):
        chains(tmp_path / "gone", **options)
    with pytest.raises(ValueError, match="num_samples must be at least the 23 draws"):
        chains(tmp_path / "d", **options, num_samples=22)
    zarr_store.zarr.open_group(str(tmp_path / "d"), mode="r+").attrs["draws"] = 22
    with pytest.raises(ValueError, match="d holds 22; restore it"):
        chains(tmp_path / "d", **options)
    assert (tmp_path / "c" / FILE).read_bytes() == before
    # the draws may be moved
    zarr_store.zarr.open_group(str(tmp_path / "d"), mode="r+").attrs["draws"] = 23
    (tmp_path / "d").rename(tmp_path / "moved")
    chains(tmp_path / "moved", **options)


def test_other_mistakes(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="store must be the path of a folder or None, but was 3"):
        chains(3)
    kernel = ScoreOzakiKernel(MIXTURE, site="draw")
    with pytest.raises(ValueError, match="names must not be those of dimensions"):
        MCMC(kernel, store=tmp_path / "d", hook_fn=raising(AssertionError, 1)).run()
    assert not (tmp_path / "d").exists()
    monkeypatch.setattr(zarr_store, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'ozaki\[zarr\]'"):
        chains(tmp_path / "d")
