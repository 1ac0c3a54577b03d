"""Which losses a trainer forms, and how two states of a network are compared (floor 2)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ozaki.scores import objectives
from ozaki.scores.networks import ScoreNetwork


class LossPlan(NamedTuple):
    """Which losses are formed."""

    family: objectives.Family
    heads: int
    antithetic: bool
    control_variate: bool

    def losses(self, score: nn.Module, x: Tensor, z: Tensor, sigma: float) -> tuple[Tensor, ...]:
        """One loss a sample and head."""
        if self.antithetic and self.heads == 2:
            return objectives.joint_diagonal(
                self.family, score, x, z, sigma, control_variate=self.control_variate
            )
        first = objectives.dsm_antithetic if self.antithetic else objectives.dsm
        one = first(lambda p: score(p)[0], x, z, sigma)
        if self.heads == 1:
            return (one,)
        d2sm = self.family == "d2sm"
        second = objectives.d2sm_diagonal if d2sm else objectives.residual_diagonal
        return one, second(score, x, z, sigma)


class HeldOut(NamedTuple):
    """Held-out losses by head, one a pair, and the size of what each estimates."""

    losses: tuple[Tensor, ...]
    sizes: tuple[float, ...]  # ½E‖s1‖² and E‖s2‖²: what −loss is at the optimum

    @property
    def means(self) -> tuple[float, ...]:
        """The mean loss of each head."""
        return tuple(float(loss.mean()) for loss in self.losses)

    def change(self, other: "HeldOut", weights: tuple[float, ...]) -> tuple[float, float]:
        """How much higher the weighted loss is than another's, and the standard error of that."""
        parts = zip(weights, self.losses, other.losses, self.sizes, strict=False)
        change = torch.stack([w * (mine - its) / size for w, mine, its, size in parts]).sum(0)
        return float(change.mean()), float(change.std() / len(change) ** 0.5)


@torch.no_grad()
def held_out_losses(plan: LossPlan, net: ScoreNetwork, x: Tensor, z: Tensor) -> HeldOut:
    """The losses of `net` at x with noise z, both (n, D)."""
    # always over the pair: plain losses have too much variance to choose by
    losses = plan._replace(antithetic=True).losses(net, x, z, net.sigma)
    s1, s2 = net(x + net.sigma * z)
    sizes = [float(0.5 * s1.square().sum(-1).mean())]
    if s2 is not None:
        sizes.append(float(s2.square().sum(-1).mean()))
    return HeldOut(losses, tuple(sizes))
