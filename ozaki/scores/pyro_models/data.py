"""`with_tensors` turns data of a Pyro model that are no tensors into tensors.

Pyro computes with tensors alone, and where it meets arrays, frames or numbers it raises an error
from deep inside.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Bernoulli, Categorical
from torch.utils._pytree import tree_leaves

from ozaki.scores.supports import unwrapped


def with_tensors(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the model with its arguments and its observations as tensors.

    NumPy's arrays and the columns of frames become tensors, their floating-point numbers of torch's
    default dtype, in lists and dicts too; so do arrays and numbers given to `obs=`.
    """
    found = {name: as_tensors(value) for name, value in kwargs.items()}
    return observing(partial(model, *map(as_tensors, args), **found))


def has_others(values: Any) -> bool:
    """Say whether there are data that `as_tensors` changes."""
    return any(as_tensors(leaf) is not leaf for leaf in tree_leaves(values))


def as_tensors(value: Any) -> Any:
    """Turn arrays and frames into tensors, in lists, tuples and dicts too; keep all else."""
    if isinstance(value, dict):
        return {name: as_tensors(each) for name, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(as_tensors(each) for each in value)
    fields: Any = getattr(value, "_fields", None)
    if fields:  # a named tuple
        return type(value)(*map(as_tensors, value))
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "to_numpy"):  # a frame or one of its columns
        value = value.to_numpy()
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind not in "biuf":
        return value
    tensor = torch.from_numpy(np.array(value))  # copied: it may be read-only, or strided
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


def observing(model: Callable[..., Any]) -> Callable[..., Any]:
    """Return the model with its observations as tensors that its laws take."""
    return _Observing()(model)


def taken(fn: Any, value: Any) -> bool:
    """Say whether a law takes an observed value as it is."""
    return isinstance(value, Tensor) and _as_law_takes(fn, value) is value


def _as_law_takes(fn: Any, value: Tensor) -> Tensor:
    """Turn flags into floats, and whole numbers too where the law is of 0 and 1."""
    law, kind = unwrapped(fn), value.dtype
    if kind in (torch.uint16, torch.uint32, torch.uint64):
        value = value.long()
    if kind.is_floating_point or kind.is_complex or isinstance(law, Categorical):
        return value
    if kind == torch.bool or isinstance(law, Bernoulli):
        return value.to(torch.get_default_dtype())
    return value


class _Observing(Messenger):
    """A Pyro handler that makes tensors of the values given to `obs=`."""

    def _pyro_sample(self, msg: Mapping[str, Any]) -> None:
        """Replace an observed value by a tensor that the site's law takes."""
        value = msg["value"]
        if not msg["is_observed"] or value is None:
            return
        assert isinstance(msg, dict)
        if not isinstance(value, Tensor):
            number = isinstance(value, (bool, int, float, list))
            value = torch.as_tensor(value) if number else as_tensors(value)
        msg["value"] = _as_law_takes(msg["fn"], value) if isinstance(value, Tensor) else value
