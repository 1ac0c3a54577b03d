"""Heavy libraries, imported when first used.

``import ozaki`` stays light: ArviZ alone takes seconds.
"""

import warnings
from importlib import import_module
from types import ModuleType
from typing import Any


class _Lazy(ModuleType):
    """Stands for a module and imports it at the first attribute asked for."""

    def __getattr__(self, item: str) -> Any:
        if item.startswith("__"):  # doctest, inspect and pickle probe modules: import nothing
            raise AttributeError(item)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its refactoring
            module = import_module(self.__name__)
        value = getattr(module, item)
        setattr(self, item, value)
        return value


def lazy(name: str) -> Any:
    """The module `name`, imported when an attribute of it is first read.

    Raises:
        ImportError: at that moment, where the module is not installed.

    Example:
        >>> lazy("fractions").Fraction(1, 2)
        Fraction(1, 2)
    """
    return _Lazy(name)
