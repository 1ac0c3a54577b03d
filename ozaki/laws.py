"""This module has the public tests of whether sets of draws are from one law."""

from typing import Any

from ozaki.diagnostics.two_sample import Difference, columns, in_errors, two_sample_test
from ozaki.foundation.deprecation import deprecated

__all__ = ["Difference", "columns", "difference", "in_errors", "two_sample_test"]


@deprecated("ozaki.laws.two_sample_test", "0.3")
def difference(*sets: Any, **options: Any) -> Difference:
    """The old name of `two_sample_test`."""
    return two_sample_test(*sets, **options)
