"""A proposal maps an expansion of log p to the Gaussian that a step is drawn from.

Langevin and Ozaki discretise dX = ½ s1 dt + dW over a time h, the `step_size`. Ozaki's step has
φ(u) = expm1(u)/u where Langevin's has 1, and reads the curvature for it.

Source: eq. 19 and 20 of Meng et al., "Estimating High Order Gradients of the Data Distribution by
Denoising" (2021), after Ozaki, "A bridge between nonlinear time series models and nonlinear
stochastic dynamical systems" (1992). The paper prints exponents ε s2 and 2ε s2: h = 2ε here.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.foundation.tracing import tracing
from ozaki.linalg import Diagonal, LowRank, SymmetricOperator
from ozaki.scores.base import Expansion

LARGE = 128  # dimensions, above which a low rank's eigenvalues are not taken from a D × D matrix
LEVELS = 8  # values that its diagonal is then rounded to

Proposal = Callable[[Tensor, Expansion, Tensor], "GaussianStep"]


def phi(u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """φ(u) = (eᵘ − 1)/u with φ(0) = 1, smooth and positive on the whole line.

    Differentiable at 0 as well: the inner `where` keeps 0/0 out of the gradient.
    """
    small = u.abs() < 1e-4
    safe = torch.where(small, torch.ones_like(u), u)
    return torch.where(small, 1 + u / 2 + u.square() / 6, torch.expm1(safe) / safe)


class GaussianStep:
    """N(mean, covariance), as a step draws from it and weighs it.

    Args:
        mean: (*batch, D).
        covariance: a symmetric operator, positive definite.
    """

    def __init__(self, mean: Tensor, covariance: SymmetricOperator):
        self.mean = mean
        self.covariance = covariance

    def sample(self, z: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Mean + covariance^½ z, for standard normal z."""
        return self.mean + self.covariance.spectral(torch.sqrt).matmul(z)

    def log_prob(self, y: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Log N(y; mean, covariance), (*batch,)."""
        white = self.covariance.spectral(torch.rsqrt).matmul(y - self.mean)
        log_det = self.covariance.spectral(torch.log).trace()
        return -0.5 * (white.square().sum(-1) + log_det + y.shape[-1] * math.log(2 * math.pi))


def langevin(
    x: Float[Tensor, "*batch dim"], expansion: Expansion, step_size: Float[Tensor, "..."]
) -> GaussianStep:
    """The Euler step (eq. 19): mean x + (h/2) s1, covariance h I.

    Args:
        x: points, (*batch, D).
        expansion: log p at those points; only the gradient is used.
        step_size: h > 0, a scalar or (*batch, 1).
    """
    mean = x + step_size / 2 * expansion.gradient
    return GaussianStep(mean, Diagonal(step_size * torch.ones_like(x)))


def ozaki(
    x: Float[Tensor, "*batch dim"], expansion: Expansion, step_size: Float[Tensor, "..."]
) -> GaussianStep:
    """The Ozaki step (eq. 20): mean x + (h/2) φ(h s2/2) s1, covariance h φ(h s2).

    Exact for a Gaussian when s2 is its full Hessian, whatever h. Positive curvature is flattened to
    0 (see `concave`), in the reverse density too, since both come through here. In more than 128
    dimensions the diagonal of a low rank is rounded (see `tractable`).

    Args:
        x: points, (*batch, D).
        expansion: log p at those points, with curvature.
        step_size: h > 0, a scalar or (*batch, 1).

    Raises:
        ValueError: an expansion without curvature.
    """
    if expansion.curvature is None:
        raise ValueError(
            "expansion must hold a curvature for an Ozaki step, but it was None; ask for one by "
            "score.expand(x, 'diagonal')"
        )
    h = step_size
    s2 = concave(expansion.curvature)
    drift = s2.spectral(lambda s: h / 2 * phi(h * s / 2)).matmul(expansion.gradient)
    return GaussianStep(x + drift, s2.spectral(lambda s: h * phi(h * s)))


def ornstein_uhlenbeck(
    x: Float[Tensor, "*batch dim"], expansion: Expansion, step_size: Float[Tensor, "..."]
) -> GaussianStep:
    """The Ozaki step of s2 = −I: mean x + (1 − e^(−h/2)) s1, covariance (1 − e^(−h)) I.

    In the metric of a law's own covariance it is exact for a Gaussian at any h, as Ozaki's step is
    with the full curvature, and reads none.

    Args:
        x: points, (*batch, D).
        expansion: log p at those points; only the gradient is used.
        step_size: h > 0, a scalar or (*batch, 1).
    """
    mean = x - torch.expm1(-step_size / 2) * expansion.gradient
    return GaussianStep(mean, Diagonal(-torch.expm1(-step_size) * torch.ones_like(x)))


def blend(weight: float | Tensor, shift: float | Tensor) -> Proposal:
    """The Ozaki step of the curvature weight × min(s2, 0) + shift.

    (1, 0) is Ozaki's own, (0, 0) Langevin's, (0, −1) that of `ornstein_uhlenbeck`.

    Args:
        weight: in [0, 1].
        shift: at most 0.
    """

    def proposal(x: Tensor, expansion: Expansion, step_size: Tensor) -> GaussianStep:
        if expansion.curvature is None:
            return ozaki(x, expansion, step_size)  # it raises the error for a missing curvature
        changed = tractable(expansion.curvature).spectral(lambda s: weight * s.clamp(max=0) + shift)
        return ozaki(x, expansion._replace(curvature=changed), step_size)

    return proposal


def as_blend(proposal: Proposal) -> tuple[float, float] | None:
    """Return the (weight, shift) whose `blend` is this proposal; None where there is none."""
    known = ((ozaki, (1.0, 0.0)), (langevin, (0.0, 0.0)), (ornstein_uhlenbeck, (0.0, -1.0)))
    return next((weights for one, weights in known if one is proposal), None)


def concave(curvature: SymmetricOperator) -> SymmetricOperator:
    """min(s2, 0) on the eigenvalues.

    Where curvature is positive the Ozaki step would explode; there this tends to the Langevin step
    of the same h, and a Gaussian's curvature is left as it is.
    """
    return tractable(curvature).spectral(lambda s: s.clamp(max=0))


def modified(curvature: SymmetricOperator) -> Float[Tensor, "*batch"]:
    """Count the directions that `concave` flattens: the positive eigenvalues, (*batch,)."""
    # the trace of the projection on them
    return tractable(curvature).spectral(lambda s: (s > 0).to(s.dtype)).trace().round()


def tractable(curvature: SymmetricOperator) -> SymmetricOperator:
    """The curvature, or where D > 128 a low rank whose diagonal is rounded to 8 values.

    Functions of diag(a) + B Bᵀ need a D × D eigendecomposition unless a has few values. A step with
    a slightly different curvature is as valid: a correction weighs the step that was made, and
    without one the law's error is of the same order in h.
    """
    large = isinstance(curvature, LowRank) and curvature.dim > LARGE
    if large and (tracing() or not curvature.even):  # pyright: ignore
        return curvature.grouped(LEVELS)  # pyright: ignore
    return curvature
