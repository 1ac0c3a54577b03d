"""Six posteriors for `posteriors`, each written once in the words Pyro and NumPyro share.

`ppl` is pyro or numpyro, `dist` its distributions, `xp` torch or jax.numpy. `Problem` makes both of
them, as functions of flat unconstrained points, and holds one against the other before anything is
timed. JAX, set up here for one thread and float64, is optional.
"""

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # what ozaki compiles is compiled anew
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

try:
    import blackjax  # noqa: F401
    import jax
    import numpyro
    from jax.flatten_util import ravel_pytree
except ImportError:
    jax = None
else:
    jax.config.update("jax_enable_x64", True)


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


class Posterior(NamedTuple):
    """A model; its data, simulated; exact means and sds, NaN where unknown; what is asked.

    `asked` is how many times the best other sampler's rate ozaki's best row should reach.
    """

    model: Callable[..., None]
    data: Callable[[np.random.Generator], tuple[np.ndarray, ...]] = lambda rng: ()
    exact: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None
    asked: float | None = None


POSTERIORS = {
    "eight schools": Posterior(eight_schools, eight_schools_data, asked=1),
    "logistic": Posterior(logistic, logistic_data, asked=3),
    "hierarchical": Posterior(hierarchical, hierarchical_data),
    "funnel": Posterior(funnel, exact=funnel_exact),
    "normal": Posterior(normal, normal_data, normal_exact, asked=3),
    "Gaussian process": Posterior(gaussian_process, gaussian_process_data, asked=3),
}


class Problem:
    """A posterior given data.

    Attributes:
        model, arguments: the Pyro model and what it is called with.
        potential: minus the log density by Pyro, of site → unconstrained tensor.
        log_density: by NumPyro, of a flat point, sites in the order of their names.

    Raises:
        RuntimeError: the two densities differ by more than a constant.
    """

    def __init__(self, name: str, seed: int):
        posterior = POSTERIORS[name]
        data = posterior.data(np.random.default_rng(seed))
        self.name = name
        self.exact = posterior.exact(*data) if posterior.exact else None
        self.model = partial(posterior.model, pyro, pyro.distributions, torch)
        self.arguments = tuple(map(torch.as_tensor, data))
        first, self.potential, self.transforms, _ = initialize_model(self.model, self.arguments)
        self.shapes = {site: first[site].shape for site in sorted(first)}
        self.dim = sum(map(math.prod, self.shapes.values()))
        if jax is not None:
            found = numpyro.infer.util.initialize_model(
                jax.random.key(seed),
                partial(posterior.model, numpyro, numpyro.distributions, jax.numpy),
                model_args=tuple(map(jax.numpy.asarray, data)),
            )
            unravel = ravel_pytree(found.param_info.z)[1]
            self.log_density: Callable[..., Any] = lambda u: -found.potential_fn(unravel(u))
            points = self.starts(5, seed)
            apart = [float(self.potential(self.split(u))) + self.log_density(u) for u in points]
            if np.ptp(apart) > 1e-8:
                raise RuntimeError(f"{name}: Pyro's and NumPyro's densities differ by {apart}")

    def starts(self, chains: int, seed: int) -> np.ndarray:
        """Far apart, (chains, D)."""
        return np.random.default_rng(seed).uniform(-2, 2, (chains, self.dim))

    def split(self, points: np.ndarray) -> dict[str, Tensor]:
        """(*batch, D) → site → unconstrained tensor."""
        parts = torch.as_tensor(points).split(list(map(math.prod, self.shapes.values())), -1)
        batch = points.shape[:-1]
        return {
            site: part.reshape(batch + tuple(shape))
            for (site, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def join(self, samples: dict[str, Tensor]) -> np.ndarray:
        """Site → unconstrained draws, (chains, draws, *shape) → (chains, draws, D)."""
        parts = [samples[site] for site in self.shapes]
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], -1).numpy()
