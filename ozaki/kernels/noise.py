"""`NoiseStream` draws the random numbers of a run ahead, in blocks.

A compiled run takes many steps at once, and another run takes them one by one. Both read the same
block, and so the same numbers. A run that is resumed from a checkpoint finds its place in the
block.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

NUMBERS, STEPS = 2**17, 128  # most numbers in one block


class NoiseBlock(NamedTuple):
    """The noise of some steps.

    Attributes:
        normal: standard normal, (steps, chains, D).
        uniform: on (0, 1), (steps, chains).
        scale: what the step size is multiplied by, (steps,), the same for all chains.
    """

    normal: Tensor
    uniform: Tensor
    scale: Tensor


class NoiseStream:
    """Draws the noise of a batch of chains in blocks, and hands it out by the step.

    Args:
        like: the chains, (chains, D).
        generator: where it comes from; None for torch's global one.
        jitter: j in [0, 1): step sizes are scaled by 1 + j u, u uniform on (−1, 1).
    """

    def __init__(self, like: Tensor, generator: torch.Generator | None, jitter: float = 0.0):
        self._like, self._generator, self._jitter = like.new_empty(0), generator, jitter
        self._shape = like.shape
        self.steps = max(1, min(STEPS, NUMBERS // max(1, like.numel())))
        self._block: NoiseBlock | None = None
        self._place, self._began = 0, self._state()

    def take(self, most: int) -> NoiseBlock:
        """Return the noise of at most `most` steps: those left in the block, and at least one."""
        if self._block is None or self._place == self.steps:
            self._place, self._began = 0, self._state()
            self._block = self._draw()
        end = min(self._place + most, self.steps)
        taken = NoiseBlock(*(part[self._place : end] for part in self._block))
        self._place = end
        return taken

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The generator's state before the block, and the place in it."""
        if self._began is None:
            return {}
        return {"began": self._began, "place": torch.tensor(self._place)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Resume from what `tensors` gave."""
        if self._generator is None or "began" not in tensors:
            return
        self._generator.set_state(tensors["began"].cpu())
        self._began, self._place = self._state(), int(tensors["place"])
        self._block = self._draw() if self._place else None

    def _state(self) -> Tensor | None:
        return None if self._generator is None else self._generator.get_state()

    def _draw(self) -> NoiseBlock:
        """Draw the next block; the order of the calls fixes the draws of a seed."""
        like, (chains, dim) = self._like, self._shape
        options = {"dtype": like.dtype, "device": like.device, "generator": self._generator}
        normal = torch.randn(self.steps, chains, dim, **options)
        uniform = torch.rand(self.steps, chains, **options)
        swing = 2 * torch.rand(self.steps, **options) - 1
        return NoiseBlock(normal, uniform, 1 + self._jitter * swing)
