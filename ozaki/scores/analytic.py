"""These scores have closed forms: Gaussian, Gaussian mixture, mixture of logistics.

Each gives gradient, log density, full and diagonal curvature, exact draws, and, where the
convolution with Gaussian noise is closed, its own smoothing. They are the oracles of the tests, and
can take the place of a trained estimator or a model.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ozaki.foundation import validation
from ozaki.foundation.shapes import Float
from ozaki.linalg import Dense, Diagonal, SymmetricOperator
from ozaki.scores.base import CurvatureKind, Expansion, Score, dense_up_to

Array = Tensor | Sequence[Any] | Any


class _ClosedForm(Score):
    """The base of closed forms: where they start and which curvature they prefer."""

    def _place(self, like: Tensor) -> None:
        self.dim = like.shape[-1]
        self.event_shape = torch.Size([self.dim])
        self.dtype = like.dtype
        self.device = like.device

    @property
    def default_curvature(self) -> CurvatureKind:
        """Dense up to D = 100, diagonal beyond."""
        return dense_up_to(self.dim)

    def expand(
        self, x: Float[Tensor, "*batch dim"], curvature: CurvatureKind | None = None
    ) -> Expansion:
        """Gradient, curvature ("diagonal" or "dense") and log density at x, (*batch, D).

        It is computed in `dtype`; what comes back has the dtype of x.

        Raises:
            ValueError: another curvature, x of another last dimension, or whole numbers.
        """
        self.check(x, curvature)
        gradient, s2, log_density, _ = found = self._expand(x.to(self.dtype), curvature)
        if x.dtype == self.dtype:
            return found
        assert log_density is not None
        s2 = None if s2 is None else s2.astype(x.dtype)
        return Expansion(gradient.to(x.dtype), s2, log_density.to(x.dtype))

    @abstractmethod
    def _expand(self, x: Tensor, curvature: CurvatureKind | None) -> Expansion: ...

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """`n` exact, independent draws.

        Args:
            n: how many.
            generator: of the draws; None for torch's global one.

        Returns:
            (n, D).
        """

    def start(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """`n` exact draws: a chain begins in its own law."""
        return self.sample(n, generator)

    def _normal(self, n: int, generator: torch.Generator | None) -> Tensor:
        return torch.randn(n, self.dim, dtype=self.dtype, device=self.device, generator=generator)


class GaussianScore(_ClosedForm):
    """The score of N(μ, Σ): ∇ log p = −Σ⁻¹(x − μ), ∇² log p = −Σ⁻¹.

    Args:
        mean: μ, (D,).
        covariance: Σ, (D, D), symmetric and positive definite, of any condition.

    Raises:
        ValueError: shapes that do not fit, entries not finite, Σ not positive definite.

    Source: Petersen and Pedersen (2012), The matrix cookbook, section 8.

    Example:
        >>> score = GaussianScore(torch.zeros(2), torch.eye(2))
        >>> score.expand(torch.tensor([1.0, -2.0])).gradient
        tensor([-1.,  2.])
    """

    def __init__(self, mean: Array, covariance: Array):
        self.mean = validation.shape("mean", validation.floating("mean", mean), (None,))
        self._place(self.mean)
        sigma = validation.floating("covariance", covariance).to(self.mean)
        self.covariance = validation.shape("covariance", sigma, (self.dim, self.dim))
        root = validation.covariance("covariance", _even(self.covariance))
        self._root = root.to(self.dtype)
        # eigenvalues of Σ are squares here, where rounding can leave eigh some below 0
        vectors, roots, _ = torch.linalg.svd(root)
        self._eigen = ((-1 / roots.square()).to(self.dtype), vectors.to(self.dtype))
        self._curvature = Dense.from_eigen(*self._eigen)

    def _expand(self, x: Tensor, curvature: CurvatureKind | None) -> Expansion:
        values, vectors = self._eigen
        along = (x - self.mean) @ vectors
        # a sum of squares, where (x − μ)ᵀ s1 would cancel
        log_density = 0.5 * (values * along.square()).sum(-1)
        gradient = (values * along) @ vectors.mT
        return Expansion(gradient, self._constant(x.shape, curvature), log_density)

    def _constant(
        self, shape: torch.Size, curvature: CurvatureKind | None
    ) -> SymmetricOperator | None:
        """Repeat the one curvature of the Gaussian for points of this shape."""
        if curvature == "dense":
            values, vectors = self._eigen
            return Dense.from_eigen(
                values.expand(shape), vectors.expand(*shape[:-1], self.dim, self.dim)
            )
        if curvature == "diagonal":
            return Diagonal(self._curvature.diagonal().expand(shape))
        return None

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """`n` exact, independent draws, μ + Lz with L the Cholesky factor of Σ.

        Args:
            n: how many.
            generator: of z; None for torch's global one.

        Returns:
            (n, D).
        """
        return self.mean + self._normal(n, generator) @ self._root.mT

    def smooth(self, sigma: Array) -> "GaussianScore":
        """The score of N(μ, Σ + diag(σ²)): this law with noise of standard deviation `sigma`.

        Args:
            sigma: a number, or one a dimension, (D,); at least 0.

        Returns:
            Another `GaussianScore`.

        Raises:
            ValueError: a σ below 0 or not finite, or of another shape.
        """
        return GaussianScore(self.mean, self.covariance + _noise(sigma, self.mean))


class _Components(NamedTuple):
    """The components at x: the weighted log density, gradient and curvature of each."""

    log_density: Tensor  # (*batch, K), weight included
    gradient: Tensor  # (*batch, K, D)
    diagonal: Tensor  # (..., K, D)
    dense: Tensor | None  # (..., K, D, D)


class _Mixture(_ClosedForm):
    """Σ_k w_k p_k, given each component's expansion."""

    weights: Tensor

    @abstractmethod
    def _components(self, x: Tensor, dense: bool) -> _Components: ...

    @abstractmethod
    def _draw(
        self, component: Tensor, generator: torch.Generator | None
    ) -> Float[Tensor, "n dim"]: ...

    def _set_weights(self, weights: Array | None, count: int) -> None:
        if weights is None:
            self.weights = torch.full((count,), 1 / count, dtype=self.dtype, device=self.device)
            return
        given = validation.floating("weights", weights).to(self.device, self.dtype)
        self.weights = validation.weights("weights", validation.shape("weights", given, (count,)))

    def _expand(self, x: Tensor, curvature: CurvatureKind | None) -> Expansion:
        """s1 = Σ ρ_k g_k, s2 = Σ ρ_k (H_k + g_k g_kᵀ) − s1 s1ᵀ, with ρ_k the responsibilities."""
        parts = self._components(x, curvature == "dense")
        rho = torch.softmax(parts.log_density, -1)
        g = parts.gradient
        s1 = (rho.unsqueeze(-1) * g).sum(-2)
        # centred, so that no large g_k g_kᵀ cancels against s1 s1ᵀ
        spread = g - s1.unsqueeze(-2)
        s2: SymmetricOperator | None = None
        if curvature == "diagonal":
            s2 = Diagonal((rho.unsqueeze(-1) * (parts.diagonal + spread.square())).sum(-2))
        elif parts.dense is not None:
            mean = torch.einsum("...k,...kij->...ij", rho, parts.dense)
            weighted = (rho.unsqueeze(-1) * spread).mT
            s2 = Dense(mean + weighted @ spread)
        return Expansion(s1, s2, torch.logsumexp(parts.log_density, -1))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """`n` exact, independent draws: a component by its weight, then a draw of it.

        Args:
            n: how many.
            generator: of the draws; None for torch's global one.

        Returns:
            (n, D).
        """
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return self._draw(component, generator)


class GaussianMixtureScore(_Mixture):
    """The score of the mixture Σ_k w_k N(μ_k, Σ_k).

    With ρ_k = w_k p_k/Σ_j w_j p_j, g_k = −Σ_k⁻¹(x − μ_k) and H_k = −Σ_k⁻¹: s1 = Σ ρ_k g_k and
    s2 = Σ ρ_k (H_k + g_k g_kᵀ) − s1 s1ᵀ.

    Args:
        means: μ, (K, D).
        covariances: Σ, (K, D, D), each symmetric and positive definite.
        weights: w, (K,), above 0 and summing to 1; equal when None.

    Raises:
        ValueError: shapes or weights that do not fit, entries not finite, a covariance not
            positive definite.

    Source: Carreira-Perpiñán (2000), Mode-finding for mixtures of Gaussian distributions.

    Example:
        >>> score = GaussianMixtureScore([[-1.0], [1.0]], torch.ones(2, 1, 1))
        >>> found = score.expand(torch.zeros(1), "dense")
        >>> found.gradient, found.curvature.dense()  # between the modes: −1 + 1² = 0
        (tensor([0.]), tensor([[0.]]))
    """

    def __init__(self, means: Array, covariances: Array, weights: Array | None = None):
        self.means = validation.shape("means", validation.floating("means", means), (None, None))
        self._place(self.means)
        k = self.means.shape[0]
        given = validation.floating("covariances", covariances).to(self.means)
        self.covariances = validation.shape("covariances", given, (k, self.dim, self.dim))
        roots = validation.covariance("covariances", _even(self.covariances))
        self._roots = roots.to(self.dtype)
        eye = torch.eye(self.dim, dtype=roots.dtype, device=self.device)
        whitening = torch.linalg.solve_triangular(roots, eye, upper=False)
        self._whitening = whitening.to(self.dtype)  # L⁻¹
        self._curvatures = -(whitening.mT @ whitening).to(self.dtype)
        self._set_weights(weights, k)
        log_det = roots.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self._offsets = (self.weights.log() - log_det).to(self.dtype)

    def _components(self, x: Tensor, dense: bool) -> _Components:
        centred = x.unsqueeze(-2) - self.means
        white = torch.einsum("kij,...kj->...ki", self._whitening, centred)
        gradient = torch.einsum("kji,...kj->...ki", self._whitening, -white)
        # a sum of squares, where (x − μ)ᵀ g would cancel
        log_density = self._offsets - 0.5 * white.square().sum(-1)
        diagonal = self._curvatures.diagonal(dim1=-2, dim2=-1)
        return _Components(log_density, gradient, diagonal, self._curvatures if dense else None)

    def _draw(self, component: Tensor, generator: torch.Generator | None) -> Tensor:
        z = self._normal(len(component), generator)
        return self.means[component] + (self._roots[component] @ z.unsqueeze(-1)).squeeze(-1)

    def smooth(self, sigma: Array) -> "GaussianMixtureScore":
        """The mixture convolved with N(0, diag(σ²)): every Σ_k grows by diag(σ²).

        Args:
            sigma: a number, or one a dimension, (D,); at least 0.

        Returns:
            Another `GaussianMixtureScore`.

        Raises:
            ValueError: a σ below 0 or not finite, or of another shape.
        """
        noise = _noise(sigma, self.means)
        return GaussianMixtureScore(self.means, self.covariances + noise, self.weights)


class LogisticMixtureScore(_Mixture):
    """The score of the mixture Σ_k w_k Π_i Logistic(x_i; m_ki, s_ki).

    With t = (x − m)/s, a component has log p = Σ −t − log s − 2 log(1 + e^−t), gradient
    −tanh(t/2)/s and curvature −sech²(t/2)/(2s²). Its smoothing is not closed.

    Args:
        locations: m, (K, D).
        scales: s, (K, D), above 0.
        weights: w, (K,), above 0 and summing to 1; equal when None.

    Raises:
        ValueError: shapes or weights that do not fit, entries not finite, a scale not above 0.

    Source: the mixtures of logistics in table 1 of Meng et al. (2021).

    Example:
        >>> score = LogisticMixtureScore([[0.0]], [[1.0]])
        >>> found = score.expand(torch.zeros(1), "diagonal")
        >>> found.curvature.diagonal(), found.log_density.exp()  # −1/2, and a density of 1/4
        (tensor([-0.5000]), tensor(0.2500))
    """

    def __init__(self, locations: Array, scales: Array, weights: Array | None = None):
        given = validation.floating("locations", locations)
        self.locations = validation.shape("locations", given, (None, None))
        self._place(self.locations)
        k = self.locations.shape[0]
        widths = validation.floating("scales", scales).to(self.locations)
        self.scales = validation.shape("scales", widths, (k, self.dim))
        if bool((self.scales <= 0).any()):
            raise ValueError(f"scales must be above 0, but the smallest was {self.scales.min()}")
        self._set_weights(weights, k)

    def _components(self, x: Tensor, dense: bool) -> _Components:
        t = (x.unsqueeze(-2) - self.locations) / self.scales
        log_density = (-t - self.scales.log() - 2 * softplus(-t)).sum(-1) + self.weights.log()
        slope = torch.tanh(t / 2)
        diagonal = -(1 - slope.square()) / (2 * self.scales.square())
        full = torch.diag_embed(diagonal) if dense else None
        return _Components(log_density, -slope / self.scales, diagonal, full)

    def _draw(self, component: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw from components by the inverse of the logistic distribution function."""
        u = torch.rand(
            len(component), self.dim, dtype=self.dtype, device=self.device, generator=generator
        )
        tiny = torch.finfo(self.dtype).tiny
        # 1 − u is exact for torch.rand, so both tails are reached
        logit = torch.log(u.clamp_min(tiny)) - torch.log1p(-u)
        return self.locations[component] + self.scales[component] * logit


def _even(covariance: Tensor) -> Tensor:
    """Return a matrix in float64, made symmetric if rounding in its own dtype is the cause.

    A Cholesky factor or eigenvalues in float32 lose all variances below 1e-7 of the largest.
    """
    wide = covariance.double()
    slack = 100 * torch.finfo(covariance.dtype).eps * wide.abs().amax()
    rounded = (wide - wide.mT).abs() <= slack
    return torch.where(rounded, (wide + wide.mT) / 2, wide)


def _noise(sigma: Array, like: Tensor) -> Tensor:
    """Return diag(σ²) as a (D, D) matrix, from a number or one value a dimension."""
    value = torch.as_tensor(sigma, dtype=like.dtype, device=like.device)
    if bool((value < 0).any()) or not bool(torch.isfinite(value).all()):
        raise ValueError(f"sigma must be finite and at least 0, but was {sigma!r}")
    if value.ndim > 1 or (value.ndim == 1 and len(value) != like.shape[-1]):
        raise ValueError(
            f"sigma must be a number or have shape ({like.shape[-1]},), but had "
            f"{tuple(value.shape)}"
        )
    return torch.diag(value.square().expand(like.shape[-1]))
