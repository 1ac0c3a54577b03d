"""`load` reads files of draws: NetCDF, Zarr, Stan's CSV and JSON; `FORMATS` has a row for each.

It refuses files that only look like draws: rows that were never written, or groups that are
missing. Nothing in a file is executed.
"""

import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from ozaki.diagnostics.arviz_data import (
    GROUPS,
    RUN,
    STORED_FACTS,
    TEXT,
    attach,
    dataset,
    drawn,
    gathered,
    groups,
    label,
    left_out,
)
from ozaki.diagnostics.netcdf import COPY, read_netcdf
from ozaki.foundation import validation
from ozaki.foundation.lazy import lazy
from ozaki.io import stan
from ozaki.io.atomic import refuse_links

xr = lazy("xarray")

READ = "read"  # the attribute of a posterior that keeps the notes on its file
ZARR_MARKS = ("zarr.json", ".zgroup")  # files that mark the third format, and the second
# codecs that may unpack an array; others, such as pickle, would run code from the file
CODECS = {
    "blosc", "bytes", "bz2", "crc32", "crc32c", "gzip", "lz4", "lzma", "shuffle",
    "sharding_indexed", "transpose", "vlen-bytes", "vlen-utf8", "zlib", "zstd",
}  # fmt: skip
NC_FILL = 9.969209968386869e36  # where NetCDF writes nothing
_BITS = re.compile(r"(?:int|uint|float|complex)(\d+)")
_BYTES = re.compile(r"[<>|][iufcb](\d+)")


class Format(NamedTuple):
    """A format of files of draws.

    Attributes:
        name: in words.
        holds: whether a path looks like one.
        read: paths of one set of draws → ArviZ's container.
    """

    name: str
    holds: Callable[[Path], bool]
    read: Callable[[Sequence[Path]], Any]


def load(path: str | os.PathLike[str], *more: str | os.PathLike[str]) -> Any:
    """Draws from a file, as `save`, ArviZ, Stan or posteriordb wrote it, in memory.

    NetCDF; a Zarr store, a folder or a .zip of one; Stan's CSV, a chain a file, or a folder of
    them, without saved draws of warm-up; JSON, a list of chains with a list of draws by name, also
    .gz or .zip. Of a store of `MCMC` whose run was stopped, what is drawn.

    Args:
        path: the file or folder.
        more: further chains, where each is a file of Stan's CSV.

    Returns:
        `arviz.InferenceData`, or `xarray.DataTree` from ArviZ 1.0 on.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Zarr store, without Zarr.
        ValueError: another kind of file, a damaged one, one without draws (chains, draws, ...), or
            one whose last draws were never written.

    Source: the CmdStan guide, Stan CSV File Format; Magnusson et al., posteriordb.

    Example:
        >>> import tempfile
        >>> from ozaki.diagnostics import inference_data, save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(inference_data({"x": np.ones((4, 100))}), f"{folder}/run.nc")
        ...     float(load(path)["posterior"]["x"].mean())
        1.0
    """
    paths = [Path(p) for p in (path, *more)]
    for each in paths:
        if not (each.is_file() or each.is_dir()):
            raise FileNotFoundError(f"{each} does not exist; give a file of draws, such as a .nc")
    found = format_of(paths[0])
    if more and any(p.is_dir() or format_of(p) is not STAN for p in paths):
        raise ValueError(
            "only chains in Stan's CSV are several files of one set of draws, but "
            f"{[str(p) for p in paths][:4]} were given; give one"
        )
    if found is None:
        raise ValueError(f"{paths[0]} {_instead(paths[0])}; {ASKED}")
    idata = found.read(paths)
    _check(paths[0], idata)
    return idata


def format_of(path: Path) -> Format | None:
    """Return the row of `FORMATS` that a path looks like; None for a table or another thing.

    Args:
        path: of a file or a folder.
    """
    return next((row for row in FORMATS if row.holds(path)), None)


def notes(idata: Any) -> list[str]:
    """Return notes on draws that were read: what was left out, and what was not yet written.

    Args:
        idata: what `load` returned.

    Returns:
        Sentences without a full stop.
    """
    said = idata["posterior"].attrs.get(READ)
    out = [f"left out, as no numbers by chain and draw: {what}" for what in left_out(idata)]
    return [*([str(said)] if said else []), *out]


def _instead(path: Path) -> str:
    if path.is_dir():
        return "is a folder that holds neither a Zarr store nor Stan's CSV files"
    return "is no file of draws by chain, as far as its name and its first lines tell"


def _check(path: Path, idata: Any) -> None:
    """Refuse a file without draws, or with rows that were never written, and name the cause."""
    held = groups(idata)
    if "posterior" not in held or not idata["posterior"].data_vars:
        raise ValueError(
            f"{path} must hold a group 'posterior' of draws, but held {validation.short(str(held))}"
            "; where writing it raised an error, write it again; of a data set without groups, "
            "ozaki.diagnostics.save(ozaki.diagnostics.inference_data(xarray.load_dataset(path)), "
            "'new.nc') makes one"
        )
    posterior = drawn(idata)
    if not posterior:
        raise ValueError(
            f"{path} must hold draws, numbers with dimensions chain and draw, but held only "
            f"{validation.short('; '.join(left_out(idata)))}"
        )
    for name, variable in posterior.items():
        if 0 in variable.shape[:2]:
            raise ValueError(
                f"{path} holds no draws yet: {validation.short(name)} has {variable.shape[0]} "
                f"chains of {variable.shape[1]} draws; let the run go on, or draw again"
            )
    _check_written(path, posterior, drawn(idata, "sample_stats") if "sample_stats" in held else {})


def _check_written(path: Path, posterior: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
    """Refuse draws at the end that hold only the fill value of files.

    A chain that left the finite numbers looks the same in the posterior; but then its statistics
    are there, or it diverged, or other chains went on.
    """
    floats = [v.values for v in (*posterior.values(), *stats.values()) if v.dtype.kind == "f"]
    floats = [v.reshape(*v.shape[:2], -1) for v in floats if v.size]
    if not floats or not all(_empty(v[:, -1:]).any() for v in floats):
        return
    there = ~np.logical_and.reduce([_empty(v) for v in floats])
    if "diverging" in stats:
        there |= stats["diverging"].values.astype(bool)
    draws = there.shape[1]
    written = np.where(there.any(1), draws - np.argmax(there[:, ::-1], 1), 0)
    least = int(written.min())
    if least == draws or (not stats and written.max() > least):
        return
    if least == 0:
        raise ValueError(
            f"{path} holds no draws: in chain {int(np.argmin(written))} all of them are empty, as "
            "where a run was stopped before they were written; draw again"
        )
    raise ValueError(
        f"{path}: the draws from {least} on of its {draws} are empty in chain "
        f"{int(np.argmin(written))}, in all that is drawn: they were not written, as where a run "
        f"was stopped; keep those before, idata.isel(draw=slice({least})), and write them to "
        "another file"
    )


def _empty(values: np.ndarray) -> np.ndarray:
    """Return where (chains, draws, n) holds only the fill value, (chains, draws)."""
    return (np.isnan(values) | (values == values.dtype.type(NC_FILL))).all(-1)


# NetCDF -----------------------------------------------------------------------------------------


def _is_netcdf(path: Path) -> bool:
    """Recognise NetCDF by its name, which a cut file still has, or by its first bytes."""
    if path.is_dir():
        return False
    if path.suffix.lower() in (".nc", ".nc4", ".netcdf", ".h5", ".hdf5"):
        return True
    with path.open("rb") as file:
        return file.read(8).startswith((b"\x89HDF\r\n\x1a\n", b"CDF"))


# Text -------------------------------------------------------------------------------------------


def _is_stan(path: Path) -> bool:
    return bool(_stan_files(path)) if path.is_dir() else stan.is_csv(path)


def _stan_files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if stan.is_csv(path)]


def _read_stan(paths: Sequence[Path]) -> Any:
    return _kept(stan.read_csv(_stan_files(paths[0]) if paths[0].is_dir() else paths))


def _is_json(path: Path) -> bool:
    """Recognise JSON by its name, or as the only member of a .zip."""
    packed = [Path(name) for name in _members(path)]
    alone = (
        len(packed) == 1
        and packed[0].suffix.lower() == ".json"
        and packed[0].name not in ZARR_MARKS
    )
    return path.is_file() and (alone or path.name.lower().endswith(stan.JSON_SUFFIXES))


def _kept(read: stan.Read) -> Any:
    """Put the draws, statistics and notes of a text into ArviZ's container."""
    found = {"posterior": dataset(read.posterior)}
    if read.stats:
        found["sample_stats"] = dataset(read.stats)
    if read.notes:
        found["posterior"].attrs[READ] = "; ".join(read.notes)
    return gathered(found)


# Zarr -------------------------------------------------------------------------------------------


def _is_zarr(path: Path) -> bool:
    if path.is_dir():
        return any((path / mark).is_file() for mark in ZARR_MARKS)
    return any(Path(name).name in ZARR_MARKS for name in _members(path))


def _members(path: Path) -> list[str]:
    """Return the names in a .zip; none for another file."""
    if path.suffix.lower() != ".zip":
        return []
    with validation.parsing(path, "is not a whole .zip", COPY), zipfile.ZipFile(path) as members:
        return members.namelist()


def _read_zarr(paths: Sequence[Path]) -> Any:
    """Open a Zarr store, a folder or a .zip of one, and read its groups."""
    (path,) = paths
    if find_spec("zarr") is None:
        raise ImportError(
            f"{path} is a Zarr store, which Zarr reads, and that is not installed: "
            "pip install 'ozaki[zarr]'"
        )
    with validation.parsing(path, "is damaged, or not a Zarr store of draws", COPY):
        if path.is_dir():
            return _opened(path)
        with TemporaryDirectory() as folder, zipfile.ZipFile(path) as members:
            validation.unpacked(path, sum(member.file_size for member in members.infolist()))
            members.extractall(folder)  # which keeps to the folder
            marks = [file for mark in ZARR_MARKS for file in Path(folder).rglob(mark)]
            if not marks:
                raise ValueError("it holds none")
            return _opened(min(marks, key=lambda file: len(file.parts)).parent)


def _opened(store: Path) -> Any:
    """Read into memory the groups of a store that ArviZ knows."""
    refuse_links(store)
    _check_arrays(store)
    ours = _attributes(store)
    known = ("posterior", "sample_stats", "observed_data", *GROUPS)
    found = {}
    for name in known:
        if any((store / name / mark).is_file() for mark in ZARR_MARKS):
            # in ozaki's stores the fill value may be a draw as well
            found[name] = xr.open_zarr(
                str(store),
                group=name,
                chunks=None,
                consolidated=False,
                mask_and_scale=RUN not in ours,
            ).load()
    # sorted by name, since a folder is listed in any order
    found = {name: part[sorted(part.data_vars)] for name, part in found.items()}
    if RUN in ours and "posterior" in found:
        for name, part in found.items():
            found[name] = part[[label(site) for site in part.attrs["names"]]]
            attach(found[name], part.attrs.get(STORED_FACTS, {}))
            found[name].attrs.clear()
        count, room = ours["draws"], found["posterior"].sizes["draw"]
        found = {name: part.isel(draw=slice(count)) for name, part in found.items()}
        if count < room:
            found["posterior"].attrs[READ] = (
                f"of the {room} draws a chain of this run {count} are there: it was stopped, or "
                "goes on"
            )
    return gathered(found)


def _attributes(store: Path) -> dict[str, Any]:
    """Return the attributes of a store of the third format, the only one that ozaki writes."""
    path = store / "zarr.json"
    found = validation.json_text(path, path.read_bytes(), COPY) if path.is_file() else {}
    return found.get("attributes", {}) if isinstance(found, dict) else {}


def _check_arrays(store: Path) -> None:
    """Refuse a store that would run code from it, or fill the memory."""
    size = own = 0
    for place, _, files in os.walk(store):
        own += sum(os.path.getsize(os.path.join(place, file)) for file in files)
        for file in {"zarr.json", ".zarray"} & set(files):
            path = Path(place, file)
            told = validation.json_text(path, path.read_bytes(), COPY)
            if "shape" not in told:
                continue
            packed = [told.get(key) for key in ("codecs", "compressor", "filters")]
            if other := sorted(set(_codecs(packed)) - CODECS):
                raise ValueError(f"an array in it is packed by {other}, which is not read here")
            of = told.get("data_type", told.get("dtype"))
            grid = told.get("chunk_grid", {}).get("configuration", {})
            block = told.get("chunks", grid.get("chunk_shape", []))
            size += _entry(of) * max(math.prod(told["shape"]), math.prod(block))
    validation.unpacked(store, size, own)


def _codecs(packed: Any) -> Iterator[str]:
    """Return the names of an array's codecs, nested ones among them."""
    if isinstance(packed, list):
        for each in packed:
            yield from _codecs(each)
    elif isinstance(packed, dict):
        yield str(packed.get("name", packed.get("id"))).removeprefix("numcodecs.")
        inner = packed.get("configuration", {})
        yield from _codecs([inner.get("codecs"), inner.get("index_codecs")])


def _entry(dtype: Any) -> int:
    """Return the bytes of one entry, by the store's name of its type."""
    if dtype in ("bool", "|b1"):
        return 1
    if found := _BITS.fullmatch(str(dtype)):
        return int(found[1]) // 8
    if found := _BYTES.fullmatch(str(dtype)):
        return int(found[1])
    return TEXT


STAN = Format("Stan's CSV", _is_stan, _read_stan)
# the first that fits is taken; a new format is a row here
FORMATS = (
    Format("a Zarr store", _is_zarr, _read_zarr),
    STAN,
    Format("JSON", _is_json, lambda paths: _kept(stan.read_json(paths[0]))),
    Format("NetCDF", _is_netcdf, lambda paths: read_netcdf(paths[0])),
)
ASKED = "give NetCDF, a Zarr store, Stan's CSV, or JSON of a list of chains"
