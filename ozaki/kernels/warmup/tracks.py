"""A `Track` is a way to walk that warm-up tries: a kernel, and the metric that it walks in.

Every track has a step size of its own. A `Choice` is a track with the time of its trajectories, or
with a fraction of its step size: what a contest ranks.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ozaki.kernels.transition import KernelSpec
from ozaki.kernels.warmup.step_size import DualAveraging, dual_averaging

MetricKind = Literal["pooled", "scores", "curvature"]
"""Of what a metric is made: the covariance of the chains, that and the covariance of their
gradients, or the mean curvature."""

TIMES = (0.0, math.pi / 4, math.pi / 2, math.pi)
"""The mean angles of the trajectories that compete; 0 is a single step. A quarter turn forgets
where it began on the normal that the metric describes."""

USUAL = math.pi / 2


class Track(NamedTuple):
    """A kernel in a metric.

    Attributes:
        spec: the kernel; it shares a momentum over several steps, or reads the curvature.
        metric: what its metric is made of.
        target: the acceptance that dual averaging seeks.
        cost: of a step, in gradients.
        times: the mean angles that compete; (0,) for single steps.
        halvings: how often h may be halved, where acceptance alone is blind.
    """

    spec: KernelSpec
    metric: MetricKind = "pooled"
    target: float = 0.8
    cost: float = 1.0
    times: tuple[float, ...] = (0.0,)
    halvings: int = 0

    @property
    def usual(self) -> float:
        """The time of trajectories until a contest has chosen one."""
        return USUAL if USUAL in self.times else self.times[-1]


class Choice(NamedTuple):
    """One entry of a contest: a track's place, a mean angle, and how often its h is halved."""

    track: int
    time: float
    halvings: int = 0


class Course:
    """Where a track stands: its metric, and its step size.

    Attributes:
        factor: L, (D,) or (D, D); None for the identity.
        averaging: of its step size.
    """

    def __init__(self, step_size: float):
        self.factor: Tensor | None = None
        self.averaging: DualAveraging = dual_averaging(step_size)

    def restart(self, most: float) -> None:
        """Seek the step size anew, from where it was but at most `most`, in a new metric."""
        known = self.averaging.log_average if self.averaging.steps else math.inf
        self.averaging = dual_averaging(min(most, max(0.05, math.exp(min(known, 5.0)))))


def choices(tracks: tuple[Track, ...], places: tuple[int, ...], all_times: bool) -> list[Choice]:
    """List what competes on these tracks.

    Args:
        tracks: all of them.
        places: those that are walked on.
        all_times: whether all times and halvings compete, or each track's usual one alone.
    """
    found = []
    for place in places:
        track = tracks[place]
        if not all_times:
            found.append(Choice(place, track.usual))
        elif track.spec.momentum:
            found += [Choice(place, time) for time in track.times]
        else:
            found += [Choice(place, 0.0, halvings) for halvings in range(track.halvings + 1)]
    return found


def frozen_directions(curvature: Tensor) -> tuple[Tensor, Tensor]:
    """V and λ of a frozen curvature min(s2, 0) = V diag(λ) Vᵀ, as a factor and its curvature."""
    if curvature.ndim == 1:
        return torch.ones_like(curvature), curvature.clamp(max=0)
    values, vectors = torch.linalg.eigh(curvature)
    return vectors, values.clamp(max=0)
