"""The text of tables: headers of numbers, whole numbers, encodings, separators, suffixes."""

import gzip
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ozaki.io.tables import named_table, table

YEARS = "2019,2020,2021\n1.5,2.5,3.5\n4.5,5.5,6.5\n"
ROWS = [[1.5, 2.5, 3.5], [4.5, 5.5, 6.5]]


@pytest.fixture(autouse=True)
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "x.csv", encoding: str = "utf-8") -> str:
    data = text.encode(encoding)
    Path(name).write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    return name


# the first line ----------------------------------------------------------------------------------


def test_a_header_of_numbers_is_told_of_and_a_flag_says_which():
    path = write(YEARS)
    with pytest.warns(UserWarning, match=r"x\.csv: no header found, 3 rows; header=True"):
        assert table(path).shape == (3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = named_table(path, header=True)
        assert named.columns == ["2019", "2020", "2021"] and named.values.tolist() == ROWS
        assert table(path, header=False).tolist() == [[2019.0, 2020.0, 2021.0], *ROWS]
        assert named_table(write("a,b\n1,2\n")).columns == ["a", "b"]


def test_what_pandas_writes_of_an_array_has_a_header_of_numbers():
    pd.DataFrame(np.array(ROWS)).to_csv("x.csv", index=False)
    with pytest.warns(UserWarning, match="no header found, 3 rows"):
        table("x.csv")
    assert table("x.csv", header=True).tolist() == ROWS


def test_a_header_of_which_some_are_numbers_is_told():
    path = write("country,2019,2020\n1,2,3\n")
    with pytest.raises(ValueError, match=r"line 1, column 1: 'country' .*give header=True \(--hea"):
        table(path)
    assert named_table(path, header=True).columns == ["country", "2019", "2020"]
    with pytest.raises(ValueError, match=r"line 1, column 1: 'country' is not a number; remove or"):
        table(path, header=False)


@pytest.mark.parametrize("header", [True, False])
def test_a_header_is_of_a_csv_alone(header):
    np.save("x.npy", np.ones((2, 2)))
    pd.DataFrame(np.ones((2, 2)), columns=["a", "b"]).to_parquet("x.parquet")
    for name in ("x.npy", "x.parquet"):
        with pytest.raises(ValueError, match=rf"header={header} .*but there was {name}; leave it"):
            table(name, header=header)


# whole numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("9007199254740993", 2**53),
        ("-9007199254740993", -(2**53)),
        ("9007199254740993.0", 2**53),
        (" 9.007199254740993e15", 2**53),
        ("12345678901234567890123", 1.2345678901234568e22),
    ],
)
def test_whole_numbers_that_float64_does_not_hold_are_refused(cell, value):
    with pytest.raises(ValueError, match=rf"line 3, column 2 \(id\): {cell.strip()} would become"):
        table(write(f"x,id\n1,2\n3,{cell}\n"))
    assert float(cell) == value  # which it would have been


@pytest.mark.parametrize(
    "cell",
    [
        "9007199254740992", "9007199254740994", "1.6e30", "1600000000000000000000000000000",
        "0.12345678901234567890123", "1234567.12345678901234567890", "123456789012345680000",
        "1e-400", "9007199254740992.3",
    ],
)  # fmt: skip
def test_numbers_that_are_measurements_are_taken(cell):
    assert table(write(f"x\n{cell}\n")).item() == float(cell)


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from("rgef"))
def test_what_a_float_is_printed_as_is_taken(value, how):
    """By repr, %.17g, %.18e as np.savetxt has it, and %f."""
    text = {"r": repr(value), "g": f"{value:.17g}", "e": f"{value:.18e}", "f": f"{value:f}"}[how]
    assert table(write(f"x\n{text}\n")).item() == float(text)


@given(st.integers(-(2**70), 2**70))
def test_whole_numbers_come_back_or_are_refused(value):
    path = write(f"x\n{value}\n")
    try:
        found = table(path).item()
    except ValueError as error:
        assert "would become" in str(error) and int(float(value)) != value
    else:
        # the shortest digits of a float64 stand for it, as JavaScript prints it
        assert int(found) == value or repr(found) == repr(float(f"{value:.16e}"))


# encodings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_in_the_encoding_that_its_mark_says(encoding, name):
    found = named_table(write("größe,b\n1.5,2\n", name, encoding))
    assert found.columns == ["größe", "b"] and found.values.tolist() == [[1.5, 2.0]]


def test_utf_16_of_the_other_order_is_read():
    Path("x.csv").write_bytes(b"\xfe\xff" + "a\n1.5\n".encode("utf-16-be"))
    assert table("x.csv").tolist() == [[1.5]]


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("latin-1", r"line 1: byte 0xf6 is not UTF-8, but 'ö' in Windows-1252 \(Latin-1\); save"),
        ("windows-1252", r"line 1: byte 0xf6 is not UTF-8, but 'ö'"),
        ("utf-16-le", "seems to be UTF-16 without its mark"),
        ("utf-16-be", "seems to be UTF-16 without its mark"),
    ],
)
def test_other_encodings_are_named_and_the_remedy_reads_them(encoding, message, name):
    path = write("größe,b\n1.5,2\n3,4\n", name, encoding)
    with pytest.raises(ValueError, match=rf"^{name}.*{message}") as told:
        table(path)
    subprocess.run(str(told.value).split("for example by ")[1], shell=True, check=True)
    assert named_table("utf8.csv").columns == ["größe", "b"]


def test_the_line_of_a_byte_is_counted():
    Path("x.csv").write_bytes(b"a,b\n1,2\n3,\xe9\n")
    with pytest.raises(ValueError, match="line 3: byte 0xe9"):
        table("x.csv")


def test_what_is_no_text_is_told():
    for data in (b"PK\x03\x04\x14\x00\x06\x00\xff\xe9" * 9, b"a\n1\0\n", b"\xff\xfea\0\n\0\x31"):
        Path("x.csv").write_bytes(data)
        with pytest.raises(ValueError, match=r"^x\.csv"):
            table("x.csv")


# separators --------------------------------------------------------------------------------------

SEPARATED = {
    "a;b\n1.5;2\n3;4\n": "semicolons",
    "a;b\n1,5;2,25\n3;4,5\n": "semicolons and decimal commas",
    "1,5;2,25\n3,5;4,5\n": "semicolons and decimal commas",
    "1.5;2.25\n3.5;4.5\n": "semicolons",
    '"a";"b"\n"1,5";"2,25"\n3;4,5\n': "semicolons and decimal commas",
    "a\tb\n1.5\t2.25\n3\t4\n": "tabs",
    "a\tb\n1,5\t2,25\n3\t4\n": "tabs and decimal commas",
    "a|b\n1.5|2.25\n": "bars",
    "1.5 2.25\n3 4\n": "spaces",
    "a b\n1.5   2.25\n3 4\n": "spaces",
    "1.5;2.25\n": "semicolons",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("text", SEPARATED)
def test_other_separators_are_named_and_the_remedy_reads_them(text, encoding):
    path = write(text, encoding=encoding)
    with pytest.raises(
        ValueError, match=f"must have commas .*, but had {SEPARATED[text]};"
    ) as told:
        table(path)
    eval(str(told.value).split("for example by ")[1], {"pd": pd})
    first = text.splitlines()[0]
    named = first[0] in '"a'
    found = named_table("commas.csv", header=named)
    assert found.columns == (["a", "b"] if named else [])
    expected = text.splitlines()[named].replace('"', "").replace(",", ".")
    for mark in ";|\t":
        expected = expected.replace(mark, " ")
    assert found.values[0].tolist() == [float(cell) for cell in expected.split()]


@pytest.mark.parametrize("separator", [None, ","])
def test_what_numpy_saves_is_read_or_told(separator):
    np.savetxt("x.csv", np.array(ROWS), **({"delimiter": separator} if separator else {}))
    if separator:
        assert table("x.csv", header=False).tolist() == ROWS
    else:
        with pytest.raises(ValueError, match="but had spaces"):
            table("x.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b\n"1,234.5",2\n', r"column 1 \(a\): '1,234.5' .* without marks between thousands"),
        ('a,b\n"1.234,5",2\n', "decimal point and without marks"),
        ("a,b\n1'234.5,2\n", "without marks between thousands"),
        ("a,b\n1 234.5,2\n", "without marks between thousands"),
        ("a,b\nNA,2\n", r"column 1 \(a\): 'NA' is not a number; remove or impute it$"),
        ("a,b\n1, ,\n", "line 2, has 3 entries"),
        ("a,b,c\n1, ,3\n", r"column 2 \(b\): ' ' is not a number; remove or impute it$"),
        ("a,b\n1,\n", r"column 2 \(b\): '' is not a number; remove or impute it$"),
        ("a,b\n5%,2\n", "'5%' is not a number"),
        ("sep=;\na;b\n1;2\n", "'sep=;', names the separator for Excel, and is no data; remove"),
        ("sep=,\na,b\n1,2\n", "'sep=,', names the separator for Excel"),
        ("# of 2024\na,b\n1,2\n", "begins with '#', but comments are not read; remove those"),
        ('"a\n(m)",b\n1,2\n', "opens a quotation mark that it does not close; write each"),
        ('a,b\n"1\n",2\n', "opens a quotation mark"),
        ("a,b\n1,2\n \n", "has 1 entries where others have 2; complete it, or remove the line"),
        ("a,b\n", "holds no rows of numbers"),
        ("", "holds no rows of numbers"),
    ],
)
def test_entries_that_are_no_numbers_are_told_by_their_cause(text, message):
    with pytest.raises(ValueError, match=message):
        table(write(text))


@pytest.mark.parametrize("missing", ["-999", "-9999.0", "999"])
def test_numbers_that_may_stand_for_missing_are_numbers(missing):
    assert table(write(f"a\n1.5\n{missing}\n")).tolist() == [[1.5], [float(missing)]]


# suffixes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["X.CSV", "x.Csv", "X.CSV.GZ", "x.csv.Gz", "x.CSV.gz"])
def test_suffixes_of_text_may_be_in_capitals(name):
    assert named_table(write("a,b\n1,2\n", name)).columns == ["a", "b"]


def test_suffixes_of_arrays_may_be_in_capitals():
    rows = np.array(ROWS)
    for name, save in (("X.NPY", np.save), ("X.NPZ", np.savez)):
        with open(name, "wb") as file:
            save(file, rows)
        assert table(name).tolist() == ROWS
    pd.DataFrame(rows, columns=list("abc")).to_parquet("X.Parquet")
    assert named_table("X.Parquet").columns == ["a", "b", "c"]
    images = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 255])
    for name in ("X.IDX", "IMAGES-IDX3-UBYTE", "x-ubyte.GZ"):
        Path(name).write_bytes(gzip.compress(images) if name.endswith("GZ") else images)
        assert torch.equal(table(name), torch.tensor([[[[0.0, 1.0]]]]))


def test_a_gzipped_array_is_not_one():
    Path("x.npy.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match=r"but its suffix was '\.gz'"):
        table("x.npy.gz")


def test_names_that_are_said_to_be_data_are_told_by_the_flag():
    with pytest.raises(ValueError, match="if this line names the columns, leave out --no-header"):
        table(write("a,b\n1,2\n"), header=False)


def test_a_mark_of_inches_is_no_quotation():
    assert table(write('a (5"),b\n1,2\n')).tolist() == [[1.0, 2.0]]
