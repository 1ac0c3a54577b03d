"""A run that is stopped anywhere, goes on, and ends with the same estimator bit for bit."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ozaki.io.checkpoint import FILE
from ozaki.scores.learned import phase
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.trainer import DSMTrainer
from tests.kit.tolerances import rounding

DATA = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)) ** 3


class Rows(IterableDataset):
    """A stream that can be begun again."""

    def __iter__(self):
        return iter(DATA)


class Dropping(nn.Module):
    """Dropout draws from the global random state."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Dropout(0.2))
        self.heads = nn.ModuleList((nn.Linear(8, 3), nn.Linear(8, 3)))

    def forward(self, u: Tensor, noise: Tensor):
        h = self.body(u)
        return tuple(head(h) for head in self.heads)


LOADERS = {
    "memory": lambda: DATA,
    "shuffled loader": lambda: DataLoader(TensorDataset(DATA), batch_size=30, shuffle=True),
    "stream": lambda: DataLoader(Rows(), batch_size=30),
}
RUNS: dict[str, dict] = {
    "defaults": {},
    "separate": {"joint": False},
    "range": {"sigma": (0.3, 1.0)},
    "low rank": {"curvature": "low_rank", "rank": 2},
    "order 3": {"order": 3, "objective": "residual"},
    "dropout": {"network": Dropping(), "objective": "residual"},
    "half": {"precision": "bf16-mixed"},
}


def trainer(folder: Path | None, **options) -> DSMTrainer:
    small = {"max_steps": 120, "batch_size": 16, "width": 8, "depth": 1, "checkpoint_every": 20}
    given = {"sigma": 0.5, "seed": 0, **small, **options}
    return DSMTrainer(checkpoint=folder, progress=False, **given)


def equal(a: ScoreEstimator, b: ScoreEstimator) -> bool:
    one, two = a.network.state_dict(), b.network.state_dict()
    same = all(torch.equal(one[k], two[k]) for k in one)
    return same and json.dumps(a.metrics) == json.dumps(b.metrics)


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(phase, "HELD_OUT_PAIRS", 512)


class Stopped(Exception):
    pass


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Stop at the given optimiser step, counted over phases, before it is taken."""
    real, taken = phase.TrainingPhase._advance, [0]

    def advance(self):
        taken[0] += 1
        if taken[0] == at:
            raise Stopped
        return real(self)

    monkeypatch.setattr(phase.TrainingPhase, "_advance", advance)


@pytest.mark.parametrize("kind", RUNS)
def test_a_resumed_run_equals_one_that_was_not_stopped(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {**RUNS[kind], "max_steps": 60, "checkpoint_every": 10}
    whole = trainer(None, **options).fit(DATA)
    for at in (25, 90 if kind == "separate" else 59):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            interrupt(patch, at)
            trainer(tmp_path / str(at), **options).fit(DATA)
        torch.manual_seed(at)  # what happens in between must not matter
        resumed = trainer(tmp_path / str(at), **options).fit(DATA, resume=True)
        assert equal(whole, resumed), at
    # a run that is done gives its estimator again
    assert equal(whole, trainer(tmp_path / "25", **options).fit(DATA, resume=True))


@pytest.mark.parametrize("kind", LOADERS)
def test_data_order_is_resumed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = trainer(None).fit(LOADERS[kind]())
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupt(patch, 77)
        trainer(tmp_path).fit(LOADERS[kind]())
    assert equal(whole, trainer(tmp_path).fit(LOADERS[kind](), resume=True))


def test_without_a_seed_the_checkpoint_remembers_the_one_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(5)
    whole = trainer(None, seed=None).fit(DATA)
    torch.manual_seed(5)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        interrupt(patch, 70)
        trainer(tmp_path, seed=None).fit(DATA)
    assert equal(whole, trainer(tmp_path, seed=None).fit(DATA, resume=True))


def test_other_settings_or_data_are_named_one_by_one(tmp_path: Path):
    trainer(tmp_path, max_steps=20).fit(DATA)
    with pytest.raises(FileExistsError, match="resume=True"):
        trainer(tmp_path, max_steps=20).fit(DATA)
    with pytest.raises(ValueError, match=r"learning_rate was 0\.006.*width was 8") as caught:
        trainer(tmp_path, max_steps=20, learning_rate=0.01, width=9).fit(DATA, resume=True)
    assert "ema" not in str(caught.value)
    with pytest.raises(ValueError, match="data was"):
        trainer(tmp_path, max_steps=20).fit(DATA + 1, resume=True)
    with pytest.raises(ValueError, match="resume=True needs the folder of a checkpoint"):
        trainer(None).fit(DATA, resume=True)


def test_a_spoiled_checkpoint_is_refused(tmp_path: Path):
    trainer(tmp_path, max_steps=20).fit(DATA)
    content = bytearray((tmp_path / FILE).read_bytes())
    content[-5] ^= 1
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match=str(tmp_path / FILE)):
        trainer(tmp_path, max_steps=20).fit(DATA, resume=True)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = trainer(None).fit(DATA)
    real, calls = os.fsync, [0]

    def full(descriptor):
        calls[0] += 1
        if calls[0] > 5:
            raise OSError(28, "No space left on device")
        return real(descriptor)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="make room on the disk"):
        patch.setattr(os, "fsync", full)
        trainer(tmp_path).fit(DATA)
    assert {p.name for p in tmp_path.iterdir()} == {FILE, ".lock"}
    assert equal(whole, trainer(tmp_path).fit(DATA, resume=True))


def test_two_runs_cannot_share_a_folder(tmp_path: Path):
    class Nested(IterableDataset):
        def __iter__(self):
            trainer(tmp_path).fit(DATA)
            yield from DATA

    with pytest.raises(BlockingIOError, match="is in use"):
        trainer(tmp_path).fit(DataLoader(Nested(), batch_size=10))


KILLS = {"max_steps": 150, "checkpoint_every": 1, "objective": "residual"}


def _on_a_slow_disk(folder: Path) -> None:
    """Train to the end where a checkpoint, of two fsyncs, takes 20 ms or more."""
    real = os.fsync

    def slow(descriptor):
        time.sleep(0.01)
        return real(descriptor)

    os.fsync = slow
    torch.set_num_threads(1)
    phase.HELD_OUT_PAIRS = 512
    trainer(folder, **KILLS).fit(DATA, resume=True).save(folder / "estimator")


@pytest.mark.thorough
def test_killed_at_twenty_random_moments_it_ends_with_the_very_weights(tmp_path: Path):
    """A checkpoint is written at every step, so that many kills fall into the writing of one.

    Two networks of 150 steps take 6 s or more, and twenty kills come within 5.6 s: there is room
    for all of them on a machine of any speed.
    """
    whole = trainer(None, **KILLS).fit(DATA)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ozaki.scores.learned.trainer"])
    clock = random.Random(0)
    kills = 0
    for _ in range(200):
        process = context.Process(target=_on_a_slow_disk, args=(tmp_path,))
        process.start()
        if kills < 20:
            began = time.monotonic()
            while not (tmp_path / FILE).exists() and time.monotonic() - began < 60:
                time.sleep(0.01)  # the first start imports torch
            process.join(clock.uniform(0.02, 0.28))
        else:
            process.join(300)
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills >= 20
    assert equal(whole, ScoreEstimator.load(tmp_path / "estimator"))
    assert {p.name for p in tmp_path.iterdir()} == {FILE, ".lock", "estimator"}


def run(arguments: list[str], folder: Path, processes: int = 1) -> subprocess.CompletedProcess:
    launcher = ["-m"]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        launcher += [str(processes), "-m"]
    return subprocess.run(
        [sys.executable, *launcher, "ozaki", "train", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.thorough
def test_two_processes_reach_the_result_of_one(tmp_path: Path):
    np.save(tmp_path / "data.npy", DATA.numpy())
    options = ["data.npy", "--sigma", "0.5", "--max-steps", "60", "--batch-size", "32"]
    one = run([*options, "--out", "one"], tmp_path)
    assert one.returncode == 0, one.stderr
    two = run([*options, "--out", "two", "--checkpoint", "state"], tmp_path, processes=2)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("saved in two") == 1
    a, b = ScoreEstimator.load(tmp_path / "one"), ScoreEstimator.load(tmp_path / "two")
    first, second = a.expand(DATA, "diagonal"), b.expand(DATA, "diagonal")
    # of 60 steps of training
    torch.testing.assert_close(first.gradient, second.gradient, **rounding(torch.float32, terms=10))
    torch.testing.assert_close(
        # of a second derivative, which training holds less
        first.curvature.diagonal(),
        second.curvature.diagonal(),
        **rounding(torch.float32, terms=100),
    )
    odd = run([*options[:-1], "33", "--out", "three"], tmp_path, processes=2)
    assert odd.returncode != 0
    assert "batch_size must be a multiple of the number of processes, 2, but was 33" in odd.stderr
