"""Whether several sets of draws are from one law."""

from ozaki.diagnostics.two_sample import Difference, columns, difference, in_errors

__all__ = ["Difference", "columns", "difference", "in_errors"]
