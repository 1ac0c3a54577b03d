"""`denoise` against closed forms: conjugate normals and mixtures, written without Tweedie."""

import json
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torch.testing import assert_close

import ozaki
from ozaki import MCMC, DSMTrainer, Posterior, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.denoising import denoise, find_sigma
from ozaki.linalg import Dense, Diagonal, LowRank
from ozaki.scores import DenoiserScore, GaussianMixtureScore, GaussianScore
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork
from ozaki.scores.learned.standardisation import Standardisation
from ozaki.scores.moments import posterior_moments
from tests.kit.strategies import gaussians, generator, mixtures, seeds, spd
from tests.kit.tolerances import MCSE, rounding
from tests.sampling.test_annealing import Levels
from tests.scores.learned.test_estimator import Zero, make

F64 = torch.float64
# float64 after one solve of condition 100: stricter than the policy's
EXACT = {"atol": 1e-9, "rtol": 1e-9}


def of_normal(x: Tensor, noise: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and covariance of N(μ, Σ) given x̃, by adding precisions."""
    precision = torch.linalg.inv(covariance)
    found = torch.linalg.inv(precision + torch.diag(noise**-2))
    right = (precision @ mean.unsqueeze(-1)).squeeze(-1) + x / noise**2
    return (found @ right.unsqueeze(-1)).squeeze(-1), found


@given(gaussians(), seeds)
def test_a_normal_has_its_conjugate_posterior(law, seed):
    g = generator(seed)
    for noise in (0.7, torch.rand(law.dim, generator=g, dtype=F64) + 0.2):
        score = law.smooth(noise)
        x = score.sample(6, g).reshape(2, 3, law.dim)
        posterior = denoise(score, x, noise, curvature="dense")
        n = torch.as_tensor(noise, dtype=F64).expand(law.dim)
        mean, covariance = of_normal(x, n, law.mean, law.covariance)
        assert_close(posterior.mean, mean, **EXACT)
        assert_close(posterior.covariance.dense()[0, 0], covariance, **EXACT)
        assert_close(posterior.variance[1, 2], covariance.diagonal(), **EXACT)
        # a diagonal s2 gives the same variances
        only = denoise(score, x, noise, curvature="diagonal")
        assert isinstance(only.covariance, Diagonal)
        assert_close(only.standard_deviation, posterior.standard_deviation, **EXACT)


@given(mixtures(), seeds)
def test_a_mixture_has_its_exact_moments(law, seed):
    noise, g = torch.full((law.dim,), 0.6, dtype=F64), generator(seed)
    score = law.smooth(0.6)
    x = score.sample(4, g)
    posterior = denoise(score, x, 0.6)
    means, covariances, evidence = [], [], []
    for k in range(len(law.means)):
        m, c = of_normal(x, noise, law.means[k], law.covariances[k])
        of_data = law.covariances[k] + torch.diag(noise**2)
        normal = torch.distributions.MultivariateNormal(law.means[k], of_data, validate_args=False)
        means.append(m)
        covariances.append(c)
        evidence.append(normal.log_prob(x) + law.weights[k].log())
    weights = torch.softmax(torch.stack(evidence), 0).unsqueeze(-1)
    each = torch.stack(means)
    mean = (weights * each).sum(0)
    spread = each - mean
    within = (weights.unsqueeze(-1) * torch.stack(covariances).unsqueeze(1)).sum(0)
    between = torch.einsum("kn,kni,knj->nij", weights.squeeze(-1), spread, spread)
    assert_close(posterior.mean, mean, **rounding(F64))
    assert_close(posterior.covariance.dense(), within + between, **rounding(F64))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_are_denoised_in_single_precision(dtype):
    """In halves N, which is sigma squared, was 0 and s2 infinite."""
    estimator, *_ = learned(sigma=(0.1, 1.0))
    narrow = Standardisation("columns", torch.zeros(3).double(), torch.full((3,), 1e-3).double())
    narrow = ScoreEstimator(estimator.network, narrow, 1e-3 * torch.randn(50, 3).double())
    x = (1e-3 * torch.randn(4, 3, generator=generator(0))).to(dtype)
    for sigma in (0.5, None):
        found, expected = denoise(narrow, x, sigma), denoise(narrow, x.float(), sigma)
        assert found.mean.dtype == found.variance.dtype == torch.float32
        assert_close(found.mean, expected.mean, **EXACT)
        assert_close(found.variance, expected.variance, **EXACT)
    assert float(found.variance.min()) > 0
    assert find_sigma(narrow, x) == find_sigma(narrow, x.float())
    score = GaussianScore(torch.zeros(3), torch.eye(3)).smooth(1.0)
    assert_close(denoise(score, x, 1.0).mean, x.float() / 2)
    with pytest.raises(ValueError, match=r"noisy must be floating-point.*int64"):
        find_sigma(narrow, torch.ones(2, 3, dtype=torch.int64))


SHAPES = {"columns": (3,), "scalar": (1, 2, 3), None: (2, 3)}


def learned(
    kind: str | None = "columns",
    *,
    trunk: nn.Module | None = None,
    sigma: float | tuple[float, float] = 0.4,
    heads: Heads | None = None,
) -> tuple[ScoreEstimator, Tensor, Tensor]:
    """An estimator that is exact: of N(mean, diag(scale²)) with its noise; float64."""
    shape = torch.Size(SHAPES[kind])
    dim = shape.numel()
    one = torch.ones(dim if kind == "columns" else 1, dtype=F64)
    mean, scale = 0.5 * one, 0.2 * one
    if kind == "columns":
        mean, scale = torch.tensor([5.0, -5.0, 1.0]).double(), torch.tensor([1, 10, 0.1]).double()
    centre, spread = (0.5, 0.2) if kind is None else (0.0, 1.0)
    units = Standardisation(kind, mean, scale)
    if kind is None:
        units = Standardisation(None, 0 * one, one)
    trunk = trunk or Zero()
    for parameter in trunk.parameters():
        nn.init.zeros_(parameter)
    net = ScoreNetwork(trunk, shape, sigma, heads or Heads(), centre, spread).double()
    points = mean + scale * torch.randn(50, dim, generator=generator(0), dtype=F64)
    return ScoreEstimator(net, units, points), mean.expand(dim), scale.expand(dim)


@pytest.mark.parametrize("kind", SHAPES)
def test_a_learned_normal_in_any_units_and_shape(kind):
    estimator, mean, scale = learned(kind)
    noise = estimator.noise_scale
    x = estimator.start(8, generator(1))
    want, covariance = of_normal(x, noise, mean, torch.diag(scale**2))
    shaped = x.reshape(2, 4, *estimator.event_shape)
    posterior = ozaki.denoise(estimator, shaped)
    assert posterior.mean.shape == posterior.variance.shape == shaped.shape
    assert_close(posterior.mean.reshape(8, -1), want, **EXACT)
    assert_close(posterior.variance.reshape(8, -1)[3], covariance.diagonal(), **EXACT)
    assert posterior.sigma == 0.4
    # flat, one point, and an array are the same
    flat = denoise(estimator, x)
    assert flat.mean.shape == x.shape
    assert_close(flat.mean.reshape(shaped.shape), posterior.mean, **EXACT)
    one = denoise(estimator, shaped[1, 2].numpy())
    assert_close(one.mean, posterior.mean[1, 2], **EXACT)
    assert_close(one.variance, posterior.variance[1, 2], **EXACT)
    values, directions = posterior.principal_components(2)
    assert values.shape == (2, 4, 2)
    assert directions.shape == (2, 4, 2, *estimator.event_shape)
    draws = posterior.sample(3, generator(2))
    assert draws.shape == (3, *shaped.shape) and posterior.log_prob(draws).shape == (3, 2, 4)
    low = denoise(estimator, shaped.float())
    assert low.mean.dtype == low.variance.dtype == torch.float32


class Counted(Zero):
    calls = 0

    def forward(self, u: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return super().forward(u, noise)


def test_one_pass_of_the_networks_serves_mean_and_covariance():
    trunk = Counted()
    estimator, *_ = learned(trunk=trunk)
    x = estimator.start(20, generator(0))
    trunk.calls = 0
    posterior = denoise(estimator, x)
    posterior.mean, posterior.variance, posterior.principal_components(2)
    posterior.log_prob(x), posterior.sample(2), posterior.calibration(x)
    assert trunk.calls == 1


def operator_cases() -> dict[str, Callable[[torch.Generator], tuple[int, object]]]:
    def low_rank(g, constant, weights):
        a = torch.rand(2, 3, 9, generator=g, dtype=F64) + 0.5
        b = torch.randn(2, 3, 9, 2, generator=g, dtype=F64)
        if weights[0] < 0:  # below, but not to 0
            b[..., 0] *= 0.6 / b[..., 0].norm(dim=-1, keepdim=True)
        return LowRank(
            a[..., :1].expand_as(a) if constant else a, b, torch.tensor(weights, dtype=F64)
        )

    return {
        "diagonal": lambda g: Diagonal(torch.rand(2, 3, 9, generator=g, dtype=F64) + 0.1),
        "dense": lambda g: Dense(spd(g, 2, 3, 9)),
        "low rank, constant": lambda g: low_rank(g, True, (1.0, 1.0)),
        "low rank, varying": lambda g: low_rank(g, False, (1.0, 1.0)),
        "low rank, signed": lambda g: low_rank(g, False, (-1.0, 1.0)),
    }


CASES = operator_cases()


def of_operator(case: str) -> Posterior:
    """A posterior of points (2, 3, 1, 3, 3) with that covariance."""
    g = generator(5)
    mean = torch.randn(2, 3, 9, generator=g, dtype=F64)
    return Posterior(mean, CASES[case](g), torch.ones(9, dtype=F64), (1, 3, 3))


@pytest.mark.parametrize("case", CASES)
def test_components_density_and_products_are_those_of_the_matrix(case):
    posterior = of_operator(case)
    matrix = posterior.covariance.dense()
    for k in (1, 4, 9):
        values, directions = posterior.principal_components(k)
        v = directions.reshape(2, 3, k, 9)
        want = torch.linalg.eigvalsh(matrix).flip(-1)[..., :k]
        assert_close(values, want, **EXACT)
        assert_close(v @ matrix, values.unsqueeze(-1) * v, **EXACT)
        assert_close(v @ v.mT, torch.eye(k, dtype=F64).expand(2, 3, k, k), **EXACT)
        assert (v.gather(-1, v.abs().argmax(-1, keepdim=True)) > 0).all()
    assert_close(posterior.variance.flatten(2), matrix.diagonal(dim1=-2, dim2=-1), **EXACT)
    v = torch.randn(2, 3, 9, generator=generator(1), dtype=F64)
    assert_close(posterior.covariance.matmul(v), (matrix @ v.unsqueeze(-1)).squeeze(-1), **EXACT)
    normal = torch.distributions.MultivariateNormal(posterior.mean.flatten(2), matrix)
    x = torch.randn(4, 2, 3, 1, 3, 3, generator=generator(2), dtype=F64)
    assert_close(posterior.log_prob(x), normal.log_prob(x.flatten(3)), **EXACT)


@pytest.mark.parametrize("case", CASES)
def test_draws_have_the_mean_and_the_covariance(case):
    posterior = of_operator(case)
    n = 20_000
    draws = posterior.sample(n, generator(7)).flatten(3)
    again = posterior.sample(n, generator(7)).flatten(3)
    assert torch.equal(draws, again)
    matrix, mean = posterior.covariance.dense(), posterior.mean.flatten(2)
    variance = matrix.diagonal(dim1=-2, dim2=-1)
    assert float(((draws.mean(0) - mean).abs() / (variance / n).sqrt()).max()) < 5
    centred = draws - mean
    found = torch.einsum("nabi,nabj->abij", centred, centred) / n
    # of a normal: Var(x_i x_j) = C_ii C_jj + C_ij²
    error = (variance.unsqueeze(-1) * variance.unsqueeze(-2) + matrix.square()) / n
    assert float(((found - matrix).abs() / error.sqrt()).max()) < 5


def test_a_diagonal_has_unit_vectors():
    posterior = Posterior(
        torch.zeros(3), Diagonal(torch.tensor([1.0, 3.0, 2.0])), torch.ones(3), (3,)
    )
    values, directions = posterior.principal_components(2)
    assert values.tolist() == [3.0, 2.0]
    assert directions.tolist() == [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_a_low_rank_estimator_agrees_with_its_own_s2():
    estimator = make(rank=2, dtype=F64)
    x = estimator.points[:6]
    posterior = denoise(estimator, x)
    assert isinstance(posterior.covariance, LowRank)
    noise = torch.diag(estimator.noise_scale**2)
    s1, s2, *_ = estimator.expand(x, "low_rank")
    assert s2 is not None
    assert_close(posterior.covariance.dense(), noise + noise @ s2.dense() @ noise, **EXACT)
    assert_close(posterior.mean, x + s1 @ noise, **EXACT)


def test_a_repaired_covariance_is_counted_and_the_rest_is_left():
    a = torch.tensor([[1.0, 2.0], [1.0, 0.5], [1.0, -0.2]], dtype=F64)
    posterior = Posterior(torch.zeros(3, 2, dtype=F64), Diagonal(a), torch.ones(2).double(), (2,))
    assert posterior.definite.tolist() == [True, True, False]
    assert posterior.negative_variances == 1
    assert posterior.variance[2, 1] == -0.2 and posterior.mean.isfinite().all()
    for what in (
        lambda: posterior.standard_deviation,
        lambda: posterior.sample(1),
        lambda: posterior.log_prob(torch.zeros(3, 2)),
        lambda: posterior.calibration(torch.zeros(3, 2)),
    ):
        with pytest.raises(ValueError, match=r"1 of .*repaired\(\).*signed=False"):
            what()
    repaired = posterior.repaired(0.01)
    assert repaired.repaired_points == 1
    assert repaired.variance.tolist() == [[1.0, 2.0], [1.0, 0.5], [1.0, 0.01]]
    assert repaired.repaired() is repaired
    assert repaired.sample(2).isfinite().all()
    # the share is of the noise's variance
    wide = Posterior(posterior.mean, posterior.covariance, torch.tensor([1.0, 3.0]).double(), (2,))
    assert wide.repaired(0.01).variance[2].tolist() == pytest.approx([1.0, 0.09])
    with pytest.raises(ValueError, match="below 1"):
        posterior.repaired(2.0)


@pytest.mark.parametrize("kind", ["low_rank", "dense"])
def test_an_indefinite_covariance_of_correlations_is_repaired(kind):
    g = generator(3)
    b = torch.randn(3, 5, 2, generator=g, dtype=F64)
    b[0] *= 0.1
    low = LowRank(torch.rand(3, 5, generator=g, dtype=F64) + 0.5, b, -torch.ones(2, dtype=F64))
    noise = torch.rand(5, generator=g, dtype=F64) + 0.5
    covariance = low if kind == "low_rank" else Dense(low.dense())
    posterior = Posterior(torch.zeros(3, 5, dtype=F64), covariance, noise, (5,))
    assert posterior.definite.tolist() == [True, False, False]
    with pytest.raises(ValueError, match="2 of 3 points"):
        posterior.sample(1)
    repaired = posterior.repaired()
    assert repaired.repaired_points == 2 and type(repaired.covariance) is type(covariance)
    eigenvalues = torch.linalg.eigvalsh(repaired.covariance.dense())
    assert (eigenvalues > 0).all()
    assert_close(repaired.covariance.dense()[0], low.dense()[0], rtol=0, atol=0)
    assert repaired.log_prob(repaired.sample(4)).isfinite().all()


def test_calibration_of_a_true_and_of_a_wrong_covariance():
    g = generator(0)
    law = GaussianScore(torch.zeros(6, dtype=F64), spd(g, 6))
    clean = law.sample(5_000, g)
    noise = 0.8
    x = clean + noise * torch.randn(clean.shape, generator=g, dtype=F64)
    posterior = denoise(law.smooth(noise), x, noise)
    found = posterior.calibration(clean, bins=6, components=6)
    # of 30,000 squares, correlated by sixes: 5 √(2/30,000) = 0.041 if they were not
    assert found.ratio == pytest.approx(1, abs=0.05)
    assert sum(b.share for b in found.bins) == pytest.approx(1)
    predicted = [b.predicted for b in found.bins]
    assert predicted == sorted(predicted) and predicted[0] < predicted[-1]
    # each bin is one coordinate, whose square has a relative error of √(2/5000)
    assert all(abs(b.ratio - 1) < MCSE * (2 / 5_000) ** 0.5 for b in found.bins)
    for level, share in found.coverage.items():
        assert abs(share - level) < MCSE * (level * (1 - level) / 5_000) ** 0.5
    values = torch.linalg.eigvalsh(posterior.covariance.dense()[0]).flip(-1)
    want = (values.cumsum(0) / values.sum()).tolist()
    # a share p has a standard error of p (1 − p) √(4/5,000), 0.007 or less
    assert found.explained == pytest.approx(want, abs=0.02)
    assert found.explained[-1] == pytest.approx(1)
    json.dumps(found._asdict())
    table = str(found).splitlines()
    assert len(table) == 1 + 6 + 1 + 2 and table[1].split()[0] == "16.7%"
    # half of the last digit printed
    assert float(table[7].split()[1]) == pytest.approx(found.ratio, abs=0.005)
    # columns in other units are judged alike
    units = torch.tensor([1.0, 10.0, 0.01, 1.0, 1.0, 100.0], dtype=F64)
    other = Posterior(
        posterior.mean * units, posterior.covariance.scale(units), noise * units, (6,)
    ).calibration(clean * units, bins=6)
    assert other.ratio == pytest.approx(found.ratio)
    assert [b.predicted for b in other.bins] == pytest.approx(predicted)
    wide = Posterior(posterior.mean, posterior.covariance.scale(2.0), posterior.noise_scale, (6,))
    # as the ratio above: a quarter of it
    assert wide.calibration(clean).ratio == pytest.approx(0.25, rel=0.05)
    assert wide.calibration(clean, components=0).explained == ()


def test_the_moments_of_high_orders():
    class Cubic(Zero):
        def forward(self, u: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
            return 0 * u, 0 * u, torch.tanh(u), 0.5 * torch.tanh(u)

    estimator, *_ = learned("scalar", trunk=Cubic(), heads=Heads(4))
    x = estimator.start(5, generator(0))
    posterior = denoise(estimator, x.reshape(5, 1, 2, 3))
    first, second, third, fourth = posterior.central_moments
    assert first.shape == (5, 1, 2, 3) and not first.any()
    assert_close(second, posterior.variance, **EXACT)
    raw = estimator.moments(x)
    m1, m2, m3, m4 = (m.reshape(5, 1, 2, 3) for m in raw)
    # float64: differences of moments lose some digits; so does the next
    assert_close(third, m3 - 3 * m1 * m2 + 2 * m1**3, atol=1e-8, rtol=1e-6)
    assert_close(fourth, m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4, atol=1e-8, rtol=1e-6)
    plain, *_ = learned()
    two = denoise(plain, plain.points[:2]).central_moments
    assert len(two) == 2 and torch.equal(two[1], denoise(plain, plain.points[:2]).variance)
    scores = plain.derivatives(plain.points[:2])
    want = posterior_moments(scores, plain.points[:2], plain.noise_scale, central=True)[1]
    assert_close(two[1], want, **EXACT)


def test_without_s2_there_is_the_mean_and_a_remedy_for_the_rest():
    estimator = make(order=1, dtype=F64)
    x = estimator.points[:3]
    posterior = denoise(estimator, x)
    assert posterior.mean.shape == (3, 3) and not posterior.has_covariance
    for what in ("covariance", "variance", "standard_deviation", "definite"):
        with pytest.raises(ValueError, match=r"only s1 is known.*estimator\.autodiff\(\)"):
            getattr(posterior, what)
    assert len(posterior.central_moments) == 1
    dense = denoise(estimator.autodiff(), x, sigma=estimator.noise_scale)
    assert isinstance(dense.covariance, Dense)
    assert_close(dense.mean, posterior.mean, **EXACT)


def test_a_denoiser_is_its_own_mean():
    score = DenoiserScore(lambda x, sigma: x / (1 + sigma**2), 0.5, (3,), dtype=F64)
    x = torch.tensor([[1.0, -2.0, 3.0]], dtype=F64)
    posterior = denoise(score, x)
    assert_close(posterior.mean, x / 1.25, **EXACT)
    assert_close(posterior.variance, torch.full_like(x, 0.25 / 1.25), **EXACT)
    with pytest.raises(ValueError, match=r"noise_scale = \[0\.5, 0\.5, 0\.5\], but was \[0\.7"):
        denoise(score, x, 0.7)
    assert_close(denoise(score, x, 0.5).mean, posterior.mean)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.5])
def test_the_noise_is_found_from_the_points(sigma):
    levels = Levels(kind="dense")
    levels.device = torch.device("cpu")
    score = levels.at(sigma)
    x = score.score.sample(2_000, generator(0))
    found = denoise(levels, x)
    # 512 points of 2 dimensions: ln σ has a standard error of about √(1/2/1024) at least
    assert abs(math.log(found.sigma / sigma)) < 0.12  # five of them are 0.11
    given = denoise(levels, x, found.sigma)
    # the same σ, given and found: roundings alone
    assert_close(given.mean, found.mean, atol=1e-6, rtol=1e-6)


def test_the_noise_of_a_learned_normal_in_units_of_their_own():
    estimator, mean, scale = learned(sigma=(0.05, 2.0))
    g = generator(4)
    clean = mean + scale * torch.randn(3_000, 3, generator=g, dtype=F64)
    for sigma in (0.5, 1.2):
        x = clean + sigma * scale * torch.randn(3_000, 3, generator=g, dtype=F64)
        # of N(0, (1 + σ²) I): σ² is the excess of the mean square
        rows = ((x - mean) / scale)[::6]
        assert find_sigma(estimator, x) == pytest.approx(
            # the search ends within 1e-5 of ln σ, where the likelihood is flat
            math.sqrt(float(rows.square().mean()) - 1),
            rel=1e-3,
        )
    assert denoise(estimator, x, 0.3).sigma == 0.3
    with pytest.raises(ValueError, match=r"range of training, 0\.05 to 2, but was 3"):
        denoise(estimator, x, 3.0)
    with pytest.warns(UserWarning, match="an end of the range"):
        denoise(estimator, mean + 3 * (x - mean))
    alone = make(order=1, sigma=(0.1, 1.0), dtype=F64)
    with pytest.raises(ValueError, match=r"sigma must be given.*0\.1 to 1"):
        denoise(alone, alone.points[:4])
    with pytest.raises(ValueError, match="one sigma only"):
        find_sigma(learned()[0], x)


class Broken(GaussianScore):
    """s1 or s2 of the wrong sign."""

    def __init__(self, law: GaussianScore, first: float, second: float):
        super().__init__(law.mean, law.covariance)
        self.signs = first, second

    def expand(self, x, curvature=None):
        s1, s2, *rest = super().expand(x, curvature)
        if s2 is not None:
            s2 = type(s2)(self.signs[1] * s2.diagonal())
        return type(super().expand(x))(self.signs[0] * s1, s2, *rest)


@pytest.mark.parametrize(("first", "second"), [(-1.0, 1.0), (1.0, -1.0)])
def test_a_wrong_sign_is_seen(first, second):
    law = GaussianScore(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)).smooth(1.0)
    x = law.sample(2_000, generator(0))
    clean = x / 2 + 0.5**0.5 * torch.randn(x.shape, generator=generator(1), dtype=F64)
    right = denoise(Broken(law, 1.0, 1.0), x, 1.0, curvature="diagonal").calibration(clean)
    wrong = denoise(Broken(law, first, second), x, 1.0, curvature="diagonal").calibration(clean)
    # 4.5 standard errors of 4,000 squares, of √(2/4,000)
    assert right.ratio == pytest.approx(1, abs=0.1)
    # a wrong sign is five times as far off as chance allows above
    assert abs(wrong.ratio - 1) > 0.5


def image(sigma: float = 0.4) -> ScoreEstimator:
    return learned("scalar", sigma=sigma)[0]


BAD = {
    "as this estimator was made for, but had": [
        torch.zeros(2, 1, 3, 2),
        torch.zeros(2, 3, 2, 3),
        torch.zeros(2, 5),
        torch.tensor(1.0),
    ],
    r"dtype was u?int.* / 255": [
        torch.zeros(2, 1, 2, 3, dtype=torch.uint8),
        np.zeros((1, 2, 3), np.int64),
    ],
    "at least one point": [torch.zeros(0, 1, 2, 3)],
    "must be finite": [torch.full((1, 2, 3), torch.nan)],
    r"0 and 255|units of the training data.*255": [torch.full((1, 2, 3), 255.0)],
    "must be real": [torch.zeros(1, 2, 3, dtype=torch.complex64)],
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("message", BAD)
def test_points_that_cannot_be_denoised_are_named(message):
    for noisy in BAD[message]:
        with pytest.raises(ValueError, match=message):
            denoise(image(), noisy)


@pytest.mark.usefixtures("unchecked")
def test_arguments_that_do_not_fit_are_named():
    estimator, law = image(), GaussianScore([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    x = torch.zeros(2, 2)
    for wrong, message in [
        (lambda: denoise(lambda x: x, x), "DenoiserScore"),
        (lambda: denoise(law, x), "sigma must be given for a GaussianScore"),
        (lambda: denoise(law, x, -1.0), "above 0"),
        (lambda: denoise(law, x, [1.0, 2.0, 3.0]), "one number or 2"),
        (lambda: denoise(law, x, "much"), "one number or 2, but was 'much'"),
        (lambda: denoise(law, x, 1.0, curvature="low_rank"), "GaussianScore can give"),
        (lambda: denoise(estimator, estimator.points, 0.5), "range of training, 0.4 to 0.4"),
        (lambda: denoise(law, x, 1.0).principal_components(3), "at most the dimension 2"),
        (lambda: denoise(law, x, 1.0).principal_components(0), "at least 1"),
        (lambda: denoise(law, x, 1.0).sample(0), "n must be"),
        (lambda: denoise(law, x, 1.0).log_prob(torch.zeros(2, 3)), r"x must have shape \(\*batch"),
        (lambda: denoise(law, x, 1.0).calibration(torch.zeros(3, 2)), "clean must have shape"),
        (lambda: denoise(law, x, 1.0).calibration(x, bins=0), "bins must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            wrong()


def test_a_small_noise_in_conflict_is_noticed():
    law = GaussianScore([0.0, 0.0], [[1e-16, 0.0], [0.0, 1e-16]])
    law.noise_scale = torch.tensor([1e-9, 1e-9])  # pyright: ignore
    with pytest.raises(ValueError, match="sigma must be the noise of the score"):
        denoise(law, torch.zeros(2), 2e-9)


@pytest.mark.parametrize("score", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("points", [torch.float32, torch.float64], ids=str)
def test_a_posterior_has_the_dtype_of_the_points(score, points):
    mean, covariance = torch.zeros(2, dtype=score), torch.eye(2, dtype=score)
    for law in (
        GaussianScore(mean, covariance),
        GaussianMixtureScore(mean[None], covariance[None]),
    ):
        found = denoise(law.smooth(1.0), torch.tensor([[2.0, -4.0]], dtype=points), 1.0)
        want = torch.tensor([[1.0, -2.0]], dtype=points)
        assert_close(found.mean, want)
        assert_close(found.variance, torch.full_like(want, 0.5))
        assert found.sample(3, generator(0)).dtype == points


@pytest.mark.parametrize("kind", [Diagonal, Dense, LowRank])
def test_a_covariance_shared_by_all_points_is_repaired(kind):
    values = torch.tensor([1.0, -0.5])
    covariance = {
        Diagonal: lambda: Diagonal(values),
        Dense: lambda: Dense(values.diag()),
        LowRank: lambda: LowRank(values, torch.zeros(2, 1)),
    }[kind]()
    posterior = Posterior(torch.zeros(3, 2), covariance, torch.ones(2), (2,))
    repaired = posterior.repaired(0.01)
    assert repaired.repaired_points == 3
    assert_close(repaired.variance, torch.tensor([[1.0, 0.01]]).expand(3, 2))
    assert repaired.definite.tolist() == [True] * 3


def test_ordinary_points_raise_no_warning_and_repr_says_what_it_is():
    estimator, *_ = learned("scalar")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = denoise(estimator, estimator.start(4, generator(0)).reshape(4, 1, 2, 3))
    assert repr(found) == (
        "Posterior(batch=(4,), event_shape=(1, 2, 3), covariance=Diagonal, dtype=torch.float64)"
    )


def test_mixture_scores_of_one_component_are_those_of_the_normal():
    law = GaussianScore([1.0, 2.0], [[1.0, 0.3], [0.3, 0.5]])
    same = GaussianMixtureScore(law.mean[None], law.covariance[None])
    x = torch.tensor([[0.3, 0.4]])
    a, b = (denoise(s.smooth(0.4), x, 0.4) for s in (law, same))
    assert_close(a.mean, b.mean)
    assert_close(a.covariance.dense(), b.covariance.dense())


def small_images(n: int) -> tuple[Tensor, int]:
    """Digits pooled to 8 × 8 where OZAKI_DATA holds them, else spots, 6 × 6; and training steps."""
    root = Path(os.environ.get("OZAKI_DATA", "")) / "mnist"
    if "OZAKI_DATA" in os.environ and root.is_dir():
        digits = ozaki.datasets.mnist(root, "test").images[:n]
        return avg_pool2d(nn.functional.pad(digits, (2, 2, 2, 2)), 4), 300
    g = generator(0)
    centre = 1 + 4 * torch.rand(n, 2, 1, generator=g)
    row, column = torch.exp(-((torch.arange(6.0) - centre) ** 2) / 2).unbind(1)
    return (row.unsqueeze(2) * column.unsqueeze(1)).unsqueeze(1), 120


@pytest.mark.usefixtures("unchecked")
def test_learned_images():
    images, steps = small_images(3_500)
    train, clean = images[:3_000], images[3_000:]
    trainer = DSMTrainer(
        (0.2, 0.5), curvature="low_rank", rank=4, signed=False, baseline=True,
        max_steps=steps, batch_size=128, width=64, joint=True, seed=0, progress=False,
    )  # fmt: skip
    estimator = trainer.fit(train)
    z = torch.randn(clean.shape, generator=generator(1))
    posteriors = {s: denoise(estimator, clean + s * z, s) for s in (0.2, 0.35, 0.5)}
    errors = {s: float((p.mean - clean).square().mean()) for s, p in posteriors.items()}
    # Wiener's filter, the best linear map, knows only the covariance of the images
    mean = train.flatten(1).mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(train.flatten(1).T))
    for s, posterior in posteriors.items():
        seen = (clean + s * z).flatten(1) - mean
        linear = (seen @ vectors * (values / (values + s**2))) @ vectors.T + mean
        assert errors[s] < float((linear - clean.flatten(1)).square().mean())
        assert bool(posterior.definite.all())
        found = posterior.calibration(clean)
        # guards the size of the uncertainty; a network of few steps is no closer
        assert 0.7 < found.ratio < 1.3
    variances = [float(p.variance.mean()) for p in posteriors.values()]
    assert variances == sorted(variances)
    # what varies among the images is what is not known of one
    spread = train.flatten(1).var(0)
    each = posteriors[0.35].variance.flatten(1).mean(0)
    dark, bright = spread.argsort()[: len(spread) // 4], spread.argsort()[-len(spread) // 4 :]
    assert float(each[bright].mean()) > 3 * float(each[dark].mean())
    # the operator against its matrix
    few = denoise(estimator, (clean + 0.35 * z)[:4], 0.35)
    matrix = few.covariance.dense()
    wanted = torch.linalg.eigvalsh(matrix).flip(-1)[:, :5]
    # float32: the policy's rtol, and an atol for eigenvalues near 0
    assert_close(few.principal_components(5)[0], wanted, rtol=1e-4, atol=1e-6)
    assert_close(few.variance.flatten(1), matrix.diagonal(dim1=-2, dim2=-1))
    # one noise for all 500 images is found
    # guards that it is found: for the network's error, not for chance
    assert denoise(estimator, clean + 0.35 * z).sigma == pytest.approx(0.35, rel=0.05)


@pytest.mark.thorough
def test_draws_of_a_noisy_law_without_their_noise(tmp_path):
    score = DenoiserScore(lambda x, sigma: x / (1 + sigma**2), 0.5, (1, 4, 5), dtype=F64)
    mcmc = MCMC(ScoreLangevinKernel(score), 20, 20, num_chains=3, seed=0, disable_progbar=True)
    with pytest.raises(RuntimeError, match="call run"):
        mcmc.denoised()
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    torch.testing.assert_close(mcmc.denoised(group_by_chain=True)["x"], draws / 1.25)
    torch.testing.assert_close(mcmc.denoised()["x"], draws.flatten(0, 1) / 1.25)
    few = draws[:2, ::5].numpy()
    assert_close(torch.as_tensor(mcmc.result.cleaned(few)), torch.as_tensor(few / 1.25))
    mcmc.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Draws of x without their noise: another law" in page
    plain = MCMC(ScoreOzakiKernel(GaussianScore(torch.zeros(2), torch.eye(2))), 5, 6, seed=0)
    plain.run()
    plain.report(tmp_path / "plain.html")
    assert "Draws of" not in (tmp_path / "plain.html").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=r"noise, such as a ScoreEstimator.*was a GaussianScore"):
        plain.denoised()
