"""Posterior moments and cumulants against quadrature, Lemma 1's recursion and the normal law."""

from collections.abc import Callable
from itertools import permutations
from math import factorial
from string import ascii_lowercase
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, vmap

from ozaki.scores.moments import posterior_cumulants, posterior_moments
from tests.kit.strategies import generator, spd

quick = settings(max_examples=15, deadline=None, derandomize=True)
slower = settings(max_examples=6, deadline=None, derandomize=True)
HIGHEST = 6


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


class Mixture(NamedTuple):
    """A mixture of normals, the noise on it, and noisy points."""

    means: Tensor
    covariances: Tensor
    weights: Tensor
    sigma: Tensor  # one a dimension
    x: Tensor  # (n, D)

    def log_density(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """By hand, since nested derivatives of torch's own distributions take a minute."""
        noise = torch.diag(sigma**2) if isinstance(sigma, Tensor) else 0.0
        precision = torch.linalg.inv(self.covariances + noise)
        offset = self.weights.log() + 0.5 * torch.logdet(precision)
        u = x.unsqueeze(-2) - self.means
        return torch.logsumexp(
            offset - 0.5 * torch.einsum("...ki,kij,...kj->...k", u, precision, u), -1
        )

    def smoothed(self, x: Tensor) -> Tensor:
        return self.log_density(x, self.sigma)

    def posterior(self, grid: Tensor) -> Tensor:
        """Weights (n, grid) of the law of the clean point, given each noisy one."""
        residual = (self.x[:, None] - grid) / self.sigma
        return torch.softmax(self.log_density(grid) - 0.5 * residual.square().sum(-1), -1)


@st.composite
def mixtures(draw: st.DrawFn, dim: int) -> Mixture:
    g, modes = generator(draw(st.integers(0, 10_000))), draw(st.integers(1, 3))
    means = 1.5 * torch.tanh(normal(g, modes, dim))
    covariances = 0.4 * spd(g, modes, dim, condition=4.0)
    sigma = draw(st.floats(0.3, 1.2)) * torch.exp(0.2 * torch.tanh(normal(g, dim)))
    weights = torch.softmax(normal(g, modes), 0)
    return Mixture(means, covariances, weights, sigma, 1.5 * normal(g, 4, dim))


def scores(f: Callable[[Tensor], Tensor], n: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """The first n derivative tensors of a scalar function of one point: (D,), (D, D) and on."""
    chain = [grad(f)]
    for _ in range(n - 1):
        chain.append(jacfwd(chain[-1]))
    return lambda p: tuple(d(p) for d in chain)


def line(reach: float, step: float) -> Tensor:
    """A grid for the trapezoid rule, whose error on analytic functions is exp(−c/step)."""
    return torch.arange(-reach, reach + step, step, dtype=torch.float64)


def moments_by_quadrature(weights: Tensor, grid: Tensor, n: int, central: bool) -> list[Tensor]:
    """E[x^{⊗k}] for k = 1, …, n of each row of weights (n, grid) on points (grid, D)."""
    mean = weights @ grid
    found = []
    for row, m in zip(weights, mean, strict=True):
        u = grid - m if central else grid
        powers = [u.mT @ row]
        for k in range(2, n + 1):
            a = ascii_lowercase[:k]
            spec = "z," + ",".join("z" + i for i in a) + "->" + a
            powers.append(torch.einsum(spec, row, *[u] * k))
        found.append(powers)
    return [torch.stack(k) for k in zip(*found, strict=True)]


# float64, of sums of products of four factors
def close(found: Tensor, expected: Tensor, scale: float = 1e-7) -> None:
    size = 1 + float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=scale * size)


@pytest.mark.parametrize("central", [pytest.param(False, marks=pytest.mark.thorough), True])
@slower
@given(law=mixtures(1))
def test_moments_of_one_dimension_are_those_of_quadrature(law: Mixture, central: bool):
    grid = line(9.0, 0.01)[:, None]
    full = vmap(scores(law.smoothed, HIGHEST))(law.x)
    flat = tuple(s.reshape(law.x.shape) for s in full)
    expected = moments_by_quadrature(law.posterior(grid), grid, HIGHEST, central)
    for s in (full, flat):
        found = posterior_moments(s, law.x, float(law.sigma), central=central)
        for k in range(HIGHEST):
            assert found[k].shape == s[k].shape
            close(found[k].reshape(expected[k].shape), expected[k])


@pytest.mark.parametrize("central", [False, True])
@slower
@given(law=mixtures(2))
def test_full_moments_are_those_of_quadrature(law: Mixture, central: bool):
    axis = line(6.5, 0.06)
    grid = torch.cartesian_prod(axis, axis)
    found = posterior_moments(
        vmap(scores(law.smoothed, 5))(law.x), law.x, law.sigma, central=central
    )
    expected = moments_by_quadrature(law.posterior(grid), grid, 5, central)
    for a, b in zip(found, expected, strict=True):
        close(a, b)


@slower
@given(law=mixtures(2))
def test_cumulants_are_the_derivatives_of_the_posterior_generating_function(law: Mixture):
    axis = line(6.5, 0.1)
    grid = torch.cartesian_prod(axis, axis)
    found = posterior_cumulants(vmap(scores(law.smoothed, 4))(law.x), law.x, law.sigma)
    log_weights = law.posterior(grid).log()

    def expected(t: Tensor) -> tuple[Tensor, ...]:
        return scores(lambda u: torch.logsumexp(t + grid @ u, 0), 4)(torch.zeros_like(law.sigma))

    for a, b in zip(found, vmap(expected)(log_weights), strict=True):
        close(a, b)


@pytest.mark.parametrize("dim", [1, 2])
def test_moments_obey_the_recursion_of_lemma_1(dim: int):
    @slower
    @given(law=mixtures(dim))
    def check(law: Mixture):
        exact, variance = scores(law.smoothed, 4), law.sigma**2

        def moments(p: Tensor) -> tuple[Tensor, ...]:
            return posterior_moments(exact(p), p, law.sigma)

        m, slopes = vmap(moments)(law.x), vmap(jacrev(moments))(law.x)
        tweedie = vmap(exact)(law.x)[0] + law.x / variance
        for n in range(3):  # E[x^{n+1}] = σ² ∂E[xⁿ]/∂x̃ + σ² E[xⁿ] ⊗ (s1 + x̃/σ²)
            product = torch.einsum("z...,zi->z...i", m[n], tweedie)
            close(m[n + 1], variance * (slopes[n] + product))

    check()


def symmetric(g: torch.Generator, n: int, k: int, dim: int) -> Tensor:
    tensor = normal(g, n, *(dim,) * k)
    orders = permutations(range(1, k + 1))
    return torch.stack([tensor.permute(0, *o) for o in orders]).sum(0) / factorial(k)


def diagonal_of(tensor: Tensor) -> Tensor:
    """(n, D, …, D) → (n, D), the entries [i, …, i]."""
    index = torch.arange(tensor.shape[-1])
    return tensor[(slice(None), *[index] * (tensor.ndim - 1))]


@pytest.mark.parametrize("central", [False, True])
@quick
@given(
    seed=st.integers(0, 999),
    n=st.integers(1, 5),
    dim=st.integers(1, 3),
    noise=st.sampled_from([(), (1,), (3,), (4, 1), (4, 3)]),
)
def test_diagonal_form_is_the_diagonal_of_the_full(seed, n, dim, noise, central):
    g = generator(seed)
    x = normal(g, 4, dim)
    full = tuple(symmetric(g, 4, k, dim) for k in range(1, n + 1))
    sigma = torch.rand(tuple(dim if s == 3 else s for s in noise), generator=g).double() + 0.3
    flat = tuple(diagonal_of(s) for s in full)
    for function in (posterior_cumulants, posterior_moments):
        options = {"central": central} if function is posterior_moments else {}
        whole = function(full, x, sigma, **options)
        for tensor, entries in zip(whole, function(flat, x, sigma, **options), strict=True):
            torch.testing.assert_close(diagonal_of(tensor), entries)
            for i in range(1, tensor.ndim - 1):
                torch.testing.assert_close(tensor, tensor.transpose(i, i + 1))
        # each sample and each dimension by itself, under a number
        spread = sigma.expand(x.shape)
        one = function(tuple(s[1, :1] for s in flat), x[1, :1], float(spread[1, 0]), **options)
        for entries, entry in zip(function(flat, x, sigma, **options), one, strict=True):
            torch.testing.assert_close(entries[1, :1], entry)


@quick
@given(seed=st.integers(0, 999), dim=st.integers(1, 3), noise=st.floats(0.1, 3.0))
def test_a_normal_law_has_a_normal_posterior(seed: int, dim: int, noise: float):
    g = generator(seed)
    mean, covariance, x = normal(g, dim), spd(g, dim), normal(g, dim)
    precision = torch.linalg.inv(covariance + noise**2 * torch.eye(dim, dtype=torch.float64))
    s1, s2 = -precision @ (x - mean), -precision
    higher = [torch.zeros((dim,) * k, dtype=torch.float64) for k in (3, 4)]
    centre, spread, *rest = posterior_cumulants((s1, s2, *higher), x, noise)
    gain = covariance @ precision
    torch.testing.assert_close(centre, mean + gain @ (x - mean))
    torch.testing.assert_close(spread, covariance - gain @ covariance)
    assert not any(bool(k.any()) for k in rest)
    _, second, third, fourth = posterior_moments((s1, s2, *higher), x, noise, central=True)
    torch.testing.assert_close(second, spread)
    assert not bool(third.any())
    pairings = [torch.einsum(f"{a},{b}->abcd", spread, spread) for a, b in PAIRINGS]
    torch.testing.assert_close(fourth, sum(pairings))


PAIRINGS = [("ab", "cd"), ("ac", "bd"), ("ad", "bc")]


def test_central_moments_do_not_cancel_far_from_zero():
    x, sigma = torch.full((1, 1), 1e4), 0.1  # float32, N(1e4, 1) under noise of size 0.1
    found = posterior_moments((0 * x, 0 * x - 1 / 1.01), x, sigma, central=True)
    torch.testing.assert_close(found[1], torch.full((1, 1), 0.01 / 1.01))
    raw = posterior_moments((0 * x, 0 * x - 1 / 1.01), x, sigma)
    # float32 resolves 1e8 to 8: the difference of squares is lost in that
    assert float((raw[1] - raw[0] ** 2 - found[1]).abs()) > 1e-3


@pytest.mark.parametrize("form", ["diagonal", "full"])
@pytest.mark.parametrize("size", [1e-6, 1e5])
def test_units_change_no_moment_beyond_its_power(size: float, form: str):
    shapes = [(1, *(1,) * (k if form == "full" else 1)) for k in range(1, 5)]
    values = zip((-1.0, -0.5, 0.3, 0.2), shapes, strict=True)
    scores = [torch.full(s, v / size**k) for k, (v, s) in enumerate(values, 1)]
    for sigma in (torch.tensor([size]), torch.tensor(size), size):
        found = posterior_moments(scores, torch.full((1, 1), 2 * size), sigma, central=True)
        assert [float(m) / size**k for k, m in enumerate(found, 1)] == pytest.approx(
            [0.0, 0.5, 0.3, 0.95]  # 0.2 + 3 · 0.5²
        )


X = torch.zeros(3, 2)
FULL = (X, torch.zeros(3, 2, 2), torch.zeros(3, 2, 2, 2))


@pytest.mark.parametrize("function", [posterior_cumulants, posterior_moments])
@pytest.mark.parametrize(
    ("given", "sigma", "message"),
    [
        ((), 1.0, "scores must be a tuple"),
        (X, 1.0, r"scores must be a tuple .* tensor of shape \(3, 2\)"),
        ((torch.zeros(2, 2),), 1.0, r"scores\[0\], which is s1, must have shape \(3, 2\)"),
        ((X, torch.zeros(3, 3)), 1.0, r"scores\[1\], which is s2.* the diagonal form"),
        ((X, torch.zeros(3, 2, 3)), 1.0, r"scores\[1\].*\(3, 2, 2\).* the full form"),
        ((X, X, FULL[2]), 1.0, r"scores\[2\], which is s3, must have shape \(3, 2\)"),
        ((*FULL[:2], X), 1.0, r"scores\[2\], which is s3, must have shape \(3, 2, 2, 2\)"),
        (FULL, 0.0, "sigma must be a finite number above 0"),
        (FULL, torch.ones(3), r"sigma must .* broadcast against x of shape \(3, 2\)"),
        ((X, X), torch.ones(4, 3, 2), "sigma must"),
    ],
)
def test_what_does_not_fit_is_named(function, given, sigma, message, unchecked):
    with pytest.raises(ValueError, match=message):
        function(given, X, sigma)
