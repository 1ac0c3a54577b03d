"""`TrainerSettings` holds and checks the settings of a trainer.

They are everything that bears on the estimator apart from the data and the seed. A checkpoint keeps
them as a whole, so that a training is only resumed with the same settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from ozaki.foundation import validation
from ozaki.scores.learned.losses import LIKELIHOODS, TERMS
from ozaki.scores.learned.phase import OptimiserSchedule
from ozaki.scores.learned.unet import PRESETS


class Usual(NamedTuple):
    """The default settings for training a kind of network.

    Attributes:
        rate: the learning rate.
        weight: γ, of the losses of s2 against that of s1, with which they share the trunk.
    """

    rate: float
    weight: float


MLP, U_NET = Usual(6e-3, 1.0), Usual(2e-3, 0.1)
MIXED = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
REDUCE_BELOW = 0.3  # in spreads: docs/benchmarks.md has the measurement
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


@dataclass(frozen=True)
class TrainerSettings:
    """Everything that bears on a trainer's estimator, except the data and the seed.

    `checked` makes valid ones. `dataclasses.asdict` gives what a checkpoint keeps.

    Attributes:
        objective: the weight of each loss of s2, by name; empty where s1 alone is learned.
        network: the name of a preset or of the class of a user's module; None for the default.

    The other attributes are as the arguments of `DSMTrainer`.
    """

    sigma: float | str | tuple[float, float]
    objective: dict[str, float]
    curvature: str | None
    rank: int | None
    signed: bool
    order: int
    variance_reduction: bool | str
    joint: bool
    baseline: bool | None
    standardize: str | None
    network: str | None
    width: int | None
    depth: int
    shared: bool
    max_steps: int
    batch_size: int
    learning_rate: float
    ema: float
    patience: int
    curvature_weight: float
    held_out: float
    precision: str

    @classmethod
    def checked(cls, **given: Any) -> "TrainerSettings":
        """Check the arguments of `DSMTrainer`, all given by name, and return their settings.

        None and "auto" are replaced by what they mean where that does not depend on the data.

        Raises:
            ValueError: an argument out of range, or arguments that do not fit each other.
        """
        return cls(**_score(given), **_network(given), **_optimiser(given))

    @property
    def schedule(self) -> OptimiserSchedule:
        """The settings of each phase's optimiser."""
        return OptimiserSchedule(
            self.max_steps,
            self.batch_size,
            self.learning_rate,
            self.ema,
            self.patience,
            self.curvature_weight,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights and losses."""
        return torch.float64 if self.precision == "64-true" else torch.float32

    @property
    def mixed(self) -> torch.dtype | None:
        """The dtype of the trunk's products in training, where it differs from `dtype`."""
        return MIXED.get(self.precision)


def _score(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments that say what is learned."""
    sigma = _noise(given["sigma"])
    curvature = validation.choice("curvature", given["curvature"], ("diagonal", "low_rank", None))
    terms = _losses(given["objective"], curvature)
    rank = _low_rank(given["rank"], curvature)
    signed = validation.flag("signed", given["signed"])
    order = _highest(given["order"], terms, curvature)
    likelihood = next((name for name in terms if name in LIKELIHOODS), None)
    if likelihood and curvature == "low_rank" and signed:
        raise ValueError(
            f"objective={likelihood!r} needs a positive definite posterior covariance, but "
            "curvature was 'low_rank' and signed True; pass signed=False (--unsigned), or "
            "objective='residual'"
        )
    return {
        "sigma": sigma,
        "objective": terms,
        "curvature": curvature,
        "rank": rank,
        "signed": signed,
        "order": order,
        "variance_reduction": validation.choice(
            "variance_reduction", given["variance_reduction"], ("auto", True, False)
        ),
    }


def _network(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments that say which network learns, and how orders share it."""
    network: Any = given["network"]
    module = isinstance(network, nn.Module)
    joint = module if given["joint"] is None else validation.flag("joint", given["joint"])
    baseline = None if given["baseline"] is None else validation.flag("baseline", given["baseline"])
    standardize = validation.choice(
        "standardize", given["standardize"], ("auto", "columns", "scalar", None)
    )
    if not (network is None or module or network in PRESETS):
        raise ValueError(
            f"network must be a torch.nn.Module, one of {sorted(PRESETS)} or None, but was "
            f"{network!r}"
        )
    if module and not joint:
        raise ValueError(
            "joint=False needs one of ozaki's networks, of which it knows what belongs to s1, "
            f"but network was {type(network).__name__}; leave one of them out"
        )
    return {
        "joint": joint,
        "baseline": baseline,
        "standardize": standardize,
        "network": type(network).__qualname__ if module else network,
        "width": None if given["width"] is None else validation.count("width", given["width"]),
        "depth": validation.count("depth", given["depth"], minimum=0),
        "shared": validation.flag("shared", given["shared"]),
    }


def _optimiser(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments of the optimiser, and fill in the defaults of the network's kind."""
    usual = U_NET if isinstance(given["network"], str) else MLP
    rate, weight = given["learning_rate"], given["curvature_weight"]
    return {
        "max_steps": validation.count("max_steps", given["max_steps"]),
        "batch_size": validation.count("batch_size", given["batch_size"]),
        "learning_rate": validation.positive("learning_rate", usual.rate if rate is None else rate),
        "ema": _fraction("ema", given["ema"]),
        "patience": validation.count("patience", given["patience"]),
        "curvature_weight": validation.positive(
            "curvature_weight", usual.weight if weight is None else weight
        ),
        "held_out": _fraction("held_out", given["held_out"]),
        "precision": validation.choice(
            "precision", given["precision"], ("32-true", "64-true", *MIXED)
        ),
    }


def _fraction(name: str, value: Any) -> float:
    """Check a number between 0 and 1."""
    number = validation.positive(name, value)
    if number >= 1:
        raise ValueError(f"{name} must lie between 0 and 1, but was {value!r}")
    return number


def _noise(sigma: Any) -> float | str | tuple[float, float]:
    """Check a level of noise, a (low, high) range of it, or "auto"."""
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


def _losses(objective: Any, curvature: str | None) -> dict[str, float]:
    """Check the second-order losses and their weights."""
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


def _low_rank(rank: Any, curvature: str | None) -> int | None:
    """Check the rank of the low-rank part; None stands for the default."""
    if rank is None:
        return None
    if curvature != "low_rank":
        raise ValueError(
            f"rank belongs to curvature='low_rank', but was {rank!r} with curvature={curvature!r}; "
            "leave rank out, or pass curvature='low_rank'"
        )
    return validation.count("rank", rank)


def _highest(order: Any, terms: Mapping[str, float], curvature: str | None) -> int:
    """Check the order of the highest score."""
    validation.choice("order", order, (2, 3, 4))
    if order > 2 and (not terms or curvature != "diagonal"):
        raise ValueError(
            f"order={order} needs the diagonal of s2, but curvature was {curvature!r} and the "
            f"losses of s2 were {dict(terms)}; pass curvature='diagonal' and an objective that "
            "learns s2, or order=2"
        )
    return order
