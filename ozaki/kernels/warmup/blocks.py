"""These types carry what `Warmup` and `Engine` tell each other.

`Warmup` plans a `Block` of steps. The engine takes them and shows the `Chains`, from which `Warmup`
learns.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.kernels.transition import KernelSpec, StepOptions, Trail
from ozaki.kernels.warmup.tracks import Choice
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

    @abstractmethod
    def curvature_here(self, kind: CurvatureKind | None) -> SymmetricOperator:
        """The law's curvature where the chains are."""


class Block(NamedTuple):
    """A block of steps, as warm-up plans it.

    Attributes:
        spec: the kernel of all of them.
        factor: L of the metric that they are taken in; None for the identity.
        curvature: of trajectories, the −ω² of their steps in the metric, a number or (D,).
        step_size: h of each chain, (chains, 1).
        options: of all of them.
        scales: what h is multiplied by, one a step; there are as many steps as scales.
        lengths: the gradients of each step, above 1 where it is a trajectory of several.
        choices: what is tried at each step.
        short: whether the step is a short one, from which nothing is learned of the others.
        excused: whether the step may end at a far lower density without being a divergence, one a
            step.
    """

    spec: KernelSpec
    factor: Tensor | None
    curvature: float | Tensor
    step_size: Tensor
    options: StepOptions
    scales: list[float]
    lengths: list[int]
    choices: list[Choice]
    short: list[bool]
    excused: list[bool]

    def cut(self, steps: int) -> "Block":
        """Return the block's first steps alone."""
        return self._replace(
            **{name: getattr(self, name)[:steps] for name in self._fields[5:]},
        )

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
