"""These types carry what `Warmup` and `Engine` tell each other.

`Warmup` plans a `Block` of steps. The engine takes them and shows the `Chains`, from which `Warmup`
learns.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
        each = {name: part for name, part in self._asdict().items() if isinstance(part, list)}
        return self._replace(**{name: part[:steps] for name, part in each.items()})

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


class Walked:
    """The steps of a turn that has not ended: of the blocks in which one choice is tried.

    A hook or a checkpoint may cut a turn in parts. What is learned from it is learned once it has
    ended, so that sums are rounded alike however it was cut.

    Args:
        like: the chains, (chains, D).
    """

    def __init__(self, like: Float[Tensor, "chains dim"]):
        self.path = like.new_zeros(0, *like.shape)
        self.gradient = self.path
        self._plan = torch.zeros(0, 2, dtype=torch.long)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was walked so far."""
        return {"path": self.path, "gradient": self.gradient, "plan": self._plan}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.path, self.gradient = tensors["path"], tensors["gradient"]
        self._plan = tensors["plan"].cpu()

    def add(self, block: Block, trail: Trail, before: Tensor, running: Sequence[Choice]) -> None:
        """Add steps.

        Args:
            block: that they are of.
            trail: what they did.
            before: where the chains were.
            running: what competes.
        """
        steps = len(trail.position)
        begun = self.path if len(self.path) else before.unsqueeze(0)
        self.path = torch.cat([begun, trail.position])
        if trail.gradient is not None:
            self.gradient = torch.cat([self.gradient, trail.gradient])
        places = [
            -1 if short or choice not in running else running.index(choice)
            for choice, short in zip(block.choices[:steps], block.short, strict=False)
        ]
        added = torch.tensor([places, block.lengths[:steps]]).mT
        self._plan = torch.cat([self._plan, added])

    @property
    def counts(self) -> tuple[int, int]:
        """How many steps, and how many gradients they read."""
        return len(self._plan), int(self._plan[:, 1].sum())

    def judged(self, running: Sequence[Choice]) -> tuple[list[Choice | None], list[int]]:
        """Return the choice of each step, None where it is not judged, and its gradients."""
        places, lengths = self._plan.unbind(1)
        return [None if p < 0 else running[p] for p in places.tolist()], lengths.tolist()
