"""What a run keeps (floor 7)."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ozaki.checks import plural
from ozaki.kernels.engine import Engine
from ozaki.kernels.transition import Trail
from ozaki.scores.base import Score


class Draws:
    """What a run keeps: positions and per-draw statistics, allocated once, (chains, draws, …).

    Raises:
        ValueError: they do not fit in memory.
    """

    def __init__(self, chains: int, draws: int, score: Score):
        like = {"dtype": score.dtype, "device": score.device}
        self.count, self.room = 0, draws
        try:
            self.position = torch.empty(chains, draws, score.dim, **like)
        except (RuntimeError, TypeError):  # too large for memory, and for the sizes of torch
            raise ValueError(
                f"num_samples × num_chains must fit in memory, but were {draws} × {chains}: in "
                f"{plural(score.dim, 'dimension')} {chains * draws * score.dim:.2g} numbers; draw "
                "fewer, or use thinning"
            ) from None
        self.stats: dict[str, Tensor] = {
            "diverging": torch.zeros(chains, draws, dtype=torch.bool),
            "acceptance_rate": torch.zeros(chains, draws),
            "step_size": torch.zeros(chains, draws),
            "modified_curvature": torch.zeros(chains, draws, dtype=torch.int32),
            "lp": torch.zeros(chains, draws, dtype=torch.float64),
        }
        self._seen: dict[str, Tensor] = {}

    def take(self, trail: Trail, engine: Engine, thinning: int) -> None:
        """Keep every `thinning`-th step of a trail; what is said of a draw is said of all of them.

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
        new = slice(self.count, self.count + made)
        kept = slice(thinning - 1 - before, None, thinning)
        self.position[:, new] = engine.to_x(trail.position[kept]).transpose(0, 1)
        self.stats["diverging"][:, new] = bad[:made].mT > 0
        self.stats["acceptance_rate"][:, new] = rate[:made].mT / thinning
        self.stats["modified_curvature"][:, new] = info.modified[kept].mT.cpu().int()
        self.stats["step_size"][:, new] = engine.step_size
        if trail.log_density is not None:
            self.stats["lp"][:, new] = trail.log_density[kept].mT.cpu().double()
        else:
            self.stats.pop("lp", None)
        self.count += made
        left = before + len(place) - made * thinning
        self._seen = {}
        if left:
            steps = torch.tensor(left)
            self._seen = {"acceptance_rate": rate[made], "diverging": bad[made], "steps": steps}

    def tensors(self, first: int) -> dict[str, Tensor]:
        """The draws from the `first` on."""
        made = slice(first, self.count)
        stats = {f"stats.{name}": value[:, made] for name, value in self.stats.items()}
        return {"position": self.position[:, made], **stats}

    def fill(self, first: int, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave.

        Raises:
            ValueError: there are more of them than there is room for.
        """
        made = slice(first, first + tensors["position"].shape[1])
        if made.stop > self.room:
            raise ValueError(
                f"num_samples must be at least the {made.stop} draws a chain that the checkpoint "
                f"holds, but was {self.room}; raise it, or choose another folder"
            )
        self.position[:, made] = tensors["position"].to(self.position)
        for name in tuple(self.stats):
            if f"stats.{name}" in tensors:
                self.stats[name][:, made] = tensors[f"stats.{name}"]
            else:
                del self.stats[name]
        self.count = made.stop

    def pending(self) -> dict[str, Tensor]:
        """What `take` has folded in since the last draw."""
        return {f"seen.{name}": value for name, value in self._seen.items()}

    def resume(self, seen: Mapping[str, Tensor]) -> None:
        """Go on from what `pending` gave."""
        self._seen = {name.removeprefix("seen."): value for name, value in seen.items()}

    def extended(self, more: int, score: Score) -> "Draws":
        """These draws, with room for `more`."""
        longer = Draws(len(self.position), self.count + more, score)
        longer.fill(0, self.tensors(0))
        return longer

    def cut(self) -> None:
        """Drop what an interrupted run did not fill."""
        self.position = self.position[:, : self.count]
        self.stats = {name: value[:, : self.count] for name, value in self.stats.items()}

    def divergences(self) -> Iterator[list[int]]:
        """Per chain, the indices of the draws that diverged."""
        for row in self.stats["diverging"]:
            yield row.nonzero().flatten().tolist()
