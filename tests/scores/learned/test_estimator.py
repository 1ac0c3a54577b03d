"""The estimator in the data's units, on disk, and against the Jacobian of its own s1."""

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ozaki.linalg import Dense, Diagonal
from ozaki.scores.analytic import GaussianScore
from ozaki.scores.learned import estimator_folder
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.mlp import Trunks
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork
from ozaki.scores.learned.standardisation import Standardisation
from tests.kit.tolerances import rounding

SIGMA = 0.4
ARCHITECTURE = {"dim": 3, "order": 2, "rank": 0, "width": 8, "depth": 1}


def make(
    *,
    order: int = 2,
    rank: int = 0,
    dtype: torch.dtype = torch.float32,
    trunk: nn.Module | None = None,
    sigma: float | tuple[float, float] = SIGMA,
) -> ScoreEstimator:
    """Random weights, columns of very different units."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        architecture = {**ARCHITECTURE, "order": order, "rank": rank}
        architecture["conditional"] = isinstance(sigma, tuple)
        network = trunk or Trunks(**architecture)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.4)
        points = torch.randn(40, 3) * torch.tensor([1.0, 10.0, 0.1]) + 5
    net = ScoreNetwork(network, torch.Size([3]), sigma, Heads(order, rank)).to(dtype)
    units = Standardisation(
        "columns",
        torch.tensor([5.0, 5.0, 5.0], dtype=torch.float64),
        torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64),
    )
    return ScoreEstimator(
        net,
        units,
        points.to(dtype),
        metrics={"dsm": -1.5, "calibration": [1.0, 0.9, 1.1]},
        architecture=None if trunk else architecture,
    )


class Zero(nn.Module):
    """With this trunk the estimator is the isotropic normal of its units, exactly."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return 0 * u * self.weight, 0 * u


def zero(dtype: torch.dtype = torch.float64) -> ScoreEstimator:
    estimator = make(dtype=dtype, trunk=Zero())
    nn.init.zeros_(estimator.network.network.weight)  # pyright: ignore
    return estimator


def law(estimator: ScoreEstimator) -> GaussianScore:
    mean, scale = estimator.standardisation[1:]
    return GaussianScore(mean, scale.square().diag()).smooth(estimator.noise_scale)


def test_everything_is_in_the_units_of_the_data(generator: torch.Generator):
    estimator = zero()
    exact = law(estimator)
    x = exact.sample(50, generator).reshape(5, 10, 3)
    found, truth = estimator.expand(x, "diagonal"), exact.expand(x, "diagonal")
    torch.testing.assert_close(found.gradient, truth.gradient)
    assert isinstance(found.curvature, Diagonal)
    assert truth.curvature is not None
    torch.testing.assert_close(found.curvature.diagonal(), truth.curvature.diagonal())
    assert found.log_density is None
    expected = SIGMA * torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)
    torch.testing.assert_close(estimator.noise_scale, expected)


def test_the_figures_of_the_exact_score(generator: torch.Generator):
    estimator = zero()
    data = GaussianScore(*law_of_data(estimator)).sample(20_000, generator)
    figures = estimator.evaluate(data, generator)
    variance = 1 + SIGMA**2
    # 3.5 standard errors of 60,000 squares, of √(2/60,000)
    assert figures["dsm"] == pytest.approx(-0.5 * 3 / variance, rel=0.02)
    # of products of squares, whose tails are heavier; a wrong factor is 2 or ½
    assert figures["residual_vr"] == pytest.approx(-3 / variance**2, rel=0.1)
    for ratio in (*figures["calibration"], figures["calibration_mean"]):  # pyright: ignore
        assert ratio == pytest.approx(1, abs=0.05)  # 5 √(2/20,000)
    json.dumps(figures, allow_nan=False)


def law_of_data(estimator: ScoreEstimator) -> tuple[Tensor, Tensor]:
    mean, scale = estimator.standardisation[1:]
    return mean, scale.square().diag()


def test_a_shape_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"x must have shape \(\*batch, 3\).*\(4, 2\)"):
        make().expand(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"data must have shape \(N, 3\)"):
        make().evaluate(torch.zeros(4, 2))


ASKED = {
    "expand": lambda e, x: e.expand(x),
    "derivatives": lambda e, x: e.derivatives(x),
    "moments": lambda e, x: e.moments(x),
    "autodiff": lambda e, x: e.autodiff().expand(x),
    "autodiff, dense": lambda e, x: e.autodiff().expand(x, "dense"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("asked", ASKED)
def test_points_that_no_score_can_be_given_in_are_refused(asked: str, dtype: torch.dtype):
    """Whole numbers would cut its fractions off, and halves have no room for it."""
    with pytest.raises(ValueError, match=rf"x must be float.* {dtype}; "):
        ASKED[asked](make(), torch.ones(2, 3, dtype=dtype))


@pytest.mark.parametrize("kind", ["dense", "low_rank"])
def test_a_curvature_it_has_not_is_refused(kind):
    with pytest.raises(ValueError, match="ScoreEstimator can give"):
        make().expand(torch.zeros(1, 3), kind)


def test_one_head_gives_no_curvature():
    estimator = make(order=1)
    assert estimator.default_curvature is None
    assert estimator.expand(torch.zeros(2, 3)).curvature is None
    with pytest.raises(ValueError, match="its own kind is None"):
        estimator.expand(torch.zeros(2, 3), "diagonal")
    assert set(estimator.evaluate(estimator.points)) == {"dsm"}


def test_nothing_is_recorded_and_the_dtype_of_the_points_comes_back():
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    expansion = make().expand(x, "diagonal")
    assert expansion.curvature is not None
    assert not expansion.gradient.requires_grad
    assert expansion.gradient.dtype == expansion.curvature.dtype == torch.float64


def test_it_can_be_called_under_vmap():
    estimator, x = make(), make().points[:6]
    inside = torch.vmap(lambda p: estimator.expand(p).gradient)(x)
    torch.testing.assert_close(inside, estimator.expand(x).gradient)


def test_autodiff_is_the_symmetrised_jacobian():
    estimator = make(dtype=torch.float64)
    x = estimator.points[:4]
    step = 1e-5 * estimator.standardisation.scale
    columns = [
        (estimator.expand(x + e).gradient - estimator.expand(x - e).gradient) / (2 * step[i])
        for i, e in enumerate(step.diag())
    ]
    jacobian = torch.stack(columns, -1)
    score = estimator.autodiff()
    dense = score.expand(x, score.default_curvature)
    assert isinstance(dense.curvature, Dense)
    torch.testing.assert_close(
        # central differences in float64: the truncation, and the rounding over the step
        dense.curvature.dense(),
        (jacobian + jacobian.mT) / 2,
        rtol=1e-6,
        atol=1e-6,
    )
    torch.testing.assert_close(dense.gradient, estimator.expand(x).gradient)
    diagonal = score.expand(x.reshape(2, 2, 3), "diagonal").curvature
    assert diagonal is not None
    torch.testing.assert_close(
        # float64, twice by autograd: stricter than the policy's
        diagonal.diagonal().reshape(4, 3),
        dense.curvature.diagonal(),
        rtol=1e-9,
        atol=1e-9,
    )
    assert score.expand(x).curvature is None
    with pytest.raises(ValueError, match="JacobianScore can give"):
        score.expand(x, "low_rank")
    assert score.start(2).shape == (2, 3)


def test_start_is_training_points_plus_noise(generator: torch.Generator):
    estimator = make()
    few = estimator.start(40, torch.Generator().manual_seed(1))
    again = estimator.start(40, torch.Generator().manual_seed(1))
    torch.testing.assert_close(few, again, rtol=0, atol=0)
    many = estimator.start(20_000, generator)
    expected = estimator.points.var(0, correction=0) + estimator.noise_scale.square()
    torch.testing.assert_close(many.var(0), expected, rtol=0.05, atol=0.0)  # 5 √(2/20,000)
    assert many.dtype == estimator.dtype


def same(a: ScoreEstimator, b: ScoreEstimator) -> None:
    x = a.start(20, torch.Generator().manual_seed(3))
    assert torch.equal(x, b.start(20, torch.Generator().manual_seed(3)))
    mine, theirs = a.expand(x, a.default_curvature), b.expand(x, b.default_curvature)
    assert torch.equal(mine.gradient, theirs.gradient)
    if mine.curvature is not None:
        assert theirs.curvature is not None
        assert torch.equal(mine.curvature.diagonal(), theirs.curvature.diagonal())
    assert a.metrics == b.metrics
    assert repr(a) == repr(b)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_load_gives_back_what_was_saved(tmp_path: Path, order: int, dtype: torch.dtype):
    estimator = make(order=order, dtype=dtype)
    state = torch.random.get_rng_state()
    loaded = ScoreEstimator.load(estimator.save(tmp_path / "e"))
    assert torch.equal(state, torch.random.get_rng_state())
    same(estimator, loaded)
    same(estimator, pickle.loads(pickle.dumps(estimator)))


def test_save_replaces_only_an_estimator_and_only_when_told(tmp_path: Path):
    estimator, other = make(), make(order=1)
    folder = tmp_path / "e"
    estimator.save(folder)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        other.save(folder)
    same(estimator, ScoreEstimator.load(folder))
    other.save(folder, overwrite=True)
    same(other, ScoreEstimator.load(folder))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="left alone"):
        estimator.save(folder, overwrite=True)
    same(other, ScoreEstimator.load(folder))


class Own(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.trunks = Trunks(3, width=width, depth=1)

    def forward(self, u: Tensor, noise: Tensor):
        return self.trunks(u, noise)


def own() -> nn.Module:
    return Own(5)


def test_a_network_of_ones_own(tmp_path: Path):
    estimator = make(trunk=own())
    folder = estimator.save(tmp_path / "e")
    with pytest.raises(ValueError, match=r"network of your own \(Own\).*network="):
        ScoreEstimator.load(folder)
    same(estimator, ScoreEstimator.load(folder, network=own()))
    with pytest.raises(ValueError, match=r"must have shape \(\d+.*pass the network"):
        ScoreEstimator.load(folder, network=Own(9))
    with pytest.raises(ValueError, match=r"missing .* unknown"):
        ScoreEstimator.load(folder, network=nn.Linear(3, 3))
    ours = make().save(tmp_path / "ours")
    with pytest.raises(ValueError, match="must be None"):
        ScoreEstimator.load(ours, network=own())


def settings(folder: Path, **changes) -> None:
    path = folder / estimator_folder.SETTINGS
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights(folder: Path, change) -> None:
    path = folder / estimator_folder.WEIGHTS
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)
    settings(folder, **{estimator_folder.DIGEST: estimator_folder.digest(path)})


def raw(folder: Path, data: bytes) -> None:
    """Other bytes for the weights, with the digest that belongs to them."""
    (folder / estimator_folder.WEIGHTS).write_bytes(data)
    settings(
        folder,
        **{estimator_folder.DIGEST: estimator_folder.digest(folder / estimator_folder.WEIGHTS)},
    )


def flip_bit(folder: Path, place: int) -> None:
    path = folder / estimator_folder.WEIGHTS
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


SPOILED = {
    "not JSON": lambda f: (f / estimator_folder.SETTINGS).write_text("{"),
    "must be of format": lambda f: settings(f, format="somebody's"),
    "must be of format 'ozaki.ScoreEstimator', but was 'list'": lambda f: (
        f / estimator_folder.SETTINGS
    ).write_text("[1]"),
    "must be of version 2, but was 9": lambda f: settings(f, version=9),
    "must be of version 2, but was 1": lambda f: settings(f, version=1),
    "lacks a setting": lambda f: settings(f, sigma="wide"),
    "sigma must be": lambda f: settings(f, sigma=-1),
    "order must be": lambda f: settings(f, heads={"order": 7, "rank": 0, "signed": True}),
    "float16": lambda f: settings(f, dtype="float16"),
    "truncated": lambda f: (f / estimator_folder.WEIGHTS).write_bytes(
        (f / estimator_folder.WEIGHTS).read_bytes()[:-50]
    ),
    "damaged or another": lambda f: flip_bit(f, -1),
    "SHA-256 is .*, where estimator.json has": lambda f: flip_bit(f, 40),
    "where estimator.json has None": lambda f: settings(f, **{estimator_folder.DIGEST: None}),
    "not a safetensors file": lambda f: raw(f, b"\x80\x04pickle"),
    "missing .*mean": lambda f: weights(f, lambda t: t.pop("mean")),
    "unknown .*other": lambda f: weights(f, lambda t: t.update(other=torch.zeros(1))),
    r"mean must have shape \(3,\)": lambda f: weights(f, lambda t: t.update(mean=torch.zeros(4))),
    "NaN or infinite": lambda f: weights(
        f, lambda t: t["network.first.stem.bias"].fill_(torch.nan)
    ),
    "scale must be above 0": lambda f: weights(f, lambda t: t["scale"].zero_()),
    "must have shape": lambda f: settings(f, architecture={**ARCHITECTURE, "width": 9}),
    "lacks a setting or holds": lambda f: settings(f, architecture={"layers": 3}),
}


@pytest.mark.parametrize("message", SPOILED)
def test_a_spoiled_folder_is_refused_by_name(tmp_path: Path, message: str):
    folder = make().save(tmp_path / "e")
    SPOILED[message](folder)
    with pytest.raises(ValueError, match=message) as caught:
        ScoreEstimator.load(folder)
    assert str(folder) in str(caught.value)


def test_a_missing_folder_or_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ScoreEstimator.load(tmp_path / "nowhere")
    for name in (estimator_folder.SETTINGS, estimator_folder.WEIGHTS):
        folder = make().save(tmp_path / name)
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            ScoreEstimator.load(folder)


def test_repr_says_what_matters():
    assert repr(make()) == (
        "ScoreEstimator(event_shape=(3,), sigma=0.4, curvature='diagonal', "
        "standardize='columns', dtype=torch.float32)"
    )


@pytest.mark.parametrize("size", [1e-9, 1e-5, 1e9])
def test_derivatives_and_moments_in_small_and_large_units(size: float):
    one, x = make(order=4), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    kind, _, scale = one.standardisation
    centre = torch.zeros(3, dtype=torch.float64)
    network, points = one.network, one.points
    one = ScoreEstimator(network, Standardisation(kind, centre, scale), points)
    other = ScoreEstimator(network, Standardisation(kind, centre, scale * size), points * size)
    for central in (False, True):
        pairs = zip(
            one.moments(x, central=central), other.moments(x * size, central=central), strict=True
        )
        for k, (wanted, found) in enumerate(pairs, 1):
            assert found.dtype == torch.float32
            if 1e-30 < size**k < 1e30:
                torch.testing.assert_close(
                    found.double() / size**k, wanted.double(), **rounding(torch.float32)
                )
    if size < 1e-8:
        return  # s4 is no float32
    for k, (wanted, found) in enumerate(
        zip(one.derivatives(x), other.derivatives(x * size), strict=True), 1
    ):
        torch.testing.assert_close(
            found.double() * size**k, wanted.double(), **rounding(torch.float32)
        )


@pytest.mark.parametrize("curvature", [None, "diagonal", "dense"])
@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_of_no_points_the_jacobian_is_empty(curvature, batch):
    found = make().autodiff().expand(torch.zeros(*batch, 3), curvature)
    assert found.gradient.shape == (*batch, 3)
    if curvature:
        assert found.curvature.batch == batch and found.curvature.dim == 3
