"""`describe` writes the settings of estimator.json; `sketch` and `rebuild` make networks of them.

They refuse settings that do not fit each other.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ozaki.foundation import validation
from ozaki.scores.learned.baseline import Baseline
from ozaki.scores.learned.mlp import Trunks
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork
from ozaki.scores.learned.standardisation import LARGEST
from ozaki.scores.learned.unet import UNet

KINDS = {"Trunks": Trunks, "UNet": UNet}  # networks by their names in estimator.json
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def describe(network: ScoreNetwork, dtype: torch.dtype) -> dict[str, Any]:
    """Return the settings from which a network can be built before its weights are read."""
    base = network.baseline
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "event_shape": list(network.event_shape),
        "sigma": network.sigma,
        "heads": network.heads._asdict(),
        "centre": network.centre,
        "spread": network.spread,
        "baseline": None if base is None else {"rank": base.rank, "below": base.below},
    }


def sketch(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ScoreNetwork:
    """Build the networks that the settings describe, of ozaki's own kinds, without weights.

    Settings may ask for more memory than a machine has, so they are compared with the file first.

    Raises:
        ValueError: it cannot, or its outputs are not those of the heads.
    """
    architecture, heads = settings["architecture"], settings["heads"]
    if architecture.get("depth", 0) > len(tensors):
        raise ValueError(
            f"depth must be at most the number of tensors, {len(tensors)}, but was "
            f"{architecture['depth']}"
        )
    for name in ("order", "rank"):
        if architecture.get(name, heads[name]) != heads[name]:
            raise ValueError(f"{name} must be that of the heads, but was {architecture[name]}")
    with torch.device("meta"):
        net = rebuild(settings, None)
        u = torch.empty(2, *net.event_shape, dtype=DTYPES[settings["dtype"]])
        outputs: Any = net.network(u, u.new_empty(2))
    found = [tuple(o.shape) for o in ([outputs] if isinstance(outputs, Tensor) else outputs)]
    if found != net.heads.shapes(tuple(u.shape)):
        raise ValueError(f"the network must give what the heads take, but gave shapes {found}")
    return net


def rebuild(settings: Mapping[str, Any], network: nn.Module | None) -> ScoreNetwork:
    """Build the networks that the settings describe; their weights are still to be read."""
    # the initial weights are overwritten: drawing them must not change the global random state
    with torch.random.fork_rng(devices=[]):
        trunk = (
            KINDS[settings["network"]](**settings["architecture"]) if network is None else network
        )
    found = settings["heads"]
    heads = Heads(
        validation.choice("order", found["order"], (1, 2, 3, 4)),
        validation.count("rank", found["rank"], minimum=0),
        validation.flag("signed", found["signed"]),
    )
    return ScoreNetwork(
        trunk,
        validation.sizes("event_shape", settings["event_shape"]),
        _sigma(settings["sigma"]),
        heads,
        _finite("centre", settings["centre"]),
        _size("spread", settings["spread"]),
        _baseline(settings),
    ).to(DTYPES[settings["dtype"]])


def _sigma(value: Any) -> float | tuple[float, float]:
    """Check σ, or a range of it, and return it."""
    if not isinstance(value, list):
        return _size("sigma", value)
    low, high = (_size("sigma", s) for s in value)
    if low >= high:
        raise ValueError(f"sigma must be low and high, but was {value}")
    return low, high


def _size(name: str, value: Any) -> float:
    """Check a number whose square is a divisor, and return it."""
    number = validation.positive(name, value)
    if not 1 / LARGEST <= number <= LARGEST:
        raise ValueError(f"{name} must be from {1 / LARGEST:g} to {LARGEST:g}, but was {value}")
    return number


def _finite(name: str, value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, but was {value}")
    return number


def metrics_of(found: Any) -> dict[str, Any]:
    """Return the metrics as they were found; raise ValueError for NaN and infinity."""
    if not isinstance(found, dict):
        raise ValueError(f"metrics must be numbers by name, but was {type(found).__name__}")
    json.dumps(found, allow_nan=False)  # 1e999 is read as infinity
    return found


def _baseline(settings: Mapping[str, Any]) -> Baseline | None:
    """Return an empty baseline where the estimator had one; the first archives do not say."""
    found = settings.get("baseline")
    if found is None:
        return None
    rank = validation.count("baseline rank", found["rank"], minimum=0)
    below = validation.count("baseline below", found["below"], minimum=0)
    if rank != settings["heads"]["rank"] or below > rank:
        raise ValueError(f"baseline must fit the heads, but was {found}")
    shape = validation.sizes("event_shape", settings["event_shape"])
    return Baseline(shape.numel(), rank, below)
