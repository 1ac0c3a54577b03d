"""The laws of the paper's Table 1 and their smoothed scores, for benchmarks."""

import numpy as np
import torch
from torch import Tensor

from ozaki.linalg import Diagonal
from ozaki.scores.analytic import GaussianMixtureScore, GaussianScore, LogisticMixtureScore
from ozaki.scores.base import Expansion


def stiff_normal(seed: int, dim: int = 100, rank: int = 30) -> GaussianScore:
    """A normal of precision 0.5 I + Q diag(λ) Qᵀ, λ from 1 to 3: a few stiff directions."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(dim, rank, generator=g, dtype=torch.float64))
    values = torch.linspace(1, 3, rank, dtype=torch.float64)
    precision = 0.5 * torch.eye(dim, dtype=torch.float64) + (q * values) @ q.mT
    return _normal(torch.linalg.inv(precision))


def flat_normal(seed: int, dim: int = 100, rank: int = 20) -> GaussianScore:
    """A normal of covariance 0.05 I + W Wᵀ, W of standard normals: near a subspace."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(dim, rank, generator=g, dtype=torch.float64)
    return _normal(0.05 * torch.eye(dim, dtype=torch.float64) + w @ w.mT)


def logistic_mixture(seed: int, dim: int, modes: int = 20) -> LogisticMixtureScore:
    """20 components, locations N(0, 1), scale 0.5."""
    g = torch.Generator().manual_seed(seed)
    locations = torch.randn(modes, dim, generator=g)
    return LogisticMixtureScore(
        locations, torch.full_like(locations, 0.5), torch.full((modes,), 1 / modes)
    )


def gaussian_mixture(seed: int, dim: int, modes: int) -> GaussianMixtureScore:
    """Means N(0, 1.5²), correlated covariances, unequal weights."""
    g = torch.Generator().manual_seed(seed)
    means = 1.5 * torch.randn(modes, dim, generator=g)
    root = torch.randn(modes, dim, dim, generator=g) / dim**0.5
    weights = torch.rand(modes, generator=g) + 0.5
    covariances = 0.3 * root @ root.mT + 0.1 * torch.eye(dim)
    return GaussianMixtureScore(means, covariances, weights / weights.sum())


class SmoothLogisticMixture:
    """The score of a logistic mixture with noise: a quadrature for each coordinate and component.

    The noise is independent by coordinate, so p_σ = Σ w_k Π_i f_ki(x_i) with f_ki the logistic
    density convolved with N(0, σ²), here by Gauss-Hermite quadrature.
    """

    def __init__(self, law: LogisticMixtureScore, sigma: float, nodes: int = 40):
        self.law = law
        places, weights = np.polynomial.hermite_e.hermegauss(nodes)
        self.places = torch.from_numpy(sigma * places)
        self.shares = torch.from_numpy(weights / weights.sum())

    def expand(self, x: Tensor, curvature: str | None = None) -> Expansion:
        parts = [self._block(block.double()) for block in x.split(100)]
        gradient, diagonal = (torch.cat(p).to(x.dtype) for p in zip(*parts, strict=True))
        return Expansion(gradient, Diagonal(diagonal), None)

    def _block(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.law.scales.double().unsqueeze(-1)
        centre = self.law.locations.double().unsqueeze(-1)
        s = torch.sigmoid((x[:, None, :, None] - centre - self.places) / scale)
        bell, slope = s * (1 - s), 1 - 2 * s
        f = (bell @ self.shares) / scale[..., 0]
        first = (bell * slope) @ self.shares / scale[..., 0] ** 2 / f
        second = (bell * (slope.square() - 2 * bell)) @ self.shares / scale[..., 0] ** 3 / f
        log = f.log().sum(-1) + self.law.weights.double().log()
        share = torch.softmax(log, -1).unsqueeze(-1)
        gradient = (share * first).sum(1)
        return gradient, (share * second).sum(1) - gradient.square()


def smooth(law, sigma: float):
    """The law with noise of standard deviation σ."""
    if isinstance(law, LogisticMixtureScore):
        return SmoothLogisticMixture(law, sigma)
    return law.smooth(sigma)


def spread(law) -> float:
    """The standard deviation over all coordinates, from draws."""
    return float(law.sample(20_000, torch.Generator().manual_seed(1)).std())


def _normal(covariance: Tensor) -> GaussianScore:
    covariance = (covariance + covariance.mT) / 2
    return GaussianScore(torch.zeros(len(covariance)), covariance.float())
