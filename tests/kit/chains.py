"""Chains whose law, and whose worth in independent draws, is known."""

import numpy as np
from scipy.signal import lfilter


def ar1(
    rng: np.random.Generator, count: int, chains: int, draws: int, *, worth: float
) -> np.ndarray:
    """(count, chains, draws) of an AR(1) process of variance 1, ESS = mn (1 − ρ)/(1 + ρ)."""
    tau = chains * draws / worth
    rho = (tau - 1) / (tau + 1)
    noise = rng.standard_normal((count, chains, draws))
    noise[..., 1:] *= np.sqrt(1 - rho**2)
    return lfilter([1], [1, -rho], noise)
