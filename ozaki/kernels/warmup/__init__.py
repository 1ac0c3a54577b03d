"""Warm-up finds the step size, the metric and the proposal before the draws begin."""

from ozaki.kernels.warmup.blocks import Block, Chains, Change
from ozaki.kernels.warmup.candidates import (
    LANGEVIN,
    ORNSTEIN_UHLENBECK,
    Candidate,
    JumpDistances,
)
from ozaki.kernels.warmup.metric import MeanCurvature, PooledCovariance, precision_factor
from ozaki.kernels.warmup.schedule import WarmupSchedule, schedule
from ozaki.kernels.warmup.step_size import (
    MAX_STEP_SIZE,
    DualAveraging,
    dual_averaging,
    transient_step_size,
    update,
)
from ozaki.kernels.warmup.warmup import Warmup

__all__ = [
    "LANGEVIN",
    "MAX_STEP_SIZE",
    "ORNSTEIN_UHLENBECK",
    "Block",
    "Candidate",
    "Chains",
    "Change",
    "DualAveraging",
    "JumpDistances",
    "MeanCurvature",
    "PooledCovariance",
    "Warmup",
    "WarmupSchedule",
    "dual_averaging",
    "precision_factor",
    "schedule",
    "transient_step_size",
    "update",
]
