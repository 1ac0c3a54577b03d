"""Networks: a residual MLP, and the preconditioning that makes a score of any trunk (floor 1).

A trunk is any `nn.Module` called as ``network(u, noise)``: u, (n, *event_shape), holds points
divided by √(σ² + σ_d²), so that they have about unit spread; noise, (n,), holds ln σ / 4. It
returns one tensor of u's shape, or two where the diagonal of s2 is learned as well.

Preconditioning after Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
Models", NeurIPS 2022, in a form whose s1 does not grow with 1/σ.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ozaki.shapes import Float

# measured on 2-d mixtures: a third off s1's squared error against torch's own; 10-d is indifferent
STEM_GAIN = 3.0


class ResidualMLP(nn.Module):
    """A multilayer perceptron with residual blocks, h ← h + W₂ SiLU(W₁ SiLU(h)).

    The output layer begins at zero, so that training begins at the Gaussian the preconditioning
    stands for.

    Args:
        dim: D, the number of entries of one point.
        width: units of a hidden layer.
        depth: number of residual blocks.
    """

    def __init__(self, dim: int, width: int = 128, depth: int = 2):
        super().__init__()
        self.stem = nn.Linear(dim, width)
        # a bias while σ is fixed; it lets one trunk serve many σ
        self.noise = nn.Linear(1, width, bias=False)
        self.blocks = nn.ModuleList(
            nn.ModuleList((nn.Linear(width, width), nn.Linear(width, width))) for _ in range(depth)
        )
        self.head = nn.Linear(width, dim)
        # wide: a score bends over a distance of σ, less than the spread of the points
        nn.init.normal_(self.stem.weight, std=STEM_GAIN / dim**0.5)
        nn.init.normal_(self.stem.bias, std=STEM_GAIN)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, u: Float[Tensor, "n *event"], noise: Float[Tensor, " n"]) -> Tensor:
        """One tensor of the shape of `u`, (n, *event_shape)."""
        h = self.stem(u.flatten(1)) + self.noise(noise.unsqueeze(-1))
        for inner, outer in self.blocks:  # pyright: ignore[reportGeneralTypeIssues]
            h = h + outer(silu(inner(silu(h))))
        return self.head(silu(h)).reshape(u.shape)


class TwoHeads(nn.Module):
    """Two trunks side by side: s2 learns without disturbing s1.

    Args:
        first, second: the trunks of s1 and of diag s2.
    """

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first = first
        self.second = second

    def forward(
        self, u: Float[Tensor, "n *event"], noise: Float[Tensor, " n"]
    ) -> tuple[Tensor, Tensor]:
        """The outputs of both trunks, each of the shape of `u`."""
        return self.first(u, noise), self.second(u, noise)


def default_network(dim: int, heads: int, width: int, depth: int) -> nn.Module:
    """One residual MLP a head: s1 alone (1), or s1 and diag s2 (2)."""
    trunks = [ResidualMLP(dim, width, depth) for _ in range(heads)]
    return trunks[0] if heads == 1 else TwoHeads(*trunks)


class ScoreNetwork(nn.Module):
    """s1 and diag s2 of p_σ from a trunk F, G, with c² = 1/(σ² + σ_d²) and v = x − centre.

    s1 = −c² v + c² σ_d F(c v), which is exact at F = 0 for an isotropic normal of standard
    deviation σ_d, and needs outputs of order one for every σ. For s2, with t = t₀ + σ² c² G,

        σ² s2 = t where t ≥ −½, else ½ exp(2t + 1) − 1,

    so that the posterior variance C = 1 + σ² s2 is positive everywhere and s2 has a continuous
    slope; t₀ makes G = 0 the same normal. In the upper branch s2 = t/σ² is never formed through
    C, whose difference from 1 cancels at small σ.

    Args:
        network: the trunk; the module's docstring says how it is called.
        event_shape: the shape in which the trunk sees a point.
        sigma: σ, the standard deviation of the noise.
        heads: 1 for s1 alone, 2 for s1 and diag s2.
        centre: subtracted from the points.
        spread: σ_d, the standard deviation of the data; 1 where they are standardised.
    """

    def __init__(
        self,
        network: nn.Module,
        event_shape: torch.Size,
        sigma: float,
        heads: int,
        centre: float = 0.0,
        spread: float = 1.0,
    ):
        super().__init__()
        self.network = network
        self.event_shape = torch.Size(event_shape)
        self.sigma = sigma
        self.heads = heads
        self.centre = centre
        self.spread = spread
        self._c2 = 1 / (sigma**2 + spread**2)
        variance = spread**2 * self._c2  # C of the normal
        t0 = variance - 1 if variance >= 0.5 else 0.5 * (math.log(2 * variance) - 1)
        self._k0 = -self._c2 if variance >= 0.5 else t0 / sigma**2

    def forward(self, x: Float[Tensor, "*batch dim"]) -> tuple[Tensor, Tensor | None]:
        """s1 and diag s2 (None with one head) at x, each (*batch, D)."""
        v = x - self.centre
        first, second = self.trunk(v * math.sqrt(self._c2))
        s1 = self._c2 * (self.spread * first - v)
        if second is None:
            return s1, None
        k = self._k0 + self._c2 * second
        t = self.sigma**2 * k
        # the clamp keeps the branch not taken finite, else its zero times infinity is NaN
        low = (0.5 * torch.exp(2 * t.clamp_max(-0.5) + 1) - 1) / self.sigma**2
        return s1, torch.where(t >= -0.5, k, low)

    def trunk(self, u: Float[Tensor, "*batch dim"]) -> tuple[Tensor, Tensor | None]:
        """The raw outputs of the trunk at u = c v, flat: F and G, each (*batch, D)."""
        points = u.reshape(-1, *self.event_shape)
        noise = points.new_full((points.shape[0],), math.log(self.sigma) / 4)
        outputs = self.network(points, noise)
        if self.heads == 1:
            return outputs.reshape(u.shape), None
        first, second = outputs
        return first.reshape(u.shape), second.reshape(u.shape)

    def check(self, like: Tensor) -> None:
        """Call the trunk once on two points of the dtype and device of `like`.

        Raises:
            ValueError: it fails, or what it returns is not what the number of heads asks for.
        """
        u = torch.zeros(2, *self.event_shape, dtype=like.dtype, device=like.device)
        noise = u.new_full((2,), math.log(self.sigma) / 4)
        name = type(self.network).__name__
        call = f"network(u, noise) with u of shape {tuple(u.shape)} and noise of shape (2,)"
        was_training = self.network.training
        try:
            with torch.no_grad():
                # in eval mode, so that the check leaves no trace in running averages
                outputs: Any = self.network.eval()(u, noise)
        except Exception as error:
            raise ValueError(f"network must accept {call}, but {name} raised: {error}") from error
        finally:
            self.network.train(was_training)
        parts = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        found = [tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in parts]
        if found != [tuple(u.shape)] * self.heads or (self.heads == 1 and parts is outputs):
            wanted = {
                1: "one tensor of u's shape (curvature=None learns s1 alone)",
                2: 'a pair of tensors of u\'s shape, for s1 and s2 (curvature="diagonal"); pass '
                "curvature=None to learn s1 alone",
            }[self.heads]
            raise ValueError(
                f"network must return {wanted}, but {call} gave {name} output(s) of "
                f"{', '.join(map(str, found))}"
            )
