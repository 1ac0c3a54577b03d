"""A source gives clean rows: from memory, or from a stream that is read anew at every pass."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ozaki.scores.learned.loader_passes import Reader, row_bytes
from ozaki.scores.learned.standardisation import FEW, collect

REFERENCE = 8192  # first rows of a stream, which represent all of it
WRAPPED = 256  # rows an item where a torch Dataset comes without a DataLoader


class Batches(ABC):
    """Endless batches of clean rows; the place in them can be saved and restored."""

    @abstractmethod
    def next(self) -> Tensor:
        """Return this process's rows of the next batch."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the place after the last batch that `next` returned, in the types of JSON."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to a place: `next` gives the very rows it would have given there.

        Raises:
            ValueError: `state` is of other data, or the stream does not repeat itself.
        """


class Source(ABC):
    """Clean rows, some of them held out.

    Attributes:
        event_shape: the shape of one row.
        train: (n, D) rows to train on, on the CPU, in their own dtype: all of them where they are
            in memory; of a stream the first `REFERENCE`, or all if they are fewer.
        held: (m, D) rows that are never trained on.
        fingerprint: SHA-256 over shape, dtype and content: of all rows where they are in memory,
            of a stream those held.
    """

    event_shape: torch.Size
    train: Tensor
    held: Tensor
    fingerprint: str

    @abstractmethod
    def batches(
        self,
        batch_size: int,
        generator: torch.Generator,
        prepare: Callable[[Tensor], Tensor],
        share: tuple[int, int] = (0, 1),
    ) -> Batches:
        """Batches to train on, without end.

        Args:
            batch_size: rows a batch of all processes.
            generator: draws the batches where rows are in memory, and its state, which is the
                caller's to keep, is their place. A stream leaves it alone.
            prepare: (n, D) clean rows to what is trained on, row by row.
            share: this process and their number; it is given rows[process::number].
        """


def open_source(data: Any, held_out: float, generator: torch.Generator) -> Source:
    """Open `data` as a source, and draw its held-out rows.

    Args:
        data: in memory, a tensor, an array or a frame. A stream is a DataLoader of any length,
            whose items are tensors (batch, *event_shape) or tuples that begin with one; a torch
            Dataset is read through a DataLoader of 256 rows an item, shuffled if it is map-style.
        held_out: the fraction held out; of a stream, of its first `REFERENCE` rows.
        generator: draws the held rows, and the seed of a stream. Two openings of the same data
            agree if it is in the same state at both.

    Raises:
        ValueError: naming what was wrong with the data.
    """
    if isinstance(data, Dataset):
        data = DataLoader(data, WRAPPED, shuffle=not isinstance(data, IterableDataset))
    if isinstance(data, DataLoader):
        reader = Reader(data, int(torch.randint(2**62, (), generator=generator)))
        rows, read = reader.peek(REFERENCE + _held_count(held_out, REFERENCE))
        if len(rows) == 0:
            raise ValueError("data must have at least 2 rows, but the DataLoader gave none")
        collect(rows[:FEW].reshape(-1, *reader.event_shape))  # refuses one row, warns of a few
        return _Stream(reader, rows, read, held_out, generator)
    return _Memory(collect(data), held_out, generator)


class _Memory(Source):
    """All rows in one tensor."""

    def __init__(self, rows: Tensor, held_out: float, generator: torch.Generator):
        self.event_shape, rows = rows.shape[1:], rows.reshape(len(rows), -1).contiguous()
        self.fingerprint = _fingerprint(rows, self.event_shape)
        kept = _held_count(held_out, len(rows))
        rows = rows[torch.randperm(len(rows), generator=generator)]
        self.held, self.train = rows[:kept], rows[kept:]

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator,
        prepare: Callable[[Tensor], Tensor],
        share: tuple[int, int] = (0, 1),
    ) -> Batches:
        return _MemoryBatches(prepare(self.train), batch_size, generator, share)


class _MemoryBatches(Batches):
    """Batches of rows that are drawn with replacement."""

    def __init__(self, rows: Tensor, size: int, generator: torch.Generator, share: tuple[int, int]):
        self._rows, self._size, self._generator, self._share = rows, size, generator, share

    def next(self) -> Tensor:
        rank, world = self._share
        chosen = torch.randint(len(self._rows), (self._size,), generator=self._generator)
        return self._rows[chosen[rank::world].to(self._rows.device)]

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        if state:
            raise _other_data("a stream", "in memory")


class _Stream(Source):
    """A stream from a DataLoader; only the reference, a batch and an item are in memory."""

    def __init__(
        self, reader: Reader, rows: Tensor, read: int, held_out: float, generator: torch.Generator
    ):
        self._reader, self._read = reader, read
        self.event_shape = reader.event_shape
        count = _held_count(held_out, min(REFERENCE, len(rows)))
        # drawn at random, since the first rows of sorted data are all from one end
        chosen = torch.randperm(len(rows), generator=generator)[:count].sort().values
        self.held = rows[chosen]
        self._reader.hold(self.held, rows)
        self.fingerprint = _fingerprint(self.held, self.event_shape)
        out = set(chosen.tolist())
        # moved in place, since memory may not have room for a copy
        for place, i in enumerate(i for i in range(len(rows)) if i not in out):
            rows[place] = rows[i]
        self.train = rows[: len(rows) - count]

    def batches(
        self,
        batch_size: int,
        generator: torch.Generator,
        prepare: Callable[[Tensor], Tensor],
        share: tuple[int, int] = (0, 1),
    ) -> Batches:
        return _StreamBatches(self._reader, self._read, batch_size, prepare, share)


class _StreamBatches(Batches):
    """Batches of one size, cut and joined from items, across the ends of passes."""

    def __init__(
        self,
        reader: Reader,
        given: int,
        size: int,
        prepare: Callable[[Tensor], Tensor],
        share: tuple[int, int],
    ):
        self._reader, self._size, self._prepare, self._share = reader, size, prepare, share
        self._number, self._pass, self._given = 0, reader.begin(0), given
        self._left = torch.empty(0)
        self._place = self._here()

    def next(self) -> Tensor:
        parts, missing = [], self._size
        while missing > 0:
            if len(self._left) == 0:
                self._left = self._read()
            parts.append(self._left[:missing])
            self._left = self._left[missing:]
            missing -= len(parts[-1])
        rank, world = self._share
        rows = self._prepare(torch.cat(parts)[rank::world])
        self._place = self._here()
        return rows

    def state(self) -> dict[str, Any]:
        # and not the place of the pass, which an interrupted `next` may have moved
        return dict(self._place)

    def restore(self, state: Mapping[str, Any]) -> None:
        if state.keys() != self._place.keys():
            raise _other_data("data in memory", "a stream")
        self._number, self._given = state["pass"], state["given"]
        self._pass, rows = self._reader.begin(self._number), torch.empty(0)
        while rows is not None and self._pass.items < state["items"]:
            rows = self._pass.next()
        if rows is None or self._pass.checksum != state["checksum"]:
            raise ValueError(
                f"data did not repeat themselves: pass {self._number} over them gave other rows "
                f"in its first {state['items']} items than before; resume with the same data, "
                "drawn with no random state but the global ones of torch, NumPy and Python, or "
                "train anew"
            )
        # an item is read once the one before is used up: the rows left are of the last item
        self._left = rows[len(rows) - state["left"] :]
        self._place = self._here()

    def _here(self) -> dict[str, Any]:
        """Return the present place in the stream, in the types of JSON."""
        return {
            "pass": self._number,
            "items": self._pass.items,
            "left": len(self._left),
            "checksum": self._pass.checksum,
            "given": self._given,
        }

    def _read(self) -> Tensor:
        """Read the next item's rows, from the next pass if this one has ended."""
        while True:
            rows = self._pass.next()
            if rows is not None and len(rows) > 0:
                return rows
            if rows is None and self._pass.kept == 0:
                raise ValueError(
                    f"data ended early: after {self._given} rows, pass {self._number} over the "
                    f"DataLoader gave {self._pass.read}, and none of them to train on; it must "
                    "give its rows again each time it is iterated, so let the dataset's __iter__ "
                    "begin anew"
                )
            if rows is None:
                self._number, self._given = self._number + 1, self._given + self._pass.read
                self._pass = self._reader.begin(self._number)


def _other_data(found: str, given: str) -> ValueError:
    return ValueError(
        f"state is of {found}, but data are {given}; resume with the data that the training was "
        "begun with"
    )


def _held_count(fraction: float, rows: int) -> int:
    """Return how many of `rows` are held out: at least one, and never all."""
    return min(max(1, round(fraction * rows)), max(1, rows - 1))


def _fingerprint(rows: Tensor, event_shape: torch.Size) -> str:
    form = (len(rows), tuple(event_shape), str(rows.dtype))
    digest = hashlib.sha256(repr(form).encode())
    digest.update(row_bytes(rows))
    return digest.hexdigest()
