"""`SamplingLoop` takes the steps of a run, from warm-up to the last draw, and saves checkpoints."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ozaki.foundation import progress
from ozaki.foundation.shapes import Float
from ozaki.kernels.score_kernel import ScoreKernel, Suspended
from ozaki.sampling.draws import Draws
from ozaki.sampling.run_checkpoint import RunCheckpoint

LOOKS = 10  # times that the progress bar looks at the draws


class SamplingLoop:
    """A kernel's chains, the draws so far, and the step they are at.

    Args:
        kernel: set up, with its generator.
        draws: where draws go.
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
        thinning: int,
        hook: Callable[..., Any] | None,
        quiet: bool,
        store: RunCheckpoint | None = None,
    ):
        self.kernel, self.draws, self.store = kernel, draws, store
        self.thinning = thinning
        self._hook, self._quiet = hook, quiet
        self.step = 0
        self._ess: float | None = None  # for the progress bar
        self.suspended: Suspended | None = None  # the chains between a run and its extension

    @property
    def warmup(self) -> int:
        """How many steps are not kept."""
        return self.kernel.warmup_total

    @property
    def end(self) -> int:
        """The step at which there are as many draws as there is room for."""
        return self.warmup + self.draws.room * self.thinning

    def extend(self, more: int) -> dict[str, Tensor]:
        """Make room for `more` draws, resume the suspended chains, and return where they are."""
        assert self.suspended is not None, "a run comes first"
        params = self.kernel.take_up(self.suspended)
        self.draws = self.draws.extended(more, self.kernel.target.score)
        # an interrupted run may have stopped between two draws
        self.step = self.warmup + self.draws.count * self.thinning
        return params

    def take_up(self) -> bool:
        """Resume the run that the checkpoint holds; return False where it holds none."""
        step = None if self.store is None else self.store.restore(self.kernel, self.draws)
        self.step = self.step if step is None else step
        return step is not None

    def draws_at_half_step(self) -> Float[Tensor, "chains draws dim"]:
        """Make as many draws again at half the step size, and then put the chains back.

        A quarter as many steps come first, in which they forget the longer step.
        """
        assert self.suspended is not None, "a run comes first"
        self.kernel.take_up(self.suspended)
        engine, kept = self.kernel.engine, []
        first = self.draws.count * self.thinning // 4
        end, step = first + self.draws.count * self.thinning, 0
        with engine.temporarily(0.5):
            while step < end:
                trail = engine.walk(end - step)
                step += len(trail.position)
                due = torch.arange(step - len(trail.position), step) - first
                due = (due >= 0) & ((due + 1) % self.thinning == 0)
                kept.append(trail.position[due])
        return torch.cat(kept).transpose(0, 1)

    def run(self, params: dict[str, Tensor]) -> None:
        """Walk until there are as many draws as there is room for.

        Ctrl-C after warm-up keeps the draws made so far and says how many there are.

        Args:
            params: where the chains are.
        """
        draws, store = self.draws, self.store
        team = self.kernel.team
        quiet = True if self._quiet or not team.chief else None
        bar = progress.bar(total=self.end, initial=self.step, disable=quiet, mininterval=0.2)
        try:
            with bar:
                self.kernel.place(params)
                if store is not None and self.step == 0:
                    store.save(
                        0, self.kernel, draws
                    )  # where draws are streamed to is named before it is made
                draws.begin(self.kernel.engine)
                while self.step < self.end:
                    self._advance(self._most(), bar)
                    done = self.step == self.end
                    if store is not None and (self.step % store.every == 0 or done):
                        store.save(self.step, self.kernel, draws)
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

    def _most(self) -> int:
        """Return how many steps may be taken before a draw is full or a checkpoint is due."""
        if self._hook is not None:
            return 1
        full = self.warmup + self.draws.until * self.thinning
        stops = [self.end, self.warmup if self.step < self.warmup else full]
        if self.store is not None:
            stops.append((self.step // self.store.every + 1) * self.store.every)
        return min(stops) - self.step

    def _advance(self, most: int, bar: Any) -> None:
        """Take at most `most` steps, call the hook, update the bar and keep the draws."""
        kernel = self.kernel
        trail = kernel.walk(most)
        walked, steps = self.step - self.warmup, len(trail.position)
        sampling = walked >= 0
        stage, i = ("Sample", walked // self.thinning) if sampling else ("Warmup", self.step)
        if self._hook is not None:
            params = kernel.params
            self._hook(kernel, params, stage, i)
            kernel.place(params)  # a hook may move the chains
        before = self.draws.count
        if sampling:
            self.draws.take(trail, kernel.engine, self.thinning)
        self.step += steps
        if bar.disable:
            return
        share = max(1, self.draws.room // LOOKS)
        if self.draws.count // share > before // share:
            self._ess = self.draws.smallest_ess()
        bar.total = self.end  # warm-up may end by itself
        bar.update(steps)
        if bar.n // 50 > (bar.n - steps) // 50:
            told = kernel.logging()
            if self._ess is not None:
                told["ESS"] = f"{self._ess:.0f}"
            bar.set_description(stage, refresh=False)
            bar.set_postfix(told, refresh=False)
