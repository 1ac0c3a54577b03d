"""Warm-up: schedules, dual averaging, metrics, and the engine that uses them."""

import json
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
from ozaki.kernels.selection import opening_of, tracks_of
from ozaki.kernels.transition import Info, KernelSpec, Trail
from ozaki.kernels.warmup import (
    LANGEVIN as LANGEVIN_CANDIDATE,
)
from ozaki.kernels.warmup import (
    ORNSTEIN_UHLENBECK,
    TIMES,
    Agreement,
    Arrival,
    Choice,
    Contest,
    MeanCurvature,
    PooledMoments,
    Track,
    Typical,
    Warmup,
    ended,
    precision_factor,
    schedule,
)
from ozaki.kernels.warmup.settling import steady
from ozaki.linalg import Dense, Diagonal
from ozaki.scores.analytic import GaussianMixtureScore, GaussianScore
from ozaki.scores.density import LogDensityScore
from ozaki.scores.pyro_models.model import PyroModelScore
from ozaki.scores.transformed import Frozen, Guided, Whitened
from tests.kernels.test_transition import ScoreOnly
from tests.kit.strategies import generator, mixtures, seeds, spd
from tests.kit.tolerances import MCSE

LANGEVIN = KernelSpec(proposals.langevin, None, "exact")
DENSE = KernelSpec(proposals.ozaki, "dense", "exact")
TURNING = KernelSpec(proposals.ornstein_uhlenbeck, None, "exact", momentum=True)


@given(st.integers(0, 5000))
def test_a_schedule_is_in_order_and_spends_what_it_has(warmup_steps):
    plan = schedule(warmup_steps)
    marks = [0, plan.transient, *plan.windows, plan.settled, plan.total]
    assert marks == sorted(marks)
    assert plan.total == warmup_steps
    gaps = [b - a for a, b in zip(marks[1:], plan.windows, strict=False)]
    assert all(gap >= 20 for gap in gaps)


@given(st.integers(0, 5000), st.data())
def test_a_transient_that_ends_early_leaves_its_steps_to_the_windows(warmup_steps, data):
    longest = schedule(warmup_steps).transient
    took = data.draw(st.integers(0, 300))
    plan = schedule(warmup_steps, took)
    assert plan.transient == min(took, longest)
    assert plan.total == warmup_steps
    marks = [0, plan.transient, *plan.windows, plan.settled, plan.total]
    assert marks == sorted(marks)
    if plan.windows:
        whole = schedule(warmup_steps)
        assert plan.windows[-1] == (whole.windows or plan.windows)[-1]
    assert schedule(warmup_steps, longest) == schedule(warmup_steps)
    # whatever block is planned ends where something is learned
    for count in range(plan.transient, plan.total, 7):
        most = plan.at_once(count)
        ends = [e for e in (*plan.windows, plan.settled, plan.total) if e > count]
        assert 1 <= most <= min(ends) - count


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
def test_pooled_moments_equal_numpys(seed, dim, dense):
    x = torch.randn(50, 3, dim, generator=generator(seed), dtype=torch.float64) * 4 + 100
    pooled = PooledMoments(dim, dense, x)
    for row in x:
        pooled.add(row)
    assert pooled.scores_factor(torch.float64) is None  # of no gradients
    again = PooledMoments(dim, dense, x)
    again.add(x[:20].flatten(0, 1))
    resumed = PooledMoments(dim, dense, x)
    resumed.restore({name: t.clone() for name, t in again.tensors.items()})
    resumed.add(x[20:].flatten(0, 1))
    assert_close(resumed.factor(torch.float64), pooled.factor(torch.float64))
    want = torch.cov(x.reshape(-1, dim).mT).reshape(dim, dim)
    factor = pooled.factor(torch.float64)
    if dense:
        weight = ((dim + 5) / (150 + dim + 5)) ** 3
        shrunk = (1 - weight) * want + weight * torch.diag(want.diagonal())
        assert_close(factor @ factor.mT, shrunk)
    else:
        assert_close(factor.square(), want.diagonal())


def test_stuck_chains_give_no_metric():
    pooled = PooledMoments(2, True, torch.zeros(1))
    assert pooled.factor(torch.float32) is None
    for _ in range(10):
        pooled.add(torch.ones(4, 2), torch.ones(4, 2))
    assert pooled.factor(torch.float32) is None
    assert pooled.scores_factor(torch.float32) is None


def test_a_lone_chain_far_out_moves_neither_middle_nor_spread():
    path = torch.randn(300, 20, 2, generator=generator(0), dtype=torch.float64) * 3 + 5
    path[:, 7] = 1e6
    typical = Typical(path)
    for part in path.split(23):
        typical.add(part)
    middle, spread = typical.scale()
    # of 2,048 positions at most: 5 standard errors of a median are 1.25 · 3 · 5/√1,024
    assert_close(middle, torch.full((2,), 5.0).double(), rtol=0, atol=0.6)
    assert_close(spread, torch.full((2,), 3.0).double(), rtol=0, atol=0.6)
    assert len(typical.tensors["rows"]) <= Typical.ROWS
    resumed = Typical(path)
    resumed.restore(typical.tensors)
    for one in (typical, resumed):
        one.add(path[:40])
    assert torch.equal(typical.tensors["rows"], resumed.tensors["rows"])
    # what does not vary has a spread of 1, as a unit
    still = Typical(path)
    still.add(torch.ones(10, 4, 2).double())
    assert_close(still.scale()[1], torch.ones(2).double())


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
@pytest.mark.parametrize("frozen", ["auto", True])
def test_a_kernel_that_may_leave_its_curvature_seldom_reads_it(frozen):
    score, read = GaussianScore(torch.zeros(3).double(), spd(generator(2), 3)), []

    class Counted(GaussianScore):
        def expand(self, x, curvature=None):
            read.append(curvature)
            return super().expand(x, curvature)

    counted = Counted(score.mean, score.covariance)
    warmed(counted, DENSE, candidates=BOTH, frozen=frozen, chains=100)
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


SOUGHT = {"exact": 0.574, "line_integral": 0.574, "none": 0.9}


def planned(score, method, steps=500, *, candidates=(), frozen="auto", chains=4, **options):
    """Warm-up as a kernel of this spec would plan it."""
    trajectory, step_size = options.pop("trajectory", "auto"), options.get("step_size")
    tracks = tracks_of(
        method,
        candidates,
        options.pop("targets", SOUGHT),
        score.dim,
        trajectory=trajectory,
        adapting=step_size is None,
        frozen=frozen,
    )
    opening = opening_of(
        method, tracks, score.dim, chains, adapting=step_size is None, frozen=frozen
    )
    given = {"opening": opening, "frozen": method.curvature if frozen is True else None, **options}
    return Warmup(tracks, score.dim, steps=steps, **{"dense_metric": True, **given})


def warmed(score, method, steps=500, chains=4, **options):
    g = torch.Generator().manual_seed(7)
    plan = planned(score, method, steps, chains=chains, **options)
    engine = Engine(score, plan, generator=g)
    engine.start(score.start(chains, g))
    while engine.warming_up:
        engine.walk(8)
    return engine


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("method", "trajectory", "target"),
    [(LANGEVIN, 0.0, 0.574), (LANGEVIN, 1.0, 0.8), (DENSE, 0.0, 0.8)],
)
def test_warm_up_finds_metric_and_step(method, trajectory, target):
    sigma = torch.tensor([[1.0, 9.5], [9.5, 100.0]]).double()
    score = GaussianScore(torch.tensor([3.0, -5.0]).double(), sigma)
    engine = warmed(score, method, trajectory=trajectory, targets={"exact": target})
    learned = engine.metric @ engine.metric.mT
    # in the learned metric the law is nearly white, whatever its scales
    values = torch.linalg.eigvals(torch.linalg.solve(learned, sigma)).real
    assert 0.5 < values.min() < values.max() < 2  # of some hundred draws: within a factor of 2
    rate = torch.stack([engine.walk().info.acceptance.mean() for _ in range(300)]).mean()
    if method is DENSE:  # exact on a Gaussian: everything is accepted, and h is capped
        assert rate > 0.999  # a thousandth is left for rounding
        chosen = engine.warmup.chosen
        # the cap, but for what the average remembers
        assert engine.step_size > 0.9 * warmup.MAX_STEP_SIZE / 2**chosen.halvings
    else:
        # guards that the target steers the step, in which the noise of 500 updates stays
        assert abs(rate - target) < 0.12
    assert not engine.warming_up
    assert engine.time == trajectory


@pytest.mark.usefixtures("unchecked")
def test_turning_in_a_metric_of_scores_is_exact_on_a_normal():
    """Where the covariance of the draws is off by √(D/n), and the step of it too."""
    sigma = spd(generator(3), 20)
    score, found = GaussianScore(torch.zeros(20).double(), sigma), {}
    for metric in ("pooled", "scores"):
        g = generator(0)
        track = Track(TURNING, metric, times=(math.pi / 2,))
        engine = Engine(score, Warmup((track,), 20, steps=500, dense_metric=True), generator=g)
        engine.start(score.start(4, g))
        while engine.warming_up:
            engine.walk(8)
        assert engine.warmup.metric == metric
        learned = engine.metric @ engine.metric.mT
        values = torch.linalg.eigvals(torch.linalg.solve(learned, sigma)).real
        found[metric] = float(values.max() / values.min()), engine.step_size
    # of 1,300 draws: one is off by √(20/n) either way, the other by what was shrunk
    assert found["scores"][0] < 1.6 < found["pooled"][0]
    # and so its step is held by the cap alone
    assert found["scores"][1] > 0.9 * warmup.MAX_STEP_SIZE


def test_a_given_step_size_is_kept_in_the_identity_metric():
    score = GaussianScore(torch.zeros(2).double(), torch.diag(torch.tensor([1.0, 25.0])).double())
    for trajectory in (0.0, 1.0):
        engine = warmed(score, LANGEVIN, steps=100, trajectory=trajectory, step_size=0.37)
        assert engine.metric is None
        assert engine.step_size == pytest.approx(0.37)
        assert engine.time == trajectory


@pytest.mark.parametrize(("method", "narrow"), [(LANGEVIN, 0.25), (DENSE, 1e-4), (TURNING, 0.25)])
def test_the_transient_comes_home_from_far_away(method, narrow):
    score = GaussianScore(torch.zeros(2).double(), torch.diag(torch.tensor([1.0, narrow])).double())
    engine = Engine(score, Warmup((Track(method),), score.dim, steps=400), generator=generator(0))
    engine.start(torch.full((4, 2), 1e4).double())
    for _ in range(60):
        engine.walk()
    distance = (score.covariance.inverse() @ engine.position.mT * engine.position.mT).sum(0)
    assert distance.max() < 100  # about 2 in the typical set, 10⁸ and more at the start


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("trajectory", [0.0, 1.0])
def test_a_frozen_curvature_of_a_given_step_is_the_mean_one(trajectory):
    score = GaussianScore(torch.zeros(3).double(), spd(generator(2), 3))
    engine = warmed(score, DENSE, frozen=True, step_size=1.0, trajectory=trajectory)
    kept = engine.tensors()
    vectors, values = kept["frozen.directions"], kept["frozen.values"]
    assert_close((vectors * values) @ vectors.mT, -torch.linalg.inv(score.covariance))
    # on a normal nothing is lost on the way, however long
    info = [engine.walk().info for _ in range(50)]
    assert min(float(i.acceptance.min()) for i in info) > 1 - 1e-9
    assert engine.spec.momentum and engine.spec.curvature is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "step_size must be given"),
        ({"step_size": 1.0, "frozen": "dense"}, "frozen must be False"),
    ],
)
def test_without_warm_up_nothing_can_be_found(options, message):
    score = GaussianScore(torch.zeros(1), torch.eye(1))
    with pytest.raises(ValueError, match=message):
        Warmup((Track(DENSE),), score.dim, steps=0, **options)


@pytest.mark.usefixtures("unchecked")
def test_an_unadjusted_chain_settles_in_its_own_law_before_the_draws():
    plan = schedule(1000)
    assert plan.total - plan.settled >= 30
    sigma = torch.diag(torch.tensor([1.0, 0.01])).double()
    score = GaussianScore(torch.zeros(2).double(), sigma)
    method = KernelSpec(proposals.langevin, None, "none")
    engine = warmed(score, method, steps=1000, chains=16, dense_metric=False)
    assert engine.time == 0  # an unadjusted chain keeps to the steps whose bias is known
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


def test_tracks_are_what_the_settings_leave():
    def tracks(method, dim=5, trajectory="auto", candidates=BOTH, frozen="auto", adapting=True):
        given = {"trajectory": trajectory, "adapting": adapting, "frozen": frozen}
        return tracks_of(method, candidates, SOUGHT, dim, **given)

    both = tracks(DENSE)
    assert [(t.spec, t.metric, t.times) for t in both] == [
        (TURNING, "pooled", TIMES),
        (TURNING, "scores", TIMES),
    ]
    assert {t.target for t in both} == {0.8}
    # single steps: the kernel's own too, and Langevin's, whatever they read
    single = tracks(DENSE, trajectory=0.0)
    assert single[0].spec == DENSE and single[0].times == (0.0,) and single[0].halvings == 4
    assert {t.spec.proposal for t in single} == {
        proposals.ozaki,
        proposals.langevin,
        proposals.ornstein_uhlenbeck,
    }
    # beyond ten dimensions a dense Hessian is not read at every step
    assert DENSE not in [t.spec for t in tracks(DENSE, 11, 0.0)]
    # one that was given is
    assert tracks(DENSE, 11, candidates=()) == (Track(DENSE, "pooled", 0.574, 2.75, halvings=4),)
    # a quarter of a turn, no more
    assert {t.times for t in tracks(DENSE, trajectory=0.7)} == {(0.7,)}
    # an unadjusted chain keeps to single steps unless it is told
    none = DENSE._replace(correction="none")
    assert {t.times for t in tracks(none)} == {(0.0,)}
    assert (0.7,) in {t.times for t in tracks(none, trajectory=0.7)}
    # where there is no density, what reads the curvature competes as well
    line = DENSE._replace(correction="line_integral")
    assert line in [t.spec for t in tracks(line)]
    assert line not in [t.spec for t in tracks(line, trajectory=0.7)]
    # where it is said not to be frozen, it competes whatever it costs
    assert DENSE in [t.spec for t in tracks(DENSE, 11, frozen=False)]
    # frozen, its own metric is the mean curvature
    assert [t.metric for t in tracks(DENSE, candidates=BOTH[1:], frozen=True)] == [
        "curvature",
        "pooled",
        "scores",
    ]
    assert {t.spec.proposal for t in tracks(LANGEVIN, candidates=())} == {proposals.langevin}
    (given_,) = tracks(DENSE, adapting=False, trajectory=0.0)
    assert given_.spec == DENSE


def moving(jumps, count=4000, dim=2, seed=0):
    """A stationary walk of N(0, I), whose mean squared jump is `jumps` of twice the variance."""
    g = generator(seed)
    rho = 1 - torch.tensor(jumps, dtype=torch.float64)
    z = torch.randn(count, 16, dim, generator=g, dtype=torch.float64)
    path = [torch.randn(16, dim, generator=g, dtype=torch.float64)]
    for one in z:
        path.append(rho * path[-1] + (1 - rho.square()).sqrt() * one)
    return torch.stack(path)


def test_a_contest_ranks_by_the_slowest_coordinate_for_what_it_costs():
    tracks = (Track(TURNING, times=TIMES), Track(DENSE, cost=2.0, halvings=2))
    one, other = Choice(0, math.pi / 2), Choice(1, 0.0)
    zero, unit = torch.zeros(2).double(), torch.ones(2).double()

    def judged(*entries):
        contest = Contest(tracks, [c for c, *_ in entries], zero, unit)
        for choice, jumps, length in entries:
            path = moving(jumps)
            steps = len(path) - 1
            contest.add([choice] * steps, [length] * steps, path)
        return contest

    # a share J of x is worth J/(2 − J), and of x² more: (1 − ρ²) with ρ = 1 − J
    for jump in (0.1, 0.5):
        scores = judged((one, [jump, jump], 4), (other, [0.9, 0.9], 1)).scores()
        # 64,000 jumps of chains that remember: guards the formula; clipping takes a part of x²
        assert scores[one] == pytest.approx(jump / (2 - jump) / 4, rel=0.1)
        assert scores[other] == pytest.approx(0.9 / 1.1 / 2, rel=0.1)
    assert judged((one, [0.5, 0.01], 1), (other, [0.5, 0.5], 1)).best() == other
    assert judged((one, [0.3, 0.3], 1), (other, [0.5, 0.5], 1)).best() == one  # half the price
    assert judged((one, [0.6, 0.6], 4), (other, [0.6, 0.6], 1)).best() == other


def test_a_reflection_moves_no_square():
    """X → −x jumps far in x, and not at all in x²: a chain of them learns no spread."""
    tracks = (Track(TURNING, times=TIMES),)
    still, walking = Choice(0, math.pi), Choice(0, math.pi / 4)
    contest = Contest(tracks, [still, walking], torch.zeros(1).double(), torch.ones(1).double())
    start = torch.randn(1, 64, 1, generator=generator(0), dtype=torch.float64)
    flips = torch.cat([start * (-1) ** i for i in range(200)])
    contest.add([still] * 199, [1] * 199, flips)
    path = moving([0.2], 200, 1)
    contest.add([walking] * 200, [1] * 200, path)
    scores = contest.scores()
    assert scores[still] < 1e-6
    assert contest.best() == walking


def test_a_contest_sees_who_leaves_a_mode():
    """Single steps forget all but the mode at once; trajectories, of four, leave it as well."""
    tracks = (Track(TURNING, times=TIMES),)
    staying, leaving = Choice(0, 0.0), Choice(0, math.pi / 2)
    contest = Contest(tracks, [staying, leaving], torch.zeros(1).double(), torch.ones(1).double())
    g = generator(0)
    for choice, rate, length in ((staying, 0.002, 1), (leaving, 0.15, 4)) * 40:
        flips = 1 - 2 * (torch.rand(17, 64, 1, generator=g, dtype=torch.float64) < rate).double()
        flips[0] = 1 - 2 * torch.randint(0, 2, (64, 1), generator=g).double()
        path = flips.cumprod(0) + 0.5 * torch.randn(17, 64, 1, generator=g, dtype=torch.float64)
        contest.add([choice] * 16, [length] * 16, path)
    found = contest.scores()
    # 1.25 is the variance; a flip jumps by 2
    near = (0.5 * 0.5**2 * 2 + 0.5 * 0.002 * 4) / 1.25, (0.5 * 0.5**2 * 2 + 0.5 * 0.15 * 4) / 1.25
    one, other = near[0] / (2 - near[0]), near[1] / (2 - near[1]) / 4
    assert one > other and found[staying] < found[leaving]
    assert contest.best() == leaving


@pytest.mark.parametrize(("times", "moving_wins"), [(TIMES, True), ((0.0,), False)])
def test_a_step_without_momentum_has_to_be_well_ahead_of_trajectories(times, moving_wins):
    tracks = (Track(TURNING, times=times), Track(DENSE))
    zero, unit = torch.zeros(2).double(), torch.ones(2).double()
    turning, local = Choice(0, times[-1]), Choice(1, 0.0)

    def best(*entries):
        contest = Contest(tracks, [c for c, _ in entries], zero, unit)
        for choice, jump in entries:
            contest.add([choice] * 4000, [1] * 4000, moving([jump, jump]))
        return contest.best()

    # of J = 0.3 and 0.42 the second earns 1.5 times as much, of 0.15 and 0.42 3.3 times
    assert best((turning, 0.3), (local, 0.42)) == (turning if moving_wins else local)
    assert best((turning, 0.15), (local, 0.42)) == local


def test_a_contest_of_nearly_equal_ones():
    tracks = (Track(TURNING, times=TIMES), Track(DENSE, halvings=2))
    zero, unit = torch.zeros(2).double(), torch.ones(2).double()

    def best(*entries):
        contest = Contest(tracks, [c for c, _ in entries], zero, unit)
        for choice, jump in entries:
            path = moving([jump, jump])
            contest.add([choice] * 4000, [1] * 4000, path)
        return contest.best()

    short, long = Choice(0, 0.0), Choice(0, math.pi / 2)
    assert best((short, 0.40), (long, 0.38)) == long  # of nearly equal ones the longest
    assert best((short, 0.40), (long, 0.25)) == short
    whole, half = Choice(1, 0.0), Choice(1, 0.0, 1)
    assert best((whole, 0.40), (half, 0.42)) == whole  # not clearly further
    assert best((whole, 0.40), (half, 0.60)) == half


def test_a_contest_knows_what_is_not_judged_and_resumes():
    tracks, zero = (Track(TURNING, times=TIMES),), torch.zeros(2).double()
    running = [Choice(0, time) for time in TIMES]
    path = moving([0.3, 0.3], 40)
    a, b, c = (Contest(tracks, running, zero, zero + 1) for _ in range(3))
    tried = [running[i % 4] for i in range(40)]
    a.add(tried, [2] * 40, path)
    b.add(tried[:20], [2] * 20, path[:21])
    c.restore({name: tensor.clone() for name, tensor in b.tensors.items()})
    c.add(tried[20:], [2] * 20, path[20:])
    assert c.scores() == pytest.approx(a.scores())
    before = a.scores()
    a.add([None] * 3, [1] * 3, 100 * path[:4])
    assert a.scores() == before
    # a chain's lone excursion counts no more than one of a few spreads
    d = Contest(tracks, running, zero, zero + 1)
    far = path.clone()
    far[10, 3] = 1e9
    d.add(tried, [2] * 40, far)
    for choice in running:
        assert d.scores()[choice] < 3 * a.scores()[choice]


@pytest.mark.usefixtures("unchecked")
def test_auto_leaves_curvature_only_where_it_does_not_pay():
    gauss = GaussianScore(torch.zeros(2).double(), spd(generator(4), 2))
    wide = torch.tensor([1.0, 0.01]).double()
    # two needles at right angles: no one metric serves both
    angle = GaussianMixtureScore(
        torch.eye(2).double(), torch.stack([wide, wide.flip(0)]).diag_embed()
    )
    for law, pays in ((gauss, False), (angle, True)):
        engine = warmed(law, DENSE, candidates=BOTH, chains=16, trajectory=0.0)
        assert (engine.spec.proposal is proposals.ozaki) == pays
        assert (engine._here.expansion.curvature is not None) == pays
    # not left to choose, it keeps to its own
    assert warmed(gauss, DENSE, steps=200).spec == DENSE


@pytest.mark.usefixtures("unchecked")
def test_a_halved_step_is_halved_once(monkeypatch):
    """Whole steps are adapted until the end of warm-up, and the draws take 2⁻ᵏ of them."""
    monkeypatch.setattr(Contest, "best", lambda self: self.running[0]._replace(halvings=2))
    engine = warmed(GaussianScore(torch.zeros(2).double(), torch.eye(2).double()), DENSE)
    assert engine.warmup.chosen == Choice(0, 0.0, 2)
    scales = [engine.warmup.next_block(count, 1).scales[0] for count in range(500, 510)]
    assert set(scales) == {1.0}
    # exact on a normal: the whole step is capped
    assert engine.step_size == pytest.approx(warmup.MAX_STEP_SIZE / 4, rel=0.1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", [DENSE, TURNING])
@pytest.mark.parametrize("steps", [20, 90, 150, 205])
def test_an_engine_goes_on_from_what_it_told_to_the_last_bit(method, steps):
    """From the transient, a window, the last stretch and the draws, within a block or not.

    A way there and back through the metric would round the points of so many chains.
    """
    score = GaussianScore(torch.zeros(6).double(), spd(generator(3), 6))

    def made():
        track = Track(method, halvings=2, times=TIMES if method.momentum else (0.0,))
        g = torch.Generator().manual_seed(3)
        return Engine(score, Warmup((track,), 6, steps=200, dense_metric=True), generator=g)

    first, other = made(), made()
    first.start(score.start(64, generator(1)))
    while first.count < steps:
        first.walk(steps - first.count)
    first.refresh()
    kept = {name: tensor.clone() for name, tensor in first.tensors().items()}
    other.restore(kept, json.loads(json.dumps(first.numbers())))
    for _ in range(30):
        one, two = first.walk(), other.walk()
        assert torch.equal(one.position, two.position)
        assert torch.equal(one.info.acceptance, two.info.acceptance)
    told = first.tensors(), other.tensors()
    assert told[0].keys() == told[1].keys()
    for name, tensor in told[0].items():
        assert torch.equal(tensor, told[1][name]), name
    assert first.numbers() == other.numbers()


# -- a warm-up that ends by itself ----------------------------------------------------------------


def test_a_schedule_that_ends_by_itself_doubles_its_windows_and_can_be_cut_short():
    plan = schedule("auto", 30)
    lengths = [b - a for a, b in zip((plan.transient, *plan.windows), plan.windows, strict=False)]
    assert lengths[:4] == [50, 100, 200, 400]
    assert plan.total == 2000 and schedule("auto").transient == 150
    for count in plan.windows[:-1]:
        short = ended(plan, count)
        assert short.windows[:-1] == tuple(end for end in plan.windows if end <= count)
        assert short.windows[-1] - count == (count - plan.transient) // 2
        assert short.last_window < short.settled < short.total < plan.total
    # at the end of the last nothing is left to cut
    assert ended(plan, plan.windows[-1]) == plan


@given(seeds, st.integers(1, 5), st.sampled_from([0.0, 0.5]))
def test_the_agreement_of_a_window_is_split_r_hat(seed, chains, apart):
    x = torch.randn(60, chains, 2, generator=generator(seed), dtype=torch.float64)
    x = 1e6 + x + apart * torch.arange(chains).double().unsqueeze(-1)
    found = Agreement(x[0], 60)
    for part in x.split([7, 13, 10, 25, 5]):  # blocks end where the half does, as a rule or not
        found.add(part)
    split = torch.cat([x[:30], x[30:]], 1)
    within, between = split.var(0).mean(0), split.mean(0).var(0)
    assert found.rhat() == pytest.approx(float((29 / 30 + between / within).max().sqrt()))
    resumed = Agreement(x[1], 4)
    resumed.restore(found.tensors)
    assert resumed.rhat() == found.rhat()


def test_a_window_without_draws_or_spread_does_not_agree_by_accident():
    still = torch.zeros(4, 3, 2).double()
    assert Agreement(still[0], 4).rhat() > 1e4
    one = Agreement(still[0], 4)
    one.add(still)
    assert one.rhat() <= 1.05  # a constant is the same in all chains
    other = Agreement(still[0], 4)
    other.add(still + torch.arange(3).double().unsqueeze(-1))
    assert other.rhat() > 1e4


@given(seeds, st.sampled_from([1.0, 1.9, 2.1]))
def test_a_metric_is_steady_where_no_direction_changes_twofold(seed, most):
    old = torch.linalg.cholesky(spd(generator(seed), 3))
    # longer by `most` in one direction, which is none of the axes
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator(seed + 1)).double())[0]
    stretched = old @ turn @ torch.diag(torch.tensor([1.0, 1.0, most**2]).double()) @ turn.mT
    new = torch.linalg.cholesky(stretched @ old.mT)
    assert steady(old, new) == steady(new, old) == (most < 2)
    one = torch.ones(3).double()
    assert steady(one, one * torch.tensor([1.0, 1.0, most])) == (most < 2)
    assert not steady(None, new) and not steady(old, None)


@pytest.mark.usefixtures("unchecked")
def test_warm_up_ends_by_itself_where_chains_agree_and_not_where_they_stay_apart():
    normal = GaussianScore(torch.zeros(3).double(), torch.eye(3).double())
    far = torch.tensor([[-20.0, 0.0, 0.0], [20.0, 0.0, 0.0]]).double()
    modes = GaussianMixtureScore(far, torch.eye(3).double().expand(2, 3, 3))
    for score, starts, short in (
        (normal, normal.start(4), True),
        (modes, far[[0, 0, 1, 1]], False),
    ):
        warmup = Warmup((Track(TURNING),), 3, steps="auto")
        engine = Engine(score, warmup, generator=generator(0))
        engine.start(starts)
        while engine.warming_up:
            engine.walk()
        assert engine.count == warmup.plan.total
        assert warmup.rhat is not None
        assert (warmup.rhat <= 1.05) == short
        assert (warmup.plan.total <= 700) == short
        assert warmup.plan.total == 2000 or short


# -- whether chains have come home ----------------------------------------------------------------


def densities(*chains, moving=True, dim=2):
    """An `Arrival` that has seen these log densities, chain by chain."""
    rows = torch.tensor(chains, dtype=torch.float64).mT
    arrival = Arrival(here := torch.zeros(len(chains), dim).double())
    for row in rows.unsqueeze(1):
        # a step that is shorter than rounding is accepted as well, and moves nothing
        info = Info(*[torch.ones_like(row)] * 2, *[torch.zeros_like(row)] * 4)
        there = here + 1 if moving else here
        arrival.add(Trail(there.unsqueeze(0), row, info), here)
    return arrival


REST = [-1.0, -2.5, -0.7, -1.2, -3.0, -0.8, -1.9, -1.1, -2.0, -0.9]
RISING = [-1000.0 + 90.0 * i for i in range(10)]


def test_a_chain_is_home_once_it_moves_and_climbs_no_more():
    assert densities(REST, REST).home().tolist() == [True, True]
    assert densities(REST, RISING).home().tolist() == [True, False]
    assert densities(REST, REST, moving=False).home().tolist() == [False, False]
    assert densities(REST[:5], REST[:5]).home().tolist() == [False, False]  # too soon to say
    arrival = densities(REST, REST)
    assert not arrival.arrived(8)  # nor does it end as soon as that
    assert arrival.arrived(12)
    assert not densities(REST, RISING).arrived(40)
    resumed = Arrival(torch.zeros(2, 2).double())
    resumed.restore(densities(REST, RISING).tensors)
    assert resumed.home().tolist() == [True, False]


def test_only_a_chain_that_is_lost_and_low_goes_on_from_another():
    position = torch.arange(6.0).reshape(3, 2).double()
    low_rest = [value - 500 for value in REST]
    # a mode of its own, however low: at rest there, it stays
    assert densities(REST, low_rest, REST).rescued(position) is None
    # one that still climbs near the others stays too
    near = [-40.0 + 4.0 * i for i in range(10)]
    assert densities(REST, near, REST).rescued(position) is None
    moved = densities(REST, [v - 2000 for v in RISING], REST).rescued(position)
    assert moved is not None
    assert_close(moved, position[[0, 0, 2]])
    # where none is home, there is nowhere to go
    assert densities(RISING, RISING, RISING).rescued(position) is None


def test_of_a_law_without_a_density_only_rises_are_known():
    def seen(*chains):
        """An `Arrival` of chains that rose by so much at each step; None where it did not move."""
        arrival = Arrival(here := torch.zeros(len(chains), 2).double())
        for row in zip(*chains, strict=True):
            moved = torch.tensor([[value is not None] for value in row])
            rise = torch.tensor([[value or 0.0 for value in row]])
            info = Info(*[torch.zeros(1, len(row))] * 5, rise)
            arrival.add(Trail((here + moved).unsqueeze(0), None, info), here)
        return arrival

    rest, rising, still = [0.5, -0.5] * 6, [0.6] * 12, [None] * 12
    position = torch.arange(6.0).reshape(3, 2)
    assert seen(rest, rest).arrived(12)
    assert seen(rest, rising).home().tolist() == [True, False]
    assert seen(rest, rising, still).home().tolist() == [True, False, False]
    # one that climbs may be near or far; one that cannot move goes on from another
    moved = seen(rest, rising, still).rescued(position, False)
    assert_close(moved, position[[0, 1, 0]])
    assert seen(rest, rising, rest).rescued(position, False) is None
    assert seen(still, still, rising).rescued(position, False) is None


@pytest.mark.usefixtures("unchecked")
def test_the_transient_ends_once_chains_are_home():
    score = GaussianScore(torch.zeros(3).double(), torch.eye(3).double())
    bare = ScoreOnly(score)
    bare_steps = [m._replace(correction="line_integral") for m in (TURNING, DENSE)]
    laws = [(score, TURNING), (score, DENSE), *((bare, method) for method in bare_steps)]
    for score, method in laws:
        engine = Engine(score, Warmup((Track(method),), 3, steps=500), generator=generator(0))
        engine.start(torch.randn(8, 3, generator=generator(1), dtype=torch.float64))
        while engine.warming_up:
            engine.walk()
        assert 12 <= engine.warmup.plan.transient <= 24
        assert engine.count == engine.warmup.plan.total == 500
    # from far away it takes longer, and no more than it may
    engine = Engine(score, Warmup((Track(TURNING),), 3, steps=500), generator=generator(0))
    engine.start(torch.full((8, 3), 1e4).double())
    for _ in range(100):
        engine.walk()
    assert 12 < engine.warmup.plan.transient <= 75


def test_without_a_density_a_chain_that_cannot_move_goes_on_from_another():
    start = torch.tensor([[0.1, 0.2], [0.5, -1.0], [300.0, -200.0]]).double()

    def fail(x):
        return (x.norm(dim=-1) > 50) & ~(x == start[2]).all(-1)

    score = ScoreOnly(GaussianScore(torch.zeros(2).double(), torch.eye(2).double()), fail=fail)
    for method in (TURNING, DENSE):
        method = method._replace(correction="line_integral")
        engine = Engine(score, Warmup((Track(method),), 2, steps=400), generator=generator(0))
        engine.start(start)
        while engine.warming_up:
            engine.walk()
        assert engine.position[2].norm() < 10
        assert engine.step_size > 0.1


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
    plan = Warmup((Track(LANGEVIN),), 2, steps=0, step_size=0.01)
    engine = Engine(gauss, plan, generator=generator(0), jitter=0.9)
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
    track = Track(LANGEVIN, target=0.574)
    engine = Engine(score, Warmup((track,), 1, steps=300, step_size=step_size), generator=g)
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
