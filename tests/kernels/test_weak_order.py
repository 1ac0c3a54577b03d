"""Unadjusted steps: their error falls with h as theory says, on a grid and so without noise.

A chain in one dimension is a matrix of transition densities on a grid. Its stationary law is a
linear system; the diffusion dX = ½ s1 dt + dW itself is the exponential of a symmetric matrix. On
smooth functions that vanish at the ends the trapezoid rule errs by exp(−2π² h/Δ²), Δ the spacing.

Source: the expansion of the stationary bias is Talay & Tubaro, "Expansion of the global error for
numerical schemes solving stochastic differential equations" (1990).
"""

import math
from typing import NamedTuple

import pytest
import torch

from ozaki.kernels import trajectories
from ozaki.kernels.proposals import GaussianStep, langevin, ornstein_uhlenbeck, ozaki
from ozaki.kernels.trajectories import splitting
from ozaki.kernels.transition import State, StepOptions
from ozaki.scores import GaussianMixtureScore, GaussianScore, LogisticMixtureScore
from tests.kit.oracles import affine_map, stationary_covariance

F64 = torch.float64
KERNELS = [(langevin, None), (ornstein_uhlenbeck, None), (ozaki, "diagonal"), (ozaki, "dense")]
# what of s2 a proposal does not use
LEFT_OUT = {
    langevin: lambda s2: s2,
    ornstein_uhlenbeck: lambda s2: s2 + 1,
    ozaki: lambda s2: s2.clamp(min=0),
}
STEPS = (0.1, 0.05, 0.025)


def line(n):
    return torch.linspace(-12, 12, n, dtype=F64)


X = line(401)  # Δ = 0.06: at h = 0.025 the rule errs by exp(−137)
SPACING = float(X[1] - X[0])


def mixture(means, scales, weights):
    column = torch.tensor([means, scales], dtype=F64).unsqueeze(-1)
    return GaussianMixtureScore(column[0], column[1].square().unsqueeze(-1), weights)


# each has a score that grows at most linearly: Langevin would run away from a quartic
GAUSS = GaussianScore(torch.tensor([0.5], dtype=F64), torch.tensor([[0.64]], dtype=F64))
SKEW = mixture([-0.9, 0.9], [1.0, 1.0], [0.3, 0.7])  # s2 < 0 everywhere
MODES = mixture([-1.5, 1.0], [1.0, 0.7], [0.4, 0.6])  # s2 > 0 between the modes
HEAVY = LogisticMixtureScore(torch.zeros(1, 1, dtype=F64), torch.full((1, 1), 0.5, dtype=F64))
LAWS = {"skew": SKEW, "modes": MODES, "heavy": HEAVY}


# -- chains, the diffusion, and what theory says --------------------------------------------------


def derivatives(score, x):
    """(density, s1, s2) at x; the density as weights of the sum over x."""
    at = score.expand(x.unsqueeze(-1), "diagonal")
    weight = torch.softmax(at.log_density, 0)
    return weight, at.gradient.squeeze(-1), at.curvature.diagonal().squeeze(-1)


def transitions(proposal, score, h, kind):
    """K[i, j] = q(x_j | x_i) Δ."""
    x = X.reshape(-1, 1, 1)
    step = proposal(x, score.expand(x, kind), torch.tensor(h, dtype=F64))
    return step.log_prob(X.reshape(1, -1, 1).expand(len(X), -1, 1)).exp() * SPACING


def stationary(k):
    """π with π K = π and Σ π = 1; one of the equations of the first follows from the others."""
    a = (k - torch.eye(len(k), dtype=F64)).mT
    middle = len(k) // 2
    a[middle] = 1
    right = torch.zeros(len(k), dtype=F64)
    right[middle] = 1
    return torch.linalg.solve(a, right)


def diffusion(score, time):
    """exp(time·L) for L = ½ s1 ∂ + ½ ∂², as a matrix on values at X.

    √π L (1/√π) = ½ ∂² − s1²/8 − s2/4 is symmetric; ∂² by sinc functions, whose error is as small
    as the trapezoid rule's.
    """
    weight, s1, s2 = derivatives(score, X)
    i = torch.arange(len(X))
    gap = (i[:, None] - i).to(F64)
    second = -2 * (1 - 2 * (gap.abs() % 2)) / gap.square()
    second.fill_diagonal_(-(torch.pi**2) / 3)
    values, vectors = torch.linalg.eigh(
        second / SPACING**2 / 2 - torch.diag(s1.square() / 8 + s2 / 4)
    )
    root = weight.sqrt()
    return (vectors * (time * values).exp()) @ vectors.mT * root / root.unsqueeze(-1)


def leading_bias(score, proposal, f):
    """(E f, c): the stationary law of a step of time h has expectation E f + c h + o(h).

    Its density is p (1 + h (w − E w)) with w = −s2/4 + r/2 + ¼ ∫ s1 r, where r is what the proposal
    leaves out of s2, so that c = Cov(f, w). Langevin leaves out all: w = s1²/8 + s2/4. Ozaki leaves
    out what is positive: of a Gaussian nothing, and w is constant.
    """
    x = line(8001)
    weight, s1, s2 = derivatives(score, x)
    left_out = LEFT_OUT[proposal](s2)
    integral = torch.cumulative_trapezoid(s1 * left_out, x)
    w = -s2 / 4 + left_out / 2 + torch.cat([torch.zeros(1, dtype=F64), integral]) / 4
    mean = (weight * f(x)).sum()
    return float(mean), float((weight * (f(x) - mean) * w).sum())


class Fit(NamedTuple):
    slope: float  # of log |bias| against log h, between the two smallest
    limit: float  # of bias/h as h → 0, one extrapolation
    doubt: float  # how far the limit moved when h was halved

    def holds(self, coefficient):
        """Order 1, with the right constant.

        The limit's own error falls by 2 or more when h is halved, so it is below the last move.
        """
        near = abs(self.limit - coefficient) < self.doubt
        # what second-order terms leave at these steps; another order is 1 off
        return near and abs(self.slope - 1) < 0.15


def fit(proposal, score, kind, f, mean):
    bias = [
        float((stationary(transitions(proposal, score, h, kind)) * f(X)).sum()) - mean
        for h in STEPS
    ]
    rate = [b / h for b, h in zip(bias, STEPS, strict=True)]
    before, limit = (2 * rate[i + 1] - rate[i] for i in range(2))
    return Fit(math.log2(abs(bias[1] / bias[2])), limit, abs(limit - before))


def square(x):
    return x.square()


# -- the stationary law ---------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("proposal", "kind"), KERNELS)
def test_the_bias_of_the_second_moment_is_of_order_one(proposal, kind, law):
    score = LAWS[law]
    mean, c = leading_bias(score, proposal, square)
    found = fit(proposal, score, kind, square, mean)
    assert found.holds(c), (found, c)


@pytest.mark.parametrize("law", ["skew", "modes"])
@pytest.mark.parametrize(("proposal", "kind"), KERNELS)
def test_so_is_the_bias_of_the_mean(proposal, kind, law):
    score = LAWS[law]
    mean, c = leading_bias(score, proposal, lambda x: x)
    found = fit(proposal, score, kind, lambda x: x, mean)
    assert found.holds(c), (found, c)


def test_on_a_gaussian_langevin_has_the_variance_of_the_closed_form():
    """σ²/(1 − h/(4σ²)): the grid itself is right, to rounding."""
    for h in (0.4, *STEPS):
        weight = stationary(transitions(langevin, GAUSS, h, None))
        want = 0.64 / (1 - h / 2.56)
        # float64, over the sums of the grid
        assert float((weight * (X - 0.5).square()).sum()) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("kind", ["diagonal", "dense"])
def test_on_a_gaussian_ozaki_has_no_bias_at_any_step(kind):
    for h in (3.0, 0.4, *STEPS):
        weight = stationary(transitions(ozaki, GAUSS, h, kind))
        # float64, over the sums of the grid, as is the next
        assert float((weight * X).sum()) == pytest.approx(0.5, rel=1e-10)
        assert float((weight * (X - 0.5).square()).sum()) == pytest.approx(0.64, rel=1e-10)


def test_a_diagonal_curvature_is_of_order_one_under_correlation():
    sigma = torch.tensor([[1.0, -0.8], [-0.8, 1.0]], dtype=F64)
    score = GaussianScore(torch.zeros(2, dtype=F64), sigma)
    bias = []
    for h in STEPS:
        m, _, c = affine_map(ozaki, score, h, "diagonal")
        bias.append(stationary_covariance(m, c) - sigma)
    slope = torch.log2(bias[1] / bias[2])
    # second-order terms, as in `holds`
    torch.testing.assert_close(slope, torch.ones(2, 2, dtype=F64), atol=0.15, rtol=0)


# -- one step, and a time -------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
def test_the_reference_diffusion_keeps_its_law_and_composes(law):
    weight, _, _ = derivatives(LAWS[law], X)
    half, whole = diffusion(LAWS[law], 0.5), diffusion(LAWS[law], 1.0)
    # float64's rounding of an eigendecomposition, of weights below 1; so is the next
    torch.testing.assert_close(weight @ whole, weight, atol=1e-11, rtol=0)
    f = (weight.unsqueeze(-1) * half) @ (half @ X)
    # float64, as above
    torch.testing.assert_close(f, weight * (whole @ X), atol=1e-11, rtol=0)


def error(proposal, score, kind, f, h, steps):
    """Root mean square, under p on |x| < 6, of E f after `steps` steps against the diffusion.

    Beyond lie the ends of the grid, which either takes otherwise.
    """
    weight, _, _ = derivatives(score, X)
    found = torch.linalg.matrix_power(transitions(proposal, score, h, kind), steps) @ f(X)
    gap = found - diffusion(score, steps * h) @ f(X)
    return float((weight * gap.square())[X.abs() < 6].sum().sqrt())


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("proposal", "kind"), KERNELS)
def test_one_step_errs_by_h_squared(proposal, kind, law):
    a, b = (error(proposal, LAWS[law], kind, square, h, 1) for h in STEPS[1:])
    assert math.log2(a / b) == pytest.approx(2, abs=0.15)  # second-order terms, as in `holds`


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("proposal", "kind"), KERNELS)
def test_after_a_given_time_the_error_is_of_order_one(proposal, kind, law):
    a, b = (error(proposal, LAWS[law], kind, square, h, round(1 / h)) for h in STEPS[1:])
    assert math.log2(a / b) == pytest.approx(1, abs=0.15)  # second-order terms, as in `holds`


# -- several steps that share a momentum ----------------------------------------------------------


def flights(score, h, count, curvature):
    """The matrix of E f(x') on the grid, x' the end of an unadjusted trajectory.

    The momentum is integrated by the trapezoid rule, and f is known between points by sinc
    functions.
    """
    p = torch.linspace(-8, 8, 161, dtype=F64)
    weight = torch.exp(-p.square() / 2) / math.sqrt(2 * math.pi) * float(p[1] - p[0])
    x = X.repeat_interleave(len(p)).unsqueeze(-1)
    flight = trajectories.depart(State(x, score.expand(x)), p.repeat(len(X)).unsqueeze(-1))
    split = splitting(torch.tensor(h, dtype=F64), curvature)
    for _ in range(count):
        flight = trajectories.advance(flight, score, None, split, StepOptions())
    ends = flight.now.position.reshape(len(X), len(p))
    return torch.stack([weight @ torch.sinc((row[:, None] - X) / SPACING) for row in ends])


def flown(score, time, counts, curvature):
    """The bias of E x² for trajectories of a time T, by how many steps they take."""
    weight, _, _ = derivatives(score, X)
    exact = float((weight * X.square()).sum())
    found = []
    for count in counts:
        theta = time / count
        h = -2 * math.log(math.cos(theta)) if curvature else theta**2
        law = stationary(flights(score, h, count, curvature))
        found.append(float((law * X.square()).sum()) - exact)
    return found


@pytest.mark.parametrize("law", ["skew", "modes"])
@pytest.mark.parametrize("curvature", [-1.0, 0.0])
def test_trajectories_are_of_second_order_in_the_angle(curvature, law):
    """Whatever their time: the error is that of the energy that their map keeps."""
    first, second, third = flown(LAWS[law], 0.6, (2, 4, 8), curvature)
    # fourth-order terms, as second-order ones in `holds`
    assert math.log2(abs(first / second)) == pytest.approx(2, abs=0.3)
    assert math.log2(abs(second / third)) == pytest.approx(2, abs=0.15)
    assert abs(third) > 1e-6  # a bias that is there


@pytest.mark.parametrize(("proposal", "curvature"), [(langevin, 0.0), (ornstein_uhlenbeck, -1.0)])
def test_of_one_step_they_are_the_single_step(proposal, curvature):
    h = 0.1
    law = stationary(flights(MODES, h, 1, curvature))
    single = stationary(transitions(proposal, MODES, h, None))
    # float64, over the sums of the grid
    torch.testing.assert_close(law, single, atol=1e-10, rtol=0)


# -- and it can fail ------------------------------------------------------------------------------


def flipped(proposal):
    return lambda x, at, h: proposal(x, at._replace(gradient=-at.gradient), h)


def half_the_drift(proposal):
    return lambda x, at, h: proposal(x, at._replace(gradient=at.gradient / 2), h)


def half_the_noise(proposal):
    def step(x, at, h):
        right = proposal(x, at, h)
        return GaussianStep(right.mean, right.covariance.spectral(lambda s: s / 2))

    return step


def scaled(at, factor):
    return at._replace(curvature=at.curvature.spectral(lambda s: factor * s))


def whole_exponent_in_the_mean(proposal):
    """φ(h s2) in place of φ(h s2/2)."""
    return lambda x, at, h: GaussianStep(
        proposal(x, scaled(at, 2.0), h).mean, proposal(x, at, h).covariance
    )


def half_exponent_in_the_covariance(proposal):
    """φ(h s2/2) in place of φ(h s2)."""
    return lambda x, at, h: GaussianStep(
        proposal(x, at, h).mean, proposal(x, scaled(at, 0.5), h).covariance
    )


SLIPS = [flipped, half_the_drift, half_the_noise]
EXPONENTS = [whole_exponent_in_the_mean, half_exponent_in_the_covariance]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("proposal", "kind", "slip"),
    [(p, k, slip) for p, k in KERNELS for slip in SLIPS + (EXPONENTS if k else [])],
)
def test_a_slip_of_sign_or_factor_is_seen(proposal, kind, slip, law):
    score = LAWS[law]
    mean, c = leading_bias(score, proposal, square)
    found = fit(slip(proposal), score, kind, square, mean)
    assert not found.holds(c), (found, c)
