"""Simulation-based calibration: the true parameters rank evenly among the draws.

If (θ, y) come from a model, then θ and draws of its posterior given y are exchangeable: the rank of
any function of θ among that of L draws is uniform on 0 … L.

Source: Talts et al., "Validating Bayesian inference algorithms with simulation-based calibration"
(2018); the log likelihood as one of the functions, Modrák et al., "Simulation-based calibration
checking for Bayesian computation" (2023).
"""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.stats import chisquare
from torch.func import grad, hessian, vmap

from ozaki import MCMC, ScoreOzakiKernel
from ozaki.linalg import Dense
from ozaki.scores import Expansion, Score

pytestmark = pytest.mark.usefixtures("unchecked")

F64 = torch.float64
BINS = 10
EVEN = 1e-4  # the p-value below which ranks are not even: one test in ten thousand, by chance
UNEVEN = 1e-6  # so small that a wrong law is told beyond doubt


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(F64)


def p_value(ranks, draws):
    """Of evenness, by chi-square, of ranks in 0 … draws; draws + 1 is a multiple of BINS."""
    counts = np.bincount(np.array(ranks) * BINS // (draws + 1), minlength=BINS)
    return float(chisquare(counts).pvalue)


def lag_one(draws):
    """The correlation of a draw with the next, over all (replications, chains, draws)."""
    centred = draws - draws.mean((1, 2), keepdim=True)
    scale = centred.square().mean((1, 2), keepdim=True)
    found = (centred[..., 1:] * centred[..., :-1] / scale).mean()
    return float(found) + 1 / draws[0].numel()  # which the centring takes off


# -- each replication a run of its own ------------------------------------------------------------


def measurements(y, typical=1.0):
    """A normal with unknown mean and scale, and five values."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    sd = pyro.sample("sd", dist.LogNormal(math.log(typical), 0.7))
    with pyro.plate("n", 5):
        pyro.sample("y", dist.Normal(mu, sd), obs=y)


COVARIATES = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=F64)


def counts(y):
    """A Poisson regression of three coefficients on twelve counts."""
    level = pyro.sample("level", dist.Normal(0.5, 0.7))
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2), 0.7).to_event(1))
    rate = (level.unsqueeze(-1) + slopes @ COVARIATES.mT).exp()
    with pyro.plate("n", 12):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def functions(model, values, y):
    """The unknowns, one by one, and the log likelihood, each (points,)."""
    if model is measurements:
        mu, sd = values["mu"], values["sd"]
        of_y = dist.Normal(mu.unsqueeze(-1), sd.unsqueeze(-1)).log_prob(y).sum(-1)
        return {"mu": mu, "sd": sd, "log likelihood": of_y}
    level, slopes = values["level"], values["slopes"]
    rate = (level.unsqueeze(-1) + slopes @ COVARIATES.mT).exp()
    each = {"level": level, "slope 0": slopes[..., 0], "slope 1": slopes[..., 1]}
    return {**each, "log likelihood": dist.Poisson(rate).log_prob(y).sum(-1)}


def replicate(model, replications, *, belief=None, **options):
    """Name → ranks: data from `model`, a draw of each of 99 chains from `belief` about them.

    Chains are independent as the draws of one are not: in the tail of a scale few move for long.
    """
    ranks = {}
    for seed in range(replications):
        pyro.set_rng_seed(seed)
        trace = poutine.trace(model).get_trace(None)
        values = {name: trace.nodes[name]["value"] for name in trace.stochastic_nodes}
        y = values.pop("y")
        mcmc = MCMC(
            ScoreOzakiKernel(belief or model, **options),
            num_samples=1,
            warmup_steps=60,
            num_chains=99,
            thinning=24,
            seed=seed,
            disable_progbar=True,
        )
        mcmc.run(y)
        truth = functions(model, {k: v.unsqueeze(0) for k, v in values.items()}, y)
        found = functions(model, mcmc.get_samples(group_by_chain=True), y)
        for name, draws in found.items():
            ranks.setdefault(name, []).append(int((draws < truth[name]).sum()))
    return ranks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"), [(measurements, {}), (counts, {"curvature": "dense"})]
)
def test_ranks_are_even(model, options):
    for name, ranks in replicate(model, 200, **options).items():
        assert p_value(ranks, 99) > EVEN, (name, sorted(ranks))


@pytest.mark.slow
def test_a_belief_off_by_a_factor_in_the_scale_is_seen():
    # with an expectation of five in each bin
    ranks = replicate(measurements, 50, belief=partial(measurements, typical=5.0))["sd"]
    assert p_value(ranks, 99) < UNEVEN, sorted(ranks)


# -- all replications as the chains of one run ----------------------------------------------------


class EachItsOwn(Score):
    """Chain i has data set i: the posterior of (mu, log sd) under `measurements`."""

    dim, event_shape, dtype = 2, torch.Size([2]), F64
    default_curvature = "dense"

    def __init__(self, y, typical=1.0):
        self.y, self.typical = y, typical

    def expand(self, x, curvature=None):
        y = self.y[: len(x)]  # who looks at a few chains only looks at the first
        mu, log_sd = x.unbind(-1)
        off = log_sd - math.log(self.typical)
        precision = (-2 * log_sd).exp()
        pull = (y - mu.unsqueeze(-1)).sum(-1) * precision
        square = (y - mu.unsqueeze(-1)).square().sum(-1) * precision
        height = -mu.square() / 8 - off.square() / 0.98 - 5 * log_sd - square / 2
        gradient = torch.stack([-mu / 4 + pull, -off / 0.49 - 5 + square], -1)
        if curvature is None:
            return Expansion(gradient, None, height)
        rows = [-1 / 4 - 5 * precision, -2 * pull, -2 * pull, -1 / 0.49 - 2 * square]
        return Expansion(gradient, Dense(torch.stack(rows, -1).unflatten(-1, (2, 2))), height)

    def start(self, n, generator=None):
        return prior(n, generator)


def prior(n, generator):
    return torch.randn(n, 2, generator=generator, dtype=F64) * torch.tensor([2.0, 0.7])


def ranks_of_chains(generator, *, typical=1.0, **options):
    """Ranks of mu and log sd, (200,) each, and the draws, (200, 9, 2)."""
    truth = prior(200, generator)
    noise = torch.randn(200, 5, generator=generator, dtype=F64)
    y = truth[:, :1] + truth[:, 1:].exp() * noise
    mcmc = MCMC(
        ScoreOzakiKernel(EachItsOwn(y, typical), curvature="dense", **options),
        num_samples=9,
        warmup_steps=100,
        num_chains=200,
        thinning=12,
        seed=0,
        disable_progbar=True,
    )
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    return (draws < truth.unsqueeze(1)).sum(1).mT.tolist(), draws


def test_the_closed_form_is_the_posterior(generator):
    """Up to a constant: `measurements` in (mu, log sd), and its derivatives."""
    y = torch.randn(4, 5, generator=generator, dtype=F64)
    x = prior(4, generator)

    def log_p(x, y):
        sd = x[1].exp()
        of_y = dist.Normal(x[0], sd, validate_args=False).log_prob(y).sum()
        return of_y - x[0] ** 2 / 8 - (x[1] - math.log(3.0)) ** 2 / (2 * 0.7**2)

    at = EachItsOwn(y, 3.0).expand(x, "dense")
    torch.testing.assert_close(at.gradient, vmap(grad(log_p))(x, y))
    torch.testing.assert_close(at.curvature.dense(), vmap(hessian(log_p))(x, y))
    gap = at.log_density - vmap(log_p)(x, y)
    torch.testing.assert_close(gap, gap[:1].expand(4))


def test_ranks_are_even_where_chains_share_a_warm_up(generator):
    ranks, draws = ranks_of_chains(generator)
    for i, each in enumerate(ranks):
        # so little that the chi-square of the ranks may take draws for independent
        assert lag_one(draws[:, None, :, i]) < 0.1
        assert p_value(each, 9) > EVEN, (i, each)


def test_a_wrong_prior_makes_them_uneven(generator):
    (_, scale), _ = ranks_of_chains(generator, typical=4.0)
    assert p_value(scale, 9) < UNEVEN


def test_so_does_a_missing_correction(generator):
    (_, scale), _ = ranks_of_chains(generator, metropolis="none", step_size=0.3)
    assert p_value(scale, 9) < UNEVEN
