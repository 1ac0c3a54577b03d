"""`Arrival` follows the transient: whether the chains have come home to the typical set.

A chain is home once it moves, and its log density has stopped rising by more than it wanders. At
the end of the transient a chain that is not home, and whose density lies far below that of all the
chains that are, is hopeless: it still climbs in a far tail, or cannot move where it began. It goes
on from a chain that is home. A chain in a mode of its own, however wide, narrow or low, is at rest
there, and stays: the rule takes no weight from any mode that chains can rest in. Nor does it see a
tail so flat that chains rest in it too.

Where a law has no density, only how far each chain has risen is known, and chains cannot be
compared: there a chain is hopeless that has not moved at all for as long as is looked back.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ozaki.foundation.shapes import Bool, Float
from ozaki.kernels.transition import Trail

BACK = 8  # steps over which a rise is looked at
LEAST = 12  # steps of a transient that ends early
BELOW = 10.0  # how far below the others a hopeless chain lies, at least


class Arrival:
    """The log densities of the last steps of every chain, or how far it rose, and whether it moved.

    Args:
        like: the chains, (chains, D).
    """

    def __init__(self, like: Float[Tensor, "chains dim"]):
        self._density = like.new_zeros(0, len(like))
        self._moved = like.new_zeros(0, len(like))
        # what a log density wanders by on a normal, and a little
        self._wander = 1 + 2 * math.sqrt(like.shape[-1] / 2)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The records of the last steps."""
        return {"density": self._density, "moved": self._moved}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self._density, self._moved = tensors["density"], tensors["moved"]

    def add(self, trail: Trail, before: Float[Tensor, "chains dim"]) -> None:
        """Fold in steps of the transient.

        Args:
            trail: what they did.
            before: where the chains were.
        """
        density = trail.log_density
        if density is None:  # its rises give it up to what it was where the chain began
            density = self._density[-1:].sum(0) + trail.info.rise.cumsum(0)
        self._density = torch.cat([self._density, density])[-BACK - 1 :]
        # a step shorter than rounding is accepted, and moves nothing
        path = torch.cat([before.unsqueeze(0), trail.position])
        moved = (path[1:] != path[:-1]).any(-1)
        self._moved = torch.cat([self._moved, moved.to(self._moved)])[-BACK:]

    def home(self) -> Bool[Tensor, "chains"]:
        """Say which chains are home."""
        if len(self._density) <= BACK:
            return self._moved.new_zeros(self._moved.shape[-1], dtype=torch.bool)
        rise = self._density[-1] - self._density[0]
        return (rise < self._wander) & (self._moved.sum(0) >= BACK / 4)

    def arrived(self, count: int) -> bool:
        """Say whether the transient may end after `count` steps: all chains are home."""
        return count >= LEAST and count % 4 == 0 and bool(self.home().all())

    def climbing(self, count: int, transient: int, momentum: bool) -> bool:
        """Say whether steps uphill are always taken: with a momentum in the first half alone.

        Always uphill leads past the typical set to where the density is high and the volume small.
        """
        return count < transient / 2 if momentum else True

    def rescued(
        self, position: Float[Tensor, "chains dim"], comparable: bool = True
    ) -> Tensor | None:
        """Return positions in which hopeless chains stand where others do; None where none is.

        Args:
            position: where the chains are.
            comparable: whether the law has a density, by which chains are compared.
        """
        home = self.home()
        if not bool(home.any()):
            return None
        density = self._density[-1]
        if comparable:
            lost = density < density[home].min() - BELOW - 2 * self._wander
        else:
            lost = self._moved.sum(0) == 0
        if not bool(lost.any()):
            return None
        good = home.nonzero().flatten()
        index = torch.arange(len(position), device=position.device)
        index[lost] = good[index[: int(lost.sum())] % len(good)]
        return position[index]
