"""`ordinary` switches off, for a while, the modes of torch that a caller has switched on.

`torch.inference_mode` keeps no graph, and its tensors can join none: derivatives would be missing.
`torch.autocast` rounds matrix products off to a few digits: a correction that compares two
densities would compare their rounding.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

DEVICES = ("cpu", "cuda")  # kinds of devices for which autocast can be on


@contextmanager
def ordinary() -> Iterator[None]:
    """Leave `torch.inference_mode` and `torch.autocast` for a while, where they are on.

    A `torch.no_grad` stays, unless inference mode is left: derivatives are taken in spite of it.

    Raises:
        ValueError: a tensor that inference mode made is in the way of a derivative.
    """
    with ExitStack() as left, _named():
        if torch.is_inference_mode_enabled():
            left.enter_context(torch.inference_mode(False))
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                left.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def _named() -> Iterator[None]:
    """Raise ValueError in place of torch's error about a tensor from inference mode."""
    try:
        yield
    except RuntimeError as error:
        if "nference tensor" not in str(error):
            raise
        raise ValueError(
            "a function that is differentiated must not hold tensors made under "
            "torch.inference_mode, but one did: make them outside of it, or give it copies, "
            f"x.clone(), made outside ({str(error).splitlines()[0]})"
        ) from error


def recordable(values: Any) -> Any:
    """Return the same values, with ordinary copies of the tensors that inference mode made.

    Args:
        values: a tensor, or tuples, lists and dicts of anything.
    """
    return tree_map(
        lambda v: v.clone() if isinstance(v, Tensor) and v.is_inference() else v, values
    )
