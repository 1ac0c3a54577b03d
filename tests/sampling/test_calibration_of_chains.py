"""Simulation-based calibration: of parameters drawn from the prior, ranks are uniform.

All data sets stand in one model: their posterior is a product, whose factors are ranked one by one.

Source: Talts et al., "Validating Bayesian inference algorithms with simulation-based calibration"
(2018).
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from ozaki import MCMC, ScoreLangevinKernel, ScoreOzakiKernel

pytestmark = [pytest.mark.usefixtures("unchecked"), pytest.mark.thorough]

F64 = torch.float64
SETS, CHAINS, BINS = 100, 24, 5  # 100 ranks in 0 … 24, in five bins of five
LEVEL = 1e-4  # with a dozen tests of fixed seeds, one fails by chance in 800 suites


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(F64)


def normal(y):
    """A mean and a standard deviation, four observations."""
    with pyro.plate("sets", SETS):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        sd = pyro.sample("sd", dist.LogNormal(0.0, 0.5))
        with pyro.plate("n", 4):
            pyro.sample("y", dist.Normal(mu, sd), obs=y)


def schools(y):
    """Three groups, non-centred."""
    error = torch.tensor([[0.5], [1.0], [2.0]])
    with pyro.plate("sets", SETS):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        tau = pyro.sample("tau", dist.HalfNormal(2.0))
        with pyro.plate("groups", 3):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * eta, error), obs=y)


SITES = {normal: ("mu", "sd"), schools: ("mu", "tau", "eta")}
KERNELS = {
    "Ozaki": lambda model: ScoreOzakiKernel(model),
    "Ozaki, a quarter turn": lambda model: ScoreOzakiKernel(model, trajectory=1.57),
    "Langevin, leapfrog": lambda model: ScoreLangevinKernel(model, trajectory=1.0),
}


def ranks(model, kernel, seed):
    """Of each site's value among draws of its posterior, (sets, …)."""
    pyro.set_rng_seed(seed)
    drawn = pyro.poutine.trace(model).get_trace(None)
    mcmc = MCMC(kernel, 30, 300, num_chains=CHAINS, seed=seed, disable_progbar=True)
    mcmc.run(drawn.nodes["y"]["value"])
    # the last of each chain: chains are independent, their draws are not
    last = {name: draws[:, -1] for name, draws in mcmc.get_samples(group_by_chain=True).items()}
    found = {n: (last[n] < drawn.nodes[n]["value"]).sum(0) for n in SITES[model]}
    return {n: rank if rank.ndim == 1 else rank.mT for n, rank in found.items()}


def uniform(rank):
    """The chance of a χ² at least as large, for each column."""
    columns = rank.reshape(len(rank), -1).mT
    counts = [torch.bincount(c * BINS // (CHAINS + 1), minlength=BINS).numpy() for c in columns]
    return [float(stats.chisquare(count).pvalue) for count in counts]


CASES = [
    *((name, normal) for name in KERNELS),
    ("Ozaki, a quarter turn", schools),
    *(
        pytest.param(name, schools, marks=pytest.mark.slow)
        for name in ("Ozaki", "Langevin, leapfrog")
    ),
]


@pytest.mark.parametrize(("name", "model"), CASES)
def test_ranks_are_uniform(name, model):
    for site, rank in ranks(model, KERNELS[name](model), seed=17).items():
        assert min(uniform(rank)) > LEVEL, (site, uniform(rank))


def test_ranks_of_another_posterior_are_not():
    """A posterior to the fourth power is half as wide: the test has teeth."""

    class Sharp(torch.nn.Module):
        def forward(self, y):
            with pyro.poutine.scale(scale=4.0):
                return normal(y)

    found = ranks(normal, ScoreOzakiKernel(Sharp()), seed=17)
    assert min(uniform(found["mu"])) < LEVEL
