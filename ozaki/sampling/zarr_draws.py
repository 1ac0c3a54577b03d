"""`ZarrDraws` writes draws to disk block by block, where memory would not hold them all."""

import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ozaki.kernels.engine import Engine
from ozaki.kernels.score_kernel import ScoreKernel
from ozaki.kernels.transition import Trail
from ozaki.sampling.draws import Constrain, Draws, every
from ozaki.sampling.zarr_store import POSTERIOR, STATS, UNCONSTRAINED, ZarrStore
from ozaki.scores.base import Score

NUMBERS, DRAWS = 2**20, 1000  # most numbers in one block of the largest array


class ZarrDraws(Draws):
    """Draws of a run that a Zarr folder holds; memory holds one block of them.

    Args:
        draws: how many a chain.
        kernel: set up for its chains; the first of its processes writes, and all may read.
        path: the folder.
        constrain: positions to what is kept in `posterior`.
    """

    def __init__(self, draws: int, kernel: ScoreKernel, path: Path, constrain: Constrain):
        assert kernel.num_chains is not None, "a batch of chains"
        self._chains, self._score = kernel.num_chains, kernel.target.score
        super().__init__(self._chains, 0, self._score)
        self.room, self._team = draws, kernel.team
        self._sites, self._constrain = kernel.target.sites, constrain
        self._archive = ZarrStore(path, self._team.broadcast(uuid.uuid4().hex))
        self._written, self._synced = 0, 0

    @property
    def position(self) -> Tensor:
        """The draws in the score's own coordinates, read from disk."""
        read = {name: self._read(UNCONSTRAINED, name) for name in self._sites.names}
        return self._sites.flatten(read)

    def spread(self) -> Tensor:
        """Positions evenly spread over the run; the draws between them are not read."""
        step = every(self._chains, self.count)
        read = {n: self._archive.read(UNCONSTRAINED, n, step=step) for n in self._sites.names}
        return self._sites.flatten(read).to(self._score.device)

    def smallest_ess(self) -> float | None:
        """None: while they are written, draws on disk are not read."""
        return None

    def note(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the facts about sites into the store."""
        self._team.on_first(lambda: self._archive.note(facts))

    @property
    def stats(self) -> Mapping[str, Tensor]:
        """The statistics of each draw; each is read from disk when it is asked for."""
        return _Lazy(self._archive, STATS, torch.device("cpu"))

    @property
    def until(self) -> int:
        """The number of draws at which the block is full."""
        return min(self.room, self._base + self._archive.chunk)

    def begin(self, engine: Engine) -> None:
        """Make or find the folder, and make room in it for all draws to come."""
        archive, team = self._archive, self._team
        if not archive.opened:
            if self.count == 0:
                team.on_first(lambda: self._create(engine))
            team.require_equal(
                {"store": archive.seen()}, "keep it on a disk that all of them share"
            )
            archive.find(self.count, self._one(engine))
            team.on_first(archive.sweep)
            self._allocate(engine)
        self._resize()

    def _resize(self) -> None:
        self._team.on_first(lambda: self._archive.resize(self.room))

    def _create(self, engine: Engine) -> None:
        one = self._one(engine)
        largest = max(v.numel() for group in one.values() for v in group.values())
        self._archive.create(one, self.room, max(1, min(DRAWS, NUMBERS // largest)))

    def _one(self, engine: Engine) -> dict[str, dict[str, Tensor]]:
        """Return one draw of each site, by group."""
        x = engine.position.unsqueeze(1)
        one = {
            POSTERIOR: dict(self._constrain(x)),
            UNCONSTRAINED: dict(self._sites.unflatten(x)),
        }
        stats = Draws(self._chains, 1, self._score)._stats
        if not engine.has_density:
            del stats["lp"]
        one[STATS] = stats
        return one

    def _allocate(self, engine: Engine) -> None:
        block = Draws(self._chains, self._archive.chunk, self._score)
        self._position, self._stats = block._position, block._stats
        if not engine.has_density:
            del self._stats["lp"]
        self._base = self.count - self.count % self._archive.chunk

    def take(self, trail: Trail, engine: Engine, thinning: int) -> None:
        """Keep the draws of a trail as `Draws` does, and write a block that is full."""
        super().take(trail, engine, thinning)
        if self.count == self.until:
            self._write()

    def _write(self) -> None:
        if self.count > self._written:
            self._team.on_first(self._put)
            self._written = self.count
        self._base = self.count - self.count % self._archive.chunk

    def _put(self) -> None:
        tensors = self.tensors(self._written)
        x = tensors.pop("position")
        stats = {name.removeprefix("stats."): value for name, value in tensors.items()}
        posterior = self._constrain(x)
        groups = {POSTERIOR: posterior, UNCONSTRAINED: self._sites.unflatten(x), STATS: stats}
        self._archive.write(self._written, groups)

    def sync(self) -> dict[str, Any]:
        """Write the draws made since the last time, and say how a later process finds them."""
        if self.count > self._synced:
            self._write()
            self._team.on_first(lambda: self._archive.sync(self._synced, self.count))
            self._synced = self.count
        return {"run": self._archive.run, "draws": self.count}

    def find(self, where: Mapping[str, Any]) -> None:
        """Resume from what `sync` gave; draws beyond that point are written anew."""
        self._archive = ZarrStore(self._archive.path, where["run"])
        self.count = self._written = self._synced = where["draws"]
        self._fits(self.count)

    def extended(self, more: int, score: Score) -> "ZarrDraws":
        """Return these draws, with room for `more`."""
        self.room = self.count + more
        return self

    def cut(self) -> None:
        """Write the last draws, and drop the room that an interrupted run did not fill."""
        self._write()
        self.room = self.count
        self._resize()

    def leave(self) -> None:
        """Keep the draws of a run that failed; remove the folder where there are none."""
        if not self._team.chief:
            return
        if self.count == 0:
            if self._archive.seen() == self._archive.run:  # made, though perhaps not opened yet
                self._archive.remove()
        elif self._archive.opened and self.count > self._written:
            with suppress(OSError):
                self._put()

    def samples(self, constrain: Constrain) -> Mapping[str, Tensor]:
        """Site → its draws, each read from disk when it is asked for."""
        return _Lazy(self._archive, POSTERIOR, self._score.device)

    def labelled(self, samples: Mapping[str, Tensor]) -> tuple[Any, Any]:
        """The posterior and its statistics, opened and not read."""
        return self._archive.dataset(POSTERIOR), self._archive.dataset(STATS)

    def _read(self, group: str, name: str) -> Tensor:
        return self._archive.read(group, name).to(self._score.device)

    def _parts(self) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        archive = self._archive
        for first in range(0, self.count, archive.chunk):
            stop = min(first + archive.chunk, self.count)
            names = ("diverging", "acceptance_rate")
            yield first, {name: archive.read(STATS, name, first, stop) for name in names}


class _Lazy(Mapping[str, Tensor]):
    """A mapping of a group's arrays, each read from disk when it is asked for and not kept."""

    def __init__(self, archive: ZarrStore, group: str, device: torch.device):
        self._archive, self._group, self._device = archive, group, device

    def __getitem__(self, name: str) -> Tensor:
        if name not in tuple(self):
            raise KeyError(name)
        return self._archive.read(self._group, name).to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive.names(self._group))

    def __len__(self) -> int:
        return len(self._archive.names(self._group))


def draws_of(path: Path | None, draws: int, kernel: ScoreKernel, constrain: Constrain) -> Draws:
    """Make the draws of a run: in memory, or in the folder `path`."""
    if path is None:
        assert kernel.num_chains is not None, "a batch of chains"
        return Draws(kernel.num_chains, draws, kernel.target.score)
    return ZarrDraws(draws, kernel, path, constrain)
