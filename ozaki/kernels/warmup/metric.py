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


class PooledMoments:
    """The covariance of all chains' positions, and that of their gradients, by Welford's update.

    Args:
        dim: D.
        dense: whether to keep whole matrices or their diagonals.
        like: a tensor of the dtype and device to work in.
    """

    def __init__(self, dim: int, dense: bool, like: Tensor):
        zeros = like.new_zeros(2, dim, dtype=torch.float64)
        self._count = [0, 0]  # of positions, and of gradients
        self._mean = zeros
        self._scatter = zeros.new_zeros((2, dim, dim) if dense else (2, dim))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was folded in."""
        count = torch.tensor(self._count)
        return {"count": count, "mean": self._mean, "scatter": self._scatter}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self._count = tensors["count"].tolist()
        self._mean, self._scatter = (tensors[k].to(self._mean) for k in ("mean", "scatter"))

    def add(
        self, x: Float[Tensor, "n dim"], gradient: Float[Tensor, "n dim"] | None = None
    ) -> None:
        """Fold in positions, (n, D), and the gradients there if they are known."""
        for place, value in enumerate((x, gradient)):
            if value is not None:
                self._fold(place, value.to(self._mean))

    def _fold(self, place: int, x: Tensor) -> None:
        n, count = len(x), self._count[place]
        mean, scatter = self._mean[place], self._scatter[place]
        middle = x.mean(0)
        centred, shift = x - middle, middle - mean
        between = count * n / (count + n)
        if scatter.ndim == 1:
            scatter += centred.square().sum(0) + between * shift.square()
        else:
            scatter += centred.mT @ centred + between * torch.outer(shift, shift)
        mean += shift * (n / (count + n))
        self._count[place] = count + n

    def factor(self, dtype: torch.dtype) -> Float[Tensor, "..."] | None:
        """L with L Lᵀ the covariance S, (D,) or lower triangular (D, D); None if not definite.

        A matrix is shrunk towards its own diagonal by ((D + 5)/(n + D + 5))³: without units,
        definite from the first window on, and of many draws by next to nothing. An intercept and a
        slope on years are correlated at −0.99999, and a shrinkage of 1% would leave the narrow
        direction wide by a factor of 1,000.
        """
        covariance = self._covariance(0)
        if covariance is None:
            return None
        if covariance.ndim == 1:
            return covariance.sqrt().to(dtype)
        root, failed = torch.linalg.cholesky_ex(covariance)
        return None if bool(failed) else root.to(dtype)

    def scores_factor(self, dtype: torch.dtype) -> Float[Tensor, "..."] | None:
        """L with L Lᵀ = A, the geometric mean of S and P⁻¹: A P A = S, P that of the gradients.

        Of all normals N(m, A) it is nearest to the law by the Fisher divergence over the draws, and
        exact on a normal from D + 1 draws on, wherever they lie. Worked out in units of the
        spread of each coordinate, both matrices shrunk as S is. For diagonals √(var x / var s1).

        Source: Seyboldt et al., "Preconditioning Hamiltonian Monte Carlo by minimizing Fisher
        divergence" (2026).
        """
        s, p = self._covariance(0), self._covariance(1)
        if s is None or p is None:
            return None
        if s.ndim == 1:
            return (s / p).pow(0.25).to(dtype)
        spread = s.diagonal().sqrt()
        scale = torch.outer(spread, spread)
        root = _power(s / scale, 0.5)
        if root is None:
            return None
        inverse = _power(root @ (p * scale) @ root, -0.5)
        if inverse is None:
            return None
        mean = root @ inverse @ root
        factor, failed = torch.linalg.cholesky_ex((mean + mean.mT) / 2)
        return None if bool(failed) else (spread.unsqueeze(-1) * factor).to(dtype)

    def _covariance(self, place: int) -> Tensor | None:
        """Return the shrunk covariance, of positions or of gradients; None if it is degenerate."""
        count = self._count[place]
        if count < 2:
            return None
        covariance = self._scatter[place] / (count - 1)
        variance = covariance.diagonal() if covariance.ndim == 2 else covariance
        if not bool((torch.isfinite(variance) & (variance > 0)).all()):
            return None
        if covariance.ndim == 1:
            return covariance
        dim = len(variance)
        weight = ((dim + 5) / (count + dim + 5)) ** 3
        return (1 - weight) * covariance + weight * torch.diag(variance)


class Typical:
    """Where a coordinate lies as a rule: its median and its spread, from some of the draws.

    A chain far from the others moves neither, however far it is.

    Args:
        like: a tensor of the dtype and device to work in.
    """

    ROWS, EACH = 2048, 256  # most positions that are kept, and of one step

    def __init__(self, like: Tensor):
        self._rows = like.new_zeros(0, like.shape[-1])
        self._seen, self._every = 0, 1

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was kept."""
        return {"rows": self._rows, "seen": torch.tensor([self._seen, self._every])}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self._rows = tensors["rows"]
        self._seen, self._every = tensors["seen"].tolist()

    def add(self, path: Float[Tensor, "steps chains dim"]) -> None:
        """Keep the chains' positions after some steps: of many steps every second is dropped."""
        chosen = path[-self._seen % self._every :: self._every, : self.EACH]
        self._rows = torch.cat([self._rows, chosen.flatten(0, 1)])
        self._seen += len(path)
        while len(self._rows) > self.ROWS:
            self._rows = self._rows.unflatten(0, (-1, chosen.shape[1]))[::2].flatten(0, 1)
            self._every *= 2

    def scale(self) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
        """The median, and half the way from the 16th to the 84th percentile, (D,) each."""
        at = self._rows.new_tensor([0.16, 0.5, 0.84]).double()
        low, middle, high = self._rows.double().quantile(at, 0)
        spread = (high - low) / 2
        return middle, torch.where(spread > 0, spread, torch.ones_like(spread))


def _power(matrix: Tensor, exponent: float) -> Tensor | None:
    """A power of a positive definite matrix; None where it is not one."""
    values, vectors = torch.linalg.eigh(matrix)
    least = values.amax() * len(values) * torch.finfo(values.dtype).eps
    if not bool(torch.isfinite(values).all()) or not bool(least > 0):
        return None
    return vectors * values.clamp(min=least).pow(exponent) @ vectors.mT


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
