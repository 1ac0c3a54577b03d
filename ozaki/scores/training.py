"""Moved to `ozaki.scores.learned.trainer`."""

from ozaki.foundation.deprecation import moved

__getattr__ = moved(__name__, "0.3", "ozaki.scores.learned.trainer")
