"""The trainer: it reaches its bars, repeats itself, leaves the world alone, and names bad input."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ozaki import datasets
from ozaki.scores.analytic import GaussianMixtureScore
from ozaki.scores.estimator import ScoreEstimator
from ozaki.scores.training import DSMTrainer


def mixture(dim: int, modes: int, seed: int) -> GaussianMixtureScore:
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(modes, dim, dim, generator=g) / dim**0.5
    covariances = 0.15 * root @ root.mT + 0.1 * torch.eye(dim)
    return GaussianMixtureScore(1.5 * torch.randn(modes, dim, generator=g), covariances)


def relative_errors(
    estimator: ScoreEstimator, law: GaussianMixtureScore, g: torch.Generator
) -> tuple[float, float]:
    """E‖error‖² / E‖truth‖² of s1 and diag s2, against the smoothed closed form."""
    x = law.sample(20_000, g)
    truth = law.smooth(estimator.noise_scale).expand(x, "diagonal")
    found = estimator.expand(x, "diagonal")
    assert found.curvature is not None
    assert truth.curvature is not None
    pairs = [
        (found.gradient, truth.gradient),
        (found.curvature.diagonal(), truth.curvature.diagonal()),
    ]
    first, second = (float((f - t).square().sum() / t.square().sum()) for f, t in pairs)
    return first, second


@pytest.mark.parametrize(("dim", "modes"), [(2, 3), (10, 4)])
def test_defaults_reach_two_per_cent(dim: int, modes: int, generator: torch.Generator):
    law = mixture(dim, modes, seed=5)
    estimator = DSMTrainer(sigma=0.2, seed=0).fit(law.sample(20_000, generator))
    first, second = relative_errors(estimator, law, generator)
    assert first <= 0.02
    assert second <= 0.02
    assert estimator.metrics["calibration_mean"] == pytest.approx(1, abs=0.05)


def test_few_real_data_do_not_overfit():
    data = datasets.old_faithful()
    rows = torch.as_tensor(data.to_numpy() if hasattr(data, "to_numpy") else data)
    estimator = DSMTrainer(seed=0).fit(rows.double())
    assert estimator.sigma == pytest.approx(272 ** (-1 / 6))
    assert estimator.metrics["steps"] < 2500
    assert estimator.metrics["calibration_mean"] == pytest.approx(1, abs=0.2)
    assert estimator.metrics["dsm"] < -1.0  # that of a normal


def tiny(**options) -> DSMTrainer:
    small = {"max_steps": 30, "batch_size": 16, "width": 8, "depth": 1, "learning_rate": 0.02}
    return DSMTrainer(**{"sigma": 0.5, "seed": 0, **small, **options})


def two_clusters() -> Tensor:
    """Far from the normal that training begins at, in columns of very different units."""
    g = torch.Generator().manual_seed(0)
    signs = torch.tensor([1.0, -1.0]).repeat(30).unsqueeze(-1)
    return (2 * signs + 0.5 * torch.randn(60, 3, generator=g)) * torch.tensor([1.0, 10.0, 0.1])


DATA = two_clusters()


def outputs(estimator: ScoreEstimator, x: Tensor = DATA) -> list[Tensor]:
    expansion = estimator.expand(x.reshape(len(x), -1), estimator.default_curvature)
    curvature = expansion.curvature
    return [expansion.gradient] + ([] if curvature is None else [curvature.diagonal()])


def same(a: ScoreEstimator, b: ScoreEstimator) -> bool:
    return all(torch.equal(p, q) for p, q in zip(outputs(a), outputs(b), strict=True))


def test_a_seed_repeats_and_the_global_state_is_left_alone():
    before = torch.random.get_rng_state()
    one = tiny().fit(DATA)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert same(one, tiny().fit(DATA))
    assert not same(one, tiny(seed=1).fit(DATA))
    assert torch.equal(
        one.start(5, torch.Generator().manual_seed(0)),
        one.start(5, torch.Generator().manual_seed(0)),
    )


def test_without_a_seed_the_global_state_decides():
    torch.manual_seed(3)
    one, two = tiny(seed=None).fit(DATA), tiny(seed=None).fit(DATA)
    assert not same(one, two)
    torch.manual_seed(3)
    assert same(one, tiny(seed=None).fit(DATA))


class Unsized(IterableDataset):
    def __iter__(self):
        return iter(DATA)


FORMS = {
    "array": DATA.numpy(),
    "frame": pd.DataFrame(DATA.numpy(), columns=["a", "b", "c"]),
    "loader of tensors": DataLoader(DATA, batch_size=7),  # pyright: ignore
    "loader of tuples": DataLoader(TensorDataset(DATA, torch.arange(60)), batch_size=7),
}


@pytest.mark.parametrize("form", FORMS)
def test_data_come_in_many_forms(form: str):
    assert same(tiny().fit(DATA), tiny().fit(FORMS[form]))


def test_double_precision_data_train_in_single_unless_asked():
    assert tiny().fit(DATA.double()).dtype == torch.float32
    double = tiny(precision="64-true").fit(DATA)
    assert double.dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in double.network.parameters())


OPTIONS = [
    {"objective": "residual"},
    {"objective": "d2sm"},
    {"objective": "dsm"},
    {"curvature": None},
    {"variance_reduction": True},
    {"variance_reduction": False},
    {"variance_reduction": False, "objective": "d2sm"},
    {"variance_reduction": False, "curvature": None},
    {"standardize": "scalar"},
    {"standardize": None, "sigma": "auto"},
    {"precision": "bf16-mixed"},
    {"sigma": 5.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_learns_and_survives_the_disk(options: dict, tmp_path: Path):
    trainer = tiny(**options)
    untrained = tiny(max_steps=1, learning_rate=1e-9, **options).fit(DATA)
    estimator = trainer.fit(DATA)
    assert estimator.metrics["dsm"] <= untrained.metrics["dsm"] + 1e-3  # pyright: ignore
    second = options.get("curvature", "diagonal") and options.get("objective") != "dsm"
    assert estimator.default_curvature == ("diagonal" if second else None)
    assert same(estimator, ScoreEstimator.load(estimator.save(tmp_path / "e")))


def test_images_keep_their_shape_and_their_units():
    images = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 3
    estimator = tiny(sigma=0.1).fit(images)
    assert estimator.event_shape == (1, 4, 4)
    assert estimator.standardisation.kind is None
    torch.testing.assert_close(estimator.noise_scale, torch.full((16,), 0.1))
    assert estimator.expand(images.flatten(1)).gradient.shape == (30, 16)
    auto = tiny(sigma="auto").fit(images)
    assert auto.sigma == pytest.approx(float(images.std()) * 30 ** (-1 / 6), rel=1e-4)


class Trunk(nn.Module):
    """One body, two heads, and dropout, which draws from the global random state."""

    def __init__(self, outputs: int):
        super().__init__()
        self.outputs = outputs
        self.body = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Dropout(0.1))
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(outputs))

    def forward(self, u: Tensor, noise: Tensor):
        h = self.body(u)
        found = tuple(head(h) for head in self.heads)
        return found if self.outputs > 1 else found[0]


def test_a_network_of_ones_own(tmp_path: Path):
    trunk = Trunk(2)
    before = [p.clone() for p in trunk.parameters()]
    state = torch.random.get_rng_state()
    estimator = tiny(network=trunk).fit(DATA)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, trunk.parameters(), strict=True))
    assert same(estimator, tiny(network=trunk).fit(DATA))
    folder = estimator.save(tmp_path / "e")
    assert same(estimator, ScoreEstimator.load(folder, network=Trunk(2)))
    assert tiny(network=Trunk(1), curvature=None).fit(DATA).default_curvature is None


def test_a_wrong_network_is_named_before_training():
    with pytest.raises(ValueError, match="network must return a pair"):
        tiny(network=Trunk(1)).fit(DATA)
    with pytest.raises(ValueError, match="network must return one tensor"):
        tiny(network=Trunk(2), curvature=None).fit(DATA)
    with pytest.raises(ValueError, match="network must accept"):
        tiny(network=nn.Linear(3, 3)).fit(DATA)


class Exploding(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))

    def forward(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        f = self.weight * u
        return f / f.detach().abs().clamp_max(0), f


def test_training_that_blows_up_says_so():
    with pytest.raises(FloatingPointError, match=r"at step \d+ of training; lower learning_rate"):
        tiny(network=Exploding()).fit(DATA)


NAN = DATA.clone()
NAN[4, 1] = torch.nan
CONSTANT = DATA.clone()
CONSTANT[:, 2] = 7.3
BAD_DATA = {
    "data must be finite.*1 of its 180.*index \\(4, 1\\)": NAN,
    "data must be finite.*infinite": DATA / 0,
    "data must have shape \\(N, D\\).*\\(60,\\)": DATA[:, 0],
    "data must be floating-point.*int64": torch.ones(5, 2, dtype=torch.int64),
    "data must be numeric.*object": np.array([["a", 1.0], ["b", 2.0]], dtype=object),
    "data must be numeric": pd.DataFrame({"a": ["x", "y"], "b": [1.0, 2.0]}),
    "data must have at least 2 rows, but had 0": DATA[:0],
    "data must have at least 2 rows, but had 1": DATA[:1],
    "data must have shape.*\\(60, 0\\)": DATA[:, :0],
    "data must vary in every column.*\\[2\\]": CONSTANT,
    "data must be of finite length": DataLoader(Unsized()),
    "data must be a DataLoader whose items": DataLoader([{"x": row} for row in DATA]),  # pyright: ignore
}


@pytest.mark.parametrize("message", BAD_DATA)
def test_bad_data_are_named(message: str):
    with pytest.raises(ValueError, match=message):
        tiny().fit(BAD_DATA[message])


def test_a_constant_column_is_an_error_under_columns_only():
    for kind in ("scalar", None):
        tiny(standardize=kind).fit(CONSTANT)
        with pytest.raises(ValueError, match=r"every entry was 7\.3"):
            tiny(standardize=kind).fit(torch.full((5, 2), 7.3))


BAD_ARGUMENTS = {
    "sigma must be a finite number above 0, but was 0": {"sigma": 0.0},
    "sigma must be a finite number above 0, but was -1": {"sigma": -1.0},
    "sigma must be one of 'auto'": {"sigma": "wide"},
    "objective='ocm' is not available in this version": {"objective": "ocm"},
    "objective='residual.ocm' is not available": {"objective": "residual+ocm"},
    "objective must be one of": {"objective": "ism"},
    "learns s2, but curvature was None": {"objective": "d2sm", "curvature": None},
    "curvature='low_rank' is not available": {"curvature": "low_rank"},
    "curvature must be one of": {"curvature": "dense"},
    "variance_reduction must be one of": {"variance_reduction": "some"},
    "standardize must be one of": {"standardize": "rows"},
    "max_steps must be a whole number": {"max_steps": 0},
    "batch_size must be a whole number": {"batch_size": -1},
    "held_out must lie between 0 and 1": {"held_out": 1.0},
    "ema must lie between 0 and 1": {"ema": 2.0},
    "precision must be one of": {"precision": "8"},
    "seed must be a whole number": {"seed": -1},
}


@pytest.mark.parametrize("message", BAD_ARGUMENTS)
def test_bad_arguments_are_named(message: str):
    with pytest.raises(ValueError, match=message):
        DSMTrainer(**BAD_ARGUMENTS[message])


def test_arguments_that_do_not_fit_the_data_are_named():
    with pytest.raises(ValueError, match="sigma must be at most 100 times the spread"):
        tiny(sigma=101.0).fit(DATA)
    with pytest.raises(ValueError, match=r"spread of the data as trained on \(0.01"):
        tiny(sigma=10.0, standardize=None).fit(DATA * 1e-3)
    with pytest.raises(ValueError, match="rank must be at most the dimension of the data, 3"):
        tiny(rank=4).fit(DATA)
    with pytest.raises(ValueError, match="low-rank curvature is not available"):
        tiny(rank=2).fit(DATA)
