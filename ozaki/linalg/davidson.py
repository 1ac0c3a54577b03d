"""`leading_pairs` finds the largest eigenpairs of a diagonal plus low rank without its matrix.

With a varying diagonal, S = diag(a) + B diag(e) Bᵀ has no closed eigendecomposition. Its largest
pairs are found by Rayleigh and Ritz on a growing subspace, after Davidson: a pair (θ, u) that is
not yet exact adds its residual and (θ − a)⁻¹ B diag(e) Bᵀ u, which is the eigenvector itself once θ
and Bᵀu are exact. The subspace begins with B and the unit vectors of the k + r largest a. Where a
is constant it then holds the answer, and in general every eigenvector orthogonal to B that can be
among the k largest, since a change of rank r moves at most r eigenvalues past another.

That no pair was missed is known from Sylvester's law of inertia (Haynsworth 1968): S has as many
eigenvalues above λ as diag(a − λ) has, plus −diag(e)⁻¹ − Bᵀ(a − λ)⁻¹B, less −diag(e)⁻¹.

Reference:
    Davidson, "The iterative calculation of a few of the lowest eigenvalues and corresponding
    eigenvectors of large real-symmetric matrices", Journal of Computational Physics, 1975.
"""

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float

ROUNDING = 30.0  # largest residual that counts as zero, in units of rounding
ROUNDS = 300
WIDENED = 3  # how often more pairs are sought because one was missed


def leading_pairs(
    a: Float[Tensor, "n dim"], b: Float[Tensor, "n dim rank"], e: Float[Tensor, "n rank"], k: int
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n dim k"]]:
    """Find the k largest eigenvalues, descending, and their eigenvectors, up to rounding.

    Args:
        a, b, e: the parts of n operators.
        k: how many, at most D.

    Raises:
        ArithmeticError: the residuals stay above rounding, as those of parts that are not finite.
    """
    dim, rank = b.shape[-2:]
    sought = k
    for _ in range(WIDENED):
        values, vectors = _iterate(a, b, e, sought)
        if sought == dim or bool((_count_above(a, b, e, values[:, k - 1]) < k).all()):
            return values[:, :k], vectors[..., :k]
        sought = min(dim, sought + rank + k)
    raise ArithmeticError(
        f"the {k} largest eigenpairs of a low-rank operator of {dim} dimensions were not found; "
        "convert it to float64 with astype, or ask for fewer"
    )


def _iterate(a: Tensor, b: Tensor, e: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Grow the subspace until the residuals of the k largest pairs are rounding."""
    dim = b.shape[-2]
    eps = torch.finfo(a.dtype).eps
    size = _size(a, b, e)
    bar = (ROUNDING * eps * size).unsqueeze(-1)
    basis = _start(a, b, k)
    widest = min(dim, basis.shape[-1] + 8 * k + 16)
    for _ in range(ROUNDS):
        inside = _product(a, b, e, basis)
        values, weights = torch.linalg.eigh(basis.mT @ inside)
        values, weights = values[:, -k:].flip(-1), weights.flip(-1)
        u = basis @ weights[..., :k]
        residual = inside @ weights[..., :k] - u * values.unsqueeze(-2)
        if basis.shape[-1] == dim or bool((residual.norm(dim=-2) <= bar).all()):
            return values, u
        # the part of (θ − a)⁻¹ r that is new
        gap = values.unsqueeze(-2) - a.unsqueeze(-1)
        least = (eps * size)[:, None, None]
        gap = torch.where(gap.abs() < least, least, gap)
        solved = (b @ (e.unsqueeze(-1) * (b.mT @ u))) / gap
        more = torch.cat((_unit(residual), _unit(solved)), -1)
        if basis.shape[-1] + more.shape[-1] > widest:
            basis = basis @ weights[..., : max(k, widest - 4 * more.shape[-1])]
        room = dim - basis.shape[-1]
        # Householder's Q is orthonormal even where columns are 0, as those of finished pairs are
        basis = torch.linalg.qr(torch.cat((basis, more[..., :room]), -1))[0]
    raise ArithmeticError(
        f"the {k} largest eigenpairs of a low-rank operator of {dim} dimensions did not settle in "
        f"{ROUNDS} rounds; check that its parts are finite, or ask for fewer"
    )


def _start(a: Tensor, b: Tensor, k: int) -> Tensor:
    """Make the first subspace: B, and the unit vectors of the largest a."""
    dim, rank = b.shape[-2:]
    if 2 * rank + k >= dim:
        return torch.eye(dim, dtype=a.dtype, device=a.device).expand(len(a), dim, dim)
    largest = a.topk(k + rank, -1).indices
    units = torch.zeros(len(a), dim, k + rank, dtype=a.dtype, device=a.device)
    units.scatter_(-2, largest.unsqueeze(-2), 1.0)
    return torch.linalg.qr(torch.cat((_unit(b), units), -1))[0]


def _size(a: Tensor, b: Tensor, e: Tensor) -> Tensor:
    """Return a bound of ‖S‖, which is seldom far above it, (n,)."""
    thin = b * e.abs().sqrt().unsqueeze(-2)
    return a.abs().amax(-1) + torch.linalg.eigvalsh(thin.mT @ thin)[:, -1]


def _product(a: Tensor, b: Tensor, e: Tensor, v: Tensor) -> Tensor:
    return a.unsqueeze(-1) * v + b @ (e.unsqueeze(-1) * (b.mT @ v))


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-2, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)


def _count_above(a: Tensor, b: Tensor, e: Tensor, least: Tensor) -> Tensor:
    """Count the eigenvalues of each operator that lie clearly above `least`, (n,)."""
    level = (least + torch.finfo(a.dtype).eps ** 0.5 * _size(a, b, e)).unsqueeze(-1)
    signs = torch.where(e < 0, -1.0, 1.0).to(a.dtype)
    thin = b * e.abs().sqrt().unsqueeze(-2)
    small = torch.diag_embed(signs) + thin.mT @ (thin / (a - level).unsqueeze(-1))
    inertia = (torch.linalg.eigvalsh(small) < 0).sum(-1)
    return (a > level).sum(-1) + inertia - (signs < 0).sum(-1)
