"""The trainer: it reaches its bars, repeats itself, leaves the world alone, and names bad input."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ozaki import datasets, denoise
from ozaki.scores import compare
from ozaki.scores.analytic import GaussianMixtureScore, GaussianScore
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.mlp import Trunks
from ozaki.scores.learned.trainer import DSMTrainer
from tests.kit.tolerances import (
    HIGH_ORDER_SHARE,
    LOW_RANK_SHARE,
    MIXTURE_SHARE,
    RANGE_CURVATURE_SHARE,
    RANGE_SHARE,
)


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


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("dim", "modes", "steps"),
    [(2, 3, 700), pytest.param(10, 4, 600, marks=pytest.mark.thorough)],
    ids=["2-d", "10-d"],
)
def test_mixtures_are_learned_to_two_per_cent(dim: int, modes: int, steps: int, generator):
    law = mixture(dim, modes, seed=5)
    estimator = DSMTrainer(sigma=0.2, seed=0, max_steps=steps).fit(law.sample(20_000, generator))
    first, second = relative_errors(estimator, law, generator)
    assert first <= MIXTURE_SHARE
    assert second <= MIXTURE_SHARE
    # 2,000 rows are held out: 2 standard errors of 4,000 squares, 5 of 20,000
    assert estimator.metrics["calibration_mean"] == pytest.approx(1, abs=0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_few_real_data_do_not_overfit():
    data = datasets.old_faithful()
    rows = torch.as_tensor(data.to_numpy() if hasattr(data, "to_numpy") else data)
    estimator = DSMTrainer(seed=0).fit(rows.double())
    assert estimator.sigma == pytest.approx(272 ** (-1 / 6))
    assert estimator.metrics["steps"] < 2500
    # of 27 rows held out, 54 squares have a standard error of 0.19
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


FORMS = {
    "array": DATA.numpy(),
    "frame": pd.DataFrame(DATA.numpy(), columns=["a", "b", "c"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_data_come_in_many_forms(form: str):
    assert same(tiny().fit(DATA), tiny().fit(FORMS[form]))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_data_train_and_are_judged_in_single(dtype: torch.dtype, stream: bool):
    """float32 holds every half: the same rows in it give the same estimator and figures."""

    def given(rows: Tensor) -> Any:
        return DataLoader(TensorDataset(rows), 64) if stream else rows

    half = (DATA - DATA.mean(0)).to(dtype)  # whose resolution is relative
    found, expected = tiny().fit(given(half)), tiny().fit(given(half.float()))
    assert found.dtype == torch.float32 and found.metrics == expected.metrics
    assert same(found, expected)

    def figures(rows: Tensor) -> tuple[Any, ...]:
        g = torch.Generator().manual_seed(0)
        truth = denoise(found, half[:9]).calibration(rows[:9])
        return found.evaluate(rows, g), compare(found, rows, generator=g), truth

    assert figures(half) == figures(half.float())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_data_of_eight_bits_are_refused_before_training(dtype: torch.dtype):
    for data in (DATA.to(dtype), DataLoader(TensorDataset(DATA.to(dtype)), 64)):
        with pytest.raises(ValueError, match=r"in 16 bits an entry.*\.float\(\)"):
            tiny().fit(data)


def test_double_precision_data_train_in_single_unless_asked():
    assert tiny().fit(DATA.double()).dtype == torch.float32
    double = tiny(precision="64-true").fit(DATA)
    assert double.dtype == torch.float64
    assert all(p.dtype == torch.float64 for p in double.network.parameters())


OPTIONS = [
    {"objective": "residual"},
    {"objective": "ocm"},
    {"objective": "residual+ocm"},
    {"objective": "likelihood"},
    {"objective": {"d2sm": 1.0, "ocm": 0.2}},
    {"objective": "d2sm"},
    {"curvature": "low_rank"},
    {"curvature": "low_rank", "rank": 2, "objective": "d2sm"},
    {"curvature": "low_rank", "rank": 2, "objective": "residual+ocm", "shared": True},
    {"curvature": "low_rank", "rank": 1, "signed": False, "objective": "likelihood"},
    {"joint": False},
    {"joint": False, "shared": True, "objective": "ocm"},
    {"shared": True},
    {"order": 3},
    {"order": 4, "shared": True},
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
    options = {"baseline": False, **options}  # from further away, there is more to learn
    trainer = tiny(**options)
    untrained = tiny(max_steps=1, learning_rate=1e-9, **options).fit(DATA)
    estimator = trainer.fit(DATA)
    assert estimator.metrics["dsm"] <= untrained.metrics["dsm"] + 1e-3  # pyright: ignore
    kind = None if options.get("objective") == "dsm" else options.get("curvature", "diagonal")
    assert estimator.default_curvature == kind
    assert same(estimator, ScoreEstimator.load(estimator.save(tmp_path / "e")))


def test_images_keep_their_shape_and_their_units():
    images = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 3
    estimator = tiny(sigma=0.1).fit(images)
    assert estimator.event_shape == (1, 4, 4)
    assert estimator.standardisation.kind is None
    torch.testing.assert_close(estimator.noise_scale, torch.full((16,), 0.1))
    assert estimator.expand(images.flatten(1)).gradient.shape == (30, 16)
    auto = tiny(sigma="auto").fit(images)
    # the spread is that of the 27 rows that are trained on
    assert auto.sigma == pytest.approx(float(images.std()) * 30 ** (-1 / 6), rel=0.05)


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


class Tracked(Trunk):
    """Its weights are drawn alike each time; a buffer counts its calls."""

    calls: Tensor

    def __init__(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            super().__init__(2)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, u: Tensor, noise: Tensor):
        if self.training:
            self.calls += 1
        return super().forward(u, noise)


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


def pieces() -> dict[str, tuple[nn.Module, str]]:
    """Networks, and the part of each that is frozen."""
    return {
        "module": (Trunk(2), "body"),
        "trunks": (Trunks(3, width=8, depth=1), "first.stem"),
        "shared": (Trunks(3, width=8, depth=1, shared=True), "first"),
    }


@pytest.mark.parametrize("sigma", [0.5, (0.2, 0.5)], ids=str)
@pytest.mark.parametrize("kind", pieces())
def test_frozen_layers_stay_as_they_are(kind: str, sigma, tmp_path: Path):
    network, frozen = pieces()[kind]
    network.get_submodule(frozen).requires_grad_(False)
    before = {k: p.clone() for k, p in network.named_parameters()}
    still = {k for k in before if k.startswith(f"{frozen}.")}
    options = {"network": network, "sigma": sigma, "checkpoint": tmp_path, "learning_rate": 0.1}
    learned = tiny(**options).fit(DATA).network.network
    moved = {k for k, p in learned.named_parameters() if not torch.equal(p, before[k])}
    assert moved and not moved & still
    assert {k for k, p in network.named_parameters() if not p.requires_grad} == still
    # what is frozen bears on the result, and on what the optimiser's state is of
    again = tiny(**options).fit(DATA, resume=True).network.network
    assert all(
        torch.equal(p, q) for p, q in zip(learned.parameters(), again.parameters(), strict=True)
    )
    network.requires_grad_()
    with pytest.raises(ValueError, match=f"frozen was .*{frozen}.* and is .*now"):
        tiny(**options).fit(DATA, resume=True)


def test_a_network_without_anything_to_train_is_named():
    with pytest.raises(ValueError, match=r"all 6 of Trunk's were frozen; call .*requires_grad_"):
        tiny(network=Trunk(2).requires_grad_(False)).fit(DATA)
    with pytest.raises(ValueError, match="must have parameters to train, but Identity has none"):
        tiny(network=nn.Identity(), curvature=None).fit(DATA)


@pytest.mark.thorough
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_is_the_same_where_gradients_are_off(mode):
    stream, images = torch.utils.data.DataLoader(DATA, 20), DATA.reshape(60, 1, 3)
    plain = tiny().fit(DATA), tiny().fit(stream), tiny(standardize=None, sigma=5.0).fit(images)
    own = tiny(network=Tracked()).fit(DATA)
    with mode():
        rows, network = DATA.clone(), Tracked()
        assert same(plain[0], tiny().fit(rows))
        assert same(plain[1], tiny().fit(torch.utils.data.DataLoader(rows, 20)))
        assert same(plain[2], tiny(standardize=None, sigma=5.0).fit(rows.reshape(60, 1, 3)))
        assert same(own, tiny(network=network).fit(rows))
        assert torch.is_grad_enabled() is False
        assert torch.is_inference_mode_enabled() is (mode is torch.inference_mode)
        # of double precision the rows are not copied by a change of dtype
        precise = tiny(precision="64-true", standardize=None, sigma=2.0, held_out=0.5)
        found = precise.fit(rows.double())
    assert not found.points.is_inference()
    assert same(found, precise.fit(DATA.double()))


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
    r"range \(low, high\) with low < high, but was \(1.0, 0.1\); swap": {"sigma": (1.0, 0.1)},
    r"range \(low, high\) with low < high.*pass the number": {"sigma": (0.1, 0.1)},
    "a number, a .low, high. range or 'auto'": {"sigma": (0.1, 0.2, 0.3)},
    "sigma must be a finite number above 0, but was nan": {"sigma": (0.1, float("nan"))},
    "objective must be one of.*'ism'": {"objective": {"ism": 1.0}},
    r"objective\['ocm'\] must be a finite number above 0": {"objective": {"ocm": -1}},
    "objective must name at least one loss": {"objective": {}},
    "rank must be a whole number of at least 1, but was 0": {"curvature": "low_rank", "rank": 0},
    "rank belongs to curvature='low_rank'": {"rank": 2},
    "likelihood' needs a positive definite": {"curvature": "low_rank", "objective": "likelihood"},
    "order must be one of": {"order": 5},
    "order=3 needs the diagonal of s2": {"order": 3, "curvature": "low_rank"},
    "order=4 needs the diagonal of s2": {"order": 4, "objective": "dsm"},
    "joint must be True or False": {"joint": "no"},
    "joint=False needs one of ozaki's.*Linear": {"joint": False, "network": nn.Linear(1, 1)},
    "network must be a torch.nn.Module, one of .'unet', 'unet_large'. or None, but was 'cnn'": {
        "network": "cnn"
    },
    "checkpoint_every must be": {"checkpoint_every": 0},
    "logger must be one of": {"logger": "wandb"},
    "logger must be 'csv'": {"logger": 3},
    "objective must be one of": {"objective": "ism"},
    "learns s2, but curvature was None": {"objective": "d2sm", "curvature": None},
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


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("message", BAD_ARGUMENTS)
def test_bad_arguments_are_named(message: str):
    with pytest.raises(ValueError, match=message):
        DSMTrainer(**BAD_ARGUMENTS[message])


def test_arguments_that_do_not_fit_the_data_are_named():
    with pytest.raises(ValueError, match="sigma must be at most 100 times the spread"):
        tiny(sigma=101.0).fit(DATA)
    with pytest.raises(ValueError, match=r"spread of the data as trained on \(0.01"):
        tiny(sigma=10.0, standardize=None).fit(DATA * 1e-3)
    with pytest.raises(ValueError, match=r"at least 0.001 times .* precision='64-true'"):
        tiny(sigma=1e-12).fit(DATA)
    with pytest.raises(ValueError, match=r"at least 0\.001 times"):
        tiny(sigma=(1e-5, 1.0)).fit(DATA)
    with pytest.raises(ValueError, match=r"at least 0.3 times .* order=3"):
        tiny(sigma=0.1, order=3).fit(DATA)
    with pytest.raises(ValueError, match="rank must be at most the dimension of the data, 3"):
        tiny(curvature="low_rank", rank=4).fit(DATA)


def test_auto_sigma_is_wide_enough_for_high_orders():
    assert tiny(sigma="auto", order=4).fit(DATA.repeat(100, 1)).sigma == pytest.approx(0.5)


CONDITIONAL = {
    "diagonal": {},
    "low rank": {"curvature": "low_rank", "rank": 2},
    "shared": {"shared": True, "objective": "residual+ocm"},
    "likelihood": {"objective": "likelihood", "joint": False},
    "s1 alone": {"curvature": None},
}


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_one_estimator_for_a_range_of_noise_levels(kind: str, tmp_path: Path):
    estimator = tiny(sigma=(0.05, 2.0), **CONDITIONAL[kind]).fit(DATA)
    assert estimator.sigma == (0.05, 2.0)
    with pytest.raises(ValueError, match=r"use estimator.at\(sigma\)"):
        estimator.expand(DATA)
    with pytest.raises(ValueError, match=r"use estimator.at\(sigma\)"):
        _ = estimator.noise_scale
    for wrong in (0.01, 2.1):
        with pytest.raises(ValueError, match=r"range of training, 0\.05 to 2"):
            estimator.at(wrong)
    loaded = ScoreEstimator.load(estimator.save(tmp_path / "e"))
    for sigma in (0.05, 0.7, 2.0):
        assert same(estimator.at(sigma), loaded.at(sigma))
        one = ScoreEstimator.load(estimator.at(sigma).save(tmp_path / f"{sigma}"))
        assert same(estimator.at(sigma), one)
    assert not same(estimator.at(0.05), estimator.at(2.0))
    assert len(estimator.metrics["sigma"]) == len(estimator.metrics["dsm"]) == 5  # pyright: ignore


@pytest.mark.thorough
@pytest.mark.usefixtures("unchecked")
def test_a_range_learns_the_score_at_every_level(generator: torch.Generator):
    law = mixture(2, 3, seed=5)
    trainer = DSMTrainer(sigma=(0.2, 1.0), standardize=None, seed=0, max_steps=400, width=32)
    estimator = trainer.fit(law.sample(20_000, generator))
    for sigma in (0.2, 0.45, 1.0):
        first, second = relative_errors(estimator.at(sigma), law, generator)
        assert first <= RANGE_SHARE, sigma
        assert second <= RANGE_CURVATURE_SHARE, sigma


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "options",
    [{"rank": 2}, pytest.param({"rank": 4, "objective": "residual"}, marks=pytest.mark.thorough)],
    ids=["rank 2", "rank 4"],
)
def test_low_rank_learns_a_whole_hessian(options: dict, generator: torch.Generator):
    """N(0, diag + low rank): s2 is constant, of either sign about its diagonal."""
    dim = 8
    w = torch.randn(dim, 2, generator=generator)
    covariance = 0.3 * torch.eye(dim) + w @ w.mT
    law = GaussianScore(torch.zeros(dim), covariance)
    data = law.sample(20_000, generator)
    trainer = DSMTrainer(
        0.2, curvature="low_rank", standardize=None, seed=0, max_steps=300, width=32, **options
    )
    estimator = trainer.fit(data)
    x = law.sample(2_000, generator)
    truth = law.smooth(estimator.noise_scale).expand(x, "dense").curvature.dense()
    found = estimator.expand(x, "low_rank").curvature
    error = (found.dense() - truth).square().sum() / truth.square().sum()
    assert float(error) <= LOW_RANK_SHARE
    # the diagonal alone, and a kernel's own choice
    torch.testing.assert_close(
        estimator.expand(x, "diagonal").curvature.diagonal(), found.diagonal()
    )


def test_separate_training_leaves_s1_as_it_was():
    alone = tiny(curvature=None).fit(DATA)
    apart = tiny(joint=False).fit(DATA)
    torch.testing.assert_close(apart.expand(DATA).gradient, alone.expand(DATA).gradient)


def test_a_phase_of_its_own_begins_with_the_features_of_s1():
    trunk = tiny(joint=False, learning_rate=1e-9).fit(DATA).network.network
    for mine, theirs in zip(
        trunk.rest[0].stem.parameters(), trunk.first.stem.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs)
    trunk = tiny(joint=True, learning_rate=1e-9).fit(DATA).network.network
    assert not torch.allclose(trunk.rest[0].stem.weight, trunk.first.stem.weight)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.thorough
@pytest.mark.parametrize("order", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_orders_three_and_four_meet_the_closed_form(order: int, generator: torch.Generator):
    law = mixture(1, 2, seed=3)
    trainer = DSMTrainer(0.5, order=order, standardize=None, seed=0, max_steps=500, width=32)
    estimator = trainer.fit(law.sample(20_000, generator))
    x = law.sample(2000, generator).double()
    smooth = law.smooth(estimator.noise_scale)

    def log_density(p: Tensor) -> Tensor:
        return smooth.expand(p.reshape(1, 1)).log_density[0]

    f = log_density
    for _ in range(order):
        f = torch.func.grad(f)
    truth = torch.func.vmap(f)(x.squeeze(-1).float()).unsqueeze(-1)
    found = estimator.derivatives(x)[-1]
    assert float((found - truth).square().mean() / truth.square().mean()) <= HIGH_ORDER_SHARE
    # Lemma 1: Tweedie's mean and variance
    mean, variance = estimator.moments(x)[0], estimator.moments(x, central=True)[1]
    s1, s2, *_ = estimator.derivatives(x)
    noise = estimator.noise_scale.double() ** 2
    torch.testing.assert_close(mean, x + noise * s1)
    torch.testing.assert_close(variance, noise + noise**2 * s2)
