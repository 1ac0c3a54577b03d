"""Files of numbers: .csv, .parquet, .npy, .npz and IDX (floor 0.5).

Whatever a file holds is taken as it is or refused, with the line and column of what is wrong;
nothing is imputed, and nothing in a file is executed.
"""

import csv
import gzip
import os
import struct
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ozaki import validation
from ozaki.lazy import lazy

pd = lazy("pandas")

FORMATS = ".csv, .parquet, .npy, .npz or IDX file"
_IDX_UNSIGNED_BYTE = 0x08


class Table(NamedTuple):
    """Observations, and what their columns are called.

    Attributes:
        values: (N, ...), a row an observation.
        columns: names of the columns of a .csv with a header or a .parquet; else empty.
    """

    values: Tensor
    columns: list[str]


def table(path: str | os.PathLike[str]) -> Tensor:
    """The numbers in a file, a row an observation.

    Args:
        path: a .csv with commas, of which the first line may name the columns, as it is or as
            .csv.gz; a .parquet; a .npy array; a .npz of one array; or images in an IDX file (a name
            that ends in -ubyte or .idx, also with .gz), whose bytes become intensities in [0, 1].

    Returns:
        (N, ...), of the file's floating dtype; float64 from a .csv or .parquet; (N, 1, height,
        width), float32, from IDX.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a .parquet, without what reads it.
        ValueError: another kind of file, several arrays, a line of another length, an entry that
            is not a number: with its line and column; or whole numbers.
    """
    return named_table(path).values


def named_table(path: str | os.PathLike[str]) -> Table:
    """What `table` reads, with the names of the columns.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `table`.
    """
    path = Path(path)
    columns: list[str] = []
    if path.is_file() and _plain_suffix(path) == ".csv":
        values, columns = _csv(path)
    elif path.is_file() and path.suffix == ".parquet":
        values, columns = _parquet(path)
    else:
        values = read_array(path)
    if len(set(columns)) < len(columns):
        again = next(c for c in columns if columns.count(c) > 1)
        raise ValueError(f"{path} names a column {again!r} more than once; rename one")
    return Table(validation.floating(str(path), values), columns)


def read_array(path: str | os.PathLike[str]) -> np.ndarray:
    """What `table` reads, in the dtype of the file.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `table`, but for whole numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file; give a {FORMATS}")
    if _plain_suffix(path) == ".csv":
        return _csv(path)[0]
    if path.suffix == ".parquet":
        return _parquet(path)[0]
    if _is_idx(path):
        return _idx_images(path)
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"{path} must be a {FORMATS}, but its suffix was {path.suffix!r}")
    try:
        with path.open("rb") as file:
            found: Any = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            names = found.files
            if len(names) == 1:
                return found[names[0]]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is truncated, or not a numpy file of numbers ({error})"
        ) from error
    raise ValueError(
        f"{path} must hold one array, but held {names}; save the one that is meant alone"
    )


def _plain_suffix(path: Path) -> str:
    """The suffix, that of a gzipped file without its .gz."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _is_idx(path: Path) -> bool:
    name = path.name.removesuffix(".gz")
    return name.endswith((".idx", "-ubyte", ".idx3-ubyte"))


def _idx_images(path: Path) -> np.ndarray:
    images = read_idx(path)
    if images.ndim != 3:
        raise ValueError(
            f"{path} must hold images, (N, height, width), but its shape was {images.shape}; "
            "labels are no table of numbers"
        )
    return (images[:, None] / 255).astype(np.float32)


def _parquet(path: Path) -> tuple[np.ndarray, list[str]]:
    try:
        frame = pd.read_parquet(path)
    except ImportError as error:
        raise ImportError(
            "reading .parquet needs pandas and pyarrow, which are not both installed: "
            "pip install 'ozaki[tables]'"
        ) from error
    except Exception as error:  # what reads it has errors of its own
        raise ValueError(f"{path} is not a whole .parquet file ({error})") from error
    if not frame.shape[0] or not frame.shape[1]:
        raise ValueError(f"{path} holds no rows of numbers")
    for name, column in frame.items():
        if column.dtype.kind not in "biuf":
            raise ValueError(
                f"{path}, column {name!r}, must be numbers, but its dtype was {column.dtype}; drop "
                "or encode it"
            )
        missing = column.isna().to_numpy()
        if missing.any():
            raise ValueError(
                f"{path}, column {name!r}, row {int(missing.argmax()) + 1}: a value is missing; "
                "remove or impute it"
            )
    return frame.to_numpy(np.float64), [str(name) for name in frame.columns]


def _csv(path: Path) -> tuple[np.ndarray, list[str]]:
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            lines = [(i, line) for i, line in enumerate(csv.reader(file), 1) if line]
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{path} is not a text file of comma-separated numbers ({error})"
        ) from error
    names: list[str] = []
    if lines and not any(_is_number(cell) for cell in lines[0][1]):
        names = lines.pop(0)[1]
    if not lines:
        raise ValueError(f"{path} holds no rows of numbers")
    width = len(lines[0][1])
    rows = np.empty((len(lines), width))
    for row, (number, line) in zip(rows, lines, strict=True):
        if len(line) != width:
            raise ValueError(
                f"{path}, line {number}, has {len(line)} entries where others have {width}"
            )
        for j, cell in enumerate(line):
            if not _is_number(cell):
                column = f" ({names[j]})" if j < len(names) else ""
                raise ValueError(
                    f"{path}, line {number}, column {j + 1}{column}: {cell!r} is not a number; "
                    "remove or impute it"
                )
            row[j] = float(cell)
    return rows, [name.strip() for name in names]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of unsigned bytes in one IDX file, gzipped if its name ends in ``.gz``.

    The file is two zero bytes, the type 0x08, the number of dimensions, each size as a big-endian
    32-bit integer, then the entries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a damaged archive, too few or too many bytes.
    """
    path = Path(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}); fetch it again") from error
    if len(raw) < 4 or raw[:3] != bytes((0, 0, _IDX_UNSIGNED_BYTE)):
        raise ValueError(
            f"{path} must be an IDX file of unsigned bytes, which begins 00 00 08, but it began "
            f"{raw[:4].hex(' ') or 'nowhere: it is empty'}; fetch it again"
        )
    begin = 4 + 4 * raw[3]
    if len(raw) < begin:
        raise ValueError(f"{path} ends inside its header; fetch it again")
    shape = struct.unpack(f">{raw[3]}I", raw[4:begin])
    if len(raw) != begin + prod(shape):
        raise ValueError(
            f"{path} announces {prod(shape)} entries of shape {shape} but holds "
            f"{len(raw) - begin}; fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=begin).reshape(shape).copy()
