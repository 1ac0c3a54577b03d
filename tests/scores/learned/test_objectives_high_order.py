"""Objectives of any order against quadrature: what their mean is, and where their minimum lies."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jacfwd, vmap

from ozaki.linalg import Diagonal
from ozaki.scores.learned import objectives
from ozaki.scores.learned.objectives_high_order import (
    orthogonal,
    orthogonal_control,
    orthogonal_loss,
    raw_moment,
)
from ozaki.scores.moments import posterior_moments

DRAWS = 20_000
LIMIT = 5.0  # standard errors: kept at the exact score, broken with a sign flipped
quick = settings(max_examples=6, deadline=None, derandomize=True)
Scores = Callable[[Tensor], tuple[Tensor, ...]]


def chain(log_density: Callable[[Tensor], Tensor], n: int) -> Scores:
    """Exact scores s1, …, sn of a density on the line, at points of any shape."""
    derivatives = [grad(log_density)]
    for _ in range(n - 1):
        derivatives.append(grad(derivatives[-1]))
    return lambda p: tuple(vmap(d)(p.flatten()).reshape(p.shape) for d in derivatives)


class Law(NamedTuple):
    """A mixture of normals on the line, under noise."""

    means: Tensor
    spreads: Tensor
    weights: Tensor
    sigma: float

    def log_density(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        variance = self.spreads**2 + sigma**2
        parts = self.weights.log() - 0.5 * variance.log()
        return torch.logsumexp(parts - 0.5 * (x.unsqueeze(-1) - self.means) ** 2 / variance, -1)

    def exact(self, n: int) -> Scores:
        return chain(lambda p: self.log_density(p, self.sigma), n)

    def quadrature(self) -> tuple[Tensor, Tensor, Tensor]:
        """Points x, noise z, (n, 1), and weights (n,), of the trapezoid rule on both.

        Its error on analytic functions is exponentially small, and it is symmetric in z.
        """
        x = torch.arange(-8.0, 8.05, 0.1, dtype=torch.float64)
        z = torch.arange(-8.5, 8.55, 0.125, dtype=torch.float64)
        wx, wz = torch.softmax(self.log_density(x), 0), torch.softmax(-0.5 * z**2, 0)
        x, z = torch.cartesian_prod(x, z).T
        return x[:, None], z[:, None], (wx[:, None] * wz).flatten()


@st.composite
def laws(draw: st.DrawFn, low: float = 0.3, high: float = 1.0) -> Law:
    g = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    modes = draw(st.integers(1, 3))
    means = 1.5 * torch.tanh(torch.randn(modes, generator=g, dtype=torch.float64))
    spreads = 0.4 + 0.3 * torch.rand(modes, generator=g, dtype=torch.float64)
    weights = torch.softmax(torch.randn(modes, generator=g, dtype=torch.float64), 0)
    return Law(means, spreads, weights, draw(st.floats(low, high)))


def moved(scores: Scores, error: Callable[[Tensor], Tensor]) -> Scores:
    """The same scores but for an error of the last."""

    def with_error(p: Tensor) -> tuple[Tensor, ...]:
        *lower, last = scores(p)
        return (*lower, last + error(p))

    return with_error


def flipped(scores: Scores) -> Scores:
    return lambda p: (*scores(p)[:-1], -scores(p)[-1])


def wave(p: Tensor) -> Tensor:
    return 0.3 + torch.sin(2 * p)


@pytest.mark.parametrize("control_variate", [False, True])
@pytest.mark.parametrize("n", [2, 3, pytest.param(4, marks=pytest.mark.thorough)])
@quick
@given(law=laws())
def test_orthogonal_is_the_squared_error_on_average(law: Law, n: int, control_variate: bool):
    # E loss = E (e − s_n)² − E s_n², for every estimate e: minimal at s_n, and only there
    x, z, w = law.quadrature()
    exact = law.exact(n)
    s_n = exact(x + law.sigma * z)[-1]
    for estimate in (exact, moved(exact, wave), flipped(exact)):
        loss = orthogonal(estimate, x, z, law.sigma, control_variate=control_variate)
        error = estimate(x + law.sigma * z)[-1] - s_n
        expected = w @ (error.square() - s_n.square())[:, 0]
        # of the quadrature in z
        torch.testing.assert_close(w @ loss, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@quick
@given(law=laws())
def test_raw_moment_exceeds_its_least_by_the_squared_error_of_the_moment(law: Law, n: int):
    x, z, w = law.quadrature()
    points = x + law.sigma * z
    exact = law.exact(n)
    least = raw_moment(exact, x, z, law.sigma)
    for estimate in (moved(exact, wave), flipped(exact)):
        loss = raw_moment(estimate, x, z, law.sigma)
        error = law.sigma ** (2 * n) * (estimate(points)[-1] - exact(points)[-1])
        torch.testing.assert_close(w @ (loss - least), w @ error.square()[:, 0])


def outer(a: Tensor, b: Tensor) -> Tensor:
    return a.unsqueeze(-1) * b.unsqueeze(-2)


def eq_11(s1: Tensor, s2: Tensor, x: Tensor, points: Tensor, sigma: float) -> Tensor:
    """‖x xᵀ − f‖², f = x̃x̃ᵀ + σ²(x̃ s1ᵀ + s1 x̃ᵀ) + σ⁴(s2 + s1 s1ᵀ) + σ²I (eq. 9, 11)."""
    cross = sigma**2 * (outer(points, s1) + outer(s1, points))
    return (
        (outer(x, x) - cross - outer(points, points) - second(s1, s2, sigma)).square().sum((-2, -1))
    )


def eq_12(s1: Tensor, s2: Tensor, x: Tensor, points: Tensor, sigma: float) -> Tensor:
    """‖x xᵀ − x x̃ᵀ − x̃ xᵀ − h‖², h = −x̃x̃ᵀ + σ⁴(s2 + s1 s1ᵀ) + σ²I (eq. 10, 12)."""
    target = outer(x, x) - outer(x, points) - outer(points, x)
    return (target + outer(points, points) - second(s1, s2, sigma)).square().sum((-2, -1))


def second(s1: Tensor, s2: Tensor, sigma: float) -> Tensor:
    return sigma**4 * (s2 + outer(s1, s1)) + sigma**2 * torch.eye(s1.shape[-1], dtype=s1.dtype)


@quick
@given(law=laws())
def test_the_two_forms_of_the_paper_agree_at_second_order(law: Law):
    x, z, w = law.quadrature()
    points = x + law.sigma * z
    s1, s2 = (s[..., None] if k else s for k, s in enumerate(law.exact(2)(points)))
    forms = {
        "raw": lambda e: raw_moment(lambda p: (s1, e), x, z, law.sigma),
        "eq. 11": lambda e: eq_11(s1, e, x, points, law.sigma),
        "eq. 12": lambda e: eq_12(s1, e, x, points, law.sigma),
    }
    wrong = (s2 + wave(points)[..., None], -s2)
    for estimate in wrong:
        # both regress on something of mean f or h given x̃, so both exceed their least alike
        excess = [w @ (loss(estimate) - loss(s2)) for loss in forms.values()]
        expected = w @ (law.sigma**4 * (estimate - s2)).square().flatten()
        torch.testing.assert_close(torch.stack(excess), expected.expand(3))
    # eq. 12 is σ⁴ times D2SM, whose target is free of x
    d2sm = objectives.d2sm(lambda p: (s1, Diagonal(s2[..., 0])), x, z, law.sigma)
    torch.testing.assert_close(forms["eq. 12"](s2), law.sigma**8 * d2sm)
    torch.testing.assert_close(forms["eq. 11"](s2), forms["raw"](s2))


# What quadrature does not reach, more dimensions, by draws.


class Plane(NamedTuple):
    """A mixture of correlated normals in the plane under noise, with draws."""

    x: Tensor
    z: Tensor
    sigma: Tensor
    log_density: Callable[[Tensor], Tensor]


def plane(seed: int, sigma: Tensor) -> Plane:
    g = torch.Generator().manual_seed(seed)
    means = torch.tensor([[1.0, 0.8], [-1.0, -0.3]], dtype=torch.float64)
    root = torch.tensor([[0.5, 0.0], [0.3, 0.4]], dtype=torch.float64)
    x = means[torch.randint(2, (DRAWS,), generator=g)]
    x = x + torch.randn(DRAWS, 2, generator=g, dtype=torch.float64) @ root.T
    precision = torch.linalg.inv(root @ root.T + torch.diag(sigma**2))

    def log_density(p: Tensor) -> Tensor:
        u = p - means
        return torch.logsumexp(-0.5 * ((u @ precision) * u).sum(-1), 0)

    return Plane(x, torch.randn(DRAWS, 2, generator=g, dtype=torch.float64), sigma, log_density)


def full_scores(law: Plane, n: int) -> Scores:
    derivatives = [grad(law.log_density)]
    for _ in range(n - 1):
        derivatives.append(jacfwd(derivatives[-1]))
    return lambda p: tuple(vmap(d)(p) for d in derivatives)


def diagonal_scores(law: Plane, n: int) -> Scores:
    """The diagonals: derivatives along each axis."""
    axes = torch.eye(2, dtype=torch.float64)

    def along(p: Tensor) -> tuple[Tensor, ...]:
        rows = p.reshape(-1, 2)
        lines = [grad(lambda t, q, e: law.log_density(q + t * e))]
        for _ in range(n - 1):
            lines.append(grad(lines[-1]))
        zero = torch.zeros((), dtype=torch.float64)
        return tuple(
            vmap(lambda q, d=d: vmap(lambda e: d(zero, q, e))(axes))(rows).reshape(p.shape)
            for d in lines
        )

    return along


def z_score(loss: Callable[[Tensor], Tensor]) -> float:
    """Mean over standard error of dℓ/dθ at θ = 0, one θ a sample."""
    theta = torch.zeros(DRAWS, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(theta).sum(), theta)
    return float(gradient.mean() / (gradient.std() / DRAWS**0.5))


def gradient_of(objective, scores: Scores, law: Plane, sign: float = 1.0) -> float:
    """The z-score of the derivative of the objective along s_n itself, of sign · s_n."""

    def loss(theta: Tensor) -> Tensor:
        def estimate(p: Tensor) -> tuple[Tensor, ...]:
            *lower, last = scores(p)
            shape = (-1, *(1,) * (last.ndim - 1)) if last.ndim == p.ndim + len(lower) else (-1, 1)
            return (*lower, (sign + theta.reshape(shape)) * last)

        return objective(estimate, law.x, law.z, law.sigma)

    return z_score(loss)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("objective", "form", "n"),
    [
        (raw_moment, full_scores, 2),
        (raw_moment, full_scores, 3),
        (raw_moment, diagonal_scores, 2),
        (raw_moment, diagonal_scores, 3),
        (orthogonal, diagonal_scores, 2),
        (orthogonal, diagonal_scores, 3),
        (orthogonal, diagonal_scores, 4),
    ],
)
def test_the_gradient_vanishes_at_the_exact_score_in_the_plane(objective, form, n: int, seed: int):
    law = plane(seed, torch.tensor([0.5, 0.6], dtype=torch.float64))
    scores = form(law, n)
    assert abs(gradient_of(objective, scores, law)) < LIMIT
    assert abs(gradient_of(objective, scores, law, sign=-1.0)) > LIMIT


# What an error in the lower orders does to the optimum.


def optimum(law: Law, point: Tensor, lower: tuple[Tensor, ...]) -> Tensor:
    """E[T_n | x̃] at one noisy point, given s1, …, s_{n−1}: where the loss is least."""
    x = torch.arange(-6.0, 6.0, 0.002, dtype=torch.float64)[:, None]
    z = (point - x) / law.sigma
    w = torch.softmax(law.log_density(x)[:, 0] - 0.5 * z[:, 0] ** 2, 0)
    # the loss is s² − 2sT
    at = [
        orthogonal_loss((*[s.expand(1, *x.shape) for s in lower], s), z[None], law.sigma)
        for s in (torch.ones(1, *x.shape, dtype=x.dtype), -torch.ones(1, *x.shape, dtype=x.dtype))
    ]
    return w @ (at[1] - at[0]) / 4


def plain_optimum(law: Law, point: Tensor, s1: Tensor) -> Tensor:
    """E[−r³/σ³ | x̃]."""
    x = torch.arange(-6.0, 6.0, 0.002, dtype=torch.float64)
    z = (point - x) / law.sigma
    w = torch.softmax(law.log_density(x) - 0.5 * z**2, 0)
    return w @ (-((z + law.sigma * s1) ** 3) / law.sigma**3)


def two_modes(sigma: float) -> Law:
    return Law(*torch.tensor([[-1.0, 1.0], [0.25, 0.25], [0.5, 0.5]], dtype=torch.float64), sigma)


def test_an_error_in_s1_ruins_the_plain_target_and_not_the_orthogonal():
    law, delta = two_modes(0.1), 0.1
    exact = law.exact(3)
    low, high = torch.tensor([0.1, 1.0], dtype=torch.float64)
    for _ in range(60):  # where s3 is −3.3
        middle = (low + high) / 2
        low, high = (middle, high) if float(exact(middle)[2]) < -3.3 else (low, middle)
    s1, s2, s3 = exact(low)
    offset = 3 * (1 + law.sigma**2 * s2) * delta / law.sigma**2 + delta**3
    plain = plain_optimum(law, low, s1 + delta)
    torch.testing.assert_close(plain, s3 - offset)
    assert abs(float(plain) + 29) < 0.5  # −29 and −3.3 are rounded: half of the last digit
    torch.testing.assert_close(optimum(law, low, (s1 + delta, s2)), s3 - delta**3)
    # δ³ = 0.001, and as much for s3 at the place found
    assert abs(float(optimum(law, low, (s1 + delta, s2))) + 3.3) < 0.002


@pytest.mark.parametrize("n", [2, 3, 4])
@quick
@given(law=laws(), at=st.floats(-1.5, 1.5), delta=st.floats(-0.5, 0.5))
def test_an_error_in_a_lower_order_moves_the_optimum_at_second_order(law, n, at, delta):
    point = torch.tensor(at, dtype=torch.float64)
    *lower, s_n = law.exact(n)(point)
    # of the quadrature in x; so are those below
    torch.testing.assert_close(optimum(law, point, tuple(lower)), s_n, rtol=1e-7, atol=1e-7)
    shifted = (lower[0] + delta, *lower[1:])
    power = (-delta) ** n
    # of the quadrature, as above
    torch.testing.assert_close(optimum(law, point, shifted), s_n + power, rtol=1e-7, atol=1e-7)
    step = 1e-3
    for k in range(n - 1):
        ends = [
            optimum(law, point, tuple(s + (h if j == k else 0) for j, s in enumerate(lower)))
            for h in (step, -step)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        # truncation of the central difference, step² = 1e-6, times third derivatives
        assert abs(float(slope)) < 1e-5, f"s{k + 1} moves s{n}"


@pytest.mark.parametrize("n", [2, 3, 4])
def test_only_the_highest_order_is_trained(n: int):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(2, 5, 3, generator=g)
    outputs = tuple(torch.randn(2, 5, 3, generator=g, requires_grad=True) for _ in range(n))
    clean = tuple(s[0] for s in outputs)
    loss = orthogonal_loss(outputs, z, 0.5) + orthogonal_control(clean, z[0], 0.5, z[1])
    found = torch.autograd.grad(loss.sum(), outputs, allow_unused=True)
    assert [gradient is not None for gradient in found] == [False] * (n - 1) + [True]


# The control variate.


@pytest.mark.parametrize("n", [2, 3, 4])
@quick
@given(seed=st.integers(0, 999), sigma=st.floats(0.05, 3.0))
def test_the_control_variate_has_mean_zero_at_every_point(n: int, seed: int, sigma: float):
    z = torch.arange(-10.0, 10.0, 0.05, dtype=torch.float64)[:, None]
    g = torch.Generator().manual_seed(seed)
    clean = tuple(
        torch.randn(1, 1, generator=g, dtype=torch.float64).expand_as(z) for _ in range(n)
    )
    control = orthogonal_control(clean, z, sigma, 0.7 * sigma * z)
    w = torch.softmax(-0.5 * z[:, 0] ** 2, 0)
    scale = float(w @ control.abs())
    assert scale > 0
    # float64, of a sum that cancels: stricter than the policy's
    assert abs(float(w @ control)) < 1e-9 * scale


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize(("sigma", "low", "high"), [(0.03, 0.0, 0.05), (1.0, 3.0, 1e4)])
def test_the_control_variate_lowers_the_variance_of_small_noise_only(n, sigma, low, high):
    law = two_modes(sigma)
    g = torch.Generator().manual_seed(1)
    x = torch.randint(0, 2, (DRAWS, 1), generator=g) * 2.0 - 1
    x = (x + 0.25 * torch.randn(DRAWS, 1, generator=g)).double()
    z = torch.randn(DRAWS, 1, generator=g, dtype=torch.float64)
    exact = law.exact(n)
    variances = []
    for control_variate in (False, True):
        theta = torch.zeros(DRAWS, 1, dtype=torch.float64, requires_grad=True)
        estimate = moved(exact, lambda p: theta * wave(p))  # noqa: B023
        loss = orthogonal(estimate, x, z, sigma, control_variate=control_variate)
        (gradient,) = torch.autograd.grad(loss.sum(), theta)
        variances.append(float(gradient.var()))
    assert low < variances[1] / variances[0] < high


@pytest.mark.parametrize("control_variate", [False, True])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_network_is_trained_through_it(n: int, control_variate: bool):
    g = torch.Generator().manual_seed(0)
    x, z, weight = torch.randn(3, 4, 2, generator=g, dtype=torch.float64)
    calls = []

    def loss(w: Tensor) -> Tensor:
        def scores(p: Tensor) -> tuple[Tensor, ...]:
            calls.append(p.shape)
            return (*(torch.cos(k * p) for k in range(1, n)), torch.tanh(p * w))

        return orthogonal(scores, x, z, 0.4, control_variate=control_variate)

    loss(weight)
    assert calls == [(2, 4, 2), (4, 2)][: 1 + control_variate]
    assert torch.autograd.gradcheck(loss, weight.clone().requires_grad_())


@pytest.mark.parametrize("control_variate", [False, True])
def test_second_order_is_the_residual_form(control_variate: bool):
    g = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 6, 3, generator=g, dtype=torch.float64)

    def operators(p: Tensor) -> tuple[Tensor, Diagonal]:
        return torch.sin(p), Diagonal(torch.cos(p))

    found = orthogonal(
        lambda p: (torch.sin(p), torch.cos(p)), x, z, 0.3, control_variate=control_variate
    )
    _, expected = objectives.joint(
        "residual", operators, x, z, 0.3, control_variate=control_variate
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_sigma_may_differ_by_sample_and_dimension(n: int):
    g = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 6, 3, generator=g, dtype=torch.float64)

    def scores(p: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.sin(p + k) for k in range(n))

    sigma = torch.rand(6, 3, generator=g, dtype=torch.float64) + 0.2
    for objective in (
        raw_moment,
        orthogonal,
        lambda *a: orthogonal(*a, control_variate=True),
    ):
        entries = [
            [objective(scores, x[i, j, None], z[i, j, None], float(sigma[i, j])) for j in range(3)]
            for i in range(6)
        ]
        expected = torch.stack([torch.stack(row).sum() for row in entries])
        torch.testing.assert_close(objective(scores, x, z, sigma), expected)
        rows = torch.stack([objective(scores, x[i], z[i], float(sigma[i, 0])) for i in range(6)])
        torch.testing.assert_close(objective(scores, x, z, sigma[:, :1]), rows)


def test_raw_moment_of_full_tensors_is_that_of_the_moments():
    g = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 5, 3, generator=g, dtype=torch.float64)
    tensors = tuple(torch.randn(5, *(3,) * k, generator=g, dtype=torch.float64) for k in (1, 2, 3))
    moment = posterior_moments(tensors, x + 0.4 * z, 0.4)[2]
    expected = (torch.einsum("za,zb,zc->zabc", x, x, x) - moment).square().sum((1, 2, 3))
    torch.testing.assert_close(raw_moment(lambda p: tensors, x, z, 0.4), expected)


Z = torch.zeros(2, 3, 2)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ((Z,), "order n = 2, 3 or 4, but had 1 scores"),
        ((Z,) * 5, "but had 5 scores"),
        (
            (Z, torch.zeros(2, 3, 2, 2)),
            r"outputs\[1\], which is s2, must have the shape \(2, 3, 2\)",
        ),
        ((Z, Z[0], Z), r"outputs\[1\], which is s2, .* had \(3, 2\)"),
    ],
)
def test_what_does_not_fit_is_named(outputs, message, unchecked):
    for call in (orthogonal_loss, orthogonal_control):
        with pytest.raises(ValueError, match=message):
            call(outputs, Z, 1.0)


def test_the_control_variate_of_order_three_needs_a_tangent():
    with pytest.raises(ValueError, match="tangent must be given for order 3"):
        orthogonal_control((Z, Z, Z), Z, 1.0)
