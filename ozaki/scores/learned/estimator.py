"""`ScoreEstimator` is a score learned from data: networks, a noise level, and the data's units."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ozaki.foundation import validation
from ozaki.foundation.shapes import Float
from ozaki.linalg import Diagonal, SymmetricOperator
from ozaki.scores import moments
from ozaki.scores.base import CurvatureKind, Expansion, Score
from ozaki.scores.jacobian import JacobianScore
from ozaki.scores.learned import estimator_folder, evaluation
from ozaki.scores.learned.estimator_description import DTYPES
from ozaki.scores.learned.preconditioned import Outputs, ScoreNetwork
from ozaki.scores.learned.standardisation import Standardisation, rows_of


class ScoreEstimator(Score):
    """The learned score of p_σ, the data's law with smoothing noise; made by `DSMTrainer.fit`.

    Everything it takes and gives is in the data's units. With u = (x − mean)/scale, the networks'
    s1 and s2 of u become s1/scale and s2/scale². It is the score of p_σ, never of the data's own
    law: `noise_scale` says how much noise that is. Nothing is recorded for a gradient.

    Trained over a range of σ it is a family of scores: `at` gives the one at a σ, and nothing else
    that depends on σ can be asked of it.

    Points are float32 or float64. Whole numbers would cut the scores off to such, and in half
    precision those of data of small spread are infinite.

    Args:
        network: s1, s2 and higher diagonals in standardised units; its weights are frozen.
        standardisation: how u is made from x.
        points: training points to start chains from, (n, D), in the data's units.
        metrics: held-out figures, numbers by name.
        architecture: what `load` needs to build the trunk again; None for a user's own network.

    Source: Meng et al. (2021), sections 3 and 4.

    Example:
        >>> from ozaki import DSMTrainer
        >>> data = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> estimator = DSMTrainer(sigma=0.5, max_steps=20, seed=0).fit(data)
        >>> found = estimator.expand(torch.zeros(3, 2), "diagonal")
        >>> found.gradient.shape, found.curvature, found.log_density
        (torch.Size([3, 2]), Diagonal(dim=2, batch=(3,), dtype=torch.float32), None)
    """

    def __init__(
        self,
        network: ScoreNetwork,
        standardisation: Standardisation,
        points: Float[Tensor, "n dim"],
        *,
        metrics: Mapping[str, float | list[float]] | None = None,
        architecture: Mapping[str, Any] | None = None,
    ):
        self.network = network.eval().requires_grad_(False)
        self.standardisation = standardisation
        self.points = points
        self.metrics = dict(metrics or {})
        self.architecture = None if architecture is None else dict(architecture)
        self.event_shape = network.event_shape
        self.dim = self.event_shape.numel()
        self.dtype = points.dtype
        self.device = points.device

    @property
    def sigma(self) -> float | tuple[float, float]:
        """σ, the standard deviation of the smoothing noise in standardised units, or its range."""
        return self.network.sigma

    @property
    def order(self) -> int:
        """The highest score that was learned: 1 for s1 alone, to 4."""
        return self.network.heads.order

    @property
    def rank(self) -> int:
        """The rank of the low-rank part of s2; 0 where its diagonal alone was learned."""
        return self.network.heads.rank

    @property
    def noise_scale(self) -> Float[Tensor, " dim"]:
        """The standard deviation of the smoothing noise in the data's units, (D,).

        Raises:
            ValueError: an estimator of a range of σ.
        """
        return (self._level() * self.standardisation.scale).to(self.dtype).expand(self.dim)

    @property
    def default_curvature(self) -> CurvatureKind | None:
        """Diagonal or low rank, as it was trained; None if it was trained without s2."""
        if self.order == 1:
            return None
        return "low_rank" if self.rank else "diagonal"

    def at(self, sigma: float) -> "ScoreEstimator":
        """The score at one σ, in standardised units, of an estimator trained over a range.

        Args:
            sigma: within the range.

        Returns:
            An estimator that shares the networks.

        Raises:
            ValueError: σ outside the range, or not the one that the estimator was trained at.
        """
        sigma = validation.positive("sigma", sigma)
        low, high = self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)
        if not low * (1 - 1e-6) <= sigma <= high * (1 + 1e-6):
            raise ValueError(
                f"sigma must lie in the range of training, {low:g} to {high:g}, but was {sigma}; "
                "train over a wider one: DSMTrainer(sigma=(low, high))"
            )
        return ScoreEstimator(
            self.network.at(sigma),
            self.standardisation,
            self.points,
            metrics=self.metrics if sigma == self.sigma else None,
            architecture=self.architecture,
        )

    @torch.no_grad()
    def expand(
        self, x: Float[Tensor, "*batch dim"], curvature: CurvatureKind | None = None
    ) -> Expansion:
        """s1 and, if asked for, s2 of p_σ at x; there is no log density.

        The networks compute in `dtype`; what comes back has the dtype of x.

        Args:
            x: points in the data's units, (*batch, D).
            curvature: None, "diagonal", or where it was trained with a rank "low_rank".

        Returns:
            An `Expansion` in the data's units.

        Raises:
            ValueError: another curvature (see `autodiff`), x of another last dimension or dtype,
                or an estimator of a range of σ.
        """
        self._level()
        if curvature is not None and (
            self.order == 1 or curvature not in ("diagonal", self.default_curvature)
        ):
            raise self.cannot_give(curvature)
        out = self._outputs(x, (True, curvature is not None))
        scale = self.standardisation.scale.to(x.dtype)
        operator: SymmetricOperator | None = None
        if curvature is not None:
            assert out.s2 is not None
            operator = out.s2.astype(x.dtype).scale(1 / scale)
            if curvature == "diagonal" and self.rank:
                operator = Diagonal(operator.diagonal())
        return Expansion(out.s1.to(x.dtype) / scale, operator, None)

    @torch.no_grad()
    def derivatives(self, x: Float[Tensor, "*batch dim"]) -> tuple[Tensor, ...]:
        """s1 and the diagonals of s2 … s_n at x, as far as they were learned.

        Args:
            x: points in the data's units, (*batch, D).

        Returns:
            As many tensors (*batch, D) as `order`, in the data's units.

        Raises:
            ValueError: x of another last dimension or dtype, or an estimator of a range of σ.
        """
        self._level()
        out = self._outputs(x, (True, True))
        diagonals = () if out.s2 is None else (out.s2.diagonal(),)
        scale = self.standardisation.scale.to(x.dtype)
        found = (out.s1, *diagonals, *out.higher)
        return tuple(_divided(s.to(x.dtype), scale, n) for n, s in enumerate(found, 1))

    def moments(self, x: Float[Tensor, "*batch dim"], *, central: bool = False) -> list[Tensor]:
        """Posterior moments of each coordinate of the clean point, given the noisy point x.

        E[x_iᵏ | x̃] for k up to `order`, by Lemma 1; the first is Tweedie's mean (eq. 4). They are
        formed in float64, since scores of high order of data far from order one are no float32.

        Args:
            x: noisy points x̃ in the data's units, (*batch, D).
            central: of x − E[x|x̃] in place of x; the first is then 0.

        Returns:
            A tensor (*batch, D) for each k, in the dtype of x.

        Raises:
            ValueError: x of another last dimension or dtype, or an estimator of a range of σ.
        """
        _check_dtype(x)
        wide, noise = x.double(), self.noise_scale.double()
        found = moments.posterior_moments(self.derivatives(wide), wide, noise, central=central)
        return [m.to(x.dtype) for m in found]

    def start(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """`n` training points, with replacement beyond those stored, plus the smoothing noise.

        The noise makes them follow p_σ, the law whose score this is.

        Args:
            n: how many.
            generator: of the choice and of the noise; None for torch's global one.

        Returns:
            (n, D), in the data's units.

        Raises:
            ValueError: an estimator of a range of σ.
        """
        where = self.device if generator is None else generator.device
        stored = len(self.points)
        if n <= stored:
            rows = torch.randperm(stored, generator=generator, device=where)[:n]
        else:
            rows = torch.randint(stored, (n,), generator=generator, device=where)
        z = torch.randn(n, self.dim, generator=generator, device=where, dtype=self.dtype)
        return self.points[rows.to(self.device)] + self.noise_scale * z.to(self.device)

    def autodiff(self) -> JacobianScore:
        """The same s1 with its Jacobian for curvature, at D backward passes a point.

        Returns:
            A score whose curvature is ½(J + Jᵀ), "dense" or its diagonal.

        Raises:
            ValueError: an estimator of a range of σ.
        """
        self._level()

        def first(x: Tensor) -> Tensor:
            # through the network, and not `expand`, which records nothing
            s1 = self.network.first(self._standardised(x)).to(x.dtype)
            return s1 / self.standardisation.scale.to(x.dtype)

        return JacobianScore(first, self.start, self.event_shape, self.dtype, self.device)

    @torch.no_grad()
    def evaluate(
        self, data: Any, generator: torch.Generator | None = None, *, draws: int = 4096
    ) -> dict[str, float | list[float]]:
        """How well the score fits data it has not seen, in standardised units.

        Args:
            data: clean points in the data's units, (N, *event_shape) or (N, D).
            generator: for the noise.
            draws: the number of noisy pairs, at least; every row is used equally often.

        Returns:
            "dsm": the mean of ½Σ±[‖s1‖²/2 ± s1ᵀz/σ], half the mean squared error of s1 up to a
            constant; and, where s2 was learned, "residual_vr": the mean squared error of diag s2
            up to a constant; "calibration": E[r ⊙ r / diag C] by dimension; "calibration_mean".

        Raises:
            ValueError: data that are not such points, or an estimator of a range of σ.
        """
        self._level()
        u = self._standardised(rows_of("data", data, self.event_shape).to(self.device))
        return evaluation.evaluate(self.network, u, generator, draws)

    def to(self, device: torch.device | str) -> "ScoreEstimator":
        """Move the estimator to `device`, in place.

        Args:
            device: as torch names it.

        Returns:
            The estimator itself.
        """
        self.network.to(device)
        self.standardisation = self.standardisation.to(device)
        self.points = self.points.to(device)
        self.device = self.points.device
        return self

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write weights (safetensors) and settings (JSON) into `folder`, all or nothing.

        Args:
            folder: a new or empty folder, or with `overwrite` one that holds an estimator.
            overwrite: replace the estimator in `folder`.

        Returns:
            `folder`.

        Raises:
            FileExistsError: `folder` holds an estimator and `overwrite` is False, or something
                else.
            ValueError: a `folder` that is no path, weights that are not finite, or metrics that
                JSON cannot hold.
        """
        return estimator_folder.save(
            folder,
            self.network,
            self.standardisation,
            self.points,
            metrics=self.metrics,
            architecture=self.architecture,
            overwrite=overwrite,
        )

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], network: torch.nn.Module | None = None
    ) -> "ScoreEstimator":
        """Read an estimator that `save` wrote; nothing in the folder is executed.

        Args:
            folder: where it was saved.
            network: a trunk built as it was for training, if the estimator had a trunk of the
                user's own; its weights are overwritten.

        Returns:
            The estimator; see `to` for another device.

        Raises:
            FileNotFoundError: no such folder, or a file is missing from it.
            NotADirectoryError: `folder` is a file.
            ValueError: a file is corrupt, of another format or version, or does not fit.
        """
        found = estimator_folder.load(folder, network)
        return cls(
            found.network,
            found.standardisation,
            found.points,
            metrics=found.metrics,
            architecture=found.architecture,
        )

    def _outputs(self, x: Tensor, orders: tuple[bool, bool]) -> Outputs:
        return self.network(self._standardised(x), None, orders)

    def _level(self) -> float:
        """Return σ; raise ValueError for an estimator of a range."""
        if isinstance(self.sigma, tuple):
            low, high = self.sigma
            raise ValueError(
                f"this estimator was trained for sigma from {low:g} to {high:g} and is a "
                f"score at one of them only: use estimator.at(sigma), as in estimator.at({low:g})"
            )
        return self.sigma

    def _standardised(self, x: Tensor) -> Tensor:
        """Check points and put them into the networks' units."""
        if x.shape[-1] != self.dim:
            raise ValueError(
                f"x must have shape (*batch, {self.dim}), but had {tuple(x.shape)}; points are "
                f"flat, so reshape those of event shape {tuple(self.event_shape)}"
            )
        _check_dtype(x)
        return self.standardisation.forward(x, self.dtype)

    def __repr__(self) -> str:
        return (
            f"ScoreEstimator(event_shape={tuple(self.event_shape)}, sigma={_text(self.sigma)}, "
            f"curvature={self.default_curvature!r}, standardize={self.standardisation.kind!r}, "
            f"dtype={self.dtype})"
        )


def _divided(score: Tensor, scale: Tensor, order: int) -> Tensor:
    """Divide a score by scale^order in steps, since the power itself may be 0 or infinite."""
    for _ in range(order):
        score = score / scale
    return score


def _check_dtype(x: Tensor) -> None:
    """Raise ValueError for points in whose dtype scores cannot be given."""
    if x.dtype not in DTYPES.values():
        raise ValueError(
            f"x must be float32 or float64, as its scores are, but its dtype was {x.dtype}; give "
            "floating-point numbers of one of these, such as x.float()"
        )


def _text(sigma: float | tuple[float, float]) -> str:
    return f"({sigma[0]:.4g}, {sigma[1]:.4g})" if isinstance(sigma, tuple) else f"{sigma:.4g}"
