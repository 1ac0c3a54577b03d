"""Whether chains differ by more than chance: error rates on chains whose law is known.

The rates are those of `benchmarks/verdicts.py`, with fewer runs: of a rate p the share of n seeded
runs has standard error √(p(1 − p)/n), and a bound below is five of them off.
"""

import arviz as az
import numpy as np
import pytest

from ozaki.diagnostics import inference_data, verdict
from ozaki.diagnostics.agreement import ALARMS, agreement, differ, more_draws
from tests.kit.chains import ar1
from tests.kit.tolerances import MCSE

RUNS = 400


def told(x: np.ndarray, components: int = 1) -> float:
    """The share of (count, chains, draws), each a run's, that is not trusted."""
    return float(differ(agreement(list(x)), components, 1.01).mean())


def most(rate: float, runs: int) -> float:
    return rate + MCSE * np.sqrt(rate * (1 - rate) / runs)


def walks(rng, count, chains, draws, scale):
    """Random-walk Metropolis of a normal, begun in it: repeated values."""
    x = rng.standard_normal((count, chains))
    out = np.empty((count, chains, draws))
    for t in range(draws):
        y = x + scale * rng.standard_normal(x.shape)
        x = np.where(np.log(rng.random(x.shape)) < (x**2 - y**2) / 2, y, x)
        out[..., t] = x
    return out


def flips(rng, count, chains, draws, share, stay):
    """A chain of 0 and 1 that forgets where it is with probability 1 − stay."""
    out = np.empty((count, chains, draws))
    x = rng.random((count, chains)) < share
    for t in range(draws):
        x = np.where(rng.random(x.shape) < stay, x, rng.random(x.shape) < share)
        out[..., t] = x
    return out


EQUAL = {
    "independent": lambda g: g.standard_normal((RUNS, 4, 100)),
    "worth 400": lambda g: ar1(g, RUNS, 4, 1000, worth=400),
    "worth 500, two": lambda g: ar1(g, RUNS, 2, 1000, worth=500),
    "worth 500, sixteen": lambda g: ar1(g, RUNS // 2, 16, 200, worth=500),
    "worth 2000, a hundred": lambda g: ar1(g, RUNS // 8, 100, 100, worth=2000),
    "antithetic": lambda g: ar1(g, RUNS, 4, 200, worth=8000),
    "far tails": lambda g: g.standard_cauchy((RUNS, 4, 100)),
    "skewed, slow": lambda g: np.exp(2 * ar1(g, RUNS, 4, 1000, worth=400)),
    "slow scale": lambda g: (
        np.exp(ar1(g, RUNS, 4, 1000, worth=400)) * g.standard_normal((RUNS, 4, 1000))
    ),
    "seldom 1": lambda g: 1.0 * (g.random((RUNS, 4, 200)) < 0.01),
    "counts": lambda g: 1.0 * g.poisson(2, (RUNS, 4, 120)),
    "flips": lambda g: flips(g, RUNS, 4, 1000, 0.3, 0.7),
    "rests": lambda g: walks(g, RUNS // 2, 4, 2000, 5.0),
}


@pytest.mark.parametrize("kind", EQUAL)
def test_equal_chains_are_told_in_at_most_one_run_of_fifty(kind):
    x = EQUAL[kind](np.random.default_rng(11))
    assert told(x) <= most(0.02, len(x))
    # in 20 components, of which each has a twentieth of the alarms
    assert told(x, 20) <= most(0.001, len(x))


DIFFERING = {
    # the components among which one differs, the chains
    "one off by a standard deviation": (200, lambda x: x + np.eye(4)[1][:, None]),
    "one twice as wide": (5, lambda x: x * np.array([1, 2, 1, 1])[:, None]),
    "two and two": (20, lambda x: x + np.array([0, 0, 1, 1])[:, None]),
}


@pytest.mark.parametrize("draws", [100, 1000])
@pytest.mark.parametrize("kind", DIFFERING)
def test_chains_that_differ_are_told_in_95_runs_of_100(kind, draws):
    components, change = DIFFERING[kind]
    x = change(ar1(np.random.default_rng(12), RUNS, 4, draws, worth=400))
    assert told(x, components) >= 0.95  # the bar that its name says, with no allowance for chance


def test_chains_that_all_drift_are_told():
    """By their ESS too, which counts what parts the halves."""
    rng = np.random.default_rng(19)
    for worth in (400, 4000):
        x = ar1(rng, 10, 4, 1000, worth=worth) + np.linspace(-1, 1, 1000)
        assert not any(verdict(inference_data({"x": run})).trusted for run in x)


@pytest.mark.parametrize("draws", [100, 1000])
def test_half_a_standard_deviation_is_told_in_one_component(draws):
    x = ar1(np.random.default_rng(13), RUNS, 4, draws, worth=400)
    x[:, 3] += 0.5
    # 0.8 is meant; 2 standard errors, stricter than the policy's 5
    assert told(x) >= 0.8 - 2 * np.sqrt(0.8 * 0.2 / RUNS)


def test_slow_chains_that_have_not_forgotten_their_start_are_told():
    """A hundred chains of 200 draws, each worth less than one: R-hat 5, bulk ESS above 100."""
    assert told(ar1(np.random.default_rng(14), 20, 100, 200, worth=10), 200) == 1


def test_the_r_hat_is_arvizs():
    rng = np.random.default_rng(15)
    kinds = [rng.normal(size=(4, 301)), 1.0 * rng.poisson(1, (4, 301)), rng.normal(size=(2, 50))]
    for x in kinds:
        # the same formula: float64, in another order
        assert agreement([x]).rhat[0] == pytest.approx(float(az.rhat(x)), rel=1e-12)


def test_the_worth_is_that_of_the_chains_and_not_of_what_parts_them():
    """ESS of AR(1) chains is mn (1 − ρ)/(1 + ρ); the bulk ESS of chains far apart is near 4."""
    x = ar1(np.random.default_rng(16), 200, 4, 1000, worth=400)
    x += np.eye(4)[2][:, None]  # which is seen in the draws, not in their distances
    # guards against the ESS of what parts the chains, near 4; the mean of 200 scatters less
    assert np.mean(agreement(list(x)).ess) == pytest.approx(400, rel=0.1)
    x += 10 * np.arange(4)[:, None]
    assert float(az.ess(x[0])) < 10 and agreement(list(x)).ess.min() > 100


def test_chains_that_stand_in_different_places_are_told_and_constants_are_not():
    still = np.repeat(np.arange(4.0)[:, None], 50, 1)
    found = agreement([still, np.ones((4, 50)), np.zeros((4, 50))])
    # far below any threshold that is used
    assert found.p_value[0] < 1e-6 and list(found.p_value[1:]) == [1, 1]


def test_so_many_more_draws_settle_an_r_hat():
    """Of equal chains that are so much longer, R-hat is above 1.01 by a rare chance."""
    rng = np.random.default_rng(17)
    components, draws = 20, 500
    found = agreement(list(ar1(rng, 100, 4, draws, worth=300)))
    more = [more_draws(found, int(i), components, 1.01) for i in np.flatnonzero(found.rhat > 1.01)]
    longer = draws + int(np.median([n for n in more if n]))
    after = agreement(list(ar1(rng, 400, 4, longer, worth=300 * longer / draws)))
    # 1.01 is the threshold that the library has
    assert (after.rhat > 1.01).mean() <= most(ALARMS / components, 400)
    # and it asks for no more than that takes: with half of them some are above still
    half = draws + (longer - draws) // 2
    some = agreement(list(ar1(rng, 400, 4, half, worth=300 * half / draws)))
    assert (some.rhat > 1.01).mean() > (after.rhat > 1.01).mean()


def test_what_would_take_a_hundred_times_the_draws_has_no_number():
    found = agreement([ar1(np.random.default_rng(18), 1, 4, 200, worth=8)[0]])
    assert more_draws(found, 0, 10**6, 1.0001) is None
    assert more_draws(found, 0, 1, 1.5) is not None


def test_of_equal_components_the_first_is_named():
    """The same draws under many names: a set would name another one in every process."""
    x = np.random.default_rng(0).normal(size=(4, 500)) + np.arange(4)[:, None]
    names = [f"{letter}{i}" for i in range(6) for letter in "zyxwv"]
    found = verdict(inference_data({name: x for name in names}))
    assert f"for {names[0]}, and above" in found.headline
