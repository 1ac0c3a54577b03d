"""A residual MLP: ozaki's own network for points that are vectors."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ozaki.foundation.shapes import Float

# measured: 3 was a quarter worse on 2-d mixtures, 0.5 the same on logistic mixtures in 50-d
STEM_GAIN = 1.0

FACTOR_GAIN = 0.3  # B Bᵀ begins small, but not at zero, where it would have no gradient


class ResidualMLP(nn.Module):
    """A multilayer perceptron with gated residual blocks.

    The output layer begins at zero, so that training begins at the Gaussian the preconditioning
    stands for; that of a low-rank factor begins at small constants.

    Args:
        dim: D, the number of entries of one point.
        width: units of a hidden layer.
        depth: number of residual blocks.
        rank: r; with it, a factor of shape (*event_shape, r) is a second output.
        conditional: whether σ varies from call to call: else `noise` is not read.
    """

    def __init__(
        self, dim: int, width: int = 128, depth: int = 2, rank: int = 0, conditional: bool = False
    ):
        super().__init__()
        self.stem = nn.Linear(dim, width)
        self.noise: nn.Module | None = None  # a fixed σ has nothing to say that a bias does not
        if conditional:
            self.noise = nn.Sequential(Fourier(width), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = Head(dim, width, rank)
        # wide: a score bends over a distance of σ, less than the spread of the points
        nn.init.normal_(self.stem.weight, std=STEM_GAIN / dim**0.5)
        nn.init.normal_(self.stem.bias, std=STEM_GAIN)

    def features(self, u: Float[Tensor, "n *event"], noise: Float[Tensor, " n"] | None) -> Tensor:
        """What the heads read, (n, width)."""
        h = self.stem(u.flatten(1))
        if self.noise is not None:
            assert noise is not None
            h = h + self.noise(noise.unsqueeze(-1))
        for block in self.blocks:
            h = block(h)
        return h

    def forward(
        self, u: Float[Tensor, "n *event"], noise: Float[Tensor, " n"] | None = None
    ) -> Any:
        """One tensor of the shape of `u`, (n, *event_shape), or with a rank a pair."""
        outputs = self.head(self.features(u, noise), u.shape)
        return outputs[0] if len(outputs) == 1 else outputs


class Block(nn.Module):
    """h + W₃ (SiLU(W₁ u) ⊙ W₂ u) with u = SiLU(h): the gate says in which mode a point lies.

    Shazeer, "GLU Variants Improve Transformer", 2020.
    """

    def __init__(self, width: int):
        super().__init__()
        self.inner = nn.Linear(width, 2 * width)  # W₁ and W₂ in one product
        self.outer = nn.Linear(width, width)

    def forward(self, h: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        """Of the shape of `h`."""
        gate, value = self.inner(silu(h)).chunk(2, -1)
        return h + self.outer(silu(gate) * value)


class Head(nn.Module):
    """A linear layer on SiLU of the features; with a rank, a second one for the factor."""

    def __init__(self, dim: int, width: int, rank: int = 0):
        super().__init__()
        self.values = nn.Linear(width, dim)
        self.rank = rank
        nn.init.zeros_(self.values.weight)
        nn.init.zeros_(self.values.bias)
        if rank:
            self.factor = nn.Linear(width, dim * rank)
            nn.init.zeros_(self.factor.weight)
            nn.init.normal_(self.factor.bias, std=FACTOR_GAIN / rank**0.5)

    def forward(self, h: Float[Tensor, "n width"], shape: torch.Size) -> tuple[Tensor, ...]:
        """A tensor of `shape`, and with a rank one of (*shape, rank)."""
        h = silu(h)
        values = self.values(h).reshape(shape)
        return (values, self.factor(h).reshape(*shape, self.rank)) if self.rank else (values,)


class Fourier(nn.Module):
    """cos and sin of ln σ / 4 at frequencies from 1 to 100 radians: a fixed embedding."""

    frequencies: Tensor

    def __init__(self, width: int):
        super().__init__()
        half = torch.logspace(0, 2, width // 2 + width % 2)
        self.register_buffer("frequencies", half)
        self.width = width

    def forward(self, noise: Float[Tensor, "n 1"]) -> Float[Tensor, "n width"]:
        """(n, width)."""
        angles = noise * self.frequencies
        return torch.cat((angles.cos(), angles.sin()), -1)[:, : self.width]
