"""`JacobianScore` is the base of scores whose s1 is a torch function, and s2 its Jacobian."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.foundation.torch_modes import ordinary, recordable
from ozaki.foundation.tracing import tracing
from ozaki.linalg import Dense, Diagonal, SymmetricOperator
from ozaki.scores.base import CurvatureKind, Expansion, Score, dense_up_to
from ozaki.scores.trials import NEAR, no_curvature, untrue_curvature


class JacobianScore(Score):
    """A score from a function for s1. Its curvature is ½(J + Jᵀ), with J the Jacobian of s1.

    A learned s1 need not be a gradient, so J need not be symmetric: it is made so. It costs D
    backward passes a point.

    Args:
        first: s1 at points (n, D) → (n, D), in torch.
        start: `(n, generator) → (n, D)`, where chains begin.
        event_shape: the shape of one point.
        dtype: of the points.
        device: of the points.
    """

    _name = "s1"

    def __init__(
        self,
        first: Callable[[Tensor], Tensor],
        start: Callable[[int, torch.Generator | None], Tensor],
        event_shape: Any,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self._first, self._start = first, start
        self.event_shape = torch.Size(event_shape)
        self.dim = self.event_shape.numel()
        self.dtype, self.device = dtype, device
        self._tried: str | None = None  # the objection to its curvature, if there is one

    @property
    def default_curvature(self) -> CurvatureKind:
        """Dense up to D = 100, diagonal beyond."""
        return dense_up_to(self.dim)

    @ordinary()
    def expand(
        self, x: Float[Tensor, "*batch dim"], curvature: CurvatureKind | None = None
    ) -> Expansion:
        """s1 at x, (*batch, D), and its Jacobian, dense or the diagonal alone.

        Raises:
            ValueError: curvature="low_rank", x of another last dimension, or a Jacobian by autograd
                that is not how s1 changes; it is tried the first time that one is asked for.
        """
        self.check(x, curvature)
        points = recordable(x.detach()).reshape(-1, self.dim)
        if curvature is None:
            with torch.no_grad():
                return Expansion(self._first(points).to(x.dtype).reshape(x.shape), None, None)
        self._check_curvature()

        def first(point: Tensor) -> tuple[Tensor, Tensor]:
            s1 = self._first(point.unsqueeze(0)).squeeze(0).to(x.dtype)
            return s1, s1

        if points.numel():
            jacobian, s1 = torch.func.vmap(torch.func.jacrev(first, has_aux=True))(points)
        else:  # networks cannot infer the shape of an empty batch
            jacobian, s1 = points.new_zeros(0, self.dim, self.dim), points
        j = jacobian.detach().reshape(*x.shape, self.dim)
        operator: SymmetricOperator
        if curvature == "diagonal":
            operator = Diagonal(j.diagonal(dim1=-2, dim2=-1))
        else:
            operator = Dense((j + j.mT) / 2)
        return Expansion(s1.detach().reshape(x.shape), operator, None)

    def _check_curvature(self) -> None:
        """Refuse a Jacobian by autograd that is not how the function changes; tried once."""
        if self._tried is None and not tracing():
            near = recordable(self.start(NEAR, torch.Generator().manual_seed(1)))
            found = untrue_curvature(self._values, self._pulled, near, gradient=False)
            self._tried = found or ""
        if self._tried:
            raise ValueError(no_curvature(self._name, self._tried))

    def _trial(self, points: Tensor) -> Tensor:
        """The function that is differentiated, at points (n, D)."""
        return self._first(points)

    def _values(self, points: Tensor) -> Tensor:
        with torch.no_grad():
            return self._trial(points).to(points.dtype)

    def _pulled(self, points: Tensor, directions: Tensor) -> Tensor:
        """Jᵀv of the function that is differentiated, at each point, (n, D), as in `expand`."""

        def pull(point: Tensor, v: Tensor) -> Tensor:
            def one(p: Tensor) -> Tensor:
                return self._trial(p.unsqueeze(0)).squeeze(0).to(p.dtype)

            return torch.func.vjp(one, point)[1](v)[0]  # pyright: ignore

        return torch.func.vmap(pull)(points, directions).detach()

    def start(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """`n` points to begin chains from, (n, D)."""
        return self._start(n, generator)
