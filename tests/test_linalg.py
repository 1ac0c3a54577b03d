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


def test_spectral_of_a_varying_low_rank_diagonal_is_an_error():
    op = LowRank(torch.tensor([1.0, 2.0]), torch.ones(2, 1))
    with pytest.raises(ValueError, match="diagonal is constant"):
        op.spectral(torch.exp)


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
