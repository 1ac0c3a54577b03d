"""`lazy` imports a heavy library when it is first used.

``import ozaki`` stays light: ArviZ alone takes seconds.
"""

import warnings
from importlib import import_module
from types import ModuleType
from typing import Any


class _Lazy(ModuleType):
    """A stand-in for a module, which imports it when the first attribute is read."""

    def __getattr__(self, item: str) -> Any:
        if item.startswith("__"):  # doctest, inspect and pickle probe modules: import nothing
            raise AttributeError(item)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # ArviZ warns of its refactoring
            module = import_module(self.__name__)
        value = getattr(module, item)
        setattr(self, item, value)
        return value


def lazy(name: str) -> Any:
    """Return a stand-in for the module `name`, imported when an attribute is first read.

    Raises:
        ImportError: at that moment, where the module is not installed.

    Example:
        >>> lazy("fractions").Fraction(1, 2)
        Fraction(1, 2)
    """
    return _Lazy(name)
