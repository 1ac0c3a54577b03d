"""`Evidence` holds the facts that a verdict is reached from; `Problem` is one thing found wrong."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from ozaki.diagnostics.stein import SteinTest


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        what: what was seen.
        remedy: what to do about it.
        fatal: whether the draws should not be trusted because of it.

    Example:
        >>> from ozaki.diagnostics import inference_data, verdict
        >>> verdict(inference_data({"x": np.zeros((4, 100))})).problems[0].what
        'no chain moved at all'
    """

    what: str
    remedy: str
    fatal: bool


class Evidence(NamedTuple):
    """The facts that a verdict is reached from.

    Attributes:
        draws: each scalar component's draws, (chains, draws).
        rhat, ess_bulk, ess_tail: by component, NaN where it is constant or not finite.
        stats: sampler statistics by name, (chains, draws).
        law: the law drawn from, in words.
        estimator_metrics: held-out figures of a learned score.
        stein: a test of the draws against their score.
        bias: by component, the bias of the mean and of the standard deviation that step halving
            found, and their errors, in standard deviations; empty where it was not looked for.
        worst_mcse: the largest standard error of a mean, in standard deviations.
        need_stats: whether the sampler's statistics must be there.
        left_out: variables that were kept with the draws and are not judged, in words.
        circular: the components that are angles; `rhat` and the ESS of one are the worse of its
            cosine's and its sine's.
        flat: components on which the density does not depend; they have no `rhat` and no ESS.
        masked: those of them that the model itself leaves out by a mask.
        centred: sites whose scale is itself drawn.
        saturated: site → the share of its draws that the dtype does not hold.
    """

    draws: Mapping[str, np.ndarray]
    rhat: Mapping[str, float]
    ess_bulk: Mapping[str, float]
    ess_tail: Mapping[str, float]
    stats: Mapping[str, np.ndarray]
    law: str | None
    estimator_metrics: Mapping[str, Any] | None
    stein: SteinTest | None
    bias: Mapping[str, Mapping[str, float]]
    worst_mcse: float
    need_stats: bool = False
    left_out: Sequence[str] = ()
    circular: Collection[str] = ()
    flat: Sequence[str] = ()
    masked: Collection[str] = ()
    saturated: Mapping[str, float] = MappingProxyType({})
    centred: Sequence[str] = ()


def is_constant(draws: np.ndarray) -> bool:
    """Say whether draws differ by rounding alone."""
    if draws.dtype.kind != "f":
        return bool(np.all(draws == draws.flat[0]))
    size = np.abs(draws).max()
    # a tolerance of ∞ would accept anything
    return bool(np.isfinite(size) and np.ptp(draws) <= 4 * np.finfo(draws.dtype).eps * size)


def floats(e: Evidence) -> dict[str, np.ndarray]:
    """Return the finite floating-point components; all components where there are none."""
    finite = {name: d for name, d in e.draws.items() if np.isfinite(d).all()}
    return {name: d for name, d in finite.items() if d.dtype.kind == "f"} or finite or dict(e.draws)


def diverged(e: Evidence) -> np.ndarray:
    """Return where steps diverged, (chains, draws), as far as that was recorded."""
    flags = e.stats.get("diverging", np.zeros((chains(e), 0)))
    return (flags != 0) & np.isfinite(flags)


def by_chain(e: Evidence, name: str) -> list[float]:
    """Return the mean of a statistic for each chain; empty where there is none of that name."""
    values = e.stats.get(name)
    return [] if values is None else [float(row.mean()) for row in values.astype(float)]


def chains(e: Evidence) -> int:
    """Return how many chains there are."""
    return len(next(iter(e.draws.values())))
