"""What a run keeps (floor 7)."""

from collections.abc import Iterator

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
        self.count = 0
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

    def cut(self) -> None:
        """Drop what an interrupted run did not fill."""
        self.position = self.position[:, : self.count]
        self.stats = {name: value[:, : self.count] for name, value in self.stats.items()}

    def divergences(self) -> Iterator[list[int]]:
        """Per chain, the indices of the draws that diverged."""
        for row in self.stats["diverging"]:
            yield row.nonzero().flatten().tolist()
