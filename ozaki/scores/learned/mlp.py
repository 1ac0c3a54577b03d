"""Residual MLPs are ozaki's own networks for points that are vectors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ozaki.foundation.shapes import Float
from ozaki.scores.learned.trunk import Traits

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
        self.noise: nn.Module | None = None  # a fixed σ tells a network no more than a bias does
        if conditional:
            self.noise = nn.Sequential(Fourier(width), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = Head(dim, width, rank)
        # wide: a score bends over a distance of σ, less than the spread of the points
        nn.init.normal_(self.stem.weight, std=STEM_GAIN / dim**0.5)
        nn.init.normal_(self.stem.bias, std=STEM_GAIN)

    def features(self, u: Float[Tensor, "n *event"], noise: Float[Tensor, " n"] | None) -> Tensor:
        """Return the features that the heads read, (n, width)."""
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
        """Return a tensor of the shape of `h`."""
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
        """Return a tensor of `shape`, and with a rank also one of (*shape, rank)."""
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
        """Return the embedding, (n, width)."""
        angles = noise * self.frequencies
        return torch.cat((angles.cos(), angles.sin()), -1)[:, : self.width]


class Trunks(nn.Module):
    """A trunk of residual MLPs: one for each order, or one for all with a head for each.

    On a shared trunk the heads of s2 and above read detached features and have a residual block
    of their own, so that they learn without disturbing s1, as separate trunks do.

    Args:
        dim: D.
        order, rank: as of `Heads`.
        width, depth, conditional: as of `ResidualMLP`.
        shared: one trunk for all orders.
    """

    def __init__(
        self,
        dim: int,
        order: int = 2,
        rank: int = 0,
        width: int = 128,
        depth: int = 2,
        conditional: bool = False,
        shared: bool = False,
    ):
        super().__init__()
        self.first = ResidualMLP(dim, width, depth, 0, conditional)
        ranks = [rank, 0, 0][: order - 1]
        self.shared, self.conditional = shared, conditional
        self.architecture = {
            "dim": dim,
            "order": order,
            "rank": rank,
            "width": width,
            "depth": depth,
            "conditional": conditional,
            "shared": shared,
        }
        self.traits = Traits(
            knows_orders=True,
            separates_orders=True,
            # a low rank's columns are learned sooner from random weights
            inherits_features=not shared and not rank,
            reads_noise=conditional,
            lightweight=True,
            known_shapes=True,
        )
        if shared:
            self.rest = nn.ModuleList(
                nn.ModuleList((Block(width), Head(dim, width, r))) for r in ranks
            )
        else:
            self.rest = nn.ModuleList(ResidualMLP(dim, width, depth, r, conditional) for r in ranks)

    def train_orders(self, first: bool, rest: bool) -> None:
        """Let s1, and s2 and above, take gradients or not."""
        self.first.requires_grad_(first)
        self.rest.requires_grad_(rest)

    @torch.no_grad()
    def warm_start(self) -> None:
        """Let separate trunks of s2 and above begin with the features that s1 has learned.

        Which mode a point belongs to is slow to learn, and bears on every order: on a logistic
        mixture of 20 modes in 50-d heads on trunks of their own never left the constant.
        """
        features = {
            name: value
            for name, value in self.first.state_dict().items()
            if not name.startswith("head.")
        }
        for trunk in () if self.shared else self.rest:
            trunk.load_state_dict({**trunk.state_dict(), **features})

    def factor_biases(self) -> Sequence[Tensor]:
        """The biases that the columns of s2's factor begin at, each a view of shape (D, r)."""
        heads = [head for head in self.modules() if isinstance(head, Head) and head.rank]
        return [head.factor.bias.view(-1, head.rank) for head in heads]

    def outputs(
        self, u: Tensor, noise: Tensor | None, orders: tuple[bool, bool]
    ) -> tuple[Tensor | None, ...]:
        """The outputs of the orders asked for; see `forward`."""
        return self(u, noise, orders)

    def forward(
        self,
        u: Float[Tensor, "n *event"],
        noise: Float[Tensor, " n"] | None = None,
        orders: tuple[bool, bool] = (True, True),
    ) -> tuple[Tensor | None, ...]:
        """The outputs of all orders; None for those not asked for.

        Args:
            u, noise: as `preconditioned` says; a trunk of one σ does not read the noise.
            orders: whether s1 is asked for, and whether s2 and above are.
        """
        want_first, want_rest = orders
        if self.shared:
            h = self.first.features(u, noise)
            outputs: list[Tensor | None] = [*self.first.head(h, u.shape)] if want_first else [None]
            for block, head in self.rest if want_rest else ():  # pyright: ignore
                outputs.extend(head(block(h.detach()), u.shape))
            return tuple(outputs)
        outputs = [self.first(u, noise) if want_first else None]
        for trunk in self.rest if want_rest else ():
            found = trunk(u, noise)
            outputs.extend(found if isinstance(found, tuple) else (found,))
        return tuple(outputs)
