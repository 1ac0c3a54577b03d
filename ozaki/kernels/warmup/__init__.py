"""Warm-up: what is learned of a law before the draws begin."""

from ozaki.kernels.warmup.candidates import JumpRecord
from ozaki.kernels.warmup.metric import MeanCurvature, PooledCovariance, precision_factor
from ozaki.kernels.warmup.schedule import Schedule, schedule
from ozaki.kernels.warmup.step_size import DualAveraging, dual_averaging, update

__all__ = [
    "DualAveraging",
    "JumpRecord",
    "MeanCurvature",
    "PooledCovariance",
    "Schedule",
    "dual_averaging",
    "precision_factor",
    "schedule",
    "update",
]
