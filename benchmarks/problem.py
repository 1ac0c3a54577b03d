"""A posterior written once in words that Pyro, NumPyro and PyTensor share, and its densities.

`Problem` makes them, as functions of flat unconstrained points, and holds one against the other
before anything is timed. JAX, set up here for one thread and float64, is optional.
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


class Posterior(NamedTuple):
    """A model; its data, simulated; exact means and sds, NaN where unknown; what is asked.

    `asked` is how many times the best other sampler's rate ozaki's best row should reach.
    """

    model: Callable[..., None]
    data: Callable[[np.random.Generator], tuple[np.ndarray, ...]] = lambda rng: ()
    exact: Callable[..., tuple[np.ndarray, np.ndarray]] | None = None
    asked: float | None = None


class Problem:
    """A posterior given data.

    Attributes:
        posterior, data: what it was made of.
        model, arguments: the Pyro model and what it is called with.
        potential: minus the log density by Pyro, of site → unconstrained tensor.
        log_density: by NumPyro, of a flat point, sites in the order of their names.

    Raises:
        RuntimeError: the two densities differ by more than a constant.
    """

    def __init__(self, name: str, posterior: Posterior, seed: int):
        data = posterior.data(np.random.default_rng(seed))
        self.name, self.posterior, self.data = name, posterior, data
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
            if np.ptp(apart) > 1e-8 + 1e-12 * max(abs(float(self.log_density(u))) for u in points):
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
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], -1).cpu().numpy()

    def unconstrained(self, samples: dict[str, Tensor]) -> np.ndarray:
        """Site → draws as the model has them, (chains, draws, *shape) → (chains, draws, D)."""
        return self.join({s: self.transforms[s](samples[s]) for s in self.shapes})
