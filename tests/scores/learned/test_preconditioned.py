"""Preconditioning and the positivity of the posterior variance, against closed forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ozaki.linalg import Diagonal, LowRank
from ozaki.scores.learned import preconditioned
from ozaki.scores.learned.mlp import ResidualMLP, Trunks
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork

quick = settings(max_examples=20, deadline=None, derandomize=True)


class Constant(nn.Module):
    """F = 0 and G = g."""

    def __init__(self, g: float):
        super().__init__()
        self.g = g

    def forward(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(u), torch.full_like(u, self.g)


def wrap(network: nn.Module, sigma: float, order: int = 2, dim: int = 3, **kw) -> ScoreNetwork:
    return ScoreNetwork(network, torch.Size([dim]), sigma, Heads(order), **kw)


def both(net: ScoreNetwork, x: Tensor) -> tuple[Tensor, Tensor]:
    """s1 and diag s2."""
    out = net(x)
    assert isinstance(out.s2, Diagonal)
    return out.s1, out.s2.diagonal()


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
    net = wrap(Trunks(3, width=8, depth=1).double(), sigma, centre=centre, spread=spread)
    s1, s2 = both(net, x)
    variance = sigma**2 + spread**2
    torch.testing.assert_close(s1, -(x - centre) / variance)
    torch.testing.assert_close(s2, torch.full_like(x, -1 / variance))


@quick
@given(sigma=st.floats(1e-3, 50), g=st.floats(-1e3, 1e3))
def test_posterior_variance_is_never_negative(sigma: float, g: float):
    x = torch.zeros(1, 3, dtype=torch.float64)
    s2 = both(wrap(Constant(g), sigma), x)[1]
    assert bool((1 + sigma**2 * s2 >= 0).all())
    assert bool(torch.isfinite(s2).all())


def test_posterior_variance_is_continuous_with_its_slope_and_positive():
    sigma = 0.7
    net = wrap(Constant(0.0), sigma)
    # t = −½ ± ε, from t = σ²(k₀ + c² g)
    c2 = 1 / (sigma**2 + 1)
    middle = (-0.5 / sigma**2 - net._start(sigma, c2)) / c2
    g = middle + torch.tensor([-4e-4, -2e-4, 0.0, 2e-4, 4e-4], dtype=torch.float64)

    class Given(nn.Module):
        def forward(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros_like(u), g.unsqueeze(-1)

    points = torch.zeros(5, 1, dtype=torch.float64)
    s2 = both(wrap(Given(), sigma, dim=1), points)[1].squeeze(-1)
    slopes = s2.diff()
    # the points are 2e-4 apart: what a second derivative adds over them
    torch.testing.assert_close(slopes, slopes[:1].expand(4), rtol=1e-3, atol=0.0)
    steep = both(wrap(Constant(-20.0), sigma), torch.zeros(1, 3, dtype=torch.float64))[1]
    assert bool((1 + sigma**2 * steep > 0).all())


def test_small_sigma_does_not_cancel_in_float32():
    sigma, g = 1e-3, -7.0
    low = both(wrap(Constant(g), sigma), torch.zeros(1, 3))[1]
    high = both(wrap(Constant(g), sigma), torch.zeros(1, 3, dtype=torch.float64))[1]
    # eight roundings of float32
    torch.testing.assert_close(low.double(), high, rtol=1e-6, atol=0.0)


def test_gradients_are_finite_in_both_branches():
    class Given(nn.Module):
        def forward(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            return u, 1e3 * u

    x = torch.tensor([[-3.0, 0.0, 3.0]], requires_grad=True)
    s2 = both(wrap(Given(), 2.0), x)[1]
    (gradient,) = torch.autograd.grad(s2.sum(), x)
    assert bool(torch.isfinite(gradient).all())


def randomised(module: nn.Module) -> nn.Module:
    """Weights with nothing at zero."""
    g = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=g)
    return module


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rank", [0, 4])
def test_batches_and_event_shapes(shared: bool, rank: int):
    trunk = randomised(Trunks(6, rank=rank, width=16, shared=shared))
    net = ScoreNetwork(trunk, torch.Size([1, 2, 3]), 0.5, Heads(2, rank))
    net.check(torch.zeros(1))
    x = torch.randn(4, 5, 6)
    out = net(x)
    assert out.s1.shape == out.s2.diagonal().shape == x.shape
    one = net(x[1, 2])
    torch.testing.assert_close(one.s1, out.s1[1, 2])
    torch.testing.assert_close(one.s2.dense(), out.s2.dense()[1, 2])
    assert net(x[:0]).s1.shape == (0, 5, 6)


def test_one_head_has_no_curvature():
    out = wrap(Trunks(3, order=1, width=8, depth=1), 0.5, order=1)(torch.randn(2, 3))
    assert out.s1.shape == (2, 3)
    assert out.s2 is None and out.higher == ()


@pytest.mark.parametrize("shared", [False, True])
def test_orders_above_two_are_diagonals_in_their_own_units(shared: bool):
    trunk = randomised(Trunks(3, order=4, width=8, depth=1, shared=shared)).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    wide = wrap(trunk, 0.5, order=4)(x).higher
    assert [h.shape for h in wide] == [x.shape] * 2
    # all lengths in units 10 times as fine: s3 and s4 shrink by 10³ and 10⁴
    fine = wrap(trunk, 5.0, order=4, spread=10.0)
    for n, (a, b) in enumerate(zip(wide, fine(10 * x, 5.0).higher, strict=True)):
        torch.testing.assert_close(a, 10 ** (n + 3) * b)


@pytest.mark.parametrize("signed", [True, False])
def test_low_rank_covariance_is_positive_where_asked_for(signed: bool):
    trunk = randomised(Trunks(5, rank=3, width=8, depth=1)).double()
    net = ScoreNetwork(trunk, torch.Size([5]), 3.0, Heads(2, 3, signed)).double()
    s2 = net(10 * torch.randn(200, 5, dtype=torch.float64)).s2
    assert isinstance(s2, LowRank)
    least = torch.linalg.eigvalsh(s2.scale(3.0).shift(1.0).dense()).min()
    assert (least < 0) == signed


@pytest.mark.parametrize("shared", [False, True])
def test_parts_that_are_not_asked_for_change_nothing(shared: bool):
    net = wrap(randomised(Trunks(3, rank=2, width=8, depth=1, shared=shared)), 0.5)
    net.heads = Heads(2, 2, False)
    x = torch.randn(4, 3)
    out = net(x)
    assert net(x, None, (True, False)).s2 is None
    torch.testing.assert_close(net.first(x), out.s1, rtol=0, atol=0)  # the very same
    torch.testing.assert_close(net(x, None, (False, True)).s2.dense(), out.s2.dense())


@pytest.mark.parametrize("rank", [0, 2])
def test_one_network_serves_many_noise_levels(rank: int):
    trunk = randomised(Trunks(3, rank=rank, width=8, depth=1, conditional=True)).double()
    net = ScoreNetwork(trunk, torch.Size([3]), (0.01, 20.0), Heads(2, rank)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.1, 0.5, 1.0, 2.0, 20.0], dtype=torch.float64)
    together = net(torch.stack((x, -x)), sigma.unsqueeze(-1))
    for i, s in enumerate(sigma.tolist()):
        alone = net.at(s)(x[i])
        torch.testing.assert_close(together.s1[0, i], alone.s1)
        torch.testing.assert_close(together.s2.dense()[0, i], alone.s2.dense())


@pytest.mark.parametrize("conditional", [False, True])
def test_noise_level_reaches_a_trunk_of_many(conditional: bool):
    mlp = randomised(ResidualMLP(2, 8, 1, conditional=conditional))
    u = torch.randn(3, 2)
    low, high = mlp(u, torch.full((3,), -1.0)), mlp(u, torch.full((3,), 1.0))
    assert torch.equal(low, high) != conditional


@pytest.mark.parametrize("shared", [False, True])
def test_second_order_never_moves_the_first(shared: bool):
    trunk = randomised(Trunks(2, order=3, rank=1, width=8, depth=1, shared=shared))
    _, *rest = trunk(torch.randn(4, 2), torch.zeros(4))
    sum(r.square().sum() for r in rest).backward()
    assert all(p.grad is None for p in trunk.first.parameters())  # pyright: ignore
    assert all(p.grad is not None for p in trunk.rest[0].parameters() if p.ndim > 1)  # pyright: ignore


@pytest.mark.parametrize("conditional", [False, True])
def test_warm_start_takes_the_features_and_leaves_the_heads(conditional: bool):
    trunk = randomised(Trunks(2, order=3, rank=1, width=8, depth=2, conditional=conditional))
    heads = [{k: v.clone() for k, v in t.head.state_dict().items()} for t in trunk.rest]
    u, noise = torch.randn(4, 2), torch.full((4,), -0.5)
    trunk.warm_start()
    for part, head in zip(trunk.rest, heads, strict=True):
        assert torch.equal(part.features(u, noise), trunk.first.features(u, noise))
        assert all(torch.equal(v, head[k]) for k, v in part.head.state_dict().items())
        assert part.stem.weight is not trunk.first.stem.weight


class Wrong(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, u: Tensor, noise: Tensor):
        return self.output(u)


@pytest.mark.parametrize(
    ("order", "output", "message"),
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
def test_a_wrong_trunk_is_named(order: int, output, message: str):
    net = wrap(Wrong(output), 0.5, order=order)
    with pytest.raises(ValueError, match=message):
        net.check(torch.zeros(1))


@pytest.mark.parametrize("sigma", [0.05, 0.7])
def test_unsigned_columns_are_in_standard_deviations_of_what_the_diagonal_leaves(sigma: float):
    b = torch.randn(4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    class Fixed(nn.Module):
        def forward(self, u: Tensor, noise: Tensor):
            return torch.zeros_like(u), torch.full_like(u, -1.0), b

    x = torch.zeros(4, 3, dtype=torch.float64)
    left = both(wrap(Constant(-1.0), sigma), x)[1]  # diag s2 without columns
    net = ScoreNetwork(Fixed(), torch.Size([3]), sigma, Heads(2, 2, signed=False))
    root = (1 + sigma**2 * left).sqrt().unsqueeze(-1) * b
    expected = torch.diag_embed(1 + sigma**2 * left) + root @ root.mT
    found = torch.eye(3) + sigma**2 * net(x).s2.dense()
    torch.testing.assert_close(found, expected.to(found))


class Mixed(nn.Module):
    """Three outputs in which every point has a say of its own, the third of columns."""

    def __init__(self):
        super().__init__()
        self.rows: list[int] = []

    def forward(self, u: Tensor, noise: Tensor):
        self.rows.append(len(u))
        scale = noise.view(-1, *(1,) * (u.ndim - 1))
        return u.sin() * scale, u.cos(), torch.stack([u, u.square()], -1)


def test_a_large_batch_is_seen_some_points_at_a_time_and_gives_the_same(monkeypatch):
    trunk = Mixed()
    net = ScoreNetwork(trunk, torch.Size([1, 2, 3]), (0.1, 1.0), Heads(2, 2))
    x = torch.randn(5, 2, 6, generator=torch.Generator().manual_seed(0))
    sigma = torch.linspace(0.1, 1.0, 10).view(5, 2, 1)
    with torch.no_grad():
        whole = net(x, sigma)
        monkeypatch.setattr(preconditioned, "BLOCK", 20)
        trunk.rows.clear()
        parts = net(x, sigma)
    assert trunk.rows == [3, 3, 3, 1]
    assert torch.equal(whole.s1, parts.s1)
    assert torch.equal(whole.s2.dense(), parts.s2.dense())
    trunk.rows.clear()
    net(x, sigma)  # recorded for a gradient, a step's batch is whole
    assert trunk.rows == [10]
