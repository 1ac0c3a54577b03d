"""What every score is: a local second-order picture of a log density (floor 1)."""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ozaki.linalg import SymmetricOperator
from ozaki.shapes import Float

CurvatureKind = Literal["diagonal", "low_rank", "dense"]


class Expansion(NamedTuple):
    """log p near a point: value, gradient and curvature.

    Attributes:
        gradient: s1 = ∇ log p(x), (*batch, D).
        curvature: s2 = ∇² log p(x) as a symmetric operator, or None where it was not asked for.
        log_density: log p(x) up to a constant, (*batch,); None where only scores are known; in a
            mixed model, of the part that has a density.
        score_gradient: in a mixed model, the gradient of the part that has no density.
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
    def rough(self) -> Tensor:
        """The gradient of the part that has no density, (*batch, D); all of it where none has."""
        return self.gradient if self.score_gradient is None else self.score_gradient


class Score(ABC):
    """The gradient of a log density and its second derivative, at any point.

    Points are flat: (*batch, D). `event_shape` says how a person sees one; its product is D.
    A new kind of score implements `expand`, `start` and `default_curvature` and sets the four
    attributes.
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

        Raises:
            ValueError: a curvature this score cannot give; it never substitutes another.
        """

    @abstractmethod
    def start(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """`n` points to begin chains from, (n, D)."""

    def log_prob(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """The log density alone, up to a constant, of a score that has one.

        Args:
            x: points, (*batch, D).
        """
        found = self.expand(x).log_density
        assert found is not None, f"{type(self).__name__} has no log density"
        return found

    def rough(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The gradient of the part that has no density, which a line integral needs along the way.

        Args:
            x: points, (*batch, D).
        """
        return self.expand(x).rough

    def check(self, x: Tensor, curvature: str | None) -> None:
        """What `expand` of a score that gives "diagonal" and "dense" may be asked for.

        Raises:
            ValueError: another curvature, or x of another last dimension.
        """
        if curvature not in (None, "diagonal", "dense"):
            raise self.cannot_give(curvature)
        if x.shape[-1] != self.dim:
            raise ValueError(f"x must have shape (*batch, {self.dim}), but had {tuple(x.shape)}")

    def cannot_give(self, curvature: str | None) -> ValueError:
        """The error for a curvature this score does not have."""
        return ValueError(
            f"curvature={curvature!r} is not something {type(self).__name__} can give; its own "
            f"kind is {self.default_curvature!r}"
        )


def dense_up_to(dim: int, limit: int = 100) -> CurvatureKind:
    """The kind "auto" means for densities: dense to D = `limit`, diagonal beyond."""
    return "dense" if dim <= limit else "diagonal"
