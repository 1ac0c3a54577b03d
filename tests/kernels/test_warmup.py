"""Warm-up: schedules, dual averaging, metrics, and the engine that uses them."""

import math

import pyro
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro.distributions import Normal
from torch.testing import assert_close

from ozaki.kernels import proposals, warmup
from ozaki.kernels.engine import Engine
from ozaki.kernels.noise import NoiseStream
from ozaki.kernels.transition import KernelSpec
from ozaki.kernels.warmup import (
    LANGEVIN as LANGEVIN_CANDIDATE,
)
from ozaki.kernels.warmup import (
    ORNSTEIN_UHLENBECK,
    JumpDistances,
    MeanCurvature,
    PooledCovariance,
    Warmup,
    precision_factor,
    schedule,
)
from ozaki.linalg import Dense, Diagonal
from ozaki.scores.analytic import GaussianMixtureScore, GaussianScore
from ozaki.scores.density import LogDensityScore
from ozaki.scores.pyro_models.model import PyroModelScore
from ozaki.scores.transformed import Frozen, Guided, Whitened
from tests.kit.strategies import generator, mixtures, seeds, spd
from tests.kit.tolerances import MCSE

LANGEVIN = KernelSpec(proposals.langevin, None, "exact")
DENSE = KernelSpec(proposals.ozaki, "dense", "exact")


@given(st.integers(0, 5000))
def test_a_schedule_is_in_order_and_spends_what_it_has(warmup_steps):
    plan = schedule(warmup_steps)
    marks = [0, plan.transient, *plan.windows, plan.settled, plan.total]
    assert marks == sorted(marks)
    assert plan.total == warmup_steps
    gaps = [b - a for a, b in zip(marks[1:], plan.windows, strict=False)]
    assert all(gap >= 20 for gap in gaps)


@given(st.floats(0.2, 0.95), st.floats(-3, 3))
def test_dual_averaging_finds_the_step_that_accepts_as_asked(target, log_scale):
    scale = math.exp(log_scale)
    state = warmup.dual_averaging(1.0)
    for _ in range(3000):
        accepted = math.exp(-math.exp(state.log_step) / scale)  # falls with the step
        state = warmup.update(state, accepted, target, cap=1e9)
    # no chance: what 3,000 updates leave
    assert math.exp(-math.exp(state.log_average) / scale) == pytest.approx(target, abs=0.02)


def test_dual_averaging_is_capped_where_everything_is_accepted():
    state = warmup.dual_averaging(1.0)
    for _ in range(500):
        state = warmup.update(state, 1.0, 0.8)
    assert math.exp(state.log_average) <= warmup.MAX_STEP_SIZE * (1 + 1e-12)


@given(seeds, st.integers(1, 4), st.booleans())
def test_pooled_covariance_equals_numpys(seed, dim, dense):
    x = torch.randn(50, 3, dim, generator=generator(seed), dtype=torch.float64) * 4 + 100
    pooled = PooledCovariance(dim, dense, x)
    for row in x:
        pooled.add(row)
    want = torch.cov(x.reshape(-1, dim).mT).reshape(dim, dim)
    factor = pooled.factor(torch.float64)
    if dense:
        weight = 150 / (150 + dim + 5)
        shrunk = weight * want + (1 - weight) * torch.diag(want.diagonal())
        assert_close(factor @ factor.mT, shrunk)
    else:
        assert_close(factor.square(), want.diagonal())


def test_stuck_chains_give_no_metric():
    pooled = PooledCovariance(2, True, torch.zeros(1))
    for _ in range(10):
        pooled.add(torch.ones(4, 2))
    assert pooled.factor(torch.float32) is None


@given(mixtures(), seeds, st.booleans())
def test_whitened_is_the_same_law_in_other_coordinates(score, seed, diagonal):
    g = generator(seed)
    factor = torch.linalg.cholesky(spd(g, score.dim, condition=10.0))
    factor = factor.diagonal().clone() if diagonal else factor
    full = torch.diag(factor) if diagonal else factor
    walked = Whitened(score, factor)
    u = torch.randn(3, score.dim, generator=g, dtype=torch.float64)
    x = walked.to_x(u)
    assert_close(x, u @ full.mT)
    assert_close(walked.to_u(x), u)
    for kind in ("diagonal", "dense") if diagonal else ("dense",):
        at, base = walked.expand(u, kind), score.expand(x, kind)
        assert_close(at.gradient, base.gradient @ full)
        assert_close(at.curvature.dense(), full.mT @ base.curvature.dense() @ full)
        assert_close(at.log_density, base.log_density)


def test_mean_curvature_leaves_out_what_is_not_finite():
    score, seen = GaussianScore(torch.zeros(2).double(), spd(generator(5), 2)), MeanCurvature()
    with pytest.raises(ValueError, match="frozen must be False here, but was True: the curvature"):
        seen.average()
    broken = torch.full((1, 2, 2), torch.nan).double()
    for _ in range(3):
        hessian = score.expand(torch.zeros(4, 2).double(), "dense").curvature.dense()
        seen.add(Dense(torch.cat([hessian, broken])))
    assert_close(seen.average().dense(), -torch.linalg.inv(score.covariance))
    seen = MeanCurvature()
    seen.add(score.expand(torch.zeros(4, 2).double(), "diagonal").curvature)
    want = -torch.linalg.inv(score.covariance).diagonal()
    assert_close(seen.average().diagonal(), want)


@pytest.mark.parametrize("dense", [True, False])
def test_a_metric_of_the_curvature(dense):
    hessian = -torch.diag(torch.tensor([4.0, 1e-9, -3.0])).double()
    nan = torch.full((1, 3, 3), torch.nan).double()
    factor = precision_factor(Dense(torch.cat([hessian.expand(2, 3, 3), nan])), dense)
    variance = (factor @ factor.mT).diagonal() if dense else factor.square()
    # a flat direction and one that curves upwards are as wide as FLAT says
    assert_close(variance, torch.tensor([0.25, 2500.0, 2500.0]).double())
    for useless in (nan, -hessian[None] * torch.tensor([1.0, 0, 0]).double()):
        assert precision_factor(Dense(useless), dense) is None


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("frozen", [False, True])
def test_a_kernel_that_may_leave_its_curvature_seldom_reads_it(frozen):
    score, read = GaussianScore(torch.zeros(3).double(), spd(generator(2), 3)), []

    class Counted(GaussianScore):
        def expand(self, x, curvature=None):
            read.append(curvature)
            return super().expand(x, curvature)

    counted = Counted(score.mean, score.covariance)
    options = {"frozen": frozen, "candidates": BOTH, "dense_metric": True, "chains": 100}
    warmed(counted, DENSE, target=0.8, **options)
    assert 0 < sum(kind is not None for kind in read) < 60


def test_frozen_and_guided_keep_what_they_say():
    score = GaussianScore(torch.zeros(2).double(), torch.eye(2).double())
    x = torch.ones(3, 2).double()
    for op in (Dense(-2 * torch.eye(2).double()), Diagonal(-2 * torch.ones(2).double())):
        at = Frozen(score, op).expand(x, "dense")
        assert_close(at.curvature.dense(), -2 * torch.eye(2).double())
        assert_close(at.log_density, score.expand(x).log_density)
        assert Frozen(score, op).expand(x).curvature is None
    guide = GaussianScore(torch.ones(2).double(), torch.eye(2).double())
    at = Guided(score, guide).expand(x, "dense")
    assert_close(at.gradient, torch.zeros_like(x))
    assert_close(at.log_density, score.expand(x).log_density)
    for vectorize in (True, False):  # of a density that is differentiated, the value alone is read
        model = PyroModelScore(lambda: pyro.sample("a", Normal(0.0, 2.0)), vectorize=vectorize)
        want = model.expand(x[:, :1].float())
        model.expand = model._batching.expand = None  # pyright: ignore
        at = Guided(model, GaussianScore(torch.ones(1), torch.eye(1))).expand(x[:, :1].float())
        assert_close(at.log_density, want.log_density)
        assert not at.log_density.requires_grad
    formula = LogDensityScore(lambda x: -(x**4).sum(), (2,), dtype=torch.float64)
    assert_close(formula.log_prob(x), formula.expand(x).log_density)
    with pytest.raises(ValueError, match="score must have the dimension of the model, 2"):
        Guided(score, GaussianScore(torch.zeros(1), torch.eye(1)))


BOTH = (LANGEVIN_CANDIDATE, ORNSTEIN_UHLENBECK)


def warmed(score, method, steps=500, chains=4, **options):
    g = torch.Generator().manual_seed(7)
    engine = Engine(score, Warmup(method, score.dim, steps=steps, **options), generator=g)
    engine.start(score.start(chains, g))
    for _ in range(steps):
        engine.walk()
    return engine


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("method", "target"), [(LANGEVIN, 0.574), (DENSE, 0.8)])
def test_warm_up_finds_metric_and_step(method, target):
    sigma = torch.tensor([[1.0, 9.5], [9.5, 100.0]]).double()
    score = GaussianScore(torch.tensor([3.0, -5.0]).double(), sigma)
    engine = warmed(score, method, target=target, dense_metric=True)
    learned = engine.metric @ engine.metric.mT
    # in the learned metric the law is nearly white, whatever its scales
    values = torch.linalg.eigvals(torch.linalg.solve(learned, sigma)).real
    assert 0.5 < values.min() < values.max() < 2  # of some hundred draws: within a factor of 2
    rate = torch.stack([engine.walk().info.acceptance.mean() for _ in range(300)]).mean()
    if method is DENSE:  # exact on a Gaussian: everything is accepted, and h is capped
        assert rate > 0.999  # a thousandth is left for rounding
        # the cap, but for what the average remembers
        assert engine.step_size > 0.9 * warmup.MAX_STEP_SIZE
    else:
        # guards that the target steers the step, in which the noise of 500 updates stays
        assert abs(rate - target) < 0.12
    assert not engine.warming_up


def test_a_given_step_size_is_kept_in_the_identity_metric():
    score = GaussianScore(torch.zeros(2).double(), torch.diag(torch.tensor([1.0, 25.0])).double())
    engine = warmed(score, LANGEVIN, steps=100, target=0.574, step_size=0.37, dense_metric=True)
    assert engine.metric is None
    assert engine.step_size == pytest.approx(0.37)


@pytest.mark.parametrize(("method", "narrow"), [(LANGEVIN, 0.25), (DENSE, 1e-4)])
def test_the_transient_comes_home_from_far_away(method, narrow):
    score = GaussianScore(torch.zeros(2).double(), torch.diag(torch.tensor([1.0, narrow])).double())
    planned = Warmup(method, score.dim, steps=400, target=0.6)
    engine = Engine(score, planned, generator=generator(0))
    engine.start(torch.full((4, 2), 1e4).double())
    for _ in range(60):
        engine.walk()
    distance = (score.covariance.inverse() @ engine.position.mT * engine.position.mT).sum(0)
    assert distance.max() < 100  # about 2 in the typical set, 10⁸ and more at the start


@pytest.mark.usefixtures("unchecked")
def test_frozen_is_factorised_once_and_holds_the_mean_curvature():
    score = GaussianScore(torch.zeros(3).double(), spd(generator(2), 3))
    options = {"frozen": True, "dense_metric": True, "candidates": BOTH[1:]}
    engine = warmed(score, DENSE, target=0.8, **options)
    assert isinstance(engine.law, Frozen)
    assert_close(engine.tensors()["frozen"], -torch.linalg.inv(score.covariance))


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "step_size must be given"), ({"step_size": 1.0, "frozen": True}, "frozen must be False")],
)
def test_without_warm_up_nothing_can_be_found(options, message):
    score = GaussianScore(torch.zeros(1), torch.eye(1))
    with pytest.raises(ValueError, match=message):
        Warmup(DENSE, score.dim, steps=0, target=0.8, **options)


@pytest.mark.usefixtures("unchecked")
def test_an_unadjusted_chain_settles_in_its_own_law_before_the_draws():
    plan = schedule(1000)
    assert plan.total - plan.settled >= 30
    sigma = torch.diag(torch.tensor([1.0, 0.01])).double()
    score = GaussianScore(torch.zeros(2).double(), sigma)
    method = KernelSpec(proposals.langevin, None, "none")
    engine = warmed(score, method, steps=1000, chains=16, target=0.9)
    draws = []
    for _ in range(1000):
        engine.walk()
        draws.append(engine.position)
    # in a metric of 1: stationary variance 1/(1 − h/4), by the Lyapunov equation
    scale = engine.metric.square() / sigma.diagonal()
    variance = torch.stack(draws).flatten(0, 1).var(0) / sigma.diagonal()
    want = 1 / (1 - engine.step_size * scale / 4)
    # 5 √(2/ESS) where the 16,000 draws are worth 5,000
    assert_close(variance, want, rtol=0.1, atol=0)


def test_the_jump_record_tries_everything_and_counts_the_cost():
    record = JumpDistances(2)
    tried = [record.trial(i) for i in range(40)]
    assert tried[::2] == [(0, 0)] * 20
    assert set(tried[1::2]) == {(r, k) for r in (0, 1) for k in range(5)} - {(0, 0)}

    def best(**jumps):
        record = JumpDistances(2)
        for name, jump in {"r0k0": [1.0, 1.0], **jumps}.items():
            record.add((int(name[1]), int(name[3])), torch.tensor(jump))
        return record.best()

    assert best() == (0, 0)
    assert best(r0k2=[1.05, 1.05]) == (0, 0)  # not clearly further
    assert best(r0k2=[1.2, 1.2]) == (0, 2)
    assert best(r0k2=[9.0, 0.5]) == (0, 0)  # the slowest coordinate decides
    assert best(r1k1=[0.8, 0.8]) == (0, 0)
    assert best(r1k1=[0.95, 0.95]) == (1, 1)  # as far for half the price
    assert best(r0k1=[2.0, 2.0], r1k1=[1.5, 1.5]) == (0, 1)


@pytest.mark.usefixtures("unchecked")
def test_auto_leaves_curvature_only_where_it_does_not_pay():
    gauss = GaussianScore(torch.zeros(2).double(), spd(generator(4), 2))
    far = GaussianMixtureScore(
        torch.tensor([[-2.5, 0.0], [2.5, 0.0]]).double(),
        torch.eye(2).double().expand(2, 2, 2),
    )
    wide = torch.tensor([1.0, 0.01]).double()
    # two needles at right angles: no one metric serves both
    angle = GaussianMixtureScore(
        torch.eye(2).double(), torch.stack([wide, wide.flip(0)]).diag_embed()
    )
    for law, pays in ((gauss, False), (far, False), (angle, True)):
        engine = warmed(law, DENSE, target=0.8, dense_metric=True, candidates=BOTH, chains=16)
        assert (engine.spec.proposal is proposals.ozaki) == pays
        assert (engine.state.expansion.curvature is not None) == pays
    # not left to choose, it keeps to its own
    assert warmed(far, DENSE, target=0.8, dense_metric=True, steps=200).spec == DENSE


@pytest.mark.usefixtures("unchecked")
def test_many_chains_settle_before_the_last_window():
    gauss = GaussianScore(torch.zeros(2).double(), spd(generator(4), 2))
    early = {}
    for chains in (4, 100):
        planned = Warmup(DENSE, 2, steps=500, target=0.8, dense_metric=True, candidates=BOTH)
        engine = Engine(gauss, planned, generator=generator(0))
        engine.start(gauss.start(chains, generator(1)))
        while engine.count < planned.plan.windows[-2]:
            engine.walk()
        early[chains] = engine.spec.curvature is None
    assert early == {4: False, 100: True}


@pytest.mark.usefixtures("unchecked")
def test_frozen_walks_with_the_mean_curvature_or_the_pooled_covariance():
    gauss = GaussianScore(torch.zeros(2).double(), spd(generator(4), 2))
    engine = warmed(
        gauss, DENSE, target=0.8, frozen=True, dense_metric=True, candidates=BOTH[1:], chains=16
    )
    # on a Gaussian they are one and the same, and the pooled covariance is as good
    assert "frozen" in engine.tensors()
    x = torch.randn(5, 2, generator=generator(0), dtype=torch.float64)
    at = engine.law.expand(x, "dense")
    h = torch.tensor(3.0).double()
    one, other = proposals.ozaki(x, at, h), proposals.ornstein_uhlenbeck(x, at, h)
    # two estimates of one matrix, each from some hundred draws: guards that they are alike
    assert_close(one.mean, other.mean, atol=0.2, rtol=0)


def test_jitter_scales_each_step_about_the_one_that_was_found():
    gauss = GaussianScore(torch.zeros(2).double(), torch.eye(2).double())
    noise = NoiseStream(torch.zeros(4, 2).double(), generator(0), jitter=0.3)
    scales = torch.cat([noise.take(128).scale for _ in range(20)])
    # 0.02 short of an end, a 30th of the range, as below: (29/30)^2560 = 2e-38 by chance
    assert 0.7 <= scales.min() < 0.72
    assert 1.28 < scales.max() <= 1.3
    # 0.3/√3 is the deviation of one of 2,560 scales
    assert float(scales.mean()) == pytest.approx(1.0, abs=MCSE * 0.3 / (3 * 2560) ** 0.5)
    # and the steps are as long as it says
    planned = Warmup(LANGEVIN, 2, steps=0, target=0.5, step_size=0.01)
    engine = Engine(gauss, planned, generator=generator(0), jitter=0.9)
    start = torch.zeros(1000, 2).double()
    engine.start(start)
    found = NoiseStream(start, generator(0), 0.9).take(1)
    engine.walk()
    moved = engine.position.square().sum(-1) / found.normal[0].square().sum(-1)
    # of the one scale drawn: guards the length, not its digits
    assert float(moved.median()) == pytest.approx(0.01 * float(found.scale), rel=0.01)


def steep_tail(monkeypatch, short: float, step_size: float | None = None):
    """Chains on exp(−x⁴) that begin at 2.6 after warm-up: whether they moved, and divergences."""
    monkeypatch.setattr("ozaki.kernels.warmup.warmup.SHORT", short)
    score = LogDensityScore(lambda x: -(x**4).sum(), (1,), dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    planned = Warmup(LANGEVIN, 1, steps=300, target=0.574, step_size=step_size)
    engine = Engine(score, planned, generator=g)
    engine.start(0.5 * torch.randn(50, 1, generator=g, dtype=torch.float64))
    while engine.warming_up:
        engine.walk(8)
    far = torch.full((50, 1), 2.6, dtype=torch.float64)
    engine.start(far)
    moved, diverging = torch.zeros(50, dtype=torch.bool), 0
    for _ in range(160):
        info = engine.walk().info
        moved |= info.accepted[0]
        diverging += int(info.diverging.sum())
    return float(moved.double().mean()), diverging


def test_a_short_step_now_and_then_brings_chains_home_from_a_steep_tail(monkeypatch):
    # of 50 chains: nearly none, and nearly all where short steps help
    assert steep_tail(monkeypatch, 1.0)[0] < 0.1
    moved, diverging = steep_tail(monkeypatch, 1 / 8)
    # of 50 chains, 47 or fewer would fail: nearly all are home
    assert moved > 0.95
    # that the long steps end far below is a step refused, and no divergence
    assert diverging == 0
    # a step size that is given is walked as it is, and says what it meets
    stuck, diverging = steep_tail(monkeypatch, 1 / 8, step_size=0.4)
    assert stuck < 0.1 and diverging > 1000  # of 8,000 steps
