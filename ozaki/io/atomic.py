"""Atomic writes show a reader the old file or the new one; locks keep other processes out."""

import errno
import os
import re
import shutil
import stat
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
RESERVED = ".reserved.lock"  # longer than what `_sibling` adds: a name too long is refused early
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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
        OSError: it could not be written, for want of space for instance.
    """
    target = Path(path)
    with _told(target):
        if target.is_dir():
            raise FileExistsError(f"{target} is a folder; give the path of a file")
        _refuse(target, overwrite)
        _make(target.parent)
        temporary = _sibling(target)
        try:
            write(temporary)
            sync(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        sync(target.parent)
    return target


def claim(file: Path, size: int) -> None:
    """Check that the disk has room for a file, for writers that cannot handle a full disk.

    Args:
        file: to be written next; made, if it is missing, and empty afterwards.
        size: in bytes.

    Raises:
        OSError: there is less.
    """
    with file.open("wb") as descriptor:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor.fileno(), 0, size)
            descriptor.truncate()
        elif shutil.disk_usage(file.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sweep(path: str | os.PathLike[str]) -> list[Path]:
    """Remove the temporary files that killed writes of `path` have left beside it.

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
    with _told(path):
        _make(path)
    # the file is never removed: one process could lock the old file, and another a new one
    with _held(path / LOCK, path):
        yield


@contextmanager
def reserve(path: str | os.PathLike[str]) -> Iterator[None]:
    """Keep every other process from reserving `path`, and check that it can be written.

    This is for work that is written when it is done: an error is better raised before. Only a file
    beside `path` is made, or beside the first of its folders that is missing, and it lasts as long
    as the block. A file system without locks reserves nothing.

    Args:
        path: of a file or a folder, which may be there or not.

    Raises:
        BlockingIOError: it is reserved.
        OSError: it could not be written.
    """
    target = Path(path).resolve()
    with _told(target):
        there = next(p for p in target.parents if p.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is a file")
    name = "-".join(target.relative_to(there).parts)
    with _held(there / f".{name}{RESERVED}", target, passing=True):
        yield


@contextmanager
def _held(file: Path, what: Path, *, passing: bool = False) -> Iterator[None]:
    """Hold the lock on `file`, which protects `what`; a `passing` lock leaves no file."""
    descriptor = _opened(file, what, passing)
    _locked.add(descriptor)
    try:
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        with _told(what):
            os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        if descriptor in _locked:  # a forked child has closed its own descriptor
            _locked.remove(descriptor)
            if passing:
                with suppress(OSError):
                    file.unlink()
            os.close(descriptor)


def _opened(file: Path, what: Path, passing: bool) -> int:
    """Open `file`, lock it, and return its descriptor."""
    while True:
        with _told(what):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(descriptor, file, what)
        except BaseException as error:
            if passing and isinstance(error, OSError) and not isinstance(error, BlockingIOError):
                return descriptor  # the file system knows no locks
            os.close(descriptor)
            raise
        if not passing or _is(descriptor, file):
            return descriptor
        os.close(descriptor)


def _is(descriptor: int, file: Path) -> bool:
    """Say whether the descriptor is still of that file: a removed file keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _take(descriptor: int, file: Path, what: Path) -> None:
    """Lock an open file; raise at once where another holds it, or where there are no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 2**30, os.SEEK_SET)  # beyond the text, which stays readable
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = file.read_text(errors="replace").strip() or "unknown"
        whose = "this process" if holder == str(os.getpid()) else f"another process (pid {holder})"
        other = "folder" if file.name == LOCK else "path"
        raise BlockingIOError(
            f"{what} is in use: {whose} is using it; wait until it ends, or choose another {other}"
        ) from None
    except OSError as error:
        raise OSError(
            error.errno, f"{what} cannot be locked ({error}); choose a folder on a local disk"
        ) from error


def _forget_locks() -> None:
    """Close the locks in a forked child: a lock lasts until all its descriptors are closed."""
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
    with _told(target):
        taken = check_folder(target, ours=ours, overwrite=overwrite)
        _make(target.parent)
        temporary, old = _sibling(target), _sibling(target)
        try:
            temporary.mkdir()
            write(temporary)
            for file in [*temporary.rglob("*"), temporary]:
                sync(file)
            _exchange(temporary, target, old if taken else None)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync(target.parent)
    return Path(path)


def _exchange(temporary: Path, target: Path, old: Path | None) -> None:
    """Rename the folder `temporary` to its final name; an old folder is moved to `old` first."""
    try:
        if old is not None:
            os.replace(target, old)
        os.replace(temporary, target)  # onto nothing, or onto an empty folder
    except BaseException as error:
        # any exception: Ctrl-C may come between the two renames
        if old is not None and not target.exists():
            os.replace(old, target)
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(
                f"{target} was made by another process in the meantime, and is left alone; choose "
                "another path"
            ) from error
        raise
    finally:
        if old is not None and target.exists():
            shutil.rmtree(old, ignore_errors=True)


def check_folder(
    path: str | os.PathLike[str], *, ours: Callable[[Path], bool], overwrite: bool = False
) -> bool:
    """Say whether `write_folder_atomically` would replace a folder, before the work is done.

    Raises:
        FileExistsError: it would refuse.
    """
    target = Path(path)
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
    return taken


@contextmanager
def _told(target: Path) -> Iterator[None]:
    """Turn the system's error into a sentence about `target`."""
    try:
        yield
    except (FileExistsError, BlockingIOError):
        raise
    except OSError as error:
        # one that is a sentence already, of a file in a folder, says no more than what caused it
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        full = error.errno in FULL
        message = (
            f"{target} could not be written ({cause.strerror or cause}); "
            f"{'make room on the disk' if full else 'see that its folder can be written'}, or "
            "choose another path: what was there before is as it was"
        )
        raise OSError(*filter(None, (error.errno, message))) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise FileExistsError(f"{folder} is a file; give a path in a folder") from None


def _refuse(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; pass overwrite=True to replace it")


def _sibling(target: Path) -> Path:
    """Return a name on the same file system, since a rename cannot leave it."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")


def refuse_links(folder: Path) -> None:
    """Refuse links and devices in a folder: writes must stay in it, and reads must end.

    Args:
        folder: with all that lies in it.

    Raises:
        ValueError: something in it is neither a file nor a folder.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            mode = os.lstat(os.path.join(place, name)).st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise ValueError(f"{name!r} in it is neither a file nor a folder")


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk, so that no rename reaches the disk before it."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders; the rename is atomic there all the same
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
