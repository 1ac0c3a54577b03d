"""Ctrl-C, full disks, folders that are read-only, clocks that jump, processes that die or meet.

Nothing that was reported written is lost, every fault ends in a sentence, and nothing half-written
stands under its final name.
"""

import importlib
import multiprocessing
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pytest
import torch
import tqdm
import xarray as xr
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset

from ozaki import MCMC, ScoreOzakiKernel, cli
from ozaki.diagnostics import load
from ozaki.foundation import interruption
from ozaki.sampling import zarr_draws
from ozaki.scores import GaussianMixtureScore
from ozaki.scores.learned import phase
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.trainer import DSMTrainer
from tests.kit.tolerances import rounding

pytestmark = [pytest.mark.usefixtures("unchecked"), pytest.mark.thorough]

ROWS = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
LIMIT = 120  # seconds, of any process
TRAIN = ("train", "rows.npy", "--out", "e", "--max-steps", 40, "--width", 8, "--batch-size", 16)
SAMPLE = ("sample", "estimator", "--out", "draws", "--num-samples", 40, "--warmup-steps", 60)
DENOISE = ("denoise", "rows.npy", "--estimator", "estimator", "--out", "clean")
REPORT = ("report", "kept/draws.nc", "--out", "r.html")
COMPARE = ("compare", "rows.npy", "rows.npy")
DEMO = ("demo", "--quick", "--out", "demo")


# -- processes ------------------------------------------------------------------------------------


class Ended(NamedTuple):
    code: int | None
    said: str

    def sentence(self) -> str:
        """What was said, once it is seen that it is no traceback."""
        assert "Traceback" not in self.said and "ignored in" not in self.said, self.said
        return self.said


class Moment(NamedTuple):
    """The n-th call of a function, by its dotted name; before it, or once it has returned."""

    what: str
    nth: int = 1
    after: bool = False

    def act(self, fault: Callable[[], Any]) -> None:
        """Let `fault` befall this process at that moment."""
        place, name = self.what.rsplit(".", 1)
        owner = _found(place)
        real, calls = getattr(owner, name), [0]

        def called(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            due = calls[0] == self.nth
            if due and not self.after:
                fault()
            result = real(*args, **kwargs)
            if due and self.after:
                fault()
            return result

        setattr(owner, name, called)


def _found(dotted: str) -> Any:
    """A module, or a class in one."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, name = dotted.rsplit(".", 1)
        return getattr(importlib.import_module(module), name)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)  # a handler runs between two instructions


def _begin(folder: Path, said: Path, act: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """In a process of its own: `act`, and all it says to a file."""
    os.chdir(folder)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    phase.HELD_OUT_PAIRS = 512
    act(*args)


def start(folder: Path, said: Path, act: Callable[..., Any], *args: Any) -> Any:
    """A process, forked from one that has imported all that commands import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.guarantees.test_faults", "ozaki.report.plots", "h5netcdf", "arviz"]
    )
    process = context.Process(target=_begin, args=(folder, said, act, args))
    process.start()
    return process


def ended(process: Any, said: Path) -> Ended:
    process.join(LIMIT)
    try:
        assert process.exitcode is not None, f"still running: {said.read_text()}"
    finally:
        process.kill()
    return Ended(process.exitcode, said.read_text())


class Place:
    """A folder to work in, and a file beside it for what is said."""

    def __init__(self, folder: Path):
        self.folder, self.said = folder / "work", folder / "said"
        self.folder.mkdir(parents=True)

    def start(self, act: Callable[..., Any], *args: Any) -> Any:
        self.said.unlink(missing_ok=True)
        return start(self.folder, self.said, act, *args)

    def run(self, act: Callable[..., Any], *args: Any) -> Ended:
        return ended(self.start(act, *args), self.said)

    def command(self, arguments: Any, fault: Any = None) -> Ended:
        return self.run(_command, arguments, fault)

    def holds(self) -> dict[str, bytes]:
        """Every file, and every folder that is empty."""
        found = self.folder.rglob("*")
        files = {p: p.read_bytes() if p.is_file() else b"" for p in found}
        return {str(p.relative_to(self.folder)): content for p, content in files.items()}


def _command(arguments: Any, fault: Callable[[], Any] | None = None) -> None:
    """As the program does it, once it is imported."""
    signal.signal(signal.SIGINT, interruption._end)
    if fault is not None:
        fault()
    sys.argv = ["ozaki", *map(str, arguments)]
    cli.main()


class Interrupted(NamedTuple):
    """Ctrl-C at a moment."""

    moment: Moment

    def __call__(self) -> None:
        self.moment.act(interrupt)


def labelled(value: Any) -> str:
    return str(value[0] if isinstance(value, tuple) else value)


def redirected(arguments: Any, out: Any) -> list[Any]:
    """The command with another --out."""
    at = arguments.index("--out") + 1
    return [*arguments[:at], out, *arguments[at + 1 :]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, an estimator of them, and draws of that."""
    place = Place(tmp_path_factory.mktemp("made"))
    np.save(place.folder / "rows.npy", ROWS.numpy())
    for arguments in (
        (*TRAIN[:2], "--out", "estimator", *TRAIN[4:]),
        (*SAMPLE[:2], "--out", "kept", *SAMPLE[4:]),
    ):
        done = place.command(arguments)
        assert done.code in (0, 1), done.said
    return place.folder


@pytest.fixture
def place(tmp_path: Path, made: Path) -> Place:
    """A folder with links to what is made."""
    found = Place(tmp_path)
    for thing in made.iterdir():
        (found.folder / thing.name).symlink_to(thing)
    return found


# -- Ctrl-C ---------------------------------------------------------------------------------------

WALKED = "ozaki.sampling.loop.SamplingLoop._advance"
STOPS: dict[Any, list[Moment]] = {
    TRAIN: [
        Moment("ozaki.cli.train.named_table"),
        Moment("ozaki.scores.learned.phase.TrainingPhase._advance", 1),
        Moment("ozaki.scores.learned.phase.TrainingPhase._advance", 70, after=True),
        Moment("ozaki.scores.learned.phase.TrainingPhase._evaluate"),
        Moment("ozaki.scores.learned.estimator.ScoreEstimator.save"),
        Moment("ozaki.scores.learned.estimator_folder.digest"),
        Moment("os.fsync", 2),
        Moment("os.replace"),
    ],
    SAMPLE: [
        Moment("ozaki.cli.sample._estimator", after=True),
        Moment(WALKED, 3),
        Moment(WALKED, 65),
        Moment("ozaki.cli.sample.save", after=True),
        Moment("ozaki.report.plots.encode", 2),
        Moment("os.fsync", 2),
        Moment("os.replace", 1, after=False),
    ],
    DENOISE: [
        Moment("ozaki.denoising.files.denoise"),
        Moment("numpy.savez_compressed", after=True),
        Moment("os.replace"),
    ],
    REPORT: [
        Moment("ozaki.cli.report.load", after=True),
        Moment("ozaki.report.page._write", after=True),
        Moment("os.replace"),
    ],
    COMPARE: [
        Moment("ozaki.cli.compare._read"),
        Moment("ozaki.laws.two_sample_test"),
    ],
}


@pytest.mark.parametrize("arguments", STOPS, ids=labelled)
def test_ctrl_c_stops_a_command_anywhere_and_it_can_be_given_again(arguments, place):
    before = place.holds()
    for moment in STOPS[arguments]:
        done = place.command(arguments, Interrupted(moment))
        assert done.code == 130, (moment, done)
        assert done.sentence() == "ozaki: stopped; nothing more was written\n", moment
        assert place.holds() == before, moment
    assert place.command(arguments).code in (0, 1)


@pytest.mark.parametrize("nth", [1, 2])
def test_ctrl_c_between_two_renames_leaves_the_old_output_or_the_new(nth, place):
    """The old folder makes way for the new one by another name, under which nobody finds it."""
    assert place.command(TRAIN).code == 0
    before = place.holds()
    moment = Moment("os.replace", nth, after=True)
    done = place.command((*TRAIN, "--seed", 1, "--force"), Interrupted(moment))
    assert done.code == 130 and done.sentence()
    now = place.holds()
    assert now.keys() == before.keys()
    assert (now == before) == (nth == 1)
    ScoreEstimator.load(place.folder / "e")


@pytest.mark.slow
def test_ctrl_c_in_the_demo_leaves_whole_files_and_force_begins_anew(place):
    for moment in (
        Moment("ozaki.scores.learned.phase.TrainingPhase._advance", 3),
        Moment("ozaki.report.page._write"),
    ):
        done = place.command((*DEMO, "--force"), Interrupted(moment))
        assert done.code == 130, done
        assert done.sentence().endswith("ozaki: stopped; nothing more was written\n")
    names = {p.name for p in (place.folder / "demo").iterdir()}
    assert names == {"draws.nc", "estimator"}
    ScoreEstimator.load(place.folder / "demo" / "estimator")
    assert place.command(("report", "demo/draws.nc")).code in (0, 1)


@pytest.mark.parametrize("module", [True, False], ids=["python -m ozaki", "ozaki"])
def test_ctrl_c_while_the_program_is_imported_is_a_sentence(module, tmp_path):
    program = [str(Path(sys.executable).with_name("ozaki"))]
    if not Path(program[0]).exists():
        pytest.skip("the program is not installed beside Python")
    command = [sys.executable, "-X", "importtime", *(["-m", "ozaki"] if module else program)]
    process = subprocess.Popen([*command, "--help"], stdout=-1, stderr=-1, text=True)
    for line in process.stderr:
        if line.endswith(" torch.version\n"):
            break
    process.send_signal(signal.SIGINT)
    said = [line for line in process.communicate(timeout=LIMIT)[1].splitlines() if "|" not in line]
    assert process.returncode == 130
    assert said == ["ozaki: stopped; nothing was written"]


RESUMED = {
    # 80 steps in two phases; the state is kept at the end of each, and every 500
    "train": (TRAIN, ("--resume",), "ozaki.scores.learned.phase.TrainingPhase._advance", 60),
    # 100 steps; the state is kept at the first, and every 200
    "sample": (SAMPLE, (), WALKED, 70),
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_command_that_is_stopped_says_how_to_go_on_and_ends_as_if_it_was_not(name, place):
    arguments, resume, where, nth = RESUMED[name]
    out, checkpoint = arguments[3], ("--checkpoint", "c")
    assert place.command((*arguments[:3], "whole", *arguments[4:])).code in (0, 1)
    done = place.command((*arguments, *checkpoint), Interrupted(Moment(where, nth)))
    assert done.code == 130 and not (place.folder / out).exists()
    how = " and --resume" if resume else ""
    assert f"c holds the run: give the same command{how} to go on" in done.sentence()
    done = place.command((*arguments, *checkpoint, *resume))
    assert done.code in (0, 1), done
    assert_same(place.folder / out, place.folder / "whole")


def assert_same(one: Path, other: Path) -> None:
    """Folders of an estimator, or of draws."""
    assert {p.name for p in one.iterdir()} == {p.name for p in other.iterdir()}
    if (one / "draws.nc").exists():
        drawn, want = (load(folder / "draws.nc")["posterior"] for folder in (one, other))
        assert drawn.sizes["draw"] == 40 and drawn.equals(want)
    else:
        file = "weights.safetensors"
        assert (one / file).read_bytes() == (other / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [TRAIN, SAMPLE, DENOISE, COMPARE], ids=labelled)
def test_ctrl_c_at_any_time_stops_the_program_and_leaves_nothing(arguments, place):
    """From its first import to its end, in a new interpreter each time."""
    command = [sys.executable, "-m", "ozaki", *map(str, arguments)]
    options = {"cwd": place.folder, "stderr": -1, "stdout": -1, "text": True}
    options["env"] = {**os.environ, "OMP_NUM_THREADS": "1"}
    before, began, codes = place.holds(), time.monotonic(), set()
    subprocess.run(command, check=False, **options)
    took = time.monotonic() - began
    for pause in np.linspace(0.3, 1.1 * took, 8):
        remove(place, before)
        process = subprocess.Popen(command, **options)
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=LIMIT)
        assert "Traceback" not in said and process.returncode in (0, 1, 130), (pause, said)
        codes.add(process.returncode)
        if process.returncode == 130:
            assert "ozaki: stopped; nothing" in said, (pause, said)
        left = place.holds().keys() - before.keys()
        assert not any(Path(name).name.startswith(".") for name in left), left
    assert 130 in codes


def remove(place: Place, before: dict[str, bytes]) -> None:
    """What a command has made."""
    for path in place.folder.iterdir():
        if path.name not in before:
            shutil.rmtree(path)


# -- Ctrl-C in a script ---------------------------------------------------------------------------

MIXTURE = GaussianMixtureScore(
    torch.tensor([[-1.0, 0.0], [1.0, 0.5]]), 0.3 * torch.eye(2).expand(2, 2, 2)
)
WARMUP, DRAWS, BLOCK = 30, 24, 5


def walk(
    checkpoint: str | None = None,
    store: str | None = None,
    fault: Callable[[], Any] | None = None,
    out: str = "drawn.pt",
    quiet: bool = True,
) -> None:
    """A script that draws, and writes what it has."""
    zarr_draws.DRAWS = BLOCK
    if fault is not None:
        fault()
    mcmc = MCMC(
        ScoreOzakiKernel(MIXTURE),
        num_samples=DRAWS,
        warmup_steps=WARMUP,
        num_chains=2,
        seed=3,
        disable_progbar=quiet,
        checkpoint=checkpoint,
        checkpoint_every=9,
        store=store,
    )
    try:
        mcmc.run()
    except KeyboardInterrupt:
        sys.exit(130)
    torch.save(mcmc.get_samples(group_by_chain=True)["x"], out)


RUNS = {
    "memory": (None, None),
    "checkpoint": ("c", None),
    "store": (None, "d"),
    "both": ("c", "d"),
}
WALKS = [
    Moment(WALKED, 4),
    Moment(WALKED, WARMUP + 9, after=True),
    Moment("ozaki.sampling.draws.Draws.take", 9, after=True),
]
WRITES = {
    None: [],
    "c": [
        Moment("ozaki.io.checkpoint.write_atomically", n, after=a) for n in (1, 4) for a in (0, 1)
    ],
    "d": [
        Moment("ozaki.sampling.zarr_store.write_folder_atomically", 1, after=True),
        Moment("ozaki.sampling.zarr_store.ZarrStore.write", 2),
        Moment("ozaki.sampling.zarr_store.ZarrStore.write", 2, after=True),
        Moment("ozaki.sampling.zarr_store.ZarrStore._open"),
    ],
}


def seldom(name: str, moment: Moment) -> bool:
    """Whether another kind of run shows much the same."""
    return name == "checkpoint" or (moment in WALKS if name == "both" else "write" in moment.what)


STOPS_OF_A_WALK = [
    pytest.param(name, moment, marks=pytest.mark.slow if seldom(name, moment) else ())
    for name, (checkpoint, store) in RUNS.items()
    for moment in [*WALKS, *WRITES[checkpoint], *WRITES[store]]
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, torch.Tensor]:
    """What a run draws that nothing befell, with a checkpoint and without."""
    found = {}
    for checkpoint in (None, "c"):
        place = Place(tmp_path_factory.mktemp("whole"))
        assert place.run(walk, checkpoint).code == 0
        found[checkpoint is not None] = torch.load(place.folder / "drawn.pt")
    return found


@pytest.mark.parametrize(("name", "moment"), STOPS_OF_A_WALK, ids=str)
def test_ctrl_c_in_a_script_keeps_the_draws_and_the_run(name, moment, whole, tmp_path):
    checkpoint, store = RUNS[name]
    want, place = whole[checkpoint is not None], Place(tmp_path)
    done = place.run(walk, checkpoint, store, Interrupted(moment))
    if done.code == 0:
        kept = torch.load(place.folder / "drawn.pt")
        assert f"interrupted: {kept.shape[1]} of {DRAWS} draws" in done.said
        assert 0 < kept.shape[1] < DRAWS and torch.equal(kept, want[:, : kept.shape[1]])
        (place.folder / "drawn.pt").unlink()
    else:
        assert done.code == 130, done
        assert checkpoint or not place.holds(), "nothing that is in the way"
    if done.code == 0 and store and not checkpoint:
        shutil.rmtree(place.folder / store)  # draws that were kept are not written over
    done = place.run(walk, checkpoint, store)
    assert done.code == 0, done
    assert torch.equal(torch.load(place.folder / "drawn.pt"), want)
    assert not any(".partial" in file or ".d." in file for file in place.holds())


def learn(fault: Callable[[], Any] | None = None, resume: bool = False) -> None:
    """A script that trains, and is kept every 20 steps."""
    if fault is not None:
        fault()
    small = {"max_steps": 60, "width": 8, "depth": 1, "batch_size": 16, "seed": 0}
    trainer = DSMTrainer(sigma=0.5, checkpoint="c", checkpoint_every=20, progress=False, **small)
    try:
        estimator = trainer.fit(ROWS, resume=resume)
    except KeyboardInterrupt:
        sys.exit(130)
    estimator.save("e")


def test_ctrl_c_while_a_checkpoint_is_written_leaves_the_old_one_or_the_new(tmp_path):
    whole, stopped = Place(tmp_path / "a"), Place(tmp_path / "b")
    assert whole.run(learn).code == 0
    # states are written at steps 20, 40 and 60; a file is synced, renamed, and its folder synced
    moments = (("safetensors.torch.save", 2, False), ("os.fsync", 3, True), ("os.replace", 1, True))
    for what, nth, after in moments:
        moment = Moment(what, nth, after)
        done = stopped.run(learn, Interrupted(moment), True)
        assert done.code == 130, (what, done)
        assert set(stopped.holds()) <= {"c", "c/.lock", "c/checkpoint.safetensors"}, what
    assert stopped.run(learn, None, True).code == 0
    one, other = whole.holds(), stopped.holds()
    assert one["e/weights.safetensors"] == other["e/weights.safetensors"]


# -- what cannot be written -----------------------------------------------------------------------


def mounted(folder: Path, options: str) -> None:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that nobody may write to, not even root."""
    folder = tmp_path / "read-only"
    mounted(folder, "ro,size=1m")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# below a file; in a folder in which the system itself makes all files; on a disk that is read-only
UNWRITABLE = ["rows.npy/a", "rows.npy/a/b/c", "/proc/out", "/sys/kernel/out", "read-only"]


@pytest.fixture(params=UNWRITABLE)
def unwritable(request: pytest.FixtureRequest, place: Place) -> str:
    if request.param == "read-only":
        return str(request.getfixturevalue("read_only") / "out")
    if request.param.startswith("/") and not Path(request.param).parent.is_dir():
        pytest.skip("this system has no such folder")
    return request.param


WORK = {  # what takes long, and must not have begun
    "train": "ozaki.cli.train.named_table",
    "sample": "ozaki.cli.sample._estimator",
    "denoise": "ozaki.denoising.files.ScoreEstimator.load",
    "report": "ozaki.cli.report.load",
    "demo": "ozaki.cli.demo.DSMTrainer",
}


def give_up() -> None:
    os.write(2, b"work was begun")
    os._exit(7)


class GivesUp(NamedTuple):
    """A process that ends where it should not come."""

    moment: Moment

    def __call__(self) -> None:
        self.moment.act(give_up)


@pytest.mark.parametrize("arguments", [TRAIN, SAMPLE, DENOISE, REPORT, DEMO], ids=labelled)
def test_an_out_that_cannot_be_written_is_told_before_the_work(arguments, unwritable, place):
    before = place.holds()
    given = redirected(arguments, unwritable)
    done = place.command(given, GivesUp(Moment(WORK[arguments[0]])))
    assert done.code == 2, done
    assert unwritable.removeprefix("rows.npy/") in done.sentence()
    assert any(w in done.said for w in ("choose another", "give a path", "give --out")), done.said
    assert place.holds() == before


KEEPING = {
    "train": (TRAIN, "--checkpoint", "ozaki.scores.learned.phase.TrainingPhase._advance"),
    "sample": (SAMPLE, "--checkpoint", WALKED),
}


@pytest.mark.parametrize("name", KEEPING)
def test_a_checkpoint_that_cannot_be_written_is_told_before_a_step(name, unwritable, place):
    arguments, option, work = KEEPING[name]
    before = place.holds()
    done = place.command((*arguments, option, unwritable), GivesUp(Moment(work)))
    assert done.code == 2, done
    assert (unwritable.removeprefix("rows.npy/") in done.sentence() and "choose" in done.said) or (
        "give a path in a folder" in done.said
    ), done.said
    assert place.holds() == before


def test_a_store_that_cannot_be_written_is_told_before_a_step(unwritable, place):
    done = place.run(walk, None, unwritable, GivesUp(Moment(WALKED)))
    assert done.code == 1, done
    last = done.said.splitlines()[-1]
    assert "store" in last and unwritable in last and "choose another" in last, last


def _written(what: str, path: str) -> None:
    if what == "save":
        ScoreEstimator.load("estimator").save(path)
        return
    mcmc = MCMC(ScoreOzakiKernel(MIXTURE), 20, 20, num_chains=2, seed=0, disable_progbar=True)
    mcmc.run()
    mcmc.report(path)


@pytest.mark.parametrize("what", ["save", "report"])
def test_what_a_script_cannot_write_is_named(what, unwritable, place):
    done = place.run(_written, what, unwritable)
    last = done.said.splitlines()[-1]
    assert done.code == 1 and Path(unwritable).parts[0] in last, done
    assert any(w in last for w in ("choose another", "give a path", "make it first")), last


def test_work_of_others_is_refused_before_the_work_even_with_force(place):
    (place.folder / "thesis").mkdir()
    (place.folder / "thesis" / "chapter.tex").write_text("years")
    before = place.holds()
    for arguments in (TRAIN, SAMPLE, DENOISE):
        for out, why in (("thesis", "left alone"), ("thesis/chapter.tex", "is a file")):
            given = (*arguments[: arguments.index("--out")], "--out", out, "--force")
            done = place.command(given, GivesUp(Moment(WORK[arguments[0]])))
            assert done.code == 2 and why in done.sentence(), done
    assert place.holds() == before


# -- a disk that is full --------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    mounted(folder, "size=4m")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


class Room(NamedTuple):
    """So many bytes in any file, however many there are on the disk."""

    size: int

    def __call__(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))


def fill(folder: Path, left: int) -> None:
    """Take the disk up to the last bytes."""
    free = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - left))


FULL: list[Any] = [(TRAIN, 4096), (SAMPLE, 16384), (DENOISE, 4096), (REPORT, 4096)]
FULL += [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in [*((a, 0) for a in (TRAIN, SAMPLE, DENOISE, REPORT)), (SAMPLE, 4096)]
]


@pytest.mark.parametrize(("arguments", "left"), FULL, ids=labelled)
def test_a_full_disk_leaves_the_old_output_and_nothing_else(arguments, left, small_disk, place):
    out = small_disk / "out"
    given = redirected(arguments, out)
    assert place.command(given).code in (0, 1)
    fill(small_disk, left)
    before = {p: p.read_bytes() for p in small_disk.rglob("*") if p.is_file()}
    done = place.command([*given, "--force"])
    assert done.code == 2, done
    assert f"{out} could not be written" in done.sentence() and "make room on the disk" in done.said
    assert {p: p.read_bytes() for p in small_disk.rglob("*") if p.is_file()} == before
    assert {p.name for p in small_disk.iterdir()} == {out.name, "filler"}


@pytest.mark.parametrize(
    "arguments",
    [TRAIN, SAMPLE, *(pytest.param(a, marks=pytest.mark.slow) for a in (DENOISE, REPORT))],
    ids=labelled,
)
def test_a_file_that_may_grow_no_more_leaves_nothing(arguments, place):
    before = place.holds()
    done = place.command(arguments, Room(2000))
    assert done.code == 2, done
    assert "could not be written" in done.sentence() and "make room on the disk" in done.said
    assert place.holds() == before


@pytest.mark.slow
def test_a_demo_that_cannot_be_written_leaves_an_empty_folder(place):
    done = place.command(DEMO, Room(12000))
    assert done.code == 2 and "draws.nc could not be written" in done.sentence(), done
    assert not list((place.folder / "demo").iterdir())


def _unheard() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_what_cannot_be_said_is_written_all_the_same(place):
    done = place.command(TRAIN, _unheard)
    assert done.code == 2 and "standard output could not be written (" in done.sentence(), done
    assert_same(place.folder / "e", place.folder / "estimator")


# -- clocks ---------------------------------------------------------------------------------------


class Clock(NamedTuple):
    """The time of day goes to another after some looks at it; or all clocks stand."""

    jump: float | None
    looks: int = 20

    def __call__(self) -> None:
        real, looked = time.time, [0]
        stopped = time.perf_counter()

        def told() -> float:
            looked[0] += 1
            return real() + (self.jump or 0.0) * (looked[0] > self.looks)

        if self.jump is None:
            begun = real()
            time.time = tqdm.std.time = lambda: begun
            time.monotonic = time.perf_counter = lambda: stopped
        else:
            time.time = tqdm.std.time = told
        sys.stderr.isatty = lambda: True  # so that progress is shown


HOUR, YEAR = 3600.0, 365 * 86400.0
CLOCKS = {"an hour back": Clock(-HOUR), "a year on": Clock(YEAR), "standing": Clock(None)}
NEGATIVE = re.compile(r"-\d+:|-\d[\d.]* ?s\b|-\d[\d.]*(it|s)/|nan|inf\b")


@pytest.mark.parametrize("clock", CLOCKS)
def test_a_clock_that_jumps_changes_nothing(clock, place, whole):
    done = place.run(walk, "c", None, CLOCKS[clock], "drawn.pt", False)
    assert done.code == 0 and not NEGATIVE.search(done.sentence()), done
    assert "100%" in done.said, "progress was shown"
    assert torch.equal(torch.load(place.folder / "drawn.pt"), whole[True])
    done = place.command(TRAIN, CLOCKS[clock])
    assert done.code == 0 and "100%" in done.said, done
    assert not NEGATIVE.search(done.said.split("dsm:")[0]), done.said
    assert_same(place.folder / "e", place.folder / "estimator")


@pytest.mark.slow
@pytest.mark.parametrize("clock", CLOCKS)
def test_the_demo_tells_no_negative_time(clock, place):
    done = place.command(DEMO, CLOCKS[clock])
    assert done.code == 0, done
    assert not NEGATIVE.search(done.said.split("mean")[0]), done.said


# -- processes that die ---------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Dies(NamedTuple):
    """kill -9 at a moment, of one process of several."""

    moment: Moment
    rank: int = 1

    def __call__(self) -> None:
        if os.environ["RANK"] == str(self.rank):
            self.moment.act(die)


def _member(rank: int, port: int, act: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """One of two processes, as torchrun would begin it, which ends the others when one dies."""
    given = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
    given |= {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update({name: str(value) for name, value in given.items()})
    act(*args)


def two(place: Place, act: Callable[..., Any], *args: Any) -> list[Ended]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    said = [place.said.with_name(f"said-{rank}") for rank in range(2)]
    began = time.monotonic()
    processes = [
        start(place.folder, said[rank], _member, rank, port, act, args) for rank in range(2)
    ]
    found = [ended(process, file) for process, file in zip(processes, said, strict=True)]
    assert time.monotonic() - began < 60
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_walk_of_the_others_and_the_run_goes_on(rank, whole, tmp_path):
    place = Place(tmp_path)
    found = two(
        place, walk, "c", None, Dies(Moment("ozaki.sampling.loop.RunCheckpoint.save", 5), rank)
    )
    assert found[rank].code == -signal.SIGKILL
    other = found[1 - rank]
    assert other.code == 1
    assert "another process has ended or does not answer" in other.said.splitlines()[-1], other
    assert not (place.folder / "drawn.pt").exists()
    assert place.run(walk, "c").code == 0
    # of a whole walk on another number of processes
    assert_close(
        torch.load(place.folder / "drawn.pt"), whole[True], **rounding(torch.float32, terms=10)
    )


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_dies_ends_the_training_of_the_others_and_it_goes_on(rank, place):
    where = Moment("ozaki.scores.learned.phase.TrainingPhase._advance", 60)  # 40 of the first phase
    arguments = (*TRAIN, "--checkpoint", "c")
    found = two(place, _command, arguments, Dies(where, rank))
    assert found[rank].code == -signal.SIGKILL
    other = found[1 - rank]
    assert other.code == 2, other
    assert "another process has ended or does not answer" in other.sentence(), other
    assert not (place.folder / "e").exists()
    done = place.command((*arguments, "--resume"))
    assert done.code == 0, done
    ScoreEstimator.load(place.folder / "e")


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SCRIPT = """
import sys
from tests.guarantees.test_faults import Dies, Moment, walk
saved = Moment("ozaki.sampling.run_checkpoint.RunCheckpoint.save", 5)
walk("c", None, Dies(saved) if sys.argv[1] == "die" else None)
"""
PROGRAM = """
import sys
from tests.guarantees.test_faults import Dies, Moment, _command
where = Moment("ozaki.scores.learned.phase.TrainingPhase._advance", 60)
_command(sys.argv[2:], Dies(where) if sys.argv[1] == "die" else None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["walk", "train"])
def test_under_torchrun_a_process_that_dies_ends_the_run_which_goes_on(what, place, whole):
    script, given = (SCRIPT, ()) if what == "walk" else (PROGRAM, (*TRAIN, "--checkpoint", "c"))
    (place.folder / "script.py").write_text(script)
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}

    def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *TORCHRUN, "script.py", *map(str, arguments)]
        options = {"cwd": place.folder, "env": env, "timeout": LIMIT, "text": True}
        return subprocess.run(command, capture_output=True, **options)

    died = run("die", *given)
    assert died.returncode != 0 and "Signal 9 (SIGKILL)" in died.stderr, died.stderr
    assert not {"e", "drawn.pt"} & set(os.listdir(place.folder))
    done = run("live", *given, *(["--resume"] if given else []))
    assert done.returncode == 0, done.stderr
    if what == "walk":
        # as above, of a whole walk
        assert_close(
            torch.load(place.folder / "drawn.pt"), whole[True], **rounding(torch.float32, terms=10)
        )
    else:
        ScoreEstimator.load(place.folder / "e")


def _stock(kill: bool) -> None:
    multiprocessing.cpu_count = torch.multiprocessing.cpu_count = lambda: 3  # or Pyro uses none

    def hook(kernel: Any, params: Any, stage: str, i: int) -> None:
        if stage.startswith("Sample") and i == 5 and multiprocessing.current_process().name == "1":
            die() if kill else 1 / 0

    start = {"x": torch.zeros(2, 2)}
    kernel = ScoreOzakiKernel(MIXTURE)
    pyro.infer.MCMC(kernel, 20, 30, start, 2, hook, mp_context="fork", disable_progbar=True).run()


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_a_worker_of_stock_pyro_that_fails_ends_the_run(kill, tmp_path):
    if kill:
        pytest.skip(
            "Pyro 1.9.2 waits without end for a worker that was killed; ozaki.MCMC has none"
        )
    done = Place(tmp_path).run(_stock, kill)
    assert done.code == 1 and "ZeroDivisionError" in done.said.splitlines()[-1], done


class Dying(IterableDataset):
    """Rows whose reader is killed, as one is that takes too much memory."""

    def __init__(self, at: int):
        self.at = at

    def __iter__(self) -> Iterator[torch.Tensor]:
        for i, row in enumerate(ROWS):
            if i == self.at:
                die()
            yield row


def _streamed(at: int) -> None:
    data = DataLoader(Dying(at), batch_size=10, num_workers=1)
    DSMTrainer(sigma=0.5, max_steps=40, width=8, batch_size=16, seed=0, progress=False).fit(data)


# at its first row torch looks for five seconds
@pytest.mark.parametrize("at", [150, pytest.param(0, marks=pytest.mark.slow)])
def test_a_reader_of_a_stream_that_dies_is_told(at, tmp_path):
    began = time.monotonic()
    done = Place(tmp_path).run(_streamed, at)
    assert done.code == 1 and time.monotonic() - began < 60
    last = done.said.splitlines()[-1]
    assert "data could not be read on: a worker of the DataLoader died" in last, done.said
    assert "num_workers" in last, last


# -- two that want one place ----------------------------------------------------------------------


class Waits(NamedTuple):
    """A process that tells where it is by a file, and stays there."""

    moment: Moment
    there: Path

    def __call__(self) -> None:
        def wait() -> None:
            self.there.touch()
            while self.there.exists():
                time.sleep(0.01)

        self.moment.act(wait)


def waiting(place: Place, act: Callable[..., Any], *args: Any, at: Moment) -> Any:
    """A process that holds what it works on."""
    there = place.said.with_name("there")
    process = start(place.folder, place.said.with_name("first"), act, *args, Waits(at, there))
    began = time.monotonic()
    while not there.exists():
        assert process.is_alive() and time.monotonic() - began < LIMIT, "it did not come there"
        time.sleep(0.01)
    return process


BUSY = {
    "train": (TRAIN, Moment("ozaki.scores.learned.phase.TrainingPhase._advance", 5)),
    "sample": (SAMPLE, Moment(WALKED, 5)),
    "denoise": (DENOISE, Moment("ozaki.denoising.files.denoise")),
    "report": (REPORT, Moment("ozaki.report.plots.encode")),
    "demo": (DEMO, Moment("ozaki.scores.learned.phase.TrainingPhase._advance", 5)),
}


SELDOM = ("report", "demo")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SELDOM else ()) for n in BUSY]
)
def test_a_second_command_for_one_out_is_refused_at_once(name, place):
    arguments, at = BUSY[name]
    process = waiting(place, _command, arguments, at=at)
    before = place.holds()
    for again in (arguments, (*arguments, "--force")):
        done = place.command(again, GivesUp(Moment(WORK[name])))
        assert done.code == 2 and f"is in use: another process (pid {process.pid})" in (
            done.sentence()
        ), done
    assert place.holds() == before
    process.kill()
    process.join()
    # what it left keeps nobody out, and nothing of it stays
    if name != "demo":
        assert place.command(arguments).code in (0, 1)
        assert not any(".lock" in file for file in place.holds())


@pytest.mark.parametrize("name", KEEPING)
def test_a_second_command_for_one_checkpoint_is_refused_at_once(name, place):
    arguments, option, where = KEEPING[name]
    process = waiting(place, _command, (*arguments, option, "c"), at=Moment(where, 5))
    given = redirected((*arguments, option, "c"), "elsewhere")
    done = place.command(given, GivesUp(Moment(where)))
    process.kill()
    process.join()
    assert done.code == 2 and f"c is in use: another process (pid {process.pid})" in done.sentence()
    assert not (place.folder / "elsewhere").exists()


def test_a_second_run_for_one_store_is_refused_at_once(whole, tmp_path):
    place = Place(tmp_path)
    process = waiting(
        place, walk, None, "d", at=Moment("ozaki.sampling.zarr_store.ZarrStore.write", 3)
    )
    done = place.run(walk, None, "d", GivesUp(Moment(WALKED)))
    assert done.code == 1
    assert "store must be a new path, but d exists" in done.said.splitlines()[-1]
    process.kill()
    process.join()
    kept = xr.open_datatree(place.folder / "d", engine="zarr", consolidated=False)
    count = kept.attrs["draws"]
    assert count == 10
    found = torch.from_numpy(kept.posterior["x"].values[:, :count])
    assert torch.equal(found, whole[False][:, :count])


def test_two_that_make_one_store_at_once_do_not_mix(whole, tmp_path):
    """Both have seen that there is none; the second finds it made when it would name its own."""
    place = Place(tmp_path)
    process = waiting(place, walk, None, "d", at=Moment("ozaki.io.atomic._exchange"))
    assert place.run(walk, None, "d").code == 0
    place.said.with_name("there").unlink()
    done = ended(process, place.said.with_name("first"))
    assert done.code == 1
    assert "store must be a new path, but d exists" in done.said.splitlines()[-1], done
    assert set(os.listdir(place.folder)) == {"d", "drawn.pt"}
    kept = xr.open_datatree(place.folder / "d", engine="zarr", consolidated=False)
    assert torch.equal(torch.from_numpy(kept.posterior["x"].values), whole[False])
