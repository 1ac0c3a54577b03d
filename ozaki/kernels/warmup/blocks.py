"""What passes between warm-up and what walks the chains.

`Warmup` plans a `Block`, shown the `Chains` it learns of it, and answers with a `Change`.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.kernels.transition import KernelSpec, StepOptions, Trail
from ozaki.kernels.warmup.candidates import Trial
from ozaki.linalg import SymmetricOperator
from ozaki.scores.base import CurvatureKind


class Chains(ABC):
    """What warm-up asks of the chains that it learns from.

    Attributes:
        count: how many steps were walked.
    """

    count: int

    @property
    @abstractmethod
    def position(self) -> Float[Tensor, "chains dim"]:
        """Where the chains are, in the coordinates of the law."""

    @property
    @abstractmethod
    def step_sizes(self) -> Float[Tensor, "chains 1"]:
        """H of each chain, in the metric."""

    @abstractmethod
    def to_x(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Points of a trail, in the coordinates of the law."""

    @abstractmethod
    def curvature_here(self, kind: CurvatureKind | None) -> SymmetricOperator:
        """The law's curvature where the chains are."""


class Block(NamedTuple):
    """The next steps.

    Attributes:
        spec: proposal, curvature and correction of all of them.
        weights: the proposal as a `blend`, where a compiled loop is to serve all that compete.
        options: of all of them.
        scales: what h is multiplied by, one a step; there are as many steps as scales.
        trials: which candidate is tried at how many halvings of h, one a step.
        short: whether the step is a short one, from which nothing is learned of the others.
        excused: whether the step may end far below and be no divergence, one a step.
    """

    spec: KernelSpec
    weights: tuple[float, float] | None
    options: StepOptions
    scales: list[float]
    trials: list[Trial]
    short: list[bool]
    excused: list[bool]

    def judged(self, trail: Trail) -> Trail:
        """The trail, in which an excused step diverged only if its proposal was not finite.

        Where some steps are short, that an ordinary one would end far below is no more than a step
        refused: it is a divergence if the short ones cannot be taken.
        """
        excused = self.excused[: len(trail.position)]
        if not any(excused):
            return trail
        info = trail.info
        mask = info.diverging.new_tensor(excused).unsqueeze(-1)
        diverging = torch.where(mask, info.broken, info.diverging)
        return trail._replace(info=info._replace(diverging=diverging))


class Change(NamedTuple):
    """What is changed before the next block; None leaves it as it is.

    Attributes:
        step_size: h of each chain, (chains, 1).
        metric: L, the factor of the metric.
        frozen: the one curvature for all points, in the coordinates of the law.
        anew: whether the chains look again from where they are, as in a new metric.
    """

    step_size: Tensor | None = None
    metric: Tensor | None = None
    frozen: SymmetricOperator | None = None
    anew: bool = False
