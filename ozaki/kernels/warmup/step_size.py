"""These functions find the step size h.

In the transient every chain has its own h, which grows when a step is accepted and shrinks when it
is refused. After it all chains share one h, found by Nesterov's dual averaging on log h.

Source: Hoffman & Gelman, "The No-U-Turn Sampler" (2014), section 3.2.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ozaki.foundation.shapes import Bool, Float

MAX_STEP_SIZE = 10.0
"""In the metric a step of h = 10 keeps only exp(−5) of where it began. On a Gaussian every h is
accepted, so without this cap dual averaging would run away."""

GROW, SHRINK = 2.0, 1 / 4
"""Factors on a chain's step size in the transient; they balance at an acceptance of 0.67."""


class DualAveraging(NamedTuple):
    """The state of Nesterov's dual averaging on log h."""

    log_step: float
    log_average: float
    error: float
    steps: int
    centre: float


def dual_averaging(step_size: float) -> DualAveraging:
    """Begin dual averaging at `step_size`; it is drawn towards ten times that size."""
    log_step = math.log(step_size)
    return DualAveraging(log_step, log_step, 0.0, 0, log_step + math.log(10))


def update(
    state: DualAveraging, acceptance: float, target: float, *, cap: float = MAX_STEP_SIZE
) -> DualAveraging:
    """Fold one mean acceptance in: the step grows while it is above `target`.

    Args:
        state: from `dual_averaging` or an earlier call.
        acceptance: mean over chains of min(1, ratio), in [0, 1].
        target: the acceptance sought.
        cap: the largest step size.
    """
    gamma, t0, kappa = 0.05, 10.0, 0.75
    steps = state.steps + 1
    weight = 1 / (steps + t0)
    error = (1 - weight) * state.error + weight * (target - acceptance)
    log_step = min(state.centre - error * math.sqrt(steps) / gamma, math.log(cap))
    fade = steps**-kappa
    average = fade * log_step + (1 - fade) * state.log_average
    return DualAveraging(log_step, average, error, steps, state.centre)


def transient_step_size(
    step_size: Float[Tensor, "chains 1"], accepted: Bool[Tensor, "chains"]
) -> Float[Tensor, "chains 1"]:
    """Return the next h of each chain: longer where the last step was accepted, else shorter.

    Args:
        step_size: h of the last step, (chains, 1).
        accepted: whether the chain moved, (chains,).
    """
    rate = torch.where(accepted, GROW, SHRINK).unsqueeze(-1).to(step_size)
    return (step_size * rate).clamp(max=1e6)
