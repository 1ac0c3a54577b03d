"""The kernel Stein discrepancy tests whether draws follow the score they were drawn with.

It tests the sampler, not the model: a wrong score sampled faithfully passes. Nor does it see the
weights of far-apart modes: the score inside each is the same whatever its weight.

Gorham and Mackey (2017), Measuring sample quality with kernels; Chwialkowski, Strathmann and
Gretton (2016), A kernel test of goodness of fit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ozaki.foundation import validation
from ozaki.foundation.shapes import Float


class SteinTest(NamedTuple):
    """A goodness-of-fit test of draws against a score.

    Attributes:
        discrepancy: the squared discrepancy (U-statistic): about 0, of either sign, for exact
            draws.
        p_value: the share of wild-bootstrap replicates at least as large, in (0, 1].
        points: how many draws entered.

    Example:
        >>> from ozaki.diagnostics import stein_test
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> found = stein_test(x, -x, generator=torch.Generator().manual_seed(0))
        >>> found.p_value > 0.05, found.points
        (True, 200)
    """

    discrepancy: float
    p_value: float
    points: int


def stein_kernel(
    x: Float[Tensor, "n dim"], gradient: Float[Tensor, "n dim"], bandwidth: float = 1.0
) -> Float[Tensor, "n n"]:
    """The Stein kernel u(x, y) of the inverse multiquadric k(x, y) = (c² + ‖x − y‖²)^(−1/2).

    u(x, y) = s(x)·s(y) k + s(x)·∇_y k + s(y)·∇_x k + tr ∇_x∇_y k, whose mean over x vanishes for
    every y when x follows the law whose score is s.

    Args:
        x: points, (n, D).
        gradient: s at the points, (n, D).
        bandwidth: c, in the units of x.
    """
    # d·g over all pairs from Gram matrices: no (n, n, D) array
    inner = x @ x.mT
    norm = inner.diagonal()
    squared = (norm.unsqueeze(-1) + norm - 2 * inner).clamp_min(0)
    q = bandwidth**2 + squared
    k = q.rsqrt()
    k3 = k / q
    cross = x @ gradient.mT  # x_i · s_j
    own = cross.diagonal()
    along = own.unsqueeze(-1) + own - cross - cross.mT  # (x_i − x_j)·(s_i − s_j)
    dim = x.shape[-1]
    return gradient @ gradient.mT * k + along * k3 + dim * k3 - 3 * squared * k3 / q


def kernel_stein_discrepancy(
    x: Float[Tensor, "n dim"],
    gradient: Float[Tensor, "..."],
    *,
    scale: Float[Tensor, "..."] | None = None,
    bandwidth: float = 1.0,
    statistic: str = "U",
    max_points: int = 1000,
) -> Float[Tensor, ""]:
    """The squared kernel Stein discrepancy: the mean over pairs of u(x_i, x_j), whitened.

    With s = ∇ log p and k(x, y) = (c² + ‖x − y‖²)^(−1/2), u(x, y) = s(x)·s(y) k + s(x)·∇_y k +
    s(y)·∇_x k + tr ∇_x∇_y k.

    Args:
        x: draws, (n, D).
        gradient: ∇ log p at the draws, (n, D).
        scale: L of u = L⁻¹x: (D,) standard deviations or a (D, D) factor of the covariance; the
            draws' own standard deviations when None.
        bandwidth: c of the kernel, in whitened units.
        statistic: "U" leaves out i = j: unbiased, of either sign; "V" keeps it: never negative,
            and of order 1/n for exact draws.
        max_points: more draws than this are thinned evenly; the cost is its square.

    Returns:
        A number, (), in float64.

    Raises:
        ValueError: shapes that do not fit, fewer than 2 draws, entries that are not finite.

    Source: Gorham and Mackey (2017), Measuring sample quality with kernels.

    Example:
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> right, wrong = (kernel_stein_discrepancy(x, g) for g in (-x, -2 * x))
        >>> abs(right) < 0.01 < wrong
        tensor(True)
    """
    validation.choice("statistic", statistic, ("U", "V"))
    u = _kernel_matrix(x, gradient, scale, bandwidth, max_points)
    n = len(u)
    if statistic == "V":
        return u.mean()
    return (u.sum() - u.trace()) / (n * (n - 1))


def stein_test(
    x: Float[Tensor, "n dim"],
    gradient: Float[Tensor, "..."],
    *,
    scale: Float[Tensor, "..."] | None = None,
    bandwidth: float = 1.0,
    max_points: int = 1000,
    replicates: int = 1000,
    generator: torch.Generator | None = None,
) -> SteinTest:
    """Test whether draws follow a score, by the kernel Stein discrepancy and a wild bootstrap.

    Replicates B = Σ_{i≠j} w_i w_j u_ij / n(n − 1) stand for the discrepancy of exact draws. The
    signs w = ±1 are independent, so the draws must nearly be: thin correlated chains first
    (`ozaki.diagnostics.thinning` says by how much).

    Args:
        x: draws, (n, D), nearly independent.
        gradient: ∇ log p at the draws, (n, D).
        scale: as in `kernel_stein_discrepancy`.
        bandwidth: c of the kernel, in whitened units.
        max_points: more draws than this are thinned evenly.
        replicates: how many B are drawn.
        generator: the source of the signs.

    Returns:
        The test, whose discrepancy is the U-statistic.

    Raises:
        ValueError: as `kernel_stein_discrepancy`.

    Source: Chwialkowski, Strathmann and Gretton (2016), A kernel test of goodness of fit.

    Example:
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> stein_test(x, -2 * x, generator=torch.Generator().manual_seed(0)).p_value < 0.01
        True
    """
    validation.count("replicates", replicates)
    u = _kernel_matrix(x, gradient, scale, bandwidth, max_points)
    n = len(u)
    u = (u - torch.diag(u.diagonal())) / (n * (n - 1))
    coins = torch.rand(replicates, n, generator=generator, dtype=u.dtype, device=u.device)
    signs = torch.where(coins < 0.5, -1.0, 1.0).to(u.dtype)
    null = ((signs @ u) * signs).sum(-1)
    observed = u.sum()
    beaten = int((null >= observed).sum())
    return SteinTest(float(observed), (1 + beaten) / (1 + replicates), n)


def _kernel_matrix(
    x: Tensor, gradient: Tensor, scale: Tensor | None, bandwidth: float, max_points: int
) -> Tensor:
    """Check and thin the draws, whiten them, and return u(x_i, x_j), (n, n)."""
    validation.shape("x", x, (None, None))
    validation.shape("gradient", gradient, tuple(x.shape))
    validation.positive("bandwidth", bandwidth)
    validation.count("max_points", max_points, minimum=2)
    if len(x) < 2:
        raise ValueError(f"x must hold at least 2 draws, but held {len(x)}")
    validation.finite("x", x)
    validation.finite("gradient", gradient)
    if len(x) > max_points:
        keep = torch.linspace(0, len(x) - 1, max_points, device=x.device).round().long()
        x, gradient = x[keep], gradient[keep]
    x, gradient = x.double(), gradient.double()  # Gram matrices cancel: float32 would not do
    x = x - x.mean(0)
    if scale is None:
        scale = x.std(0)
        scale = torch.where(scale > 0, scale, 1.0)
    scale = scale.to(x)
    if scale.ndim == 1:
        validation.shape("scale", scale, (x.shape[-1],))
        return stein_kernel(x / scale, gradient * scale, bandwidth)
    validation.shape("scale", scale, (x.shape[-1], x.shape[-1]))
    return stein_kernel(torch.linalg.solve(scale, x.mT).mT, gradient @ scale, bandwidth)
