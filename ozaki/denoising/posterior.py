"""`Posterior` is the law of clean points given noisy ones: a mean and a covariance.

`ozaki.denoise` makes it. With N = diag(noise_scale²), the mean is x̃ + N s1 (Tweedie, eq. 4) and the
covariance C = N + N s2 N (eq. 18): the exact moments of p(x | x̃) where s1 and s2 are exact. The
normal that has them approximates p(x | x̃); `log_prob`, `sample` and intervals are those of it.

A learned s2 may make C indefinite. The mean does not notice. Whatever needs a root or an inverse
of C then raises, and says how many points it concerns; `repaired` is the remedy.

Reference:
    Meng et al., "Estimating High Order Gradients of the Data Distribution by Denoising",
    NeurIPS 2021, sections 3 and 5.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ozaki.diagnostics.calibration import Calibration, calibrate
from ozaki.foundation import validation
from ozaki.foundation.shapes import Bool, Float
from ozaki.linalg import SymmetricOperator

LEAST = 1e-4  # share of the noise's variance that `repaired` leaves to a direction without any


class Posterior:
    """The mean and the covariance of clean points given noisy ones, (*batch, *event_shape).

    The mean is x̃ + N s1 (eq. 4) and the covariance C = N + N s2 N (eq. 18), N the diagonal matrix
    of the noise's variances. `log_prob` and `sample` are those of the normal that has them.

    Args:
        mean: flat, (*batch, D).
        covariance: the operator C, or None where only s1 is known.
        noise_scale: the standard deviation of the noise, (D,).
        event_shape: the shape in which points come and go.
        sigma: the σ that the estimator was asked at, in its standardised units; None of a score
            that is no `ScoreEstimator`.
        moments: called for the central moments of each coordinate, flat, (*batch, D) each.
        repaired_points: of how many points C was made positive definite.

    Source: Meng et al. (2021), sections 2.3 and 5.

    Example:
        >>> from ozaki import denoise
        >>> from ozaki.scores import GaussianScore
        >>> law = GaussianScore(torch.zeros(2), torch.diag(torch.tensor([1.0, 4.0])))
        >>> posterior = denoise(law.smooth(1.0), torch.tensor([2.0, 5.0]), sigma=1.0)
        >>> posterior.mean, posterior.variance  # 2 · 1/(1 + 1), 5 · 4/(4 + 1)
        (tensor([1., 4.]), tensor([0.5000, 0.8000]))
        >>> posterior.principal_components(1)[1]
        tensor([[0., 1.]])
    """

    def __init__(
        self,
        mean: Float[Tensor, "*batch dim"],
        covariance: SymmetricOperator | None,
        noise_scale: Float[Tensor, " dim"],
        event_shape: Sequence[int],
        *,
        sigma: float | None = None,
        moments: Callable[[], Sequence[Tensor]] | None = None,
        repaired_points: int = 0,
    ):
        self.event_shape = torch.Size(event_shape)
        self.noise_scale = noise_scale
        self.sigma = sigma
        self.repaired_points = repaired_points
        self._mean, self._covariance = mean, covariance
        self._moments = moments
        self._definite: Tensor | None = None

    @property
    def batch(self) -> torch.Size:
        """The leading dimensions of the noisy points."""
        return self._mean.shape[:-1]

    @property
    def dim(self) -> int:
        """D, the product of `event_shape`."""
        return self._mean.shape[-1]

    @property
    def mean(self) -> Tensor:
        """x̃ + N s1 (eq. 4), (*batch, *event_shape)."""
        return self._seen(self._mean)

    @property
    def covariance(self) -> SymmetricOperator:
        """C = N + N s2 N (eq. 18), an operator on flat points (*batch, D).

        Raises:
            ValueError: only s1 is known.
        """
        if self._covariance is None:
            raise ValueError(
                "covariance needs s2, but only s1 is known here: train with curvature='diagonal' "
                "or 'low_rank'; or take the Jacobian of s1, ozaki.denoise(estimator.autodiff(), "
                "noisy, sigma=estimator.noise_scale)"
            )
        return self._covariance

    @property
    def has_covariance(self) -> bool:
        """Whether s2 is known, and so all but the mean."""
        return self._covariance is not None

    @property
    def variance(self) -> Tensor:
        """The diagonal of C, as learned: not above 0 in `negative_variances` places."""
        return self._seen(self._diagonal())

    @property
    def negative_variances(self) -> int:
        """How many entries of `variance` are not above 0."""
        return int((self._diagonal() <= 0).sum())

    @property
    def definite(self) -> Bool[Tensor, "*batch"]:
        """Whether C is positive definite, for each point.

        Of a low rank its diagonal part must be positive too, as that of a trained one is.

        Raises:
            ValueError: only s1 is known.
        """
        return self._own_definite().expand(self.batch)

    @property
    def standard_deviation(self) -> Tensor:
        """The square root of `variance`.

        Raises:
            ValueError: a variance that is not above 0.
        """
        if self.negative_variances:
            raise ValueError(
                f"variance must be above 0, but {self.negative_variances} of its "
                f"{self._mean.numel()} entries were not, since the learned s2 is below -1/sigma² "
                "there; use posterior.repaired(), or learn with signed=False"
            )
        return self.variance.sqrt()

    @property
    def central_moments(self) -> tuple[Tensor, ...]:
        """E[(x_i − mean_i)ᵏ | x̃] for k = 1, 2, … as far as scores were learned, by coordinate.

        Of an estimator of order 3 or 4, by one more pass of its networks; else of orders 1 and 2.
        """
        found = self._moments() if self._moments else ()
        if not found:
            zero = torch.zeros_like(self._mean)
            found = (zero,) if self._covariance is None else (zero, self._diagonal())
        return tuple(self._seen(m) for m in found)

    def repaired(self, share: float = LEAST) -> "Posterior":
        """The same with a positive definite C; points where it was so already stay as they are.

        In units of the noise, eigenvalues of a `Diagonal` or `Dense` C below `share` become
        `share`. A `LowRank` C keeps its form: see `LowRank.clamp_eigenvalues`.

        Args:
            share: the variance that is left to a direction, as a share of the noise's, in (0, 1).

        Returns:
            A posterior whose `repaired_points` says how many points were changed; this one where
            none was.

        Raises:
            ValueError: only s1 is known, or a `share` out of its range.
        """
        if not 0 < validation.positive("share", share) < 1:
            raise ValueError(f"share must be above 0 and below 1, but was {share}")
        changed = int((~self.definite).sum())
        if not changed:
            return self
        units = self.noise_scale.to(self._mean)
        raised = self.covariance.scale(1 / units).clamp_eigenvalues(share).scale(units)
        return Posterior(
            self._mean,
            self.covariance.select(self._own_definite(), raised),
            self.noise_scale,
            self.event_shape,
            sigma=self.sigma,
            moments=self._moments,
            repaired_points=changed,
        )

    def principal_components(self, k: int) -> tuple[Tensor, Tensor]:
        """The k directions in which the clean point is least known.

        Exact to rounding for every kind of C: of a low rank from the factors, by an iteration that
        never builds a D × D matrix; of a diagonal C they are unit vectors. The sign of a direction
        is such that its largest entry is positive.

        Args:
            k: how many, at most D.

        Returns:
            Variances (*batch, k), descending, and unit directions (*batch, k, *event_shape).

        Raises:
            ValueError: only s1 is known, or a k above D.
        """
        if validation.count("k", k) > self.dim:
            raise ValueError(f"k must be at most the dimension {self.dim}, but was {k}")
        values, vectors = self.covariance.leading(k)
        directions = vectors.mT
        largest = directions.gather(-1, directions.abs().argmax(-1, keepdim=True))
        directions = directions * torch.where(largest < 0, -1.0, 1.0).to(directions)
        return (
            values.expand(*self.batch, k),
            directions.expand(*self.batch, k, self.dim).reshape(*self.batch, k, *self.event_shape),
        )

    def log_prob(self, x: Any) -> Tensor:
        """The log density of N(mean, C) at `x`.

        Args:
            x: (*more, *batch, *event_shape).

        Returns:
            (*more, *batch).

        Raises:
            ValueError: another shape, or points where C is not positive definite.
        """
        error = self._flat("x", x) - self._mean
        covariance = self._rooted("log_prob")
        quadratic = covariance.inverse_quadratic(error)
        return -0.5 * (quadratic + covariance.log_determinant() + self.dim * math.log(2 * math.pi))

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """`n` draws of N(mean, C), whose covariance is C exactly.

        Args:
            n: how many.
            generator: of the noise.

        Returns:
            (n, *batch, *event_shape).

        Raises:
            ValueError: points where C is not positive definite.
        """
        shape = (validation.count("n", n), *self._mean.shape)
        covariance = self._rooted("sample")
        where = self._mean.device if generator is None else generator.device
        z = torch.randn(shape, generator=generator, device=where, dtype=self._mean.dtype)
        return self._seen(self._mean + covariance.sqrt_matmul(z.to(self._mean.device)))

    def calibration(self, clean: Any, *, bins: int = 10, components: int = 5) -> Calibration:
        """How the stated uncertainty compares with the errors at known clean points.

        Args:
            clean: the truth, of the shape of `mean`.
            bins: of predicted variance.
            components: how many principal components to weigh; 0 for none.

        Returns:
            The figures, to be printed or given to `MCMC.report`.

        Raises:
            ValueError: another shape, or a variance that is not above 0.
        """
        truth = self._flat("clean", clean)
        if truth.shape != self._mean.shape:
            raise ValueError(
                f"clean must have shape {tuple(self.mean.shape)}, but had "
                f"{(*truth.shape[:-1], *self.event_shape)}"
            )
        validation.count("bins", bins)
        few = min(validation.count("components", components, minimum=0), self.dim)
        error = (truth - self._mean).double()
        deviation = self.standard_deviation.reshape(self._mean.shape).double()
        along = None
        if few:
            directions = self.principal_components(few)[1].reshape(*self.batch, few, self.dim)
            along = (directions.double() @ error.unsqueeze(-1)).squeeze(-1)
        return calibrate(error, deviation, self.noise_scale.to(error), along, bins)

    def _own_definite(self) -> Tensor:
        """As `definite`, but with one entry for each operator: one for a C that all share."""
        if self._definite is None:
            self._definite = self.covariance.definite()
        return self._definite

    def _diagonal(self) -> Tensor:
        return self.covariance.diagonal().expand(self._mean.shape)

    def _seen(self, flat: Tensor) -> Tensor:
        return flat.reshape(*flat.shape[:-1], *self.event_shape)

    def _flat(self, name: str, value: Any) -> Tensor:
        """Flatten points of the event shape to (..., D)."""
        points = validation.floating(name, value).to(self._mean)
        last = points.shape[max(0, points.ndim - len(self.event_shape)) :]
        if last != self.event_shape:
            raise ValueError(
                f"{name} must have shape (*batch, {', '.join(map(str, self.event_shape))}), but "
                f"had {tuple(points.shape)}"
            )
        return points.reshape(*points.shape[: points.ndim - len(self.event_shape)], self.dim)

    def _rooted(self, what: str) -> SymmetricOperator:
        """Return C if it is positive definite at all points; raise ValueError otherwise."""
        bad = int((~self.definite).sum())
        if bad:
            raise ValueError(
                f"{what} needs a positive definite covariance, but that of {bad} of "
                f"{self.definite.numel()} points was not; the mean stands. Use "
                "posterior.repaired(), or learn with signed=False"
            )
        return self.covariance

    def __repr__(self) -> str:
        kind = "None" if self._covariance is None else type(self._covariance).__name__
        return (
            f"Posterior(batch={tuple(self.batch)}, event_shape={tuple(self.event_shape)}, "
            f"covariance={kind}, dtype={self._mean.dtype})"
        )
