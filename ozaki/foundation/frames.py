"""`opened` reads frames of any library, by one rule on what their columns may hold.

A column is taken where it is of a floating dtype. Whole numbers, flags, decimals and categories of
numbers are refused with the conversion that a library has for them: whether they are measurements,
counts or codes only a person knows. pandas and polars are known by what their dtypes answer,
pyarrow's by its types, and other frames by the Arrow or interchange form that they offer.
"""

from collections.abc import Iterable
from numbers import Number
from typing import Any, Literal, NamedTuple

import numpy as np

from ozaki.foundation.lazy import lazy

arrow = lazy("pyarrow")
interchange = lazy("pyarrow.interchange")

LISTED = 5  # most columns that a message names
LARGEST = 2**53  # float64 holds every whole number up to this

_OFFERS = ("to_numpy", "__arrow_c_stream__", "__arrow_c_array__", "__dataframe__")

Kind = Literal["floats", "numbers", "other"]


class Column(NamedTuple):
    """A column, as it is known before it is read.

    Attributes:
        name: as the frame has it.
        dtype: its name, as the library has it.
        kind: "floats"; "numbers" of another dtype, which are accepted once they are converted; or
            "other".
    """

    name: Any
    dtype: str
    kind: Kind


def opened(name: str, value: Any) -> Any:
    """Return `value` as NumPy reads it: a frame or a column of one as an array, else itself.

    Raises:
        ValueError: columns of another dtype than floating ones, or missing values.
    """
    if isinstance(value, type) or not any(hasattr(value, offer) for offer in _OFFERS):
        return value
    frame = value.to_frame() if _is_series(value) else value
    dtypes = list(getattr(frame, "dtypes", ()))
    if dtypes and all(hasattr(dtype, "kind") for dtype in dtypes):
        return _of_pandas(name, value, frame, dtypes)
    if isinstance(getattr(value, "dtype", None), np.dtype):  # an array that also makes frames
        return np.asarray(value)
    made_by = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    if "polars" in made_by:
        return _of_polars(name, value, frame)
    if "pyarrow" in made_by and (hasattr(value, "schema") or hasattr(value, "type")):
        return _of_arrow(name, value)
    if hasattr(value, "__arrow_c_stream__"):
        return _of_arrow(name, arrow.table(value), value)
    if hasattr(value, "__dataframe__"):
        return _of_arrow(name, interchange.from_dataframe(value), value)
    return value.to_numpy() if hasattr(value, "to_numpy") else value


def check(name: str, columns: Iterable[Column], remedy: str) -> None:
    """Raise ValueError unless all columns are of floating dtypes.

    Args:
        name: of the frame.
        columns: of it.
        remedy: how one converts all of them.
    """
    columns = list(columns)
    if other := [c for c in columns if c.kind == "other"]:
        raise ValueError(
            f"{name} must be numeric, but column(s) {_list(other)} were not (dtype "
            f"{other[0].dtype}); drop or encode them"
        )
    if numbers := [c for c in columns if c.kind == "numbers"]:
        raise ValueError(
            f"{name} must be floating-point, but column(s) {_list(numbers)} were not (dtype "
            f"{numbers[0].dtype}); if these are measurements, convert them first, for example "
            f"{remedy}; drop or encode codes"
        )


def arrow_kind(dtype: Any) -> Kind:
    """Return the kind of a column of a pyarrow type."""
    types = arrow.types
    if types.is_dictionary(dtype) or types.is_run_end_encoded(dtype):
        return "other" if arrow_kind(dtype.value_type) == "other" else "numbers"
    if types.is_floating(dtype):
        return "floats"
    number = types.is_integer(dtype) or types.is_boolean(dtype) or types.is_decimal(dtype)
    return "numbers" if number else "other"


def beyond(values: Any) -> Any:
    """Return a whole number of these that float64 would change, or None; any exact dtype."""
    values = np.asarray(values)
    if values.dtype.kind == "b" or values.size == 0:
        return None
    large = values[(values > LARGEST) | (values < -LARGEST)]
    return next((v for v in large.tolist() if float(v) != v), None)


def _is_series(value: Any) -> bool:
    return not hasattr(value, "columns") and hasattr(value, "to_frame")


def of_pandas(frame: Any) -> list[Column]:
    """Return the columns of a frame of pandas."""
    named = enumerate(zip(frame.columns, frame.dtypes, strict=True))
    return [Column(c, str(d), _pandas_kind(d, frame, i)) for i, (c, d) in named]


def _of_pandas(name: str, value: Any, frame: Any, dtypes: list[Any]) -> Any:
    """Read a frame of pandas column by column: as a whole it would be cast unasked."""
    check(name, of_pandas(frame), f"{name}.astype('float32')")
    # pandas' own dtypes have missing values; NumPy's have NaN, which is counted later
    own = [i for i, dtype in enumerate(dtypes) if not isinstance(dtype, np.dtype)]
    _check_whole(name, int(frame.iloc[:, own].isna().to_numpy().sum()), frame.size)
    dtype = np.result_type(*(getattr(d, "numpy_dtype", getattr(d, "subtype", d)) for d in dtypes))
    return value.to_numpy(dtype=dtype)


def _pandas_kind(dtype: Any, frame: Any, place: int) -> Kind:
    """Return the kind of a column of pandas by its dtype."""
    if dtype.kind in "fiub":
        return "floats" if dtype.kind == "f" else "numbers"
    if hasattr(dtype, "pyarrow_dtype"):
        return arrow_kind(dtype.pyarrow_dtype)
    if dtype.kind != "O":
        return "other"
    # the values of categories, or objects, as Python's decimals and fractions are
    held = dtype.categories if hasattr(dtype, "categories") else frame.iloc[:, place]
    numbers = len(held) > 0 and all(isinstance(v, Number) for v in held)
    return "numbers" if numbers and not any(isinstance(v, complex) for v in held) else "other"


def _of_polars(name: str, value: Any, frame: Any) -> Any:
    columns = [Column(c, str(d), _polars_kind(d)) for c, d in frame.schema.items()]
    check(name, columns, f"{name}.cast(pl.Float64)")
    _check_whole(name, int(frame.null_count().to_numpy().sum()), frame.width * frame.height)
    return value.to_numpy()


def _polars_kind(dtype: Any) -> Kind:
    if dtype.is_float():
        return "floats"
    return "numbers" if dtype.is_numeric() or str(dtype) == "Boolean" else "other"


def _of_arrow(name: str, value: Any, given: Any = None) -> Any:
    """Read a table, a batch or a column; `given` is the frame that it was made from."""
    if hasattr(value, "schema"):
        named, parts = list(zip(value.schema.names, value.schema.types, strict=True)), value.columns
        remedy = "cast(pa.schema([(n, pa.float64()) for n in {0}.column_names]))"
    else:
        named, parts = [(0, value.type)], [value]
        remedy = "cast('float64')"
    start = name if given is None else f"pa.table({name})"
    if given is not None and not hasattr(given, "__arrow_c_stream__"):
        start = f"pyarrow.interchange.from_dataframe({name})"
    columns = [Column(c, str(d), arrow_kind(d)) for c, d in named]
    check(name, columns, f"{start}.{remedy.format(start)}")
    _check_whole(name, sum(p.null_count for p in parts), sum(len(p) for p in parts))
    return np.asarray(value)


def _check_whole(name: str, missing: int, size: int) -> None:
    if missing:
        raise ValueError(
            f"{name} must have no missing values, but {missing} of its {size} entries were "
            "missing; remove or impute them"
        )


def _list(columns: list[Column]) -> str:
    more = f" and {len(columns) - LISTED} more" if len(columns) > LISTED else ""
    return f"{[column.name for column in columns[:LISTED]]}{more}"
