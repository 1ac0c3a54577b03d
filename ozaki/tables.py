"""Files of numbers: .csv, .parquet, .npy, .npz and IDX (floor 0.5).

Whatever a file holds is taken as it is or refused, with the line and column of what is wrong;
nothing is imputed, and nothing in a file is executed.
"""

import csv
import gzip
import os
import re
import struct
import zipfile
from array import array
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ozaki import validation
from ozaki.lazy import lazy

pd = lazy("pandas")
parquet = lazy("pyarrow.parquet")

FORMATS = ".csv, .parquet, .npy, .npz or IDX file"
SOUND = "restore it from a copy, or save it again"
LINE = 2**21  # letters in a line of a .csv, whose entries take twenty times as much in memory
_IDX_UNSIGNED_BYTE = 0x08
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # as it is called in a .parquet
_MOST_DIMENSIONS = 32  # NumPy before 2 has no more


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
        ValueError: another kind of file, several arrays, a line of another length than the others
            or the names, an entry that is not a number or a column without a name: with its line
            and column; the index of a pandas frame; or whole numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "two.csv")
        ...     _ = path.write_text("length,width\\n1.5,2\\n3,4\\n")
        ...     table(path)
        tensor([[1.5000, 2.0000],
                [3.0000, 4.0000]], dtype=torch.float64)
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
        again = validation.short(again)
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
    with validation.parsing(path, "is truncated, or not a numpy file of numbers", SOUND):
        check_zip(path)
        with path.open("rb") as file:
            found: Any = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            names = found.files
            if len(names) == 1:
                found = found[names[0]]
                if not isinstance(found, np.ndarray):  # but bytes
                    raise ValueError(f"{validation.short(names[0])!r} in it is no array")
                return found
    raise ValueError(
        f"{path} must hold one array, but held {validation.short(str(names))}; save the one that "
        "is meant alone"
    )


def check_zip(path: Path) -> None:
    """Refuse a .npz that would fill the memory, by what its members say of their size.

    No more is unpacked of a member than it says. A file that is no .npz is not looked at.
    """
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            with zipfile.ZipFile(file) as members:
                validation.unpacked(path, sum(m.file_size for m in members.infolist()))


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
    return np.divide(images[:, None], 255, dtype=np.float32)


def _parquet(path: Path) -> tuple[np.ndarray, list[str]]:
    try:
        with validation.parsing(path, "is not a whole .parquet file", SOUND):
            said = parquet.read_metadata(path)
            validation.unpacked(path, 8 * said.num_rows * said.num_columns)
            frame = pd.read_parquet(path)
    except ImportError as error:
        raise ImportError(
            "reading .parquet needs pandas and pyarrow, which are not both installed: "
            "pip install 'ozaki[tables]'"
        ) from error
    if not frame.shape[0] or not frame.shape[1]:
        raise ValueError(f"{path} holds no rows of numbers")
    index = frame.index
    # unnamed whole numbers are where rows once stood in a frame, as filtering leaves them
    if index.nlevels > 1 or index.name is not None or index.dtype.kind not in "iu":
        named = [str(name) for name in index.names if name is not None]
        called = validation.short(", ".join(named)) if named else "without a name"
        raise ValueError(
            f"{path} has an index of a pandas frame ({called}) beside its columns; write the file "
            "with to_parquet(path, index=False), or, if the index is data, after reset_index()"
        )
    for name, column in frame.items():
        name = validation.short(str(name))
        if _PANDAS_INDEX.fullmatch(name):
            raise ValueError(
                f"{path}, column {name!r}, is the index of a pandas frame; write the file with "
                "to_parquet(path, index=False), or rename the column if it is data"
            )
        if column.dtype.kind not in "biuf":
            raise ValueError(
                f"{path}, column {name!r}, must be numbers, but its dtype was "
                f"{validation.short(str(column.dtype))}; drop or encode it"
            )
        missing = column.isna().to_numpy()
        if missing.any():
            raise ValueError(
                f"{path}, column {name!r}, row {int(missing.argmax()) + 1}: a value is missing; "
                "remove or impute it"
            )
    return frame.to_numpy(np.float64), [str(name) for name in frame.columns]


def _csv(path: Path) -> tuple[np.ndarray, list[str]]:
    entries, width = array("d"), 0  # a list of rows would take twenty times as much as the file
    names: list[str] = []
    with validation.parsing(path, "is not a text file of comma-separated numbers", SOUND):
        for number, text, line in lines(path):
            if not width:
                if not (names or any(is_number(cell) for cell in line)):
                    names = [cell.strip() for cell in line]
                    if "" in names:
                        raise ValueError(
                            f"{path}, line {number}, column {names.index('') + 1}, has no name; if "
                            "it is the index of a pandas frame, write the file with "
                            "to_csv(path, index=False), else name or remove it"
                        )
                    continue
                width = len(line)
                if names and len(names) != width:
                    raise ValueError(
                        f"{path}, line {number}, has {width} entries, but the first line names "
                        f"{len(names)} columns; name each column, write no row names (in R, "
                        "row.names=FALSE), and use a decimal point, not a comma"
                    )
            if len(line) != width:
                raise ValueError(
                    f"{path}, line {number}, has {len(line)} entries where others have {width}"
                )
            try:
                if "_" in text:  # which float would pass over: 2020_01 is no 202001
                    raise ValueError
                entries.extend(map(float, line))
            except ValueError:
                j = next(j for j, cell in enumerate(line) if not is_number(cell))
                column = f" ({validation.short(names[j])})" if j < len(names) else ""
                raise ValueError(
                    f"{path}, line {number}, column {j + 1}{column}: "
                    f"{validation.short(line[j])!r} is not a number; remove or impute it"
                ) from None
    if not entries:
        raise ValueError(f"{path} holds no rows of numbers")
    return np.frombuffer(entries).reshape(-1, width), names


def lines(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Each line that has entries: its number, its text and the entries, one at a time.

    Args:
        path: of text, gzipped where its name ends in .gz.

    Raises:
        ValueError: a line that is too long, or a packed file that would fill the memory.
    """
    opener: Any = gzip.open if path.suffix == ".gz" else open
    size, due = 0, validation.SPARE
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        for number, text in enumerate(iter(lambda: file.readline(LINE), ""), 1):
            if len(text) == LINE:
                raise ValueError(
                    f"{path}, line {number}, is longer than {LINE - 1} letters; break the lines, "
                    "or save the numbers as .npy"
                )
            size += len(text)
            if size > due:
                validation.unpacked(path, size)
                due = size + 2**20
            if line := next(csv.reader([text])):
                yield number, text, line


def is_number(cell: str) -> bool:
    """Whether an entry of a text is one: float passes over '_', as in 2020_01, which is none."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of unsigned bytes in one IDX file, gzipped if its name ends in ``.gz``.

    The file is two zero bytes, the type 0x08, the number of dimensions, each size as a big-endian
    32-bit integer, then the entries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a damaged archive, too few or too many bytes.
    """
    path = Path(path)
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with (
        validation.parsing(path, "is not a whole gzip file", "fetch it again"),
        opener(path, "rb") as file,
    ):
        shape = _idx_shape(path, file)
        size = prod(shape)
        # before room is made for them
        if path.suffix == ".gz":
            validation.unpacked(path, 4 * size)  # of floats, which they become
            entries = file.read(size + 1)  # to the checksum at the end
            held = f"holds {len(entries)}" if len(entries) <= size else "holds more"
        else:
            entries = file.read()
            held = f"holds {len(entries)}"
    if len(entries) != size:
        raise ValueError(
            f"{path} announces {size} entries of shape {shape} but {held}; fetch it again"
        )
    return np.frombuffer(entries, np.uint8).reshape(shape).copy()


def _idx_shape(path: Path, file: Any) -> tuple[int, ...]:
    """What the header of an IDX file announces."""
    begin = file.read(4)
    if len(begin) < 4 or begin[:3] != bytes((0, 0, _IDX_UNSIGNED_BYTE)):
        raise ValueError(
            f"{path} must be an IDX file of unsigned bytes, which begins 00 00 08, but it began "
            f"{begin.hex(' ') or 'nowhere: it is empty'}; fetch it again"
        )
    sizes = file.read(4 * begin[3])
    if len(sizes) < 4 * begin[3]:
        raise ValueError(f"{path} ends inside its header; fetch it again")
    if begin[3] > _MOST_DIMENSIONS:
        raise ValueError(
            f"{path} announces {begin[3]} dimensions, where {_MOST_DIMENSIONS} are the most; fetch "
            "it again"
        )
    return struct.unpack(f">{begin[3]}I", sizes)
