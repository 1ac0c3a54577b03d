"""`LowRank` is a diagonal and a factor of few columns, never built as a D × D matrix."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ozaki.foundation.shapes import Bool, Float
from ozaki.foundation.tracing import tracing
from ozaki.linalg.base import SymmetricOperator, check_vector
from ozaki.linalg.davidson import leading_pairs
from ozaki.linalg.dense import Dense
from ozaki.linalg.diagonal import Diagonal
from ozaki.linalg.grouped import Grouped

SPACE = 2**26  # most numbers that a search for eigenpairs may hold at a time


class LowRank(SymmetricOperator):
    """diag(a) + B diag(e) Bᵀ: D·(r + 1) numbers a matrix.

    Args:
        values: the diagonal a, (*batch, D).
        factor: B, (*batch, D, r) with r ≤ D.
        signs: e, (*batch, r) or (r,): ±1, or any weights of either sign; all +1 when None.

    Raises:
        ValueError: shapes that do not fit, or a rank above D.

    Example:
        >>> s = LowRank(torch.ones(3), torch.ones(3, 1), torch.tensor([-0.25]))  # I − ¼ 1 1ᵀ
        >>> s.quadratic(torch.ones(3)), s.definite()
        (tensor(0.7500), tensor(True))
    """

    def __init__(
        self,
        values: Tensor,
        factor: Tensor,
        signs: Tensor | None = None,
    ):
        check_vector("values", values)
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
        self._relative: tuple[Tensor, Tensor] | None = None
        self._grouped: Grouped | None = None

    @classmethod
    def rebuild(cls, tensors: tuple[Tensor, ...]) -> "LowRank":
        """The operator whose `tensors` these are."""
        return cls(*tensors)

    def matmul(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """S v = a ⊙ v + B (e ⊙ Bᵀv), in O(D r)."""
        a, b, e = self.tensors
        inner = e * (b.mT @ v.unsqueeze(-1)).squeeze(-1)
        return a * v + (b @ inner.unsqueeze(-1)).squeeze(-1)

    def quadratics(self, v: Float[Tensor, "*vbatch dim k"]) -> Float[Tensor, "*obatch k"]:
        """Σ a v² + Σ_j e_j (Bᵀv)_j² of each column: one product with B."""
        a, b, e = self.tensors
        inner = b.mT @ v
        return (a.unsqueeze(-1) * v.square()).sum(-2) + (e.unsqueeze(-1) * inner.square()).sum(-2)

    def diagonal(self) -> Float[Tensor, "*batch dim"]:
        """a_i + Σ_j e_j B_ij²."""
        return self.tensors[0] + self._rows()

    def frobenius_squared(self) -> Float[Tensor, "*batch"]:
        """Σa² + 2 Σ_ij a_i e_j B_ij² + Σ_ij e_i e_j (BᵀB)_ij², in O(D r²)."""
        a, b, e = self.tensors
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
        a, b, e = self.tensors
        f = factor.unsqueeze(-1) if isinstance(factor, Tensor) and factor.ndim else factor
        return LowRank(a * factor * factor, b * f, e)

    def shift(self, amount: Tensor | float) -> "LowRank":
        """diag(a + c) + B diag(e) Bᵀ."""
        a, b, e = self.tensors
        return LowRank(a + amount, b, e)

    def log_determinant(self) -> Float[Tensor, "*batch"]:
        """Σ log a + log det(I + diag(e) Bᵀ diag(1/a) B), in O(D r²); the diagonal a must be > 0."""
        return self.tensors[0].log().sum(-1) + torch.linalg.slogdet(self._capacitance()[0])[1]

    def inverse_quadratic(self, v: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch"]:
        """Σ v²/a − wᵀ(I + diag(e) WᵀW)⁻¹ diag(e) w with W = B/√a, w = Wᵀ(v/√a): Woodbury."""
        small, thin = self._capacitance()
        a, _, e = self.tensors
        scaled = v / a.sqrt()
        w = (thin.mT @ scaled.unsqueeze(-1)).squeeze(-1)
        inner = torch.linalg.solve(small, (e * w).unsqueeze(-1)).squeeze(-1)
        return scaled.square().sum(-1) - (w * inner).sum(-1)

    def spectral(self, f: Callable[[Tensor], Tensor]) -> SymmetricOperator:
        """f(S) by an r × r eigendecomposition where the diagonal a is constant, else dense.

        With another a, f(S) is not diagonal plus low rank: it is exact all the same, as a `Dense`
        operator by a D × D eigendecomposition.
        """
        # a traced step must not depend on values, and the dense way is right for all values
        if tracing() or not self.even:
            return Dense(self.dense()).spectral(f)
        a, q, shift = self._decomposed()
        base = f(a)
        change = f(a + shift) - base
        factor = q * change.abs().sqrt().unsqueeze(-2)
        signs = torch.where(change < 0, -1.0, 1.0).to(change.dtype)
        return LowRank(base.expand(*change.shape[:-1], self.dim), factor, signs)

    def grouped(self, count: int) -> Grouped:
        """The same with the diagonal a rounded to `count` values, of which every f is cheap.

        Args:
            count: K, how many values a may keep.

        Returns:
            The operator, which is kept for the next call; see `Grouped.of`.
        """
        found = self._grouped
        if found is None or found.tensors[1].shape[-1] != count:
            values, factor, weights = self.tensors
            found = self._grouped = Grouped.of(values, factor, weights, count)
        return found

    @property
    def even(self) -> bool:
        """Whether the diagonal a is constant, so that `spectral` needs no D × D matrix."""
        a = self.tensors[0]
        return bool(torch.equal(a, a[..., :1].expand_as(a)))

    def definite(self) -> Bool[Tensor, "*batch"]:
        """Whether a > 0 and I + W diag(e) Wᵀ, with W = B/√a, has eigenvalues above 0 alone."""
        positive = (self.tensors[0] > 0).all(-1)
        if not bool(positive.any()):
            return positive.expand(self.tensors[1].shape[:-2])
        a, b, e = self.tensors
        rest = LowRank(torch.where(positive.unsqueeze(-1), a, 1.0), b, e)
        return positive & (rest._whitened()[1] > -1).all(-1)

    def sqrt_matmul(self, z: Float[Tensor, "*vbatch dim"]) -> Float[Tensor, "*obatch dim"]:
        """√a ⊙ (z + Q (√(1 + λ) − 1) Qᵀz), W diag(e) Wᵀ = Q diag(λ) Qᵀ, W = B/√a, in O(D r²)."""
        q, change = self._whitened()
        inner = (q.mT @ z.unsqueeze(-1)) * ((1 + change).sqrt() - 1).unsqueeze(-1)
        return self.tensors[0].sqrt() * (z + (q @ inner).squeeze(-1))

    def clamp_eigenvalues(self, least: float) -> "LowRank":
        """√a (I + Q max(λ, least − 1) Qᵀ) √a, after max(a, least)."""
        a, b, e = self.tensors
        raised = LowRank(a.clamp_min(least), b, e)
        q, change = raised._whitened()
        a = raised.tensors[0]
        low = (change < least - 1).any(-1)
        factor = torch.where(low[..., None, None], a.sqrt().unsqueeze(-1) * q, b)
        return LowRank(a, factor, torch.where(low.unsqueeze(-1), change.clamp_min(least - 1), e))

    def leading(self, k: int) -> tuple[Float[Tensor, "*batch k"], Float[Tensor, "*batch dim k"]]:
        """The k largest eigenpairs, to rounding and without the matrix: see `davidson`.

        Raises:
            ArithmeticError: they were not found, as of parts that are not finite.
        """
        a, b, e = self.tensors
        batch, (dim, rank) = b.shape[:-2], b.shape[-2:]
        if not rank:
            return Diagonal(a.expand(*batch, dim)).leading(k)
        parts = (
            a.expand(*batch, dim).reshape(-1, dim),
            b.reshape(-1, dim, rank),
            e.reshape(-1, rank),
        )
        rows = max(1, SPACE // (dim * (2 * rank + 9 * k + 16)))
        found = [
            leading_pairs(x, y, z, k)
            for x, y, z in zip(*(t.split(rows) for t in parts), strict=True)
        ]
        values, vectors = (torch.cat(t) for t in zip(*found, strict=True))
        return values.reshape(*batch, k), vectors.reshape(*batch, dim, k)

    def dense(self) -> Float[Tensor, "*batch dim dim"]:
        """The matrices themselves."""
        a, b, e = self.tensors
        return torch.diag_embed(a) + (b * e.unsqueeze(-2)) @ b.mT

    def _rows(self) -> Tensor:
        """Σ_j e_j B_ij², (*batch, D), formed once: every contraction of a loss needs it."""
        # not kept from inside no_grad, or a later loss would miss its gradient
        if self._squares is None or (torch.is_grad_enabled() and not self._squares.requires_grad):
            _, b, e = self.tensors
            self._squares = cast(Tensor, _WeightedSquares.apply(b, e))
        return self._squares

    def _capacitance(self) -> tuple[Tensor, Tensor]:
        """I + diag(e) WᵀW, (*batch, r, r), and W = B/√a, (*batch, D, r)."""
        a, b, e = self.tensors
        thin = b / a.sqrt().unsqueeze(-1)
        eye = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        return eye + e.unsqueeze(-1) * (thin.mT @ thin), thin

    def _whitened(self) -> tuple[Tensor, Tensor]:
        """(Q, λ): W diag(e) Wᵀ = Q diag(λ) Qᵀ with W = B/√a, (*batch, D, r) and (*batch, r)."""
        if self._relative is None:
            a, b, e = self.tensors
            q, r = torch.linalg.qr(b / a.sqrt().unsqueeze(-1))
            change, vectors = torch.linalg.eigh((r * e.unsqueeze(-2)) @ r.mT)
            self._relative = (q @ vectors, change)
        return self._relative

    def _decomposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """(a, Q, λ): the constant diagonal (*batch, 1) and B diag(e) Bᵀ = Q diag(λ) Qᵀ."""
        if self._eigen is None:
            a, b, e = self.tensors
            q, r = torch.linalg.qr(b)
            shift, vectors = torch.linalg.eigh((r * e.unsqueeze(-2)) @ r.mT)
            self._eigen = (a[..., :1], q @ vectors, shift)
        return self._eigen


class _WeightedSquares(torch.autograd.Function):
    """Σ_j e_j B_ij², with a backward pass that goes over B once and not four times."""

    generate_vmap_rule = True

    @staticmethod
    def forward(b: Tensor, e: Tensor) -> Tensor:
        return (b.square() @ e.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (g,) = grad_outputs
        b, e = ctx.saved_tensors
        factor = weights = None
        if ctx.needs_input_grad[0]:
            factor = (2 * g).unsqueeze(-1) * e.unsqueeze(-2) * b
        if ctx.needs_input_grad[1]:
            weights = (g.unsqueeze(-2) @ b.square()).squeeze(-2)
        return factor, weights
