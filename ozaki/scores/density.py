"""These scores differentiate a density that is written in torch: a function, or a distribution."""

import math
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from ozaki.foundation import validation
from ozaki.foundation.process import isolated_rng, seed_from
from ozaki.foundation.shapes import Float
from ozaki.foundation.torch_modes import ordinary, recordable
from ozaki.foundation.tracing import tracing
from ozaki.scores.base import CurvatureKind, Expansion, Score, dense_up_to
from ozaki.scores.bijections import checked, law_transform, remedy
from ozaki.scores.differentiation import (
    StartSampler,
    draw_from,
    evaluated,
    expand_vectorised,
    finite_start,
    first_line,
    like_start,
    products_vectorised,
    values_vectorised,
)
from ozaki.scores.replays import Replays
from ozaki.scores.supports import support_of
from ozaki.scores.trials import NEAR, agree, changes, no_curvature, untrue_curvature


class LogDensityScore(Score):
    """The score of a log density written in torch, by automatic differentiation.

    Args:
        log_density: one point, of shape `event_shape` → its log density up to a constant, a scalar
            tensor. It is batched by torch.func.vmap: no `.item()`, no branch on values.
        event_shape: the shape of one point.
        start: where chains begin: `(n, generator) → (n, *event_shape)`, or a tensor of points of
            which some are picked; None for uniform(−2, 2).
        dtype: of the points; None for that of `start`, or torch's default.
        device: of the points.

    Raises:
        ValueError: a shape that is none, or a log density that is not a scalar, not differentiable,
            cannot be batched, or changes from call to call.

    Example:
        >>> score = LogDensityScore(lambda x: -0.5 * (x**2).sum(), (2,))
        >>> score.expand(torch.tensor([1.0, -2.0])).gradient
        tensor([-1.,  2.])
    """

    def __init__(
        self,
        log_density: Callable[[Tensor], Tensor],
        event_shape: Sequence[int],
        *,
        start: StartSampler | Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        if not callable(log_density):
            raise ValueError(f"log_density must be callable, but was {log_density!r}")
        self.event_shape = validation.sizes("event_shape", event_shape)
        self.dim = math.prod(self.event_shape)
        like = like_start(start, self.event_shape, dtype, device)
        self.dtype, self.device = like.dtype, like.device
        self.log_density, self._start = log_density, start
        self._shape = self.event_shape  # the shape of the point that log_density is given
        self._replays: Replays | None = None
        self._tried: str | None = None  # the objection to its curvature, if there is one
        self._check()

    @property
    def default_curvature(self) -> CurvatureKind:
        """Dense up to D = 100, diagonal beyond."""
        return dense_up_to(self.dim)

    def expand(
        self, x: Float[Tensor, "*batch dim"], curvature: CurvatureKind | None = None
    ) -> Expansion:
        """Gradient, curvature ("diagonal" or "dense") and log density at `x`, (*batch, D).

        Raises:
            ValueError: a curvature that is not how the gradient changes; it is tried the first time
                that one is asked for.
        """
        self.check(x, curvature)
        if curvature is not None:
            self._check_curvature()
        if self._replays is not None and not tracing():
            return self._replays.expand(self._flat, x, curvature)
        return expand_vectorised(self._flat, x, curvature)

    def settled(self) -> "LogDensityScore":
        """The same score with recordings of its own, for one run.

        Returns:
            Another object with the same law.
        """
        found = copy(self)
        found._replays = Replays()
        return found

    def resettle(self) -> None:
        """Forget what was recorded."""
        if self._replays is not None:
            self._replays.forget()

    def log_prob(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """The log density at `x`, (*batch, D), without its derivatives."""
        return values_vectorised(self._flat, x)

    def start(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """`n` points of finite density and gradient to begin chains from, (n, D).

        Raises:
            ValueError: after 100 tries some still are not finite.
        """
        return finite_start(self._draw, self.expand, n, generator)

    def _flat(self, point: Tensor) -> Tensor:
        return self.log_density(point.reshape(self._shape))

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        like = torch.empty((), dtype=self.dtype, device=self.device)
        return draw_from(self._start, n, generator, self._shape, like)

    def _check_curvature(self) -> None:
        """Refuse a second derivative that is not how the gradient changes."""
        if self._tried is None and not tracing():
            with isolated_rng(0), ordinary():
                near = self._draw(NEAR, torch.Generator().manual_seed(1)).to(self.dtype)
                self._tried = (
                    untrue_curvature(
                        lambda x: expand_vectorised(self._flat, x).gradient,
                        partial(products_vectorised, self._flat),
                        recordable(near.detach()),
                    )
                    or ""
                )
        if self._tried:
            raise ValueError(no_curvature("log_density", self._tried))

    def _check(self) -> None:
        """Evaluate the density, so that an error comes here and not in the middle of a run."""
        with isolated_rng(0), ordinary():
            points = recordable(self._draw(2, torch.Generator().manual_seed(0)).detach())
            point = points[0].clone().requires_grad_()
            with torch.enable_grad():
                value = evaluated(partial(self._flat, point))
            if not isinstance(value, Tensor) or value.ndim > 0:
                kind = type(value).__name__
                was = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise ValueError(
                    f"log_density must return a scalar tensor, but returned a {kind}, {was}, for "
                    f"a point of shape {tuple(self._shape)}; sum it over its dimensions, in torch"
                )
            if not value.requires_grad:
                raise ValueError(
                    "log_density must be differentiable, but its value did not depend on the "
                    "point through torch; write it in torch operations, without .detach(), "
                    ".item() or numpy"
                )
            try:
                batch = expand_vectorised(self._flat, points)
            except Exception as cause:
                raise ValueError(
                    f"log_density could not be batched by torch.func.vmap ({first_line(cause)}); "
                    "write it without .item(), branches on values and random numbers"
                ) from cause
            change = changes(self._evaluate, points)
            if change is not None:
                raise ValueError(
                    f"log_density must be a function of the point alone, but {change}; leave out "
                    "what is random or remembers"
                )
            assert batch.log_density is not None
            if not agree(batch.log_density[0], value.detach().to(points)):
                raise ValueError(
                    "log_density must be the same batched by torch.func.vmap and alone, but gave "
                    f"{float(batch.log_density[0]):.6g} and {float(value.detach()):.6g}; "
                    "mend the vmap rule of what it calls"
                )

    def _evaluate(self, points: Tensor) -> Tensor:
        """Return log density and gradient at points (n, D), in one tensor."""
        found = expand_vectorised(self._flat, points)
        assert found.log_density is not None
        return torch.cat([found.log_density.unsqueeze(-1), found.gradient], -1)


class DistributionScore(LogDensityScore):
    """The score of a torch or Pyro distribution in unconstrained coordinates u.

    log p(u) = log p(T(u)) + log|det ∂T/∂u|, T = biject_to(support). With a batch shape it is the
    joint law of all members.

    Args:
        distribution: a continuous distribution; it is copied, not changed.

    Attributes:
        transform: T, unconstrained → constrained.
        event_shape: batch and event shape of the constrained value.
        unconstrained_shape: that of u, whose product is D (fewer than the value's for a simplex).

    Raises:
        ValueError: not a distribution, a discrete one, or one whose support has no bijection.

    Source: Kucukelbir et al. (2017), Automatic differentiation variational inference, of which it
    is the transformation of constrained variables.

    Example:
        >>> DistributionScore(torch.distributions.Dirichlet(torch.ones(3))).dim
        2
    """

    def __init__(self, distribution: Distribution):
        if not isinstance(distribution, Distribution):
            raise ValueError(
                f"distribution must be a distribution, but was {type(distribution).__name__}"
            )
        self.transform = _bijection(distribution)
        self.distribution = checked(distribution, False)
        shape = distribution.batch_shape + distribution.event_shape
        try:
            u_shape = torch.Size(self.transform.inverse_shape(shape))
            fits = self.transform.forward_shape(u_shape) == shape
        except ValueError:
            u_shape, fits = shape, False
        if not fits:
            raise ValueError(
                "distribution must have one support for all its components, but the support of "
                f"{distribution} has another shape than its values, {tuple(shape)}"
            )
        like = self._like()
        try:
            super().__init__(self._joint, u_shape, dtype=like.dtype, device=like.device)
        except (NotImplementedError, RuntimeError) as cause:
            raise ValueError(
                f"distribution must have a log density, but that of {distribution} raised "
                f"{first_line(cause)}; write it in torch, for LogDensityScore"
            ) from cause
        self.unconstrained_shape, self.event_shape = u_shape, shape

    def start(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """`n` draws, as u, (n, D); uniform(−2, 2) where it cannot be sampled.

        Raises:
            ValueError: after 100 tries density or gradient still are not finite at some.
        """
        try:
            return finite_start(self._sample, self.expand, n, generator)
        except (NotImplementedError, ValueError):  # no sampler, or draws outside the density
            return super().start(n, generator)

    def _joint(self, u: Tensor) -> Tensor:
        value: Any = self.transform(u)  # torch types it as possibly None
        log_p = self.distribution.log_prob(value).sum()
        return log_p + self.transform.log_abs_det_jacobian(u, value).sum()

    def _sample(self, n: int, generator: torch.Generator | None) -> Tensor:
        # torch distributions draw from the global generator only
        with isolated_rng(seed_from(generator)):
            u: Any = self.transform.inv(self.distribution.sample(torch.Size([n])))
        return u.reshape(n, self.dim)

    def _like(self) -> Tensor:
        try:
            with isolated_rng(0):
                return self.distribution.sample()
        except NotImplementedError:
            found = [v for v in vars(self.distribution).values() if isinstance(v, Tensor)]
            return next((v for v in found if v.is_floating_point()), torch.empty(()))


def _bijection(distribution: Distribution) -> Transform:
    """Return the bijection to a distribution's support; raise ValueError where there is none."""
    try:
        if not support_of(distribution).is_discrete:
            with isolated_rng(0):
                return law_transform(distribution)
    except NotImplementedError as cause:
        raise ValueError(
            "distribution must have a support that a bijection leads to, but that of "
            f"{distribution} has none ({cause}); {remedy(distribution, 'x', cause)}, or write its "
            "log density in unconstrained coordinates for LogDensityScore"
        ) from cause
    raise ValueError(
        f"distribution must be continuous, but {distribution} is discrete: it has no score"
    )
