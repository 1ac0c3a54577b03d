"""Warm-up finds the step size, the metric and the trajectories before the draws begin."""

from ozaki.kernels.warmup.arrival import Arrival
from ozaki.kernels.warmup.blocks import Block, Chains
from ozaki.kernels.warmup.candidates import LANGEVIN, ORNSTEIN_UHLENBECK, Candidate, cost
from ozaki.kernels.warmup.contest import Contest
from ozaki.kernels.warmup.metric import (
    MeanCurvature,
    PooledMoments,
    Typical,
    precision_factor,
)
from ozaki.kernels.warmup.schedule import WarmupSchedule, ended, schedule
from ozaki.kernels.warmup.settling import AGREED, Agreement
from ozaki.kernels.warmup.step_size import (
    MAX_STEP_SIZE,
    DualAveraging,
    dual_averaging,
    transient_step_size,
    update,
)
from ozaki.kernels.warmup.tracks import TIMES, Choice, Track
from ozaki.kernels.warmup.warmup import Warmup

__all__ = [
    "AGREED",
    "LANGEVIN",
    "MAX_STEP_SIZE",
    "ORNSTEIN_UHLENBECK",
    "TIMES",
    "Agreement",
    "Arrival",
    "Block",
    "Candidate",
    "Chains",
    "Choice",
    "Contest",
    "DualAveraging",
    "MeanCurvature",
    "PooledMoments",
    "Track",
    "Typical",
    "Warmup",
    "WarmupSchedule",
    "cost",
    "dual_averaging",
    "ended",
    "precision_factor",
    "schedule",
    "transient_step_size",
    "update",
]
