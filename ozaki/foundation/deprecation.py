"""These functions keep old names working, with a warning that says what to use instead.

Versions are semantic. From 1.0 on, a public name that is removed or renamed works for at least one
more minor version, and warns. Before 1.0 the CHANGELOG says which names change.
"""

import functools
import warnings
from abc import ABCMeta
from collections.abc import Callable
from importlib import import_module
from typing import Any, LiteralString, ParamSpec, TypeVar, cast

from typing_extensions import deprecated as marked

P = ParamSpec("P")
R = TypeVar("R")


def deprecated(instead: str, removed_in: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function or class that will be removed.

    Args:
        instead: what to use, as a reader would write it.
        removed_in: the version that will not have it.

    Returns:
        A decorator; the function or class warns where it is called, and works as before.

    Example:
        >>> @deprecated("ozaki.denoise", "2.0")
        ... def clean(x: int) -> int:
        ...     return x
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     print(clean(3), told[0].message)
        3 clean is deprecated and will be removed in ozaki 2.0; use ozaki.denoise
    """

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        message = _message(function.__name__, instead, removed_in)
        return marked(cast(LiteralString, message))(function)

    return mark


def renamed(old: str, new: str, removed_in: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Take an argument under its old name too.

    Args:
        old: the keyword that was.
        new: the keyword that is.
        removed_in: the version that will not take the old one.

    Returns:
        A decorator; the function warns where it is called with `old`, and passes it as `new`.

    Raises:
        TypeError: when called with both.

    Example:
        >>> @renamed("noise", "sigma", "2.0")
        ... def train(*, sigma: float) -> float:
        ...     return sigma
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     print(train(noise=0.1), told[0].message)
        0.1 noise= of train is deprecated and will be removed in ozaki 2.0; use sigma=
    """

    def take(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs:
                name = function.__name__
                if new in kwargs:
                    raise TypeError(
                        f"{name} was given {old}= and {new}=, which are one; leave out {old}="
                    )
                message = _message(f"{old}= of {name}", f"{new}=", removed_in)
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return take


def attribute_renamed(cls: type, old: str, new: str, removed_in: str) -> None:
    """Take an attribute that the body of a class sets under its old name too.

    To be called from `__init_subclass__`. It warns, and sets `new` unless the body sets it.

    Args:
        cls: the class that was made.
        old: the name that was.
        new: the name that is.
        removed_in: the version that will not take the old one.

    Example:
        >>> class Base:
        ...     def __init_subclass__(cls):
        ...         attribute_renamed(cls, "_colour", "colour", "2.0")
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     class Leaf(Base):
        ...         _colour = "green"
        ...     print(Leaf.colour, told[0].message)
        green _colour of Leaf is deprecated and will be removed in ozaki 2.0; use colour
    """
    if old not in vars(cls):
        return
    message = _message(f"{old} of {cls.__name__}", new, removed_in)
    # the class statement stands above this, __init_subclass__ and ABCMeta's __new__
    level = 4 if isinstance(cls, ABCMeta) else 3
    warnings.warn(message, DeprecationWarning, stacklevel=level)
    if new not in vars(cls):
        setattr(cls, new, vars(cls)[old])


def moved(old: str, removed_in: str, *new: str) -> Callable[[str], Any]:
    """Let a module's names be imported from the module that had them before.

    Args:
        old: the former module; it needs the returned function as its ``__getattr__``.
        removed_in: the version that will not have it.
        new: the modules that have its names.

    Returns:
        A function of a name, which warns and returns the object of that name.

    Raises:
        AttributeError: where it is called, none of the modules has the name.

    Example:
        >>> find = moved("ozaki.fractions", "2.0", "fractions")
        >>> with warnings.catch_warnings(record=True) as told:
        ...     warnings.simplefilter("always")
        ...     print(find("Fraction")(1, 2), told[0].message)
        1/2 ozaki.fractions is deprecated and will be removed in ozaki 2.0; use fractions
    """

    def find(name: str) -> Any:
        for module in () if name.startswith("__") else new:
            if hasattr(found := import_module(module), name):
                warnings.warn(_message(old, module, removed_in), DeprecationWarning, stacklevel=2)
                return getattr(found, name)
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    return find


def _message(what: str, instead: str, removed_in: str) -> str:
    return f"{what} is deprecated and will be removed in ozaki {removed_in}; use {instead}"
