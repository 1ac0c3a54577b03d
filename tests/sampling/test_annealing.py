"""Annealing down a ladder of noise, over closed forms of every level."""

import itertools
import math

import pytest
import torch
from scipy.stats import norm

import ozaki
from ozaki.sampling.annealing import ladder
from ozaki.scores import GaussianMixtureScore
from tests.kit.tolerances import MCSE
from tests.scores.pyro_models.test_site import Bare

pytestmark = pytest.mark.usefixtures("unchecked")

F64 = torch.float64
WEIGHTS = torch.tensor([0.2, 0.8], dtype=F64)
MEANS = torch.tensor([[-4.0, 0.0], [4.0, 2.0]], dtype=F64)
COVARIANCES = torch.stack(
    [torch.diag(torch.tensor([0.05, 0.5], dtype=F64)), 0.1 * torch.eye(2, dtype=F64)]
)
LAW = GaussianMixtureScore(MEANS, COVARIANCES, WEIGHTS)


class Levels:
    """What a noise-conditional estimator looks like from outside."""

    dim, event_shape = 2, torch.Size([2])

    def __init__(self, low=0.2, high=5.0, kind="diagonal"):
        self.sigma, self.kind = (low, high), kind

    def at(self, sigma):
        score = Bare(LAW.smooth(sigma), self.kind)
        score.noise_scale = torch.full((2,), sigma, dtype=F64)
        return score


def assert_follows(x, sigma):
    """Weights of the modes and moments within them, within 5 standard errors.

    One point in a thousand may have been left between the modes.
    """
    n = len(x)
    right = x[:, 0] > 0
    assert abs(float(right.double().mean()) - 0.8) < MCSE * math.sqrt(0.16 / n)
    for k, inside in enumerate((~right, right)):
        truth = COVARIANCES[k].diagonal() + sigma**2
        # 6 deviations: beyond them lie 2 points in a thousand million
        near = ((x[inside] - MEANS[k]).abs() < 6 * truth.sqrt()).all(-1)
        assert int((~near).sum()) <= n / 1000
        part = x[inside][near]
        m = len(part)
        assert ((part.mean(0) - MEANS[k]).abs() < MCSE * (truth / m).sqrt()).all()
        assert ((part.var(0) / truth - 1).abs() < MCSE * math.sqrt(2 / m)).all(), (
            part.var(0) / truth
        )


@pytest.mark.parametrize("proposal", ["ozaki", pytest.param("langevin", marks=pytest.mark.slow)])
def test_modes_in_their_proportions(proposal):
    """Modes 8 apart and a twentieth as wide: a chain of the last level never crosses."""
    x = ozaki.anneal(Levels(), 4000, proposal=proposal, steps=24, seed=0)
    assert x.shape == (4000, 2)
    assert_follows(x, 0.2)


def test_unadjusted_steps_come_close():
    x = ozaki.anneal(Levels(), 2000, metropolis="none", steps=12, seed=1)
    # uncorrected, the steps widen each mode by what a pseudo-acceptance of 0.9 leaves: loosely held
    right = x[:, 0] > 0
    # 5.6 standard errors of a share of 2,000 points, of 0.0089
    assert abs(float(right.double().mean()) - 0.8) < 0.05
    spread = COVARIANCES[1].diagonal() + 0.04
    # sampling is 0.18 of it: 5 √(2/1,600)
    assert ((x[right].var(0) / spread - 1).abs() < 0.3).all()


def test_levels_may_be_given_and_runs_repeat():
    a = ozaki.anneal(Levels(), 50, levels=4, steps=2, seed=3)
    assert torch.equal(a, ozaki.anneal(Levels(), 50, levels=4, steps=2, seed=3))
    assert not torch.equal(a, ozaki.anneal(Levels(), 50, levels=4, steps=2, seed=4))


def test_neighbours_on_the_ladder_overlap():
    for dim in (1, 2, 50, 3000):
        found = ladder(0.05, 2.0, dim)
        assert found[0] == 2.0 and found[-1] == 0.05
        ratios = [a / b for a, b in itertools.pairwise(found)]
        assert max(ratios) / min(ratios) < 1 + 1e-9
        ratio, root = ratios[0], math.sqrt(2 * dim)
        shift = root * (ratio - 1)
        # the widest step that a ladder has
        assert ratio <= 1.5
        # rounding of equality
        assert norm.cdf(shift + 3 * ratio) - norm.cdf(shift - 3 * ratio) >= 0.5 - 1e-9
    assert len(ladder(0.05, 2.0, 3000)) > 3 * len(ladder(0.05, 2.0, 50))


@pytest.mark.slow
def test_a_trained_estimator():
    data = LAW.start(20_000, torch.Generator().manual_seed(0)).float()
    trainer = ozaki.DSMTrainer((0.05, 2.0), standardize="scalar", seed=0, progress=False)
    estimator = trainer.fit(data)
    x = ozaki.anneal(estimator, 4000, seed=0)
    # 0.006 of sampling, and what the network makes of the widest levels
    right = x[:, 0] > 0
    assert abs(float(right.double().mean()) - 0.8) < 0.05


BAD = {
    "estimator must be trained over a range of sigma": {"estimator": Levels().at(0.3)},
    "n must be a whole number": {"n": 0},
    "levels must be a whole number": {"levels": 1},
    "proposal must be": {"proposal": "hmc"},
    "metropolis must be": {"metropolis": "exact"},
    "proposal='ozaki' needs s2": {"estimator": Levels(kind=None)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    arguments = {"estimator": Levels(), "n": 10, **BAD[message]}
    with pytest.raises(ValueError, match=message):
        ozaki.anneal(**arguments)
