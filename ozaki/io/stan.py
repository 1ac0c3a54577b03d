"""These functions read draws in text: Stan's CSV, and JSON as posteriordb keeps it.

In both, a column is a name with indices, which count from 1. Here the columns of one name become
one array. A chain is a file in Stan's CSV, and an entry of one list in posteriordb's JSON.

Sources: the CmdStan guide, Stan CSV File Format; Magnusson et al., posteriordb.
"""

import gzip
import json
import math
import re
import zipfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ozaki.foundation import validation
from ozaki.io.csv_text import is_number, lines

CSV_SUFFIXES, JSON_SUFFIXES = (".csv", ".csv.gz"), (".json", ".json.gz")
WHOLE = "restore it from a copy, or run the chain again"
ADAPTED = "Adaptation terminated"  # the line between the draws of warm-up and the others
# Stan's columns that are no draws → ArviZ's names
STATISTICS = {
    "lp": "lp",
    "accept_stat": "acceptance_rate",
    "stepsize": "step_size",
    "treedepth": "tree_depth",
    "n_leapfrog": "n_steps",
    "divergent": "diverging",
    "energy": "energy",
}
UNLIKE = {"log_g__", "log_p__", "log_q__", "lp_approx__"}  # columns of methods without chains
_SETTING = re.compile(r"#\s*(\w+)\s*=\s*(\S+)")
_OF_CSV = re.compile(r"(.+?)((?:\.\d+)+)")
_OF_JSON = re.compile(r"(.+)\[(\s*\d+\s*(?:,\s*\d+\s*)*)\]")

Split = Callable[[str], tuple[str, tuple[int, ...]]]


class Read(NamedTuple):
    """The content of a text.

    Attributes:
        posterior: draws by name, (chains, draws, *shape).
        stats: the sampler's, (chains, draws).
        notes: what a person should know of the reading, in words.
    """

    posterior: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    notes: list[str]


class _Chain(NamedTuple):
    path: Path
    names: list[str]
    values: np.ndarray  # (draws, columns)
    settings: dict[str, str]
    warmup: int  # draws of warm-up that were saved and are not among the values


def is_csv(path: Path) -> bool:
    """Say whether a file is Stan's, by a comment or by its column lp__."""
    if not (path.is_file() and path.name.lower().endswith(CSV_SUFFIXES)):
        return False
    try:
        for _, text, cells in lines(path):
            if not text.startswith("#"):
                return "lp__" in (cell.strip() for cell in cells)
            if "stan" in text.lower():
                return True
    except (OSError, ValueError, EOFError):  # it is no text; the reader will say so
        pass
    return False


def read_csv(paths: Sequence[Path]) -> Read:
    """Read the draws of Stan's CSV files, a chain each; saved draws of warm-up are left out.

    Args:
        paths: of one run.

    Raises:
        ValueError: none of Stan's, or none of its sampler; a file that is not whole; chains of
            other columns or lengths, or the same one twice.
    """
    chains = [_chain(path) for path in paths]
    first = chains[0]
    for i, chain in enumerate(chains[1:], 1):
        if chain.names != first.names:
            differ = sorted(set(chain.names) ^ set(first.names)) or "the order of the columns"
            raise ValueError(
                f"{chain.path} must have the columns of {first.path}, but they differ in "
                f"{validation.short(str(differ))}; give the chains of one run"
            )
        if len(chain.values) != len(first.values):
            raise ValueError(
                f"{chain.path} must hold as many draws as {first.path}, but one holds "
                f"{len(chain.values)} and the other {len(first.values)}; give the chains of one run"
            )
        for other in chains[:i]:
            if _told(chain) is not None and _told(chain) == _told(other):
                raise ValueError(
                    f"{chain.path} and {other.path} say that they are one chain (id and seed are "
                    "the same); give each chain once, and run each with its own id"
                )
    columns = dict(zip(first.names, np.stack([c.values.T for c in chains], 1), strict=True))
    posterior, notes = arrays({n: c for n, c in columns.items() if n[-2:] != "__"}, _split_csv)
    if not posterior:
        raise ValueError(f"{first.path} holds columns of the sampler alone, and no draws")
    stats = {}
    for name, values in columns.items():
        if name.endswith("__"):
            called = name.removesuffix("__")
            stats[STATISTICS.get(called, called)] = values
    if "step_size" not in stats:  # nothing is proposed where parameters are fixed
        stats.pop("acceptance_rate", None)
    if "diverging" in stats:
        stats["diverging"] = stats["diverging"] != 0
    if warmup := max(chain.warmup for chain in chains):
        notes.append(f"{warmup} saved draws of warm-up a chain are left out")
    return Read(posterior, stats, notes)


def _told(chain: _Chain) -> tuple[str, str] | None:
    """Return the number of the chain that a file says it is."""
    found = chain.settings.get("id"), chain.settings.get("seed")
    return (found[0], found[1]) if found[0] and found[1] else None


def _chain(path: Path) -> _Chain:
    """Read one file of Stan's CSV: the values, the columns and what the comments say."""
    names: list[str] = []
    entries, settings = array("d"), dict[str, str]()
    adapted, last = None, (0, "")
    with validation.parsing(path, "is not a whole CSV file of Stan's", WHOLE):
        for number, text, cells in lines(path):
            if text.startswith("#"):
                if setting := _SETTING.match(text):
                    settings.setdefault(setting[1], setting[2])
                if ADAPTED in text and names:
                    adapted = len(entries) // len(names)
            elif not names:
                names = [cell.strip() for cell in cells]
                _check_head(path, names, settings)
            else:
                last = number, text
                _take(path, number, text, names, cells, entries)
        if not entries:
            raise ValueError(f"{path} holds no draws yet: {WHOLE}")
        if not last[1].endswith("\n"):
            raise ValueError(
                f"{path}, line {last[0]}, is the last and ends without a line break: the file may "
                f"be cut there; {WHOLE}"
            )
        values = np.frombuffer(entries).reshape(-1, len(names))
        warmup = _saved(settings) if adapted is None else adapted
        announced = _drawn(settings, "num_samples")
        if announced is not None and len(values) - warmup != announced:
            raise ValueError(
                f"{path} must hold the {announced} draws that its head announces, but held "
                f"{max(0, len(values) - warmup)}, the last in line {last[0]}: the run was stopped "
                f"or goes on; {WHOLE}"
            )
        if len(values) <= warmup:
            raise ValueError(f"{path} holds draws of warm-up alone; {WHOLE}")
    return _Chain(path, names, values[warmup:], settings, warmup)


def _check_head(path: Path, names: list[str], settings: Mapping[str, str]) -> None:
    """Raise ValueError for a head that is not one of Stan's sampler."""
    method = settings.get("method", "sample")
    if method != "sample" or UNLIKE & set(names):
        method = method if method != "sample" else "another than sample"
        raise ValueError(
            f"{path} must be of Stan's sampler, but its method was {method}, which makes no chains"
        )
    if "lp__" not in names:
        raise ValueError(f"{path} must be Stan's CSV, whose columns name lp__, but has none")
    if len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{path} names a column {validation.short(again)!r} more than once")


def _take(
    path: Path, number: int, text: str, names: list[str], cells: list[str], entries: Any
) -> None:
    """Append a line of numbers to those before it."""
    if len(cells) != len(names):
        raise ValueError(
            f"{path}, line {number}, has {len(cells)} entries where {len(names)} columns are "
            f"named: the file is cut there or damaged; {WHOLE}"
        )
    try:
        if "_" in text:  # float would ignore '_'
            raise ValueError
        entries.extend(map(float, cells))
    except ValueError:
        wrong = next(j for j, cell in enumerate(cells) if not is_number(cell))
        raise ValueError(
            f"{path}, line {number}, column {wrong + 1} ({validation.short(names[wrong])}): "
            f"{validation.short(cells[wrong])!r} is not a number; {WHOLE}"
        ) from None


def _drawn(settings: Mapping[str, str], name: str) -> int | None:
    """Return how many draws of a kind the head announces, after thinning."""
    count, thin = settings.get(name, ""), settings.get("thin", "1")
    if not (count.isdecimal() and thin.isdecimal() and int(thin)):
        return None
    return math.ceil(int(count) / int(thin))


def _saved(settings: Mapping[str, str]) -> int:
    """Count the draws of warm-up at the beginning of a file that does not mark where it ends."""
    saved = settings.get("save_warmup", "0") in ("1", "true")
    fixed = settings.get("algorithm") == "fixed_param"  # which warms nothing up
    return (_drawn(settings, "num_warmup") or 0) if saved and not fixed else 0


def read_json(path: Path) -> Read:
    """Read the draws in a JSON file: a list of chains, each a dict of column → list of numbers.

    Args:
        path: a .json, as it is, or gzipped, or alone in a .zip.

    Raises:
        ValueError: another layout, an entry that is no number, or chains that differ in columns or
            lengths.
    """
    chains = validation.json_text(path, _text(path), WHOLE, "is not whole JSON of draws")
    if not (isinstance(chains, list) and chains and all(isinstance(c, dict) and c for c in chains)):
        raise ValueError(
            f"{path} must hold a list of chains, each a dict of names and lists of draws, but "
            f"held {_shape(chains)}; {_listed(path, chains)}"
        )
    names = list(chains[0])
    length = None
    for i, chain in enumerate(chains):
        if set(chain) != set(names):
            differ = validation.short(str(sorted(set(chain) ^ set(names))))
            raise ValueError(
                f"{path}: chain {i} must have the names of chain 0, but they differ in {differ}"
            )
        for name in names:
            told = f"{path}, chain {i}, {validation.short(name)!r},"
            length = _check_list(told, chain[name], length)
    columns = {name: np.array([chain[name] for chain in chains]) for name in names}
    for name, found in columns.items():
        if found.dtype.kind not in "if":  # whole numbers beyond 64 bits
            columns[name] = np.array([chain[name] for chain in chains], float)
    posterior, notes = arrays(columns, _split_json)
    return Read(posterior, {}, notes)


def _listed(path: Path, found: Any) -> str:
    """Say how to make a list of chains from the content of a file."""
    if isinstance(found, dict) and "posterior" in found:
        return f"if ArviZ wrote it, give az.from_json({str(path)!r}).to_netcdf('draws.nc')"
    if isinstance(found, dict):
        return "of one chain write a list of one, [{...}]"
    return "write the draws so, or as NetCDF"


def _text(path: Path) -> bytes:
    """Return the text of a JSON file, unpacked where it is packed."""
    with validation.parsing(path, "is not a whole file of JSON", WHOLE):
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as members:
                (only,) = members.infolist()
                validation.unpacked(path, only.file_size)
                return members.read(only)
        if path.suffix.lower() == ".gz":
            most = validation.SPARE + validation.RATIO * path.stat().st_size
            with gzip.open(path, "rb") as file:
                content = file.read(most + 1)
            validation.unpacked(path, len(content))
            return content
        return path.read_bytes()


def _check_list(told: str, found: Any, length: int | None) -> int:
    """Check that a column is a list of numbers, of the given length; return its length."""
    if not isinstance(found, list) or not found:
        raise ValueError(f"{told} must be a list of numbers, but was {_shape(found)}")
    for i, entry in enumerate(found):
        if isinstance(entry, bool) or not isinstance(entry, (int, float)):
            raise ValueError(f"{told} must be numbers, but draw {i} was {_shape(entry)}")
    if length not in (None, len(found)):
        raise ValueError(
            f"{told} must have {length} draws like the names before, but had {len(found)}; "
            "give chains of one length"
        )
    return len(found)


def _shape(value: Any) -> str:
    return validation.short(json.dumps(value)[: validation.LONGEST + 1])


def arrays(
    columns: Mapping[str, np.ndarray], split: Split
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Put columns together to arrays: "x.1" and "x.2", or "x[1]" and "x[2]", are x.

    Args:
        columns: (chains, draws) by name.
        split: a name into that of the array and its indices, which count from 1.

    Returns:
        Arrays by name, (chains, draws, *shape), and what should be said of the rest: entries of
        which some are missing stay columns of their own.
    """
    entries: dict[str, dict[tuple[int, ...], str]] = {}
    for column in columns:
        name, index = split(column)
        entries.setdefault(name, {})[index] = column
    found, partial = dict[str, np.ndarray](), list[str]()
    for name, held in entries.items():
        shape = tuple(map(max, zip(*held, strict=False)))
        if {len(index) for index in held} == {len(shape)} and _full(held, shape):
            lead = next(iter(columns.values())).shape
            stacked = np.stack([columns[held[index]] for index in _indices(shape)], -1)
            found[name] = stacked.reshape(*lead, *shape)
        else:
            partial.append(name)
            found |= {column: columns[column] for column in held.values()}
    notes = [
        f"{validation.short(name)} lacks entries: the names of those that are there count "
        "from 1, as in the file"
        for name in partial
    ]
    return found, notes


def _full(held: Mapping[tuple[int, ...], str], shape: tuple[int, ...]) -> bool:
    return len(held) == math.prod(shape) and all(min(index, default=1) > 0 for index in held)


def _indices(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield all indices of an array, from 1 on, in the order of its entries."""
    return (tuple(i + 1 for i in index) for index in np.ndindex(*shape))


def _split_csv(column: str) -> tuple[str, tuple[int, ...]]:
    found = _OF_CSV.fullmatch(column)
    return (found[1], tuple(map(int, found[2][1:].split(".")))) if found else (column, ())


def _split_json(column: str) -> tuple[str, tuple[int, ...]]:
    found = _OF_JSON.fullmatch(column)
    return (found[1], tuple(map(int, found[2].split(",")))) if found else (column, ())
