"""Ten regressions and time series for `warmup`, in the words of `models`.

Predictors are as they were measured, far from centred, and priors are flat, up to a normal of
standard deviation 10⁶; so an intercept and a slope are correlated up to −0.9999. Data are
simulated, with sizes like those of the sets that textbooks take.
"""

import numpy as np
from scipy.special import digamma, polygamma

from benchmarks.models import autoregression
from benchmarks.problem import Posterior

FLAT = 1e6


def line(ppl, dist, xp, x, y):
    """A linear regression on the columns of x."""
    w = ppl.sample("w", dist.Normal(xp.zeros(x.shape[1]), FLAT).to_event(1))
    noise = ppl.sample("noise", dist.HalfNormal(FLAT))
    with ppl.plate("data", len(y)):
        ppl.sample("y", dist.Normal(x @ w, noise), obs=y)


def line_exact(x, y):
    """Of log noise and the weights, by a normal and an inverse χ² of n − p − 1 degrees."""
    n, p = x.shape
    inverse = np.linalg.inv(x.T @ x)
    w = inverse @ (x.T @ y)
    rest, df = ((y - x @ w) ** 2).sum(), n - p - 1
    log_noise = (np.log(rest / 2) - digamma(df / 2)) / 2
    sd = np.sqrt(inverse.diagonal() * rest / (df - 2))
    return np.array([log_noise, *w]), np.array([np.sqrt(polygamma(1, df / 2)) / 2, *sd])


def logit(ppl, dist, xp, x, y):
    """A logistic regression on the columns of x."""
    w = ppl.sample("w", dist.Normal(xp.zeros(x.shape[1]), FLAT).to_event(1))
    with ppl.plate("data", len(y)):
        ppl.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def lines(rng, columns, weights, noise):
    """An intercept and columns, and what they predict."""
    x = np.column_stack((np.ones(len(columns[0])), *columns))
    return x, x @ np.array(weights) + noise * rng.standard_normal(len(x))


def scores(rng):
    """Children's test scores on the mother's."""
    return lines(rng, [rng.normal(100, 15, 434)], [26, 0.6], 18)


def earnings(rng):
    """Log income on height in inches and sex."""
    male = (rng.random(1000) < 0.4).astype(float)
    height = rng.normal(64.5 + 5.5 * male, 2.8)
    return lines(rng, [height, male], [8.0, 0.02, 0.4], 0.9)


def bushes(rng):
    """Weights in grams of 46 bushes on diameters, heights in metres, and density."""
    size = np.exp(0.4 * rng.standard_normal((46, 1)))
    metres = np.array([2.0, 1.6, 1.1, 1.5]) * size * np.exp(0.15 * rng.standard_normal((46, 4)))
    stems, group = 1.0 + rng.poisson(0.8, 46), (rng.random(46) < 0.43).astype(float)
    columns = [*metres.T, stems, group]
    return lines(rng, columns, [-730, 190, 370, 350, -100, 130, -360], 270)


def summers(rng):
    """Sixty-two summers' temperatures on the year."""
    return lines(rng, [np.arange(1952.0, 2014.0)], [-29, 0.0193], 1.1)


def parties(rng):
    """Party, 1 to 7, on eight answers and classes."""
    n = 550
    ideology, race = rng.integers(1, 8, n), (rng.random(n) < 0.15).astype(float)
    ages = rng.integers(0, 4, n)
    old = [(ages == k).astype(float) for k in (1, 2, 3)]
    school, sex, income = rng.integers(1, 5, n), rng.integers(0, 2, n), rng.integers(1, 6, n)
    columns = [ideology, race, *old, school, sex, income]
    return lines(rng, columns, [1.2, 0.48, -1.1, -0.2, -0.2, -0.3, 0.3, -0.1, 0.16], 1.8)


def trend(rng):
    """A quadratic in the year of the century."""
    year = np.arange(40.0, 100.0)
    return lines(rng, [year, year**2], [30, -0.8, 0.008], 1.5)


def wells(rng):
    """Whether a household changes its well: metres to the next, arsenic, years of school."""
    n = 1500
    metres, arsenic = rng.gamma(1.6, 30, n), 0.5 + rng.gamma(1.2, 0.95, n)
    x = np.column_stack((np.ones(n), metres, arsenic, rng.integers(0, 18, n)))
    chances = 1 / (1 + np.exp(-x @ np.array([-0.2, -0.009, 0.47, 0.04])))
    return x, (rng.random(n) < chances).astype(float)


def lagged(rng):
    """A series about 25 on its five last values."""
    y = [25.0] * 5
    for _ in range(200):
        y.append(5 + float(np.dot([0.5, 0.2, 0.0, 0.1, 0.0], y[:-6:-1])) + rng.normal())
    series = np.array(y)
    columns = [np.ones(200)] + [series[5 - k : 205 - k] for k in range(1, 6)]
    return np.column_stack(columns), series[5:]


def garch(ppl, dist, xp, y):
    """A variance that depends on the last value and on itself."""
    mean = ppl.sample("mean", dist.Normal(0.0, FLAT))
    base = ppl.sample("base", dist.HalfNormal(FLAT))
    shock = ppl.sample("shock", dist.Beta(1.0, 1.0))
    decay = (1 - shock) * ppl.sample("rest", dist.Beta(1.0, 1.0))
    news = base + shock * (y[:-1] - mean) ** 2
    first = xp.stack((base + 1.0,))
    variance = autoregression(xp, decay, xp.concatenate((first, news)), len(y))
    ppl.sample("y", dist.Normal(mean, variance**0.5).to_event(1), obs=y)


def garch_data(rng):
    """Two hundred values about 5."""
    y, variance = [], 1.5
    for _ in range(200):
        y.append(5 + np.sqrt(variance) * rng.standard_normal())
        variance = 0.5 + 0.3 * (y[-1] - 5) ** 2 + 0.5 * variance
    return (np.array(y),)


def walk(ppl, dist, xp, y):
    """A random walk from far away, seen with noise."""
    first = ppl.sample("first", dist.Normal(0.0, FLAT))
    drift = ppl.sample("drift", dist.HalfNormal(5.0))
    noise = ppl.sample("noise", dist.HalfNormal(5.0))
    z = ppl.sample("z", dist.Normal(xp.zeros(50), 1.0).to_event(1))
    ppl.sample("y", dist.Normal(first + drift * xp.cumsum(z, 0), noise).to_event(1), obs=y)


def walk_data(rng):
    return (120 + np.cumsum(1.5 * rng.standard_normal(50)) + 2 * rng.standard_normal(50),)


POSTERIORS = {
    "scores": Posterior(line, scores, line_exact),
    "earnings": Posterior(line, earnings, line_exact),
    "bushes": Posterior(line, bushes, line_exact),
    "summers": Posterior(line, summers, line_exact),
    "parties": Posterior(line, parties, line_exact),
    "trend": Posterior(line, trend, line_exact),
    "wells": Posterior(logit, wells),
    "lags": Posterior(line, lagged, line_exact),
    "garch": Posterior(garch, garch_data),
    "walk": Posterior(walk, walk_data),
}
