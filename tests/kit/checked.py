"""Shape checks by beartype, as many in a test as tell anything.

A long chain or training calls the same functions with the same shapes again and again, and a check
costs more than most of what it checks.
"""

import functools
from collections.abc import Callable
from typing import Any

from beartype import beartype
from jaxtyping import config

ENOUGH = 3000  # checks in one test: the short tests of each part make fewer
made = 0


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its arguments checked, until there were enough checks in this test."""
    checked = beartype(function)

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        global made
        made += 1
        if made > ENOUGH:
            config.update("jaxtyping_disable", True)
        return checked(*args, **kwargs)

    return counted


def begin() -> None:
    """Check again: a new test has begun."""
    global made
    made = 0
    config.update("jaxtyping_disable", False)
