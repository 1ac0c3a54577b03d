"""`Contest` chooses the step that moves the chains furthest.

A kernel class declares the steps that may take the place of its own. Warm-up tries all of them and
keeps the one whose jumps are the longest for what they cost.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.kernels.proposals import Proposal, as_blend, langevin, ornstein_uhlenbeck
from ozaki.scores.base import CurvatureKind

Trial = tuple[int, int]
"""(candidate, halvings of h)."""

LANGEVIN_TARGET = 0.574
"""Optimal acceptance of adjusted Langevin in high dimension (Roberts & Rosenthal, 1998)."""

CHEAPER: dict[str | None, float] = {None: 1.0, "diagonal": 0.9, "low_rank": 0.4, "dense": 0.4}
"""The share of a curvature step's jump beyond which a cheaper step without curvature wins."""

HESSIANS = 4.0
"""That share is this number over D for a dense curvature in many dimensions: it takes D products,
and D³ for its roots. At D = 100 a step with it cost as much as 30 steps without, compiled 77."""


class Candidate(NamedTuple):
    """A step that warm-up may settle on in place of the kernel's own.

    It reads the gradient and no curvature, and walks in the metric that warm-up finds.

    Attributes:
        proposal: points, their expansion and a step size → a Gaussian step.
        target: the acceptance it seeks if it is settled on; None for the kernel's own.

    Example:
        >>> Candidate(langevin, target=0.574).target
        0.574
    """

    proposal: Proposal
    target: float | None = None


LANGEVIN = Candidate(langevin, LANGEVIN_TARGET)
"""Langevin's step in the metric."""

ORNSTEIN_UHLENBECK = Candidate(ornstein_uhlenbeck)
"""Ozaki's step with the pooled covariance of the chains for its curvature."""


def handicap(curvature: CurvatureKind | None, frozen: bool, dim: int) -> float:
    """The share of the own step's jump beyond which a candidate wins, since it costs less.

    Args:
        curvature: the kind that the kernel's own step reads.
        frozen: whether one curvature serves all points, which then costs nothing.
        dim: D.
    """
    if frozen:
        return 1.0
    share = CHEAPER[curvature]
    return min(share, HESSIANS / dim) if curvature == "dense" else share


class JumpDistances:
    """The mean squared jump of every candidate at h, h/2, …, h/16.

    Acceptance alone is blind where the law has several modes: a long Ozaki step is accepted because
    it lands in the mode it left. The jump sees the crossings. Every other warm-up step tries one of
    the alternatives, in turn.

    Args:
        candidates: how many steps compete; the first is the kernel's own.
        handicap: a candidate wins if it moves further than this share of the kernel's own step.

    Source: Pasarica & Gelman, "Adaptively scaling the Metropolis algorithm using expected squared
    jumped distance" (2010).
    """

    HALVINGS = 4
    SHORTER = 1.1  # a shorter step must move clearly further: near the best the jump is flat
    ENOUGH = 100  # jumps of every choice, over the chains, to settle on one before the last window

    def __init__(self, candidates: int = 1, handicap: float = 0.9) -> None:
        self._handicap = handicap
        self._choices = [(c, k) for c in range(candidates) for k in range(self.HALVINGS + 1)]
        self._count = torch.zeros(len(self._choices), dtype=torch.int64)
        self._sum: Tensor | None = None  # sums of squared jumps, (choices, D)

    def trial(self, step: int) -> Trial:
        """Return what warm-up step `step` tries: (0, 0) at even ones, else the others in turn."""
        others = len(self._choices) - 1
        return self._choices[0 if step % 2 == 0 else 1 + (step // 2) % others]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The sums of the jumps so far."""
        count = {"count": self._count}
        return count if self._sum is None else {**count, "sum": self._sum}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Resume from what `tensors` gave."""
        self._count, self._sum = tensors["count"].cpu(), tensors.get("sum")

    def add(self, trial: Trial, jump: Float[Tensor, "dim"]) -> None:
        """Fold in the squared jump of one step, in the metric, (D,)."""
        if self._sum is None:
            self._sum = jump.new_zeros(len(self._choices), len(jump))
        place = self._choices.index(trial)
        self._sum[place] += jump
        self._count[place] += 1

    def enough(self, chains: int) -> bool:
        """Say whether every choice was tried often enough to be judged now."""
        return int(self._count.min()) * chains >= self.ENOUGH

    def best(self) -> Trial:
        """The (candidate, halvings) whose slowest coordinate moves furthest for what it costs.

        In the metric all coordinates have the same spread, so their jumps compare.
        """
        if self._sum is None:
            return 0, 0
        slowest = self._sum.cpu().min(-1).values / self._count.clamp(min=1)
        earned = dict(zip(self._choices, slowest.tolist(), strict=True))
        own = max((c for c in self._choices if c[0] == 0), key=earned.__getitem__)
        own = own if earned[own] > self.SHORTER * earned[0, 0] else (0, 0)
        other = max((c for c in self._choices if c[0]), key=earned.__getitem__, default=own)
        return other if other != own and earned[other] > self._handicap * earned[own] else own


class Contest:
    """The contest: which candidates are tried in a window, and which of them wins.

    Args:
        own: the kernel's own proposal.
        others: what may take its place.

    Attributes:
        candidates: the own step and the others; the winner alone once there is one.
        running: those that are tried in this window.
        jumps: how far they moved in it.
        settled: the place of the winner among all, 0 for the kernel's own.
        halvings: how often the winner's h is halved.
    """

    def __init__(self, own: Proposal, others: tuple[Candidate, ...]):
        self.candidates = (Candidate(own), *others)
        self.settled, self.halvings = 0, 0
        self.open(None)

    def open(self, alone: Candidate | None, handicap: float = 1.0) -> None:
        """Begin a window in which all candidates are tried, or one alone and none is judged."""
        self.running = self.candidates if alone is None else (alone,)
        self.jumps = JumpDistances(len(self.running), handicap)

    def weights(self, place: int) -> tuple[float, float] | None:
        """Write a running step as a `blend`, so that one compiled loop serves all that compete.

        It is None where none competes, or one of them is no `blend`.
        """
        blends = [as_blend(candidate.proposal) for candidate in self.running]
        return None if len(blends) == 1 or None in blends else blends[place]

    def decided(self, chains: int) -> bool:
        """Say whether some candidate is clearly better than the kernel's own step already."""
        several = len(self.running) > 1 and self.jumps.enough(chains)
        return several and self.jumps.best()[0] > 0

    def choose(self, judged: bool) -> Candidate | None:
        """Settle on the step and the fraction of its h that moved furthest.

        Args:
            judged: whether the window may judge; else the kernel's own step wins.

        Returns:
            The winner, or None if it is the kernel's own.
        """
        judged = judged and self.running == self.candidates
        chosen, halvings = self.jumps.best() if judged else (0, 0)
        self.halvings = 0 if chosen else halvings
        return self.settle(chosen)

    def settle(self, chosen: int) -> Candidate | None:
        """Let the candidate at this place win."""
        self.candidates = (self.candidates[chosen],)
        self.settled = chosen or self.settled
        return self.candidates[0] if chosen else None
