"""Each operator does what its dense matrix does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ozaki.linalg import Dense, Diagonal, Grouped, LowRank, davidson
from tests.kit.strategies import generator, operators, seeds
from tests.kit.tolerances import rounding

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
        assert_close(got.dense(), want, **rounding(torch.float64))
        # and once more through the kept factors, which never build the matrix
        v = torch.ones_like(op.diagonal())
        assert_close(got.matmul(v), want.sum(-1), **rounding(torch.float64))
        assert_close(got.trace(), f(values).sum(-1), **rounding(torch.float64))


@given(operators(constant=True))
def test_spectral_of_spectral_composes(op):
    twice = op.spectral(torch.atan).spectral(torch.tan)
    # float64, but near π/2 the tangent multiplies a rounding by its square
    assert_close(twice.dense(), op.dense(), atol=1e-6, rtol=1e-6)


@given(operators())
def test_spectral_is_exact_whatever_the_diagonal(op):
    want = Dense(op.dense()).spectral(torch.atan)
    assert_close(op.spectral(torch.atan).dense(), want.dense(), **rounding(torch.float64))


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
    # float32, of entries about 2 √50,000 = 450: 0.1 is a 4,500th of them
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


@given(operators(), operators(constant=True), seeds)
def test_leading_pairs_are_those_of_the_matrix(varying, constant, seed):
    for op in (varying, constant):
        k = 1 + seed % op.dim
        values, vectors = op.leading(k)
        matrix = op.dense()
        want = torch.linalg.eigvalsh(matrix).flip(-1)[..., :k]
        # float64, one eigendecomposition: stricter than the policy's, in all of this test
        assert_close(values, want, atol=1e-9, rtol=1e-9)
        assert_close(matrix @ vectors, vectors * values.unsqueeze(-2), atol=1e-9, rtol=1e-9)
        eye = torch.eye(k, dtype=torch.float64).expand(*values.shape, k)
        assert_close(vectors.mT @ vectors, eye, atol=1e-9, rtol=0)


LEVELLED = {  # a, size of B, weights: bulk alone, ties, negative directions, unrelated blocks
    "bulk": (lambda g: torch.rand(2, 120, generator=g), 1e-2, 1.0),
    "ties": (lambda g: torch.rand(2, 120, generator=g).round(decimals=1), 0.3, 1.0),
    "signed": (lambda g: torch.rand(2, 120, generator=g), 0.3, -1.0),
    "outliers": (lambda g: torch.rand(2, 120, generator=g).pow(20), 1.0, 1.0),
}


@pytest.mark.parametrize("case", LEVELLED)
def test_leading_pairs_of_many_dimensions_without_the_matrix(case, monkeypatch):
    g = generator(1)
    diagonal, size, weight = LEVELLED[case]
    b = size * torch.randn(2, 120, 4, generator=g, dtype=torch.float64)
    b[:, 60:, :2] = 0
    b[:, :60, 2:] = 0
    op = LowRank(
        diagonal(g).double(), b, torch.tensor([1.0, weight, 1.0, weight], dtype=torch.float64)
    )
    matrix = op.dense()
    monkeypatch.setattr(LowRank, "dense", None)
    values, vectors = op.leading(12)
    want = torch.linalg.eigvalsh(matrix).flip(-1)[..., :12]
    # float64, of values about 1: stricter than the policy's; so is the next
    assert_close(values, want, atol=1e-10, rtol=0)
    # float64, as above
    assert_close(matrix @ vectors, vectors * values.unsqueeze(-2), atol=1e-10, rtol=0)


def test_a_missed_pair_is_noticed(monkeypatch):
    """The search is made to begin in eigenvectors, of which the largest is none."""
    a = torch.linspace(1.0, 0.5, 40, dtype=torch.float64).unsqueeze(0)
    b = torch.zeros(1, 40, 1, dtype=torch.float64)
    b[0, 39] = 3.0
    real, seen = davidson._start, []

    def blind(a, b, k):
        seen.append(k)
        return real(a, b, k) if len(seen) > 1 else torch.eye(40, dtype=a.dtype)[None, :, :3]

    monkeypatch.setattr(davidson, "_start", blind)
    values, _ = LowRank(a, b).leading(2)
    assert len(seen) == 2
    assert_close(values[0], torch.tensor([9.5, 1.0], dtype=torch.float64))


@given(operators(batch=(2, 3)), seeds)
def test_colour_and_definite(op, seed):
    matrix = op.dense()
    least = torch.linalg.eigvalsh(matrix)[..., 0]
    part = op.tensors[0] if isinstance(op, LowRank) else matrix.diagonal(dim1=-2, dim2=-1)
    assert torch.equal(op.definite(), (least > 0) & (part > 0).all(-1))
    positive = op.shift(float(part.abs().max() - least.min().clamp(max=0)) + 1.0)
    root = torch.stack(
        [positive.sqrt_matmul(z.expand(op.diagonal().shape)) for z in torch.eye(op.dim).double()],
        -1,
    )
    # float64, one root: stricter than the policy's
    assert_close(root @ root.mT, positive.dense(), atol=1e-9, rtol=1e-9)
    assert positive.definite().all()


@given(operators(batch=(2,)))
def test_raised_is_positive_definite_and_leaves_the_rest(op):
    raised = op.clamp_eigenvalues(0.3)
    assert type(raised) is type(op) and raised.definite().all()
    if isinstance(op, LowRank):
        part = op.tensors[0].clamp_min(0.3)
        white = raised.scale(part.rsqrt())
        before = LowRank(part, *op.tensors[1:]).scale(part.rsqrt())
        want = torch.linalg.eigvalsh(before.dense()).clamp_min(0.3)
        assert_close(torch.linalg.eigvalsh(white.dense()), want, **rounding(torch.float64))
        assert_close(raised.tensors[0], part)
    else:
        values, vectors = torch.linalg.eigh(op.dense())
        want = (vectors * values.clamp_min(0.3).unsqueeze(-2)) @ vectors.mT
        # float64, one eigendecomposition: stricter than the policy's
        assert_close(raised.dense(), want, atol=1e-9, rtol=1e-9)
    least = torch.linalg.eigvalsh(op.dense()).min()
    by = float(op.diagonal().abs().max() * 2 - least.clamp(max=0)) + 10.0
    far = op.shift(by + float(op.tensors[0].abs().max()))
    # float64: nothing is clamped
    assert_close(far.clamp_eigenvalues(1e-3).dense(), far.dense(), atol=1e-9, rtol=1e-9)


@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 4), st.integers(1, 5), seeds)
def test_a_diagonal_of_few_values_has_every_function_exactly(batch, dim, rank, values, seed):
    """Also where groups are empty, or smaller than the rank."""
    g, rank = generator(seed), min(rank, dim)
    levels = torch.linspace(-2.0, -0.3, values, dtype=torch.float64)
    a = levels[torch.randint(values, (batch, dim), generator=g)]
    b = torch.randn(batch, dim, rank, generator=g, dtype=torch.float64)
    e = torch.randn(batch, rank, generator=g, dtype=torch.float64)
    op, whole = LowRank(a, b, e).grouped(7), Dense(LowRank(a, b, e).dense())
    v = torch.randn(batch, dim, generator=g, dtype=torch.float64)
    close = {"atol": 1e-8, "rtol": 1e-7}
    assert_close(op.dense(), whole.dense(), **close)
    for f in (torch.atan, torch.square, lambda s: s.clamp(max=0), lambda s: 3 + torch.tanh(s)):
        got, want = op.spectral(f), whole.spectral(f)
        assert_close(got.dense(), want.dense(), **close)
        assert_close(got.matmul(v), want.matmul(v), **close)
        assert_close(got.trace(), want.trace(), **close)
        assert_close(got.diagonal(), want.diagonal(), **close)
        assert_close(got.frobenius_squared(), want.frobenius_squared(), **close)
    assert_close(got.log_determinant(), want.log_determinant(), **close)
    assert_close(got.inverse_quadratic(v), want.inverse_quadratic(v), **close)
    assert_close(got.sqrt_matmul(got.sqrt_matmul(v)), want.matmul(v), **close)
    assert bool(got.definite().all())
    assert_close(op.shift(0.5).dense(), whole.shift(0.5).dense(), **close)
    assert_close(op.scale(v).dense(), whole.scale(v).dense(), **close)
    mask = torch.arange(batch) % 2 == 0
    picked = op.select(mask, op.spectral(torch.sin)).dense()
    other = torch.where(mask[:, None, None], op.dense(), op.spectral(torch.sin).dense())
    assert_close(picked, other, **close)


def test_another_diagonal_is_rounded_within_a_part_of_its_range_and_keeps_its_trace():
    g = generator(0)
    a = torch.randn(5, 60, generator=g, dtype=torch.float64)
    op = LowRank(a, torch.randn(5, 60, 3, generator=g, dtype=torch.float64))
    off = op.grouped(8).dense() - op.dense()
    # float64: a difference of two sums
    assert_close(off, torch.diag_embed(off.diagonal(dim1=-2, dim2=-1)), atol=1e-9, rtol=0)
    part = (a.amax(-1) - a.amin(-1)) / 8
    assert bool((off.abs().amax((-2, -1)) < part).all())
    assert_close(op.grouped(8).trace(), op.trace())
    assert op.grouped(8) is op.grouped(8) and isinstance(op.grouped(4), Grouped)


@pytest.mark.parametrize("n", [2, 3])
def test_one_basis_for_all_is_indexed_and_selected(n):
    g = generator(n)
    values = torch.randn(n, 3, generator=g, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))[0]
    shared = Dense.from_eigen(values, basis)
    wanted = torch.stack([basis @ v.diag() @ basis.mT for v in values])
    assert shared.tensors[1].data_ptr() == basis.data_ptr()  # a view
    assert_close(shared[1].dense(), wanted[1])
    assert_close(shared[:2].matmul(values[:2]), (wanted[:2] @ values[:2].unsqueeze(-1)).squeeze(-1))
    mask = torch.arange(n) == 0
    other = Dense.from_eigen(values, torch.eye(3, dtype=torch.float64).expand(n, 3, 3))
    for a, b in ((shared, other), (other, shared)):
        want = torch.where(mask[:, None, None], a.dense(), b.dense())
        assert_close(a.select(mask, b).dense(), want)
    narrow = shared.astype(torch.float32)
    assert narrow.dtype == torch.float32 and narrow.eigen()[1].shape == (3, 3)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_leading_pairs_without_a_factor(batch):
    values = torch.tensor([1.0, 3.0, 2.0]).expand(*batch, 3)
    for a in (values, values[(0,) * len(batch)]):
        found, vectors = LowRank(a, torch.ones(*batch, 3, 0)).leading(2)
        assert_close(found, torch.tensor([3.0, 2.0]).expand(*batch, 2))
        assert_close(vectors, torch.eye(3)[:, [1, 2]].expand(*batch, 3, 2))
