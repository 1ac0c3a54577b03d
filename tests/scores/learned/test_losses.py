"""How two states of a network are compared, on held-out points."""

import pytest
import torch

from ozaki.linalg import Diagonal
from ozaki.scores.learned import losses, objectives
from ozaki.scores.learned.losses import LossPlan, held_out
from ozaki.scores.learned.mlp import Trunks
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork
from tests.kit.tolerances import ROUNDING


def network(rank: int, sigma) -> ScoreNetwork:
    trunk = Trunks(6, 2, rank, width=16, conditional=isinstance(sigma, tuple))
    for part in (trunk.first, *trunk.rest):
        torch.nn.init.normal_(part.head.values.weight, std=0.1)
    return ScoreNetwork(trunk, torch.Size([6]), sigma, Heads(2, rank, signed=False))


def points() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, z = torch.randn(2, 80, 6, generator=generator)
    return x, z


@pytest.mark.parametrize("sigma", [0.3, (0.1, 1.0)], ids=str)
@pytest.mark.parametrize(
    "terms", [(), (("ocm", 1.0),), (("likelihood", 1.0),), (("margins", 1.0),)], ids=str
)
def test_blocks_of_points_give_what_all_at_once_give(sigma, terms, monkeypatch):
    torch.manual_seed(0)
    net, (x, z) = network(2, sigma), points()
    level = torch.logspace(-1, 0, 8).repeat(10).unsqueeze(1) if isinstance(sigma, tuple) else sigma
    whole = held_out(net, LossPlan(terms), x, z, level)
    monkeypatch.setattr(losses, "BLOCK", 24 * 6)
    parts = held_out(net, LossPlan(terms), x, z, level)
    for one, other in zip(whole.losses, parts.losses, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(whole.sizes.log_size, parts.sizes.log_size)
    assert parts.calibration == pytest.approx(whole.calibration, nan_ok=True)


@pytest.mark.parametrize("name", ["residual", "likelihood", "margins"])
def test_a_network_trained_by_likelihood_is_judged_by_it(name: str):
    torch.manual_seed(0)
    net, (x, z) = network(2, 0.3), points()
    found = held_out(net, LossPlan(((name, 1.0),), reduce_below=0.0), x, z, 0.3)
    s1, s2, _ = net(torch.stack([x + 0.3 * z, x - 0.3 * z]))
    noise = torch.stack([z, -z])
    if name != "residual":
        expected = getattr(objectives, f"{name}_of")(s1, s2, noise, 0.3)
        assert float(found.scale[0, 1]) == 6
    else:
        expected = objectives.second_order("residual", s1, s2, noise, 0.3)
        assert float(found.scale[0, 1]) == pytest.approx(float(found.sizes.log_size[0, 1].exp()))
    torch.testing.assert_close(found.losses[1], expected.mean(0).detach())
    # twice as far off in both losses is as far as it says, in units of their sizes
    worse = found._replace(losses=tuple(loss + 1 for loss in found.losses))
    change, _ = worse.change(found, (1.0, 1.0))
    assert change == pytest.approx(float((1 / found.scale).sum()), rel=ROUNDING[torch.float32])


@pytest.mark.usefixtures("unchecked")
def test_a_name_that_no_loss_is_formed_for_is_refused():
    """It would be trained on another loss, and nobody would know."""
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="family must be 'residual' or 'd2sm', but was 'toy'"):
        objectives.second_order("toy", x, Diagonal(x - 1), x, 1.0)
