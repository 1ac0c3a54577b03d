"""Pyro models whose posterior is known: the chains find it, in constrained coordinates."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC as StockMCMC
from pyro.infer import NUTS

from ozaki import MCMC, ScoreLangevinKernel, ScoreOzakiKernel
from tests.kit.contracts import moments_match, same_law

pytestmark = pytest.mark.usefixtures("unchecked")

KERNELS = [ScoreOzakiKernel, pytest.param(ScoreLangevinKernel, marks=pytest.mark.thorough)]


def run(kernel, model, *args, chains=256, draws=60, warm=200, seed=1):
    # a step costs much the same for any number of chains
    mcmc = MCMC(kernel(model), num_samples=draws, warmup_steps=warm, num_chains=chains, seed=seed)
    mcmc.run(*args)
    return mcmc.get_samples(group_by_chain=True)


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("kernel", KERNELS)
def test_beta_bernoulli(kernel):
    y = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0])

    def model(y):
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    law = dist.Beta(2.0 + 5, 3.0 + 2)
    draws = run(kernel, model, y)["p"]
    moments_match(draws.unsqueeze(-1), law.mean.reshape(1), law.variance.reshape(1, 1))


@pytest.mark.parametrize("kernel", KERNELS)
def test_normal_gamma(kernel):
    y = torch.tensor([1.2, 0.4, 2.5, 1.9, 0.7, 1.1])
    m0, k0, a0, b0 = 0.0, 1.0, 3.0, 2.0

    def model(y):
        tau = pyro.sample("tau", dist.Gamma(a0, b0))
        mu = pyro.sample("mu", dist.Normal(m0, (k0 * tau).rsqrt()))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu, tau.rsqrt()), obs=y)

    n, mean = len(y), y.mean()
    k, a = k0 + n, a0 + n / 2
    m = (k0 * m0 + n * mean) / k
    b = b0 + 0.5 * ((y - mean) ** 2).sum() + k0 * n * (mean - m0) ** 2 / (2 * k)
    draws = run(kernel, model, y)
    tau = dist.Gamma(torch.tensor(a), b)
    moments_match(draws["tau"].unsqueeze(-1), tau.mean.reshape(1), tau.variance.reshape(1, 1))
    spread = b / ((a - 1) * k)  # the variance of the Student-t margin of mu
    moments_match(draws["mu"].unsqueeze(-1), m.reshape(1), spread.reshape(1, 1))


@pytest.mark.parametrize("kernel", KERNELS)
def test_dirichlet_categorical(kernel):
    y = torch.tensor([0, 0, 1, 2, 2, 2, 2, 1, 0, 2])

    def model(y):
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 1.5])))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Categorical(p), obs=y)

    alpha = torch.tensor([1.0, 2.0, 1.5]) + torch.bincount(y)
    total = alpha.sum()
    mean = alpha / total
    covariance = (torch.diag(mean) - torch.outer(mean, mean)) / (total + 1)
    moments_match(run(kernel, model, y)["p"], mean, covariance)


@pytest.mark.parametrize("kernel", KERNELS)
def test_lkj_correlation(kernel):
    def model():
        pyro.sample("L", dist.LKJCholesky(3, 2.0))

    factor = run(kernel, model, draws=100)["L"]
    correlation = (factor @ factor.mT)[..., [1, 2, 2], [0, 0, 1]]
    # each margin of LKJ(η) in dimension d: (r + 1)/2 ~ Beta(a, a), a = η + (d − 2)/2
    a = 2.0 + 0.5
    moments_match(correlation, torch.zeros(3), torch.eye(3) / (2 * a + 1))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_correlation_whose_matrix_cannot_always_be_factorised(kernel):
    y = torch.tensor([1.0, 0.5])

    def model(y):  # nothing keeps r below 1 but the density
        r = pyro.sample("r", dist.Normal(0.0, 1.0))
        one = torch.ones_like(r)
        covariance = torch.stack([one, r, r, one]).reshape(2, 2)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance), obs=y)

    r = torch.linspace(-0.99999, 0.99999, 200_001)
    log_p = -(r**2) / 2 - (1 - r**2).log() / 2 - (y.square().sum() / 2 - r / 2) / (1 - r**2)
    p = log_p.softmax(0)
    mean = (p * r).sum()
    variance = (p * (r - mean) ** 2).sum()
    draws = run(kernel, model, y)["r"]
    moments_match(draws.unsqueeze(-1), mean.reshape(1), variance.reshape(1, 1))


def schools(y):
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def check_schools(draws, kernel, reference):
    found = run(
        kernel,
        schools,
        torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
        chains=256,
        draws=draws,
        warm=300,
    )
    for name, index in (("mu", ...), ("eta", (..., 0)), ("theta", (..., 0))):
        same_law(found[name][index], reference[name][index])
    # tau has no fourth moment to speak of: compare where it has one
    same_law(found["tau"].log(), reference["tau"].log())


def by_quadrature():
    """Draws of eight schools without a chain: (mu, tau) on a grid, eta | mu, tau in closed form."""
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    mu, log_tau = torch.meshgrid(
        torch.linspace(-25, 30, 551), torch.linspace(-12, 6, 1801), indexing="ij"
    )
    tau = log_tau.exp()
    log_p = dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfCauchy(5.0).log_prob(tau) + log_tau
    for y_j, s_j in zip(y, sigma, strict=True):
        log_p = log_p + dist.Normal(mu, (s_j**2 + tau**2).sqrt()).log_prob(y_j)
    n, g = 40_000, torch.Generator().manual_seed(0)
    cell = torch.multinomial((log_p - log_p.max()).exp().flatten(), n, True, generator=g)
    mu, tau = mu.flatten()[cell], tau.flatten()[cell]
    precision = 1 + tau**2 / sigma[0] ** 2
    mean = tau * (y[0] - mu) / sigma[0] ** 2 / precision
    eta = mean + torch.randn(n, generator=g) * precision.rsqrt()
    found = {"mu": mu, "tau": tau, "eta": eta, "theta": mu + tau * eta}
    found = {name: value.reshape(4, -1) for name, value in found.items()}
    return {n: v.unsqueeze(-1) if n in ("eta", "theta") else v for n, v in found.items()}


@pytest.mark.parametrize("kernel", KERNELS)
def test_eight_schools_non_centred(kernel):
    check_schools(120, kernel, by_quadrature())


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_eight_schools_against_a_long_nuts_run(kernel):
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    nuts = StockMCMC(NUTS(schools), num_samples=5000, warmup_steps=1000, disable_progbar=True)
    nuts.run(y)
    reference = nuts.get_samples(group_by_chain=True)
    reference["theta"] = reference["mu"].unsqueeze(-1) + (
        reference["tau"].unsqueeze(-1) * reference["eta"]
    )
    check_schools(400, kernel, reference)
