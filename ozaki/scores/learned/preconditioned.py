"""`ScoreNetwork` turns the outputs of any network into the scores of p_σ: preconditioning.

The network inside is called the trunk. It is any `nn.Module` that is called as
``network(u, noise)``. Its arguments are the points u, (n, *event_shape), divided by √(σ² + σ_d²) so
that they have about unit spread, and noise, (n,), which holds ln σ / 4. For s1 alone it returns one
tensor of u's shape. Else it returns a tuple: one tensor of u's shape for s1, one for the diagonal
part of s2, with a low rank r one of shape (*u.shape, r) for its factor B, and one of u's shape for
the diagonal of each higher order. `trunk` says what else ozaki asks of its own trunks.

Preconditioning after Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
Models", NeurIPS 2022, in a form whose s1 does not grow with 1/σ.
"""

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ozaki.foundation.shapes import Float
from ozaki.linalg import Diagonal, LowRank, SymmetricOperator
from ozaki.scores.learned.baseline import Baseline
from ozaki.scores.learned.trunk import Trunk, as_trunk

BLOCK = 2**19  # most entries at once without a gradient, for images or a user's network


class Heads(NamedTuple):
    """The heads of a network: which scores it estimates, and in what form.

    Attributes:
        order: of the highest score, 1 to 4; orders 3 and 4 are diagonals.
        rank: of the low-rank part of s2; 0 is the diagonal alone.
        signed: whether the low-rank part may be negative as well.
    """

    order: int = 2
    rank: int = 0
    signed: bool = True

    def shapes(self, u: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The shapes of the trunk's outputs for points of shape `u`."""
        shapes = [u] * self.order
        return [*shapes[:2], (*u, self.rank), *shapes[2:]] if self.rank else shapes


class Outputs(NamedTuple):
    """Scores of p_σ at x.

    Attributes:
        s1: (*batch, D).
        s2: a `Diagonal` or `LowRank` operator, or None where s1 alone was learned.
        higher: the diagonals of s3, s4, each (*batch, D).
    """

    s1: Tensor
    s2: SymmetricOperator | None
    higher: tuple[Tensor, ...] = ()


class ScoreNetwork(nn.Module):
    """s1, s2 and higher diagonals of p_σ from a trunk F, G, B, H, with c² = 1/(σ² + σ_d²).

    With v = x − centre, s1 = −c² v + c² σ_d F(c v), which is exact at F = 0 for an isotropic normal
    of standard deviation σ_d, and needs outputs of order one for every σ. The diagonal part a of
    s2 = diag(a) + c² B diag(e) Bᵀ is, with t = t₀ + σ² c² G,

        σ² a = t where t ≥ −½, else ½ exp(2t + 1) − 1,

    so that 1 + σ² a is positive everywhere and a has a continuous slope; t₀ makes G = 0 the same
    normal. In the upper branch a = t/σ² is never formed through C = I + σ² s2, whose difference
    from the identity cancels at small σ. The weights e are learned numbers of either sign. Where
    the heads are not signed they are 1, B is (1 + σ² a)^½ b/(σ c) with the trunk's b, and C, the
    posterior covariance over σ², is diag(1 + σ² a)^½ (I + b bᵀ) diag(1 + σ² a)^½, positive definite
    by construction: b need not learn to be small where little is left to be known. s3 and s4 are
    c³ H and c⁴ H.

    With a baseline, a normal of another covariance S takes the place of the isotropic one: with
    P = (S + σ² I)⁻¹, s1 = −P (x − mean) + c² σ_d F(c v), t₀ is that of diag(−P), and the columns of
    `Baseline.factor` are added to B. The trunk's points are not whitened: so they made s1 and s2 a
    quarter worse on a 10-d mixture.

    Args:
        network: the trunk; the module's docstring says how it is called.
        event_shape: the shape in which the trunk sees a point.
        sigma: σ, the standard deviation of the noise, or a (low, high) range of it.
        heads: what is estimated.
        centre: subtracted from the points.
        spread: σ_d, the standard deviation of the data; 1 where they are standardised.
        baseline: the normal at which F, G, B = 0, where it is not the isotropic one.
    """

    mixed: torch.dtype | None = None  # the dtype of products in mixed training

    def __init__(
        self,
        network: nn.Module,
        event_shape: torch.Size,
        sigma: float | tuple[float, float],
        heads: Heads,
        centre: float = 0.0,
        spread: float = 1.0,
        baseline: Baseline | None = None,
    ):
        super().__init__()
        self.network = network
        self._trunk = (as_trunk(network),)  # in a tuple, so as not to be registered twice
        self.baseline = baseline
        self.event_shape = torch.Size(event_shape)
        self.sigma = sigma
        self.heads = heads
        self.centre = centre
        self.spread = spread
        self.weights: nn.Parameter | None = None
        if heads.rank and heads.signed:  # half of either sign; see `starting_signs`
            self.weights = nn.Parameter(1.0 - 2.0 * (torch.arange(heads.rank) % 2))

    @property
    def trunk(self) -> Trunk:
        """The network as a `Trunk`, which tells its traits."""
        return self._trunk[0]

    @property
    def conditional(self) -> bool:
        """Whether one network serves a range of σ."""
        return isinstance(self.sigma, tuple)

    def at(self, sigma: float) -> "ScoreNetwork":
        """The same weights at one σ."""
        view = ScoreNetwork(
            self.network,
            self.event_shape,
            sigma,
            self.heads,
            self.centre,
            self.spread,
            self.baseline,
        )
        view.weights = self.weights
        return view.train(self.training)

    @torch.no_grad()
    def depart_from(self, baseline: Baseline) -> None:
        """Begin at another normal; low-rank columns that it has need no noise to grow from."""
        self.baseline = baseline
        if self.weights is not None:
            self.weights.copy_(baseline.signs)
        level = math.prod(self.sigma) ** 0.5 if isinstance(self.sigma, tuple) else self.sigma
        for noise in self.trunk.factor_biases():
            start = baseline.factor(level, (level**2 + self.spread**2) ** -0.5)
            noise *= (start.square().sum(0) < noise.square().sum(0)).to(noise)

    def forward(
        self,
        x: Float[Tensor, "*batch dim"],
        sigma: float | Tensor | None = None,
        orders: tuple[bool, bool] = (True, True),
    ) -> Outputs:
        """The scores at x, (*batch, D).

        Args:
            x: points.
            sigma: σ at each point, a number or (*batch, 1); needed where it is not fixed.
            orders: whether s1 is asked for, and whether s2 and above are.
        """
        if sigma is None:
            assert isinstance(self.sigma, float)
            sigma = self.sigma
        c2 = 1 / (sigma**2 + self.spread**2)
        c = c2**0.5
        base = self.baseline
        v = x - self.centre if self.centre else x
        first, *rest = self.raw_outputs(c * v, sigma, orders)
        if first is None:
            s1 = v
        elif base is None:
            s1 = c2 * (self.spread * first - v)
        else:
            s1 = c2 * self.spread * first + base.score(x, sigma)
        if not rest:
            return Outputs(s1, None)
        a = self._diagonal(rest.pop(0), sigma, c2)
        s2: SymmetricOperator = Diagonal(a)
        if self.heads.rank:
            # c² in the r weights, not in the D × r entries of the factor
            weights = a.new_ones(self.heads.rank) if self.weights is None else self.weights
            factor = rest.pop(0)
            if not self.heads.signed:  # in standard deviations of what the diagonal leaves
                share = (1 + sigma**2 * a).clamp_min(torch.finfo(a.dtype).eps)
                factor = factor * (share.sqrt() / (sigma * c)).unsqueeze(-1)
            if base is not None:
                factor = factor + base.factor(sigma, c)
            s2 = LowRank(a, factor, c2 * weights)
        higher = tuple(c ** (n + 3) * h for n, h in enumerate(rest))
        return Outputs(s1, s2, higher)

    def first(self, x: Float[Tensor, "*batch dim"], sigma: float | Tensor | None = None) -> Tensor:
        """s1 alone, (*batch, D)."""
        return self(x, sigma, (True, False)).s1

    def raw_outputs(
        self, u: Tensor, sigma: float | Tensor, orders: tuple[bool, bool] = (True, True)
    ) -> list[Any]:
        """The raw outputs of the trunk at u = c v, each (*batch, D), the factor (*batch, D, r)."""
        points = u.reshape(-1, *self.event_shape)
        noise = None
        if isinstance(sigma, Tensor):
            noise = (sigma.log() / 4).expand(*u.shape[:-1], 1).reshape(-1).to(points.dtype)
        elif self.trunk.traits.reads_noise:
            noise = points.new_full((points.shape[0],), math.log(sigma) / 4)
        with torch.autocast(u.device.type, self.mixed) if self.mixed else nullcontext():
            whole = self.trunk.traits.lightweight or points.numel() <= BLOCK
            if whole or torch.is_grad_enabled():
                found = self.trunk.outputs(points, noise, orders)
            else:
                found = self._in_blocks(points, noise, orders)
        outputs: list[Any] = [found] if isinstance(found, Tensor) else list(found)
        flat = [u.shape] * len(outputs)
        if self.heads.rank and len(outputs) > 2:
            flat[2] = torch.Size((*u.shape, self.heads.rank))
        if not orders[1]:
            outputs = outputs[:1]
        return [
            None if o is None else o.reshape(s).to(u.dtype)
            for o, s in zip(outputs, flat, strict=False)
        ]

    def _in_blocks(self, points: Tensor, noise: Tensor | None, orders: tuple[bool, bool]) -> Any:
        """Call the trunk on some points at a time: its layers are many times as large."""
        rows = max(1, BLOCK // self.event_shape.numel())
        assert noise is not None
        found = [
            self.trunk.outputs(*part, orders)
            for part in zip(points.split(rows), noise.split(rows), strict=True)
        ]
        if isinstance(found[0], Tensor):
            return torch.cat(found)
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def check(self, like: Tensor) -> None:
        """Call the trunk once on two points of the dtype and device of `like`.

        Raises:
            ValueError: it fails, or what it returns is not what the heads ask for.
        """
        if self.trunk.traits.known_shapes:
            return
        u = torch.zeros(2, *self.event_shape, dtype=like.dtype, device=like.device)
        largest = self.sigma[1] if isinstance(self.sigma, tuple) else self.sigma
        noise = u.new_full((2,), math.log(largest) / 4)
        name = type(self.network).__name__
        call = f"network(u, noise) with u of shape {tuple(u.shape)} and noise of shape (2,)"
        was_training = self.network.training
        try:
            with torch.no_grad():
                # in eval mode, so that the check does not change running averages
                outputs: Any = self.network.eval()(u, noise)
        except Exception as error:
            raise ValueError(f"network must accept {call}, but {name} raised: {error}") from error
        finally:
            self.network.train(was_training)
        parts = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        found = [tuple(p.shape) if isinstance(p, Tensor) else type(p).__name__ for p in parts]
        wanted = self.heads.shapes(tuple(u.shape))
        alone = len(wanted) == 1
        if found != wanted or (alone and parts is outputs):
            asked = (
                "one tensor of u's shape (curvature=None learns s1 alone)"
                if alone
                else f"{'a pair' if len(wanted) == 2 else 'a tuple'} of tensors of shapes "
                f"{', '.join(map(str, wanted))}, for s1, then s2 and above; pass curvature=None to "
                "learn s1 alone"
            )
            raise ValueError(
                f"network must return {asked}, but {call} gave {name} output(s) of "
                f"{', '.join(map(str, found))}"
            )

    def _diagonal(self, g: Tensor, sigma: float | Tensor, c2: float | Tensor) -> Tensor:
        """The diagonal part a of s2."""
        k = self._start(sigma, c2) + c2 * g  # t/σ²
        half = 0.5 / sigma**2
        least = -half.to(k.dtype) if isinstance(half, Tensor) else -half
        # two ramps that meet at t = −½: above it the second is zero, and a = k to the last bit
        return k.clamp_min(least) + half * torch.expm1((k / half + 1).clamp_max(0.0))

    def _start(self, sigma: float | Tensor, c2: float | Tensor) -> float | Tensor:
        """t₀/σ²: where G = 0 gives the C of the normal."""
        if self.baseline is not None:
            a, variance = self.baseline.diagonal(sigma)
            return torch.where(variance >= 0.5, a, 0.5 * ((2 * variance).log() - 1) / sigma**2)
        variance = self.spread**2 * c2
        if isinstance(variance, float) and not isinstance(sigma, Tensor):
            return -c2 if variance >= 0.5 else 0.5 * (math.log(2 * variance) - 1) / sigma**2
        assert isinstance(variance, Tensor) and isinstance(c2, Tensor)
        return torch.where(variance >= 0.5, -c2, 0.5 * ((2 * variance).log() - 1) / sigma**2)
