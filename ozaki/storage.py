"""Atomic writes, of which a reader sees the old thing or the new one, and locks (floor 0)."""

import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
_locked: set[int] = set()  # descriptors of the locks that this process holds


def write_atomically(
    path: str | os.PathLike[str], write: Callable[[Path], None], *, overwrite: bool = False
) -> Path:
    """Write one file: `write` fills a temporary sibling, which then takes the name `path`.

    Args:
        path: the file to make; its folder is made too.
        write: called with the path to write to.
        overwrite: replace a file that is there. A folder is never replaced by a file.

    Returns:
        `path`.

    Raises:
        FileExistsError: `path` exists and may not be replaced. It is as it was, as it is whenever
            `write` raises.
    """
    target = Path(path)
    if target.is_dir():
        raise FileExistsError(f"{target} is a folder; give the path of a file")
    _refuse(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(target)
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    sync(target.parent)
    return target


def sweep(path: str | os.PathLike[str]) -> list[Path]:
    """Remove what writes of `path` that were killed have left beside it.

    To be called under a lock: the temporary file of a write under way looks the same.

    Args:
        path: what `write_atomically` was told to write.

    Returns:
        What was removed.
    """
    target = Path(path)
    pattern = re.compile(re.escape(f".{target.name}.") + "[0-9a-f]{12}")
    stale = [p for p in target.parent.glob(".*") if pattern.fullmatch(p.name) and p.is_file()]
    for file in stale:
        file.unlink(missing_ok=True)
    return stale


@contextmanager
def lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep every other process, and every other `lock` in this one, from locking `folder`.

    The lock is the operating system's, on a file `.lock` that stays in the folder. It ends with the
    block or with the process, however that ends, so that none is ever stale; processes forked in
    the meantime do not hold it. It binds only those who ask for it.

    Args:
        folder: made if it is missing.

    Raises:
        BlockingIOError: it is locked.
        OSError: the file system knows no locks.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    # the file is never removed: one that waits on the old file and one on a new would both have it
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(descriptor, path)
    except BaseException:
        os.close(descriptor)
        raise
    _locked.add(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        if descriptor in _locked:  # not in a forked child, which has closed its own
            _locked.remove(descriptor)
            os.close(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 2**30, os.SEEK_SET)  # beyond the text, which stays readable
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = (folder / LOCK).read_text(errors="replace").strip() or "unknown"
        whose = "this process" if holder == str(os.getpid()) else f"another process (pid {holder})"
        raise BlockingIOError(
            f"{folder} is in use: {whose} is using it; wait until it ends, or choose another folder"
        ) from None
    except OSError as error:
        raise OSError(
            error.errno, f"{folder} cannot be locked ({error}); choose a folder on a local disk"
        ) from error


def _forget_locks() -> None:
    """In a forked child: a lock lasts until all copies of its descriptor are closed."""
    for descriptor in _locked:
        os.close(descriptor)
    _locked.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_locks)


def write_folder_atomically(
    path: str | os.PathLike[str],
    write: Callable[[Path], None],
    *,
    ours: Callable[[Path], bool],
    overwrite: bool = False,
) -> Path:
    """Write one folder: `write` fills a temporary sibling, which then takes the name `path`.

    An empty folder at `path` is taken as free. Between the two renames of a replacement the old
    folder stands beside `path` under a name that begins with a dot, and is put back if the second
    rename fails.

    Args:
        path: the folder to make.
        write: called with an empty folder to fill.
        ours: whether an existing folder is of the kind that may be replaced; anything else is
            somebody's work and is refused even with `overwrite`.
        overwrite: replace a folder of ours that is there.

    Returns:
        `path`.

    Raises:
        FileExistsError: `path` exists and may not be replaced. It is as it was, as it is whenever
            `write` raises.
    """
    # resolved, so that a link keeps pointing at the folder that is replaced
    target = Path(path).resolve()
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file; give the path of a folder")
    taken = target.is_dir() and any(target.iterdir())
    if taken and not ours(target):
        raise FileExistsError(
            f"{target} holds files that were not written by this function, and is left alone; "
            "choose a new or empty folder"
        )
    if taken:
        _refuse(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _sibling(target), _sibling(target)
    temporary.mkdir()
    try:
        write(temporary)
        for file in [*temporary.rglob("*"), temporary]:
            sync(file)
        if taken:
            os.replace(target, old)
        try:
            os.replace(temporary, target)  # onto nothing, or onto an empty folder
        except BaseException:
            if taken:
                os.replace(old, target)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    sync(target.parent)
    return Path(path)


def _refuse(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; pass overwrite=True to replace it")


def _sibling(target: Path) -> Path:
    """A name on the same file system, since a rename does not cross one."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")


def sync(path: Path) -> None:
    """Ask the disk to hold a file or a folder as it is, so that no rename can overtake it."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders; the rename is atomic there all the same
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
