"""`Score` is the interface of scores: the gradient of a log density, and its second derivative."""

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.linalg import SymmetricOperator

CurvatureKind = Literal["diagonal", "low_rank", "dense"]


class Expansion(NamedTuple):
    """log p near a point: value, gradient and curvature.

    Attributes:
        gradient: s1 = ∇ log p(x), (*batch, D).
        curvature: s2 = ∇² log p(x) as a symmetric operator, or None where it was not asked for.
        log_density: log p(x) up to a constant, (*batch,); None where only scores are known; in a
            mixed model, of the part that has a density.
        score_gradient: in a mixed model, the gradient of the part that has no density.

    Example:
        >>> from ozaki.scores import GaussianScore
        >>> found = GaussianScore(torch.zeros(2), torch.eye(2)).expand(torch.ones(2), "diagonal")
        >>> found.gradient, found.curvature.diagonal(), found.log_density
        (tensor([-1., -1.]), tensor([-1., -1.]), tensor(-1.))
    """

    gradient: Tensor
    curvature: SymmetricOperator | None
    log_density: Tensor | None
    score_gradient: Tensor | None = None

    @property
    def has_density(self) -> bool:
        """Whether log ratios are exact: a log density is known, for the whole of the law."""
        return self.log_density is not None and self.score_gradient is None

    @property
    def densityless_gradient(self) -> Tensor:
        """The gradient of the part that has no density, (*batch, D); s1 where nothing is mixed."""
        return self.gradient if self.score_gradient is None else self.score_gradient


class Score(ABC):
    """The gradient of a log density and its second derivative, at any point.

    Points are flat: (*batch, D). `event_shape` says how a person sees one; its product is D.
    A new kind of score implements `expand`, `start` and `default_curvature` and sets the four
    attributes.

    Attributes:
        dim: D.
        event_shape: the shape of one point.
        dtype: of the points that `start` gives.
        device: where it computes; the CPU unless it is set.

    Example:
        >>> from ozaki.linalg import Diagonal
        >>> class Normal(Score):  # N(0, I) in two dimensions
        ...     dim, event_shape, dtype = 2, torch.Size([2]), torch.float32
        ...     default_curvature = "diagonal"
        ...
        ...     def expand(self, x, curvature=None):
        ...         if curvature not in (None, "diagonal"):
        ...             raise self.cannot_give(curvature)
        ...         s2 = None if curvature is None else Diagonal(-torch.ones_like(x))
        ...         return Expansion(-x, s2, -0.5 * x.square().sum(-1))
        ...
        ...     def start(self, n, generator=None):
        ...         return torch.randn(n, 2, generator=generator)
        >>> Normal().log_prob(torch.tensor([1.0, 2.0]))
        tensor(-2.5000)
    """

    dim: int
    event_shape: torch.Size
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")

    @property
    @abstractmethod
    def default_curvature(self) -> CurvatureKind | None:
        """The kind that ``curvature="auto"`` stands for; None where there is none at all."""

    @abstractmethod
    def expand(
        self, x: Float[Tensor, "*batch dim"], curvature: CurvatureKind | None = None
    ) -> Expansion:
        """The gradient at `x`, the curvature if asked for, and the log density if there is one.

        Args:
            x: points, (*batch, D).
            curvature: None, "diagonal", "low_rank" or "dense".

        Returns:
            An `Expansion`, whose curvature is None where none was asked for.

        Raises:
            ValueError: a curvature this score cannot give; it never substitutes another.
        """

    @abstractmethod
    def start(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """`n` points to begin chains from.

        Args:
            n: how many.
            generator: of what is drawn; None for torch's global one.

        Returns:
            (n, D), in `dtype`, on `device`.
        """

    def log_prob(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """The log density alone, up to a constant, of a score that has one.

        Args:
            x: points, (*batch, D).

        Returns:
            (*batch,).
        """
        found = self.expand(x).log_density
        assert found is not None, f"{type(self).__name__} has no log density"
        return found

    def densityless_gradient(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The gradient of the part that has no density, which a line integral needs along the way.

        Args:
            x: points, (*batch, D).

        Returns:
            (*batch, D); s1 itself of a score that is not mixed.
        """
        return self.expand(x).densityless_gradient

    def settled(self) -> "Score":
        """The same score for one run, while which nothing that it computes with is replaced.

        Its evaluations may be recorded and replayed.

        Returns:
            Another object with the same law; itself of a score that keeps no recordings.
        """
        return self

    def resettle(self) -> None:
        """Forget what was recorded: what the score computes with may have been replaced."""
        return None

    def check(self, x: Tensor, curvature: str | None) -> None:
        """Check the arguments of `expand`, for a score that gives "diagonal" and "dense".

        Args:
            x: points, (*batch, D).
            curvature: what was asked for.

        Raises:
            ValueError: another curvature, x of another last dimension, or whole numbers.
        """
        if curvature not in (None, "diagonal", "dense"):
            raise self.cannot_give(curvature)
        if not x.is_floating_point():
            raise ValueError(
                f"x must be floating-point, but its dtype was {x.dtype}; use x.float()"
            )
        if x.shape[-1] != self.dim:
            raise ValueError(f"x must have shape (*batch, {self.dim}), but had {tuple(x.shape)}")

    def cannot_give(self, curvature: str | None) -> ValueError:
        """The error for a curvature this score does not have.

        Args:
            curvature: what was asked for.

        Returns:
            A ValueError, to be raised.
        """
        return ValueError(
            f"curvature={curvature!r} is not something {type(self).__name__} can give; its own "
            f"kind is {self.default_curvature!r}"
        )


class SmoothedScore(Protocol):
    """A `Score` of a law smoothed by normal noise, which knows how much noise that is.

    Nothing needs to inherit from it: whatever has the members is one, see `is_smoothed`.
    """

    dim: int
    event_shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @property
    def noise_scale(self) -> Tensor:
        """The standard deviation of the noise, (D,), in the units of the points."""
        ...

    @property
    def default_curvature(self) -> CurvatureKind | None:
        """As `Score.default_curvature`."""
        ...

    def expand(self, x: Tensor, curvature: CurvatureKind | None = None) -> Expansion:
        """As `Score.expand`."""
        ...

    def start(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """As `Score.start`."""
        ...


def is_smoothed(score: Any) -> TypeGuard[SmoothedScore]:
    """Whether a score knows the noise that its law was smoothed by.

    Args:
        score: any score, or None.

    Raises:
        ValueError: an estimator of a range of σ, whose noise is not one.
    """
    return getattr(score, "noise_scale", None) is not None


def dense_up_to(dim: int, limit: int = 100) -> CurvatureKind:
    """The kind "auto" means for densities: dense to D = `limit`, diagonal beyond."""
    return "dense" if dim <= limit else "diagonal"
