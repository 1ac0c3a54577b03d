"""The normal a network departs from: closed forms, shrinkage, and that it survives the disk."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ozaki.scores.analytic import GaussianScore, LogisticMixtureScore
from ozaki.scores.comparison import compare
from ozaki.scores.learned import estimator_folder
from ozaki.scores.learned.assembly import may_depart
from ozaki.scores.learned.baseline import Baseline, fitted, starting_signs, variances
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.mlp import Trunks
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork
from ozaki.scores.learned.trainer import DSMTrainer
from tests.kit.tolerances import BASELINE_SHARE


class Silent(nn.Module):
    """A trunk whose outputs are zero."""

    def __init__(self, heads: Heads):
        super().__init__()
        self.heads = heads

    def forward(self, u: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return tuple(u.new_zeros(shape) for shape in self.heads.shapes(tuple(u.shape)))


def normal(dim: int, wide: int, seed: int = 0) -> GaussianScore:
    """`wide` directions of standard deviation 1 to 3 among those of 0.3, about a mean."""
    g = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(dim, dim, generator=g, dtype=torch.float64))
    scale = torch.full((dim,), 0.3, dtype=torch.float64)
    scale[:wide] = torch.linspace(1, 3, wide)
    return GaussianScore(
        torch.randn(dim, generator=g, dtype=torch.float64), (turn * scale.square()) @ turn.mT
    )


def departed(
    law: GaussianScore, sigma: float | tuple[float, float], heads: Heads, below: int = 0
) -> ScoreNetwork:
    """The network of that law's baseline, with outputs of zero."""
    values, vectors = torch.linalg.eigh(law.covariance)
    base = Baseline(law.dim, heads.rank, below).double()
    base.load_state_dict({"mean": law.mean, "vectors": vectors, "values": values})
    net = ScoreNetwork(Silent(heads), torch.Size([law.dim]), sigma, heads, spread=1.3).double()
    net.depart_from(base)
    return net


@pytest.mark.parametrize("sigma", [0.01, 0.2, 3.0])
@pytest.mark.parametrize(("rank", "below", "signed"), [(0, 0, True), (4, 0, True), (4, 0, False)])
def test_silent_outputs_are_the_smoothed_normal(sigma, rank, below, signed, generator):
    law = normal(7, wide=4)
    net = departed(law, sigma, Heads(2, rank, signed), below)
    x = law.sample(6, generator).reshape(2, 3, 7)
    truth = law.smooth(sigma).expand(x, "dense")
    out = net(x)
    torch.testing.assert_close(out.s1, truth.gradient)
    torch.testing.assert_close(net.first(x), truth.gradient)
    torch.testing.assert_close(out.s2.diagonal(), truth.curvature.diagonal().expand_as(x))
    if rank:  # the spectrum has as many eigenvalues off the bulk as there are columns
        torch.testing.assert_close(out.s2.dense(), truth.curvature.dense().expand(2, 3, 7, 7))


@pytest.mark.parametrize(("rank", "below"), [(1, 0), (1, 1), (3, 2), (7, 0), (7, 7), (7, 3)])
def test_columns_of_either_sign_hold_the_ends_of_the_spectrum(rank, below, generator):
    law, sigma = normal(7, wide=7), 0.2
    truth = law.smooth(sigma).expand(law.sample(1, generator), "dense").curvature.dense()
    found = departed(law, sigma, Heads(2, rank), below)(torch.zeros(1, 7, dtype=torch.float64)).s2
    torch.testing.assert_close(found.diagonal()[0], truth.diagonal(dim1=-2, dim2=-1).reshape(7))
    missed = (found.dense()[0] - truth).detach().square().sum()
    if rank == 7:
        # a sum of 49 squares of float64's roundings, 1e-10 each at most
        assert float(missed) < 1e-20
    else:  # what is left is no more than the spread of the eigenvalues that no column holds
        values = torch.linalg.eigvalsh(truth.reshape(7, 7)).detach()[below : below + 7 - rank]
        assert float(missed) <= float(7 * values.var(correction=0))


@pytest.mark.parametrize("rank", [0, 3])
def test_one_decomposition_serves_a_range(rank, generator):
    law = normal(5, wide=3)
    net = departed(law, (0.05, 2.0), Heads(2, rank))
    sigma = torch.tensor([0.05, 0.4, 2.0], dtype=torch.float64)
    x = law.sample(6, generator).reshape(2, 3, 5)
    together = net(x, sigma.unsqueeze(-1))
    for i, s in enumerate(sigma.tolist()):
        alone = net.at(s)(x[:, i])
        torch.testing.assert_close(together.s1[:, i], alone.s1)
        torch.testing.assert_close(together.s2.dense()[:, i], alone.s2.dense())
        truth = law.smooth(s).expand(x[:, i])
        torch.testing.assert_close(alone.s1, truth.gradient)


@pytest.mark.parametrize("n", [2, 30, 60, 20_000])
def test_few_rows_are_shrunk_and_many_are_not(n: int):
    g = torch.Generator().manual_seed(3)
    law, sigma = normal(40, wide=5), 0.1
    rows, held = law.sample(n, g), law.sample(max(n // 9, 1), g)
    found = fitted(rows, held, sigma)
    raw = variances(rows)

    def loss(base: Baseline) -> float:  # of denoising, ½ tr P(Σ + σ²I)P − tr P but for the mean
        p = (base.vectors / (base.values + sigma**2)) @ base.vectors.mT
        smooth = law.covariance + sigma**2 * torch.eye(40, dtype=torch.float64)
        return float(0.5 * torch.trace(p @ smooth @ p) - torch.trace(p))

    bare = fitted(rows, held, sigma)
    bare.values.copy_(raw)
    # shrinking moves them by more than a hundredth, or by nothing to speak of
    shrunk = not torch.allclose(found.values, raw, rtol=1e-2)
    assert shrunk == (n < 1000)
    assert loss(found) < loss(bare) + 0.01 * abs(loss(bare))  # no worse, but for a hundredth
    if n < 40:
        assert loss(found) < 0.0 < loss(bare)
    truth = departed(law, sigma, Heads()).baseline
    assert loss(truth) < loss(found)
    if n > 1000:
        # the optimum of so many rows, but for two hundredths; losses are negative
        assert loss(found) < 0.98 * loss(truth)


def test_columns_that_do_not_vary_are_survived():
    rows = torch.zeros(50, 3)
    rows[:, 0] = torch.randn(50, generator=torch.Generator().manual_seed(0))
    base = fitted(rows, rows[:5], 0.1)
    a, variance = base.diagonal(0.1)
    assert bool((variance > 0).all()) and bool((a > -1 / 0.1**2).all())


@pytest.mark.parametrize(
    ("stiff", "others", "sigma", "rank", "positive"),
    [
        # 12 narrow directions among wide ones, and 12 wide ones among narrow
        (0.1, 1.0, 0.2, 16, range(2, 5)),
        (3.0, 0.2, 0.1, 16, range(11, 15)),
        # a normal alike in all directions leaves the choice to the draws, but none without a sign
        (1.0, 1.0, 0.2, 16, range(2, 15)),
    ],
)
def test_low_rank_signs_begin_as_those_of_the_normal(stiff, others, sigma, rank, positive):
    g = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(40, 40, generator=g))
    scale = torch.full((40,), others)
    scale[:12] = stiff
    rows = (scale * torch.randn(2000, 40, generator=g)) @ turn + 7
    signs = starting_signs(variances(rows), sigma, rank)
    assert signs.shape == (rank,) and set(signs.tolist()) <= {-1.0, 1.0}
    assert int((signs > 0).sum()) in positive


@pytest.mark.parametrize(("n", "dim", "rank"), [(3, 50, 10), (2, 5, 5), (1, 4, 1), (20, 6, 6)])
def test_low_rank_signs_of_few_rows(n: int, dim: int, rank: int):
    signs = starting_signs(variances(torch.randn(n, dim)), 0.5, rank)
    assert signs.shape == (rank,) and bool((signs.abs() == 1).all())


def tiny(**options) -> DSMTrainer:
    small = {"max_steps": 30, "batch_size": 16, "width": 8, "depth": 1}
    return DSMTrainer(**{"sigma": 0.2, "seed": 0, **small, **options})


@pytest.mark.parametrize("form", [{}, {"curvature": "low_rank", "rank": 4}], ids=str)
@pytest.mark.parametrize("kind", ["columns", "scalar", None])
def test_a_correlated_normal_is_learned_at_once(form: dict, kind, generator):
    law = normal(7, wide=4)
    options = {"learning_rate": 1e-4, "standardize": kind, "sigma": 0.2 if kind else 20.0, **form}
    data = 100 * law.sample(4000, generator) + 7
    exact = GaussianScore(100 * law.mean + 7, 1e4 * law.covariance)
    estimator = tiny(**options).fit(data)
    x = exact.sample(200, generator)
    truth = exact.smooth(estimator.noise_scale).expand(x, "dense")
    found = estimator.expand(x, estimator.default_curvature)

    def error(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().sum() / b.expand_as(a).square().sum())

    assert error(found.gradient, truth.gradient) < BASELINE_SHARE
    assert error(found.curvature.diagonal(), truth.curvature.diagonal()) < BASELINE_SHARE
    if form and kind != "columns":  # else the spectrum has no bulk
        assert error(found.curvature.dense(), truth.curvature.dense()) < BASELINE_SHARE
    jacobian = estimator.autodiff().expand(x[:5], "dense").curvature.dense()
    assert error(jacobian, truth.curvature.dense()[:5]) < BASELINE_SHARE
    plain = tiny(baseline=False, **options).fit(data)
    # far: without a baseline these few steps learn little
    assert error(plain.expand(x).gradient, truth.gradient) > 0.1
    ranked = compare(estimator, exact.sample(500, generator), {"plain": plain}, draws=1000)
    assert ranked[-1].name == "plain"


@pytest.mark.parametrize("sigma", [0.01, 0.2, 3.0])
def test_the_gain_is_the_ratio_of_two_losses(sigma: float):
    law = normal(7, wide=4)
    base = departed(law, sigma, Heads()).baseline
    noisy = law.covariance + sigma**2 * torch.eye(7, dtype=torch.float64)

    def loss(p: Tensor) -> Tensor:  # of denoising, by the score -p (x - mean), less a constant
        return 0.5 * torch.trace(p @ noisy @ p) - torch.trace(p)

    alike = 7 / torch.trace(noisy) * torch.eye(7, dtype=torch.float64)
    ratio = float(loss(torch.linalg.inv(noisy)) / loss(alike))
    # float64, of an inverse; stricter than the policy's
    assert base.gain(sigma) == pytest.approx(ratio, rel=1e-9)
    assert base.gain(1e4) == pytest.approx(1, abs=1e-6)  # 1 but for the law's variances over 1e8


def test_the_default_is_for_stiff_data_and_not_for_clusters(generator):
    stiff = tiny(standardize=None).fit(normal(12, wide=5).sample(500, generator))
    assert stiff.network.baseline is not None
    # some 20 modes in 30 dimensions: a covariance near a multiple of I, and far from a normal
    places = torch.randn(20, 30, generator=generator)
    law = LogisticMixtureScore(places, torch.full_like(places, 0.5), torch.full((20,), 0.05))
    rows = law.sample(2000, generator)
    assert tiny(sigma=0.05, standardize=None).fit(rows).network.baseline is None
    assert tiny(sigma=0.05).fit(rows).network.baseline is None
    assert tiny(baseline=True).fit(rows).network.baseline is not None


def test_the_default_is_for_vectors_and_networks_of_our_own():
    rows = normal(4, wide=2).sample(60, torch.Generator().manual_seed(0))
    assert tiny(standardize=None).fit(rows).network.baseline is not None
    assert tiny(standardize=None, baseline=False).fit(rows).network.baseline is None
    images = rows.reshape(60, 1, 2, 2)
    assert tiny().fit(images).network.baseline is None
    assert tiny(baseline=True).fit(images).network.baseline is not None
    own = Silent(Heads())
    own.weight = nn.Parameter(torch.zeros(1))
    assert not may_depart(DSMTrainer(network=own).settings, torch.Size([4]), own)
    assert may_depart(DSMTrainer(network=own, baseline=True).settings, torch.Size([4]), own)


def settings(folder: Path, change) -> None:
    path = folder / estimator_folder.SETTINGS
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def test_an_archive_without_a_word_of_it_is_read(tmp_path: Path):
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    estimator = tiny(baseline=False).fit(rows)
    folder = estimator.save(tmp_path / "old")
    settings(folder, lambda s: s.pop("baseline"))
    loaded = ScoreEstimator.load(folder)
    assert torch.equal(loaded.expand(rows).gradient, estimator.expand(rows).gradient)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.update(baseline={"rank": 2, "below": 0}), "baseline must fit the heads"),
        (lambda s: s.update(baseline={"rank": 0, "below": -1}), "baseline below must be"),
        (lambda s: s.update(baseline={"rank": 0}), "below"),
        (lambda s: s.update(baseline=None), "unknown .*baseline.mean"),
    ],
)
def test_a_spoiled_baseline_is_named(spoil, message: str, tmp_path: Path):
    folder = tiny(baseline=True).fit(torch.randn(60, 4)).save(tmp_path / "e")
    settings(folder, spoil)
    with pytest.raises(ValueError, match=message):
        ScoreEstimator.load(folder)


def test_columns_of_the_baseline_take_the_place_of_the_first_noise():
    law = normal(6, wide=2)
    heads = Heads(2, 3)
    trunk = Trunks(6, rank=3, width=8, depth=1)
    net = ScoreNetwork(trunk, torch.Size([6]), 0.1, heads)
    values, vectors = torch.linalg.eigh(law.covariance)
    base = Baseline(6, 3, 0)
    base.load_state_dict({"mean": law.mean, "vectors": vectors, "values": values})
    net.depart_from(base)
    bias = trunk.rest[0].head.factor.bias.view(6, 3)  # pyright: ignore
    # two eigenvalues are off the bulk; a third column has nothing to begin with but its noise
    assert (bias.abs().sum(0) > 0).tolist().count(True) == 1
    assert net.weights.tolist() == [1.0, 1.0, 1.0]
