"""Closed forms against autodiff of densities written by torch, and against their own draws."""

import numpy as np
import pytest
import torch
from hypothesis import given
from torch.testing import assert_close

from ozaki.scores.analytic import GaussianMixtureScore, GaussianScore, LogisticMixtureScore
from tests.kit.oracles import derivatives, gaussian_mixture_log_density
from tests.kit.strategies import gaussians, generator, logistics, mixtures, seeds, spd
from tests.kit.tolerances import MCSE, rounding


def check_expansion(score, log_density, x):
    """Gradient, both curvatures and density differences equal those of `log_density`."""
    gradient, hessian = derivatives(log_density, x)
    size = 1 + hessian.abs().amax()
    for kind, want in (("dense", hessian), ("diagonal", hessian.diagonal(dim1=-2, dim2=-1))):
        at = score.expand(x, kind)
        got = at.curvature.dense() if kind == "dense" else at.curvature.diagonal()
        assert_close(got / size, want / size, **rounding(torch.float64))
        assert_close(at.gradient, gradient, **rounding(torch.float64))
    values = torch.vmap(log_density)(x)
    assert_close(at.log_density - at.log_density[0], values - values[0], **rounding(torch.float64))
    assert score.expand(x).curvature is None


def points(score, seed, n=5):
    g = generator(seed)
    return torch.randn(n, score.dim, generator=g, dtype=torch.float64) * 3


@given(gaussians(), seeds)
def test_gaussian(score, seed):
    law = torch.distributions.MultivariateNormal(score.mean, score.covariance, validate_args=False)
    check_expansion(score, law.log_prob, points(score, seed))


@given(mixtures(), seeds)
def test_gaussian_mixture(score, seed):
    def log_density(x):
        return gaussian_mixture_log_density(x, score.means, score.covariances, score.weights)

    check_expansion(score, log_density, points(score, seed))


@given(logistics(), seeds)
def test_logistic_mixture(score, seed):
    def log_density(x):
        t = (x - score.locations) / score.scales
        # written from the distribution function: f = F(1 − F)/s
        each = torch.nn.functional.logsigmoid(t) + torch.nn.functional.logsigmoid(-t)
        return torch.logsumexp((each - score.scales.log()).sum(-1) + score.weights.log(), -1)

    check_expansion(score, log_density, points(score, seed))


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_any_batch_dimensions(batch):
    score = GaussianMixtureScore(torch.eye(2), torch.eye(2).expand(2, 2, 2))
    x = torch.zeros(*batch, 2)
    for s in (score, GaussianScore(torch.zeros(2), torch.eye(2))):
        at = s.expand(x, "dense")
        assert at.gradient.shape == (*batch, 2)
        assert at.curvature.dense().shape == (*batch, 2, 2)
        assert at.log_density.shape == batch


@pytest.mark.parametrize("seed", range(4))
def test_single_precision_keeps_ill_conditioned_covariances(seed):
    covariance = spd(generator(seed), 2, 5, condition=1e7).float()
    means = torch.randn(2, 5, generator=generator(seed)) / 100
    for exact in (
        GaussianScore(means[0].double(), covariance[0].double()),
        GaussianMixtureScore(means.double(), covariance.double()),
    ):
        if isinstance(exact, GaussianScore):
            score = GaussianScore(means[0], covariance[0])
            values = torch.linalg.eigvalsh(exact._curvature.dense()).flip(-1)
            found = score.expand(means[0], "dense").curvature.eigen()[0].double()
            # float32's policy, of the condition 1e7 that the float64 factors keep out
            assert_close(found.sort(descending=True)[0], values, rtol=1e-4, atol=0)
        else:
            score = GaussianMixtureScore(means, covariance)
        x = exact.sample(50, generator(seed)).float()
        at, truth = (s.expand(x.to(s.dtype), "diagonal") for s in (score, exact))
        assert at.gradient.dtype == torch.float32
        size = truth.curvature.diagonal().abs().max()
        assert_close(at.curvature.diagonal() / size, (truth.curvature.diagonal() / size).float())
        # float32: quadratic forms of a condition of 1e7; guards against values of another size
        assert_close(at.log_density.double(), truth.log_density, rtol=1e-3, atol=1e-2)


def test_no_curvature_of_a_normal_law_is_positive():
    for seed in range(40):
        q = torch.linalg.qr(torch.randn(4, 4, generator=generator(seed), dtype=torch.float64))[0]
        covariance = (q * torch.tensor([1, 1e-3, 1e-10, 3e-17], dtype=torch.float64)) @ q.mT
        try:
            score = GaussianScore(torch.zeros(4).double(), (covariance + covariance.mT) / 2)
        except ValueError:  # rounding alone made it indefinite
            continue
        x = torch.randn(50, 4, generator=generator(seed), dtype=torch.float64)
        at = score.expand(x, "dense")
        assert (at.curvature.eigen()[0] < 0).all() and (at.log_density < 0).all()


def test_a_covariance_that_rounding_made_uneven_is_taken():
    covariance = torch.tensor([[2.0, 0.3], [0.3 * (1 + 1e-6), 0.5]])
    assert GaussianScore(torch.zeros(2), covariance).expand(torch.ones(2)).log_density < 0
    assert GaussianMixtureScore(torch.zeros(1, 2), covariance[None]).dtype == torch.float32


CLOSED = {
    "normal": GaussianScore([0.0] * 3, torch.eye(3)),
    "mixture": GaussianMixtureScore([[0.0] * 3], torch.eye(3)[None]),
    "logistic": LogisticMixtureScore([[0.0] * 3], torch.ones(1, 3)),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", CLOSED)
def test_what_no_closed_form_can_be_asked_is_named(kind):
    score = CLOSED[kind]
    for curvature in ("Dense", "full", "low_rank"):
        with pytest.raises(ValueError, match=f"curvature='{curvature}' is not something"):
            score.expand(torch.zeros(5, 3), curvature)
    with pytest.raises(ValueError, match=r"x must have shape \(\*batch, 3\), but had \(5, 1\)"):
        score.expand(torch.zeros(5, 1))
    with pytest.raises(ValueError, match="x must be floating-point"):
        score.expand(torch.zeros(5, 3, dtype=torch.int64))


@pytest.mark.parametrize("kind", CLOSED)
@pytest.mark.parametrize("curvature", [None, "diagonal", "dense"])
def test_points_of_another_dtype_have_their_expansion_in_it(kind, curvature):
    x = torch.randn(4, 3, generator=generator(0))
    own = CLOSED[kind].expand(x, curvature)
    found = CLOSED[kind].expand(x.double(), curvature)
    assert found.gradient.dtype == found.log_density.dtype == torch.float64
    assert_close(found.gradient, own.gradient.double())
    assert_close(found.log_density, own.log_density.double())
    if curvature:
        assert found.curvature.dtype == torch.float64
        assert_close(found.curvature.dense(), own.curvature.dense().double())


def test_far_out_a_mixture_stays_finite():
    score = GaussianMixtureScore(
        torch.tensor([[-3.0], [3.0]], dtype=torch.float64),
        torch.ones(2, 1, 1, dtype=torch.float64),
    )
    at = score.expand(torch.tensor([[1e6]], dtype=torch.float64), "dense")
    assert_close(at.gradient, torch.tensor([[3.0 - 1e6]], dtype=torch.float64))
    assert_close(at.curvature.dense(), -torch.ones(1, 1, 1, dtype=torch.float64))


@pytest.mark.parametrize(
    "score",
    [
        GaussianScore([1.0, -2.0], [[2.0, 0.9], [0.9, 0.5]]),
        GaussianMixtureScore([[0.0, 1.0], [2.0, 2.0]], [[[1.0, 0.5], [0.5, 1.0]]] * 2, [0.3, 0.7]),
    ],
)
def test_draws_have_the_moments_of_the_smoothed_law(score, generator):
    n, noise = 40_000, torch.tensor([0.5, 2.0])
    smooth = score.smooth(noise)
    z = torch.randn(n, 2, generator=generator)
    for x in (smooth.sample(n, generator), score.sample(n, generator) + noise * z):
        # Stein: E[s1] = 0, E[s1 (x − m)ᵀ] = −I, E[s2 + s1 s1ᵀ] = 0 under the law itself
        at = smooth.expand(x, "dense")
        terms = torch.cat(
            [
                at.gradient,
                (at.gradient[:, :, None] * x[:, None] + torch.eye(2)).flatten(1),
                (at.curvature.dense() + at.gradient[:, :, None] * at.gradient[:, None]).flatten(1),
            ],
            1,
        )
        z_scores = terms.mean(0) / (terms.std(0) / n**0.5)
        assert z_scores.abs().max() < 5
        # the same identities see a smoothing forgotten
        wrong = score.expand(x, "dense")
        off = wrong.curvature.dense() + wrong.gradient[:, :, None] * wrong.gradient[:, None]
        off = off.flatten(1)
        assert (off.mean(0) / (off.std(0) / n**0.5)).abs().max() > 10


def test_logistic_draws_follow_the_law(generator):
    score = LogisticMixtureScore([[0.0], [3.0]], [[0.5], [1.0]], [0.4, 0.6])
    x = score.sample(40_000, generator)
    cdf = (torch.sigmoid((x - score.locations.T) / score.scales.T) * score.weights).sum(-1)
    # the probability integral transform is uniform
    assert abs(cdf.mean() - 0.5) < MCSE * (1 / 12) ** 0.5 / 200
    assert abs(cdf.var() - 1 / 12) < MCSE * (1 / 180) ** 0.5 / 200


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianScore([0.0], [[float("nan")]]), "covariance must be finite"),
        (lambda: GaussianScore([0.0, 0.0], [[1.0]]), r"covariance must have shape \(2, 2\)"),
        (lambda: GaussianScore([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
        (lambda: GaussianScore([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (lambda: GaussianScore([0, 0], torch.eye(2)), "mean must be floating-point"),
        (lambda: GaussianScore(["a"], torch.eye(1)), "mean must be numeric"),
        (
            lambda: GaussianScore(np.ma.masked_greater([1.0, 9.0], 2), torch.eye(2)),
            "mean must not be masked, but 1 of its entries",
        ),
        (lambda: GaussianMixtureScore([0.0], [[[1.0]]]), "means must have shape"),
        (
            lambda: GaussianMixtureScore([[0.0]], [[[1.0]]], [0.5]),
            r"weights must be above 0 and sum to 1, but were \[0.5\]",
        ),
        (lambda: LogisticMixtureScore([[0.0]], [[0.0]]), "scales must be above 0"),
        (lambda: GaussianScore([0.0], [[1.0]]).smooth(-1.0), "sigma must be finite"),
        (lambda: GaussianScore([0.0], [[1.0]]).smooth(torch.ones(2)), "sigma must be a number"),
        (
            lambda: GaussianScore([0.0], [[1.0]]).expand(torch.zeros(1, 1), "low_rank"),
            "curvature='low_rank' is not something GaussianScore can give",
        ),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
