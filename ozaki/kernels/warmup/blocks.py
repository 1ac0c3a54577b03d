"""These types carry what `Warmup` and `Engine` tell each other.

`Warmup` plans a `Block` of steps. The engine takes them and shows the `Chains`. `Warmup` learns
from them, and answers with a `Change`.
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
    """The questions that warm-up asks of the chains it learns from.

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
        """The h of each chain, in the metric."""

    @abstractmethod
    def to_x(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Map points of a trail to the coordinates of the law."""

    @abstractmethod
    def curvature_here(self, kind: CurvatureKind | None) -> SymmetricOperator:
        """The law's curvature where the chains are."""


class Block(NamedTuple):
    """A block of steps, as warm-up plans it.

    Attributes:
        spec: proposal, curvature and correction of all of them.
        weights: the proposal as a `blend`, where a compiled loop is to serve all that compete.
        options: of all of them.
        scales: what h is multiplied by, one a step; there are as many steps as scales.
        trials: which candidate is tried at how many halvings of h, one a step.
        short: whether the step is a short one, from which nothing is learned of the others.
        excused: whether the step may end at a far lower density without being a divergence, one a
            step.
    """

    spec: KernelSpec
    weights: tuple[float, float] | None
    options: StepOptions
    scales: list[float]
    trials: list[Trial]
    short: list[bool]
    excused: list[bool]

    def judged(self, trail: Trail) -> Trail:
        """Return the trail, in which an excused step diverged only if its proposal was not finite.

        Where some steps are short, an ordinary step that would end at a far lower density is only
        refused. It is a divergence if the short ones cannot be taken either.
        """
        excused = self.excused[: len(trail.position)]
        if not any(excused):
            return trail
        info = trail.info
        mask = info.diverging.new_tensor(excused).unsqueeze(-1)
        diverging = torch.where(mask, info.broken, info.diverging)
        return trail._replace(info=info._replace(diverging=diverging))


class Change(NamedTuple):
    """The changes to make before the next block; None leaves a thing as it is.

    Attributes:
        step_size: h of each chain, (chains, 1).
        metric: L, the factor of the metric.
        frozen: the one curvature for all points, in the coordinates of the law.
        anew: whether the score is expanded anew where the chains are, as in a new metric.
    """

    step_size: Tensor | None = None
    metric: Tensor | None = None
    frozen: SymmetricOperator | None = None
    anew: bool = False
