"""Linear inverse problems under a prior known by its score: the posterior, modes and noise.

`test_distribution.py` has the Gaussian prior; here is a mixture whose modes the data hardly tell
apart, so that the prior, by line integrals, has most of the say in their shares.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch

from ozaki import MCMC, ScoreDistribution, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.scores import GaussianMixtureScore
from tests.kit.contracts import moments_match, same_law
from tests.kit.tolerances import MCSE
from tests.scores.pyro_models.test_site import DATA, MAP, Bare

pytestmark = pytest.mark.usefixtures("unchecked")

F64 = torch.float64
# the modes lie almost along (1, 0, −1), which MAP takes to 0
MEANS = torch.tensor([[-0.2, 0.5, 1.2], [1.4, 0.5, 0.2]], dtype=F64)
WIDTHS = torch.tensor([[0.4, 0.5, 0.4], [0.45, 0.5, 0.35]], dtype=F64)
PRIOR = GaussianMixtureScore(MEANS, torch.diag_embed(WIDTHS), [0.3, 0.7])
READINGS = torch.stack([DATA, DATA + 0.4, DATA - 0.7])
NOISE = 0.6


def posterior(noise):
    """The mixture that PRIOR becomes under READINGS, and log p(READINGS) up to a constant."""
    n, mean = len(READINGS), READINGS.mean(0)
    covariance = PRIOR.covariances
    of_data = MAP @ covariance @ MAP.mT + noise**2 / n * torch.eye(2, dtype=F64)
    gain = covariance @ MAP.mT @ torch.linalg.inv(of_data)
    centres = MEANS + (gain @ (mean - MEANS @ MAP.mT).unsqueeze(-1)).squeeze(-1)
    spread = covariance - gain @ MAP @ covariance
    law = dist.MultivariateNormal(MEANS @ MAP.mT, of_data, validate_args=False)
    evidence = law.log_prob(mean) + PRIOR.weights.log()
    scatter = (READINGS - mean).square().sum() / noise**2
    about = -scatter / 2 - (2 * n - 2) * torch.log(torch.as_tensor(noise))
    spread = (spread + spread.mT) / 2
    found = GaussianMixtureScore(centres, spread, torch.softmax(evidence, 0))
    return found, torch.logsumexp(evidence, 0) + about


def moments(mixture):
    mean = mixture.weights @ mixture.means
    shift = mixture.means - mean
    each = mixture.covariances + shift.unsqueeze(-1) * shift.unsqueeze(-2)
    return mean, (mixture.weights[:, None, None] * each).sum(0)


def model(y, noise=None):
    scale = noise or pyro.sample("scale", dist.LogNormal(torch.tensor(-0.5, dtype=F64), 0.5))
    x = pyro.sample("x", ScoreDistribution(Bare(PRIOR)))
    with pyro.plate("readings", 3):
        pyro.sample("y", dist.Normal(x @ MAP.mT, scale).to_event(1), obs=y)


def run(kernel, noise=None):
    mcmc = MCMC(
        kernel(model),
        num_samples=30,
        warmup_steps=80,
        num_chains=200,
        seed=5,
        disable_progbar=True,
    )
    mcmc.run(READINGS, noise)
    return mcmc.get_samples(group_by_chain=True)


@pytest.mark.parametrize("kernel", [ScoreOzakiKernel, ScoreLangevinKernel])
def test_modes_that_the_data_hardly_tell_apart(kernel):
    law, _ = posterior(NOISE)
    draws = run(kernel, NOISE)["x"]
    moments_match(draws, *moments(law))
    # which side of the middle: the shares of the modes, and not their places
    exact = law.sample(100_000, torch.Generator().manual_seed(0)).reshape(4, -1, 3)
    same_law(draws[..., 0] - draws[..., 2] > 0, exact[..., 0] - exact[..., 2] > 0)
    with pytest.raises(AssertionError, match="MCSE"):
        moments_match(draws, *moments(posterior(1.5 * NOISE)[0]))


def test_the_oracle_agrees_with_importance_sampling():
    x = PRIOR.sample(400_000, torch.Generator().manual_seed(0))
    likelihood = dist.Normal((x @ MAP.mT).unsqueeze(1), NOISE).log_prob(READINGS).sum((1, 2))
    weights = torch.softmax(likelihood, 0)
    law, _ = posterior(NOISE)
    mean, covariance = moments(law)
    for values, truth in ((x, mean), ((x - mean)[:, :, None] * (x - mean)[:, None], covariance)):
        values, truth = values.flatten(1), truth.flatten()
        found = weights @ values
        error = (weights.square() @ (values - found).square()).sqrt()
        assert bool(((found - truth).abs() < MCSE * error).all())


def test_with_the_scale_of_the_noise_unknown():
    """The scale is integrated on a grid, the rest in closed form."""
    log_scale = torch.linspace(-3, 2, 100, dtype=F64)
    scale = log_scale.exp()
    found = [posterior(s) for s in scale]
    log_p = torch.stack([evidence for _, evidence in found])
    log_p = log_p + dist.Normal(-0.5, 0.5).log_prob(log_scale)
    weights = torch.softmax(log_p, 0)
    means, covariances = (torch.stack(z) for z in zip(*(moments(f) for f, _ in found), strict=True))
    mean = weights @ means
    shift = means - mean
    each = covariances + shift.unsqueeze(-1) * shift.unsqueeze(-2)
    covariance = (weights[:, None, None] * each).sum(0)
    draws = run(ScoreOzakiKernel)
    moments_match(draws["x"], mean, covariance)
    centre = weights @ scale
    spread = weights @ (scale - centre).square()
    moments_match(draws["scale"].unsqueeze(-1), centre.reshape(1), spread.reshape(1, 1))
