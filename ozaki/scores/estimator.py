"""Moved to `ozaki.scores.learned.estimator`."""

from ozaki.foundation.deprecation import moved

__getattr__ = moved(__name__, "0.3", "ozaki.scores.learned.estimator")
