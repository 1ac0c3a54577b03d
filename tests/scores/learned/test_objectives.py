"""Every objective against closed forms: zero mean gradient at the exact score, and only there."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ozaki.linalg import Dense, Diagonal, LowRank, SymmetricOperator
from ozaki.scores.analytic import GaussianMixtureScore
from ozaki.scores.learned import objectives
from ozaki.scores.learned.losses import LIKELIHOODS
from tests.kit.tolerances import MCSE

DRAWS = 20_000
LIMIT = 5.0  # standard errors: kept at the exact score, broken with a sign flipped
quick = settings(max_examples=15, deadline=None, derandomize=True)


class Case(NamedTuple):
    """A smoothed law, clean draws with noise, and a smooth direction to perturb along."""

    law: GaussianMixtureScore
    x: Tensor
    z: Tensor
    sigma: float
    direction: Callable[[Tensor], Tensor]

    def exact(self, points: Tensor, form: str = "diagonal") -> tuple[Tensor, Tensor]:
        """s1, and s2 as a diagonal or a matrix."""
        expansion = self.law.expand(points, "dense")
        assert expansion.curvature is not None
        s2 = expansion.curvature
        return expansion.gradient, s2.diagonal() if form == "diagonal" else s2.dense()


@st.composite
def cases(draw: st.DrawFn, low: float = 0.3, high: float = 1.0) -> Case:
    seed = draw(st.integers(0, 10_000))
    dim, modes = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    sigma = draw(st.floats(low, high))
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    # bounded: a plain target has noise of √2/σ², under which the small s2 of a wide mode is lost
    root = 0.5 * torch.tanh(normal(modes, dim, dim))
    covariances = root @ root.mT + 0.2 * torch.eye(dim, dtype=torch.float64)
    clean = GaussianMixtureScore(1.5 * normal(modes, dim), covariances)
    x = clean.sample(DRAWS, g)
    w, b = normal(dim, dim), normal(dim)
    return Case(clean.smooth(sigma), x, normal(DRAWS, dim), sigma, lambda p: torch.tanh(p @ w + b))


FIRST = {
    "dsm": objectives.dsm,
    "dsm_vr": objectives.dsm_vr,
    "dsm_antithetic": objectives.dsm_antithetic,
}
SECOND = {
    "d2sm": objectives.d2sm,
    "d2sm_vr": objectives.d2sm_vr,
    "residual": objectives.residual,
    "residual_vr": objectives.residual_vr,
    "likelihood": objectives.likelihood,
    "margins": objectives.margins,
}
FORMS = {"diagonal": Diagonal, "dense": Dense}


def operator(form: str, s2: Tensor) -> SymmetricOperator:
    return FORMS[form](s2)


def z_score(loss: Callable[[Tensor], Tensor]) -> float:
    """Mean over standard error of dℓ/dθ at θ = 0, one θ a sample."""
    theta = torch.zeros(DRAWS, 1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(theta).sum(), theta)
    return float(gradient.mean() / (gradient.std() / DRAWS**0.5))


def first_order(name: str, case: Case, sign: float = 1.0, along: str = "direction") -> float:
    def loss(theta: Tensor) -> Tensor:
        def score(p: Tensor) -> Tensor:
            s1, _ = case.exact(p)
            return sign * s1 + theta * (s1 if along == "s1" else case.direction(p))

        return FIRST[name](score, case.x, case.z, case.sigma)

    return z_score(loss)


def second_order(
    name: str,
    case: Case,
    *,
    s1_error: float = 0.0,
    shift: Callable[[Tensor, Tensor], Tensor] = lambda s1, s2: s2,
    move_s1: bool = False,
    along: str = "direction",
    form: str = "diagonal",
) -> float:
    def loss(theta: Tensor) -> Tensor:
        def score(p: Tensor) -> tuple[Tensor, SymmetricOperator]:
            s1, s2 = case.exact(p, form)
            g = case.direction(p)
            wrong = s1 + s1_error
            moved = wrong + theta * g if move_s1 else wrong
            if form == "dense":
                g, step = g.unsqueeze(-1) * g.unsqueeze(-2), theta.unsqueeze(-1)
            else:
                step = theta
            g = s2 if along == "s2" else g
            return moved, operator(form, shift(s1, s2) + (0 if move_s1 else step * g))

        return SECOND[name](score, case.x, case.z, case.sigma)

    return z_score(loss)


@pytest.mark.parametrize("name", FIRST)
@quick
@given(case=cases())
def test_first_order_gradient_vanishes_at_the_exact_score(name: str, case: Case):
    assert abs(first_order(name, case)) < LIMIT
    assert abs(first_order(name, case, sign=-1.0, along="s1")) > LIMIT


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SECOND)
@quick
@given(case=cases())
def test_second_order_gradient_vanishes_at_the_exact_score(name: str, form: str, case: Case):
    assert abs(second_order(name, case, form=form)) < LIMIT
    # half of s2 keeps C positive definite, as the likelihood needs
    wrong = 0.5 if name in LIKELIHOODS else -1.0
    moved = second_order(name, case, shift=lambda s1, s2: wrong * s2, along="s2", form=form)
    assert abs(moved) > LIMIT


@pytest.mark.parametrize("name", ["dsm_vr", "dsm_antithetic"])
@quick
@given(case=cases(0.01, 0.1))
def test_first_order_reduced_forms_have_signal_at_small_sigma(name: str, case: Case):
    assert abs(first_order(name, case)) < LIMIT
    assert abs(first_order(name, case, sign=-1.0, along="s1")) > LIMIT


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["d2sm_vr", "residual_vr"])
@quick
@given(case=cases(0.01, 0.1))
def test_second_order_reduced_forms_have_signal_at_small_sigma(name: str, form: str, case: Case):
    assert abs(second_order(name, case, form=form)) < LIMIT
    moved = second_order(name, case, shift=lambda s1, s2: -s2, along="s2", form=form)
    assert abs(moved) > LIMIT


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["d2sm", "d2sm_vr"])
@quick
@given(case=cases())
def test_d2sm_gradient_in_s1_vanishes_at_the_exact_score(name: str, form: str, case: Case):
    assert abs(second_order(name, case, move_s1=True, form=form)) < LIMIT


@pytest.mark.parametrize("name", ["residual", "residual_vr", *LIKELIHOODS])
@quick
@given(case=cases())
def test_residual_sends_no_gradient_into_s1(name: str, case: Case):
    s1 = torch.zeros_like(case.x, requires_grad=True)
    s2 = torch.zeros_like(case.x, requires_grad=True)
    loss = SECOND[name](lambda p: (s1 + 0 * p, Diagonal(s2 + 0 * p)), case.x, case.z, case.sigma)
    grads = torch.autograd.grad(loss.sum(), (s1, s2), allow_unused=True)
    assert grads[0] is None
    assert grads[1] is not None


DELTA = 0.4


def residual_optimum(s1: Tensor, s2: Tensor) -> Tensor:
    """s2 + δδᵀ with δ = DELTA in every coordinate; its diagonal for a diagonal."""
    return s2 + DELTA**2


def d2sm_optimum(s1: Tensor, s2: Tensor) -> Tensor:
    """s2 − s1δᵀ − δs1ᵀ − δδᵀ."""
    if s1.shape == s2.shape:
        return s2 - 2 * DELTA * s1 - DELTA**2
    return s2 - DELTA * (s1.unsqueeze(-1) + s1.unsqueeze(-2)) - DELTA**2


OPTIMA = {
    "residual": residual_optimum,
    "residual_vr": residual_optimum,
    "likelihood": residual_optimum,
    "margins": residual_optimum,
    "d2sm": d2sm_optimum,
    "d2sm_vr": d2sm_optimum,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OPTIMA)
@quick
@given(case=cases())
def test_an_error_in_s1_moves_the_optimum_as_stated(name: str, form: str, case: Case):
    moved = second_order(name, case, s1_error=DELTA, shift=OPTIMA[name], form=form)
    assert abs(moved) < LIMIT


@st.composite
def low_ranks(draw: st.DrawFn) -> tuple[Tensor, ...]:
    """a, B, e, s1, x, z and v of a random shape, C = I + σ²S positive definite for σ = 0.5."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    n, dim = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    rank = draw(st.integers(1, dim))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    e = torch.where(normal(rank) < 0, -1.0, 1.0).to(torch.float64)
    a, b = 3 * torch.rand(n, dim, generator=g, dtype=torch.float64) - 1, normal(n, dim, rank)
    b = b / b.square().sum((-2, -1), keepdim=True).sqrt()  # ‖B‖ ≤ 1: 1 + σ²(a − 1) > 0
    v = torch.where(normal(n, dim) < 0, -1.0, 1.0).to(torch.float64)
    return a, b, e, normal(n, dim), normal(n, dim), normal(n, dim), v


@pytest.mark.parametrize("name", [*SECOND, "ocm"])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(parts=low_ranks())
def test_factor_forms_equal_dense_forms_in_value_and_gradient(name: str, parts):
    a, b, e, s1, x, z, v = parts
    leaves = [t.clone().requires_grad_() for t in (a, b, e, s1)]
    w = torch.linspace(-1, 1, a.shape[-1] ** 2, dtype=torch.float64).reshape(a.shape[-1], -1)

    def loss(dense: bool) -> Tensor:
        a, b, e, s1 = leaves

        def operator(p: Tensor) -> SymmetricOperator:
            bend = 1 + 0.1 * torch.sin(p)  # differs at x and at each of x±
            s2 = LowRank(a * bend, b * bend.unsqueeze(-1), e)
            return Dense(s2.dense()) if dense else s2

        if name == "ocm":
            return objectives.ocm(lambda p: torch.sin(p @ w), operator, x, z, 0.5, v)
        return SECOND[name](lambda p: (s1 + 0 * p, operator(p)), x, z, 0.5)

    results = []
    for dense in (False, True):
        value = loss(dense)
        grads = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        results.append((value, *(g for g in grads if g is not None)))
    assert len(results[0]) == len(results[1]) >= 4
    for mine, theirs in zip(*results, strict=True):
        # float64, of sums of few terms: stricter than the policy's
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@quick
@given(seed=st.integers(0, 999), dim=st.integers(1, 4))
def test_ocm_over_all_signs_is_the_distance_to_the_jacobian(seed: int, dim: int):
    g = torch.Generator().manual_seed(seed)
    j, m = torch.randn(2, dim, dim, generator=g, dtype=torch.float64)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=dim)), dtype=torch.float64)
    x = torch.zeros_like(signs)

    def mean(s2: SymmetricOperator) -> Tensor:
        values = objectives.ocm(lambda p: p @ j.mT, lambda p: s2, x, x, 1.0, signs)
        return values.mean()

    s2 = m + m.mT
    torch.testing.assert_close(mean(Dense(s2.expand(len(x), dim, dim))), (s2 - j).square().sum())
    # the diagonal form's least value is at diag J, and its curvature there that of a square
    a = torch.zeros(len(x), dim, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(mean(Diagonal(a + j.diagonal())), a)
    torch.testing.assert_close(slope.sum(0), torch.zeros(dim, dtype=torch.float64))
    (slope,) = torch.autograd.grad(mean(Diagonal(a)), a)
    torch.testing.assert_close(slope.sum(0), -2 * j.diagonal())


def fields(dim: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    g = torch.Generator().manual_seed(dim)
    w = torch.randn(2, dim, dim, generator=g, dtype=torch.float64)
    return lambda p: torch.sin(p @ w[0]), lambda p: torch.cos(p @ w[1])


@quick
@given(seed=st.integers(0, 999), dim=st.integers(1, 4), sigma=st.floats(0.05, 3.0))
def test_reduced_forms_are_the_plain_pair_less_a_control_variate(seed: int, dim: int, sigma: float):
    g = torch.Generator().manual_seed(seed)
    x, z = torch.randn(2, 5, dim, generator=g, dtype=torch.float64)
    f1, f2 = fields(dim)

    def both(p: Tensor) -> tuple[Tensor, SymmetricOperator]:
        return f1(p), Diagonal(f2(p))

    def pair(plain, score) -> Tensor:
        return (plain(score, x, z, sigma) + plain(score, x, -z, sigma)) / 2

    def close(a: Tensor, b: Tensor) -> None:
        # float64; 1/σ⁴ is the size of what is subtracted
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * (1 + sigma**-4))

    z2 = z.square().sum(-1)
    control = (f1(x) * z).sum(-1) / sigma + (z2 - dim) / (2 * sigma**2)
    close(objectives.dsm_vr(f1, x, z, sigma), objectives.dsm(f1, x, z, sigma) - control)
    antithetic = pair(objectives.dsm, f1) - z2 / (2 * sigma**2)
    close(objectives.dsm_antithetic(f1, x, z, sigma), antithetic)

    a = (1 - z.square()) / sigma**2
    control = a.square().sum(-1) + 2 * (a * (f2(x) + f1(x).square())).sum(-1)
    close(objectives.d2sm_vr(both, x, z, sigma), pair(objectives.d2sm, both) - control)
    targets = [((s * z + sigma * f1(x + s * sigma * z)).square() - 1) / sigma**2 for s in (1, -1)]
    t2 = sum(t.square().sum(-1) for t in targets) / 2
    reduced = objectives.residual_vr(both, x, z, sigma)
    plain = pair(objectives.residual, both)
    close(reduced, plain - t2 - 2 * (a * f2(x)).sum(-1))

    first, second = objectives.joint("residual", both, x, z, sigma)
    close(first, objectives.dsm_antithetic(f1, x, z, sigma))
    close(second, reduced)
    _, second = objectives.joint("residual", both, x, z, sigma, control_variate=False)
    close(second, plain - t2)


def test_sigma_may_differ_by_sample():
    g = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 6, 3, generator=g, dtype=torch.float64)
    f1, f2 = fields(3)
    sigma = torch.linspace(0.1, 2, 6, dtype=torch.float64)
    for objective in FIRST.values():
        one = torch.stack([objective(f1, x[i], z[i], float(sigma[i])) for i in range(6)])
        torch.testing.assert_close(objective(f1, x, z, sigma[:, None]), one)
    for objective in SECOND.values():

        def score(p: Tensor) -> tuple[Tensor, SymmetricOperator]:
            return f1(p), Diagonal(f2(p).abs())  # C > 0, as the likelihood needs

        one = [objective(score, x[i], z[i], float(sigma[i])) for i in range(6)]
        many = objective(score, x, z, sigma[:, None])
        torch.testing.assert_close(many, torch.stack(one))


def test_margins_leave_the_variances_to_the_entries_alone():
    g = torch.Generator().manual_seed(0)
    s1, z = torch.randn(2, 5, 4, generator=g, dtype=torch.float64)
    a = torch.rand(5, 4, generator=g, dtype=torch.float64)
    b = torch.randn(5, 4, 2, generator=g, dtype=torch.float64)
    size = torch.ones(4, dtype=torch.float64, requires_grad=True)
    sigma = 0.7

    def scaled(shape: SymmetricOperator) -> SymmetricOperator:
        """S of which C = I + σ² S has its entries' standard deviations times `size`."""
        return shape.shift(1.0 / sigma**2).scale(size).shift(-1.0 / sigma**2)

    whole = objectives.margins_of(s1, scaled(LowRank(a, b)), z, sigma).sum()
    variances = Diagonal(LowRank(a, b).diagonal())
    alone = objectives.likelihood_of(s1, scaled(variances), z, sigma).sum()
    one, other = (torch.autograd.grad(loss, size)[0] for loss in (whole, alone))
    torch.testing.assert_close(one, other)
    # of one entry after another, nothing else is left
    diagonal = objectives.margins_of(s1, Diagonal(a), z, sigma)
    residual = (z + sigma * s1).square() / (1 + sigma**2 * a)
    expected = objectives.likelihood_of(s1, Diagonal(a), z, sigma) + residual.sum(-1)
    torch.testing.assert_close(diagonal, expected)


@quick
@given(case=cases())
def test_calibration_is_one_at_the_exact_score_and_tells_a_wrong_one(case: Case):
    s1, s2 = case.exact(case.x + case.sigma * case.z)
    ratios = (case.z + case.sigma * s1).square() / (1 + case.sigma**2 * s2)
    error = ratios.std(0) / DRAWS**0.5
    found = objectives.calibration(s1, s2, case.z, case.sigma)
    assert bool(((found - 1).abs() < MCSE * error).all())
    wrong = objectives.calibration(s1, 0 * s2, case.z, case.sigma)
    assert bool((wrong < 1).all())


def test_calibration_of_a_variance_rounded_to_nothing_is_large_and_finite():
    z = torch.ones(1, 2)
    s2 = torch.tensor([[-4.0, 0.0]])  # C = 0 and 1 at σ = ½
    found = objectives.calibration(torch.zeros(1, 2), s2, z, 0.5)
    assert found.tolist() == [2.0**23, 1.0]
