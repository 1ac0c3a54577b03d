"""Nothing is left half-written, and nothing that is not ours is written over."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ozaki.io import atomic
from ozaki.io.atomic import lock, sweep, write_atomically, write_folder_atomically


class Broken(Exception):
    pass


def half(path: Path) -> None:
    (path / "part" if path.is_dir() else path).write_text("half")
    raise Broken


def is_marked(folder: Path) -> bool:
    return (folder / "mark").exists()


def filled(text: str):
    def fill(folder: Path) -> None:
        (folder / "mark").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text(text)

    return fill


def test_file_is_written_and_replaced_only_when_told(tmp_path: Path):
    path = tmp_path / "new" / "a.txt"
    assert write_atomically(path, lambda p: p.write_text("one") and None) == path
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_atomically(path, lambda p: p.write_text("two") and None)
    assert path.read_text() == "one"
    write_atomically(path, lambda p: p.write_text("two") and None, overwrite=True)
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_failed_file_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "a.txt"
    with pytest.raises(Broken):
        write_atomically(path, half)
    assert not path.exists()
    path.write_text("old")
    with pytest.raises(Broken):
        write_atomically(path, half, overwrite=True)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_file_does_not_replace_a_folder(tmp_path: Path):
    with pytest.raises(FileExistsError, match="is a folder"):
        write_atomically(tmp_path, lambda p: None, overwrite=True)


def test_folder_is_written_and_replaced_only_when_told(tmp_path: Path):
    path = tmp_path / "new" / "folder"
    write_folder_atomically(path, filled("one"), ours=is_marked)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_folder_atomically(path, filled("two"), ours=is_marked)
    assert (path / "mark").read_text() == "one"
    write_folder_atomically(path, filled("two"), ours=is_marked, overwrite=True)
    assert (path / "deep" / "file").read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["folder"]


def test_empty_folder_is_free(tmp_path: Path):
    write_folder_atomically(tmp_path / "e", lambda p: None, ours=is_marked)
    write_folder_atomically(tmp_path / "e", filled("one"), ours=is_marked)
    assert is_marked(tmp_path / "e")


def test_failed_folder_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "folder"
    write_folder_atomically(path, filled("one"), ours=is_marked)
    with pytest.raises(Broken):
        write_folder_atomically(path, half, ours=is_marked, overwrite=True)
    assert (path / "mark").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_failed_second_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "folder"
    write_folder_atomically(path, filled("one"), ours=is_marked)
    replace, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise Broken
        replace(source, target)

    monkeypatch.setattr("ozaki.io.atomic.os.replace", failing)
    with pytest.raises(Broken):
        write_folder_atomically(path, filled("two"), ours=is_marked, overwrite=True)
    assert (path / "mark").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_work_of_others_is_left_alone(tmp_path: Path, overwrite: bool):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="left alone"):
        write_folder_atomically(tmp_path, filled("one"), ours=is_marked, overwrite=overwrite)
    with pytest.raises(FileExistsError, match="is a file"):
        write_folder_atomically(
            tmp_path / "thesis.tex", filled("one"), ours=is_marked, overwrite=overwrite
        )
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_a_link_keeps_its_place(tmp_path: Path):
    real = tmp_path / "real"
    write_folder_atomically(real, filled("one"), ours=is_marked)
    link = tmp_path / "link"
    link.symlink_to(real)
    write_folder_atomically(link, filled("two"), ours=is_marked, overwrite=True)
    assert link.is_symlink()
    assert (real / "mark").read_text() == "two"


def test_killed_writes_are_swept_and_nothing_else_is(tmp_path: Path):
    write_atomically(tmp_path / "a.txt", lambda p: p.write_text("one") and None)
    stale = tmp_path / ".a.txt.0123456789ab"
    others = [tmp_path / n for n in (".a.txt.notours", ".a.txt.0123456789abc", ".b.0123456789ab")]
    for file in (stale, *others):
        file.write_text("half")
    (tmp_path / ".a.txt.ba9876543210").mkdir()
    assert sweep(tmp_path / "a.txt") == [stale]
    assert not stale.exists()
    assert all(file.exists() for file in others)
    assert (tmp_path / ".a.txt.ba9876543210").is_dir()
    assert (tmp_path / "a.txt").read_text() == "one"
    assert sweep(tmp_path / "missing" / "a.txt") == []


# a fresh interpreter: it shares no descriptor with this one
HOLDER = """
import sys, time
from pathlib import Path
sys.path.append(sys.argv[2])
import atomic
with atomic.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    home = str(Path(atomic.__file__).parent)  # alone: the package would import torch
    command = [sys.executable, "-c", HOLDER, str(folder), home]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_lock_is_refused_at_once_and_dies_with_its_process(tmp_path: Path):
    folder = tmp_path / "new" / "run"
    with held_elsewhere(folder) as process:
        begun = time.monotonic()
        with pytest.raises(BlockingIOError, match=rf"run.*pid {process.pid}\).*another folder"):
            lock(folder).__enter__()
        assert time.monotonic() - begun < 5
        process.kill()
        process.wait()
        with lock(folder):
            assert (folder / ".lock").read_text() == str(os.getpid())


def test_a_lock_ends_with_its_block_however_that_ends(tmp_path: Path):
    with pytest.raises(Broken), lock(tmp_path):
        raise Broken
    with lock(tmp_path), pytest.raises(BlockingIOError, match="this process"), lock(tmp_path):
        pass
    with lock(tmp_path), lock(tmp_path / "other"):
        pass
    with lock(tmp_path):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_lock_is_not_kept_by_forked_children(tmp_path: Path):
    """As a DataLoader's workers are, which may outlive a training that was killed."""
    ready, told = os.pipe()
    holder = os.fork()
    if holder == 0:
        with lock(tmp_path):
            child = os.fork()
            if child > 0:
                os.write(told, str(child).encode())
            time.sleep(60)
            os._exit(1)
    orphan = int(os.read(ready, 20))
    try:
        with pytest.raises(BlockingIOError):
            lock(tmp_path).__enter__()
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.kill(orphan, 0)  # no error: it lives
        with lock(tmp_path):
            pass
    finally:
        os.kill(orphan, signal.SIGKILL)
        os.close(ready)
        os.close(told)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_that_leaves_the_block_leaves_the_lock(tmp_path: Path):
    parent = os.getpid()
    try:
        with lock(tmp_path):
            child = os.fork()
    finally:
        if os.getpid() != parent:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    assert os.waitpid(child, 0)[1] == 0
    with lock(tmp_path):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                lock(tmp_path).__enter__()
            except BlockingIOError:
                code = 0
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(descriptor: int, folder: Path) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match=r"cannot be locked.*local disk"):
        lock(tmp_path).__enter__()
    assert not atomic._locked
