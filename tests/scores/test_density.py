"""Automatic differentiation against closed forms and against torch.autograd.functional."""

import math

import jaxtyping
import pyro.distributions as pd
import pytest
import torch
import torch.distributions as td
from hypothesis import given, settings
from hypothesis import strategies as st

from ozaki.foundation.process import isolated_rng
from ozaki.scores.density import DistributionScore, LogDensityScore
from ozaki.scores.differentiation import expand_looped, expand_vectorised, finite_start
from tests.kit.tolerances import rounding

F64 = torch.float64
CLOSE = rounding(torch.float64)


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(F64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def unchecked():
    """As a user runs it: what is refused here must not be refused by the tests' own checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def t(*values):
    return torch.tensor(values, dtype=F64)


def spd(d, g):
    a = torch.randn(d, d, generator=g)
    return a @ a.mT + torch.eye(d)


@settings(max_examples=12, derandomize=True, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**30), st.sampled_from([(), (3,), (2, 2)]))
def test_a_gaussian_expands_as_its_closed_form(d, seed, batch):
    g = torch.Generator().manual_seed(seed)
    mean, precision = torch.randn(d, generator=g), torch.linalg.inv(spd(d, g))
    score = LogDensityScore(lambda x: -0.5 * (x - mean) @ precision @ (x - mean), (d,))
    x = torch.randn(*batch, d, generator=g)
    gradient = -(x - mean) @ precision
    for kind in (None, "dense", "diagonal"):
        e = score.expand(x, kind)
        torch.testing.assert_close(e.gradient, gradient, **CLOSE)
        torch.testing.assert_close(e.log_density, 0.5 * ((x - mean) * gradient).sum(-1), **CLOSE)
        assert e.has_density and (e.curvature is None) == (kind is None)
        if kind == "dense":
            hessian = (-precision).expand(*batch, d, d)
            torch.testing.assert_close(e.curvature.dense(), hessian, **CLOSE)
        elif kind == "diagonal":
            entries = -precision.diagonal().expand(*batch, d)
            torch.testing.assert_close(e.curvature.diagonal(), entries, **CLOSE)


def curved(x):
    a, b = x.flatten()[:2]
    return -((1 - a) ** 2) - 3 * (b - a**2) ** 2 - torch.logsumexp(x.sin(), -1).sum()


@settings(max_examples=6, derandomize=True, deadline=None)
@given(st.integers(0, 2**30))
def test_both_routes_agree_with_autograd_functional(seed):
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
    for kind in (None, "dense", "diagonal"):
        for expand in (expand_vectorised, expand_looped):
            e = expand(curved, x, kind)
            for i, point in enumerate(x):
                g = torch.autograd.functional.jacobian(curved, point)
                h = torch.autograd.functional.hessian(curved, point)
                torch.testing.assert_close(e.log_density[i], curved(point), **CLOSE)
                torch.testing.assert_close(e.gradient[i], g, **CLOSE)
                if kind == "dense":
                    torch.testing.assert_close(e.curvature.dense()[i], h, **CLOSE)
                elif kind == "diagonal":
                    torch.testing.assert_close(e.curvature.diagonal()[i], h.diagonal(), **CLOSE)


def test_the_diagonal_is_exact_in_chunks_and_beside_infinite_entries(monkeypatch):
    x = torch.randn(2, 7)
    whole = expand_vectorised(curved, x, "diagonal").curvature.diagonal()
    monkeypatch.setattr("ozaki.scores.differentiation.CHUNK", 30)
    parts = expand_vectorised(curved, x, "diagonal").curvature.diagonal()
    torch.testing.assert_close(parts, whole, **CLOSE)


def test_linear_and_constant_parts_have_curvature_zero():
    x = torch.randn(2, 3)
    for expand in (expand_vectorised, expand_looped):
        e = expand(lambda p: 2 * p[0], x, "dense")
        torch.testing.assert_close(e.gradient, t(2, 0, 0).expand(2, 3))
        assert not e.curvature.dense().any()
        assert not expand(lambda p: torch.zeros(()), x, "dense").gradient.any()


def test_points_keep_their_shape_and_event_shape_reaches_the_function():
    score = LogDensityScore(lambda x: -(x**2).sum() if x.shape == (2, 3) else x.fail, (2, 3))
    assert score.dim == 6 and score.default_curvature == "dense"
    assert score.start(5, torch.Generator().manual_seed(1)).shape == (5, 6)
    assert score.expand(torch.ones(6)).log_density.shape == ()
    scalar = LogDensityScore(lambda x: -(x**2), ())
    assert scalar.expand(torch.ones(4, 1), "dense").curvature.dense().shape == (4, 1, 1)
    big = LogDensityScore(lambda x: -(x**2).sum(), (101,))
    assert big.default_curvature == "diagonal"


def test_parameters_that_require_gradients_leave_no_graph():
    w = torch.ones(2, requires_grad=True)
    e = LogDensityScore(lambda x: -(w * x**2).sum(), (2,)).expand(torch.ones(3, 2), "dense")
    assert not (e.gradient.requires_grad or e.log_density.requires_grad)
    assert not e.curvature.dense().requires_grad


def test_distributions_with_checks_on_may_be_used_inside():
    score = LogDensityScore(lambda x: td.Normal(0.0, 2.0).log_prob(x).sum(), (2,))
    torch.testing.assert_close(score.expand(t(1, 2)).gradient, t(-0.25, -0.5))
    assert td.Distribution._validate_args  # as it was


# -- where chains start -----------------------------------------------------------------------


def test_starts_follow_the_generator_alone_and_are_finite():
    score = LogDensityScore(lambda x: -(x**2).sum() + x.log().sum(), (2,))  # NaN below 0
    state = torch.get_rng_state()
    one = score.start(20, torch.Generator().manual_seed(3))
    two = score.start(20, torch.Generator().manual_seed(3))
    assert torch.equal(one, two) and bool((one > 0).all())
    assert torch.equal(state, torch.get_rng_state())


def test_start_may_be_points_or_a_function():
    points = torch.arange(12.0).reshape(6, 2)
    score = LogDensityScore(lambda x: -(x**2).sum(), (2,), start=points)
    rows = {tuple(r.tolist()) for r in points}
    few = score.start(4, torch.Generator().manual_seed(0))
    assert {tuple(r.tolist()) for r in few} <= rows and len(few.unique(dim=0)) == 4
    assert score.start(9).shape == (9, 2)
    drawn = LogDensityScore(
        lambda x: -(x**2).sum(), (2,), start=lambda n, g: torch.rand(n, 2, generator=g) + 7
    )
    assert bool((drawn.start(3, torch.Generator().manual_seed(0)) > 6).all())
    single = LogDensityScore(lambda x: -(x**2).sum(), (2,), start=points.float())
    assert single.dtype == torch.float32 == single.start(2).dtype


def test_a_density_that_is_finite_nowhere_says_so():
    score = LogDensityScore(lambda x: (-1 - x**2).log().sum(), (2,))
    with pytest.raises(ValueError, match="cannot find valid initial params: after 100 tries"):
        score.start(3)


def test_only_bad_points_are_redrawn():
    calls = []

    def draw(n, generator):
        calls.append(n)
        return torch.full((n, 1), -1.0 if len(calls) == 1 else 1.0).index_fill(
            0, torch.tensor([0]), 1.0
        )

    found = finite_start(draw, lambda x: expand_vectorised(lambda p: p.log().sum(), x), 4, None)
    assert calls == [4, 3] and bool((found == 1).all())


# -- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "shape", "message"),
    [
        (lambda x: -(x**2), (3,), r"of shape \(3,\).*sum it"),
        (lambda x: 1.0, (3,), "returned a float"),
        (lambda x: -(x.detach() ** 2).sum(), (3,), "did not depend on the point"),
        (lambda x: -(x**2).sum() if x.sum() > 0 else -x.sum(), (3,), "could not be batched"),
        (lambda x: -(x**2).sum() * torch.rand(()), (3,), "could not be batched"),
        (lambda x: -(x**2).sum(), 3, r"event_shape must be a sequence"),
        (lambda x: -(x**2).sum(), (0,), "event_shape must be a whole number"),
        (lambda x: -(x**2).sum(), "ab", "event_shape must be a sequence"),
        (None, (2,), "log_density must be callable"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_log_density_is_refused(f, shape, message):
    with pytest.raises(ValueError, match=message):
        LogDensityScore(f, shape)


def test_other_arguments_are_refused():
    def f(x):
        return -(x**2).sum()

    with pytest.raises(ValueError, match="start must have shape"):
        LogDensityScore(f, (3,), start=torch.zeros(4, 2))
    with pytest.raises(ValueError, match="start must be finite"):
        LogDensityScore(f, (2,), start=torch.full((4, 2), math.nan))
    with pytest.raises(ValueError, match=r"start\(n, generator\) must have shape"):
        LogDensityScore(f, (2,), start=lambda n, g: torch.zeros(n, 3))
    score = LogDensityScore(f, (2,))
    with pytest.raises(ValueError, match="curvature='low_rank'"):
        score.expand(torch.zeros(2), "low_rank")
    with pytest.raises(ValueError, match="x must have shape"):
        score.expand(torch.zeros(3))


# -- distributions ----------------------------------------------------------------------------

MIX = torch.tensor([0.3, 0.7], dtype=F64)


def members():
    normal = td.Normal
    scale = t(1, 2, 0.5)
    covariance = t(2, 0.6, 0.6, 1).reshape(2, 2)
    return {
        "normal": (normal(t(0, 1, 2), scale), 3),
        "independent": (td.Independent(normal(t(0, 1, 2), scale), 1), 3),
        "gamma": (td.Gamma(t(2, 3), t(1, 0.5)), 2),
        "uniform": (td.Uniform(t(-1, 2), t(1, 5)), 2),
        "beta": (td.Beta(t(2), t(3)), 1),
        "student_t": (td.StudentT(t(4, 5), 0.0, 1.0), 2),
        "mvn": (td.MultivariateNormal(t(1, -1), covariance), 2),
        "dirichlet": (td.Dirichlet(t(2, 3, 4).expand(2, 3)), 4),
        "lkj": (td.LKJCholesky(3, 2.0), 3),
        "log_normal": (td.TransformedDistribution(normal(t(0, 1), 1.0), [td.ExpTransform()]), 2),
        "mixture": (td.MixtureSameFamily(td.Categorical(MIX), normal(t(-3, 3), 1.0)), 1),
        "mixture_gamma": (td.MixtureSameFamily(td.Categorical(MIX), td.Gamma(t(2, 5), 1.0)), 1),
        "mixture_event": (
            td.MixtureSameFamily(
                td.Categorical(MIX), td.Independent(normal(t(0, 1, 2, 3).view(2, 2), 1.0), 1)
            ),
            2,
        ),
        "checked": (normal(t(0, 1), 1.0, validate_args=True), 2),
        "pyro_mask": (pd.Normal(t(0, 1), 1.0).mask(torch.tensor([True, False])), 2),
        "pyro_to_event": (pd.Gamma(t(2, 3), 1.0).to_event(1), 2),
        "pyro_mixture": (pd.MixtureSameFamily(pd.Categorical(MIX), pd.Gamma(t(2, 5), 1.0)), 1),
        "pyro_two_mixtures": (
            pd.MaskedMixture(torch.tensor([True, False]), pd.Normal(0.0, 1.0), pd.Normal(1.0, 2.0)),
            2,
        ),
    }


@pytest.mark.parametrize("name", list(members()))
def test_a_distribution_expands_as_autograd_does(name):
    distribution, dim = members()[name]
    before = dict(vars(distribution))
    score = DistributionScore(distribution)
    assert score.dim == dim == math.prod(score.unconstrained_shape)
    assert score.event_shape == distribution.batch_shape + distribution.event_shape
    assert score.dtype == F64
    u = score.start(3, torch.Generator().manual_seed(0))

    def log_density(point):
        point = point.reshape(score.unconstrained_shape)
        value = score.transform(point)
        jacobian = score.transform.log_abs_det_jacobian(point, value)
        return distribution.log_prob(value).sum() + jacobian.sum()

    dense, diagonal = score.expand(u, "dense"), score.expand(u, "diagonal")
    for i, point in enumerate(u):
        g = torch.autograd.functional.jacobian(log_density, point)
        h = torch.autograd.functional.hessian(log_density, point)
        torch.testing.assert_close(dense.log_density[i], log_density(point), **CLOSE)
        torch.testing.assert_close(dense.gradient[i], g, **CLOSE)
        torch.testing.assert_close(dense.curvature.dense()[i], h, **CLOSE)
        torch.testing.assert_close(diagonal.curvature.diagonal()[i], h.diagonal(), **CLOSE)
    assert vars(distribution).keys() == before.keys()  # the user's own is untouched
    assert all(vars(distribution)[k] is v for k, v in before.items())


def test_gamma_has_its_closed_form_in_log_coordinates():
    score = DistributionScore(td.Gamma(t(3.0), t(2.0)))
    u = torch.linspace(-2, 2, 9).unsqueeze(-1)
    e = score.expand(u, "diagonal")
    torch.testing.assert_close(e.gradient, 3 - 2 * u.exp(), **CLOSE)
    torch.testing.assert_close(e.curvature.diagonal(), -2 * u.exp(), **CLOSE)


def test_the_simplex_density_integrates_to_one():
    score = DistributionScore(td.Dirichlet(t(2, 3)))
    u = torch.linspace(-15, 15, 6001).unsqueeze(-1)
    total = torch.trapezoid(score.expand(u).log_density.exp(), u.squeeze(-1))
    # what lies beyond ±15: e^−30 and less, and the quadrature's rounding
    torch.testing.assert_close(total, t(1.0)[0], rtol=1e-6, atol=0)


def test_starts_are_draws_that_follow_the_generator():
    score = DistributionScore(td.Normal(t(50.0), t(0.1)))
    state = torch.get_rng_state()
    one, two = (score.start(100, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two) and bool(((one - 50).abs() < 1).all())
    assert torch.equal(state, torch.get_rng_state())


def test_a_distribution_that_cannot_be_sampled_starts_uniform():
    class NoSampler(td.Normal):
        def sample(self, sample_shape=()):
            raise NotImplementedError

    score = DistributionScore(NoSampler(t(0.0), t(1.0)))
    assert score.dtype == F64
    assert bool((score.start(50).abs() <= 2).all())


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        (td.Poisson(1.0), "is discrete"),
        (td.Categorical(torch.ones(3)), "is discrete"),
        (pd.Bernoulli(torch.ones(3) / 2).to_event(1), "is discrete"),
        (td.MixtureSameFamily(td.Categorical(torch.ones(2)), td.Poisson(torch.ones(2))), "discre"),
        (pd.ProjectedNormal(torch.ones(3)), "a bijection leads to.*ProjectedNormalReparam"),
        (td.Normal, "must be a distribution, but was type"),
        (
            td.MixtureSameFamily(
                td.Categorical(torch.ones(2)), td.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0]))
            ),
            "components have different supports, from 0 to 0 and from 1 to 2",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_has_no_score_is_refused(distribution, message):
    with pytest.raises(ValueError, match=message):
        DistributionScore(distribution)


def test_isolated_rng_restores_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(KeyError), isolated_rng(1):
        torch.rand(3)
        raise KeyError
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("factorise", ["cholesky", "inv", "solve"])
def test_a_matrix_without_a_factor_spoils_its_own_point_alone(factorise):
    def f(x):  # [[1, r], [r, 1]] is positive definite for |r| < 1, and singular at 1
        one = torch.ones_like(x[0])
        matrix = torch.stack([one, x[0], x[0], one]).reshape(2, 2)
        if factorise == "cholesky":
            return -torch.linalg.cholesky(matrix).diagonal().log().sum()
        if factorise == "inv":
            return torch.linalg.inv(matrix).trace()
        return torch.linalg.solve(matrix, torch.ones(2, 1).to(x)).sum()

    def hand(r):  # the values and their first two derivatives
        if factorise == "cholesky":
            return -(1 - r**2).log() / 2, r / (1 - r**2), (1 + r**2) / (1 - r**2) ** 2
        if factorise == "inv":
            return 2 / (1 - r**2), 4 * r / (1 - r**2) ** 2, (4 + 12 * r**2) / (1 - r**2) ** 3
        return 2 / (1 + r), -2 / (1 + r) ** 2, 4 / (1 + r) ** 3

    r = torch.tensor([-0.5, 1.0, 0.0, 0.7], dtype=torch.float64)
    good = torch.tensor([0, 2, 3])
    value, first, second = hand(r[good])
    for expand in (expand_vectorised, expand_looped):
        found = expand(f, r[:, None], "dense")
        torch.testing.assert_close(found.log_density[good], value)
        torch.testing.assert_close(found.gradient[good, 0], first)
        torch.testing.assert_close(found.curvature.dense()[good, 0, 0], second)
        assert not bool(found.log_density[1].isfinite())
    with pytest.raises(torch.linalg.LinAlgError):  # elsewhere torch is as it was
        torch.linalg.cholesky(-torch.eye(2))
