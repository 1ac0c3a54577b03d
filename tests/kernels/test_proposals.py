"""Langevin and Ozaki steps against linear algebra."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ozaki.kernels import proposals
from ozaki.kernels.proposals import GaussianStep, concave, langevin, modified, ozaki, phi
from ozaki.linalg import Dense, Diagonal, LowRank
from ozaki.scores.analytic import GaussianMixtureScore, GaussianScore
from ozaki.scores.base import Expansion
from tests.kit.oracles import affine_map, stationary_covariance
from tests.kit.strategies import gaussians, generator, mixtures, operators, seeds, spd
from tests.kit.tolerances import rounding

step_sizes = st.floats(1e-3, 50.0)


def test_phi_against_exact_values_and_its_slope():
    u = torch.tensor([-700.0, -1.0, -1e-3, -1e-5, 0.0, 1e-9, 1e-4, 2.0], dtype=torch.float64)
    want = [math.expm1(v) / v if v else 1.0 for v in u.tolist()]
    # some roundings of float64, whose resolution is 2e-16
    assert_close(phi(u), torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=0)
    assert_close(phi(u.float()).double(), phi(u), rtol=1e-6, atol=0)  # eight roundings of float32
    u.requires_grad_()
    (slope,) = torch.autograd.grad(phi(u).sum(), u)
    assert_close(slope[4], torch.tensor(0.5, dtype=torch.float64))
    assert bool((slope > 0).all())


@given(gaussians(), step_sizes)
def test_dense_ozaki_leaves_a_gaussian_invariant(score, h):
    m, b, c = affine_map(ozaki, score, h, "dense")
    sigma, size = score.covariance, score.covariance.abs().amax()
    # float64, of covariances of condition 100: stricter than the policy's
    assert_close((m @ sigma @ m.mT + c) / size, sigma / size, atol=1e-9, rtol=1e-9)
    # as above
    assert_close(m @ score.mean + b, score.mean, atol=1e-9, rtol=1e-9)


def test_the_invariance_test_sees_a_flipped_sign():
    score = GaussianScore([1.0, 0.0], spd(generator(1), 2))

    def flipped(x, at, h):
        return ozaki(x, at._replace(gradient=-at.gradient), h)

    def halved(x, at, h):  # φ(h s2) in the mean in place of φ(h s2/2)
        return ozaki(x, at._replace(curvature=at.curvature.spectral(lambda s: 2 * s)), h)

    for wrong in (flipped, halved):
        m, _, c = affine_map(wrong, score, 0.7, "dense")
        # far above any rounding: the check above tells wrong maps
        assert (m @ score.covariance @ m.mT + c - score.covariance).abs().amax() > 0.05


@given(gaussians(), step_sizes)
def test_low_rank_and_diagonal_ozaki_equal_dense_where_they_hold_the_hessian(score, h):
    g = generator(3)
    x = torch.randn(4, score.dim, generator=g, dtype=torch.float64)
    gradient = torch.randn(4, score.dim, generator=g, dtype=torch.float64)
    b = torch.randn(4, score.dim, 1, generator=g, dtype=torch.float64)
    for op in (
        LowRank(-torch.ones_like(x), b, -torch.ones(1, dtype=torch.float64)),
        Diagonal(-gradient.square()),
    ):
        step = torch.tensor(h)
        got = ozaki(x, Expansion(gradient, op, None), step)
        want = ozaki(x, Expansion(gradient, Dense(op.dense()), None), step)
        assert_close(got.mean, want.mean)
        assert_close(got.covariance.dense(), want.covariance.dense())
        assert_close(got.log_prob(x), want.log_prob(x))


@given(mixtures(), seeds, st.sampled_from(["diagonal", "dense"]))
def test_ozaki_tends_to_langevin_as_curvature_vanishes(score, seed, kind):
    x = torch.randn(3, score.dim, generator=generator(seed), dtype=torch.float64)
    at, h = score.expand(x, kind), torch.tensor(0.8, dtype=torch.float64)
    plain = langevin(x, at, h)
    gaps = []
    for scale in (1e-3, 1e-4):
        faint = at._replace(curvature=at.curvature.spectral(lambda s, k=scale: k * s))
        near = ozaki(x, faint, h)
        gap = (near.mean - plain.mean).abs().amax() + (
            near.covariance.dense() - plain.covariance.dense()
        ).abs().amax()
        gaps.append(float(gap))
    # at the rate of the curvature itself: φ(u) = 1 + u/2 + …
    # a tenth, and the second-order term's tenth of that; 1e-12 for rounding
    assert gaps[1] <= 0.11 * gaps[0] + 1e-12


@given(operators(constant=True))
def test_positive_curvature_is_flattened_and_counted(op):
    values = torch.linalg.eigvalsh(op.dense())
    assert_close(modified(op), (values > 0).double().sum(-1))
    flat = torch.linalg.eigvalsh(concave(op).dense())
    assert_close(flat, values.clamp(max=0), **rounding(torch.float64))


def test_where_curvature_is_positive_the_step_is_langevins():
    x = torch.zeros(1, 2)
    at = Expansion(torch.ones(1, 2), Diagonal(torch.tensor([[3.0, -1.0]])), None)
    h = torch.tensor(2.0)
    got, plain = ozaki(x, at, h), langevin(x, at, h)
    assert_close(got.mean[:, 0], plain.mean[:, 0])
    assert_close(got.covariance.diagonal()[:, 0], plain.covariance.diagonal()[:, 0])
    assert got.covariance.diagonal()[0, 1] < plain.covariance.diagonal()[0, 1]


@given(operators(constant=True), seeds)
def test_log_prob_is_the_gaussian_density(op, seed):
    spread = op.spectral(lambda s: s.square() + 0.1)
    g = generator(seed)
    mean = torch.randn(*op.diagonal().shape, generator=g, dtype=torch.float64)
    y = torch.randn(*op.diagonal().shape, generator=g, dtype=torch.float64)
    law = torch.distributions.MultivariateNormal(mean, spread.dense(), validate_args=False)
    got = GaussianStep(mean, spread)
    # float64, of squares of eigenvalues plus 0.1: their condition has no bound
    assert_close(got.log_prob(y), law.log_prob(y), rtol=1e-6, atol=1e-6)
    z = torch.zeros_like(mean)
    assert_close(got.sample(z), mean)
    # a unit step along z moves by a square root of the covariance
    root = torch.stack([got.sample(e.expand_as(mean)) - mean for e in torch.eye(op.dim).double()])
    root = root.movedim(0, -1)
    assert_close(root @ root.mT, spread.dense(), rtol=1e-6, atol=1e-6)  # as above


@pytest.mark.parametrize("h", [0.1, 1.0, 3.0])
def test_langevin_has_its_own_stationary_law(h):
    score = GaussianScore(torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64))
    m, _, c = affine_map(langevin, score, h, None)
    want = 1 / (1 - h / 4)  # MATH: stationary variance on N(0, 1)
    assert_close(stationary_covariance(m, c), torch.tensor([[want]], dtype=torch.float64))


@pytest.mark.parametrize("h", [0.3, 1.0, 4.0])
def test_diagonal_ozaki_is_biased_under_correlation(h):
    rho = -0.9
    sigma = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    score = GaussianScore(torch.zeros(2, dtype=torch.float64), sigma)
    m, _, c = affine_map(ozaki, score, h, "diagonal")
    got = torch.linalg.eigvalsh(stationary_covariance(m, c)).flip(0).tolist()
    # by hand, along the two eigenvectors: a is the diagonal of −Σ⁻¹, λ its eigenvalue there
    a = -1 / (1 - rho**2)
    pull, spread = math.expm1(h * a / 2) / a, math.expm1(h * a) / a
    for value, width in zip(got, (1.9, 0.1), strict=True):
        # float64's rounding of a Lyapunov solve
        assert value == pytest.approx(spread / (1 - (1 - pull / width) ** 2), rel=1e-9)
    assert got[0] < 0.8 * 1.9  # the wide direction comes out too narrow


def test_an_expansion_without_curvature_is_refused():
    score = GaussianMixtureScore(torch.eye(2), torch.eye(2).expand(2, 2, 2))
    x = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="expansion must hold a curvature"):
        ozaki(x, score.expand(x), torch.tensor(1.0))


def test_a_large_low_rank_has_its_diagonal_rounded_and_a_small_one_not():
    g, h = generator(0), torch.tensor(0.7, dtype=torch.float64)

    def steps(dim: int) -> tuple[GaussianStep, GaussianStep, GaussianStep]:
        """By the low rank, by its rounded diagonal as a matrix, and by the matrix itself."""
        x, gradient = torch.randn(2, 3, dim, generator=g, dtype=torch.float64)
        a = -torch.rand(3, dim, generator=g, dtype=torch.float64)
        op = LowRank(a, torch.randn(3, dim, 2, generator=g, dtype=torch.float64) / dim**0.5)
        kinds = op, Dense(op.grouped(proposals.LEVELS).dense()), Dense(op.dense())
        return tuple(ozaki(x, Expansion(gradient, kind, None), h) for kind in kinds)  # type: ignore

    for dim, alike in ((proposals.LARGE, 2), (proposals.LARGE + 1, 1)):
        found = steps(dim)
        z = torch.randn(3, dim, generator=g, dtype=torch.float64)
        assert_close(found[0].mean, found[alike].mean)
        assert_close(found[0].sample(z), found[alike].sample(z))
        assert_close(found[0].log_prob(z), found[alike].log_prob(z))
        assert not torch.allclose(found[0].mean, found[3 - alike].mean)
        # a part of the diagonal's range is an eighth of 1: the steps are alike
        assert_close(found[0].mean, found[3 - alike].mean, atol=0.02, rtol=0)


def test_large_low_ranks_of_one_diagonal_stay_exact_and_positive_ones_are_counted():
    g, dim = generator(1), proposals.LARGE + 2
    b = torch.linalg.qr(torch.randn(2, dim, 3, generator=g, dtype=torch.float64))[0]
    op = LowRank(
        -torch.ones(2, dim, dtype=torch.float64), b, torch.tensor([2.0, 3.0, 0.5]).double()
    )
    assert type(concave(op)) is LowRank
    uneven = op.shift(torch.linspace(-0.1, 0.0, dim, dtype=torch.float64))
    assert modified(op).tolist() == modified(uneven).tolist() == [2, 2]
    assert float(concave(uneven).dense().diagonal(dim1=-2, dim2=-1).max()) <= 0
