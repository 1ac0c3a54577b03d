"""`Diagonal` is a diagonal matrix."""

from collections.abc import Callable

import torch
from torch import Tensor

from ozaki.foundation.shapes import Bool, Float
from ozaki.linalg.base import SymmetricOperator, check_vector
from ozaki.linalg.dense import Dense


class Diagonal(SymmetricOperator):
    """The diagonal matrix diag(a).

    Args:
        values: the diagonal a, (*batch, D).

    Raises:
        ValueError: no last dimension, or one of 0.

    Example:
        >>> Diagonal(torch.tensor([1.0, 4.0])).spectral(torch.sqrt).diagonal()
        tensor([1., 2.])
    """

    def __init__(self, values: Float[Tensor, "*batch dim"]):
        self._parts = (check_vector("values", values),)

    @classmethod
    def rebuild(cls, tensors: tuple[Tensor, ...]) -> "Diagonal":
        """The operator whose `tensors` these are."""
        return cls(*tensors)

    def matmul(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """S v = a ⊙ v."""
        return self.tensors[0] * v

    def quadratics(self, v: Float[Tensor, "*vbatch dim k"]) -> Float[Tensor, "*obatch k"]:
        """Σ a v² of each column."""
        return (self.tensors[0].unsqueeze(-1) * v.square()).sum(-2)

    def diagonal(self) -> Float[Tensor, "*batch dim"]:
        """The diagonal a itself."""
        return self.tensors[0]

    def frobenius_squared(self) -> Float[Tensor, "*batch"]:
        """Σ a²."""
        return self.tensors[0].square().sum(-1)

    def congruence(self, factor: Float[Tensor, "..."]) -> SymmetricOperator:
        """FᵀSF: diagonal for a vector F, dense for a matrix."""
        if factor.ndim == 1:
            return self.scale(factor)
        return Dense(factor.mT @ (self.tensors[0].unsqueeze(-1) * factor))

    def scale(self, factor: Tensor | float) -> "Diagonal":
        """diag(f a f)."""
        return Diagonal(self.tensors[0] * factor * factor)

    def shift(self, amount: Tensor | float) -> "Diagonal":
        """diag(a + c)."""
        return Diagonal(self.tensors[0] + amount)

    def log_determinant(self) -> Float[Tensor, "*batch"]:
        """Σ log a."""
        return self.tensors[0].log().sum(-1)

    def inverse_quadratic(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch"]:
        """Σ v²/a."""
        return (v.square() / self.tensors[0]).sum(-1)

    def spectral(self, f: Callable[[Tensor], Tensor]) -> "Diagonal":
        """f(S) = diag(f(a))."""
        return Diagonal(f(self.tensors[0]))

    def definite(self) -> Bool[Tensor, "*batch"]:
        """Whether all a > 0."""
        return (self.tensors[0] > 0).all(-1)

    def sqrt_matmul(self, z: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """√a ⊙ z."""
        return self.tensors[0].sqrt() * z

    def clamp_eigenvalues(self, least: float) -> "Diagonal":
        """diag(max(a, least))."""
        return Diagonal(self.tensors[0].clamp_min(least))

    def leading(self, k: int) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch dim k"]]:
        """The k largest a, and the unit vectors of their dimensions."""
        values, places = self.tensors[0].topk(k, -1)
        vectors = values.new_zeros(*self.tensors[0].shape, k)
        return values, vectors.scatter_(-2, places.unsqueeze(-2), 1.0)

    def dense(self) -> Float[Tensor, "*batch dim dim"]:
        """The matrices themselves."""
        return torch.diag_embed(self.tensors[0])
