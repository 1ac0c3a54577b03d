"""Each operator does what its dense matrix does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ozaki.linalg import Dense, Diagonal, LowRank
from tests.strategies import generator, operators, seeds

KINDS = {
    "diagonal": lambda: Diagonal(torch.randn(4, 3)),
    "low_rank": lambda: LowRank(torch.ones(4, 3), torch.randn(4, 3, 2)),
    "dense": lambda: Dense(torch.eye(3).expand(4, 3, 3)),
}


@given(operators(), seeds)
def test_contractions_agree_with_the_dense_form(op, seed):
    g, matrix = generator(seed), op.dense()
    v = torch.randn(*matrix.shape[:-1], generator=g, dtype=torch.float64)
    assert_close(op.matmul(v), torch.einsum("...ij,...j->...i", matrix, v))
    assert_close(op.diagonal(), matrix.diagonal(dim1=-2, dim2=-1))
    assert_close(op.trace(), matrix.diagonal(dim1=-2, dim2=-1).sum(-1))
    assert_close(op.quadratic(v), torch.einsum("...i,...ij,...j->...", v, matrix, v))
    several = torch.randn(*matrix.shape[:-1], 3, generator=g, dtype=torch.float64)
    assert_close(
        op.quadratics(several), torch.einsum("...ik,...ij,...jk->...k", several, matrix, several)
    )
    assert_close(op.frobenius_squared(), matrix.square().sum((-2, -1)))
    assert op.dim == matrix.shape[-1]


@given(operators(), seeds, st.booleans())
def test_congruence_agrees_with_the_dense_form(op, seed, vector):
    g = generator(seed)
    f = torch.randn(op.dim, *(() if vector else (op.dim,)), generator=g, dtype=torch.float64)
    full = torch.diag(f) if vector else f
    assert_close(op.congruence(f).dense(), full.mT @ op.dense() @ full)
    if vector:
        assert type(op.congruence(f)) is type(op)


@given(operators(constant=True))
def test_spectral_agrees_with_an_eigendecomposition(op):
    values, vectors = torch.linalg.eigh(op.dense())
    for f in (torch.sinh, torch.square, lambda s: s.clamp(max=0)):
        got = op.spectral(f)
        want = (vectors * f(values).unsqueeze(-2)) @ vectors.mT
        assert_close(got.dense(), want, atol=1e-8, rtol=1e-8)
        # and once more through the kept factors, which never build the matrix
        v = torch.ones_like(op.diagonal())
        assert_close(got.matmul(v), want.sum(-1), atol=1e-8, rtol=1e-8)
        assert_close(got.trace(), f(values).sum(-1), atol=1e-8, rtol=1e-8)


@given(operators(constant=True))
def test_spectral_of_spectral_composes(op):
    twice = op.spectral(torch.atan).spectral(torch.tan)
    assert_close(twice.dense(), op.dense(), atol=1e-6, rtol=1e-6)


@given(operators())
def test_spectral_is_exact_whatever_the_diagonal(op):
    want = Dense(op.dense()).spectral(torch.atan)
    assert_close(op.spectral(torch.atan).dense(), want.dense(), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_select_takes_rows_by_the_mask(kind):
    a, b = KINDS[kind](), KINDS[kind]().spectral(torch.sin)
    mask = torch.tensor([True, False, True, False])
    picked = a.select(mask, b)
    want = torch.where(mask[:, None, None], a.dense(), b.dense())
    assert_close(picked.dense(), want)
    assert_close(b.select(~mask, a).dense(), want)


def test_select_refuses_another_kind():
    with pytest.raises(ValueError, match="other must be a Diagonal"):
        KINDS["diagonal"]().select(torch.ones(4, dtype=torch.bool), KINDS["dense"]())


def test_low_rank_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="rank must be at most the dimension 2, but was 3"):
        LowRank(torch.ones(2), torch.ones(2, 3))
    with pytest.raises(ValueError, match="factor must have shape"):
        LowRank(torch.ones(2), torch.ones(3, 1))
    with pytest.raises(ValueError, match="square"):
        Dense(torch.ones(2, 3))


def test_low_rank_never_builds_the_matrix():
    d, r = 50_000, 4  # a dense one would take 10 GB
    op = LowRank(torch.ones(d), torch.randn(d, r))
    root = op.spectral(torch.sqrt)
    v = torch.randn(d)
    assert_close(root.matmul(root.matmul(v)), op.matmul(v), atol=1e-1, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_repr_names_kind_and_size(kind):
    assert "dim=3" in repr(KINDS[kind]())


@given(s=operators(), seed=seeds)
def test_scale_shift_and_selection_of_a_batch_equal_the_dense_ones(s, seed):
    g = generator(seed)
    f = torch.rand(s.dim, generator=g, dtype=torch.float64) + 0.5
    torch.testing.assert_close(s.scale(f).dense(), f.unsqueeze(-1) * s.dense() * f)
    torch.testing.assert_close(s.scale(2.0).dense(), 4 * s.dense())
    torch.testing.assert_close(s.shift(f).dense(), s.dense() + torch.diag(f))
    assert s.astype(torch.float32).dense().dtype == torch.float32
    assert type(s.scale(f)) is type(s.shift(1.0)) is type(s)
    if s.diagonal().ndim > 1:
        torch.testing.assert_close(s[1:].dense(), s.dense()[1:])


@given(s=operators(batch=(2,)), seed=seeds)
def test_determinant_and_inverse_of_a_positive_operator(s, seed):
    least = float(torch.linalg.eigvalsh(s.dense()).min())
    by = float(s.diagonal().abs().max()) + max(0.0, -least) + 1.0
    # a low rank needs its diagonal part positive as well
    p = s.shift(by + 10.0)
    v = torch.randn(s.dim, generator=generator(seed), dtype=torch.float64)
    torch.testing.assert_close(p.log_determinant(), torch.linalg.slogdet(p.dense())[1])
    solved = torch.linalg.solve(p.dense(), v.expand(p.diagonal().shape).unsqueeze(-1))
    torch.testing.assert_close(p.inverse_quadratic(v), (v.unsqueeze(-2) @ solved)[..., 0, 0])


def test_the_diagonal_of_a_factor_has_the_gradients_of_its_dense_form():
    g = generator(0)
    b = torch.randn(2, 4, 3, generator=g, dtype=torch.float64, requires_grad=True)
    e = torch.randn(3, generator=g, dtype=torch.float64, requires_grad=True)
    a = torch.zeros(2, 4, dtype=torch.float64)

    def rows(b: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return LowRank(a[: len(b)] if b.ndim > 2 else a[0], b, e).diagonal()

    assert torch.autograd.gradcheck(rows, (b, e))
    assert torch.autograd.gradgradcheck(rows, (b, e))
    together = torch.func.vmap(rows, (0, None))(b, e)
    assert_close(together, rows(b, e))
    one = torch.func.vmap(torch.func.grad(lambda b: rows(b, e).square().sum()))(b)
    assert_close(one, torch.autograd.grad(rows(b, e).square().sum(), b)[0])
