"""Pointwise log-likelihoods and predictive draws, against densities written by hand."""

import warnings

import arviz as az
import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from ozaki import MCMC, ScoreOzakiKernel, diagnostics
from ozaki.scores import GaussianScore
from ozaki.scores.pyro_models import prediction
from ozaki.scores.pyro_models.model import PyroModelScore
from tests.kit.contracts import ARVIZ
from tests.kit.tolerances import MCSE

matplotlib.use("Agg")

F64 = torch.float64
Y = torch.tensor([4.1, 5.3, 3.8, 4.9, 6.0], dtype=F64)
ROWS = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


def parameters():
    mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=F64), 5.0))
    sd = pyro.sample("sd", dist.HalfNormal(torch.ones((), dtype=F64)))
    return mu, sd


def plated(y=Y):
    mu, sd = parameters()
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(mu, sd), obs=y)


def one_event(y=Y):
    mu, sd = parameters()
    pyro.sample("y", dist.Normal(mu.expand(5), sd).to_event(1), obs=y)


def rows_in_a_plate(y=ROWS):
    mu, sd = parameters()
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(mu, sd).expand([2]).to_event(1), obs=y)


def scaled_and_masked(y=Y):
    mu, sd = parameters()
    with pyro.plate("data", 5), poutine.scale(scale=3.0), poutine.mask(mask=Y > 4):
        pyro.sample("y", dist.Normal(mu, sd), obs=y)


def branching(y=Y):
    """Which cannot be batched."""
    mu, sd = parameters()
    shift = 0.0 if float(mu.detach()) > -100 else 1.0
    with pyro.plate("data", 5):
        pyro.sample("y", dist.Normal(mu + shift, sd), obs=y)


def normal(y, mu, sd):
    """Log N(y; mu, sd²), by hand; mu and sd are (*batch,), the points come last."""
    mu, sd = mu.unsqueeze(-1), sd.unsqueeze(-1)
    return -0.5 * ((y - mu) / sd) ** 2 - sd.log() - 0.5 * np.log(2 * np.pi)


MODELS = {
    "plated": (plated, lambda mu, sd: normal(Y, mu, sd)),
    "one event": (one_event, lambda mu, sd: normal(Y, mu, sd)),
    "rows in a plate": (
        rows_in_a_plate,
        lambda mu, sd: normal(ROWS[:, 0], mu, sd) + normal(ROWS[:, 1], mu, sd),
    ),
    "scaled and masked": (
        scaled_and_masked,
        lambda mu, sd: normal(Y, mu, sd) * (Y > 4),
    ),
    "branching": (branching, lambda mu, sd: normal(Y, mu, sd)),
}


@pytest.mark.parametrize("name", MODELS)
def test_each_observation_has_its_log_likelihood(name):
    model, truth = MODELS[name]
    score = PyroModelScore(model, vectorize=name != "branching")
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    found = prediction.log_likelihood(score, x)
    sites = score.constrain(x)
    assert set(found) == {"y"}
    torch.testing.assert_close(found["y"], truth(sites["mu"], sites["sd"]))


def run(model, *args, **options):
    mcmc = MCMC(
        ScoreOzakiKernel(model),
        num_samples=60,
        warmup_steps=100,
        num_chains=3,
        seed=5,
        disable_progbar=True,
        **options,
    )
    mcmc.run(*args)
    return mcmc


@pytest.fixture(scope="module")
def chains():
    return run(plated, Y)


def test_loo_and_posterior_predictive_plots_work(chains):
    state = torch.get_rng_state()
    idata = chains.to_inference_data(posterior_predictive=True, prior=200)
    assert torch.equal(state, torch.get_rng_state())
    assert idata.log_likelihood["y"].shape == (3, 60, 5)
    assert idata.posterior_predictive["y"].shape == (3, 60, 5)
    assert idata.prior["mu"].shape == (1, 200) == idata.prior["sd"].shape
    assert idata.prior_predictive["y"].shape == (1, 200, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few draws
        found = az.loo(idata)
        assert np.isfinite(found.elpd_loo if ARVIZ < 1 else found.elpd)
    for group in ("posterior", "prior"):
        if ARVIZ < 1:
            axes = np.ravel(az.plot_ppc(idata, group=group))
            assert len(axes) == 1 and len(axes[0].lines) > 2
        else:
            az.plot_ppc_dist(idata, group=f"{group}_predictive", backend="matplotlib")
    again = chains.to_inference_data(posterior_predictive=True)
    assert again.posterior_predictive.equals(idata.posterior_predictive)


def test_new_data_follow_the_draws(chains):
    """Each new point is N(mu, sd²) given its draw: standardised it is N(0, 1)."""
    found = chains.to_inference_data(posterior_predictive=True)
    mu, sd = (found.posterior[name].values[..., None] for name in ("mu", "sd"))
    z = (found.posterior_predictive["y"].values - mu) / sd
    count = z.size
    assert abs(z.mean()) < MCSE / count**0.5
    assert abs((z**2).mean() - 1) < MCSE * (2 / count) ** 0.5
    # of the next point given each draw, not the data over again
    assert (found.posterior_predictive["y"].values != Y.numpy()).all()


def test_prior_draws_follow_the_prior(chains):
    prior = chains.to_inference_data(prior=2000).prior
    assert abs(float(prior["mu"].mean())) < MCSE * 5 / 2000**0.5
    assert abs(float((prior["sd"] ** 2).mean()) - 1) < MCSE * (2 / 2000) ** 0.5


def test_likelihoods_may_be_left_out(chains):
    assert "log_likelihood" not in diagnostics.groups(
        chains.to_inference_data(log_likelihood=False)
    )


def test_no_data_no_groups():
    def model():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    idata = run(model).to_inference_data(posterior_predictive=True)
    assert set(diagnostics.groups(idata)) == {"posterior", "sample_stats"}


def test_summed_out_sites_are_said_to_stand_in_the_way():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(mu + k, 1.0), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is looped
        score = PyroModelScore(model, (torch.zeros(3),))
    with pytest.warns(UserWarning, match=r"\['k'\] are summed out"):
        assert prediction.log_likelihood(score, torch.zeros(2, 1)) == {}


def test_a_summed_out_site_that_observations_share_is_not_drawn_from_its_prior():
    """It would be 0 in half of the new data, where these data say 1."""

    def shared(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.plate("data", 5):
            pyro.sample("y", dist.Normal(mu + 10 * z, 1.0), obs=y)

    def own(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(mu + 10 * z, 1.0), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are looped
        one, each = (PyroModelScore(f, (torch.full((5,), 10.0),)) for f in (shared, own))
    with pytest.warns(UserWarning, match=r"\['z'\] are summed out and are not one for each"):
        assert prediction.posterior_predictive(one, torch.zeros(2, 1), seed=0) == {}
    found = prediction.posterior_predictive(each, torch.zeros(400, 1), seed=0)["y"]
    assert found.shape == (400, 5)
    assert abs(float(found.mean()) - 5) < MCSE * 26**0.5 / 2000**0.5


@pytest.mark.parametrize(
    "asked", [{"log_likelihood": True}, {"posterior_predictive": True}, {"prior": 10}]
)
def test_only_pyro_models_have_data(asked):
    mcmc = run(GaussianScore(torch.zeros(2), torch.eye(2)))
    assert "log_likelihood" not in diagnostics.groups(mcmc.to_inference_data())
    with pytest.raises(ValueError, match=r"need a Pyro model.*walked on a GaussianScore"):
        mcmc.to_inference_data(**asked)
