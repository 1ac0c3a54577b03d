"""Symmetric operators: the one place that knows how a curvature is stored (floor 0).

Three kinds stand here, each with any batch dimensions in front:

* `Diagonal`: diag(a);
* `LowRank`: diag(a) + B diag(e) Bᵀ with e of either sign, never built as a D × D matrix;
* `Dense`: a symmetric matrix, or its eigendecomposition, whichever it was made from.

`spectral(f)`, f applied to the eigenvalues, is exact. The contractions of the low-rank
kind are those of docs/mathematics.md, "Never build D×D".
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from ozaki.shapes import Bool, Float


class SymmetricOperator(ABC):
    """A batch of symmetric D × D matrices, known by what it does and not by how it is stored."""

    _parts: tuple[Tensor, ...]

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        """What it is stored as, each with the batch dimensions in front."""
        return self._parts

    @classmethod
    @abstractmethod
    def _rebuild(cls, tensors: tuple[Tensor, ...]) -> "SymmetricOperator":
        """The operator whose `_tensors` these are."""

    @property
    def dim(self) -> int:
        """D, the number of rows."""
        return self.diagonal().shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the entries."""
        return self._tensors[0].dtype

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
    def dense(self) -> Float[Tensor, "*batch dim dim"]:
        """The matrices themselves, (*batch, D, D)."""

    def __getitem__(self, index: int | slice) -> "SymmetricOperator":
        """The operators at `index` of the first batch dimension."""
        return self._rebuild(tuple(t[index] for t in self._tensors))

    def astype(self, dtype: torch.dtype) -> "SymmetricOperator":
        """The same operator in another dtype."""
        return self._rebuild(tuple(t.to(dtype) for t in self._tensors))

    def trace(self) -> Float[Tensor, "*batch"]:
        """Σ_i S_ii, (*batch,)."""
        return self.diagonal().sum(-1)

    def quadratic(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch"]:
        """vᵀSv for vectors v of shape (*batch, D)."""
        return (v * self.matmul(v)).sum(-1)

    def select(
        self, mask: Bool[Tensor, "batch"], other: "SymmetricOperator"
    ) -> "SymmetricOperator":
        """This operator where `mask` (one entry a batch row) is True, `other` elsewhere."""
        mine, theirs = self._tensors, other._tensors
        same = type(self) is type(other) and len(mine) == len(theirs)
        if not same:
            raise ValueError(
                f"other must be a {type(self).__name__} stored alike, but was {other!r}"
            )
        picked = tuple(
            torch.where(mask.reshape(mask.shape + (1,) * (m.ndim - mask.ndim)), m, t)
            for m, t in zip(mine, theirs, strict=True)
        )
        return self._rebuild(picked)

    def __repr__(self) -> str:
        batch = tuple(self._tensors[0].shape[:-1])
        return f"{type(self).__name__}(dim={self.dim}, batch={batch}, dtype={self.dtype})"


class Diagonal(SymmetricOperator):
    """diag(a).

    Args:
        values: the diagonal a, (*batch, D).

    Example:
        >>> Diagonal(torch.tensor([1.0, 4.0])).spectral(torch.sqrt).diagonal()
        tensor([1., 2.])
    """

    def __init__(self, values: Float[Tensor, "*batch dim"]):
        self._parts = (_vector("values", values),)

    @classmethod
    def _rebuild(cls, tensors: tuple[Tensor, ...]) -> "Diagonal":
        return cls(*tensors)

    def matmul(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """S v = a ⊙ v."""
        return self._tensors[0] * v

    def diagonal(self) -> Float[Tensor, "*batch dim"]:
        """A."""
        return self._tensors[0]

    def frobenius_squared(self) -> Float[Tensor, "*batch"]:
        """Σ a²."""
        return self._tensors[0].square().sum(-1)

    def congruence(self, factor: Float[Tensor, "..."]) -> SymmetricOperator:
        """FᵀSF: diagonal for a vector F, dense for a matrix."""
        if factor.ndim == 1:
            return self.scale(factor)
        return Dense(factor.mT @ (self._tensors[0].unsqueeze(-1) * factor))

    def scale(self, factor: Tensor | float) -> "Diagonal":
        """diag(f a f)."""
        return Diagonal(self._tensors[0] * factor * factor)

    def shift(self, amount: Tensor | float) -> "Diagonal":
        """diag(a + c)."""
        return Diagonal(self._tensors[0] + amount)

    def log_determinant(self) -> Float[Tensor, "*batch"]:
        """Σ log a."""
        return self._tensors[0].log().sum(-1)

    def inverse_quadratic(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch"]:
        """Σ v²/a."""
        return (v.square() / self._tensors[0]).sum(-1)

    def spectral(self, f: Callable[[Tensor], Tensor]) -> "Diagonal":
        """diag(f(a))."""
        return Diagonal(f(self._tensors[0]))

    def dense(self) -> Float[Tensor, "*batch dim dim"]:
        """The matrices themselves."""
        return torch.diag_embed(self._tensors[0])


class LowRank(SymmetricOperator):
    """diag(a) + B diag(e) Bᵀ: D·(r + 1) numbers a matrix.

    Args:
        values: the diagonal a, (*batch, D).
        factor: B, (*batch, D, r) with r ≤ D.
        signs: e, (*batch, r) or (r,): ±1, or any weights of either sign; all +1 when None.

    Raises:
        ValueError: shapes that do not fit, or a rank above D.
    """

    def __init__(
        self,
        values: Tensor,
        factor: Tensor,
        signs: Tensor | None = None,
    ):
        _vector("values", values)
        if factor.ndim < 2 or factor.shape[-2] != values.shape[-1]:
            raise ValueError(
                f"factor must have shape (*batch, {values.shape[-1]}, rank), but had "
                f"{tuple(factor.shape)}"
            )
        dim, rank = factor.shape[-2:]
        if rank > dim:
            raise ValueError(f"rank must be at most the dimension {dim}, but was {rank}")
        if signs is None:
            signs = factor.new_ones(rank)
        self._parts = (values, factor, signs.expand(*factor.shape[:-2], rank))
        self._eigen: tuple[Tensor, Tensor, Tensor] | None = None
        self._squares: Tensor | None = None

    @classmethod
    def _rebuild(cls, tensors: tuple[Tensor, ...]) -> "LowRank":
        return cls(*tensors)

    def matmul(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """A ⊙ v + B (e ⊙ Bᵀv), in O(D r)."""
        a, b, e = self._tensors
        inner = e * (b.mT @ v.unsqueeze(-1)).squeeze(-1)
        return a * v + (b @ inner.unsqueeze(-1)).squeeze(-1)

    def quadratic(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch"]:
        """Σ a v² + Σ_j e_j (Bᵀv)_j²: one product with B, where `matmul` needs two."""
        a, b, e = self._tensors
        inner = (b.mT @ v.unsqueeze(-1)).squeeze(-1)
        return (a * v.square()).sum(-1) + (e * inner.square()).sum(-1)

    def diagonal(self) -> Float[Tensor, "*batch dim"]:
        """a_i + Σ_j e_j B_ij²."""
        return self._tensors[0] + self._rows()

    def frobenius_squared(self) -> Float[Tensor, "*batch"]:
        """Σa² + 2 Σ_ij a_i e_j B_ij² + Σ_ij e_i e_j (BᵀB)_ij², in O(D r²)."""
        a, b, e = self._tensors
        gram = (b.mT @ b).square()
        inner = (e * (gram @ e.unsqueeze(-1)).squeeze(-1)).sum(-1)
        return (a * (a + 2 * self._rows())).sum(-1) + inner

    def congruence(self, factor: Float[Tensor, "..."]) -> SymmetricOperator:
        """FᵀSF: of the same rank for a vector F, dense for a matrix."""
        if factor.ndim == 1:
            return self.scale(factor)
        return Dense(factor.mT @ self.dense() @ factor)

    def scale(self, factor: Tensor | float) -> "LowRank":
        """diag(f a f) + (f B) diag(e) (f B)ᵀ."""
        a, b, e = self._tensors
        f = factor.unsqueeze(-1) if isinstance(factor, Tensor) and factor.ndim else factor
        return LowRank(a * factor * factor, b * f, e)

    def shift(self, amount: Tensor | float) -> "LowRank":
        """diag(a + c) + B diag(e) Bᵀ."""
        a, b, e = self._tensors
        return LowRank(a + amount, b, e)

    def log_determinant(self) -> Float[Tensor, "*batch"]:
        """Σ log a + log det(I + diag(e) Bᵀ diag(1/a) B), in O(D r²); the diagonal a must be > 0."""
        return self._tensors[0].log().sum(-1) + torch.linalg.slogdet(self._capacitance()[0])[1]

    def inverse_quadratic(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch"]:
        """Σ v²/a − wᵀ(I + diag(e) WᵀW)⁻¹ diag(e) w with W = B/√a, w = Wᵀ(v/√a): Woodbury."""
        small, thin = self._capacitance()
        a, _, e = self._tensors
        scaled = v / a.sqrt()
        w = (thin.mT @ scaled.unsqueeze(-1)).squeeze(-1)
        inner = torch.linalg.solve(small, (e * w).unsqueeze(-1)).squeeze(-1)
        return scaled.square().sum(-1) - (w * inner).sum(-1)

    def spectral(self, f: Callable[[Tensor], Tensor]) -> SymmetricOperator:
        """f(S) by an r × r eigendecomposition where the diagonal a is constant, else dense.

        With another a, f(S) is not diagonal plus low rank: it is exact all the same, as a `Dense`
        operator by a D × D eigendecomposition.
        """
        a = self._tensors[0]
        if not bool(torch.equal(a, a[..., :1].expand_as(a))):
            return Dense(self.dense()).spectral(f)
        a, q, shift = self._decomposed()
        base = f(a)
        change = f(a + shift) - base
        factor = q * change.abs().sqrt().unsqueeze(-2)
        signs = torch.where(change < 0, -1.0, 1.0).to(change.dtype)
        return LowRank(base.expand(*change.shape[:-1], self.dim), factor, signs)

    def dense(self) -> Float[Tensor, "*batch dim dim"]:
        """The matrices themselves."""
        a, b, e = self._tensors
        return torch.diag_embed(a) + (b * e.unsqueeze(-2)) @ b.mT

    def _rows(self) -> Tensor:
        """Σ_j e_j B_ij², (*batch, D), formed once: every contraction of a loss needs it."""
        # not kept from inside no_grad, or a later loss would miss its gradient
        if self._squares is None or (torch.is_grad_enabled() and not self._squares.requires_grad):
            _, b, e = self._tensors
            self._squares = (b.square() @ e.unsqueeze(-1)).squeeze(-1)
        return self._squares

    def _capacitance(self) -> tuple[Tensor, Tensor]:
        """I + diag(e) WᵀW, (*batch, r, r), and W = B/√a, (*batch, D, r)."""
        a, b, e = self._tensors
        thin = b / a.sqrt().unsqueeze(-1)
        eye = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        return eye + e.unsqueeze(-1) * (thin.mT @ thin), thin

    def _decomposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """(a, Q, λ): the constant diagonal (*batch, 1) and B diag(e) Bᵀ = Q diag(λ) Qᵀ."""
        if self._eigen is None:
            a, b, e = self._tensors
            q, r = torch.linalg.qr(b)
            shift, vectors = torch.linalg.eigh((r * e.unsqueeze(-2)) @ r.mT)
            self._eigen = (a[..., :1], q @ vectors, shift)
        return self._eigen


class Dense(SymmetricOperator):
    """A symmetric matrix; its eigendecomposition is made once, when first needed.

    Args:
        matrix: (*batch, D, D), symmetric: only its lower triangle enters `spectral`.
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
        """V diag(λ) Vᵀ, kept in that form: `matmul` and `trace` never build the matrix."""
        operator = cls.__new__(cls)
        operator._matrix = None
        operator._eigen = (values, vectors)
        return operator

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        # the eigendecomposition once it exists: an accepted state keeps it
        return (self._matrix,) if self._eigen is None else self._eigen  # pyright: ignore

    @classmethod
    def _rebuild(cls, tensors: tuple[Tensor, ...]) -> "Dense":
        return cls(tensors[0]) if len(tensors) == 1 else cls.from_eigen(*tensors)

    def select(self, mask: Bool[Tensor, "batch"], other: SymmetricOperator) -> "Dense":
        """This operator where `mask` is True, `other` elsewhere, decomposed if both are."""
        if isinstance(other, Dense) and (self._eigen is None) != (other._eigen is None):
            return Dense(self.dense()).select(mask, Dense(other.dense()))
        return self._rebuild(super().select(mask, other)._tensors)

    def eigen(self) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, "*vbatch dim dim"]]:
        """Eigenvalues, ascending, and the matrix whose columns are the eigenvectors."""
        if self._eigen is None:
            assert self._matrix is not None
            values, vectors = torch.linalg.eigh(self._matrix)
            self._eigen = (values, vectors)
        return self._eigen

    def matmul(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """S v."""
        if self._matrix is not None:
            return (self._matrix @ v.unsqueeze(-1)).squeeze(-1)
        values, vectors = self.eigen()
        inner = values * (vectors.mT @ v.unsqueeze(-1)).squeeze(-1)
        return (vectors @ inner.unsqueeze(-1)).squeeze(-1)

    def diagonal(self) -> Float[Tensor, "*batch dim"]:
        """S_ii."""
        if self._matrix is not None:
            return self._matrix.diagonal(dim1=-2, dim2=-1)
        values, vectors = self.eigen()
        return (vectors.square() @ values.unsqueeze(-1)).squeeze(-1)

    def trace(self) -> Float[Tensor, "*batch"]:
        """Σ_i S_ii."""
        return self.diagonal().sum(-1) if self._eigen is None else self._eigen[0].sum(-1)

    def frobenius_squared(self) -> Float[Tensor, "*batch"]:
        """Σ S_ij²."""
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
        f = torch.as_tensor(factor, dtype=self.dtype, device=self._tensors[0].device)
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
        """‖L⁻¹v‖²."""
        factor = torch.linalg.cholesky(self.dense())
        white = torch.linalg.solve_triangular(factor, v.unsqueeze(-1), upper=False)
        return white.squeeze(-1).square().sum(-1)

    def spectral(self, f: Callable[[Tensor], Tensor]) -> "Dense":
        """V f(λ) Vᵀ, kept in that form."""
        values, vectors = self.eigen()
        return Dense.from_eigen(f(values), vectors)

    def dense(self) -> Float[Tensor, "*batch dim dim"]:
        """The matrices themselves."""
        if self._matrix is None:
            values, vectors = self.eigen()
            self._matrix = (vectors * values.unsqueeze(-2)) @ vectors.mT
        return self._matrix


def _vector(name: str, tensor: Tensor) -> Tensor:
    if tensor.ndim < 1 or tensor.shape[-1] < 1:
        raise ValueError(
            f"{name} must have shape (*batch, dim) with dim ≥ 1, but had {tuple(tensor.shape)}"
        )
    return tensor
