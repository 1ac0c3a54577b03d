"""What every symmetric operator can do (floor 0)."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ozaki.shapes import Bool, Float


class SymmetricOperator(ABC):
    """A batch of symmetric D × D matrices, known by what it does and not by how it is stored."""

    _parts: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is stored as, each with the batch dimensions in front."""
        return self._parts

    @classmethod
    @abstractmethod
    def rebuild(cls, tensors: tuple[Tensor, ...]) -> "SymmetricOperator":
        """The operator whose `tensors` these are."""

    @property
    def dim(self) -> int:
        """D, the number of rows."""
        return self.diagonal().shape[-1]

    @property
    def batch(self) -> torch.Size:
        """The batch dimensions; empty for one operator that serves every point."""
        return self.tensors[0].shape[:-1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the entries."""
        return self.tensors[0].dtype

    @abstractmethod
    def matmul(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """S v for vectors v of shape (*batch, D)."""

    @abstractmethod
    def diagonal(self) -> Float[Tensor, "*batch dim"]:
        """The diagonal entries, (*batch, D)."""

    @abstractmethod
    def frobenius_squared(self) -> Float[Tensor, "*batch"]:
        """‖S‖²_F = Σ_ij S_ij², (*batch,)."""

    @abstractmethod
    def congruence(self, factor: Float[Tensor, "..."]) -> "SymmetricOperator":
        """FᵀSF for one F shared by the batch: a (D,) vector stands for diag(F), else (D, D).

        A vector keeps the kind of the operator; a matrix gives a `Dense` one.
        """

    @abstractmethod
    def scale(self, factor: Tensor | float) -> "SymmetricOperator":
        """diag(f) S diag(f), of the same kind; f broadcasts against (*batch, D)."""

    @abstractmethod
    def shift(self, amount: Tensor | float) -> "SymmetricOperator":
        """S + diag(c), of the same kind; c broadcasts against (*batch, D)."""

    @abstractmethod
    def log_determinant(self) -> Float[Tensor, "*batch"]:
        """Log det S of a positive definite S, (*batch,)."""

    @abstractmethod
    def inverse_quadratic(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch"]:
        """vᵀS⁻¹v of a positive definite S for vectors v of shape (*batch, D)."""

    @abstractmethod
    def spectral(self, f: Callable[[Tensor], Tensor]) -> "SymmetricOperator":
        """f(S): `f` applied, element by element, to the eigenvalues, exactly."""

    @abstractmethod
    def definite(self) -> Bool[Tensor, "*batch"]:
        """Whether each is positive definite; of a low rank, its diagonal part a must be > 0 too."""

    @abstractmethod
    def colour(self, z: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """A z with A Aᵀ = S of a positive definite S: draws of N(0, S) of standard normal z."""

    @abstractmethod
    def raised(self, least: float) -> "SymmetricOperator":
        """The same kind with nothing below `least` > 0 left: positive definite.

        Eigenvalues below `least` become `least`. A low rank has `least` for the smallest entry of
        its diagonal part a, and then for the smallest ratio vᵀSv / vᵀdiag(a)v, with no D × D
        matrix; where nothing was below, it is as it was, but for rounding.
        """

    @abstractmethod
    def leading(self, k: int) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch dim k"]]:
        """The k largest eigenvalues, descending, and unit eigenvectors in columns."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "*batch dim dim"]:
        """The matrices themselves, (*batch, D, D)."""

    def __getitem__(self, index: int | slice) -> "SymmetricOperator":
        """The operators at `index` of the first batch dimension."""
        return self.rebuild(tuple(t[index] for t in self.tensors))

    def astype(self, dtype: torch.dtype) -> "SymmetricOperator":
        """The same operator in another dtype."""
        return self.rebuild(tuple(t.to(dtype) for t in self.tensors))

    def trace(self) -> Float[Tensor, "*batch"]:
        """Σ_i S_ii, (*batch,)."""
        return self.diagonal().sum(-1)

    def quadratic(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch"]:
        """vᵀSv for vectors v of shape (*batch, D)."""
        return self.quadratics(v.unsqueeze(-1)).squeeze(-1)

    @abstractmethod
    def quadratics(self, v: Float[Tensor, "*vbatch dim k"]) -> Float[Tensor, "*obatch k"]:
        """vᵀSv of each column v of a (*batch, D, k) tensor, in one product."""

    def select(
        self, mask: Bool[Tensor, "*batch"], other: "SymmetricOperator"
    ) -> "SymmetricOperator":
        """This operator where `mask` (one entry an operator) is True, `other` elsewhere."""
        mine, theirs = self.tensors, other.tensors
        same = type(self) is type(other) and len(mine) == len(theirs)
        if not same:
            raise ValueError(
                f"other must be a {type(self).__name__} stored alike, but was {other!r}"
            )
        picked = tuple(
            torch.where(mask.reshape(mask.shape + (1,) * (m.ndim - mask.ndim)), m, t)
            for m, t in zip(mine, theirs, strict=True)
        )
        return self.rebuild(picked)

    def __repr__(self) -> str:
        batch = tuple(self.batch)
        return f"{type(self).__name__}(dim={self.dim}, batch={batch}, dtype={self.dtype})"


def check_vector(name: str, tensor: Tensor) -> Tensor:
    """The tensor, refused unless it holds vectors."""
    if tensor.ndim < 1 or tensor.shape[-1] < 1:
        raise ValueError(
            f"{name} must have shape (*batch, dim) with dim ≥ 1, but had {tuple(tensor.shape)}"
        )
    return tensor
