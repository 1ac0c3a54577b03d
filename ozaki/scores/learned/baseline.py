"""`Baseline` is the normal with the data's covariance, from which a network learns the difference.

The network learns what is left of the scores beyond those of this normal.

Smoothed at σ it has s1 = −P (x − mean) and s2 = −P with P = V diag(p) Vᵀ, p = 1/(λ + σ²), where
V diag(λ) Vᵀ is the covariance of the data: one eigendecomposition serves every σ. V is shared by
all points, each of which costs two products with it; none has a D × D matrix of its own.
"""

import torch
from torch import Tensor, nn

from ozaki.foundation.shapes import Float

BLOCK = 65_536  # rows that are in float64 at a time
LEAST = 1e-6  # of the mean variance, for a direction without variance
SHARES = (0.0, *(10 ** (-k / 2) for k in range(10, -1, -1)))  # of an isotropic part


class Baseline(nn.Module):
    """s1 and s2 of a smoothed normal, the latter in the form in which networks carry it.

    A diagonal s2 begins at diag(−P). A low-rank one of r columns holds exactly all eigenvalues of
    −P but D − r neighbouring ones, of which it holds the mean and, on the diagonal, the rest: those
    below them in negative columns, those above in positive ones.

    Args:
        dim: D.
        rank: r; 0 for a diagonal.
        below: how many of the columns are negative.
    """

    mean: Tensor
    vectors: Tensor
    values: Tensor

    def __init__(self, dim: int, rank: int = 0, below: int = 0):
        super().__init__()
        self.rank, self.below = rank, below
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("vectors", torch.eye(dim))
        self.register_buffer("values", torch.ones(dim))

    def score(self, x: Float[Tensor, "*batch dim"], sigma: float | Tensor) -> Tensor:
        """s1 = −P (x − mean), (*batch, D)."""
        return (((self.mean - x) @ self.vectors) * self._precision(sigma)) @ self.vectors.mT

    def diagonal(self, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        """The diagonal part a of s2, and 1 + σ² a, which would cancel; each (D,) or (*batch, D)."""
        p = self._precision(sigma)
        squares = self.vectors.square().mT
        return -self._level(p) @ squares, self._level(self.values * p) @ squares

    def factor(self, sigma: float | Tensor, c: float | Tensor) -> Tensor:
        """The columns B of s2 = diag(a) + c² B diag(±1) Bᵀ, (D, r) or (*batch, D, r)."""
        p = self._precision(sigma)
        size = (p - self._mean(p)).abs().sqrt() / c
        order = [*range(self.below + p.shape[-1] - self.rank, p.shape[-1]), *range(self.below)]
        return self.vectors[:, order] * size[..., order].unsqueeze(-2)

    def gain(self, sigma: float) -> float:
        """Return how much more of s1 this normal explains than an isotropic one, were it true.

        The denoising loss of the linear score −P(x − mean) is −½ tr P at its own law, that of the
        isotropic normal of as large a total variance −½ D² / tr P⁻¹: their ratio is the arithmetic
        mean of the variances λ + σ² over the harmonic one, 1 where all are alike.
        """
        variances = self.values + sigma**2
        return float(variances.mean() * variances.reciprocal().mean())

    @property
    def signs(self) -> Float[Tensor, " rank"]:
        """±1 for each of the columns."""
        return torch.where(torch.arange(self.rank) < self.rank - self.below, 1.0, -1.0)

    def _precision(self, sigma: float | Tensor) -> Tensor:
        return 1 / (self.values + sigma**2)

    def _mean(self, numbers: Tensor) -> Tensor:
        """Return the mean over the eigenvalues that no column holds, (*batch, 1)."""
        low = min(self.below, numbers.shape[-1] - 1)
        high = max(self.below + numbers.shape[-1] - self.rank, low + 1)
        return numbers[..., low:high].mean(-1, keepdim=True)

    def _level(self, numbers: Tensor) -> Tensor:
        """Return the numbers, with that mean in place of those that columns hold."""
        high = self.below + numbers.shape[-1] - self.rank
        mean = self._mean(numbers)
        ends = [mean.expand(*mean.shape[:-1], n) for n in (self.below, numbers.shape[-1] - high)]
        return torch.cat((ends[0], numbers[..., self.below : high], ends[1]), -1)


@torch.no_grad()
def fitted(
    rows: Float[Tensor, "n dim"],
    held: Float[Tensor, "m dim"],
    sigma: float,
    rank: int = 0,
    signed: bool = True,
) -> Baseline:
    """Fit a baseline to the rows' mean and covariance, shrunk to a multiple of I if rows are few.

    How far is the choice, of some, with the least denoising loss of the linear score −P(x − mean)
    on rows held out, in closed form: ½ tr P(H + σ²I)P − tr P with H their covariance.

    Args:
        rows: in the network's units.
        held: further rows.
        sigma: σ, of a range one from its middle.
        rank: r of s2's low rank; 0 for a diagonal.
        signed: whether columns may be negative.
    """
    n, dim = rows.shape
    mean = sum(b.double().sum(0) for b in rows.split(BLOCK)) / n
    covariance = sum((c := b.double() - mean).mT @ c for b in rows.split(BLOCK)) / max(n - 1, 1)
    values, vectors = torch.linalg.eigh(covariance)
    seen = sum(((b.double() - mean) @ vectors).square().sum(0) for b in held.split(BLOCK))
    seen = seen / len(held) + sigma**2
    level = values.mean()
    values = values.clamp_min(LEAST * level)

    def loss(share: float) -> float:
        p = 1 / ((1 - share) * values + share * level + sigma**2)
        return float((0.5 * p.square() * seen - p).sum())

    share = min(SHARES, key=loss)
    values = (1 - share) * values + share * level
    below = int((starting_signs(values, sigma, rank) < 0).sum()) if rank and signed else 0
    found = Baseline(dim, rank, below).double()
    found.load_state_dict({"mean": mean, "vectors": vectors, "values": values})
    return found


@torch.no_grad()
def starting_signs(
    variances: Float[Tensor, " dim"], sigma: float, rank: int
) -> Float[Tensor, " rank"]:
    """Return the signs with which low-rank weights begin: those of a normal of these variances.

    Its s2 has the eigenvalues −1/(μ + σ²). A constant diagonal and r columns hold D − r
    neighbouring ones of them by their mean, and the rest exactly, those above by positive columns,
    those below by negative ones: the D − r that vary least are left to the diagonal. A weight
    crosses zero only slowly, for its column vanishes with it: 1,000 steps of OCM on a 100-d normal
    that needs 30 negative columns of 40 left an error of 4.9 from half of either sign, and of 0.001
    from all negative ones. An eighth is of either sign always, for the data that are no normal.

    Args:
        variances: μ, the eigenvalues of the covariance, ascending.
        sigma: σ.
        rank: r ≤ D.

    Returns:
        ±1, (r,), the positive ones first.
    """
    values = -1 / (variances + sigma**2)  # ascending
    count = max(len(variances) - rank, 1)
    windows = values.unfold(0, count, 1)[: rank + 1].var(-1, correction=0)
    # the first of the window's start is the number of columns below; halves where all do as well
    starts = torch.nonzero(windows <= windows.min() * (1 + 1e-6)).flatten()
    negative = int(starts[(starts - rank / 2).abs().argmin()])
    negative = min(max(negative, rank // 8), rank - rank // 8)
    return torch.cat((torch.ones(rank - negative), -torch.ones(negative)))


@torch.no_grad()
def variances(rows: Float[Tensor, "n dim"]) -> Float[Tensor, " dim"]:
    """Return the eigenvalues of the rows' covariance, ascending."""
    n, dim = rows.shape
    centred = (rows.double() - rows.double().mean(0)) / max(n - 1, 1) ** 0.5
    # the smaller of the two Gram matrices: all further eigenvalues of the other are zero
    found = torch.linalg.eigvalsh(centred.mT @ centred if dim <= n else centred @ centred.mT)
    result = torch.zeros(dim, dtype=torch.float64)
    result[dim - len(found) :] = found.clamp_min(0).cpu()
    return result
