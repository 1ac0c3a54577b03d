"""`two_sample_test` tests whether two sets of draws are from one law.

Columns are compared one by one by means and standard deviations with their Monte Carlo errors, and
all at once by the energy distance with a permutation test.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist

from ozaki.diagnostics import figures
from ozaki.diagnostics.arviz_data import inference_data

POINTS = 1000  # most points of each set between which distances are taken
PERMUTATIONS = 999


class Difference(NamedTuple):
    """The distance of one law from another, and whether chance explains it.

    Attributes:
        energy_distance: 2E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖, columns in pooled standard deviations;
            0 for one law.
        p_value: the chance of so much between draws of one law.
        points: the draws of the two that were compared, thinned until nearly independent.
    """

    energy_distance: float
    p_value: float
    points: tuple[int, int]


def columns(
    draws: Mapping[str, np.ndarray], independent: bool = False
) -> dict[str, dict[str, float]]:
    """Compute mean, standard deviation, ESS and R-hat of each column, and errors of the first two.

    Args:
        draws: (chains, draws) by name.
        independent: whether draws are known to be, in whatever order they stand: their number is
            then the ESS, and there are no chains to disagree.
    """
    # named by order: a column of a table may have a name that no site may have
    numbered = {f"column {i}": values for i, values in enumerate(draws.values())}
    table = figures.summary(inference_data(numbered))
    found = dict(zip(draws, table.to_dict("index").values(), strict=True))
    for name, row in found.items():
        if independent:
            count = draws[name].size
            row |= {"mcse_mean": row["sd"] / count**0.5, "r_hat": float("nan")}
            row |= {"ess_bulk": float(count), "ess_tail": float(count)}
        # the error of a normal's standard deviation, at as many independent draws
        row["mcse_sd"] = row["sd"] / (2 * row["ess_bulk"]) ** 0.5
    return found


def in_errors(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Return the difference of two means in its standard errors."""
    error = np.hypot(one["mcse_mean"], other["mcse_mean"])
    return float((other["mean"] - one["mean"]) / error) if error > 0 else float("nan")


def two_sample_test(
    one: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    seed: int = 0,
    *,
    independent: tuple[bool, bool] = (False, False),
) -> Difference:
    """Compute the energy distance of two sets of draws, and test if one law explains it.

    Chains are thinned until draws are nearly independent, as the permutations take them to be, and
    to a thousand of each.

    Args:
        one, other: (chains, draws) by name; columns are matched by order.
        seed: of the choice of draws and of the permutations.
        independent: whether the draws of each are known to be, and need no thinning.

    Raises:
        ValueError: another number of columns; draws that are not finite; fewer than 5 of either
            that are nearly independent.

    Source: Székely and Rizzo (2013), Energy statistics.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> one, other = rng.normal(size=(1, 99)), 3 + rng.normal(size=(1, 99))
        >>> far = two_sample_test({"x": one}, {"x": other}, independent=(True, True))
        >>> far.p_value
        0.001
    """
    if len(one) != len(other):
        raise ValueError(
            f"both must have as many columns, but one had {list(one)} and the other {list(other)}"
        )
    rng = np.random.default_rng(seed)
    x, y = (_points(d, rng, i) for d, i in zip((one, other), independent, strict=True))
    both = np.concatenate([x, y])
    largest = np.abs(both).max(0)  # the square of a finite number may overflow
    both = both / np.where(largest > 0, largest, 1.0)
    spread = both.std(0)
    both = both / np.where(spread > 0, spread, 1.0)
    distances = cdist(both, both)
    sizes = len(x), len(y)
    weights = np.repeat([1 / sizes[0], -1 / sizes[1]], sizes)
    mixed = np.stack([weights, *(rng.permutation(weights) for _ in range(PERMUTATIONS))], 1)
    energies = -np.einsum("ij,ij->j", mixed, distances @ mixed)
    # without the draws' distances from themselves, so that its mean is 0 for one law
    own = [distances[: sizes[0], : sizes[0]].sum(), distances[sizes[0] :, sizes[0] :].sum()]
    within = sum(o / (n * (n - 1)) for o, n in zip(own, sizes, strict=True))
    across = 2 * distances[: sizes[0], sizes[0] :].mean()
    p = float((energies >= energies[0] * (1 - 1e-12)).mean())
    return Difference(float(across - within), p, sizes)


def _points(draws: Mapping[str, np.ndarray], rng: Any, independent: bool) -> np.ndarray:
    """Thin draws until they are nearly independent, (n, columns)."""
    stacked = np.stack([np.asarray(d, float) for d in draws.values()], -1)
    if not np.isfinite(stacked).all():
        raise ValueError("draws must be finite to be compared, but some were not; leave them out")
    if not independent:
        stacked = stacked[:, :: figures.thinning(stacked)]
    points = stacked.reshape(-1, stacked.shape[-1])
    if len(points) < 5:
        raise ValueError(
            f"at least 5 nearly independent draws are needed, but there were {len(points)}; run "
            "longer"
        )
    return rng.permutation(points)[:POINTS]
