"""Objectives are the losses of training, as pure functions of score, data and noise.

Each takes clean points x, standard normal noise z and the noise's standard deviation σ, and
returns one loss a sample. A first-order score is a callable x̃ → s1; a second-order one is
x̃ → (s1, S) with S a symmetric operator. A `Diagonal` S is the diagonal of s2, and only diagonals
are compared; a `LowRank` or `Dense` one stands for all of s2. Only a dense one builds D × D.
The minimiser is always the score of the smoothed law p_σ = p ∗ N(0, σ²I), never of p.

The two least-squares families of second order regress an estimate e on a target t:

* D2SM: e = S + s1 s1ᵀ on t = (z zᵀ − I)/σ² = −A;
* residual: e = S on t = (r rᵀ − I)/σ², with r = z + σ sg(s1) = −(x − E[x|x̃])/σ. An error δ in s1
  moves its optimum by δ δᵀ, and that of D2SM by s1 δᵀ + δ s1ᵀ + δ δᵀ.

Beside them stand the likelihood of the residual, free of any scale; the same by its margins, which
have the variances right where the whole of C cannot be; and OCM, which has no noise of size 1/σ²
but inherits the error of the Jacobian of s1.

Equation numbers are those of Meng et al., "Estimating High Order Gradients of the Data
Distribution by Denoising", NeurIPS 2021.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.linalg import Diagonal, SymmetricOperator

FirstOrder = Callable[[Tensor], Tensor]
SecondOrder = Callable[[Tensor], tuple[Tensor, SymmetricOperator]]
Sigma = float | Tensor
Family = Literal["residual", "d2sm"]


def dsm(
    score: FirstOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """Denoising score matching, ½‖s1(x̃) + z/σ‖² with x̃ = x + σz (eq. 3).

    Args:
        score: x̃ → s1, (*batch, D) to (*batch, D).
        x: clean points, (*batch, D).
        z: standard normal noise, (*batch, D).
        sigma: σ in the units of x, a number or a tensor that broadcasts against x.

    Returns:
        The loss of each sample, (*batch,).
    """
    return first_order(score(x + sigma * z), z, sigma) + 0.5 * (z / sigma).square().sum(-1)


def dsm_vr(
    score: FirstOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """DSM less the control variate s1(x)ᵀz/σ + ‖z‖²/(2σ²) − D/(2σ²), of zero mean (eq. 32).

    Args, returns: as `dsm`.
    """
    control = (score(x) * z / sigma).sum(-1)
    constant = 0.5 * (torch.ones_like(z) / sigma**2).sum(-1)
    return first_order(score(x + sigma * z), z, sigma) - control + constant


def dsm_antithetic(
    score: FirstOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """DSM over the pair x± = x ± σz, ¼ Σ± ‖s1(x±)‖² + (s1(x₊) − s1(x₋))ᵀz/(2σ).

    It is the mean of `dsm` at z and −z less ‖z‖²/(2σ²), so that no 1/σ² is left in its variance.

    Args, returns: as `dsm`.
    """
    points, noise = pair(x, z, sigma)
    return first_order(score(points), noise, sigma).mean(0)


def d2sm(
    score: SecondOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """D2SM, ‖S + s1 s1ᵀ + (I − z zᵀ)/σ²‖²_F at x̃ = x + σz (eq. 13; of a `Diagonal` S, eq. 16, 17).

    Args:
        score: x̃ → (s1, S).
        x: clean points, (*batch, D).
        z: standard normal noise, (*batch, D).
        sigma: σ in the units of x, a number or a tensor that broadcasts against x.

    Returns:
        The loss of each sample, (*batch,).
    """
    return _plain("d2sm", score, x, z, sigma)


def d2sm_vr(
    score: SecondOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """Variance-reduced D2SM, ½ Σ± ‖ψ(x±)‖² + ⟨A, ψ(x₊) + ψ(x₋) − 2ψ(x)⟩, ψ = S + s1 s1ᵀ (eq. 33).

    Args, returns: as `d2sm`.
    """
    return joint("d2sm", score, x, z, sigma)[1]


def residual(
    score: SecondOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """Residual form, ‖S − (r rᵀ − I)/σ²‖²_F with r = z + σ sg(s1(x̃)).

    By Tweedie's formula r = −(x − E[x|x̃])/σ, so that E[r rᵀ|x̃] = I + σ² s2 (eq. 18).

    Args, returns: as `d2sm`.
    """
    return _plain("residual", score, x, z, sigma)


def residual_vr(
    score: SecondOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """Variance-reduced residual, ½ Σ± [‖S(x±)‖² − 2⟨S(x±), T±⟩] + 2⟨S(x), (z zᵀ − I)/σ²⟩.

    Here T± = (r± r±ᵀ − I)/σ² with r± = ±z + σ sg(s1(x±)); the control variate is that of eq. 33.

    Args, returns: as `d2sm`.
    """
    return joint("residual", score, x, z, sigma)[1]


def joint(
    family: Family,
    score: SecondOrder,
    x: Float[Tensor, "*batch dim"],
    z: Float[Tensor, "*batch dim"],
    sigma: Sigma,
    *,
    control_variate: bool = True,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Both losses of joint training (eq. 14, 15) from one evaluation at x±: first and second order.

    The first is `dsm_antithetic`. The second is the family's variance-reduced form; without the
    control variate it is the mean of the plain form over ±z, less ‖t‖², which does not depend on
    the estimate.

    Args:
        family: "residual" or "d2sm".
        score: x̃ → (s1, S).
        x: clean points, (*batch, D).
        z: standard normal noise, (*batch, D).
        sigma: σ in the units of x, a number or a tensor that broadcasts against x.
        control_variate: worth it for small σ, harmful for large; see docs/mathematics.md.

    Returns:
        The two losses of each sample, each (*batch,).
    """
    points, noise = pair(x, z, sigma)
    s1, s2 = score(points)
    first = first_order(s1, noise, sigma).mean(0)
    second = second_order(family, s1, s2, noise, sigma).mean(0)
    if control_variate:
        second = second + control(family, *score(x), z, sigma)
    return first, second


def likelihood(
    score: SecondOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """Gaussian likelihood of the residual, log det C + rᵀC⁻¹r with C = I + σ² S, r = z + σ sg(s1).

    Its optimum over all S is E[r rᵀ|x̃] = I + σ² s2, as that of the residual form, but an error
    counts relative to C. Of a `Diagonal` S it is Σ log c + r²/c.

    Args:
        score: x̃ → (s1, S), with I + σ² S positive definite.
        x, z, sigma: as `d2sm`.

    Returns:
        The loss of each sample, (*batch,).
    """
    return likelihood_of(*score(x + sigma * z), z, sigma)


def margins(
    score: SecondOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """Likelihood of each r_i, and of their correlation, Σ (log c + r²/c) + log det R + wᵀR⁻¹w.

    Here c = diag C, R = C/√(c cᵀ) and w = r/√sg(c): variances are those of the margins, whatever
    R can represent. The likelihood of all gives up variances where a low rank is too low. Its
    optimum over all S is the same; of a `Diagonal` S it is `likelihood`, plus ‖w‖², which has no
    gradient.

    Args, returns: as `likelihood`.

    Reference:
        Joe and Xu, "The estimation method of inference functions for margins for multivariate
        models", 1996.
    """
    return margins_of(*score(x + sigma * z), z, sigma)


def ocm(
    first: FirstOrder,
    second: Callable[[Tensor], SymmetricOperator],
    x: Float[Tensor, "*batch dim"],
    z: Float[Tensor, "*batch dim"],
    sigma: Sigma,
    v: Float[Tensor, "*batch dim"],
) -> Float[Tensor, "*batch"]:
    """Optimal covariance matching, ‖diag S − sg(v ⊙ J v)‖² or ‖S v − sg(J v)‖², J = ∂s1/∂x̃.

    The first form is that of a `Diagonal` S, with v of ±1; the second of any other, with E[v vᵀ]
    = I, whose mean over v is ‖S − J‖²_F. J v is one forward derivative; J is never built.

    Args:
        first: x̃ → s1, differentiable.
        second: x̃ → S.
        x, z, sigma: as `d2sm`.
        v: the probe, (*batch, D), of independent signs.

    Returns:
        The loss of each sample, (*batch,).

    Reference:
        Ou et al., "Improving Probabilistic Diffusion Models With Optimal Diagonal Covariance
        Matching", ICLR 2025.
    """
    points = x + sigma * z
    return ocm_of(second(points), jacobian_product(first, points, v), v)


def calibration(
    s1: Float[Tensor, "samples dim"],
    s2_diagonal: Float[Tensor, "samples dim"],
    z: Float[Tensor, "samples dim"],
    sigma: Sigma,
) -> Float[Tensor, " dim"]:
    """The calibration E[r ⊙ r / diag C] of each dimension, 1 where s1 and s2 are right.

    r = z + σ s1(x̃) and C = I + σ² s2(x̃), so that E[r ⊙ r | x̃] = diag C at every x̃ (eq. 18). Above 1
    the posterior variances σ² C are too small, below 1 too large. C closer to 0 than the rounding
    of 1 counts as that rounding, so that the mean stays finite.

    Args:
        s1: at x̃ = x + σz, (samples, D).
        s2_diagonal: diag s2 at x̃, (samples, D).
        z: the noise, (samples, D).
        sigma: σ, in the units of x.

    Returns:
        One ratio a dimension, (D,).
    """
    c = 1 + sigma**2 * s2_diagonal
    least = torch.finfo(c.dtype).eps
    return ((z + sigma * s1).square() / torch.where(c.abs() < least, least, c)).mean(0)


# The same formulas for outputs that are already computed, so that one evaluation serves many.


def pair(x: Tensor, z: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
    """x± = x ± σz and ±z, each with a leading dimension of two."""
    noise = torch.stack((z, -z))
    return x + sigma * noise, noise


def first_order(s1: Tensor, z: Tensor, sigma: Sigma) -> Tensor:
    """½‖s1‖² + s1ᵀz/σ: DSM but for the term that holds no s1."""
    return (s1 * (0.5 * s1 + z / sigma)).sum(-1)


def second_order(
    family: Family, s1: Tensor, s2: SymmetricOperator, z: Tensor, sigma: Sigma
) -> Tensor:
    """‖e‖² − 2⟨e, t⟩ at x̃ = x + σz: the squared error but for ‖t‖²."""
    if family == "residual":  # detached, since s1 would otherwise move to where the target is easy
        return s2.frobenius_squared() - 2 * _inner(s2, z / sigma + s1.detach(), sigma)
    if family != "d2sm":
        raise ValueError(f"family must be 'residual' or 'd2sm', but was {family!r}")
    # one pass over a factor for both
    own, noise = s2.quadratics(torch.stack((s1, z / sigma), -1)).unbind(-1)
    squared = s2.frobenius_squared() + 2 * own + _outer(s2, s1, s1)
    return squared - 2 * (noise - _trace(s2, sigma) + _outer_inner(s2, s1, z, sigma))


def control(family: Family, s1: Tensor, s2: SymmetricOperator, z: Tensor, sigma: Sigma) -> Tensor:
    """2⟨e, (z zᵀ − I)/σ²⟩ of e at the clean x: of zero mean, since z is not in e (eq. 33)."""
    if family == "residual":
        return 2 * _inner(s2, z / sigma, sigma)
    return 2 * (_inner(s2, z / sigma, sigma) + _outer_inner(s2, s1, z, sigma))


def likelihood_of(s1: Tensor, s2: SymmetricOperator, z: Tensor, sigma: Sigma) -> Tensor:
    """`likelihood` of s1 and S at x̃ = x + σz."""
    covariance = s2.scale(sigma).shift(1.0)
    return covariance.log_determinant() + covariance.inverse_quadratic(z + sigma * s1.detach())


def margins_of(s1: Tensor, s2: SymmetricOperator, z: Tensor, sigma: Sigma) -> Tensor:
    """`margins` of s1 and S at x̃ = x + σz."""
    covariance = s2.scale(sigma).shift(1.0)
    variance = covariance.diagonal()
    residual = z + sigma * s1.detach()
    alone = (variance.log() + residual.square() / variance).sum(-1)
    correlation = covariance.scale(variance.rsqrt())
    together = correlation.inverse_quadratic(residual / variance.detach().sqrt())
    return alone + correlation.log_determinant() + together


def ocm_of(s2: SymmetricOperator, product: Tensor, v: Tensor) -> Tensor:
    """`ocm` of S and J v at x̃."""
    if isinstance(s2, Diagonal):
        return (s2.diagonal() - v * product).square().sum(-1)
    return (s2.matmul(v) - product).square().sum(-1)


@torch.no_grad()
def jacobian_product(first: FirstOrder, points: Tensor, v: Tensor) -> Tensor:
    """J v with J the Jacobian of s1 at each point, by one forward derivative; not recorded."""
    return torch.func.jvp(first, (points,), (v,))[1]


def _inner(s2: SymmetricOperator, rho: Tensor, sigma: Sigma) -> Tensor:
    """⟨S, ρ ρᵀ − I/σ²⟩, with ρ = z/σ or r/σ."""
    return s2.quadratic(rho) - _trace(s2, sigma)


def _trace(s2: SymmetricOperator, sigma: Sigma) -> Tensor:
    """⟨S, I/σ²⟩, where σ may vary from entry to entry."""
    return (s2.diagonal() / sigma**2).sum(-1)


def _outer_inner(s2: SymmetricOperator, s1: Tensor, z: Tensor, sigma: Sigma) -> Tensor:
    """⟨s1 s1ᵀ, (z zᵀ − I)/σ²⟩."""
    return _outer(s2, s1, z / sigma) - (s1 / sigma).square().sum(-1)


def _outer(s2: SymmetricOperator, s1: Tensor, v: Tensor) -> Tensor:
    """⟨s1 s1ᵀ, v vᵀ⟩ over the entries that S estimates: the diagonal's, or all."""
    product = s1 * v
    return product.square().sum(-1) if isinstance(s2, Diagonal) else product.sum(-1).square()


def _plain(family: Family, score: SecondOrder, x: Tensor, z: Tensor, sigma: Sigma) -> Tensor:
    """The second-order loss with its constant term, ‖e − t‖² at x̃ = x + σz."""
    s1, s2 = score(x + sigma * z)
    rho = z / sigma + s1.detach() if family == "residual" else z / sigma
    units = torch.ones_like(z) / sigma**2
    if isinstance(s2, Diagonal):
        target = (rho.square() - units).square().sum(-1)
    else:
        norm = rho.square().sum(-1)
        target = norm.square() + (units * (units - 2 * rho.square())).sum(-1)
    return second_order(family, s1, s2, z, sigma) + target
