"""`read` turns the text of a .csv into numbers: its encoding, its first line and every entry.

Text has no types, so whole numbers in it are measurements like others. An entry that float64 would
change into another whole number is refused. An error names the likely cause: another encoding,
another separator, decimal commas.
"""

import csv
import gzip
import re
from array import array
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from ozaki.foundation import validation
from ozaki.foundation.frames import LARGEST

LINE = 2**21  # most letters in a line of a .csv, whose entries take twenty times as much in memory
BEGIN = 4096  # bytes from which an encoding is guessed
UTF8 = "utf-8-sig"  # with its mark or without
BOMS = {b"\xff\xfe\x00\x00": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", None: "spaces"}
_SPACES = r"\s+"  # in pandas
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1f]")  # which no text has
_EXCELS = re.compile(r"sep=.?,?\s*", re.IGNORECASE)  # a line that only Excel understands
_THOUSANDS = re.compile(r"[,.'’ \u00a0\u202f]")


def read(path: Path, header: bool | None) -> tuple[np.ndarray, list[str]]:
    """Read the numbers, (N, D), and the names of the columns, if the first line has any.

    Args:
        path: a .csv, or one that is gzipped if its name ends in .gz.
        header: whether the first line names the columns; None takes it for names if no entry of it
            is a number, and otherwise warns that there were none.

    Raises:
        ValueError: naming the line and the column of what is wrong.
    """
    entries, width = array("d"), 0  # a list of rows would take twenty times as much as the file
    names: list[str] = []
    first = ""
    for number, text, line in lines(path):
        if not first:
            first = text
            _check_first(path, number, text)
            if header or (header is None and not any(is_number(cell) for cell in line)):
                names = [cell.strip() for cell in line]
                _check_names(path, number, names)
                continue
        if not width:
            width = len(line)
            if names and len(names) != width:
                raise ValueError(
                    _separated(path, text, first, header)
                    or _no_names(path, first)
                    or _unclosed(path, number, text)
                    or f"{path}, line {number}, has {width} entries, but the first line names "
                    f"{len(names)} columns; name each column, write no row names (in R, "
                    "row.names=FALSE), and use a decimal point, not a comma"
                )
        if len(line) != width:
            raise ValueError(
                _unclosed(path, number, text)
                or f"{path}, line {number}, has {len(line)} entries where others have {width}; "
                "complete it, or remove the line"
            )
        try:
            if "_" in text:  # float would ignore '_': 2020_01 is not 202001
                raise ValueError
            row = [float(cell) for cell in line]
        except ValueError:
            raise ValueError(
                _separated(path, text, first, header)
                or _unclosed(path, number, text)
                or _no_number(path, number, line, names, text is first, header)
            ) from None
        if max(row) >= LARGEST or min(row) <= -LARGEST:
            _check_held(path, number, line, row, names)
        entries.extend(row)
    if not entries:
        raise ValueError(
            (first and _separated(path, first, first, header)) or f"{path} holds no rows of numbers"
        )
    return np.frombuffer(entries).reshape(-1, width), names


def _check_names(path: Path, number: int, names: list[str]) -> None:
    """Raise ValueError for a column without a name."""
    if "" in names:
        raise ValueError(
            f"{path}, line {number}, column {names.index('') + 1}, has no name; if it is the index "
            "of a pandas frame, write the file with to_csv(path, index=False), else name or remove "
            "it"
        )


def _check_first(path: Path, number: int, text: str) -> None:
    """Refuse a first line that is neither names nor data, and say what it is."""
    if _EXCELS.fullmatch(text):
        raise ValueError(
            f"{path}, line {number}, {text.strip()!r}, names the separator for Excel, and is no "
            "data; remove the line"
        )


def _no_names(path: Path, first: str) -> str:
    """Describe a first line that does not name the columns; return nothing for one that does."""
    if first.startswith("#"):
        return (
            f"{path}: its first line begins with '#', but comments are not read; remove those lines"
        )
    return _unclosed(path, 1, first)


def _unclosed(path: Path, number: int, text: str) -> str:
    """Describe an entry that goes on in the next line; return nothing where there is none."""
    if text.count('"') % 2 == 0:
        return ""
    return (
        f"{path}, line {number}, opens a quotation mark that it does not close; write each entry "
        "and name on one line"
    )


def _no_number(
    path: Path, number: int, line: list[str], names: list[str], first: bool, header: bool | None
) -> str:
    """Say where an entry is not a number, and what to do."""
    j = next(j for j, cell in enumerate(line) if not is_number(cell))
    column = f" ({validation.short(names[j])})" if j < len(names) else ""
    remedy = "remove or impute it"
    if line[j].strip() and is_number(_THOUSANDS.sub("", line[j])):
        remedy = "write it with a decimal point and without marks between thousands"
    elif first and not header:
        give = "give header=True (--header)" if header is None else "leave out --no-header"
        remedy += f", or, if this line names the columns, {give}"
    return (
        f"{path}, line {number}, column {j + 1}{column}: {validation.short(line[j])!r} is not a "
        f"number; {remedy}"
    )


def _check_held(
    path: Path, number: int, line: list[str], row: list[float], names: list[str]
) -> None:
    """Raise ValueError for a whole number of which float64 holds only a neighbour.

    A number that is written to fewer digits, 1.6e30 say, or as a float64 is printed, is held.
    """
    for j, (cell, value) in enumerate(zip(line, row, strict=True)):
        if not LARGEST <= abs(value) < float("inf"):
            continue
        written = Decimal(cell)
        exponent = written.as_tuple().exponent
        to_units = isinstance(exponent, int) and exponent <= 0
        if to_units and abs(written - Decimal(value)) >= 0.5 and Decimal(repr(value)) != written:
            column = f" ({validation.short(names[j])})" if names else ""
            raise ValueError(
                f"{path}, line {number}, column {j + 1}{column}: {validation.short(cell.strip())} "
                f"would become {int(value)}, since float64 holds not every whole number beyond "
                "2**53; drop the column if it holds codes, or subtract an offset from it"
            )


def _separated(path: Path, text: str, first: str, header: bool | None) -> str:
    """Describe a line whose entries are not separated by commas; return nothing for others."""
    for separator, what in _SEPARATORS.items():
        cells = _cells(text, separator)
        if len(cells) == 1 or not all(map(_is_number_with_comma, filter(None, cells))):
            continue
        commas = any("," in cell for cell in cells)
        named = not any(map(_is_number_with_comma, _cells(first, separator)))
        bare = not (named if header is None else header)
        how = f"{str(path)!r}, sep={separator or _SPACES!r}"
        how += ", decimal=','" * commas + ", header=None" * bare
        if (encoding := _encoding(path)) != UTF8:
            how += f", encoding={encoding!r}"
        return (
            f"{path} must have commas between entries, but had {what}"
            f"{' and decimal commas' * commas}; write it anew, for example by pd.read_csv({how})"
            f".to_csv('commas.csv', index=False{', header=False' * bare})"
        )
    return ""


def _cells(text: str, separator: str | None) -> list[str]:
    return [cell.strip().strip('"') for cell in text.strip().split(separator)]


def _is_number_with_comma(cell: str) -> bool:
    return is_number(cell if cell[:1] == "," or cell[-1:] == "," else cell.replace(",", "."))


def lines(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield each line that has entries: its number, its text and the entries.

    Args:
        path: of text, gzipped where its name ends in .gz.

    Raises:
        ValueError: bytes that are no text in UTF-8, a line that is too long, or a packed file that
            would fill the memory.
    """
    size, due = 0, validation.SPARE
    try:
        with _opener(path)(path, "rt", encoding=_encoding(path), newline="") as file:
            for number, text in enumerate(iter(lambda: file.readline(LINE), ""), 1):
                if len(text) == LINE:
                    raise ValueError(
                        f"{path}, line {number}, is longer than {LINE - 1} letters; break the "
                        "lines, or save the numbers as .npy"
                    )
                if "\0" in text:
                    raise ValueError(
                        _as_utf_16(path)
                        or f"{path}, line {number}, holds zero bytes, which no text has; save the "
                        "numbers as text"
                    )
                size += len(text)
                if size > due:
                    validation.unpacked(path, size)
                    due = size + 2**20
                if line := next(csv.reader([text])):
                    yield number, text, line
    except UnicodeDecodeError as error:
        raise ValueError(_undecoded(path)) from error


def _opener(path: Path) -> Any:
    return gzip.open if path.suffix.lower() == ".gz" else open


def _encoding(path: Path) -> str:
    """Return the encoding that the byte-order mark at the beginning says."""
    with _opener(path)(path, "rb") as file:
        begin = file.read(4)
    return next((e for mark, e in BOMS.items() if begin.startswith(mark)), UTF8)


def _undecoded(path: Path) -> str:
    """Say why the bytes of a file are no text in UTF-8, and what they seem to be."""
    if said := _as_utf_16(path):
        return said
    with _opener(path)(path, "rb") as file:
        begin = file.read(BEGIN)
        file.seek(0)
        if begin.startswith(tuple(BOMS)):
            return (
                f"{path} begins as {begin[:2].hex(' ')}, as UTF-16 does, but does not go on so; "
                "save it as UTF-8"
            )
        for number, line in enumerate(iter(lambda: file.readline(LINE), b""), 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start : error.start + 1]
                where = f"{path}, line {number}: byte 0x{byte.hex()} is not UTF-8"
                break
        else:
            raise AssertionError("the file was no UTF-8 a moment ago")
    if _CONTROL.search(begin):
        return f"{where}, and the file seems to be no text; save the numbers as text"
    letter = byte.decode("windows-1252", "replace")
    if letter == "\ufffd":
        return f"{where}; save the file as UTF-8"
    return _as_utf8(path, f"{where}, but {letter!r} in Windows-1252 (Latin-1)", "WINDOWS-1252")


def _as_utf_16(path: Path) -> str:
    """Describe UTF-16 without a mark, whose every other byte is mostly zero; else nothing."""
    with _opener(path)(path, "rb") as file:
        begin = file.read(BEGIN)
    for order, place in (("LE", 1), ("BE", 0)):
        if begin[place::2].count(0) > len(begin) / 4 > 2 * begin[1 - place :: 2].count(0):
            what = f"{path} seems to be UTF-16 without its mark"
            return _as_utf8(path, what, f"UTF-16{order}")
    return ""


def _as_utf8(path: Path, what: str, encoding: str) -> str:
    unpacked = f"gunzip -c {path} | " if _opener(path) is gzip.open else ""
    read = "" if unpacked else f" {path}"
    return (
        f"{what}; save it as UTF-8, for example by {unpacked}iconv -f {encoding} -t UTF-8{read} > "
        "utf8.csv"
    )


def is_number(cell: str) -> bool:
    """Say whether an entry is a number; float ignores '_', but 2020_01 is not a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell
