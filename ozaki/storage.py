"""Atomic writes: a reader sees the old thing or the new one, never half of either (floor 0)."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


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
        _sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(target.parent)
    return target


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
            _sync(file)
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
    _sync(target.parent)
    return Path(path)


def _refuse(target: Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; pass overwrite=True to replace it")


def _sibling(target: Path) -> Path:
    """A name on the same file system, since a rename does not cross one."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")


def _sync(path: Path) -> None:
    """Ask the disk to hold what was written, so that the rename cannot overtake it."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders; the rename is atomic there all the same
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
