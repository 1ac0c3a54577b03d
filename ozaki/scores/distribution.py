"""Moved to `ozaki.scores.pyro_models.site`."""

from ozaki.foundation.deprecation import moved

__getattr__ = moved(__name__, "0.3", "ozaki.scores.pyro_models.site")
