"""Draws in a NetCDF file: written whole, and checked before they are read."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ozaki.diagnostics.arviz_data import TEXT, groups
from ozaki.foundation import validation
from ozaki.foundation.lazy import lazy
from ozaki.io import atomic

az = lazy("arviz")
h5py = lazy("h5py")

LAYOUT = 2**13  # bytes a variable in a file of draws, beside its values
COPY = "restore it from a copy, or draw again"
DEEPEST = 4  # most levels of groups within groups; ArviZ uses one


def save(idata: Any, path: str | os.PathLike[str]) -> Path:
    """Write draws to a NetCDF file, whole or not at all.

    Args:
        idata: what `inference_data` returned.
        path: the file; replaced if it is there.

    Returns:
        The path.

    Raises:
        ValueError: a `path` that is none.
        IsADirectoryError: `path` is a folder.
        FileNotFoundError: the folder of `path` does not exist.
        OSError: it could not be written, for want of space for instance.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from ozaki.diagnostics import inference_data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(inference_data({"x": np.zeros((4, 100))}), f"{folder}/run.nc")
        ...     path.name
        'run.nc'
    """
    path = existing_folder(path)
    sizes = [v.nbytes for group in groups(idata) for v in idata[group].variables.values()]

    def write(file: Path) -> None:
        # where the disk is full HDF5 takes the process down when it ends
        atomic.claim(file, sum(sizes) + LAYOUT * (1 + len(sizes)))
        idata.to_netcdf(str(file), engine="h5netcdf")

    return atomic.write_atomically(path, write, overwrite=True)


def read_netcdf(path: Path) -> Any:
    """Draws from a NetCDF file, as `save` or ArviZ wrote it, in memory.

    Args:
        path: the file.

    Returns:
        What `gathered` returns.

    Raises:
        ValueError: another kind of file.
    """
    with path.open("rb") as file:
        if file.read(3) == b"CDF":
            raise ValueError(
                f"{path} is NetCDF-3, the classic format, which has no groups for draws; if it "
                "holds a posterior alone, write it anew: ozaki.diagnostics.save(ozaki.diagnostics."
                f"inference_data(xarray.load_dataset({str(path)!r}, engine='scipy')), 'new.nc')"
            )
    with validation.parsing(path, "is truncated, or not a NetCDF file of draws", COPY):
        _check_members(path)
        idata = az.from_netcdf(str(path), engine="h5netcdf")
        idata.load()
    return idata


def _check_members(path: Path) -> None:
    """Refuse a file of HDF5 that leads to other files, or would fill the memory."""
    size = 0
    with h5py.File(path, "r") as file:
        for member in _members(file):
            if isinstance(member, h5py.Dataset):
                if member.is_virtual or member.external:
                    raise ValueError("the values of one of its arrays lie in other files")
                entry = max(member.dtype.itemsize, TEXT if member.dtype.kind == "O" else 1)
                size += entry * max(math.prod(member.shape or ()), math.prod(member.chunks or ()))
    validation.unpacked(path, size)


def _members(group: Any, depth: int = 0) -> Iterator[Any]:
    """Yield all that lies in a group of HDF5, without following a link out of the file."""
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{validation.short(name)!r} in it is a link")
        yield (member := group[name])
        if isinstance(member, h5py.Group):
            if depth == DEEPEST:
                raise ValueError(f"its groups lie more than {DEEPEST} deep")
            yield from _members(member, depth + 1)


def existing_folder(path: str | os.PathLike[str]) -> Path:
    """Return `path` if its folder exists and it is not itself a folder; make nothing silently.

    Raises:
        ValueError: `path` is no path.
        IsADirectoryError: `path` is a folder.
        FileNotFoundError: the folder of `path` does not exist.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path must name a file, but was {path!r}")
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path must name a file, but {path} is a folder")
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"path must lie in a folder that exists, but {path.parent} is none; make it first"
        )
    return path
