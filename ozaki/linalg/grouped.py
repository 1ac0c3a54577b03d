"""`Grouped` is a diagonal of few different values and a factor of few columns, by eigenpairs.

f(diag(a) + B diag(e) Bᵀ) is diagonal plus low rank only where a is constant. Where a has K values,
coordinates fall into K groups; within a group what is orthogonal to its rows of B, B_g, has the
eigenvalue a_g, and all the rest lies in the span of the columns of B_1, …, B_K, each padded with
zeros: at most K r dimensions. One eigendecomposition there, of K r × K r, gives every f exactly,
and f(S) v costs O(D r + (K r)²).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ozaki.foundation.shapes import Bool, Float
from ozaki.linalg.base import SymmetricOperator
from ozaki.linalg.dense import Dense


class Grouped(SymmetricOperator):
    """diag(a) + Q W Qᵀ, with a of K values and Q block by block orthonormal; see `of`.

    Args:
        group: which of the K values an entry of the diagonal has, (*batch, D), whole numbers.
        levels: the values, (*batch, K).
        basis: the entries of Q that are not zero, (*batch, D, r): row i stands in the columns of
            its group.
        values: the eigenvalues of S in the span of Q, (*batch, K r).
        vectors: their eigenvectors in columns, in coordinates of Q, (*batch, K r, K r).

    Example:
        >>> a, b = torch.tensor([1.0, 1.0, 4.0]), torch.ones(3, 1)
        >>> s = Grouped.of(a, b, torch.ones(1), count=2)  # diag(a) + 1 1ᵀ, exactly
        >>> float(s.frobenius_squared().round(decimals=3))
        39.0
    """

    def __init__(
        self, group: Tensor, levels: Tensor, basis: Tensor, values: Tensor, vectors: Tensor
    ):
        self._parts = (group, levels, basis, values, vectors)

    @classmethod
    def of(
        cls,
        values: Float[Tensor, "*batch dim"],
        factor: Float[Tensor, "*batch dim rank"],
        weights: Float[Tensor, "*batch rank"],
        count: int,
    ) -> "Grouped":
        """diag(a) + B diag(e) Bᵀ with each a_i rounded to the mean of its group.

        Groups are `count` equal parts of the range of a, for each matrix by itself: an a of no more
        values, one in each part, is not changed.

        Args:
            values: a, (*batch, D).
            factor: B, (*batch, D, r).
            weights: e, (*batch, r), of either sign.
            count: K, how many values a may keep.

        Returns:
            The operator.
        """
        *batch, dim, rank = factor.shape
        a = values.expand(*batch, dim)
        low, high = a.amin(-1, keepdim=True), a.amax(-1, keepdim=True)
        place = (a - low) / (high - low).clamp_min(torch.finfo(a.dtype).tiny)
        group = (place * count).long().clamp(0, count - 1)
        member = torch.nn.functional.one_hot(group, count).to(a)
        size = member.sum(-2)
        sums = (member * a.unsqueeze(-1)).sum(-2)
        levels = torch.where(size > 0, sums / size.clamp_min(1), a.mean(-1, keepdim=True))
        parts = [member[..., k : k + 1] * factor for k in range(count)]
        lengths, turns = torch.linalg.eigh(torch.stack([p.mT @ factor for p in parts], -3))
        least = lengths.amax((-2, -1), keepdim=True) * dim * torch.finfo(a.dtype).eps
        kept = lengths > least
        root = torch.where(kept, lengths, 0).sqrt()
        inverse = torch.where(kept, root, 1).reciprocal() * kept
        basis = sum(
            part @ (turns[..., k, :, :] * inverse[..., k, None, :]) for k, part in enumerate(parts)
        )
        inner = (root.unsqueeze(-1) * turns.mT).flatten(-3, -2)  # Qᵀ B
        small = torch.diag_embed(levels.repeat_interleave(rank, -1))
        small = small + (inner * weights.unsqueeze(-2)) @ inner.mT
        return cls(group, levels, basis, *torch.linalg.eigh(small))  # pyright: ignore

    @classmethod
    def rebuild(cls, tensors: tuple[Tensor, ...]) -> "Grouped":
        """The operator whose `tensors` these are."""
        return cls(*tensors)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the entries."""
        return self.tensors[1].dtype

    def astype(self, dtype: torch.dtype) -> "Grouped":
        """The same operator in another dtype."""
        group, *rest = self.tensors
        return Grouped(group, *(t.to(dtype) for t in rest))

    def matmul(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """S v = a ⊙ v + Q (U (λ ⊙ Uᵀw) − a_g w) with w = Qᵀv."""
        lead = torch.broadcast_shapes(v.shape[:-1], self.batch)
        group, levels, basis, values, vectors = self.tensors
        group = group.expand(*lead, -1)
        where = group.unsqueeze(-1).expand(*group.shape, basis.shape[-1])
        count = levels.shape[-1]
        start = v.new_zeros(*lead, count, basis.shape[-1])
        w = start.scatter_add(-2, where, (basis * v.unsqueeze(-1)).expand(where.shape))
        flat = w.flatten(-2).unsqueeze(-1)
        mixed = vectors @ (values.unsqueeze(-1) * (vectors.mT @ flat))
        change = mixed.squeeze(-1).unflatten(-1, (count, -1)) - levels.unsqueeze(-1) * w
        own = levels.expand(*lead, -1).gather(-1, group)
        return own * v + (basis * change.gather(-2, where)).sum(-1)

    def quadratics(self, v: Float[Tensor, "*vbatch dim k"]) -> Float[Tensor, "*obatch k"]:
        """vᵀSv of each column, by `matmul`."""
        return torch.stack([(c * self.matmul(c)).sum(-1) for c in v.unbind(-1)], -1)

    def diagonal(self) -> Float[Tensor, "*batch dim"]:
        """a_i + q_iᵀ W_gg q_i with q_i the row of its group."""
        group, levels, basis, values, vectors = self.tensors
        count, rank = levels.shape[-1], basis.shape[-1]
        rows = vectors.unflatten(-2, (count, rank))
        found = levels.gather(-1, group)
        for k in range(count):
            block = (rows[..., k, :, :] * values.unsqueeze(-2)) @ rows[..., k, :, :].mT
            own = (basis @ block * basis).sum(-1) - levels[..., k : k + 1] * basis.square().sum(-1)
            found = found + torch.where(group == k, own, 0)
        return found

    def trace(self) -> Float[Tensor, "*batch"]:
        """Σ a_i + Σ λ − r Σ a_g."""
        group, levels, basis, values, _ = self.tensors
        own = levels.gather(-1, group).sum(-1)
        return own + values.sum(-1) - basis.shape[-1] * levels.sum(-1)

    def frobenius_squared(self) -> Float[Tensor, "*batch"]:
        """The trace of the square."""
        return self.spectral(torch.square).trace()

    def spectral(self, f: Callable[[Tensor], Tensor]) -> "Grouped":
        """f(S), by f of the K values and of the eigenvalues in the span."""
        group, levels, basis, values, vectors = self.tensors
        return Grouped(group, f(levels), basis, f(values), vectors)

    def log_determinant(self) -> Float[Tensor, "*batch"]:
        """The trace of the logarithm."""
        return self.spectral(torch.log).trace()

    def inverse_quadratic(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch"]:
        """vᵀS⁻¹v, by the spectrum."""
        return self.spectral(torch.reciprocal).quadratic(v)

    def definite(self) -> Bool[Tensor, "*batch"]:
        """Whether values and eigenvalues are above 0."""
        _, levels, _, values, _ = self.tensors
        return (levels > 0).all(-1) & (values > 0).all(-1)

    def sqrt_matmul(self, z: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """S^½ z."""
        return self.spectral(torch.sqrt).matmul(z)

    def clamp_eigenvalues(self, least: float) -> "Grouped":
        """Values and eigenvalues below `least` become `least`."""
        return self.spectral(lambda s: s.clamp_min(least))

    def congruence(self, factor: Float[Tensor, "..."]) -> SymmetricOperator:
        """FᵀSF, dense."""
        return Dense(self.dense()).congruence(factor)

    def scale(self, factor: Tensor | float) -> Dense:
        """diag(f) S diag(f), dense."""
        return Dense(self.dense()).scale(factor)

    def shift(self, amount: Tensor | float) -> SymmetricOperator:
        """S + c I of one number c, of the same kind; of a diagonal, dense."""
        if isinstance(amount, Tensor) and amount.ndim:
            return Dense(self.dense()).shift(amount)
        return self.spectral(lambda s: s + amount)

    def leading(self, k: int) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch dim k"]]:
        """The k largest eigenpairs, by the dense matrix."""
        return Dense(self.dense()).leading(k)

    def dense(self) -> Float[Tensor, "*batch dim dim"]:
        """The matrices themselves."""
        group, levels, basis, values, vectors = self.tensors
        member = torch.nn.functional.one_hot(group, levels.shape[-1]).to(basis)
        q = (member.unsqueeze(-1) * basis.unsqueeze(-2)).flatten(-2)
        w = (vectors * values.unsqueeze(-2)) @ vectors.mT
        w = w - torch.diag_embed(levels.repeat_interleave(basis.shape[-1], -1))
        return torch.diag_embed(levels.gather(-1, group)) + q @ w @ q.mT
