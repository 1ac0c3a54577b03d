"""Moved to `ozaki.scores.learned.preconditioned` and `ozaki.scores.learned.mlp`."""

from ozaki.foundation.deprecation import moved

__getattr__ = moved(
    __name__, "0.3", "ozaki.scores.learned.preconditioned", "ozaki.scores.learned.mlp"
)
