"""`ZarrStore` writes draws to a Zarr folder, block by block; no other file imports Zarr.

The store is a folder of the groups that ArviZ knows: `posterior` and `sample_stats`, and
`unconstrained_posterior`, where the chains were. Its arrays are as long as the run is to be; what
is not drawn yet is NaN, and -1 in the coordinate `draw`. The attribute `draws` counts the others.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ozaki.diagnostics import arviz_data
from ozaki.foundation import validation
from ozaki.foundation.lazy import lazy
from ozaki.io.atomic import refuse_links, sync, write_folder_atomically

xr = lazy("xarray")
zarr = lazy("zarr")

POSTERIOR, UNCONSTRAINED, STATS = "posterior", "unconstrained_posterior", "sample_stats"
LONGEST_NAME = 240  # bytes; file systems bear 255, and an array of indices is longer by a few
FACTS = arviz_data.STORED_FACTS
MARK = arviz_data.RUN
OURS = {"zarr_format": 3, "use_consolidated": False}  # the second format knows pickled arrays


class ZarrStore:
    """A Zarr folder that draws are written to.

    Args:
        path: the folder, which the first run makes.
        run: its name in there, by which a later process knows it.
    """

    def __init__(self, path: Path, run: str):
        self.path, self.run = path, run
        self.chunk = 0  # draws in a block of the files
        self._root: Any = None
        self._drawn: list[tuple[Path, Any, int]] = []  # arrays along the draws, and which axis

    @property
    def opened(self) -> bool:
        """Whether the run's own folder was made or found."""
        return self._root is not None

    def create(self, groups: Mapping[str, Any], room: int, chunk: int) -> None:
        """Make the folder, all or nothing.

        Args:
            groups: by name, one draw of each site, (chains, 1, *shape).
            room: draws a chain to come.
            chunk: draws a chain in one file of an array.

        Raises:
            FileExistsError: something is there that this run did not make.
            OSError: it could not be made.
            ValueError: a name that no file can have.
        """
        names = [arviz_data.label(site) for found in groups.values() for site in found]
        if long := [name for name in names if len(name.encode()) > LONGEST_NAME]:
            raise ValueError(
                f"store= keeps a site in a folder of its name, of at most {LONGEST_NAME} bytes, "
                f"but {validation.short(long[0])} is longer; rename the site, or leave store= out"
            )

        def fill(folder: Path) -> None:
            root = zarr.create_group(str(folder), attributes={MARK: self.run, "draws": 0})
            for name, found in groups.items():
                group = root.create_group(name, attributes={"names": list(found)})
                for label, variable in arviz_data.dataset(found).variables.items():
                    _array(group, str(label), variable, room, chunk)

        try:
            with self._writing(0):
                write_folder_atomically(
                    self.path, fill, ours=lambda p: _run(p) == self.run, overwrite=True
                )
        except FileExistsError as error:
            what = "exists and is not of this run" if self.path.exists() else "lies in a file"
            raise FileExistsError(
                f"store must be a new path, but {self.path} {what}; choose another, or remove it"
            ) from error

    def seen(self) -> str | None:
        """The name of the run whose draws are in the folder; None where there are none."""
        return _run(self.path)

    def find(self, count: int, groups: Mapping[str, Any]) -> None:
        """Open the folder, which is this run's and holds `count` draws or more.

        Args:
            count: draws a chain.
            groups: as `create` was given them.

        Raises:
            ValueError: it is missing, damaged, of another run, or holds fewer draws.
        """
        if not self.path.exists() or _run(self.path) != self.run:
            what = "holds other draws" if self.path.exists() else "is missing"
            raise ValueError(
                f"store must hold the {count} draws a chain that the checkpoint counts, but "
                f"{self.path} {what}; give the path where they are, or choose another checkpoint"
            )
        with self._reading():
            refuse_links(self.path)
            self._open()
            held = validation.count("draws", self._root.attrs["draws"], minimum=0)
        if held < count:
            raise ValueError(
                f"store must hold the {count} draws a chain that the checkpoint counts, but "
                f"{self.path} holds {held}; restore it from a copy, or choose another checkpoint"
            )
        with self._reading():
            for name, sites in groups.items():
                _check(self._root[name], sites, count, self.chunk)

    def sweep(self) -> None:
        """Remove the unfinished files of a process that was killed."""
        for stale in self.path.rglob("*.partial"):
            stale.unlink(missing_ok=True)

    def _open(self) -> None:
        """Open the folder, and list the arrays that grow with the draws."""
        self._root = zarr.open_group(str(self.path), mode="r+", **OURS)
        self._drawn = [
            (self.path / name / label, array, array.metadata.dimension_names.index("draw"))
            for name, group in self._root.groups()
            for label, array in group.arrays()
            if "draw" in array.metadata.dimension_names
        ]
        self.chunk = self._root[f"{POSTERIOR}/draw"].chunks[0]

    def resize(self, room: int) -> None:
        """Make all arrays `room` draws long."""
        with self._writing(min(room, self._root.attrs["draws"])):
            for _, array, axis in self._drawn:
                if array.shape[axis] != room:
                    array.resize((*array.shape[:axis], room, *array.shape[axis + 1 :]))

    def write(self, first: int, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write draws from the `first` on to their place, and count them once all are written.

        Raises:
            OSError: they could not be written. Those before them are as they were.
        """
        lead = next(iter(groups[STATS].values()))
        place = slice(first, first + lead.shape[1])
        with self._writing(first):
            for name, group in groups.items():
                for site, value in group.items():
                    label = arviz_data.label(site)
                    self._root[name][label][:, place] = value.detach().cpu().numpy()
                self._root[name]["draw"][place] = np.arange(place.start, place.stop)
            self._root.attrs["draws"] = place.stop

    def sync(self, first: int, stop: int) -> None:
        """Flush the files of the draws from `first` to `stop` to the disk."""
        with self._writing(first):
            for path, _, axis in self._drawn:
                folder = path.joinpath("c", *["0"] * axis)
                for k in range(first // self.chunk, -(-stop // self.chunk)):
                    chunk = folder / str(k)
                    for file in chunk.rglob("*") if chunk.is_dir() else [chunk]:
                        if file.is_file():  # what is zero throughout has no file
                            sync(file)
                    if chunk.is_dir():
                        sync(chunk)
                if folder.is_dir():
                    sync(folder)
            sync(self.path)

    def read(
        self, group: str, name: str, first: int = 0, stop: int | None = None, step: int = 1
    ) -> Tensor:
        """Read the draws from `first` to `stop` of one array, or every `step`-th of them."""
        with self._reading():
            drawn = self._root[group][arviz_data.label(name)]
            return torch.from_numpy(np.asarray(drawn[:, first:stop:step]))

    def note(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Write facts about sites to the group's attributes: an array's could change the array."""
        with self._writing(self._root.attrs["draws"]):
            self._root[POSTERIOR].attrs[FACTS] = {n: dict(known) for n, known in facts.items()}

    def names(self, group: str) -> list[str]:
        """The names of the sites that are drawn, in their order."""
        return list(self._root[group].attrs["names"])

    def dataset(self, group: str) -> Any:
        """A group as an `xarray.Dataset`, of which nothing is read but the coordinates."""
        with self._reading():
            found = xr.open_zarr(
                str(self.path),
                group=group,
                chunks=None,
                consolidated=False,
                mask_and_scale=False,
                zarr_format=3,
            )[[arviz_data.label(name) for name in self.names(group)]]
        arviz_data.attach(found, found.attrs.get(FACTS, {}))
        found.attrs = {}
        return found

    def remove(self) -> None:
        """Remove a folder that holds no draws."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._root = None

    def _reading(self) -> AbstractContextManager[None]:
        return validation.parsing(
            self.path, "is damaged", "restore it from a copy, or choose another store"
        )

    @contextmanager
    def _writing(self, safe: int) -> Iterator[None]:
        """Turn an error of the disk into one that says how many draws are kept."""
        try:
            yield
        except FileExistsError:
            raise
        except OSError as error:
            cause = error.__cause__ or error  # the storage's own error tells more
            message = (
                f"store={str(self.path)!r} could not be written ({cause}); make room on the disk "
                f"or choose another path: the {safe} draws a chain before are there as they were"
            )
            raise OSError(error.errno, message) from error


def checked(store: str | os.PathLike[str] | None) -> Path | None:
    """Check the argument `store` of `MCMC`, and return it as a path.

    Raises:
        ValueError: it is no path.
        ImportError: Zarr is not installed.
    """
    path = validation.folder("store", store)
    if path is not None and find_spec("zarr") is None:
        raise ImportError("store= needs Zarr, which is not installed: pip install 'ozaki[zarr]'")
    return path


def _array(group: Any, name: str, variable: Any, room: int, chunk: int) -> None:
    """Turn a variable of one draw into an array of `room` draws; keep a coordinate as it is."""
    drawn, value = "draw" in variable.dims, variable.values
    longer = {"draw": room} if drawn else {}
    shape = [longer.get(dim, size) for dim, size in variable.sizes.items()]
    chunks = [chunk if dim == "draw" else max(1, size) for dim, size in variable.sizes.items()]
    empty = np.nan if value.dtype.kind == "f" else -1 if name == "draw" else 0
    array = group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=value.dtype,
        fill_value=empty,
        dimension_names=variable.dims,
        compressors=zarr.codecs.ZstdCodec(level=0, checksum=True),  # a flipped bit is no number
    )
    if not drawn:
        array[...] = value


def _check(group: Any, sites: Mapping[str, Any], count: int, chunk: int) -> None:
    """Check that a group's arrays are as `_array` made them, and hold `count` draws.

    Raises:
        ValueError: naming what is not.
    """
    if list(group.attrs["names"]) != list(sites):
        raise ValueError(f"{group.basename} must hold {list(sites)}, but does not")
    for label, variable in arviz_data.dataset(sites).variables.items():
        array, wanted = group[str(label)], variable.sizes
        along = {"draw": max(1, chunk)}
        found = array.metadata
        sound = (
            found.dimension_names == variable.dims
            and array.dtype == variable.dtype
            and array.chunks == tuple(along.get(d, max(1, n)) for d, n in wanted.items())
            and all(n == wanted[d] or d == "draw" for d, n in zip(wanted, array.shape, strict=True))
            and {codec.to_dict()["name"] for codec in found.codecs} <= {"bytes", "zstd"}
            and not dict(array.attrs)  # which could change what is read
        )
        if not sound:
            raise ValueError(f"{group.basename}/{label} is not as it was made")
        if "draw" not in variable.dims and not np.array_equal(array[...], variable.values):
            raise ValueError(f"{group.basename}/{label} does not count from 0")
    if not np.array_equal(group["draw"][:count], np.arange(count)):
        raise ValueError(f"{group.basename} lacks draws that it counts")


def _run(path: Path) -> str | None:
    """Return the name of the run that a folder holds; None where it holds none."""
    if not (path / "zarr.json").is_file():
        return None
    try:
        found = zarr.open_group(str(path), mode="r", **OURS).attrs.get(MARK)
    except Exception:  # a spoiled one, of which zarr says this and that
        return None
    return found if isinstance(found, str) else None
