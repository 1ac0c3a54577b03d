"""One step: detailed balance, line integrals, and what happens when a proposal blows up."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from ozaki.kernels.metropolis import log_density_change, loop_integral
from ozaki.kernels.proposals import langevin, ozaki
from ozaki.kernels.transition import KernelSpec, StepOptions, init, step
from ozaki.scores.analytic import GaussianMixtureScore, GaussianScore
from ozaki.scores.base import Expansion, Score
from tests.kit.strategies import generator, mixtures, seeds
from tests.kit.tolerances import rounding

METHODS = [
    KernelSpec(langevin, None, "exact"),
    KernelSpec(ozaki, "diagonal", "exact"),
    KernelSpec(ozaki, "dense", "exact"),
]


class ScoreOnly(Score):
    """A closed form that hides its density, as a learned score has none; may swirl or fail."""

    def __init__(self, score, swirl=0.0, fail=None):
        self.inner, self.swirl, self.fail = score, swirl, fail
        self.dim, self.event_shape, self.dtype = score.dim, score.event_shape, score.dtype
        self.calls = 0

    default_curvature = "diagonal"

    def expand(self, x, curvature=None):
        self.calls += 1
        at = self.inner.expand(x, curvature)
        gradient = at.gradient
        if self.swirl:
            gradient = gradient + self.swirl * torch.stack([-x[..., 1], x[..., 0]], -1)
        if self.fail is not None:
            gradient = torch.where(self.fail(x).unsqueeze(-1), torch.nan, gradient)
        return Expansion(gradient, at.curvature, None)

    def start(self, n, generator=None):
        return self.inner.start(n, generator)


class Mixed(ScoreOnly):
    """A Gaussian density times a factor known only by its score."""

    def __init__(self, density, rough):
        super().__init__(rough)
        self.density = density

    def expand(self, x, curvature=None):
        a, b = self.density.expand(x, curvature), self.inner.expand(x, curvature)
        return Expansion(a.gradient + b.gradient, a.curvature, a.log_density, b.gradient)


def noise(n, d, seed):
    g = generator(seed)
    z = torch.randn(n, d, generator=g, dtype=torch.float64)
    return z, torch.rand(n, generator=g, dtype=torch.float64)


@given(mixtures(), st.sampled_from(METHODS), st.floats(0.05, 4.0), seeds)
def test_detailed_balance(score, method, h, seed):
    """p(x) q(y|x) α(x, y) = p(y) q(x|y) α(y, x), both sides computed from scratch."""
    x = score.sample(3, generator(seed))
    z, _ = noise(3, score.dim, seed + 1)
    h = torch.tensor(h, dtype=torch.float64)

    def flow(a, b):
        at_a, at_b = score.expand(a, method.curvature), score.expand(b, method.curvature)
        there = method.proposal(a, at_a, h).log_prob(b)
        back = method.proposal(b, at_b, h).log_prob(a)
        ratio = at_b.log_density - at_a.log_density + back - there
        return at_a.log_density + there + ratio.clamp(max=0), ratio

    y = method.proposal(x, score.expand(x, method.curvature), h).sample(z)
    (out, ratio), (back, _) = flow(x, y), flow(y, x)
    assert_close(out, back, **rounding(torch.float64))
    # and the step reports exactly that ratio
    for u in (0.0, 1.0):
        state, info = step(
            init(score, x, method), score, method, h, z, torch.full((3,), u).double()
        )
        # of a difference of four log densities, each with its own rounding
        assert_close(info.acceptance, ratio.clamp(max=0).exp(), rtol=1e-6, atol=1e-9)
        if u == 0.0:
            assert_close(state.position, y)
        elif bool((ratio < 0).all()):
            assert_close(state.position, x)
        # a state is its own expansion, wherever the chain ended
        fresh = score.expand(state.position, method.curvature)
        assert_close(state.expansion.gradient, fresh.gradient)
        assert_close(state.expansion.log_density, fresh.log_density)
        if fresh.curvature is not None:
            assert_close(state.expansion.curvature.dense(), fresh.curvature.dense())


def test_line_integral_converges_at_the_order_of_its_rule():
    score = GaussianMixtureScore(
        torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64),
        torch.eye(2, dtype=torch.float64).expand(2, 2, 2) * 0.5,
    )
    hidden = ScoreOnly(score)
    x = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    direction = torch.tensor([[1.0, 0.7]], dtype=torch.float64)
    for rule, order, long in (("trapezoid", 3, 0.2), ("lobatto", 9, 0.8)):
        errors = []
        for length in (long, long / 2):
            y = x + length * direction
            got = log_density_change(hidden, x, y, hidden.expand(x), hidden.expand(y), rule)
            want = score.expand(y).log_density - score.expand(x).log_density
            errors.append(float((got - want).abs()))
        assert errors[0] / errors[1] > 2**order * 0.7, (rule, errors)


def test_line_integral_on_a_gaussian_is_exact_and_signed():
    score = GaussianScore(torch.zeros(2).double(), torch.eye(2).double() * 2)
    hidden = ScoreOnly(score)
    x, y = torch.randn(2, 4, 2, generator=generator(0), dtype=torch.float64)
    want = score.expand(y).log_density - score.expand(x).log_density
    for rule in ("trapezoid", "lobatto"):
        got = log_density_change(hidden, x, y, hidden.expand(x), hidden.expand(y), rule)
        assert_close(got, want)


def test_a_mixed_law_takes_its_density_exactly_and_the_rest_by_line_integral():
    a = GaussianMixtureScore(
        torch.tensor([[-2.0, 0.0], [2.0, 0.0]]).double(),
        torch.eye(2).double().expand(2, 2, 2) * 0.1,
    )
    b = GaussianScore(torch.ones(2).double(), torch.eye(2).double())
    mixed = Mixed(a, b)
    x, y = torch.randn(2, 5, 2, generator=generator(1), dtype=torch.float64)
    # b is Gaussian, so the rule is exact on it; on a it is not
    want = sum(s.expand(y).log_density - s.expand(x).log_density for s in (a, b))
    got = log_density_change(mixed, x, y, mixed.expand(x), mixed.expand(y))
    assert_close(got, want)


def test_loop_integral_is_zero_for_a_gradient_and_the_curl_for_a_swirl():
    score = GaussianScore(torch.zeros(2).double(), torch.eye(2).double())
    corners = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]], dtype=torch.float64)
    still, swirling = ScoreOnly(score), ScoreOnly(score, swirl=0.3)
    assert_close(loop_integral(still, corners), torch.zeros(1).double())
    # Stokes: curl 2 × 0.3 over an area of ½
    assert_close(loop_integral(swirling, corners), torch.full((1,), 0.3).double())


def test_points_between_are_evaluated_only_where_it_is_needed():
    score = GaussianScore(torch.zeros(2).double(), torch.eye(2).double())
    z, u = noise(3, 2, 0)
    h = torch.tensor(0.5, dtype=torch.float64)
    for rule, extra in (("lobatto", 2), ("trapezoid", 1)):
        hidden = ScoreOnly(score)
        method = KernelSpec(langevin, None, "line_integral")
        state = init(hidden, torch.zeros(3, 2).double(), method)
        hidden.calls = 0
        step(state, hidden, method, h, z, u, StepOptions(rule=rule))
        assert hidden.calls == extra


@pytest.mark.parametrize("correction", ["none", "exact", "line_integral"])
def test_a_chain_that_blows_up_stays_put_and_says_so(correction):
    score = GaussianScore(torch.zeros(2), torch.eye(2) * 1e-3)
    method = KernelSpec(langevin, None, correction)
    state = init(score, torch.ones(4, 2), method)
    h = torch.tensor([[1e-4], [10.0], [1e-4], [10.0]])
    blown = torch.zeros(4, dtype=torch.bool)
    g = generator(0)
    for _ in range(60):
        z, u = torch.randn(4, 2, generator=g), torch.rand(4, generator=g)
        state, info = step(state, score, method, h, z, u)
        blown |= info.diverging
        assert bool(torch.isfinite(state.position).all())
    assert blown.tolist() == [False, True, False, True]
    # one chain sent to infinity does not touch the others
    assert state.position[::2].abs().max() < 2


def test_a_nan_score_is_a_divergence_not_a_draw():
    inner = GaussianScore(torch.zeros(2), torch.eye(2))
    score = ScoreOnly(inner, fail=lambda x: x[..., 0] > 0.5)
    method = KernelSpec(ozaki, "dense", "none")
    state = init(score, torch.zeros(64, 2), method)
    z = torch.randn(64, 2, generator=generator(0)) * 2
    state, info = step(state, score, method, torch.tensor(1.0), z, torch.rand(64))
    assert bool(info.diverging.any())
    assert bool(torch.isfinite(state.position).all())
    assert bool((state.position[info.diverging] == 0).all())
    assert not bool(info.accepted[info.diverging].any())


def test_a_start_that_is_not_finite_is_refused():
    score = GaussianScore(torch.zeros(1), torch.eye(1))
    with pytest.raises(ValueError, match=r"starting points of chains \[1\]"):
        init(score, torch.tensor([[0.0], [float("nan")]]), METHODS[0])


def test_a_chain_under_way_that_loses_its_density_goes_on_from_another():
    score = GaussianScore(torch.zeros(1), torch.eye(1))
    x = torch.tensor([[float("nan")], [1.0], [float("inf")], [3.0]])
    state = init(score, x, METHODS[0], under_way=True)
    assert state.position.flatten().tolist() == [1.0, 1.0, 3.0, 3.0]
    torch.testing.assert_close(state.expansion.gradient, -state.position)
    with pytest.raises(ValueError, match=r"chains \[0, 2\]"):
        init(score, x[[0, 1, 2]], METHODS[0])
    with pytest.raises(ValueError, match=r"chains \[0, 1\]"):  # none to go on from
        init(score, x[[0, 2]], METHODS[0], under_way=True)


def test_uphill_moves_are_always_taken():
    # from the wide component onto the flank of a needle: uphill, but no way back
    score = GaussianMixtureScore(
        torch.zeros(2, 1).double(), torch.tensor([[[1e-4]], [[100.0]]]).double()
    )
    method = KernelSpec(langevin, None, "exact")
    x, h = torch.full((1, 1), 0.5).double(), torch.tensor(1.0).double()
    state = init(score, x, method)
    z = 0.03 - (x + h / 2 * state.expansion.gradient)
    u = torch.full((1,), 1e-6).double()
    stuck, info = step(state, score, method, h, z, u)
    moved, _ = step(state, score, method, h, z, u, StepOptions(uphill=True))
    assert float(info.acceptance) < 1e-6  # the u that was given: by it the step is refused
    assert float(stuck.position) == 0.5
    assert float(moved.position) == pytest.approx(0.03)
