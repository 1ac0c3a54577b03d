"""`SymmetricOperator` is the interface of every kind of symmetric operator."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ozaki.foundation.deprecation import deprecated
from ozaki.foundation.shapes import Bool, Float


class SymmetricOperator(ABC):
    """A batch of symmetric D × D matrices, known by what it does and not by how it is stored.

    The arguments and results of each method are documented here; each kind documents its formula.
    The batch dimensions of vectors broadcast against those of the operators.

    Example:
        >>> from ozaki.linalg import LowRank
        >>> s = LowRank(torch.ones(3), torch.ones(3, 1))  # I + 1 1ᵀ
        >>> s.matmul(torch.tensor([1.0, 0.0, -1.0])), s.trace()
        (tensor([ 1.,  0., -1.]), tensor(6.))
    """

    _parts: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors it is stored as, each with the batch dimensions in front."""
        return self._parts

    @classmethod
    @abstractmethod
    def rebuild(cls, tensors: tuple[Tensor, ...]) -> "SymmetricOperator":
        """The operator whose `tensors` these are.

        Args:
            tensors: as many, and of such shapes, as an operator of this kind is stored as.

        Returns:
            An operator of this kind.
        """

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
        """S v, the product with vectors.

        Args:
            v: vectors, (*batch, D).

        Returns:
            (*batch, D).
        """

    @abstractmethod
    def diagonal(self) -> Float[Tensor, "*batch dim"]:
        """The diagonal entries S_ii.

        Returns:
            (*batch, D).
        """

    @abstractmethod
    def frobenius_squared(self) -> Float[Tensor, "*batch"]:
        """The squared Frobenius norm, ‖S‖²_F = Σ_ij S_ij².

        Returns:
            (*batch,).
        """

    @abstractmethod
    def congruence(self, factor: Float[Tensor, "..."]) -> "SymmetricOperator":
        """FᵀSF for one F shared by the batch.

        Args:
            factor: F, (D, D); or a vector (D,), which stands for diag(F).

        Returns:
            `Dense` of a matrix; of a vector what `scale` gives.
        """

    @abstractmethod
    def scale(self, factor: Tensor | float) -> "SymmetricOperator":
        """diag(f) S diag(f), as of other units.

        Args:
            factor: f, a number or what broadcasts against (*batch, D).

        Returns:
            An operator of the same kind; of a `Grouped` one, `Dense`.
        """

    @abstractmethod
    def shift(self, amount: Tensor | float) -> "SymmetricOperator":
        """S + diag(c), a change of the diagonal alone.

        Args:
            amount: c, a number or what broadcasts against (*batch, D).

        Returns:
            An operator of the same kind; of a `Grouped` one and a c that is no number, `Dense`.
        """

    @abstractmethod
    def log_determinant(self) -> Float[Tensor, "*batch"]:
        """The logarithm of det S, of a positive definite S.

        Returns:
            (*batch,).
        """

    @abstractmethod
    def inverse_quadratic(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch"]:
        """vᵀS⁻¹v, of a positive definite S.

        Args:
            v: vectors, (*batch, D).

        Returns:
            (*batch,).
        """

    @abstractmethod
    def spectral(self, f: Callable[[Tensor], Tensor]) -> "SymmetricOperator":
        """f(S), the function applied to the eigenvalues, exactly.

        Args:
            f: from a tensor of eigenvalues to one of the same shape, element by element.

        Returns:
            An operator of the same kind; of a `LowRank` one whose diagonal a is not constant,
            `Dense`.
        """

    @abstractmethod
    def definite(self) -> Bool[Tensor, "*batch"]:
        """Whether each is positive definite; of a low rank, its diagonal part a must be > 0 too.

        Returns:
            (*batch,), True or False.
        """

    @abstractmethod
    def sqrt_matmul(self, z: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """A z with A Aᵀ = S of a positive definite S: draws of N(0, S) of standard normal z.

        Args:
            z: vectors, (*batch, D).

        Returns:
            (*batch, D).
        """

    @deprecated("sqrt_matmul", "0.3")
    def colour(self, z: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """The old name of `sqrt_matmul`.

        Args:
            z: vectors, (*batch, D).

        Returns:
            (*batch, D).
        """
        return self.sqrt_matmul(z)

    @deprecated("clamp_eigenvalues", "0.3")
    def raised(self, least: float) -> "SymmetricOperator":
        """The old name of `clamp_eigenvalues`.

        Args:
            least: above 0, in the units of S.

        Returns:
            An operator of the same kind.
        """
        return self.clamp_eigenvalues(least)

    @abstractmethod
    def clamp_eigenvalues(self, least: float) -> "SymmetricOperator":
        """The same kind with nothing below `least` > 0 left: positive definite.

        Eigenvalues below `least` become `least`. A low rank has `least` for the smallest entry of
        its diagonal part a, and then, up to 1, for the smallest ratio vᵀSv / vᵀdiag(a)v, with no
        D × D matrix; where nothing was below, it is as it was, but for rounding.

        Args:
            least: above 0, in the units of S.

        Returns:
            An operator of the same kind.
        """

    @abstractmethod
    def leading(self, k: int) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch dim k"]]:
        """The k largest eigenvalues, descending, and unit eigenvectors in columns.

        Args:
            k: how many, at most D.

        Returns:
            (*batch, k) and (*batch, D, k).
        """

    @abstractmethod
    def dense(self) -> Float[Tensor, "*batch dim dim"]:
        """The matrices themselves.

        Returns:
            (*batch, D, D).
        """

    def __getitem__(self, index: int | slice) -> "SymmetricOperator":
        """The operators at `index` of the first batch dimension."""
        return self.rebuild(tuple(t[index] for t in self.tensors))

    def astype(self, dtype: torch.dtype) -> "SymmetricOperator":
        """The same operator in another dtype.

        Args:
            dtype: of the entries.

        Returns:
            An operator of the same kind.
        """
        return self.rebuild(tuple(t.to(dtype) for t in self.tensors))

    def trace(self) -> Float[Tensor, "*batch"]:
        """The trace, Σ_i S_ii.

        Returns:
            (*batch,).
        """
        return self.diagonal().sum(-1)

    def quadratic(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch"]:
        """The quadratic form vᵀSv.

        Args:
            v: vectors, (*batch, D).

        Returns:
            (*batch,).
        """
        return self.quadratics(v.unsqueeze(-1)).squeeze(-1)

    @abstractmethod
    def quadratics(self, v: Float[Tensor, "*vbatch dim k"]) -> Float[Tensor, "*obatch k"]:
        """vᵀSv of each column v, in one product.

        Args:
            v: vectors in columns, (*batch, D, k).

        Returns:
            (*batch, k).
        """

    def select(
        self, mask: Bool[Tensor, "*batch"], other: "SymmetricOperator"
    ) -> "SymmetricOperator":
        """This operator where `mask` is True, `other` elsewhere.

        Args:
            mask: one entry an operator, (*batch,).
            other: of the same kind and shape.

        Returns:
            An operator of the same kind.

        Raises:
            ValueError: an `other` of another kind.
        """
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
    """Return the tensor if it holds vectors of the right size; raise ValueError otherwise."""
    if tensor.ndim < 1 or tensor.shape[-1] < 1:
        raise ValueError(
            f"{name} must have shape (*batch, dim) with dim ≥ 1, but had {tuple(tensor.shape)}"
        )
    return tensor
