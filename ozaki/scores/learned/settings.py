"""What a trainer can be asked for: its constants, and the arguments that need checking.

Each function takes an argument as the user gave it and returns it as `DSMTrainer` keeps it, or
raises a ValueError that names it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ozaki.foundation import validation
from ozaki.scores.learned.losses import TERMS


class Usual(NamedTuple):
    """What a kind of network is trained with unless told otherwise.

    Attributes:
        rate: the learning rate.
        weight: γ, of the losses of s2 against that of s1, with which they share the trunk.
    """

    rate: float
    weight: float


LARGEST_SIGMA = 100  # in spreads: beyond it the smoothed law is the noise
# in spreads: below it the losses, of size 1/σ², are rounding in that dtype
SMALLEST_SIGMA = {torch.float32: 1e-3, torch.float64: 1e-7}
REDUCE_BELOW = 0.3  # in spreads: docs/benchmarks.md has the measurement
# in spreads: below the first the targets of orders 3 and 4 are all noise; from the second on all
# that was tried, in up to 5 dimensions, was learned better than a constant
HIGH_ORDER_FROM, HIGH_ORDER_AUTO = 0.3, 0.5
DEFAULT_RANK = 20
LEAST_WIDTH, MOST_WIDTH = 64, 512  # between them twice the dimension
MOST_BASELINE = 1024  # dimensions: an eigendecomposition, and two D × D matrices to keep
LEAST_GAIN = 3.0  # of a baseline over an isotropic one; below, clusters are learned better without
MLP, U_NET = Usual(6e-3, 1.0), Usual(2e-3, 0.1)
MIXED = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
OBJECTIVES: dict[str, dict[str, float]] = {
    "residual": {"residual": 1.0},
    "ocm": {"ocm": 1.0},
    # a fifth, where s1 is trained first: from half to a fifth the error fell by a third on 10-d
    # mixtures and a logistic mixture; a stiff normal had 0.96 for 0.90
    "residual+ocm": {"residual": 0.2, "ocm": 0.8},
    "d2sm": {"d2sm": 1.0},
    "likelihood": {"likelihood": 1.0},
    "margins": {"margins": 1.0},
    "dsm": {},
}
AUTO = "residual+ocm"


def dtype(precision: str) -> torch.dtype:
    """The dtype of weights and losses."""
    return torch.float64 if precision == "64-true" else torch.float32


def fraction(name: str, value: Any) -> float:
    """A number between 0 and 1."""
    number = validation.positive(name, value)
    if number >= 1:
        raise ValueError(f"{name} must lie between 0 and 1, but was {value!r}")
    return number


def noise(sigma: Any) -> float | str | tuple[float, float]:
    """A level of noise, a (low, high) range of it, or "auto"."""
    if isinstance(sigma, str):
        return validation.choice("sigma", sigma, ("auto",))
    if not isinstance(sigma, (tuple, list)):
        return validation.positive("sigma", sigma)
    if len(sigma) != 2:
        raise ValueError(f"sigma must be a number, a (low, high) range or 'auto', but was {sigma}")
    low, high = (validation.positive("sigma", s) for s in sigma)
    if low >= high:
        raise ValueError(
            f"sigma must be a range (low, high) with low < high, but was {sigma}; "
            + ("swap the two" if low > high else "pass the number itself")
        )
    return low, high


def losses(objective: Any, curvature: str | None) -> dict[str, float]:
    """The second-order losses and their weights."""
    if isinstance(objective, Mapping):
        if not objective:
            raise ValueError("objective must name at least one loss, but was empty")
        for name in objective:
            validation.choice("objective", name, TERMS)
        terms = {k: validation.positive(f"objective[{k!r}]", w) for k, w in objective.items()}
    else:
        validation.choice("objective", objective, ("auto", *OBJECTIVES))
        terms = dict(OBJECTIVES[AUTO if objective == "auto" else objective])
    if curvature is None and objective not in ("auto", "dsm"):
        raise ValueError(
            f"objective={objective!r} learns s2, but curvature was None; use objective='dsm', "
            "or curvature='diagonal'"
        )
    return {} if curvature is None else terms


def low_rank(rank: Any, curvature: str | None) -> int | None:
    """The rank of the low-rank part, None for the default."""
    if rank is None:
        return None
    if curvature != "low_rank":
        raise ValueError(
            f"rank belongs to curvature='low_rank', but was {rank!r} with curvature={curvature!r}; "
            "leave rank out, or pass curvature='low_rank'"
        )
    return validation.count("rank", rank)


def highest(order: Any, terms: Mapping[str, float], curvature: str | None) -> int:
    """The order of the highest score."""
    validation.choice("order", order, (2, 3, 4))
    if order > 2 and (not terms or curvature != "diagonal"):
        raise ValueError(
            f"order={order} needs the diagonal of s2, but curvature was {curvature!r} and the "
            f"losses of s2 were {dict(terms)}; pass curvature='diagonal' and an objective that "
            "learns s2, or order=2"
        )
    return order


def noise_level(
    sigma: float | str | tuple[float, float], n: int, spread: float, order: int, precision: str
) -> float | tuple[float, float]:
    """σ for n rows of standard deviation `spread`: what was asked for, or chosen by n.

    Raises:
        ValueError: it is beyond what can be learned from these data.
    """
    if isinstance(sigma, str):
        return spread * max(n ** (-1 / 6), HIGH_ORDER_AUTO if order > 2 else 0)
    smallest = SMALLEST_SIGMA[dtype(precision)]
    for value in sigma if isinstance(sigma, tuple) else (sigma,):
        if value > LARGEST_SIGMA * spread:
            raise ValueError(
                f"sigma must be at most {LARGEST_SIGMA} times the spread of the data as "
                f"trained on ({spread:.4g}), but was {sigma}; lower it, or pass "
                "sigma='auto'"
            )
        if value < smallest * spread:
            raise ValueError(
                f"sigma must be at least {smallest:g} times the spread of the data as trained "
                f"on ({spread:.4g}) in precision {precision!r}, but was {sigma}; "
                "raise it, or pass precision='64-true'"
            )
        if order > 2 and value < HIGH_ORDER_FROM * spread:
            raise ValueError(
                f"sigma must be at least {HIGH_ORDER_FROM} times the spread of the data as "
                f"trained on ({spread:.4g}) for order={order}, whose targets are all "
                f"noise below, but was {sigma}; raise it, or pass order=2"
            )
    return sigma
