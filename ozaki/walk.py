"""Chains on their way, from warm-up to the last draw, and their place on disk (floor 7.5)."""

import os
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ozaki import checkpoint, progress
from ozaki.draws import Draws
from ozaki.kernels.score_kernel import ScoreKernel, Suspended
from ozaki.shapes import Float

FILE = "chains.safetensors"


class Store:
    """A folder in which a run is kept, block by block, so that it can be taken up again.

    `chains.safetensors` is the state after some step, and `draws-N.safetensors` the draws from the
    N-th on that were made up to it. Each says of which run it is, and is written whole before the
    state that counts it. Draws that are streamed elsewhere are not written here: the state says how
    many of them count.

    Args:
        folder: made if it is missing.
        every: steps from one writing to the next.
        settings: what bears on the draws; a run with others is refused.
    """

    def __init__(self, folder: str | os.PathLike[str], every: int, settings: Mapping[str, Any]):
        self.folder, self.every, self.settings = Path(folder), every, dict(settings)
        self._run = uuid.uuid4().hex
        self._blocks: list[int] = []  # the first draw of each
        self._written = 0

    def save(self, walk: "Walk") -> None:
        """Write where the walk stands, and the draws made since the last time."""
        engine, draws = walk.kernel.engine, walk.draws
        # from here on the run sees what a run taken up from here would see
        engine.refresh()
        streamed = draws.sync()
        walk.kernel.team.first(lambda: self._write(walk, streamed))

    def _write(self, walk: "Walk", streamed: dict[str, Any] | None) -> None:
        engine, draws = walk.kernel.engine, walk.draws
        first, blocks = self._written, self._blocks
        if streamed is None and draws.count > first:
            of = {"run": self._run}
            checkpoint.write(self.folder, draws.tensors(first), {}, of, _name(first))
            blocks = [*blocks, first]
        numbers = {
            "step": walk.step,
            "run": self._run,
            "blocks": blocks,
            "streamed": streamed,
            "engine": engine.numbers(),
        }
        tensors = {**engine.tensors(), **draws.pending()}
        checkpoint.write(self.folder, tensors, self.settings, numbers, FILE)
        self._blocks, self._written = blocks, draws.count

    def restore(self, walk: "Walk") -> bool:
        """Take up the run that is kept here; False where there is none. Under its lock.

        Raises:
            ValueError: a file that is corrupt, or a run with other settings.
        """
        team = walk.kernel.team
        team.first(self._clean)
        kept = self._read(walk)
        team.agree(
            {"the checkpoint": walk.step if kept else "empty"},
            "keep the checkpoint's folder on a disk that all of them share",
        )
        return kept

    def _clean(self) -> None:
        checkpoint.clean(self.folder, FILE)
        for stale in self.folder.glob(".draws-*.safetensors.*"):
            checkpoint.clean(self.folder, stale.stem.removeprefix("."))

    def _read(self, walk: "Walk") -> bool:
        found = checkpoint.read(self.folder, FILE)
        if found is None:
            return False
        tensors, settings, numbers = found
        checkpoint.match(self.folder, settings, self.settings, FILE)
        draws = walk.draws
        if numbers["streamed"] is not None:
            draws.find(numbers["streamed"])
        for first in numbers["blocks"]:
            block = checkpoint.read(self.folder, _name(first))
            if block is None or block[2].get("run") != numbers["run"]:
                raise ValueError(
                    f"{self.folder / _name(first)} must hold draws of the run in {FILE}, but "
                    f"{'is missing' if block is None else 'they are of another run'}; restore it "
                    "from a copy, or choose another folder"
                )
            draws.fill(first, block[0])
        draws.resume({k: t for k, t in tensors.items() if k.startswith("seen.")})
        walk.kernel.restore(tensors, numbers["engine"])
        walk.step, self._run = numbers["step"], numbers["run"]
        self._blocks, self._written = numbers["blocks"], draws.count
        return True


class Walk:
    """A kernel's chains, the draws so far, and the step they are at.

    Args:
        kernel: set up, with its generator.
        draws: where draws go.
        warmup: steps that are not kept.
        thinning: steps a draw.
        hook: as of `MCMC`.
        quiet: no progress bar.
        store: where to keep the run.
    """

    def __init__(
        self,
        kernel: ScoreKernel,
        draws: Draws,
        *,
        warmup: int,
        thinning: int,
        hook: Callable[..., Any] | None,
        quiet: bool,
        store: Store | None = None,
    ):
        self.kernel, self.draws, self.store = kernel, draws, store
        self.warmup, self.thinning = warmup, thinning
        self._hook, self._quiet = hook, quiet
        self.step = 0
        self.suspended: Suspended | None = None  # the chains, between a run and its extension

    def extend(self, more: int) -> dict[str, Tensor]:
        """Make room for `more` draws and wake the chains; where they are."""
        assert self.suspended is not None, "a run comes first"
        params = self.kernel.take_up(self.suspended)
        self.draws = self.draws.extended(more, self.kernel.target.score)
        # an interrupted run may have stopped between two draws
        self.step = self.warmup + self.draws.count * self.thinning
        return params

    def halved(self) -> Float[Tensor, "chains draws dim"]:
        """As many draws again at half the step size; the chains themselves stay where they are.

        A quarter as many steps come first, in which they forget the longer step.
        """
        assert self.suspended is not None, "a run comes first"
        self.kernel.take_up(self.suspended)
        engine, kept = self.kernel.engine, []
        first = self.draws.count * self.thinning // 4
        end, step = first + self.draws.count * self.thinning, 0
        with engine.aside(0.5):
            while step < end:
                trail = engine.walk(end - step)
                step += len(trail.position)
                due = torch.arange(step - len(trail.position), step) - first
                due = (due >= 0) & ((due + 1) % self.thinning == 0)
                kept.append(engine.to_x(trail.position[due]))
        return torch.cat(kept).transpose(0, 1)

    def go(self, params: dict[str, Tensor]) -> None:
        """Walk until there are as many draws as there is room for.

        Ctrl-C after warm-up keeps the draws made so far and says how many there are.

        Args:
            params: where the chains are.
        """
        draws, store = self.draws, self.store
        end = self.warmup + draws.room * self.thinning
        team = self.kernel.team
        quiet = True if self._quiet or not team.chief else None
        bar = progress.bar(total=end, initial=self.step, disable=quiet, mininterval=0.2)
        try:
            with bar:
                self.kernel.place(params)
                if store is not None and self.step == 0:
                    store.save(self)  # where draws are streamed to is named before it is made
                draws.begin(self.kernel.engine)
                while self.step < end:
                    self._advance(self._most(end), bar)
                    if store is not None and (self.step % store.every == 0 or self.step == end):
                        store.save(self)
        except BaseException as error:
            # processes are not interrupted at the same step: together they cannot go on
            kept = isinstance(error, KeyboardInterrupt) and draws.count > 0 and team.size == 1
            if not kept:
                draws.leave()
                raise
            warnings.warn(
                f"interrupted: {draws.count} of {draws.room} draws a chain were made and are kept",
                stacklevel=5,
            )

    def _most(self, end: int) -> int:
        """How many steps may be walked before something else is due."""
        if self._hook is not None:
            return 1
        full = self.warmup + self.draws.until * self.thinning
        stops = [end, self.warmup] if self.step < self.warmup else [end, full]
        if self.store is not None:
            stops.append((self.step // self.store.every + 1) * self.store.every)
        return min(stops) - self.step

    def _advance(self, most: int, bar: Any) -> None:
        kernel = self.kernel
        trail = kernel.walk(most)
        walked, steps = self.step - self.warmup, len(trail.position)
        sampling = walked >= 0
        stage, i = ("Sample", walked // self.thinning) if sampling else ("Warmup", self.step)
        if self._hook is not None:
            params = kernel.params
            self._hook(kernel, params, stage, i)
            kernel.place(params)  # a hook may move the chains
        bar.update(steps)
        if bar.n // 50 > (bar.n - steps) // 50 and not bar.disable:
            bar.set_description(stage, refresh=False)
            bar.set_postfix(kernel.logging(), refresh=False)
        if sampling:
            self.draws.take(trail, kernel.engine, self.thinning)
        self.step += steps


def _name(first: int) -> str:
    return f"draws-{first}.safetensors"
