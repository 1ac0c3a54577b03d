"""Every kernel, in stock and own MCMC, draws from the law it should."""

import pyro
import pytest
import torch
from pyro.infer import MCMC as StockMCMC

from ozaki import MCMC, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.kernels import proposals
from ozaki.scores import GaussianMixtureScore, GaussianScore, LogisticMixtureScore
from ozaki.scores.transformed import Whitened
from tests.kernels.test_transition import ScoreOnly
from tests.kit.contracts import moments_match
from tests.kit.oracles import affine_map, stationary_covariance
from tests.kit.registry import KERNELS

pytestmark = pytest.mark.usefixtures("unchecked")

GAUSS = GaussianScore(
    torch.tensor([3.0, -1.0], dtype=torch.float64),
    torch.tensor([[1.0, 0.8], [0.8, 4.0]], dtype=torch.float64),
)
# narrow and correlated, where an unadjusted step shows its bias
STEEP = GaussianScore(
    torch.zeros(2, dtype=torch.float64),
    torch.tensor([[1.0, -0.8], [-0.8, 1.0]], dtype=torch.float64),
)
MIXTURE = GaussianMixtureScore(
    torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64),
    torch.diag(torch.tensor([1.0, 0.09], dtype=torch.float64)).expand(2, 2, 2),
    [0.4, 0.6],
)
LOGISTIC = LogisticMixtureScore(
    torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64),
    torch.tensor([[0.6, 0.3], [0.8, 0.4]], dtype=torch.float64),
    [0.5, 0.5],
)


def mixture_moments(locations, covariances, weights):
    mean = (weights[:, None] * locations).sum(0)
    spread = locations - mean
    within = (weights[:, None, None] * covariances).sum(0)
    return mean, within + (weights[:, None] * spread).mT @ spread


LAWS = {
    "gaussian": (GAUSS, GAUSS.mean, GAUSS.covariance),
    "mixture": (MIXTURE, *mixture_moments(MIXTURE.means, MIXTURE.covariances, MIXTURE.weights)),
    "logistic": (
        LOGISTIC,
        *mixture_moments(
            LOGISTIC.locations,
            # a logistic of scale s has variance π² s²/3
            torch.diag_embed(LOGISTIC.scales.square()) * torch.pi**2 / 3,
            LOGISTIC.weights,
        ),
    ),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("row", KERNELS, ids=repr)
def test_corrected_kernels_are_exact(row, law):
    score, mean, covariance = LAWS[law]
    mcmc = MCMC(row.build(score), num_samples=100, warmup_steps=250, num_chains=256, seed=1)
    mcmc.run()
    moments_match(mcmc.get_samples(group_by_chain=True)["x"], mean, covariance)
    assert not any(d["divergences"] for d in mcmc._diagnostics)


def stock(row, law, draws):
    score, mean, covariance = LAWS[law]
    pyro.set_rng_seed(5)
    mcmc = StockMCMC(row.build(score), num_samples=draws, warmup_steps=300, disable_progbar=True)
    mcmc.run()
    moments_match(mcmc.get_samples(group_by_chain=True)["x"], mean, covariance)


# the diagonal of a correlated Hessian mixes three times slower: it is walked at length
QUICK = [
    row
    for row in KERNELS
    if row.options.get("curvature") != "diagonal" and not row.options.get("frozen")
]


@pytest.mark.parametrize("row", QUICK, ids=repr)
def test_the_same_in_stock_mcmc(row):
    stock(row, "gaussian", 1500)


@pytest.mark.slow
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("row", KERNELS, ids=repr)
def test_the_same_in_stock_mcmc_at_length(row, law):
    stock(row, law, 6000)


@pytest.mark.parametrize("row", [r for r in KERNELS if not r.options.get("frozen")], ids=repr)
def test_line_integrals_are_enough_where_only_scores_are_known(row):
    _, mean, covariance = LAWS["gaussian"]  # on which the line integral is exact
    kernel = row.build(ScoreOnly(GAUSS))
    mcmc = MCMC(kernel, num_samples=100, warmup_steps=250, num_chains=256, seed=2)
    mcmc.run()
    moments_match(mcmc.get_samples(group_by_chain=True)["x"], mean, covariance)
    assert "lp" not in mcmc.result.draws.stats


@pytest.mark.parametrize(
    ("kernel", "proposal", "kind"),
    [
        (ScoreLangevinKernel, proposals.langevin, None),
        (ScoreOzakiKernel, proposals.ozaki, "diagonal"),
        (ScoreOzakiKernel, proposals.ozaki, "dense"),
    ],
)
def test_unadjusted_kernels_follow_their_own_stationary_law(kernel, proposal, kind):
    options = {} if kind is None else {"curvature": kind}
    h = 0.4
    m, _, c = affine_map(proposal, STEEP, h, kind)
    own = stationary_covariance(m, c)
    built = kernel(STEEP, step_size=h, metropolis="none", **options)
    mcmc = MCMC(built, num_samples=150, warmup_steps=50, num_chains=256, seed=3)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    moments_match(draws, STEEP.mean, own)
    gap = (own - STEEP.covariance).abs().amax()
    if kind == "dense":
        assert gap < 1e-9  # exact at any step
    else:
        assert gap > 0.1  # off by far more than 5 MCSE, as the next lines show
        with pytest.raises(AssertionError, match="MCSE"):
            moments_match(draws, STEEP.mean, STEEP.covariance)


def test_a_tuned_unadjusted_kernel_too():
    kernel = ScoreLangevinKernel(GAUSS, metropolis="none")
    metric = {}

    def remember(kernel, params, stage, i):
        metric["L"] = kernel.engine.metric

    mcmc = MCMC(kernel, num_samples=200, warmup_steps=300, num_chains=256, seed=4, hook_fn=remember)
    mcmc.run()
    h = float(mcmc.result.draws.stats["step_size"][0, -1])
    walked = Whitened(GAUSS, metric["L"])
    m, _, c = affine_map(proposals.langevin, walked, h, None)
    own = metric["L"] @ stationary_covariance(m, c) @ metric["L"].mT
    moments_match(mcmc.get_samples(group_by_chain=True)["x"], GAUSS.mean, own)


def test_a_learned_proposal_leaves_the_target_exact():
    score, mean, covariance = LAWS["mixture"]
    # in another dtype than the target's, as estimators are
    wrong = GaussianScore(torch.tensor([0.3, 0.0]), torch.diag(covariance.diagonal()).float())
    kernel = ScoreOzakiKernel(score, score=wrong)
    mcmc = MCMC(kernel, num_samples=100, warmup_steps=250, num_chains=256, seed=6)
    mcmc.run()
    moments_match(mcmc.get_samples(group_by_chain=True)["x"], mean, covariance)
