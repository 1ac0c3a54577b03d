"""Preconditioning and the positivity of the posterior variance, against closed forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ozaki.scores.networks import ResidualMLP, ScoreNetwork, TwoHeads, default_network

quick = settings(max_examples=20, deadline=None, derandomize=True)


class Constant(nn.Module):
    """F = 0 and G = g."""

    def __init__(self, g: float):
        super().__init__()
        self.g = g

    def forward(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(u), torch.full_like(u, self.g)


def wrap(network: nn.Module, sigma: float, heads: int = 2, dim: int = 3, **kw) -> ScoreNetwork:
    return ScoreNetwork(network, torch.Size([dim]), sigma, heads, **kw)


@quick
@given(
    sigma=st.floats(1e-3, 50),
    spread=st.floats(0.1, 10),
    centre=st.floats(-5, 5),
    seed=st.integers(0, 99),
)
def test_zero_outputs_are_the_isotropic_normal(
    sigma: float, spread: float, centre: float, seed: int
):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    net = wrap(default_network(3, 2, 8, 1).double(), sigma, centre=centre, spread=spread)
    s1, s2 = net(x)
    variance = sigma**2 + spread**2
    torch.testing.assert_close(s1, -(x - centre) / variance)
    torch.testing.assert_close(s2, torch.full_like(x, -1 / variance))


@quick
@given(sigma=st.floats(1e-3, 50), g=st.floats(-1e3, 1e3))
def test_posterior_variance_is_never_negative(sigma: float, g: float):
    x = torch.zeros(1, 3, dtype=torch.float64)
    s2 = wrap(Constant(g), sigma)(x)[1]
    assert bool((1 + sigma**2 * s2 >= 0).all())
    assert bool(torch.isfinite(s2).all())


def test_posterior_variance_is_continuous_with_its_slope_and_positive():
    sigma = 0.7
    net = wrap(Constant(0.0), sigma)
    # t = −½ ± ε, from t = σ²(k₀ + c² g)
    middle = (-0.5 / sigma**2 - net._k0) / net._c2
    g = middle + torch.tensor([-4e-4, -2e-4, 0.0, 2e-4, 4e-4], dtype=torch.float64)

    class Given(nn.Module):
        def forward(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros_like(u), g.unsqueeze(-1)

    s2 = wrap(Given(), sigma, dim=1)(torch.zeros(5, 1, dtype=torch.float64))[1].squeeze(-1)
    slopes = s2.diff()
    torch.testing.assert_close(slopes, slopes[:1].expand(4), rtol=1e-3, atol=0.0)
    steep = wrap(Constant(-20.0), sigma)(torch.zeros(1, 3, dtype=torch.float64))[1]
    assert bool((1 + sigma**2 * steep > 0).all())


def test_small_sigma_does_not_cancel_in_float32():
    sigma, g = 1e-3, -7.0
    low = wrap(Constant(g), sigma)(torch.zeros(1, 3))[1]
    high = wrap(Constant(g), sigma)(torch.zeros(1, 3, dtype=torch.float64))[1]
    torch.testing.assert_close(low.double(), high, rtol=1e-6, atol=0.0)


def test_gradients_are_finite_in_both_branches():
    class Given(nn.Module):
        def forward(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            return u, 1e3 * u

    x = torch.tensor([[-3.0, 0.0, 3.0]], requires_grad=True)
    s2 = wrap(Given(), 2.0)(x)[1]
    (gradient,) = torch.autograd.grad(s2.sum(), x)
    assert bool(torch.isfinite(gradient).all())


def test_batches_and_event_shapes():
    net = ScoreNetwork(default_network(6, 2, 16, 2), torch.Size([1, 2, 3]), 0.5, 2)
    torch.nn.init.normal_(net.network.first.head.weight)  # pyright: ignore
    x = torch.randn(4, 5, 6)
    s1, s2 = net(x)
    assert s1.shape == s2.shape == x.shape
    torch.testing.assert_close(net(x[1, 2])[0], s1[1, 2])
    assert net(x[:0])[0].shape == (0, 5, 6)


def test_one_head_has_no_curvature():
    s1, s2 = wrap(default_network(3, 1, 8, 1), 0.5, heads=1)(torch.randn(2, 3))
    assert s1.shape == (2, 3)
    assert s2 is None


def test_noise_level_reaches_the_trunk():
    mlp = ResidualMLP(2, 8, 1)
    torch.nn.init.normal_(mlp.head.weight)
    u = torch.randn(3, 2)
    low, high = mlp(u, torch.full((3,), -1.0)), mlp(u, torch.full((3,), 1.0))
    assert not torch.allclose(low, high)


def test_heads_do_not_share_weights():
    net = default_network(2, 2, 8, 1)
    assert isinstance(net, TwoHeads)
    mine = {p.data_ptr() for p in net.first.parameters()}
    assert mine.isdisjoint(p.data_ptr() for p in net.second.parameters())


class Wrong(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, u: Tensor, noise: Tensor):
        return self.output(u)


@pytest.mark.parametrize(
    ("heads", "output", "message"),
    [
        (2, lambda u: u, "a pair of tensors"),
        (2, lambda u: (u, u[:, :1]), r"\(2, 3\), \(2, 1\)"),
        (2, lambda u: (u, u, u), "a pair of tensors"),
        (1, lambda u: (u, u), "one tensor"),
        (1, lambda u: (u,), "one tensor"),
        (1, lambda u: u.sum(), "one tensor"),
        (1, lambda u: None, "NoneType"),
        (1, lambda u: u @ torch.zeros(7, 3), "raised"),
    ],
)
def test_a_wrong_trunk_is_named(heads: int, output, message: str):
    net = wrap(Wrong(output), 0.5, heads=heads)
    with pytest.raises(ValueError, match=message):
        net.check(torch.zeros(1))
