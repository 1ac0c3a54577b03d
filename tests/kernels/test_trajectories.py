"""Trajectories: against single steps, closed forms, and the laws that a reversible map keeps."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import qmc
from torch.testing import assert_close

from ozaki import MCMC, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.kernels import trajectories, transition
from ozaki.kernels.noise import NoiseBlock
from ozaki.kernels.proposals import langevin, ornstein_uhlenbeck, ozaki
from ozaki.kernels.score_kernel import ScoreKernel
from ozaki.kernels.target import RunContext
from ozaki.kernels.trajectories import MOST, Splitting, angle, splitting, steps_of
from ozaki.kernels.transition import KernelSpec, StepOptions
from ozaki.kernels.warmup import PooledMoments
from ozaki.linalg import Dense
from ozaki.scores import GaussianMixtureScore, GaussianScore, LogDensityScore
from ozaki.scores.transformed import Frozen, Whitened
from tests.kernels.test_transition import ScoreOnly
from tests.kit.contracts import moments_match
from tests.kit.strategies import gaussians, generator, mixtures, seeds, spd
from tests.kit.tolerances import rounding

F64 = torch.float64
EXACT = StepOptions()
ALL = StepOptions(unadjusted=True)
BENT = GaussianMixtureScore(
    torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64),
    torch.diag(torch.tensor([1.0, 0.4], dtype=F64)).expand(2, 2, 2),
    [0.4, 0.6],
)


def number(value):
    return torch.tensor(value, dtype=F64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def turned(theta, rotating=True):
    """The h of a step of angle θ."""
    return number(-2 * math.log(math.cos(theta)) if rotating else theta**2)


def flown(score, x, p, split, count, factor=None, options=EXACT):
    """Where (x, p) are after `count` steps."""
    at = transition.State(x, score.expand(x))
    flight = trajectories.depart(at, p)
    for _ in range(count):
        flight = trajectories.advance(flight, score, factor, split, options)
    return flight


def energy_error(flight):
    """H at the end less H at the start."""
    gained = flight.now.expansion.log_density - flight.start.expansion.log_density
    return 0.5 * flight.momentum.square().sum(-1) - flight.kinetic - gained


def walked(score, x, noise, h, curvature, lengths, factor=None, options=EXACT):
    splits = splitting(h * torch.ones(len(noise.normal), 1, 1, dtype=F64), curvature)
    state = transition.State(x, score.expand(x))
    return trajectories.walk(state, score, factor, splits, lengths, noise, options)


def noise_of(steps, chains, dim, seed=0):
    g = generator(seed)
    z = torch.randn(steps, chains, dim, generator=g, dtype=F64)
    return NoiseBlock(z, torch.rand(steps, chains, generator=g, dtype=F64), torch.ones(steps))


# -- one step is the single step ------------------------------------------------------------------


@given(mixtures(), st.floats(0.01, 9.0), seeds, st.sampled_from(["none", "diagonal", "dense"]))
@pytest.mark.parametrize("rotating", [True, False])
def test_one_step_is_the_single_step_of_the_same_h(rotating, score, h, seed, metric):
    proposal = ornstein_uhlenbeck if rotating else langevin
    factor = torch.linalg.cholesky(spd(generator(seed), score.dim, condition=4.0))
    factor = {"none": None, "diagonal": factor.diagonal().clone(), "dense": factor}[metric]
    law, method = Whitened(score, factor), KernelSpec(proposal, None, "exact")
    x, noise = score.sample(5, generator(seed)), noise_of(1, 5, score.dim, seed)
    state = transition.init(law, law.to_u(x), method)
    for options in (EXACT, ALL):
        given_ = number(h), noise.normal[0], noise.uniform[0], options
        want, told = transition.step(state, law, method, *given_)
        _, trail = walked(score, x, noise, h, -1.0 if rotating else 0.0, [1], factor, options)
        assert_close(trail.position[0], law.to_x(want.position), **rounding(F64))
        # of a difference of log densities, each with its own rounding
        assert_close(trail.info.acceptance[0], told.acceptance, rtol=1e-6, atol=1e-9)
        assert torch.equal(trail.info.diverging[0], told.diverging)
        assert_close(trail.log_density[0], want.expansion.log_density, **rounding(F64))
        assert_close(trail.gradient[0], score.expand(trail.position[0]).gradient)


@given(mixtures(), st.floats(0.01, 9.0), seeds)
def test_with_a_frozen_curvature_it_is_ozakis(score, h, seed):
    matrix = spd(generator(seed), score.dim)
    values, vectors = torch.linalg.eigh(matrix)
    law, method = Frozen(score, Dense(-matrix)), KernelSpec(ozaki, "dense", "exact")
    x, noise = score.sample(5, generator(seed)), noise_of(1, 5, score.dim, seed)
    state = transition.init(law, x, method)
    want, told = transition.step(state, law, method, number(h), noise.normal[0], noise.uniform[0])
    # the same noise, along the directions that are frozen
    along = noise._replace(normal=noise.normal @ vectors)
    _, trail = walked(score, x, along, h, -values, [1], vectors)
    assert_close(trail.position[0], want.position, **rounding(F64))
    assert_close(trail.info.acceptance[0], told.acceptance, rtol=1e-6, atol=1e-9)


def test_a_flat_direction_is_leapfrog_and_both_meet():
    h = number(0.7)
    assert_close(splitting(h, 0.0), Splitting(h.sqrt() / 2, h.sqrt()))
    # ω → 0, with no jump where one form takes over from the other
    for square in (1e-7, 1e-11, 1.5e-12, 1e-13, 0.0):
        assert_close(splitting(h, -square), splitting(h, 0.0), rtol=2 * square, atol=0)
    mixed = splitting(h, torch.tensor([0.0, -4.0], dtype=F64))
    assert_close(mixed.drift, torch.stack([h.sqrt(), (1 - torch.exp(-4 * h)).sqrt() / 2]))


def test_angles_are_those_of_the_steps():
    for theta in (0.01, 0.4, 1.5):
        for rotating in (True, False):
            assert angle(float(turned(theta, rotating)), rotating) == pytest.approx(theta)
    # of a small h, θ = √h and all its digits
    for h in (1e-12, 1e-20, 1e-300):
        assert angle(h, True) == pytest.approx(math.sqrt(h), rel=1e-9)


# -- the map --------------------------------------------------------------------------------------


@given(mixtures(), seeds, st.integers(1, 6), st.floats(0.05, 1.4))
@pytest.mark.parametrize("curvature", [-1.0, 0.0])
def test_the_way_back_is_the_way_there(curvature, score, seed, count, theta):
    factor = torch.linalg.cholesky(spd(generator(seed), score.dim, condition=4.0))
    x, p = score.sample(4, generator(seed)), normal(4, score.dim, seed=seed)
    # where a leapfrog step is stable: beyond, rounding is multiplied at every step
    h = turned(theta) if curvature else number(0.01)
    split = splitting(h, curvature)
    there = flown(score, x, p, split, count, factor)
    back = flown(score, there.now.position, -there.momentum, split, count, factor)
    largest = max(1.0, float(there.now.position.abs().max()), float(there.momentum.abs().max()))
    kept = {"rtol": 0.0, "atol": largest * rounding(F64)["atol"]}
    settled = not bool(there.lost.any()) and largest < 1e3  # an unstable way magnifies roundings
    if settled:
        assert_close(back.now.position, x, **kept)
        assert_close(back.momentum, -p, **kept)
        assert_close(energy_error(back), -energy_error(there), rtol=1e-6, atol=1e-6)
    if theta < 0.5:
        assert settled  # so that the check above is made


@pytest.mark.parametrize("curvature", [-1.0, 0.0, (-0.3, -2.0)])
@pytest.mark.parametrize("count", [1, 3])
def test_volume_is_kept(curvature, count):
    factor = torch.linalg.cholesky(spd(generator(3), 2, condition=4.0))
    curvature = torch.tensor(curvature, dtype=F64) if isinstance(curvature, tuple) else curvature
    split = splitting(number(0.8), curvature)

    def map_(both):
        x, p = both.chunk(2)
        end = flown(BENT, x[None], p[None], split, count, factor)
        return torch.cat([end.now.position[0], end.momentum[0]])

    for point in normal(5, 4):
        jacobian = torch.func.jacrev(map_)(point)
        assert_close(torch.linalg.det(jacobian), number(1.0), **rounding(F64))
        assert float((jacobian - torch.eye(4)).abs().max()) > 0.1  # no identity


@given(gaussians(), seeds, st.floats(0.01, 1.56), st.integers(1, 20))
def test_on_the_normal_of_the_metric_no_energy_is_lost(score, seed, theta, count):
    factor = torch.linalg.cholesky(score.covariance)
    x, p = score.sample(3, generator(seed)), normal(3, score.dim, seed=seed)
    end = flown(score, x, p, splitting(turned(theta)), count, factor)
    assert_close(energy_error(end), torch.zeros(3, dtype=F64), **rounding(F64))
    # it is a turn of (x − m, p) by n θ
    whole = theta * count
    u, v = (torch.linalg.solve(factor, (at - score.mean).mT).mT for at in (x, end.now.position))
    assert_close(v, u * math.cos(whole) + p * math.sin(whole), **rounding(F64))


@pytest.mark.parametrize("rotating", [True, False])
def test_elsewhere_the_error_of_the_energy_falls_as_the_square_of_the_angle(rotating):
    x, p, time = BENT.sample(200, generator(0)), normal(200, 2), 1.2
    errors = []
    for count in (8, 16, 32, 64):
        h = turned(time / count, rotating)
        end = flown(BENT, x, p, splitting(h, -1.0 if rotating else 0.0), count)
        errors.append(float(energy_error(end).square().mean().sqrt()))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders == pytest.approx([2, 2, 2], abs=0.1)  # what the next term, θ⁴, leaves
    assert errors[-1] > 1e-6  # of an error that is there


# -- the flat loop --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [EXACT, ALL, StepOptions(uphill=True)])
@pytest.mark.parametrize("hidden", [False, True])
def test_turns_of_the_flat_loop_are_the_walk(hidden, options):
    score = ScoreOnly(BENT) if hidden else BENT
    lengths, chains = [3, 1, 5, 2, 1], 6
    noise, x = noise_of(5, chains, 2, seed=4), BENT.sample(chains, generator(1))
    factor = torch.linalg.cholesky(spd(generator(3), 2, condition=4.0))
    h = torch.linspace(0.5, 4.0, 5, dtype=F64).reshape(5, 1, 1)
    splits = splitting(h)
    begin = transition.State(x, score.expand(x))
    want_state, want = trajectories.walk(begin, score, factor, splits, lengths, noise, options)
    yes, no = torch.tensor(True), torch.tensor(False)
    # data of a loop that no one reads before a trajectory begins
    flight, seen = trajectories.depart(begin, torch.full_like(x, torch.nan)), []
    for i, length in enumerate(lengths):
        split = Splitting(splits.kick[i], splits.drift[i])
        for turn in range(length):
            first, last = (yes if turn == end else no for end in (0, length - 1))
            part = noise.normal[i], noise.uniform[i]
            flight, info = trajectories.turn(
                flight, score, factor, split, first, last, part, options
            )
        seen.append((flight.now, info))
    for i, (now, info) in enumerate(seen):
        assert torch.equal(now.position, want.position[i])
        assert torch.equal(now.expansion.gradient, want.gradient[i])
        for a, b in zip(info, want.info, strict=True):
            assert torch.equal(a, b[i])
    assert torch.equal(flight.now.position, want_state.position)
    moved = want.info.accepted
    if options is EXACT:
        assert 0 < moved.sum() < moved.numel()  # both ends of the choice were met


# -- how many steps -------------------------------------------------------------------------------


@given(st.floats(0.1, 4.0), st.floats(0.02, 1.5))
def test_trajectories_take_the_time_on_average(time, theta):
    counts = [steps_of(time, theta, i) for i in range(1023)]
    # ⌈·⌉ adds between nothing and one step; 1,023 terms of the sequence have the mean of (0, 1)
    assert time - 2 * time / 1024 <= sum(counts) / 1023 * theta <= time + theta
    assert min(counts) >= 1
    longest = math.ceil(2 * time / theta)
    assert max(counts) <= longest
    assert len(set(counts)) >= min(longest, 3)  # lengths vary


def test_the_sequence_is_haltons():
    halton = qmc.Halton(1, scramble=False).random(65).flatten().tolist()[1:]
    assert [steps_of(1.0, 0.001, i) for i in range(64)] == [
        min(MOST, math.ceil(2 * r / 0.001)) for r in halton
    ]
    assert steps_of(0.0, 0.3, 5) == 1
    for tiny in (1e-4, 1e-300, 5e-324, 0.0):
        assert steps_of(100.0, tiny, 5) == MOST


def test_lengths_know_nothing_of_the_state():
    found = []
    for seed in (0, 1):
        kernel = ScoreLangevinKernel(BENT, step_size=0.04, trajectory=1.0)
        kernel.begin(kernel.bind(), 0, RunContext(3, generator(seed)))
        kernel.place({"x": 3 * normal(3, 2, seed=seed)})
        lengths = []
        for _ in range(20):
            kernel.walk(1)
            lengths += kernel.engine._block.lengths
        found.append(lengths)
    assert found[0] == found[1] == [steps_of(1.0, 0.2, i) for i in range(20)]


# -- what is not finite on the way ----------------------------------------------------------------


def broken_law(what):
    """A normal that is broken where x > 2."""

    def log_p(x):
        return -(x.square().sum()) / 2

    class Broken(LogDensityScore):
        def expand(self, x, curvature=None):
            at = super().expand(x, curvature)
            bad = x[..., 0] > 2
            if what == "gradient":
                gradient = torch.where(bad.unsqueeze(-1), torch.nan, at.gradient)
                return at._replace(gradient=gradient)
            if what == "infinite gradient":
                gradient = torch.where(bad.unsqueeze(-1), torch.inf, at.gradient)
                return at._replace(gradient=gradient)
            value = {"density": torch.nan, "no density": -torch.inf, "infinite": torch.inf}[what]
            return at._replace(log_density=torch.where(bad, value, at.log_density))

    return Broken(log_p, (2,), dtype=F64)


@pytest.mark.parametrize(
    "what", ["gradient", "infinite gradient", "density", "no density", "infinite"]
)
@pytest.mark.parametrize("options", [EXACT, ALL, StepOptions(uphill=True)])
def test_a_way_that_is_broken_loses_one_proposal_and_nothing_else(what, options):
    score = broken_law(what)
    x = torch.tensor([[0.3, 0.1], [1.5, 0.0], [-0.2, 0.4]], dtype=F64)
    noise = noise_of(4, 3, 2, seed=2)
    away = noise.normal.clone()
    away[1, 1] = torch.tensor([2.0, 0.0])  # past 2 and back within a trajectory
    away[[0, 2, 3], 1] = 0.0
    # the same chains, with one that keeps away from there
    calm = away.clone()
    calm[1, 1] = 0.0
    lengths = [2, 12, 1, 3]
    hit, safe = (
        walked(score, x, noise._replace(normal=z), 0.04, 0.0, lengths, options=options)[1]
        for z in (away, calm)
    )
    assert hit.info.broken[1].tolist() == [False, True, False]
    assert hit.info.diverging[1].tolist() == [False, True, False]
    assert float(hit.info.acceptance[1, 1]) == 0.0
    assert not bool(hit.info.accepted[1, 1])
    assert torch.equal(hit.position[1, 1], hit.position[0, 1])
    assert torch.equal(hit.gradient[1, 1], hit.gradient[0, 1])
    assert not bool(safe.info.broken.any() | hit.info.broken[[0, 2, 3]].any())
    # the lost chain walks on
    assert bool(hit.info.accepted[3, 1]) and bool(hit.position.isfinite().all())
    others = [0, 2]
    for a, b in zip((*hit[:2], *hit.info), (*safe[:2], *safe.info), strict=True):
        assert torch.equal(a[:, others], b[:, others])


def test_a_point_that_overflows_is_lost_alone():
    flat = LogDensityScore(lambda x: -x.square().sum().sqrt(), (2,), dtype=F64)
    noise, x = noise_of(1, 3, 2), normal(3, 2)
    noise.normal[0, 2] = 1e308
    _, trail = walked(flat, x, noise, 1e4, 0.0, [2], options=ALL)
    assert trail.info.broken.tolist() == [[False, False, True]]
    assert torch.equal(trail.position[0, 2], x[2])
    assert bool(trail.position.isfinite().all())


def test_scores_alone_lose_it_too():
    hidden = ScoreOnly(BENT, fail=lambda x: x[..., 0] > 1)
    noise, x = noise_of(1, 2, 2), torch.tensor([[0.9, 0.2], [-1.0, 0.0]], dtype=F64)
    noise.normal[0] = torch.tensor([[1.0, 0.0], [0.1, 0.0]])
    _, trail = walked(hidden, x, noise, 0.04, 0.0, [3], options=ALL)
    assert trail.info.broken.tolist() == [[True, False]]
    assert torch.equal(trail.position[0, 0], x[0])


def test_a_run_tells_of_it_as_a_divergence():
    class Walled(GaussianScore):
        def expand(self, x, curvature=None):
            at = super().expand(x, curvature)
            return at._replace(
                gradient=torch.where(
                    (x[..., :1] > 1.5) & (x[..., :1] < 2.5), torch.nan, at.gradient
                )
            )

    score = Walled(torch.zeros(1), torch.eye(1))
    kernel = ScoreLangevinKernel(score, step_size=0.04, trajectory=1.5)
    start = {"x": torch.tensor([[0.0], [-0.5]])}
    mcmc = MCMC(kernel, 300, 0, num_chains=2, seed=0, initial_params=start, disable_progbar=True)
    mcmc.run()
    x, stats = mcmc.get_samples(group_by_chain=True)["x"], mcmc.result.draws.stats
    assert bool(x.isfinite().all())
    lost = stats["diverging"].bool()
    assert 10 < lost.sum() < 300
    stayed = (x.diff(dim=1) == 0).all(-1)
    assert bool(stayed[lost[:, 1:]].all())
    assert [len(d) for d in mcmc.diagnostics()["divergences"].values()] == lost.sum(1).tolist()


# -- unadjusted -----------------------------------------------------------------------------------


def own_variance(split, c):
    """Of a normal of precision c: p² + x² c k (2 − c k d)/d is kept, and p is N(0, 1)."""
    return split.drift / (split.kick * c * (2 - split.kick * c * split.drift))


@pytest.mark.parametrize("rotating", [True, False])
@pytest.mark.parametrize(("h", "count"), [(0.3, 1), (0.3, 7), (0.9, 3)])
def test_unadjusted_trajectories_have_the_law_of_their_own_energy(rotating, h, count):
    """In a wrong metric: x' = A x + B p is stationary under V = A V Aᵀ + B Bᵀ."""
    score = GaussianScore(torch.zeros(3, dtype=F64), spd(generator(1), 3, condition=3.0))
    factor = torch.linalg.cholesky(score.covariance @ score.covariance.mT)
    split = splitting(number(h), -1.0 if rotating else 0.0)
    basis, zero = torch.eye(3, dtype=F64), torch.zeros(3, 3, dtype=F64)
    a = flown(score, basis, zero, split, count, factor).now.position.mT
    b = flown(score, zero, basis, split, count, factor).now.position.mT
    c, directions = torch.linalg.eigh(factor.mT @ torch.linalg.solve(score.covariance, factor))
    spread = factor @ directions
    own = (spread * own_variance(split, c)) @ spread.mT
    assert_close(a @ own @ a.mT + b @ b.mT, own, **rounding(F64))
    assert float((own - score.covariance).abs().max()) > 0.01  # the bias is there


def test_of_leapfrog_on_a_normal_it_is_the_textbooks():
    for epsilon in (0.1, 1.0, 1.9):
        want = number(1 / (1 - epsilon**2 / 4))
        assert_close(own_variance(splitting(number(epsilon**2), 0.0), 1.0), want)


@pytest.mark.usefixtures("unchecked")
def test_a_chain_of_unadjusted_trajectories_follows_its_own_law():
    score = GaussianScore(torch.zeros(2, dtype=F64), torch.diag(torch.tensor([1.0, 0.6]).double()))
    h = 0.8
    kernel = ScoreLangevinKernel(score, step_size=h, trajectory=1.5, metropolis="none")
    mcmc = MCMC(kernel, 60, 20, num_chains=256, seed=3, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    own = own_variance(splitting(number(h), 0.0), 1 / score.covariance.diagonal())
    moments_match(draws, score.mean, torch.diag(own))
    with pytest.raises(AssertionError, match="MCSE"):
        moments_match(draws, score.mean, score.covariance)


# -- line integrals -------------------------------------------------------------------------------


def path_error(score, theta, count, rule):
    x, p = score.sample(100, generator(0)), normal(100, 2)
    options = StepOptions(rule=rule)
    end = flown(ScoreOnly(score), x, p, splitting(turned(theta)), count, options=options)
    want = score.expand(end.now.position).log_density - score.expand(x).log_density
    assert float(want.abs().max()) > 0.1
    return float((end.gain - want).square().mean().sqrt())


def test_a_line_integral_along_the_path_is_the_densitys_change():
    gauss = GaussianScore(torch.zeros(2, dtype=F64), spd(generator(1), 2, condition=3.0))
    for rule in ("lobatto", "trapezoid"):  # exact on normals
        assert path_error(gauss, 0.6, 5, rule) < rounding(F64)["atol"]
    # each of n steps errs by θ³ under the trapezoid, by θ⁹ and more under Lobatto's
    a, b, c = (path_error(BENT, 1.2 / n, n, "trapezoid") for n in (8, 16, 32))
    assert [math.log2(a / b), math.log2(b / c)] == pytest.approx([2, 2], abs=0.2)
    a, b = (path_error(BENT, 1.2 / n, n, "lobatto") for n in (1, 2))
    assert a / b > 2**8 * 0.7
    assert path_error(BENT, 0.15, 8, "lobatto") < 1e-9


def test_the_part_that_has_a_density_is_exact():
    """Of densities the ends are enough: nothing is integrated on the way."""
    end = flown(BENT, BENT.sample(5, generator(0)), normal(5, 2), splitting(number(1.0)), 4)
    assert torch.equal(end.gain, torch.zeros(5, dtype=F64))


# -- the metric of draws and scores ---------------------------------------------------------------


def shrunk(x):
    n, d = x.shape
    covariance = torch.cov(x.mT)
    weight = ((d + 5) / (n + d + 5)) ** 3
    return (1 - weight) * covariance + weight * torch.diag(covariance.diagonal())


@given(seeds, st.integers(2, 6), st.integers(3, 40))
def test_the_metric_of_scores_is_the_mean_of_both(seed, dim, count):
    x = normal(count, dim, seed=seed) @ spd(generator(seed), dim) + 100
    g = normal(count, dim, seed=seed + 1) @ spd(generator(seed + 1), dim)
    moments = PooledMoments(dim, True, x)
    for part in zip(x.split(7), g.split(7), strict=True):
        moments.add(*part)
    factor = moments.scores_factor(F64)
    a, s, p = factor @ factor.mT, shrunk(x), shrunk(g)
    size = float(s.abs().max())
    assert_close(a @ p @ a / size, s / size, rtol=0, atol=1e-6)  # of a condition of some 10⁵
    assert torch.equal(factor, factor.tril())


@given(seeds, st.integers(1, 6))
def test_on_a_normal_it_is_exact_from_few_draws_wherever_they_lie(seed, dim):
    sigma, g = spd(generator(seed), dim), generator(seed + 1)
    place = torch.randn(dim, generator=g, dtype=F64) * 30
    corners = torch.cat([torch.zeros(1, dim, dtype=F64), spd(g, dim, condition=10.0)])
    x = place + corners
    moments = PooledMoments(dim, True, x)
    moments.add(x, -torch.linalg.solve(sigma, (x - 7).mT).mT)
    # as if they were many: next to nothing is shrunk
    count = 10**12
    seen = moments.tensors
    scatter = seen["scatter"] * (count - 1) / dim
    moments.restore({**seen, "count": torch.tensor([count, count]), "scatter": scatter})
    factor = moments.scores_factor(F64)
    # 10⁻¹² is shrunk, and the condition of S and P multiplies it
    identity = torch.eye(dim, dtype=F64)
    relative = torch.linalg.solve(sigma, factor @ factor.mT)
    assert_close(relative, identity, rtol=0, atol=1e-6)
    pooled = moments.factor(F64)  # the draws alone know nothing of it
    assert float((torch.linalg.solve(sigma, pooled @ pooled.mT) - identity).abs().max()) > 0.1


@given(seeds, st.integers(2, 5))
def test_it_has_no_units(seed, dim):
    x, g = normal(30, dim, seed=seed), normal(30, dim, seed=seed + 1)
    units = torch.logspace(-4, 4, dim, dtype=F64)
    one, other = PooledMoments(dim, True, x), PooledMoments(dim, True, x)
    one.add(x, g)
    other.add(x * units, g / units)
    scaled = other.scores_factor(F64) / units.unsqueeze(-1)
    assert_close(scaled, one.scores_factor(F64), **rounding(F64))


def test_of_diagonals_it_is_the_ratio():
    x, g = normal(50, 3) * torch.tensor([1.0, 5.0, 0.1]).double(), normal(50, 3, seed=1)
    moments = PooledMoments(3, False, x)
    assert moments.scores_factor(F64) is None
    moments.add(x)
    assert moments.scores_factor(F64) is None  # no gradients, no metric of them
    moments = PooledMoments(3, False, x)
    moments.add(x, g)
    factor = moments.scores_factor(F64)
    assert_close(factor.square(), (x.var(0) / g.var(0)).sqrt())
    moments.add(x, torch.full_like(g, torch.nan))
    assert moments.scores_factor(F64) is None


# -- arguments ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kernel", [ScoreOzakiKernel, ScoreLangevinKernel])
@pytest.mark.parametrize("wrong", [-0.1, math.nan, math.inf, "yes", True, None, [1.0]])
def test_a_trajectory_that_is_none_is_refused(kernel, wrong):
    with pytest.raises(ValueError, match="trajectory must be"):
        kernel(BENT, trajectory=wrong)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "options",
    [
        {"curvature": "dense"},
        {"curvature": "diagonal"},
        {"curvature": "dense", "frozen": False},
        {"step_size": 0.5},
    ],
    ids=str,
)
def test_local_curvature_keeps_single_steps(options):
    with pytest.raises(ValueError, match=r"trajectory must be 'auto' or 0 .*was 1\.5"):
        MCMC(ScoreOzakiKernel(BENT, trajectory=1.5, **options), 5, 30).run()
    for fine in ({"trajectory": 0.0}, {}):
        MCMC(ScoreOzakiKernel(BENT, **options, **fine), 5, 30, disable_progbar=True).run()
    frozen = {**options, "frozen": True}
    MCMC(ScoreOzakiKernel(BENT, trajectory=1.5, **frozen), 5, 30, disable_progbar=True).run()


def test_a_trajectory_is_a_setting():
    kernel: ScoreKernel = ScoreOzakiKernel(BENT, trajectory=0.5)
    assert kernel.settings()["trajectory"] == 0.5
    assert ScoreLangevinKernel(BENT).settings()["trajectory"] == "auto"
