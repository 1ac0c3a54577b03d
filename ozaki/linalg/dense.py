"""`Dense` is a symmetric matrix, kept as it is or as its eigendecomposition."""

from collections.abc import Callable

import torch
from torch import Tensor

from ozaki.foundation.shapes import Bool, Float
from ozaki.linalg.base import SymmetricOperator


class Dense(SymmetricOperator):
    """A symmetric matrix; its eigendecomposition is made once, when first needed.

    Args:
        matrix: (*batch, D, D), symmetric: only its lower triangle enters `spectral`.

    Raises:
        ValueError: a matrix that is not square.

    Example:
        >>> s = Dense(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))  # eigenvalues 3 and 1
        >>> s.quadratic(torch.tensor([1.0, 1.0])), s.leading(1)[0]
        (tensor(6.), tensor([3.]))
    """

    def __init__(self, matrix: Tensor):
        if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
            raise ValueError(f"matrix must be square, but had shape {tuple(matrix.shape)}")
        self._matrix: Tensor | None = matrix
        self._eigen: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_eigen(
        cls, values: Float[Tensor, "*batch dim"], vectors: Float[Tensor, "*vbatch dim dim"]
    ) -> "Dense":
        """V diag(λ) Vᵀ, kept in that form: `matmul` and `trace` never build the matrix.

        Args:
            values: λ, (*batch, D), in any order.
            vectors: V, orthonormal in columns, (*batch, D, D), or (D, D) for all.

        Returns:
            The operator.
        """
        operator = cls.__new__(cls)
        operator._matrix = None
        operator._eigen = (values, vectors)
        return operator

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The matrix, or its eigenvalues and eigenvectors; of a basis for all, a view of it."""
        # the eigendecomposition once it exists: an accepted state keeps it
        if self._eigen is None:
            return (self._matrix,)  # pyright: ignore[reportReturnType]
        values, vectors = self._eigen
        if vectors.ndim == 2 and values.ndim > 1:
            vectors = vectors.expand(*values.shape[:-1], *vectors.shape)
        return values, vectors

    @property
    def batch(self) -> torch.Size:
        """The batch dimensions; empty for one operator that serves every point."""
        return self.diagonal().shape[:-1] if self._eigen is None else self._eigen[0].shape[:-1]

    @classmethod
    def rebuild(cls, tensors: tuple[Tensor, ...]) -> "Dense":
        """The operator whose `tensors` these are."""
        return cls(tensors[0]) if len(tensors) == 1 else cls.from_eigen(*tensors)

    def astype(self, dtype: torch.dtype) -> "Dense":
        """The same operator in another dtype; a basis for all stays one."""
        parts = (self._matrix,) if self._eigen is None else self._eigen
        return self.rebuild(tuple(t.to(dtype) for t in parts))  # pyright: ignore

    def select(self, mask: Bool[Tensor, "*batch"], other: SymmetricOperator) -> "Dense":
        """This operator where `mask` is True, `other` elsewhere, decomposed if both are."""
        if isinstance(other, Dense) and (self._eigen is None) != (other._eigen is None):
            return Dense(self.dense()).select(mask, Dense(other.dense()))
        return self.rebuild(super().select(mask, other).tensors)

    def eigen(self) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, "*vbatch dim dim"]]:
        """Eigenvalues, and the matrix whose columns are the eigenvectors.

        Returns:
            (*batch, D), ascending where the operator was made of a matrix, else as given; and
            (*batch, D, D), or (D, D) if one was given for all.
        """
        if self._eigen is None:
            assert self._matrix is not None
            values, vectors = torch.linalg.eigh(self._matrix)
            self._eigen = (values, vectors)
        return self._eigen

    def matmul(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """S v, of an eigendecomposition V (λ ⊙ Vᵀv)."""
        if self._matrix is not None:
            return (self._matrix @ v.unsqueeze(-1)).squeeze(-1)
        values, vectors = self.eigen()
        if vectors.ndim == 2:  # one basis for all: two products of matrices
            return (values * (v @ vectors)) @ vectors.mT
        inner = values * (vectors.mT @ v.unsqueeze(-1)).squeeze(-1)
        return (vectors @ inner.unsqueeze(-1)).squeeze(-1)

    def quadratics(self, v: Float[Tensor, "*vbatch dim k"]) -> Float[Tensor, "*obatch k"]:
        """vᵀSv of each column, of an eigendecomposition Σ_j λ_j (Vᵀv)_j²."""
        if self._matrix is not None:
            return (v * (self._matrix @ v)).sum(-2)
        values, vectors = self.eigen()
        return (values.unsqueeze(-1) * (vectors.mT @ v).square()).sum(-2)

    def diagonal(self) -> Float[Tensor, "*batch dim"]:
        """S_ii, of an eigendecomposition Σ_j λ_j V_ij²."""
        if self._matrix is not None:
            return self._matrix.diagonal(dim1=-2, dim2=-1)
        values, vectors = self.eigen()
        return (vectors.square() @ values.unsqueeze(-1)).squeeze(-1)

    def trace(self) -> Float[Tensor, "*batch"]:
        """Σ_i S_ii, of an eigendecomposition Σ λ."""
        return self.diagonal().sum(-1) if self._eigen is None else self._eigen[0].sum(-1)

    def frobenius_squared(self) -> Float[Tensor, "*batch"]:
        """Σ_ij S_ij², of an eigendecomposition Σ λ²."""
        if self._matrix is not None:
            return self._matrix.square().sum((-2, -1))
        return self.eigen()[0].square().sum(-1)

    def congruence(self, factor: Float[Tensor, "..."]) -> SymmetricOperator:
        """FᵀSF, dense."""
        if factor.ndim == 1:
            return self.scale(factor)
        return Dense(factor.mT @ self.dense() @ factor)

    def scale(self, factor: Tensor | float) -> "Dense":
        """f_i S_ij f_j."""
        f = torch.as_tensor(factor, dtype=self.dtype, device=self.tensors[0].device)
        f = f.expand(*f.shape[:-1], self.dim) if f.ndim else f.expand(self.dim)
        return Dense(self.dense() * f.unsqueeze(-1) * f.unsqueeze(-2))

    def shift(self, amount: Tensor | float) -> "Dense":
        """S + diag(c)."""
        matrix = self.dense()
        c = torch.as_tensor(amount, dtype=matrix.dtype, device=matrix.device)
        return Dense(matrix + torch.diag_embed(c.expand(matrix.shape[:-1])))

    def log_determinant(self) -> Float[Tensor, "*batch"]:
        """2 Σ log L_ii, with L the Cholesky factor."""
        factor = torch.linalg.cholesky(self.dense())
        return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def inverse_quadratic(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch"]:
        """‖L⁻¹v‖², with L the Cholesky factor."""
        factor = torch.linalg.cholesky(self.dense())
        white = torch.linalg.solve_triangular(factor, v.unsqueeze(-1), upper=False)
        return white.squeeze(-1).square().sum(-1)

    def spectral(self, f: Callable[[Tensor], Tensor]) -> "Dense":
        """V f(λ) Vᵀ, kept in that form."""
        values, vectors = self.eigen()
        return Dense.from_eigen(f(values), vectors)

    def definite(self) -> Bool[Tensor, "*batch"]:
        """Whether a Cholesky factor exists."""
        return torch.linalg.cholesky_ex(self.dense())[1] == 0

    def sqrt_matmul(self, z: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """L z, with L the Cholesky factor."""
        return (torch.linalg.cholesky(self.dense()) @ z.unsqueeze(-1)).squeeze(-1)

    def clamp_eigenvalues(self, least: float) -> "Dense":
        """Eigenvalues below `least` become `least`; matrices without any stay as they are."""
        values, vectors = self.eigen()
        low = (values < least).any(-1)[..., None, None]
        clamped = (vectors * values.clamp_min(least).unsqueeze(-2)) @ vectors.mT
        return Dense(torch.where(low, clamped, self.dense()))

    def leading(self, k: int) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch dim k"]]:
        """The k largest eigenvalues of the eigendecomposition, and their columns."""
        values, vectors = self.eigen()
        # an operator that was made from eigenpairs has them in any order
        values, order = values.topk(k, -1)
        vectors = vectors.expand(*values.shape[:-1], *vectors.shape[-2:])
        return values, vectors.gather(-1, order.unsqueeze(-2).expand(*vectors.shape[:-1], k))

    def dense(self) -> Float[Tensor, "*batch dim dim"]:
        """The matrices themselves."""
        if self._matrix is None:
            values, vectors = self.eigen()
            self._matrix = (vectors * values.unsqueeze(-2)) @ vectors.mT
        return self._matrix
