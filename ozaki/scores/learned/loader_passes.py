"""`Reader` and `Pass` read a DataLoader in passes that check rows and can be repeated.

Rows that are held out are left out. A loader draws from global random states of its own, which are
seeded at every pass, so that a place in a pass can be found again by reading up to it.
"""

import hashlib
import math
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from ozaki.foundation import validation

_END = object()
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Reader:
    """A DataLoader, what its items must be, and which rows of them are held out.

    Attributes:
        event_shape: the shape of one row, once one was read.
        dtype: of the rows, once one was read.

    Args:
        loader: its items are tensors (batch, *event_shape) or tuples that begin with one.
        seed: of the first pass; each pass has its own.

    Raises:
        ValueError: a loader that gives each process other rows, or rows in no fixed order.
    """

    def __init__(self, loader: DataLoader[Any], seed: int):
        if any(isinstance(s, DistributedSampler) and s.num_replicas > 1 for s in _samplers(loader)):
            raise ValueError(
                "data must be a DataLoader that gives every process all rows, of which each takes "
                "its share, but it had a DistributedSampler; leave it out"
            )
        if loader.num_workers > 1 and not loader.in_order:
            raise ValueError(
                "data must come in one order, but were a DataLoader with in_order=False, whose "
                "order differs from run to run; leave it at True"
            )
        self.loader = loader
        self.event_shape = torch.Size()
        self.dtype: torch.dtype | None = None
        self._seed = seed
        self._limits: dict[bytes, float] = {}
        self._keys = torch.empty(0, dtype=torch.int64)

    def begin(self, number: int) -> "Pass":
        """Begin pass `number` over the loader, counted from 0."""
        return Pass(self, self._seed + number)

    def peek(self, most: int) -> tuple[Tensor, int]:
        """Return the first rows of the first pass, at most `most`, (n, D), and the number read."""
        first, rows, read = self.begin(0), torch.empty(0, 0), 0
        while read < most and (item := first.next()) is not None:
            if read == 0:
                rows = item.new_empty(most, item.shape[1])  # memory is taken as it is filled
            part = item[: most - read]
            rows[read : read + len(part)] = part
            read += len(part)
        return rows[:read], first.read

    def hold(self, held: Tensor, read: Tensor) -> None:
        """Leave out the rows `held`, which were among those `read`, in the passes that begin now.

        They are known again by their content, of which other rows may be copies. A row that stood
        once among those read is left out wherever it comes. Rounded data hold many copies, and to
        leave out all would leave holes: of them, a pass leaves out as many as were held, and which
        ones does not matter. Under a sampler that draws with replacement a copy is likely the held
        row itself, and all are left out.
        """
        seen = Counter(_digest(row) for row in row_bytes(read))
        count = Counter(_digest(row) for row in row_bytes(held))
        again = any(getattr(s, "replacement", False) for s in _samplers(self.loader))
        self._limits = {d: math.inf if again or seen[d] == 1 else n for d, n in count.items()}
        self._keys = _keys(held)

    def unheld(self, rows: Tensor, left_out: Counter[bytes]) -> Tensor:
        """Return which rows (n, D) stay in a pass; the others are added to `left_out`."""
        stay = torch.ones(len(rows), dtype=torch.bool)
        # for nearly all rows only the key is computed
        for i in torch.isin(_keys(rows), self._keys).nonzero().flatten().tolist():
            digest = _digest(row_bytes(rows)[i])
            if left_out[digest] < self._limits.get(digest, 0):
                left_out[digest] += 1
                stay[i] = False
        return stay

    def rows(self, item: Any, where: str) -> Tensor:
        """Check the rows of one item, and return them as (n, D) on the CPU."""
        first = item[0] if isinstance(item, (tuple, list)) and len(item) > 0 else item
        if not isinstance(first, Tensor):
            kind = type(item).__name__ + ("" if first is item else f" of {type(first).__name__}")
            raise ValueError(
                "data must be a DataLoader whose items are tensors or tuples that begin with one, "
                f"but {where} was a {kind}; choose the tensor in a collate_fn"
            )
        if not first.is_floating_point():
            raise ValueError(
                f"data must be floating-point, but {where} had dtype {first.dtype}; if these are "
                "measurements, convert them in the dataset or in a collate_fn"
            )
        if first.ndim < 2 or first.numel() == 0:
            raise ValueError(
                "data must come in items of shape (batch, *event_shape) that are not empty, but "
                f"{where} had shape {tuple(first.shape)}; give the DataLoader a batch_size, and "
                "one variable a last dimension of size 1"
            )
        if self.dtype is None:
            self.dtype, self.event_shape = first.dtype, first.shape[1:]
        if first.shape[1:] != self.event_shape or first.dtype != self.dtype:
            raise ValueError(
                f"data must keep one shape and dtype, {tuple(self.event_shape)} and {self.dtype}, "
                f"but {where} had rows of {tuple(first.shape[1:])} and {first.dtype}; make them "
                "equal in the dataset or in a collate_fn"
            )
        validation.finite(f"data ({where})", validation.wide(f"data ({where})", first))
        return first.detach().cpu().reshape(len(first), -1).contiguous()


class Pass:
    """One pass over a loader.

    Passes with equal seeds give equal rows, if the loader's rows depend on no random state but the
    global ones of torch on the CPU, NumPy and Python.

    Attributes:
        items: read so far.
        read: rows in them.
        kept: rows of them that are not held.
        checksum: of all of them.
    """

    def __init__(self, reader: Reader, seed: int):
        self.items, self.read, self.kept, self.checksum = 0, 0, 0, 0
        self._reader, self._seed = reader, seed
        self._iterator: Iterator[Any] | None = None
        self._random: tuple[Any, ...] | None = None
        self._left_out: Counter[bytes] = Counter()

    def next(self) -> Tensor | None:
        """Return the next item's rows that are not held, perhaps none; None at the end."""
        with self._apart():
            if self._iterator is None:
                self._iterator = self._begin()
            item = self._item(self._iterator)
        if item is _END:
            return None
        rows = self._reader.rows(item, f"item {self.items} of a pass")
        stay = self._reader.unheld(rows, self._left_out)
        self.checksum = zlib.crc32(row_bytes(rows), self.checksum)
        self.items += 1
        self.read += len(rows)
        self.kept += int(stay.sum())
        return rows if bool(stay.all()) else rows[stay]

    def _item(self, iterator: Iterator[Any]) -> Any:
        """Read the next item; raise a sentence where a worker died."""
        try:
            return next(iterator, _END)
        except (RuntimeError, OSError, EOFError) as error:
            # torch may report a dead worker by any error, and before the worker is gone
            workers = getattr(iterator, "_workers", ())
            if not any(worker.join(0.5) or worker.exitcode for worker in workers):
                raise
            raise RuntimeError(
                f"data could not be read on: a worker of the DataLoader died ({error}), for want "
                "of memory perhaps; use fewer num_workers or smaller items, and train again, from "
                "a checkpoint if there is one"
            ) from error

    def _begin(self) -> Iterator[Any]:
        """Seed the loader's generators and begin to iterate over it."""
        loader = self._reader.loader
        for owner in (loader, *_samplers(loader)):
            generator = getattr(owner, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(self._seed)
        # workers that outlive a pass carry random states out of it, which no replay would find
        if loader.persistent_workers:
            loader._iterator = None
        return iter(loader)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Give the loader global random states of its own, and restore the caller's afterwards."""
        outside = _random_states()
        try:
            if self._random is None:
                _seed_all(self._seed)
            else:
                _set_random_states(self._random)
            yield
        finally:
            self._random = _random_states()
            _set_random_states(outside)


def row_bytes(rows: Tensor) -> Any:
    """Return the bytes (n, ...) of contiguous rows (n, D), of any dtype."""
    return rows.view(torch.uint8).numpy()


def _keys(rows: Tensor) -> Tensor:
    """Hash each row's bits to a number, (n,); different rows seldom have the same."""
    words = rows.view(_WORDS[rows.element_size()])
    chance = torch.Generator().manual_seed(0)
    weights = torch.randint(2**62, (rows.shape[1],), generator=chance) * 2 + 1
    # modulo 2^64; in parts, since an item may be large
    return torch.cat([(part.long() * weights).sum(1) for part in words.split(1024)])


def _digest(row: Any) -> bytes:
    return hashlib.blake2b(row, digest_size=16).digest()


def _samplers(loader: DataLoader[Any]) -> list[Any]:
    inner = getattr(loader.batch_sampler, "sampler", None)
    return [s for s in (loader.sampler, loader.batch_sampler, inner) if s is not None]


# NPY002: datasets do draw from NumPy's global state
def _random_states() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _set_random_states(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    random.setstate(states[2])


def _seed_all(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the devices too
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)
