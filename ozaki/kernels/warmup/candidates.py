"""A `Candidate` is a step that may take the place of a kernel's own.

A kernel class declares them. Warm-up tries all of them and keeps what moves the chains furthest
for what it costs.
"""

from typing import NamedTuple

from ozaki.kernels.proposals import Proposal, langevin, ornstein_uhlenbeck
from ozaki.scores.base import CurvatureKind

LANGEVIN_TARGET = 0.574
"""Optimal acceptance of adjusted Langevin in high dimension (Roberts & Rosenthal, 1998)."""

COSTS: dict[str | None, float] = {None: 1.0, "diagonal": 1.1, "low_rank": 2.5, "dense": 2.5}
"""The cost of a step that reads a curvature, in steps that read none."""

HESSIANS = 0.25
"""Times D that of a dense one in many dimensions: it takes D products, and D³ for its roots. At
D = 100 a step with it cost as much as 30 steps without, compiled 77."""


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


def cost(curvature: CurvatureKind | None, dim: int) -> float:
    """The cost of a step, in steps that read no curvature.

    Args:
        curvature: the kind that it reads at every point; None for none.
        dim: D.
    """
    found = COSTS[curvature]
    return max(found, HESSIANS * dim) if curvature == "dense" else found
