"""A score as a site of a Pyro model, against torch's own densities of the same laws."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import HMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.mcmc import MCMC as PyroMCMC
from torch.func import grad, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ozaki import MCMC, ScoreDistribution, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.linalg import Diagonal, LowRank
from ozaki.scores import GaussianMixtureScore, GaussianScore, Score
from ozaki.scores.pyro_models.model import PyroModelScore
from ozaki.scores.pyro_models.site import reading_scores
from tests.kit.contracts import moments_match

F64 = torch.float64
FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.7, 0.8, 0.0], [-0.3, 0.5, 1.2]], dtype=F64)
COVARIANCE = FACTOR @ FACTOR.mT
MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=F64)
LAW = dist.MultivariateNormal(MEAN, COVARIANCE, validate_args=False)
MAP = torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]], dtype=F64)
DATA = torch.tensor([1.0, 2.0], dtype=F64)


class Bare(Score):
    """A closed form whose density nobody knows; with a curvature of the kind asked for."""

    def __init__(self, score, kind="dense", event_shape=None):
        self.score, self.kind = score, kind
        self.dim, self.dtype = score.dim, score.dtype
        self.event_shape = torch.Size(event_shape or score.event_shape)

    @property
    def default_curvature(self):
        return self.kind

    def expand(self, x, curvature=None):
        at = self.score.expand(x, None if curvature is None else "dense")
        return at._replace(log_density=None, curvature=self._stored(x, at.curvature))

    def _stored(self, x, curvature):
        if curvature is None or self.kind == "dense":
            return curvature
        if self.kind == "diagonal":
            return Diagonal(curvature.diagonal())
        values, vectors = torch.linalg.eigh(-torch.linalg.inv(COVARIANCE))
        zeros = torch.zeros_like(x)
        return LowRank(zeros, vectors.expand(*x.shape, 3), values)

    def start(self, n, generator=None):
        return self.score.start(n, generator)


KNOWN = GaussianScore(MEAN, COVARIANCE)
PRIORS = {
    "density": ScoreDistribution(KNOWN),
    "bare": ScoreDistribution(Bare(KNOWN)),
    "low rank": ScoreDistribution(Bare(KNOWN, "low_rank")),
}


def points(n=6, dim=3, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)


def inverse_problem(y, prior):
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros((), dtype=F64), 0.3))
    x = pyro.sample("x", prior)
    pyro.sample("y", dist.Normal(x @ MAP.mT, scale).to_event(1), obs=y)


# -- derivatives ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_gradient_and_hessian_of_any_expression(prior):
    """log_prob inside a larger function, at every level of torch.func and of autograd."""

    def mine(x):
        return 2 * prior.log_prob(torch.sin(x)) + x[0] ** 2

    def true(x):
        return 2 * LAW.log_prob(torch.sin(x)) + x[0] ** 2

    x = points()
    with reading_scores():
        torch.testing.assert_close(vmap(grad(mine))(x), vmap(grad(true))(x))
        hessian = vmap(jacrev(grad(true)))(x)
        torch.testing.assert_close(vmap(jacrev(grad(mine)))(x), hessian)
        torch.testing.assert_close(torch.autograd.functional.hessian(mine, x[0]), hessian[0])
        graph = make_fx(vmap(jacrev(grad(mine))))(x + 1)
    torch.testing.assert_close(graph(x), hessian)


@pytest.mark.parametrize(
    "made_of",
    [
        lambda prior: dist.TransformedDistribution(prior, [dist.transforms.ExpTransform()]),
        lambda prior: dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), prior.expand([2]).to_event(0)
        ),
    ],
    ids=["transformed", "mixed"],
)
def test_a_law_made_of_a_score_without_a_density_is_refused(made_of):
    """Its Jacobian or weights would count twice, or not at all."""
    with pytest.raises(ValueError, match=r"site 'x' must not be made of a ScoreDistribution"):
        PyroModelScore(lambda: pyro.sample("x", made_of(ScoreDistribution(Bare(KNOWN)))))
    exact = PyroModelScore(
        lambda: pyro.sample(
            "x",
            dist.TransformedDistribution(
                ScoreDistribution(KNOWN), [dist.transforms.ExpTransform()]
            ),
        )
    )
    torch.testing.assert_close(exact.expand(points()).gradient, KNOWN.expand(points()).gradient)


def test_gradient_alone_where_no_curvature_will_be_read():
    class Counting(Bare):
        asked = ()

        def expand(self, x, curvature=None):
            self.asked = (*self.asked, curvature)
            return super().expand(x, curvature)

    score = Counting(KNOWN)
    with reading_scores(second=False):
        found = vmap(grad(ScoreDistribution(score).log_prob))(points())
        torch.testing.assert_close(found, KNOWN.expand(points()).gradient)
        assert set(score.asked) == {None}
        with pytest.raises(NotImplementedError, match="Hessian of a ScoreDistribution"):
            jacrev(grad(ScoreDistribution(score).log_prob))(points()[0])


def test_event_and_batch_shapes():
    mixed = GaussianScore(torch.zeros(4, dtype=F64), torch.eye(4, dtype=F64))
    prior = ScoreDistribution(Bare(mixed, event_shape=(2, 2)))
    assert prior.event_shape == (2, 2)
    spread = prior.expand((5,))
    assert spread.batch_shape == (5,) and spread.sample().shape == (5, 2, 2)
    assert spread.sample(torch.Size([3])).shape == (3, 5, 2, 2)
    assert prior.sample().shape == (2, 2)
    x = torch.randn(5, 2, 2, dtype=F64, requires_grad=True)
    with reading_scores():
        value = spread.log_prob(x)
    assert value.shape == (5,)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), x)[0], -x)


def test_a_density_is_a_density():
    """Where there is one, log_prob is it up to a constant, and anyone may read it."""
    x = points()
    found = PRIORS["density"].log_prob(x) - LAW.log_prob(x)
    torch.testing.assert_close(found, found[:1].expand(6))
    torch.testing.assert_close(
        vmap(grad(PRIORS["density"].log_prob))(x), vmap(grad(LAW.log_prob))(x)
    )


def test_nothing_is_drawn_to_build_one():
    state = torch.get_rng_state()
    ScoreDistribution(KNOWN).expand((3,))
    assert torch.equal(state, torch.get_rng_state())


# -- in a model -----------------------------------------------------------------------------------


def scaled(y, prior):
    with poutine.scale(scale=2.5):
        inverse_problem(y, prior)


def plated(y, prior):
    with pyro.plate("groups", 2):
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x @ MAP.mT, 1.0).to_event(1), obs=y)


def masked(y, prior):
    x = pyro.sample("x", prior.mask(torch.tensor(0.5) > 0))
    pyro.sample("y", dist.Normal(x @ MAP.mT, 1.0).to_event(1), obs=y)


def observed(y, prior):
    """The prior of a point that is a function of other sites."""
    z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=F64), 1).to_event(1))
    pyro.sample("x", prior, obs=torch.sin(z))


MODELS = {
    "plain": inverse_problem,
    "scaled": scaled,
    "plated": plated,
    "masked": masked,
    "observed": observed,
}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_model_expands_as_with_the_true_prior(model, prior):
    mine, true = PyroModelScore(model, (DATA, prior)), PyroModelScore(model, (DATA, LAW))
    assert mine.sites.shapes == true.sites.shapes
    x = points(5, mine.dim, seed=1)
    for kind in (None, "diagonal", "dense"):
        found, wanted = mine.expand(x, kind), true.expand(x, kind)
        torch.testing.assert_close(found.gradient, wanted.gradient)
        if kind is not None:
            torch.testing.assert_close(found.curvature.dense(), wanted.curvature.dense())
        if prior is PRIORS["density"]:
            assert found.has_density
            change = found.log_density - wanted.log_density
            torch.testing.assert_close(change, change[:1].expand(5))
        else:
            assert not found.has_density
            # the two parts make the whole, and the one with a density is the rest of the model
            uniform = dist.Normal(torch.zeros(3, dtype=F64), 1e8).to_event(1)
            rest = PyroModelScore(model, (DATA, uniform)).expand(x)
            torch.testing.assert_close(found.gradient - found.score_gradient, rest.gradient)
            change = found.log_density - rest.log_density
            torch.testing.assert_close(change, change[:1].expand(5))


def test_chains_begin_where_the_prior_does():
    far = GaussianScore(MEAN + 50, COVARIANCE)
    score = PyroModelScore(inverse_problem, (DATA, ScoreDistribution(Bare(far))))
    start = score.constrain(score.start(200, torch.Generator().manual_seed(0)))
    # 5 √(1.78/200) = 0.47 for the widest of the three
    assert (start["x"].mean(0) - MEAN - 50).abs().max() < 0.5
    assert start["scale"].log().abs().max() < 2


def test_prior_predictive_draws():
    found = Predictive(inverse_problem, num_samples=7)(None, PRIORS["bare"])
    assert found["x"].shape == (7, 3) and found["y"].shape == (7, 2)


# -- who may not ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [HMC, NUTS])
def test_samplers_that_weigh_by_values_are_told_why(kernel):
    run = PyroMCMC(kernel(inverse_problem), num_samples=2, warmup_steps=2, disable_progbar=True)
    with pytest.raises(NotImplementedError, match=r"Bare has no log density.*ScoreOzakiKernel"):
        run.run(DATA, PRIORS["bare"])


def test_variational_inference_is_told_why():
    guide = pyro.infer.autoguide.AutoNormal(inverse_problem)
    svi = SVI(inverse_problem, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    with pytest.raises(NotImplementedError, match="has no log density"):
        svi.step(DATA, PRIORS["bare"])


def test_no_sum_over_discrete_sites_without_values():
    def model(prior):
        x = pyro.sample("x", prior)
        k = pyro.sample("k", dist.Categorical(torch.ones(2)))
        pyro.sample("y", dist.Normal(x.sum() + k, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match=r"sum out discrete sites, \['k'\].*\['x'\]"):
        PyroModelScore(model, (PRIORS["bare"],))


def test_only_scores():
    with pytest.raises(ValueError, match="score must be a Score, but was Normal"):
        ScoreDistribution(torch.distributions.Normal(0.0, 1.0))  # pyright: ignore


# -- chains ---------------------------------------------------------------------------------------


def posterior(noise):
    """Mean and covariance of x given DATA = MAP x + noise."""
    precision = torch.linalg.inv(COVARIANCE) + MAP.mT @ MAP / noise**2
    covariance = torch.linalg.inv(precision)
    pull = torch.linalg.solve(COVARIANCE, MEAN) + MAP.mT @ DATA / noise**2
    return covariance @ pull, covariance


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "kernel",
    [ScoreOzakiKernel, pytest.param(ScoreLangevinKernel, marks=pytest.mark.thorough)],
)
def test_linear_inverse_problem(kernel):
    def model(y):
        x = pyro.sample("x", PRIORS["bare"])
        pyro.sample("y", dist.Normal(x @ MAP.mT, 0.5).to_event(1), obs=y)

    mcmc = MCMC(
        kernel(model),
        num_samples=70,
        warmup_steps=150,
        num_chains=100,
        seed=3,
        disable_progbar=True,
    )
    mcmc.run(DATA)
    moments_match(mcmc.get_samples(group_by_chain=True)["x"], *posterior(0.5))


@pytest.mark.usefixtures("unchecked")
def test_a_mixture_as_prior():
    """Two modes of a prior that the data weigh anew: the posterior is a mixture in closed form."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64)
    covariances = 0.3 * torch.eye(2, dtype=F64).expand(2, 2, 2)
    prior = GaussianMixtureScore(means, covariances, torch.tensor([0.5, 0.5], dtype=F64))
    y, noise = torch.tensor(0.6, dtype=F64), 0.8

    def model(y):
        x = pyro.sample("x", ScoreDistribution(Bare(prior)))
        pyro.sample("y", dist.Normal(x.sum(-1), noise), obs=y)

    mcmc = MCMC(
        ScoreOzakiKernel(model),
        num_samples=100,
        warmup_steps=150,
        num_chains=128,
        seed=4,
        disable_progbar=True,
    )
    mcmc.run(y)
    # each component is conjugate: weight N(y; 1ᵀm, noise² + 2·0.3), mean and covariance as Kalman's
    total = noise**2 + 0.6
    gain = 0.3 / total
    weights = torch.exp(-0.5 * (y - means.sum(-1)) ** 2 / total)
    weights = weights / weights.sum()
    centres = means + gain * (y - means.sum(-1)).unsqueeze(-1)
    inner = 0.3 * torch.eye(2, dtype=F64) - gain * 0.3
    mean = weights @ centres
    shift = centres - mean
    covariance = inner + (weights[:, None, None] * shift[:, :, None] * shift[:, None, :]).sum(0)
    moments_match(mcmc.get_samples(group_by_chain=True)["x"], mean, covariance)


def test_a_score_distribution_is_its_score():
    """MCMC walks on it as on the score, with no detour over a density that may be absent."""
    draws = [
        MCMC(
            ScoreOzakiKernel(target),
            num_samples=5,
            warmup_steps=20,
            num_chains=2,
            seed=0,
            disable_progbar=True,
        )
        for target in (PRIORS["bare"], PRIORS["bare"].score)
    ]
    for mcmc in draws:
        mcmc.run()
    torch.testing.assert_close(draws[0].get_samples()["x"], draws[1].get_samples()["x"])
