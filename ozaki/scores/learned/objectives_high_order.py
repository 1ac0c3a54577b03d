"""These objectives are of any order: raw moments, and targets that forgive errors of lower orders.

As in `objectives`, each takes clean points x, standard normal noise z and its standard deviation
σ, and returns one loss a sample. The scores are a callable x̃ → (s1, …, sn), whose length is the
order n. The minimiser is always a derivative of log p_σ, p_σ = p ∗ N(0, σ²I), never of log p.

* `raw_moment` regresses the polynomial of Theorem 3 on x^{⊗n}: the paper's, for every n, for full
  tensors or for diagonals.
* `orthogonal` regresses s_n itself, n = 2, 3, 4, diagonals only. With r = z + σ s1, whose
  cumulants given x̃ are κ_2 = C = 1 + σ² s2, κ_3 = −σ³ s3 and κ_4 = σ⁴ s4, its target T_n is

      T_2 = (r² − 1)/σ²,
      T_3 = −(r³ − 3Cr)/σ³,
      T_4 = (r⁴ − 6Cr² − 4κ_3 r + 3C²)/σ⁴,

  the Hermite polynomials of r. The derivative of E[T_n|x̃] in each lower order is 0 at the truth,
  so that an error δ in s1 alone moves the optimum by δ², −δ³, δ⁴. Of the plain target −r³/σ³ it
  moves it by −(3Cδ/σ² + δ³). The lower orders are detached.

The noise of T_n has size 1/σⁿ, or 1/σ² over the pair for n = 3: orders 3 and 4 are for σ of at
least 0.3 of the data's spread. `orthogonal_control` removes most of it below 0.15 of the spread.

Reference:
    Meng et al., "Estimating High Order Gradients of the Data Distribution by Denoising",
    NeurIPS 2021, Theorem 3 and 4.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.scores.moments import posterior_moments

HighOrder = Callable[[Tensor], tuple[Tensor, ...]]
Sigma = float | Tensor


def raw_moment(
    scores: HighOrder,
    x: Float[Tensor, "*batch dim"],
    z: Float[Tensor, "*batch dim"],
    sigma: Sigma,
) -> Float[Tensor, "*batch"]:
    """The moment regression ‖x^{⊗n} − f_n(x̃, s1, …, sn)‖² with x̃ = x + σz (Theorem 4).

    f_n is the polynomial of `posterior_moments`, and E[x^{⊗n}|x̃] at the exact scores. At n = 1 the
    loss is σ⁴‖s1 + z/σ‖², at n = 2 the paper's eq. 11. Theorem 4 takes s1, …, s_{n−1} as given:
    detach them if they are, since the gradient reaches every order, and only f_n as a whole is
    determined.

    Args:
        scores: x̃ → (s1, …, sn), all (*batch, D), or s_k of k trailing dimensions D.
        x: clean points, (*batch, D).
        z: standard normal noise, (*batch, D).
        sigma: σ in the units of x, a number or a tensor that broadcasts against x.

    Returns:
        The loss of each sample, (*batch,).

    Raises:
        ValueError: scores whose shapes do not fit; see `posterior_moments`.
    """
    points = x + sigma * z
    outputs = scores(points)
    moment = posterior_moments(outputs, points, sigma)[-1]
    if moment.ndim == x.ndim:
        return (x ** len(outputs) - moment).square().sum(-1)
    power = x
    for k in range(1, len(outputs)):
        power = power.unsqueeze(-1) * x.reshape(*x.shape[:-1], *(1,) * k, x.shape[-1])
    return (power - moment).square().flatten(x.ndim - 1).sum(-1)


def orthogonal(
    scores: HighOrder,
    x: Float[Tensor, "*batch dim"],
    z: Float[Tensor, "*batch dim"],
    sigma: Sigma,
    *,
    control_variate: bool = False,
) -> Float[Tensor, "*batch"]:
    """The orthogonal regression ½ Σ± [‖s_n(x±)‖² − 2⟨s_n(x±), T_n±⟩] over x± = x ± σz.

    It is the squared error ‖s_n − T_n‖² over the pair but for ‖T_n‖², which does not depend on the
    estimate. The scores are evaluated once, at both points.

    Args:
        scores: x̃ → (s1, …, sn), n = 2, 3 or 4, each the diagonal of its tensor, (*batch, D).
        x, z, sigma: as `raw_moment`.
        control_variate: add `orthogonal_control`, at the price of one more evaluation at x, for
            n = 3 with a forward derivative. On mixtures it lowers the variance of the gradient for
            σ below about 0.15 of the spread, 25 to 500 times at 0.05, and raises it above, 2 to 30
            times at 0.5; where some modes are far narrower than the whole, theirs is the spread
            that counts.

    Returns:
        The loss of each sample, (*batch,).

    Raises:
        ValueError: another order, or a score that is not of the shape of its points.
    """
    noise = torch.stack((z, -z))
    outputs = scores(x + sigma * noise)
    loss = orthogonal_loss(outputs, noise, sigma)
    if not control_variate:
        return loss
    if len(outputs) != 3:
        return loss + orthogonal_control(scores(x), z, sigma)
    clean = torch.func.jvp(scores, (x,), (sigma * z,))  # the values, and their derivatives
    return loss + orthogonal_control(clean[0], z, sigma, clean[1][-1])


# The same formulas for outputs that are already computed, so that one evaluation serves many.


def orthogonal_loss(
    outputs: Sequence[Tensor], z: Float[Tensor, "signs *batch dim"], sigma: Sigma
) -> Float[Tensor, "*batch"]:
    """‖s_n‖² − 2⟨s_n, T_n⟩ at x̃ = x + σz, averaged over the first dimension, that of ±z.

    Args:
        outputs: (s1, …, sn) at x̃, n = 2, 3 or 4, each (signs, *batch, D). Only sn has a gradient.
        z: the noise of each, (signs, *batch, D): the pair (z, −z), or one sign alone.
        sigma: as `raw_moment`.

    Returns:
        The loss of each sample, (*batch,).

    Raises:
        ValueError: another order, or a score that is not of the shape of z.
    """
    _check(outputs, z)
    s_n = outputs[-1]
    return (s_n * (s_n - 2 * _target(outputs, z, sigma))).sum(-1).mean(0)


def orthogonal_control(
    outputs: Sequence[Tensor],
    z: Float[Tensor, "*batch dim"],
    sigma: Sigma,
    tangent: Float[Tensor, "*batch dim"] | None = None,
) -> Float[Tensor, "*batch"]:
    """The control variate of the pair, of mean zero: what `orthogonal_loss` is at first order in σ.

    With He_2 = z² − 1, He_3 = z³ − 3z, He_4 = z⁴ − 6z² + 3 and everything at the clean x, it is

        n = 2: 2⟨s2, He_2⟩/σ² (eq. 33),    n = 4: 2⟨s4, He_4⟩/σ⁴,
        n = 3: −2⟨ds3[σz], He_3⟩/σ³ − 6⟨s1 ⊙ s3, He_2⟩/σ².

    Each is zero on average since z enters by polynomials orthogonal to 1, and He_3 also to z. At
    order 3 the pair itself cancels ⟨s3(x), He_3⟩, which is odd, and adding it could only add noise;
    what it leaves has size 1/σ², and is removed here. At n = 2 and 4 it leaves 1/σⁿ, and then
    1/σ^{n−2} remains.

    Args:
        outputs: (s1, …, sn) at the clean points, n = 2, 3 or 4, each (*batch, D).
        z: the noise, (*batch, D).
        sigma: as `raw_moment`.
        tangent: for n = 3 only, ds3[σz], the derivative of s3 at x along σz, (*batch, D).

    Returns:
        What is to be added to the loss of each sample, (*batch,).

    Raises:
        ValueError: as `orthogonal_loss`; for n = 3 no tangent.
    """
    _check(outputs, z)
    s_n, rho = outputs[-1], 1 / (torch.ones_like(z) * sigma)
    square = z.square()
    if len(outputs) == 2:
        return 2 * (s_n * (square - 1) * rho**2).sum(-1)
    if len(outputs) == 4:
        return 2 * (s_n * (square * (square - 6) + 3) * rho**4).sum(-1)
    if tangent is None:
        raise ValueError(
            "tangent must be given for order 3, but was None; pass the derivative of s3 at x along "
            "sigma * z, for example from torch.func.jvp"
        )
    odd = tangent * z * (square - 3) * rho**3
    even = 3 * outputs[0].detach() * s_n * (square - 1) * rho**2
    return -2 * (odd + even).sum(-1)


def _target(outputs: Sequence[Tensor], z: Tensor, sigma: Sigma) -> Tensor:
    """T_n of the residual r and the lower orders, all detached."""
    s1, *between = (s.detach() for s in outputs[:-1])
    r = z + sigma * s1
    if not between:
        return (r.square() - 1) / sigma**2
    c = 1 + sigma**2 * between[0]
    if len(between) == 1:
        return -r * (r.square() - 3 * c) / sigma**3
    k3 = -(sigma**3) * between[1]
    return (r.square() * (r.square() - 6 * c) - 4 * k3 * r + 3 * c.square()) / sigma**4


def _check(outputs: Sequence[Tensor], z: Tensor) -> None:
    """Raise ValueError unless there are 2 to 4 scores of the shape of z."""
    if len(outputs) not in (2, 3, 4):
        raise ValueError(
            f"outputs must be (s1, …, sn) of order n = 2, 3 or 4, but had {len(outputs)} scores; "
            "`raw_moment` has every order"
        )
    for k, score in enumerate(outputs, 1):
        if score.shape != z.shape:
            raise ValueError(
                f"outputs[{k - 1}], which is s{k}, must have the shape {tuple(z.shape)} of z, but "
                f"had {tuple(score.shape)}; pass the diagonal of its tensor"
            )
