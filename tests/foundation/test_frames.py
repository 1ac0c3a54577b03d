"""One rule for what columns hold, whichever library made the frame, and remedies that work."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.interchange
import pyarrow.parquet as pq
import pytest
import torch
import xarray as xr

from ozaki.foundation import validation
from ozaki.io.tables import table

try:
    import polars as pl
except ImportError:  # not among what the tests install
    pl = None

FLOATS = [0.5, 1.25]
NUMBERS = {
    "whole": [1, 2],
    "flags": [True, False],
    "decimals": [Decimal("1.5"), Decimal("2.5")],
}


class Offering:
    """A frame of some other library: it offers one form of a table and makes an array."""

    def __init__(self, form: str, given: pa.Table):
        self.given = given
        setattr(self, form, getattr(given, form))

    def __array__(self, *_, **__):
        return np.asarray(self.given, np.float64)


def arrow(values):
    return pa.table({"a": values, "b": FLOATS})


FRAMES = {
    "pandas": lambda v: pd.DataFrame({"a": v, "b": FLOATS}),
    "pandas, of objects": lambda v: pd.DataFrame({"a": pd.Series(v, dtype=object), "b": FLOATS}),
    "pandas, a category": lambda v: pd.DataFrame({"a": pd.Categorical(v), "b": FLOATS}),
    "pandas, of arrow": lambda v: arrow(v).to_pandas(types_mapper=pd.ArrowDtype),
    "pandas, a dictionary of arrow": lambda v: arrow(pa.array(v).dictionary_encode()).to_pandas(
        types_mapper=pd.ArrowDtype
    ),
    "pandas, a series": lambda v: pd.Series(v, name="a"),
    "pandas, an index": lambda v: pd.Index(v, name="a"),
    "pyarrow": arrow,
    "pyarrow, a batch": lambda v: arrow(v).to_batches()[0],
    "pyarrow, a dictionary": lambda v: arrow(pa.array(v).dictionary_encode()),
    "pyarrow, a column": lambda v: arrow(v)["a"],
    "pyarrow, an array": pa.array,
    "an Arrow stream": lambda v: Offering("__arrow_c_stream__", arrow(v)),
    "the interchange form": lambda v: arrow(v).__dataframe__(),
    "polars": lambda v: pl.DataFrame({"a": v, "b": FLOATS}),  # pyright: ignore
    "polars, a series": lambda v: pl.Series("a", v),  # pyright: ignore
}
UNTOLD = {("the interchange form", "decimals")}


def made(frame: str, values):
    if frame.startswith("polars") and pl is None:
        pytest.skip("polars is not installed")
    return FRAMES[frame](values)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("frame", FRAMES)
def test_numbers_that_are_no_floats_are_refused_and_the_remedy_takes_them(frame, numbers):
    if (frame, numbers) in UNTOLD:
        pytest.skip("this form has no such column")
    data = made(frame, NUMBERS[numbers])
    with pytest.raises(
        ValueError, match=r"data must be floating-point, but column\(s\) \["
    ) as told:
        validation.floating("data", data)
    remedy = str(told.value).split("for example ")[1].split("; drop or encode codes")[0]
    found = validation.floating(
        "data", eval(remedy, {"data": data, "pa": pa, "pl": pl, "pyarrow": pa})
    )
    first = found if found.ndim == 1 else found[:, 0]
    assert first.tolist() == [float(v) for v in NUMBERS[numbers]]


@pytest.mark.parametrize("frame", FRAMES)
def test_floats_are_taken_as_they_are(frame):
    data = made(frame, [1.5, 2.5])
    if "category" in frame or "dictionary" in frame:
        with pytest.raises(ValueError, match="must be floating-point"):
            validation.floating("data", data)
        return
    if "objects" in frame:
        return
    found = validation.floating("data", data)
    expected = [[1.5, 0.5], [2.5, 1.25]] if found.ndim == 2 else [1.5, 2.5]
    assert found.dtype == torch.float64 and found.tolist() == expected


@pytest.mark.parametrize("frame", FRAMES)
def test_words_are_no_numbers(frame):
    data = made(frame, ["x", "y"])
    with pytest.raises(
        ValueError, match=r"data must be numeric, but column\(s\) .* drop or encode"
    ):
        validation.floating("data", data)


@pytest.mark.parametrize(
    "frame", ["pyarrow", "pyarrow, a batch", "pyarrow, an array", "polars", "polars, a series"]
)
def test_missing_values_are_counted(frame):
    data = made(frame, [1.5, None])
    size = 2 if frame.endswith(("array", "series")) else 4
    with pytest.raises(ValueError, match=f"missing values, but 1 of its {size} entries were"):
        validation.floating("data", data)


def test_arrays_that_also_make_frames_are_arrays():
    assert validation.floating("x", xr.DataArray([1.5, 2.5])).tolist() == [1.5, 2.5]
    with pytest.raises(ValueError, match=r"dtype was torch.int64.*x\.astype\('float32'\)|float32"):
        validation.floating("x", xr.DataArray([1, 2]))


@pytest.mark.parametrize("entry", [Decimal("1.5"), Fraction(3, 2)])
def test_exact_numbers_of_python_are_told_how_they_become_floats(entry):
    x = [[entry], [entry]]
    with pytest.raises(ValueError, match=r"dtype was object; .*np\.asarray\(x, 'float32'\)"):
        validation.floating("x", x)
    assert validation.floating("x", np.asarray(x, "float32")).tolist() == [[1.5], [1.5]]


def test_fields_of_an_array_are_told_how_they_become_columns():
    x = np.array([(1.5, 2.5)], dtype=[("a", "f8"), ("b", "f8")])
    with pytest.raises(ValueError, match="array of fields") as told:
        validation.floating("x", x)
    remedy = str(told.value).split("for example ")[1]
    assert validation.floating("x", eval(remedy, {"x": x, "np": np})).tolist() == [[1.5, 2.5]]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_floats_of_eight_bits_are_refused(dtype):
    x = torch.ones(3, 2).to(dtype)
    with pytest.raises(ValueError, match=r"x must be kept in 16 bits.*by \.float\(\)"):
        validation.floating("x", x)
    assert validation.floating("x", x.float()).tolist() == torch.ones(3, 2).tolist()


PARQUETS = {
    "whole": lambda v: pd.DataFrame({"a": v, "b": FLOATS}),
    "a category": lambda v: pd.DataFrame({"a": pd.Categorical(v), "b": FLOATS}),
    "of arrow": arrow,
    "a dictionary": lambda v: arrow(pa.array(v).dictionary_encode()),
}


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("made_by", PARQUETS)
def test_a_parquet_is_held_to_the_rule_of_frames(made_by, numbers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = PARQUETS[made_by](NUMBERS[numbers])
    if isinstance(frame, pd.DataFrame):
        frame.to_parquet("x.parquet")
    else:
        pq.write_table(frame, "x.parquet")
    with pytest.raises(ValueError, match=r"x\.parquet must be floating-point.*\['a'\]") as told:
        table("x.parquet")
    remedy = str(told.value).split("for example ")[1].split("; drop or encode codes")[0]
    eval(remedy, {"pd": pd})
    assert table("floats.parquet")[:, 0].tolist() == [float(v) for v in NUMBERS[numbers]]


def test_a_category_of_floats_is_one_in_a_parquet_too(tmp_path):
    PARQUETS["a category"]([1.5, 2.5]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"\['a'\] were not \(dtype category\)"):
        table(tmp_path / "x.parquet")


@pytest.mark.parametrize("dtype", ["int64", "uint64", "Int64"])
def test_whole_numbers_that_float64_does_not_hold_are_named(dtype, tmp_path):
    """For these the conversion would change them, and is not the remedy."""
    pd.DataFrame({"id": [1, 2**53 + 1]}).astype(dtype).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"'id': 9007199254740993 would become 9007199254740992"):
        table(tmp_path / "x.parquet")
    exact = pd.DataFrame({"id": [1, 2**53 + 2]}).astype(dtype)
    exact.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="must be floating-point"):
        table(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_whole_arrays_in_files_are_refused_with_a_remedy(name, tmp_path):
    save = np.save if name == "x.npy" else np.savez
    array = np.arange(6, dtype=np.uint8).reshape(3, 2)
    save(tmp_path / name, array)
    with pytest.raises(ValueError, match=r"dtype was uint8; .*array\.astype\('float32'\).* / 255"):
        table(tmp_path / name)
    save(tmp_path / name, array.astype("float32"))
    assert table(tmp_path / name).tolist() == array.tolist()
