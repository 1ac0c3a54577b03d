"""These scores wrap another score, so that kernels need not know the difference.

* `Whitened`: the same law in u = L⁻¹x, the metric that warm-up finds;
* `Frozen`: one curvature for every point, factorised once;
* `Guided`: the density of one score, the steps of another.
"""

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.linalg import Dense, SymmetricOperator
from ozaki.scores.base import CurvatureKind, Expansion, Score


class _Wrapper(Score):
    """A score over another one's points."""

    def __init__(self, score: Score):
        self.score = score
        self.dim, self.event_shape = score.dim, score.event_shape
        self.dtype, self.device = score.dtype, score.device

    @property
    def default_curvature(self) -> CurvatureKind | None:
        """The wrapped score's."""
        return self.score.default_curvature

    def start(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """The wrapped score's starting points."""
        return self.score.start(n, generator)


class Whitened(_Wrapper):
    """The law of u = L⁻¹x: gradient Lᵀ s1, curvature Lᵀ s2 L.

    With L Lᵀ the covariance of the target, a step size is of order 1 whatever the scales.

    Args:
        score: the law of x.
        factor: L, (D,) for a diagonal one or (D, D) lower triangular; None for the identity.
    """

    def __init__(self, score: Score, factor: Float[Tensor, "..."] | None = None):
        super().__init__(score)
        self.factor = factor

    def expand(
        self, x: Float[Tensor, "*batch dim"], curvature: CurvatureKind | None = None
    ) -> Expansion:
        """The expansion in u; the log density leaves out the constant log|det L|."""
        at = _detached(self.score.expand(self.to_x(x), curvature))
        if self.factor is None:
            return at
        return Expansion(
            pulled(at.gradient, self.factor),
            None if at.curvature is None else at.curvature.congruence(self.factor),
            at.log_density,
            None if at.score_gradient is None else pulled(at.score_gradient, self.factor),
        )

    def start(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """The wrapped score's starting points, in u."""
        return self.to_u(self.score.start(n, generator))

    def densityless_gradient(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The wrapped score's, in u."""
        return pulled(self.score.densityless_gradient(self.to_x(x)).detach(), self.factor)

    def to_x(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """L u."""
        return pushed(u, self.factor)

    def to_u(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """L⁻¹ x."""
        if self.factor is None:
            return x
        if self.factor.ndim == 1:
            return x / self.factor
        return torch.linalg.solve_triangular(self.factor, x.mT, upper=False).mT


def pushed(u: Float[Tensor, "*batch dim"], factor: Tensor | None) -> Float[Tensor, "*batch dim"]:
    """L u: a point or a difference, from the metric to the coordinates of the law.

    Args:
        u: (*batch, D).
        factor: L, (D,) or (D, D); None for the identity.
    """
    if factor is None:
        return u
    return u * factor if factor.ndim == 1 else u @ factor.mT


def pulled(g: Float[Tensor, "*batch dim"], factor: Tensor | None) -> Float[Tensor, "*batch dim"]:
    """Lᵀ g: a gradient, from the coordinates of the law to the metric.

    Args:
        g: (*batch, D).
        factor: L, (D,) or (D, D); None for the identity.
    """
    if factor is None:
        return g
    return g * factor if factor.ndim == 1 else g @ factor


def _detached(at: Expansion) -> Expansion:
    """Detach an expansion from the graph of a score's own tensors, which a chain would keep."""
    curvature = at.curvature
    found = [at.gradient, *(t for t in at[2:] if t is not None)]
    if not any(t.requires_grad for t in (*found, *(curvature.tensors if curvature else ()))):
        return at
    if curvature is not None:
        curvature = curvature.rebuild(tuple(t.detach() for t in curvature.tensors))
    rest = (t if t is None else t.detach() for t in at[2:])
    return Expansion(at.gradient.detach(), curvature, *rest)


class Frozen(_Wrapper):
    """A score whose curvature is the same everywhere, factorised once.

    Args:
        score: gradient and density.
        curvature: the operator returned for all points, without batch dimensions.
    """

    def __init__(self, score: Score, curvature: SymmetricOperator):
        super().__init__(score)
        self.curvature = curvature
        if isinstance(curvature, Dense):
            self.curvature = Dense.from_eigen(*curvature.eigen())

    def expand(
        self, x: Float[Tensor, "*batch dim"], curvature: CurvatureKind | None = None
    ) -> Expansion:
        """The wrapped score's gradient and density, the frozen curvature if one is asked for."""
        at = self.score.expand(x)
        return at._replace(curvature=None if curvature is None else self.curvature)

    def densityless_gradient(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The wrapped score's."""
        return self.score.densityless_gradient(x)


class Guided(_Wrapper):
    """The density of `target`, stepped through by the gradient and curvature of `guide`.

    For exact Metropolis alone: there any proposal is right, and a better one accepts more often.

    Args:
        target: a score with a log density.
        guide: a score of the same dimension, in the same coordinates.

    Raises:
        ValueError: a guide of another dimension.
    """

    def __init__(self, target: Score, guide: Score):
        super().__init__(target)
        if guide.dim != target.dim:
            raise ValueError(
                f"score must have the dimension of the model, {target.dim}, but had {guide.dim}; "
                "train it on ozaki.unconstrain(model, samples)"
            )
        self.guide = guide

    @property
    def default_curvature(self) -> CurvatureKind | None:
        """The guide's."""
        return self.guide.default_curvature

    def expand(
        self, x: Float[Tensor, "*batch dim"], curvature: CurvatureKind | None = None
    ) -> Expansion:
        """The guide's gradient and curvature with the target's log density."""
        step = self.guide.expand(x.to(self.guide.dtype), curvature)
        curvature_there = None if step.curvature is None else step.curvature.astype(x.dtype)
        return Expansion(step.gradient.to(x.dtype), curvature_there, self.score.log_prob(x), None)
