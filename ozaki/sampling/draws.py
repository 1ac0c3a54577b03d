"""`Draws` holds the positions and the statistics of a run's draws in memory."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ozaki.diagnostics import effective_sample_size
from ozaki.foundation.text import plural
from ozaki.kernels.engine import Engine
from ozaki.kernels.transition import Trail
from ozaki.scores.base import Score

# draws, dimensions and numbers looked at: as many take ArviZ 50 ms, ten times a run
ESS_LEAST, ESS_DIM, ESS_NUMBERS = 20, 100, 200_000
DRAWS_MOST = 100_000  # at most so many draws are read to estimate a share

Constrain = Callable[[Tensor], Mapping[str, Tensor]]
"""Positions (chains, draws, D) → site → what `get_samples` gives for them."""


def every(chains: int, draws: int) -> int:
    """Return n, where each n-th draw of a chain is read to estimate a share of all draws."""
    return max(1, chains * draws // DRAWS_MOST)


class Draws:
    """The draws of a run: positions and per-draw statistics, allocated once, (chains, draws, …).

    Attributes:
        count: how many draws each chain has made.
        room: how many draws each chain will make.

    Raises:
        ValueError: they do not fit in memory.
    """

    def __init__(self, chains: int, draws: int, score: Score):
        like = {"dtype": score.dtype, "device": score.device}
        self.count, self.room = 0, draws
        self._base = 0  # index of the first draw in the tensors below
        try:
            self._position = torch.empty(chains, draws, score.dim, **like)
        except (RuntimeError, TypeError):  # too large for memory, and for the sizes of torch
            raise ValueError(
                f"num_samples × num_chains must fit in memory, but were {draws} × {chains}: in "
                f"{plural(score.dim, 'dimension')} {chains * draws * score.dim:.2g} numbers; draw "
                "fewer, or use thinning"
            ) from None
        self._stats: dict[str, Tensor] = {
            "diverging": torch.zeros(chains, draws, dtype=torch.bool),
            "acceptance_rate": torch.zeros(chains, draws),
            "step_size": torch.zeros(chains, draws),
            "modified_curvature": torch.zeros(chains, draws, dtype=torch.int32),
            "lp": torch.zeros(chains, draws, dtype=torch.float64),
        }
        self._seen: dict[str, Tensor] = {}

    @property
    def position(self) -> Tensor:
        """The draws in the score's own coordinates, (chains, draws, D)."""
        return self._position

    def spread(self) -> Tensor:
        """Positions evenly spread over the run, enough of them to estimate shares."""
        return self._position[:, :: every(len(self._position), self.count)]

    def smallest_ess(self) -> float | None:
        """The smallest bulk ESS of the draws so far, in the score's coordinates.

        None where that would take long, or where there are too few draws.
        """
        made = self.position[:, : self.count]
        if self.count < ESS_LEAST or made.shape[-1] > ESS_DIM or made.numel() > ESS_NUMBERS:
            return None
        each = [effective_sample_size(x.cpu().numpy()) for x in made.unbind(-1)]
        known = [ess for ess in each if math.isfinite(ess)]
        return min(known, default=None)

    def note(self, facts: Mapping[str, Mapping[str, Any]]) -> None:
        """Write the facts about sites beside draws that are on disk; nothing in memory."""

    @property
    def stats(self) -> Mapping[str, Tensor]:
        """The statistics of each draw, by name, (chains, draws)."""
        return self._stats

    @property
    def until(self) -> int:
        """The number of draws up to which steps can be taken at once."""
        return self.room

    def begin(self, engine: Engine) -> None:
        """Prepare for draws of chains that stand at their starting points."""

    def take(self, trail: Trail, engine: Engine, thinning: int) -> None:
        """Keep every `thinning`-th step of a trail; a draw's statistics are those of all its steps.

        Between kept draws a divergence must not be lost.
        """
        info, seen = trail.info, self._seen
        before = int(seen.get("steps", 0))
        place = (before + torch.arange(len(info.acceptance))) // thinning
        made = (before + len(place)) // thinning
        rows = (made + 1, info.acceptance.shape[1])
        rate = torch.zeros(rows, dtype=torch.float32).index_add_(
            0, place, info.acceptance.float().cpu()
        )
        bad = torch.zeros_like(rate).index_add_(0, place, info.diverging.float().cpu())
        if seen:
            rate[0] += seen["acceptance_rate"]
            bad[0] += seen["diverging"]
        new = slice(self.count - self._base, self.count - self._base + made)
        kept = slice(thinning - 1 - before, None, thinning)
        self._position[:, new] = trail.position[kept].transpose(0, 1)
        self._stats["diverging"][:, new] = bad[:made].mT > 0
        self._stats["acceptance_rate"][:, new] = rate[:made].mT / thinning
        self._stats["modified_curvature"][:, new] = info.modified[kept].mT.cpu().int()
        self._stats["step_size"][:, new] = engine.step_size
        if trail.log_density is not None:
            self._stats["lp"][:, new] = trail.log_density[kept].mT.cpu().double()
        else:
            self._stats.pop("lp", None)
        self.count += made
        left = before + len(place) - made * thinning
        self._seen = {}
        if left:
            steps = torch.tensor(left)
            self._seen = {"acceptance_rate": rate[made], "diverging": bad[made], "steps": steps}

    def tensors(self, first: int) -> dict[str, Tensor]:
        """The draws from the `first` on."""
        made = slice(first - self._base, self.count - self._base)
        stats = {f"stats.{name}": value[:, made] for name, value in self._stats.items()}
        return {"position": self._position[:, made], **stats}

    def fill(self, first: int, tensors: Mapping[str, Tensor]) -> None:
        """Restore the draws that `tensors` gave.

        Raises:
            ValueError: there are more of them than there is room for.
        """
        made = slice(first, first + tensors["position"].shape[1])
        self._fits(made.stop)
        self._position[:, made] = tensors["position"].to(self.position)
        for name in tuple(self._stats):
            if f"stats.{name}" in tensors:
                self._stats[name][:, made] = tensors[f"stats.{name}"]
            else:
                del self._stats[name]
        self.count = made.stop

    def _fits(self, count: int) -> None:
        if count > self.room:
            raise ValueError(
                f"num_samples must be at least the {count} draws a chain that the checkpoint "
                f"holds, but was {self.room}; raise it, or choose another folder"
            )

    def sync(self) -> dict[str, Any] | None:
        """Say where the draws so far are on disk; None for draws that are in memory."""
        return None

    def find(self, where: Mapping[str, Any]) -> None:
        """Resume from the draws that `sync` left on disk."""
        raise NotImplementedError

    def pending(self) -> dict[str, Tensor]:
        """The statistics that `take` has gathered since the last draw."""
        return {f"seen.{name}": value for name, value in self._seen.items()}

    def resume(self, seen: Mapping[str, Tensor]) -> None:
        """Resume from the statistics that `pending` gave."""
        self._seen = {name.removeprefix("seen."): value for name, value in seen.items()}

    def extended(self, more: int, score: Score) -> "Draws":
        """Return these draws, with room for `more`."""
        longer = Draws(len(self.position), self.count + more, score)
        longer.fill(0, self.tensors(0))
        return longer

    def cut(self) -> None:
        """Drop the room that an interrupted run did not fill."""
        self._position = self._position[:, : self.count]
        self._stats = {name: value[:, : self.count] for name, value in self._stats.items()}

    def leave(self) -> None:
        """Clean up after a run that failed."""

    def samples(self, constrain: Constrain) -> Mapping[str, Tensor]:
        """Site → draws in the model's own coordinates, (chains, draws, *shape)."""
        return constrain(self.position)

    def labelled(self, samples: Mapping[str, Tensor]) -> tuple[Any, Any]:
        """The groups of ArviZ: the posterior, which is `samples`, and the draws' statistics."""
        return samples, self.stats

    def figures(self) -> list[dict[str, Any]]:
        """Per chain, which draws diverged and the mean acceptance, in Pyro's words."""
        found: list[list[int]] = [[] for _ in self._position]
        total = torch.zeros(len(found), dtype=torch.float64)
        for first, stats in self._parts():
            for chain, draw in stats["diverging"].nonzero().tolist():
                found[chain].append(first + draw)
            total += stats["acceptance_rate"].sum(1, dtype=torch.float64)
        return [
            {"divergences": draws, "acceptance rate": float(sum_) / self.count}
            for draws, sum_ in zip(found, total, strict=True)
        ]

    def _parts(self) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        """Yield the statistics part by part, each with the index of its first draw."""
        yield 0, self.stats
