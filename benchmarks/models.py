"""Fourteen posteriors for `posteriors`, each written once in words that libraries share.

`ppl` is pyro or numpyro, `dist` its distributions, `xp` torch or jax.numpy; for nutpie they are
PyTensor's (`words`). Data are simulated but for those of the eight schools; where a reference
stands beside a model, shapes and true values are like those of its data.
"""

import numpy as np

from benchmarks.problem import Posterior, jax


def eight_schools(ppl, dist, xp, y, sd):
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    tau = ppl.sample("tau", dist.HalfCauchy(5.0))
    with ppl.plate("schools", len(y)):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(mu + tau * z, sd), obs=y)


def eight_schools_data(rng):
    """Rubin (1981)."""
    y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    return y, np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def logistic(ppl, dist, xp, x, y):
    w = ppl.sample("w", dist.Normal(xp.zeros(10), 2.5).to_event(1))
    with ppl.plate("data", len(y)):
        ppl.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def logistic_data(rng):
    x, w = rng.standard_normal((500, 10)), rng.standard_normal(10)
    return x, (rng.random(500) < 1 / (1 + np.exp(-x @ w))).astype(float)


def hierarchical(ppl, dist, xp, group, x, y):
    mean = ppl.sample("mean", dist.Normal(xp.zeros(2), 5.0).to_event(1))
    spread = ppl.sample("spread", dist.HalfNormal(xp.ones(2)).to_event(1))
    noise = ppl.sample("noise", dist.HalfNormal(1.0))
    z = ppl.sample("z", dist.Normal(xp.zeros((20, 2)), 1.0).to_event(2))
    own = (mean + spread * z)[group]
    with ppl.plate("data", len(y)):
        ppl.sample("y", dist.Normal(own[:, 0] + own[:, 1] * x, noise), obs=y)


def hierarchical_data(rng):
    """Twenty groups of five."""
    group, x = np.repeat(np.arange(20), 5), rng.standard_normal(100)
    own = np.array([1.0, -0.5]) + np.array([0.8, 0.4]) * rng.standard_normal((20, 2))
    return group, x, own[group, 0] + own[group, 1] * x + 0.7 * rng.standard_normal(100)


def funnel(ppl, dist, xp):
    v = ppl.sample("v", dist.Normal(0.0, 3.0))
    ppl.sample("x", dist.Normal(xp.zeros(9), xp.exp(v / 2)).to_event(1))


def funnel_exact():
    """Of v alone: x has tails too heavy to judge by."""
    return np.array([0.0] + 9 * [np.nan]), np.array([3.0] + 9 * [np.nan])


def normal(ppl, dist, xp, a, y):
    x = ppl.sample("x", dist.Normal(xp.zeros(100), 10.0).to_event(1))
    ppl.sample("y", dist.Normal(a @ x, 1.0).to_event(1), obs=y)


def normal_data(rng):
    """A linear regression whose posterior precision has eigenvalues from 0.1 to 10."""
    directions = np.linalg.qr(rng.standard_normal((100, 100)))[0]
    a = np.sqrt(np.logspace(-1, 1, 100) - 0.01)[:, None] * directions
    return a, a @ rng.standard_normal(100) + rng.standard_normal(100)


def normal_exact(a, y):
    covariance = np.linalg.inv(a.T @ a + 0.01 * np.eye(100))
    return covariance @ a.T @ y, np.sqrt(covariance.diagonal())


def gaussian_process(ppl, dist, xp, x, y):
    size = ppl.sample("size", dist.LogNormal(0.0, 1.0))
    length = ppl.sample("length", dist.LogNormal(0.0, 1.0))
    noise = ppl.sample("noise", dist.LogNormal(-1.0, 1.0))
    near = xp.exp(-((x[:, None] - x) ** 2) / (2 * length**2))
    covariance = size**2 * near + (noise**2 + 1e-6 * size**2) * xp.eye(50)
    ppl.sample("y", dist.MultivariateNormal(xp.zeros(50), covariance), obs=y)


def gaussian_process_data(rng):
    x = np.sort(rng.uniform(-4, 4, 50))
    return x, np.sin(1.5 * x) + 0.3 * rng.standard_normal(50)


def radon(ppl, dist, xp, county, floor, y):
    """Centred, as in Gelman and Hill (2007): an intercept for each county, a slope for all."""
    mean = ppl.sample("mean", dist.Normal(0.0, 10.0))
    spread = ppl.sample("spread", dist.HalfNormal(1.0))
    slope = ppl.sample("slope", dist.Normal(0.0, 10.0))
    noise = ppl.sample("noise", dist.HalfNormal(1.0))
    with ppl.plate("counties", 85):
        own = ppl.sample("own", dist.Normal(mean, spread))
    with ppl.plate("houses", len(y)):
        ppl.sample("y", dist.Normal(own[county] + slope * floor, noise), obs=y)


def radon_data(rng):
    """85 counties of 1 to some 100 houses, 919 in all; a sixth measured on the first floor."""
    weights = np.exp(1.1 * rng.standard_normal(85))
    sizes = 1 + rng.multinomial(919 - 85, weights / weights.sum())
    county, floor = np.repeat(np.arange(85), sizes), (rng.random(919) < 1 / 6).astype(float)
    own = 1.46 + 0.33 * rng.standard_normal(85)
    return county, floor, own[county] - 0.69 * floor + 0.76 * rng.standard_normal(919)


def item_response(ppl, dist, xp, y):
    """Two parameters an item."""
    ability = ppl.sample("ability", dist.Normal(xp.zeros(60), 1.0).to_event(1))
    difficulty = ppl.sample("difficulty", dist.Normal(xp.zeros(12), 1.5).to_event(1))
    sharpness = ppl.sample("sharpness", dist.LogNormal(xp.zeros(12), 0.5).to_event(1))
    logits = sharpness * (ability[:, None] - difficulty)
    ppl.sample("y", dist.Bernoulli(logits=logits).to_event(2), obs=y)


def item_response_data(rng):
    """Sixty persons answer twelve questions."""
    ability, difficulty = rng.standard_normal((60, 1)), 1.2 * rng.standard_normal(12)
    sharpness = np.exp(0.4 * rng.standard_normal(12))
    chances = 1 / (1 + np.exp(-sharpness * (ability - difficulty)))
    return ((rng.random((60, 12)) < chances).astype(float),)


def autoregression(xp, decay, shocks, n):
    """x_t = decay x_(t−1) + shocks_t from x_0 = shocks_0, of n values, in log₂ n rounds."""
    far = 1
    while far < n:
        shocks = xp.concatenate((shocks[:far], shocks[far:] + decay**far * shocks[:-far]))
        far *= 2
    return shocks


def volatility(ppl, dist, xp, y):
    """Stochastic, not centred: the log variance is autoregressive from its stationary law."""
    level = ppl.sample("level", dist.Normal(-1.0, 1.0))
    decay = ppl.sample("decay", dist.Beta(20.0, 1.5))
    size = ppl.sample("size", dist.HalfNormal(0.5))
    z = ppl.sample("z", dist.Normal(xp.zeros(100), 1.0).to_event(1))
    first = z[:1] / (1 - decay**2) ** 0.5
    h = level + size * autoregression(xp, decay, xp.concatenate((first, z[1:])), 100)
    ppl.sample("y", dist.Normal(0.0, xp.exp(h / 2)).to_event(1), obs=y)


def volatility_data(rng):
    h = np.zeros(100)
    h[0] = 0.3 / np.sqrt(1 - 0.95**2) * rng.standard_normal()
    for t in range(1, 100):
        h[t] = 0.95 * h[t - 1] + 0.3 * rng.standard_normal()
    return (np.exp((h - 1) / 2) * rng.standard_normal(100),)


def horseshoe(ppl, dist, xp, x, y):
    """Regularised, Piironen and Vehtari (2017): three of twenty expected, a slab t₄ of scale 2."""
    noise = ppl.sample("noise", dist.HalfNormal(2.0))
    overall = ppl.sample("overall", dist.HalfCauchy(1.0))
    local = ppl.sample("local", dist.HalfCauchy(xp.ones(20)).to_event(1))
    slab = ppl.sample("slab", dist.Gamma(2.0, 8.0))  # one over the variance
    z = ppl.sample("z", dist.Normal(xp.zeros(20), 1.0).to_event(1))
    scale = 3 / 17 / 10 * noise * overall * local  # √100 rows
    w = z * scale / (1 + slab * scale**2) ** 0.5
    ppl.sample("y", dist.Normal(x @ w, noise).to_event(1), obs=y)


def horseshoe_data(rng):
    x, w = rng.standard_normal((100, 20)), np.zeros(20)
    w[:3] = 2.0, -1.5, 1.0
    return x, x @ w + rng.standard_normal(100)


def slopes(ppl, dist, xp, group, x, y):
    """Intercepts and slopes that are correlated between groups."""
    mean = ppl.sample("mean", dist.Normal(xp.zeros(2), 5.0).to_event(1))
    spread = ppl.sample("spread", dist.HalfNormal(xp.ones(2)).to_event(1))
    corr = ppl.sample("corr", dist.LKJCholesky(2, 2.0))
    noise = ppl.sample("noise", dist.HalfNormal(1.0))
    z = ppl.sample("z", dist.Normal(xp.zeros((30, 2)), 1.0).to_event(2))
    own = (mean + z @ (spread[:, None] * corr).T)[group]
    ppl.sample("y", dist.Normal(own[:, 0] + own[:, 1] * x, noise).to_event(1), obs=y)


def slopes_data(rng):
    """Thirty groups of eight, correlation −0.6."""
    group, x = np.repeat(np.arange(30), 8), rng.standard_normal(240)
    factor = np.array([[0.8, 0.0], [0.5 * -0.6, 0.5 * 0.8]])
    own = np.array([1.0, -0.5]) + rng.standard_normal((30, 2)) @ factor.T
    return group, x, own[group, 0] + own[group, 1] * x + 0.7 * rng.standard_normal(240)


def counts(ppl, dist, xp, x, y):
    """A Poisson Gaussian process, whitened."""
    level = ppl.sample("level", dist.Normal(1.0, 1.0))
    size = ppl.sample("size", dist.HalfNormal(1.0))
    length = ppl.sample("length", dist.LogNormal(0.0, 0.5))
    z = ppl.sample("z", dist.Normal(xp.zeros(40), 1.0).to_event(1))
    near = xp.exp(-((x[:, None] - x) ** 2) / (2 * length**2)) + 1e-6 * xp.eye(40)
    rate = xp.exp(level + size * (xp.linalg.cholesky(near) @ z))
    ppl.sample("y", dist.Poisson(rate).to_event(1), obs=y)


def counts_data(rng):
    x = np.linspace(-4, 4, 40)
    return x, rng.poisson(np.exp(1.2 + np.sin(1.2 * x))).astype(float)


def mixture(ppl, dist, xp, y):
    """Two normals in order, their deviations free."""
    share = ppl.sample("share", dist.Beta(2.0, 2.0))
    low = ppl.sample("low", dist.Normal(0.0, 3.0))
    gap = ppl.sample("gap", dist.LogNormal(0.5, 0.5))
    sd = ppl.sample("sd", dist.LogNormal(xp.zeros(2), 0.5).to_event(1))
    parts = dist.Normal(xp.stack((low, low + gap)), sd)
    weights = dist.Categorical(probs=xp.stack((share, 1 - share)))
    with ppl.plate("data", len(y)):
        ppl.sample("y", dist.MixtureSameFamily(weights, parts), obs=y)


def mixture_data(rng):
    first = rng.random(200) < 0.6
    return (np.where(first, -1.0, 1.7) + np.where(first, 0.6, 1.1) * rng.standard_normal(200),)


def path(xp, step, state, count):
    """The states after each of `count` steps; a scan where compilers take minutes for a loop."""
    if jax is not None and xp is jax.numpy:
        return jax.lax.scan(lambda at, _: (step(at),) * 2, state, length=count)[1]
    if hasattr(xp, "path"):  # `words`
        return xp.path(step, state, count)
    states = [state]
    for _ in range(count):
        states.append(step(states[-1]))
    return xp.stack(states[1:])


def predators(ppl, dist, xp, y):
    """Lotka–Volterra in logarithms, in units of the equilibrium: one RK4 step an observation.

    d log prey = a − b predators, d log predators = −c + d prey.
    """
    z = ppl.sample("z", dist.Normal(xp.zeros(4), 1.0).to_event(1))
    first = ppl.sample("first", dist.Normal(xp.zeros(2), 0.5).to_event(1))
    noise = ppl.sample("noise", dist.LogNormal(-1.5, 0.5))
    rates = xp.exp(0.3 * z)
    grow = xp.stack((rates[0], -rates[2]))
    meet = xp.stack((-rates[1], rates[3]))

    def slope(state):
        return grow + meet * xp.exp(xp.roll(state, 1))

    def step(state, h=0.5):
        k1 = slope(state)
        k2 = slope(state + h / 2 * k1)
        k3 = slope(state + h / 2 * k2)
        return state + h / 6 * (k1 + 2 * (k2 + k3) + slope(state + h * k3))

    states = path(xp, step, first, len(y))
    ppl.sample("y", dist.Normal(states, noise).to_event(2), obs=y)


def predators_data(rng):
    """A little more than one turn, in sixteen steps."""
    state, states = np.array([0.6, -0.3]), []

    def slope(state):
        return np.array([1.1, -0.9]) + np.array([-1.0, 1.0]) * np.exp(state[::-1])

    for _ in range(16):
        for _ in range(10):
            middle = state + 0.025 * slope(state)
            state = state + 0.05 * slope(middle)
        states.append(state)
    return (np.stack(states) + 0.2 * rng.standard_normal((16, 2)),)


POSTERIORS = {
    "eight schools": Posterior(eight_schools, eight_schools_data, asked=1),
    "logistic": Posterior(logistic, logistic_data, asked=3),
    "hierarchical": Posterior(hierarchical, hierarchical_data, asked=1),
    "funnel": Posterior(funnel, exact=funnel_exact),
    "normal": Posterior(normal, normal_data, normal_exact, asked=5),
    "Gaussian process": Posterior(gaussian_process, gaussian_process_data, asked=2),
    "radon": Posterior(radon, radon_data, asked=1),
    "item response": Posterior(item_response, item_response_data, asked=1),
    "volatility": Posterior(volatility, volatility_data, asked=1),
    "horseshoe": Posterior(horseshoe, horseshoe_data, asked=1),
    "slopes": Posterior(slopes, slopes_data, asked=1),
    "counts": Posterior(counts, counts_data, asked=1),
    "mixture": Posterior(mixture, mixture_data, asked=1),
    "predators": Posterior(predators, predators_data, asked=1),
}
