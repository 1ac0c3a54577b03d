"""Everyday posteriors for `everyday`, in the words of `models`: what people run Pyro for.

Their data are simulated.
"""

import numpy as np

from benchmarks.models import autoregression
from benchmarks.problem import Posterior


def regression(ppl, dist, xp, x, y):
    level = ppl.sample("level", dist.Normal(0.0, 10.0))
    w = ppl.sample("w", dist.Normal(xp.zeros(5), 10.0).to_event(1))
    noise = ppl.sample("noise", dist.HalfNormal(5.0))
    with ppl.plate("data", len(y)):
        ppl.sample("y", dist.Normal(level + x @ w, noise), obs=y)


def regression_data(rng):
    """A hundred rows; predictors of unequal sizes, two of them nearly the same."""
    x = rng.standard_normal((100, 5))
    x[:, 1] = x[:, 0] + 0.2 * x[:, 1]
    x *= np.array([1.0, 1.0, 0.3, 3.0, 1.0])
    return x, 4 + x @ np.array([1.0, -0.5, 2.0, 0.3, 0.0]) + 1.5 * rng.standard_normal(100)


def robust(ppl, dist, xp, x, y):
    """Student's t with free degrees of freedom."""
    w = ppl.sample("w", dist.Normal(xp.zeros(3), 5.0).to_event(1))
    scale = ppl.sample("scale", dist.HalfNormal(2.0))
    df = ppl.sample("df", dist.Gamma(2.0, 0.1))
    with ppl.plate("data", len(y)):
        ppl.sample("y", dist.StudentT(df, x @ w, scale), obs=y)


def robust_data(rng):
    x = np.column_stack((np.ones(120), rng.standard_normal((120, 2))))
    return x, x @ np.array([1.0, 2.0, -1.0]) + 0.8 * rng.standard_t(3, 120)


def rates(ppl, dist, xp, x, exposure, y):
    """A Poisson regression."""
    w = ppl.sample("w", dist.Normal(xp.zeros(4), 2.5).to_event(1))
    with ppl.plate("data", len(y)):
        ppl.sample("y", dist.Poisson(exposure * xp.exp(x @ w)), obs=y)


def rates_data(rng):
    x = np.column_stack((np.ones(200), rng.standard_normal((200, 3))))
    exposure = rng.uniform(0.5, 5, 200)
    return x, exposure, rng.poisson(exposure * np.exp(x @ [0.3, 0.5, -0.4, 0.0])).astype(float)


def overdispersed(ppl, dist, xp, group, x, y):
    """Counts, negative binomial, with an intercept for each group."""
    level = ppl.sample("level", dist.Normal(0.0, 3.0))
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    spread = ppl.sample("spread", dist.HalfNormal(1.0))
    shape = ppl.sample("shape", dist.LogNormal(1.0, 1.0))
    z = ppl.sample("z", dist.Normal(xp.zeros(15), 1.0).to_event(1))
    mean = xp.exp(level + spread * z[group] + slope * x)
    with ppl.plate("data", len(y)):
        ppl.sample("y", dist.NegativeBinomial(shape, logits=xp.log(mean / shape)), obs=y)


def overdispersed_data(rng):
    group, x = np.repeat(np.arange(15), 12), rng.standard_normal(180)
    mean = np.exp(1.2 + 0.6 * rng.standard_normal(15)[group] + 0.4 * x)
    return group, x, rng.poisson(rng.gamma(2.0, mean / 2.0)).astype(float)


def rasch(ppl, dist, xp, y):
    """One parameter an item; the persons' deviation is free."""
    spread = ppl.sample("spread", dist.HalfNormal(2.0))
    z = ppl.sample("z", dist.Normal(xp.zeros(80), 1.0).to_event(1))
    difficulty = ppl.sample("difficulty", dist.Normal(xp.zeros(10), 2.0).to_event(1))
    logits = spread * z[:, None] - difficulty
    ppl.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=y)


def rasch_data(rng):
    logits = 1.3 * rng.standard_normal((80, 1)) - rng.standard_normal(10)
    return ((rng.random((80, 10)) < 1 / (1 + np.exp(-logits))).astype(float),)


def level(ppl, dist, xp, y):
    """A level that drifts, a random walk of sixty steps, seen with noise."""
    first = ppl.sample("first", dist.Normal(0.0, 5.0))
    drift = ppl.sample("drift", dist.HalfNormal(1.0))
    noise = ppl.sample("noise", dist.HalfNormal(2.0))
    z = ppl.sample("z", dist.Normal(xp.zeros(60), 1.0).to_event(1))
    ppl.sample("y", dist.Normal(first + drift * xp.cumsum(z, 0), noise).to_event(1), obs=y)


def level_data(rng):
    return (2 + np.cumsum(0.4 * rng.standard_normal(60)) + rng.standard_normal(60),)


def errors(ppl, dist, xp, x, y):
    """A regression whose errors are autoregressive."""
    w = ppl.sample("w", dist.Normal(xp.zeros(2), 10.0).to_event(1))
    decay = ppl.sample("decay", dist.Beta(2.0, 2.0))
    size = ppl.sample("size", dist.HalfNormal(2.0))
    z = ppl.sample("z", dist.Normal(xp.zeros(80), 1.0).to_event(1))
    noise = ppl.sample("noise", dist.HalfNormal(1.0))
    shift = size * autoregression(xp, decay, z, 80)
    ppl.sample("y", dist.Normal(x @ w + shift, noise).to_event(1), obs=y)


def errors_data(rng):
    x = np.column_stack((np.ones(80), np.linspace(-1, 1, 80)))
    shift = np.zeros(80)
    for t in range(1, 80):
        shift[t] = 0.7 * shift[t - 1] + 0.6 * rng.standard_normal()
    return x, x @ np.array([3.0, 1.0]) + shift + 0.4 * rng.standard_normal(80)


POSTERIORS = {
    "regression": Posterior(regression, regression_data),
    "robust": Posterior(robust, robust_data),
    "rates": Posterior(rates, rates_data),
    "overdispersed": Posterior(overdispersed, overdispersed_data),
    "Rasch": Posterior(rasch, rasch_data),
    "level": Posterior(level, level_data),
    "errors": Posterior(errors, errors_data),
}
