"""These checks raise errors that name the argument or the file, its value, and what to do.

Most checks return the value that they checked, so that they can stand where it is used.
"""

import json
import math
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ozaki.foundation import frames

RATIO = 20  # most times its size that a packed file may hold: MNIST's images hold 5, zip bombs 1000
SPARE = 2**24  # bytes that a packed file may hold whatever its size
DEAREST = 2**26  # bytes of memory that a JSON text may take beside twice its size
LONGEST = 200  # most letters of a parser's error that a message quotes


def positive(name: str, value: Any) -> float:
    """Return `value` as a float if it is a finite number above 0; raise ValueError otherwise."""
    number = _number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a finite number above 0, but was {value!r}")
    return number


def share(name: str, value: Any) -> float:
    """Return `value` as a float if it is in [0, 1)."""
    number = _number(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, but was {value!r}")
    return number


def count(name: str, value: Any, *, minimum: int = 1) -> int:
    """Return `value` as an int if it is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, but was {value!r}")
    return int(value)


def seed(name: str, value: Any) -> int | None:
    """Return `value` if it is None or a whole number that torch takes as a seed: below 2⁶³."""
    if value is None:
        return None
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not 0 <= value < 2**63:
        raise ValueError(
            f"{name} must be a whole number from 0 to 2**63 - 1, or None, but was {value!r}"
        )
    return int(value)


def choice(name: str, value: Any, allowed: Collection[Any]) -> Any:
    """Return `value` if it is one of `allowed`."""
    # an array would be compared by entry
    if isinstance(value, (Tensor, np.ndarray)) or value not in allowed:
        names = ", ".join(repr(a) for a in allowed)
        raise ValueError(f"{name} must be one of {names}, but was {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    """Return `value` if it is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} must be True or False, but was {value!r}")
    return bool(value)


def folder(name: str, value: Any) -> Path | None:
    """Return `value` as a path, or None."""
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"{name} must be the path of a folder or None, but was {value!r}")
    return None if value is None else Path(value)


def sizes(name: str, value: Any) -> torch.Size:
    """Return `value` as a shape if it is a sequence of positive integers."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{name} must be a sequence of sizes such as (3,), but was {value!r}")
    return torch.Size([count(name, size) for size in value])


def floating(name: str, value: Any) -> Tensor:
    """Return `value` as a finite floating-point tensor.

    Integers and objects are refused rather than cast: a silent cast hides that counts or codes
    were passed where measurements were meant.
    """
    tensor = _tensor(name, value)
    if tensor.is_complex():
        raise ValueError(
            f"{name} must be real, but its dtype was {tensor.dtype}; pass the real and imaginary "
            "parts as columns of their own"
        )
    if not tensor.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point, but its dtype was {tensor.dtype}; if these are "
            f"measurements, convert them first, for example {_conversion(name, value)}"
            + (f", and bytes of images by {name} / 255" if tensor.dtype == torch.uint8 else "")
        )
    finite(name, wide(name, tensor))
    return tensor


def wide(name: str, tensor: Tensor) -> Tensor:
    """Return `tensor` if it is kept in 16 bits or more an entry: torch computes in no fewer."""
    if tensor.element_size() < 2:
        raise ValueError(
            f"{name} must be kept in 16 bits an entry at least, but its dtype was {tensor.dtype}; "
            "convert it first by .float()"
        )
    return tensor


def single(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 at least: in half precision a small noise squared is 0."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


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


@contextmanager
def parsing(path: str | os.PathLike[str], wrong: str, remedy: str) -> Iterator[None]:
    """Turn what a library's parser raises into one sentence: path, `wrong`, and `remedy`.

    Errors of any kind are turned, since a spoiled file may make a parser raise anything. The
    system's own errors for files that are missing or may not be read stay, and so do those for
    libraries that are missing.

    Raises:
        ValueError: in place of what was raised in the block.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise  # a sentence already
        raise ValueError(f"{path} {wrong} ({said(error)}); {remedy}") from error


def said(error: Exception) -> str:
    """Return an error's message on one line, cut where it is long."""
    text = short(" ".join(str(error).split()))
    plain = isinstance(error, (ValueError, OSError)) and not isinstance(error, UnicodeError)
    return text if plain and text else f"{type(error).__name__}: {text}"


def short(text: str) -> str:
    """Shorten a text from a file to what a message quotes."""
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def unpacked(path: str | os.PathLike[str], size: int, own: int | None = None) -> None:
    """Refuse a packed file that unpacks to far more than its size: it may fill the memory.

    Args:
        path: the file.
        size: bytes that it would unpack to.
        own: bytes of the packed content; the size of the file if None.

    Raises:
        ValueError: they are more than twenty times the file and 16 MB.
    """
    own = os.path.getsize(path) if own is None else own
    if size > SPARE + RATIO * own:
        raise ValueError(
            f"{path} must not unpack to more than {RATIO} times its {own} bytes, lest it fill the "
            f"memory, but would to {size}; if it is sound, save it without compression"
        )


def json_text(
    path: str | os.PathLike[str], content: bytes, remedy: str, wrong: str = "is not JSON"
) -> Any:
    """Parse a JSON text from a file: strict JSON, and not made of millions of small things.

    An empty list is two letters, and 64 bytes in memory.
    """
    marks = sum(content.count(mark) for mark in b'"[{')
    if 40 * content.count(b",") + 200 * marks > DEAREST + 2 * len(content):
        raise ValueError(f"{path} {wrong} that ozaki reads: it has too many parts; {remedy}")
    with parsing(path, wrong, remedy):
        return json.loads(content.decode("utf-8"), parse_constant=_no_constant)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _number(name: str, value: Any) -> float:
    """Return `value` as a float; raise ValueError if it is no number."""
    try:
        if isinstance(value, (bool, str)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ValueError(f"{name} must be a number, but was {value!r}") from None


def _tensor(name: str, value: Any) -> Tensor:
    """Return `value` as a tensor; raise ValueError for anything that is no array of numbers."""
    if isinstance(value, Tensor):
        if value.is_nested:
            raise ValueError(
                f"{name} must have rows of one shape, but was a nested tensor; pad or crop them"
            )
        if value.layout is not torch.strided:
            raise ValueError(
                f"{name} must be dense, but its layout was {value.layout}; pass {name}.to_dense()"
            )
        return value
    array = _array(name, value)
    # torch has neither foreign byte orders nor negative strides, and warns of read-only memory
    if not (array.flags.c_contiguous and array.flags.writeable and array.dtype.isnative):
        array = array.astype(array.dtype.newbyteorder("="), order="C")
    try:
        tensor = torch.as_tensor(array)
    except TypeError:
        raise ValueError(
            f"{name} must be of a dtype that torch has, but its dtype was {array.dtype}; convert "
            f"it first, for example {_conversion(name, array)}"
        ) from None
    # Python's own numbers have no dtype: they take torch's default, as in torch.tensor
    plain = isinstance(value, (list, tuple, float)) and tensor.is_floating_point()
    return tensor.to(torch.get_default_dtype()) if plain else tensor


def _array(name: str, value: Any) -> np.ndarray:
    """Return an array-like value as a NumPy array that torch can hold."""
    value = frames.opened(name, value)
    if np.ma.is_masked(value):
        raise ValueError(
            f"{name} must not be masked, but {int(np.ma.count_masked(value))} of its entries were; "
            "remove or impute them"
        )
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} must be a tensor, an array or a frame, but was a {type(value).__name__} that "
            f"makes no array ({error}); make its rows equally long, or stack its tensors"
        ) from None
    if array.ndim == 0 and array.dtype.kind in "OUSV":
        raise ValueError(
            f"{name} must be a tensor, an array or a frame, but was {_what(value)}; read it first"
        )
    if array.dtype.kind == "O" and all(isinstance(entry, Number) for entry in array.flat):
        raise ValueError(
            f"{name} must be floating-point, but its dtype was object; if these are measurements, "
            f"convert them first, for example np.asarray({name}, 'float32')"
        )
    if array.dtype.names:
        raise ValueError(
            f"{name} must be numeric, but was an array of fields {array.dtype.names[:5]}; make "
            f"columns of them, for example np.stack([{name}[n] for n in {name}.dtype.names], -1)"
        )
    if array.dtype.kind in "OUSVmM":
        raise ValueError(
            f"{name} must be numeric, but its dtype was {array.dtype}; drop or encode the columns "
            "that are not numbers"
        )
    return array


def _conversion(name: str, value: Any) -> str:
    """Say how one converts a value of this kind to floating point."""
    if isinstance(value, Tensor):
        return f"{name}.float()"
    if hasattr(value, "astype"):
        return f"{name}.astype('float32')"
    return f"torch.tensor({name}, dtype=torch.float32)"


def _what(value: Any) -> str:
    short = isinstance(value, (str, bytes)) or value is None
    return repr(value) if short else f"a {type(value).__name__}"
