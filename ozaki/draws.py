"""What a run keeps (floor 7)."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ozaki.checks import plural
from ozaki.kernels.score_kernel import ScoreKernel
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

    def note(self, kernel: ScoreKernel) -> None:
        """Fold one step in: between kept draws a divergence must not be lost."""
        info, seen = kernel.info, self._seen
        if seen:
            seen["diverging"] |= info.diverging.cpu()
            seen["acceptance_rate"] += info.acceptance.cpu()
            seen["steps"] += 1
        else:
            seen["diverging"] = info.diverging.cpu()
            seen["acceptance_rate"] = info.acceptance.cpu()
            seen["steps"] = torch.ones(())
        seen["modified_curvature"] = info.modified.cpu()

    def keep(self, kernel: ScoreKernel) -> None:
        """Store the position as the next draw."""
        i, seen, engine = self.count, self._seen, kernel.engine
        self.position[:, i] = engine.position
        self.stats["diverging"][:, i] = seen["diverging"]
        self.stats["acceptance_rate"][:, i] = seen["acceptance_rate"] / seen["steps"]
        self.stats["modified_curvature"][:, i] = seen["modified_curvature"]
        self.stats["step_size"][:, i] = engine.step_size
        at = engine.state.expansion
        if at.log_density is not None and at.has_density:
            self.stats["lp"][:, i] = at.log_density.cpu()
        else:
            self.stats.pop("lp", None)
        self._seen = {}
        self.count = i + 1

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
        """What `note` has folded in since the last draw."""
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
