"""Checks whose message names the argument, what it was, and what to do (floor 0).

Every check returns what it checked, so that it can stand where the value is used.
"""

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor


def positive(name: str, value: Any) -> float:
    """Return `value` as a float if it is a finite number above 0; raise ValueError otherwise."""
    number = _number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a finite number above 0, but was {value!r}")
    return number


def count(name: str, value: Any, *, minimum: int = 1) -> int:
    """Return `value` as an int if it is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, but was {value!r}")
    return int(value)


def choice(name: str, value: Any, allowed: Collection[Any]) -> Any:
    """Return `value` if it is one of `allowed`."""
    if value not in allowed:
        names = ", ".join(repr(a) for a in allowed)
        raise ValueError(f"{name} must be one of {names}, but was {value!r}")
    return value


def floating(name: str, value: Any) -> Tensor:
    """Return `value` as a finite floating-point tensor.

    Integers and objects are refused rather than cast: a silent cast hides that counts or codes
    were passed where measurements were meant.
    """
    tensor = _tensor(name, value)
    if not tensor.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point, but its dtype was {tensor.dtype}; if these are "
            f"measurements, convert them first, for example {name}.astype('float32')"
        )
    finite(name, tensor)
    return tensor


def finite(name: str, tensor: Tensor) -> Tensor:
    """Return `tensor` if every entry is finite; name the count and place of those that are not."""
    bad = ~torch.isfinite(tensor)
    if bool(bad.any()):
        where = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{name} must be finite, but {int(bad.sum())} of its {tensor.numel()} entries were NaN "
            f"or infinite, the first at index {where}; remove or impute them"
        )
    return tensor


def shape(name: str, tensor: Tensor, expected: tuple[int | None, ...]) -> Tensor:
    """Return `tensor` if its shape matches `expected`, in which None stands for any size."""
    actual = tuple(tensor.shape)
    fits = len(actual) == len(expected) and all(
        e is None or a == e for a, e in zip(actual, expected, strict=True)
    )
    if not fits:
        pattern = "(" + ", ".join("any" if e is None else str(e) for e in expected) + ")"
        raise ValueError(f"{name} must have shape {pattern}, but had {actual}")
    return tensor


def covariance(name: str, tensor: Tensor) -> Tensor:
    """Return the Cholesky factor of `tensor` if it is symmetric and positive definite."""
    size = tensor.abs().amax().clamp_min(torch.finfo(tensor.dtype).tiny)
    gap = float((tensor - tensor.mT).abs().amax() / size)
    if gap > 100 * torch.finfo(tensor.dtype).eps:
        raise ValueError(
            f"{name} must be symmetric, but it differed from its transpose by {gap:.1e} of its "
            f"largest entry; pass ({name} + {name}.mT) / 2 if that is rounding"
        )
    factor, info = torch.linalg.cholesky_ex(tensor)
    if bool((info != 0).any()):
        raise ValueError(
            f"{name} must be positive definite, but its smallest eigenvalue was "
            f"{float(torch.linalg.eigvalsh(tensor).min()):.3g}"
        )
    return factor


def weights(name: str, tensor: Tensor) -> Tensor:
    """Return mixture weights if all are above 0 and they sum to 1."""
    total = float(tensor.sum())
    if bool((tensor <= 0).any()) or abs(total - 1) > 1e-4:
        raise ValueError(f"{name} must be above 0 and sum to 1, but were {tensor.tolist()}")
    return tensor


def _number(name: str, value: Any) -> float:
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, but was {value!r}") from None


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    if np.ma.is_masked(value):
        raise ValueError(
            f"{name} must not be masked, but {int(np.ma.count_masked(value))} of its entries were; "
            "remove or impute them"
        )
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind in "USV":
        raise ValueError(
            f"{name} must be numeric, but its dtype was {array.dtype}; drop or encode the columns "
            "that are not numbers"
        )
    tensor = torch.as_tensor(np.ascontiguousarray(array))
    # Python's own numbers have no dtype: they take torch's default, as in torch.tensor
    plain = isinstance(value, (list, tuple, float)) and tensor.is_floating_point()
    return tensor.to(torch.get_default_dtype()) if plain else tensor
