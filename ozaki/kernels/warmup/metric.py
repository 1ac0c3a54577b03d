"""These classes estimate the metric from the chains' positions and from curvatures."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.kernels.proposals import concave
from ozaki.linalg import Dense, Diagonal, SymmetricOperator

FLAT = 1e-4
"""The least curvature that counts in making a metric, as a share of the largest."""


class PooledCovariance:
    """The covariance of all chains' positions about their common mean, by Welford's update.

    Args:
        dim: D.
        dense: whether to keep the whole matrix or its diagonal.
        like: a tensor of the dtype and device to work in.
    """

    def __init__(self, dim: int, dense: bool, like: Tensor):
        self.count = 0
        self.mean = like.new_zeros(dim, dtype=torch.float64)
        self._scatter = self.mean.new_zeros((dim, dim) if dense else (dim,))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was folded in."""
        count = torch.tensor(self.count)
        return {"count": count, "mean": self.mean, "scatter": self._scatter}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.count = int(tensors["count"])
        self.mean, self._scatter = (tensors[k].to(self.mean) for k in ("mean", "scatter"))

    def add(self, x: Float[Tensor, "chains dim"]) -> None:
        """Fold in one position a chain, (chains, D)."""
        x = x.to(self.mean)
        n = len(x)
        mean = x.mean(0)
        centred, shift = x - mean, mean - self.mean
        between = self.count * n / (self.count + n)
        if self._scatter.ndim == 1:
            self._scatter += centred.square().sum(0) + between * shift.square()
        else:
            self._scatter += centred.mT @ centred + between * torch.outer(shift, shift)
        self.mean = self.mean + shift * (n / (self.count + n))
        self.count += n

    def factor(self, dtype: torch.dtype) -> Float[Tensor, "..."] | None:
        """L with L Lᵀ the covariance, (D,) or lower triangular (D, D); None if it is not definite.

        A matrix is shrunk towards its own diagonal by (D + 5)/(n + D + 5): without units, and
        definite from the first window on.
        """
        if self.count < 2:
            return None
        covariance = self._scatter / (self.count - 1)
        dense = covariance.ndim == 2
        variance = covariance.diagonal() if dense else covariance
        if not bool((torch.isfinite(variance) & (variance > 0)).all()):
            return None
        if not dense:
            return variance.sqrt().to(dtype)
        dim = len(variance)
        weight = self.count / (self.count + dim + 5)
        shrunk = weight * covariance + (1 - weight) * torch.diag(variance)
        root, failed = torch.linalg.cholesky_ex(shrunk)
        return None if bool(failed) else root.to(dtype)


class MeanCurvature:
    """The mean, over steps and chains, of min(s2, 0), which a frozen kernel uses at all points."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was folded in."""
        found = {"count": torch.tensor(self.count)}
        return found if self._sum is None else {**found, "sum": self._sum}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.count, self._sum = int(tensors["count"]), tensors.get("sum")

    def add(self, curvature: SymmetricOperator) -> None:
        """Fold in one curvature a chain."""
        fine, safe = _finite_concave(curvature)
        each = safe.diagonal() if isinstance(safe, Diagonal) else safe.dense()
        total = each[fine].sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self.count += int(fine.sum())

    def average(self) -> Dense | Diagonal:
        """The mean.

        Raises:
            ValueError: no curvature was finite.
        """
        if self._sum is None or self.count == 0:
            raise ValueError(
                "frozen must be False here, but was True: the curvature was not finite at any "
                "point of warm-up, so that there is nothing to average"
            )
        mean = self._sum / self.count
        return Diagonal(mean) if mean.ndim == 1 else Dense((mean + mean.mT) / 2)


def precision_factor(curvature: SymmetricOperator, dense: bool) -> Float[Tensor, "..."] | None:
    """L with L Lᵀ = (−mean of min(s2, 0))⁻¹, a metric before there are draws to make one of.

    Directions of less than `FLAT` of the largest curvature count as having that much.

    Args:
        curvature: one a chain.
        dense: whether L is lower triangular, (D, D), or a diagonal, (D,).

    Returns:
        L, or None where no chain has a finite curvature, or one below 0.
    """
    fine, safe = _finite_concave(curvature)
    if not bool(fine.any()):
        return None
    mean = -(safe.dense() if dense else safe.diagonal())[fine].mean(0)
    values, vectors = torch.linalg.eigh(mean) if dense else (mean, None)
    largest = float(values.max())
    if not 0 < largest < math.inf:
        return None
    variance = 1 / values.clamp(min=FLAT * largest)
    if vectors is None:
        return variance.sqrt()
    root, failed = torch.linalg.cholesky_ex(vectors * variance @ vectors.mT)
    return None if bool(failed) else root


def _finite_concave(curvature: SymmetricOperator) -> tuple[Tensor, SymmetricOperator]:
    """Return which chains have a finite curvature, and min(s2, 0), with 0 for the others."""
    fine = torch.isfinite(curvature.frobenius_squared())

    def blank(t: Tensor) -> Tensor:
        return torch.where(fine.reshape(fine.shape + (1,) * (t.ndim - 1)), t, 0)

    return fine, concave(curvature.rebuild(tuple(blank(t) for t in curvature.tensors)))
