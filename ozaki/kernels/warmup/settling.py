"""`Agreement` tells by R-hat whether the chains of a window of warm-up agree and stay."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float

AGREED = 1.05
"""The largest R-hat of chains that agree. Chance alone gives 1.05 where half a window is worth ten
independent draws a chain."""

HUGE = 1e9  # an R-hat of chains that nothing holds together; JSON has no infinity

STEADY = 2.0
"""The most that any direction is longer in a metric that has settled than in the one before."""


class Agreement:
    """The means and variances of each chain in each half of a window.

    Args:
        like: where the chains are as it begins, (chains, D).
        steps: how many it takes.
    """

    def __init__(self, like: Float[Tensor, "chains dim"], steps: int):
        self._half = steps // 2
        self._origin = like.double().mean(0)
        self._sums = self._origin.new_zeros(2, 2, *like.shape)  # halves; of x and of x²
        self._counts = torch.zeros(2, dtype=torch.int64)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was folded in."""
        half = torch.tensor(self._half)
        return {"origin": self._origin, "sums": self._sums, "counts": self._counts, "half": half}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self._origin, self._sums = tensors["origin"], tensors["sums"]
        self._counts, self._half = tensors["counts"].cpu(), int(tensors["half"])

    def add(self, position: Float[Tensor, "steps chains dim"]) -> None:
        """Fold in the positions of steps."""
        x = position.double() - self._origin
        first = max(0, self._half - int(self._counts.sum()))
        for half, part in enumerate((x[:first], x[first:])):
            self._sums[half] += torch.stack([part.sum(0), part.square().sum(0)])
            self._counts[half] += len(part)

    def rhat(self) -> float:
        """The largest split R-hat of a coordinate; huge of less than two draws a half."""
        if int(self._counts.min()) < 2:
            return HUGE
        n = self._counts.to(self._sums).reshape(2, 1, 1)
        mean, square = (self._sums / n.unsqueeze(1)).unbind(1)
        within = ((square - mean.square()).clamp(min=0) * n / (n - 1)).mean((0, 1))
        between = mean.flatten(0, 1).var(0)
        ratio = 1 - 1 / float(n.mean()) + between / within
        return float(ratio.nan_to_num(1.0, posinf=HUGE).max().sqrt().clamp(max=HUGE))


def steady(old: Float[Tensor, "..."] | None, new: Float[Tensor, "..."] | None) -> bool:
    """Whether two factors of metrics, (D,) or lower triangular (D, D), are nearly the same.

    Args:
        old, new: L of the metrics; None for the identity, or of too few draws.
    """
    if old is None or new is None:
        return False
    if old.ndim == 1:
        ratio = new / old
    else:
        ratio = torch.linalg.svdvals(torch.linalg.solve_triangular(old, new, upper=False))
    return float(ratio.log().abs().max()) <= math.log(STEADY)
