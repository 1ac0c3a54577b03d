"""Objectives: what a network is trained on, as pure functions of score, data and noise (floor 1).

Each takes clean points x, standard normal noise z and the noise's standard deviation σ, and
returns one loss a sample. A first-order score is a callable x̃ → s1; a second-order one is
x̃ → (s1, diag s2).
The minimiser is always the score of the smoothed law p_σ = p ∗ N(0, σ²I), never of p.

The two second-order families regress different things, an estimate e on a target t:

* D2SM: e = diag s2 + s1 ⊙ s1 on t = (z ⊙ z − 1)/σ²;
* residual: e = diag s2 on t = (r ⊙ r − 1)/σ², with r = z + σ sg(s1) = −(x − E[x|x̃])/σ. An error δ
  in s1 moves its optimum by δ ⊙ δ, and that of D2SM by 2 s1 ⊙ δ + δ ⊙ δ.

Equation numbers are those of Meng et al., "Estimating High Order Gradients of the Data
Distribution by Denoising", NeurIPS 2021.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ozaki.shapes import Float

FirstOrder = Callable[[Tensor], Tensor]
SecondOrder = Callable[[Tensor], tuple[Tensor, Tensor]]
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
    return _first(score(x + sigma * z), z, sigma) + 0.5 * (z / sigma).square().sum(-1)


def dsm_vr(
    score: FirstOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """DSM less the control variate s1(x)ᵀz/σ + ‖z‖²/(2σ²) − D/(2σ²), of zero mean (eq. 32).

    Args, returns: as `dsm`.
    """
    control = (score(x) * z / sigma).sum(-1)
    constant = 0.5 * (torch.ones_like(z) / sigma**2).sum(-1)
    return _first(score(x + sigma * z), z, sigma) - control + constant


def dsm_antithetic(
    score: FirstOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """DSM over the pair x± = x ± σz, ¼ Σ± ‖s1(x±)‖² + (s1(x₊) − s1(x₋))ᵀz/(2σ).

    It is the mean of `dsm` at z and −z less ‖z‖²/(2σ²), so that no 1/σ² is left in its variance.

    Args, returns: as `dsm`.
    """
    points, noise = _pair(x, z, sigma)
    return _first(score(points), noise, sigma).mean(0)


def d2sm_diagonal(
    score: SecondOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """Diagonal D2SM, ‖diag s2 + s1 ⊙ s1 + (1 − z ⊙ z)/σ²‖² at x̃ = x + σz (eq. 16, 17).

    Args:
        score: x̃ → (s1, diag s2), each of the shape of x̃.
        x: clean points, (*batch, D).
        z: standard normal noise, (*batch, D).
        sigma: σ in the units of x, a number or a tensor that broadcasts against x.

    Returns:
        The loss of each sample, (*batch,).
    """
    return _plain("d2sm", score, x, z, sigma)


def d2sm_vr_diagonal(
    score: SecondOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """Variance-reduced D2SM, ½ Σ± ‖ψ(x±)‖² + ⟨a, ψ(x₊) + ψ(x₋) − 2ψ(x)⟩ (eq. 33, diagonal).

    Here ψ = diag s2 + s1 ⊙ s1 and a = (1 − z ⊙ z)/σ².

    Args, returns: as `d2sm_diagonal`.
    """
    return joint_diagonal("d2sm", score, x, z, sigma)[1]


def residual_diagonal(
    score: SecondOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """Residual form, ‖diag s2 − (r ⊙ r − 1)/σ²‖² with r = z + σ sg(s1(x̃)).

    By Tweedie's formula r = −(x − E[x|x̃])/σ, so that E[r rᵀ|x̃] = I + σ² s2 (eq. 18).

    Args, returns: as `d2sm_diagonal`.
    """
    return _plain("residual", score, x, z, sigma)


def residual_vr_diagonal(
    score: SecondOrder, x: Float[Tensor, "*batch dim"], z: Float[Tensor, "*batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """Variance-reduced residual, ½ Σ± [‖s(x±)‖² − 2⟨s(x±), t±⟩] + 2⟨s(x), (z ⊙ z − 1)/σ²⟩.

    Here s = diag s2 and t± = (r± ⊙ r± − 1)/σ² with r± = ±z + σ sg(s1(x±)); the control variate is
    that of eq. 33.

    Args, returns: as `d2sm_diagonal`.
    """
    return joint_diagonal("residual", score, x, z, sigma)[1]


def joint_diagonal(
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
        score: x̃ → (s1, diag s2), each of the shape of x̃.
        x: clean points, (*batch, D).
        z: standard normal noise, (*batch, D).
        sigma: σ in the units of x, a number or a tensor that broadcasts against x.
        control_variate: worth it for σ below about 0.3 of the data's spread, harmful above.

    Returns:
        The two losses of each sample, each (*batch,).
    """
    points, noise = _pair(x, z, sigma)
    s1, s2 = score(points)
    first = _first(s1, noise, sigma).mean(0)
    second = _regression(*_second(family, s1, s2, noise, sigma)).mean(0)
    if control_variate:
        estimate, _ = _second(family, *score(x), z, sigma)
        second = second + 2 * (estimate * _hermite(z, sigma)).sum(-1)
    return first, second


def calibration(
    s1: Float[Tensor, "samples dim"],
    s2_diagonal: Float[Tensor, "samples dim"],
    z: Float[Tensor, "samples dim"],
    sigma: Sigma,
) -> Float[Tensor, " dim"]:
    """The calibration E[r ⊙ r / diag C] of each dimension, 1 where s1 and s2 are right.

    r = z + σ s1(x̃) and C = I + σ² s2(x̃), so that E[r ⊙ r | x̃] = diag C at every x̃ (eq. 18). Above 1
    the posterior variances σ² C are too small, below 1 too large.

    Args:
        s1: at x̃ = x + σz, (samples, D).
        s2_diagonal: diag s2 at x̃, (samples, D).
        z: the noise, (samples, D).
        sigma: σ, in the units of x.

    Returns:
        One ratio a dimension, (D,).
    """
    return ((z + sigma * s1).square() / (1 + sigma**2 * s2_diagonal)).mean(0)


def _pair(x: Tensor, z: Tensor, sigma: Sigma) -> tuple[Tensor, Tensor]:
    """x± and ±z, each with a leading dimension of two."""
    noise = torch.stack((z, -z))
    return x + sigma * noise, noise


def _first(s1: Tensor, z: Tensor, sigma: Sigma) -> Tensor:
    """½‖s1‖² + s1ᵀz/σ: DSM but for the term that holds no s1."""
    return (s1 * (0.5 * s1 + z / sigma)).sum(-1)


def _hermite(z: Tensor, sigma: Sigma) -> Tensor:
    """(z ⊙ z − 1)/σ²: minus the diagonal of A, and of zero mean."""
    return (z.square() - 1) / sigma**2


def _second(
    family: Family, s1: Tensor, s2: Tensor, z: Tensor, sigma: Sigma
) -> tuple[Tensor, Tensor]:
    """The estimate e and the target t of a family."""
    target = _hermite(z, sigma)
    if family == "d2sm":
        return s2 + s1.square(), target
    s1 = s1.detach()  # else s1 would be pulled towards whatever makes the target easy
    return s2, target + s1 * (s1 + 2 * z / sigma)  # (r² − 1)/σ² without squaring r


def _regression(estimate: Tensor, target: Tensor) -> Tensor:
    """‖e‖² − 2⟨e, t⟩: the squared error but for ‖t‖²."""
    return (estimate * (estimate - 2 * target)).sum(-1)


def _plain(family: Family, score: SecondOrder, x: Tensor, z: Tensor, sigma: Sigma) -> Tensor:
    estimate, target = _second(family, *score(x + sigma * z), z, sigma)
    return _regression(estimate, target) + target.square().sum(-1)
