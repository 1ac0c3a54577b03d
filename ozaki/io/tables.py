"""`table` reads files of numbers: .csv, .parquet, .npy, .npz and IDX.

The content of a file is taken as it is, or refused with the line and column of the error. Nothing
is imputed, and nothing in a file is executed.
"""

import gzip
import os
import re
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ozaki.foundation import frames, validation
from ozaki.foundation.lazy import lazy
from ozaki.io import csv_text

pd = lazy("pandas")
parquet = lazy("pyarrow.parquet")

FORMATS = ".csv, .parquet, .npy, .npz or IDX file"
SOUND = "restore it from a copy, or save it again"
_IDX_UNSIGNED_BYTE = 0x08
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")  # an unnamed index in a .parquet
_MOST_DIMENSIONS = 32  # NumPy before 2 has no more


NUMPY = (".npy", ".npz")


class Table(NamedTuple):
    """Observations and the names of their columns.

    Attributes:
        values: (N, ...), a row an observation.
        columns: names of the columns of a .csv with a header or a .parquet; else empty.
    """

    values: Tensor
    columns: list[str]


def table(path: str | os.PathLike[str], *, header: bool | None = None) -> Tensor:
    """The numbers in a file, a row an observation.

    Whole numbers are refused where the file has types, as they are in arrays and frames; a .csv has
    none, and its numbers are taken for measurements.

    Args:
        path: a .csv with commas, in UTF-8 or in UTF-16 with its mark, as it is or as .csv.gz; a
            .parquet; a .npy array; a .npz of one array; or images in an IDX file (a name that ends
            in -ubyte or .idx, also with .gz), whose bytes become intensities in [0, 1]. Suffixes
            may be in capitals.
        header: of a .csv, whether its first line names the columns. None takes it for names if no
            entry of it is a number, and otherwise for data, with a warning that no header was
            found: years may be either.

    Returns:
        (N, ...), of the file's floating dtype; float64 from a .csv or .parquet; (N, 1, height,
        width), float32, from IDX.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a .parquet, without what reads it.
        ValueError: another kind of file, several arrays, a line of another length than the others
            or the names, an entry that is not a number or a column without a name: with its line
            and column; another separator or encoding; the index of a pandas frame; whole numbers in
            a file with types, or one in a .csv that float64 does not hold; or a `header` of a file
            that is no .csv.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "two.csv")
        ...     _ = path.write_text("2019,2020\\n1.5,2\\n3,4\\n")
        ...     table(path, header=True)
        tensor([[1.5000, 2.0000],
                [3.0000, 4.0000]], dtype=torch.float64)
    """
    return named_table(path, header).values


def named_table(path: str | os.PathLike[str], header: bool | None = None) -> Table:
    """Read what `table` reads, with the names of the columns.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `table`.
    """
    path = Path(path)
    columns: list[str] = []
    if path.is_file() and is_csv(path):
        values, columns = _csv(path, header)
    elif path.is_file() and path.suffix.lower() == ".parquet":
        _check_header(header, path)
        values, columns = _parquet(path)
    else:
        values = read_array(path, header)
    _check_names(path, columns)
    if values.dtype.kind in "iub":
        raise ValueError(
            f"{path} must be floating-point, but its dtype was {values.dtype}; if these are "
            "measurements, save the array as such, for example as array.astype('float32')"
            + ", and bytes of images as array / 255"
            * (values.dtype == np.uint8)
        )
    return Table(validation.floating(str(path), values), columns)


def read_array(path: str | os.PathLike[str], header: bool | None = None) -> np.ndarray:
    """Read what `table` reads, in the dtype of the file.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `table`, but for whole numbers in arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is not a file; give a {FORMATS}")
    if is_csv(path):
        return _csv(path, header)[0]
    _check_header(header, path)
    if path.suffix.lower() == ".parquet":
        return _parquet(path)[0]
    if _is_idx(path):
        return _idx_images(path)
    if path.suffix.lower() not in NUMPY:
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


def is_csv(path: Path) -> bool:
    """Say whether a file is read as comma-separated text, gzipped or not."""
    return path.name.lower().removesuffix(".gz").endswith(".csv")


def check_zip(path: Path) -> None:
    """Refuse a .npz that would fill the memory, by the sizes that its members state.

    No more is unpacked of a member than it says. A file that is no .npz is not looked at.
    """
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            with zipfile.ZipFile(file) as members:
                validation.unpacked(path, sum(m.file_size for m in members.infolist()))


def headers(header: bool | None, paths: Iterable[Path]) -> dict[Path, bool | None]:
    """Return `header` for each .csv among files that are read together, None for the others.

    Raises:
        ValueError: it is given, and none of them is a .csv.
    """
    paths = list(paths)
    if header is not None and not any(map(is_csv, paths)):
        _check_header(header, *paths)
    return {path: header if is_csv(path) else None for path in paths}


def _check_header(header: bool | None, *paths: Path) -> None:
    if header is not None:
        flag, what = "--header" if header else "--no-header", ", ".join(map(str, paths[:5]))
        raise ValueError(
            f"header={header} ({flag}) is of a .csv, but there was {what or 'none'}; leave it out"
        )


def _check_names(path: Path, columns: list[str]) -> None:
    if len(set(columns)) < len(columns):
        again = next(name for name, count in Counter(columns).items() if count > 1)
        raise ValueError(
            f"{path} names a column {validation.short(again)!r} more than once; rename one"
        )


def _is_idx(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return name.endswith((".idx", "-ubyte", ".idx3-ubyte"))


def _idx_images(path: Path) -> np.ndarray:
    """Read images from an IDX file as intensities in [0, 1]."""
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
            schema = parquet.read_schema(path)
            _check_names(path, schema.names)
            noted = _categories(schema)
            frame = pd.read_parquet(path)
    except ImportError as error:
        raise ImportError(
            "reading .parquet needs pandas and pyarrow, which are not both installed: "
            "pip install 'ozaki[tables]'"
        ) from error
    if not frame.shape[0] or not frame.shape[1]:
        raise ValueError(f"{path} holds no rows of numbers")
    index = frame.index
    # unnamed whole numbers are an index that filtering a frame left behind
    if index.nlevels > 1 or index.name is not None or index.dtype.kind not in "iu":
        named = [str(name) for name in index.names if name is not None]
        called = validation.short(", ".join(named)) if named else "without a name"
        raise ValueError(
            f"{path} has an index of a pandas frame ({called}) beside its columns; write the file "
            "with to_parquet(path, index=False), or, if the index is data, after reset_index()"
        )
    columns = frames.of_pandas(frame)
    for i, column in enumerate(columns):
        if column.kind == "floats" and column.name in noted:
            columns[i] = column._replace(dtype="category", kind="numbers")
    for (_, column), (name, dtype, kind) in zip(frame.items(), columns, strict=True):
        name = validation.short(str(name))
        if _PANDAS_INDEX.fullmatch(name):
            raise ValueError(
                f"{path}, column {name!r}, is the index of a pandas frame; write the file with "
                "to_parquet(path, index=False), or rename the column if it is data"
            )
        if kind == "other":
            raise ValueError(
                f"{path}, column {name!r}, must be numbers, but its dtype was "
                f"{validation.short(dtype)}; drop or encode it"
            )
        missing = column.isna().to_numpy()
        if missing.any():
            raise ValueError(
                f"{path}, column {name!r}, row {int(missing.argmax()) + 1}: a value is missing; "
                "remove or impute it"
            )
        changed = frames.beyond(column) if kind == "numbers" else None
        if changed is not None:
            raise ValueError(
                f"{path}, column {name!r}: {changed} would become {int(float(changed))}, since "
                "float64 holds not every whole number beyond 2**53; drop the column if it holds "
                "codes, or subtract an offset from it"
            )
    frames.check(
        str(path),
        columns,
        f"pd.read_parquet({str(path)!r}).astype('float64').to_parquet('floats.parquet')",
    )
    return frame.to_numpy(np.float64), [str(name) for name in frame.columns]


def _categories(schema: Any) -> set[Any]:
    """Return the columns that were categories in the frame; a .parquet keeps their values only."""
    columns = (schema.pandas_metadata or {}).get("columns", ())
    noted = {c["name"] for c in columns if c.get("pandas_type") == "categorical"}
    return noted | {field.name for field in schema if hasattr(field.type, "index_type")}


def _csv(path: Path, header: bool | None) -> tuple[np.ndarray, list[str]]:
    """Read a .csv, with a warning where its first line was taken for data."""
    with validation.parsing(path, "is not a text file of comma-separated numbers", SOUND):
        values, names = csv_text.read(path, header)
    if header is None and not names:
        warnings.warn(
            f"{path}: no header found, {len(values)} rows; header=True (--header) takes the first "
            "line for names, header=False (--no-header) says that it is data",
            stacklevel=4,  # the warning points to the caller of `table`
        )
    return values, names


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read the array of unsigned bytes in one IDX file, gzipped if its name ends in ``.gz``.

    The file is two zero bytes, the type 0x08, the number of dimensions, each size as a big-endian
    32-bit integer, then the entries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a damaged archive, too few or too many bytes.
    """
    path = Path(path)
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    with (
        validation.parsing(path, "is not a whole gzip file", "fetch it again"),
        opener(path, "rb") as file,
    ):
        shape = _idx_shape(path, file)
        size = prod(shape)
        # checked before memory is allocated
        if path.suffix.lower() == ".gz":
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
    """Return the shape that the header of an IDX file announces."""
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
