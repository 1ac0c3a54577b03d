"""The U-Net: shapes, a normal in closed form, the disk, and what it refuses."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import ozaki
from ozaki.cli import app
from ozaki.scores.analytic import GaussianScore
from ozaki.scores.learned import estimator_folder, phase, unet
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork
from ozaki.scores.learned.trainer import DSMTrainer
from ozaki.scores.learned.unet import UNet, channels_of
from tests.kit.tolerances import IMAGE_SHARE

UNSIGNED = {"curvature": "low_rank", "rank": 3, "signed": False, "objective": "likelihood"}


@pytest.fixture(autouse=True)
def few_held_out_pairs(monkeypatch):
    monkeypatch.setattr(phase, "HELD_OUT_PAIRS", 64)


def tiny(sigma=0.3, **options) -> DSMTrainer:
    small = {"network": "unet", "width": 8, "max_steps": 4, "batch_size": 8, "seed": 0}
    return DSMTrainer(sigma, **{**small, **options})


def field(side: int) -> GaussianScore:
    """Smooth images about grey: a normal whose covariance falls with the pixels' distance."""
    place = torch.arange(side, dtype=torch.float64)
    near = torch.exp(-(place[:, None] - place).square() / 8)
    covariance = 0.25 * torch.kron(near, near) + 1e-3 * torch.eye(side**2, dtype=torch.float64)
    return GaussianScore(torch.full((side**2,), 0.5, dtype=torch.float64), covariance)


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (3, 8, 12), (1, 5, 7), (1, 1, 2)], ids=str)
@pytest.mark.parametrize(("order", "rank"), [(1, 0), (2, 0), (2, 3), (4, 0)])
def test_outputs_are_those_that_the_heads_ask_for(shape, order: int, rank: int, generator):
    net = UNet(channels_of(torch.Size(shape)), order, rank, width=8)
    u = torch.randn(3, *shape, generator=generator)
    found = net(u, torch.zeros(3))
    wanted = Heads(order, rank).shapes(tuple(u.shape))
    assert [tuple(f.shape) for f in (found if isinstance(found, tuple) else (found,))] == wanted


@pytest.mark.parametrize("rank", [0, 3])
def test_it_begins_at_the_isotropic_normal(rank: int, generator):
    heads = Heads(2, rank)
    net = ScoreNetwork(UNet(1, 2, rank, width=8), torch.Size([8, 8]), (0.1, 1.0), heads, 0.5, 0.3)
    x = torch.randn(4, 64, generator=generator)
    out = net(x, 0.4)
    torch.testing.assert_close(out.s1, (0.5 - x) / (0.3**2 + 0.4**2))
    if not rank:
        truth = torch.full_like(x, -1 / (0.3**2 + 0.4**2))
        torch.testing.assert_close(out.s2.diagonal(), truth)
    else:  # columns that are small, not zero, and not alike
        columns = net.raw_outputs(x, 0.4)[2][0].detach()
        assert 0.01 < float(columns.square().sum(-1).mean()) < 1
        assert int(torch.linalg.matrix_rank(columns)) == rank


def test_the_noise_and_each_pixel_bear_on_the_outputs(generator):
    net = UNet(1, 2, 2, width=8)
    for head in (net.first, *net.rest):
        torch.nn.init.normal_(head.weight, generator=generator)
    u = torch.randn(2, 1, 8, 8, generator=generator)
    noise = torch.full((2,), math.log(0.3) / 4)
    moved = u.clone()
    moved[0, 0, 2, 3] += 0.1
    for before, after, louder in zip(
        net(u, noise), net(moved, noise), net(u, noise / 2), strict=True
    ):
        # what moves, moves by more than a rounding of float32, here and below
        assert not torch.allclose(before[0], after[0], atol=1e-5)
        torch.testing.assert_close(before[1], after[1])
        assert not torch.allclose(before, louder, atol=1e-5)


@pytest.mark.slow
def test_a_field_of_smooth_images_is_learned(generator):
    law = field(8)
    rows = law.sample(4000, generator).float().reshape(-1, 1, 8, 8)
    x = law.sample(200, generator) + 0.3 * torch.randn(200, 64, generator=generator)
    truth = law.smooth(0.3).expand(x, "dense")

    def error(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().sum() / b.expand_as(a).square().sum())

    options = {**UNSIGNED, "rank": 16, "width": 16, "max_steps": 600, "batch_size": 32}
    estimator = tiny(learning_rate=6e-3, **options).fit(rows)
    found = estimator.expand(x.float(), "low_rank")
    alike = -(x - 0.5) / (0.25 + 0.3**2)
    assert error(found.gradient.double(), truth.gradient) < IMAGE_SHARE
    # a network that learned each pixel alone would be told
    assert error(alike, truth.gradient) > 0.5
    exact = 0.09 * (1 + 0.09 * truth.curvature.diagonal().mean())
    posterior = ozaki.denoise(estimator, x.float().reshape(-1, 1, 8, 8))
    # guards the size alone: what the network makes of s2 is loose at so few steps
    assert float(posterior.variance.mean()) == pytest.approx(float(exact), rel=0.5)


@pytest.mark.parametrize("sigma", [0.3, (0.1, 1.0)], ids=str)
@pytest.mark.parametrize("form", [{}, UNSIGNED, {"objective": "dsm", "curvature": None}], ids=str)
def test_training_saving_and_loading(sigma, form: dict, tmp_path, generator):
    rows = torch.rand(60, 6, 8, generator=generator)
    estimator = tiny(sigma, **form).fit(rows)
    before = torch.random.get_rng_state()
    loaded = ScoreEstimator.load(estimator.save(tmp_path / "e"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(loaded.network.network, UNet)
    one, other = (e.at(0.2) if isinstance(sigma, tuple) else e for e in (estimator, loaded))
    x = rows[:5].flatten(1)
    kind = one.default_curvature
    found, again = one.expand(x, kind), other.expand(x, kind)
    assert torch.equal(found.gradient, again.gradient)
    if kind is not None:
        assert torch.equal(found.curvature.diagonal(), again.curvature.diagonal())
        assert ozaki.denoise(other, rows[:5]).variance.shape == (5, 6, 8)


def test_the_heads_are_trained_again_on_the_s1_that_is_kept(generator):
    rows = torch.rand(60, 1, 8, 8, generator=generator)
    once, twice = (tiny(joint=joint, **UNSIGNED).fit(rows) for joint in (True, False))
    x = rows[:5].flatten(1)
    one, two = (e.expand(x, "low_rank") for e in (once, twice))
    assert torch.equal(one.gradient, two.gradient)
    assert not torch.equal(one.curvature.diagonal(), two.curvature.diagonal())
    assert not torch.equal(one.curvature.tensors[1], two.curvature.tensors[1])


def test_it_sees_where_a_pixel_lies(generator):
    net = UNet(1, 1, width=8)
    torch.nn.init.normal_(net.first.weight, generator=generator)
    found = net(torch.ones(1, 1, 32, 32), torch.zeros(1))[0, 0]
    left, right = found[12:20, 8:16], found[12:20, 16:24]  # far from the border's zeros
    assert float((left - right).detach().std()) > 1e-3


def test_the_same_seed_gives_the_same_network(generator):
    rows = torch.rand(40, 1, 4, 4, generator=generator)
    one, other = (tiny().fit(rows).network.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_it_cannot_be_is_said(monkeypatch, tmp_path, generator):
    with pytest.raises(ValueError, match=r"network='unet' needs images.*points had shape \(4,\)"):
        tiny().fit(torch.randn(40, 4, generator=generator))
    images = torch.rand(40, 4, 4, generator=generator)
    with pytest.raises(ValueError, match="width of a U-Net must be a multiple of 8, but was 12"):
        tiny(width=12).fit(images)
    folder = tiny().fit(images).save(tmp_path / "e")
    path = folder / estimator_folder.SETTINGS
    settings = json.loads(path.read_text())
    settings["architecture"]["preset"] = "mlp"
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"network must be one of .'unet', 'unet_large'."):
        ScoreEstimator.load(folder)
    settings["network"] = "Elsewhere"
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="KeyError: 'Elsewhere'"):
        ScoreEstimator.load(folder)

    class Missing(SimpleNamespace):
        def __getattr__(self, name: str):
            raise ImportError("no module")

    monkeypatch.setattr(unet, "diffusers", Missing())
    with pytest.raises(ImportError, match=r"needs diffusers.*pip install 'ozaki\[images\]'"):
        tiny().fit(images)


def test_the_command_trains_one(tmp_path, generator):
    images, out = tmp_path / "images.npy", tmp_path / "estimator"
    np.save(images, torch.rand(40, 4, 4, generator=generator).numpy())
    options = ["--network", "unet", "--width", "8", "--max-steps", "3", "--batch-size", "8"]
    result = CliRunner().invoke(app, ["train", str(images), "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    loaded = ScoreEstimator.load(out)
    assert isinstance(loaded.network.network, UNet) and loaded.event_shape == (4, 4)
    result = CliRunner().invoke(
        app, ["train", str(images), "--out", str(tmp_path / "b"), "--network", "cnn"]
    )
    assert result.exit_code == 2 and "network must be" in result.output
