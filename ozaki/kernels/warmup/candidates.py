"""Which of several steps moves furthest."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float


class JumpRecord:
    """Which step moves furthest: expected squared jumps of each rival proposal at h, h/2, …, h/16.

    Acceptance alone is blind where the law has several modes: a long Ozaki step is accepted because
    it lands in the mode it left. The jump sees the crossings. Every other warm-up step tries one of
    the alternatives, in turn.

    Args:
        rivals: how many proposals compete; the first is the kernel's own.
        handicap: a rival, which needs no curvature, wins if it moves further than this share of
            the kernel's own step.

    Source: Pasarica & Gelman, "Adaptively scaling the Metropolis algorithm using expected squared
    jumped distance" (2010).
    """

    HALVINGS = 4
    SHORTER = 1.1  # a shorter step must move clearly further: near the best the jump is flat
    ENOUGH = 100  # jumps of every choice, over the chains, to settle on one before the last window

    def __init__(self, rivals: int = 1, handicap: float = 0.9) -> None:
        self._handicap = handicap
        self._choices = [(r, k) for r in range(rivals) for k in range(self.HALVINGS + 1)]
        self._count = torch.zeros(len(self._choices), dtype=torch.int64)
        self._sum: Tensor | None = None  # of jumps, (choices, D)

    def trial(self, step: int) -> tuple[int, int]:
        """(rival, halvings of h) for warm-up step `step`: (0, 0) at even ones, else all in turn."""
        others = len(self._choices) - 1
        return self._choices[0 if step % 2 == 0 else 1 + (step // 2) % others]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was folded in."""
        found = {"count": self._count}
        return found if self._sum is None else {**found, "sum": self._sum}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self._count, self._sum = tensors["count"].cpu(), tensors.get("sum")

    def add(self, choice: tuple[int, int], jump: Float[Tensor, "dim"]) -> None:
        """Fold in the squared jump of one step, in the metric, (D,)."""
        if self._sum is None:
            self._sum = jump.new_zeros(len(self._choices), len(jump))
        place = self._choices.index(choice)
        self._sum[place] += jump
        self._count[place] += 1

    def enough(self, chains: int) -> bool:
        """Whether every choice was tried often enough to be judged now."""
        return int(self._count.min()) * chains >= self.ENOUGH

    def best(self) -> tuple[int, int]:
        """The (rival, halvings) whose slowest coordinate moves furthest for what it costs.

        In the metric all coordinates have the same spread, so their jumps compare.
        """
        if self._sum is None:
            return 0, 0
        slowest = self._sum.cpu().min(-1).values / self._count.clamp(min=1)
        earned = dict(zip(self._choices, slowest.tolist(), strict=True))
        own = max((c for c in self._choices if c[0] == 0), key=earned.__getitem__)
        own = own if earned[own] > self.SHORTER * earned[0, 0] else (0, 0)
        rival = max((c for c in self._choices if c[0]), key=earned.__getitem__, default=own)
        return rival if rival != own and earned[rival] > self._handicap * earned[own] else own
