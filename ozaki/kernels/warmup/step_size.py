"""How far a step goes: Nesterov's dual averaging on log h.

Source: Hoffman & Gelman, "The No-U-Turn Sampler" (2014), section 3.2.
"""

import math
from typing import NamedTuple

MAX_STEP_SIZE = 10.0
"""In the metric h = 10 forgets all but exp(−5) of where it was; on a Gaussian every h is accepted,
so without a cap dual averaging runs away."""


class DualAveraging(NamedTuple):
    """The state of Nesterov's dual averaging on log h."""

    log_step: float
    log_average: float
    error: float
    steps: int
    centre: float


def dual_averaging(step_size: float) -> DualAveraging:
    """Begin at `step_size`, drawn towards ten times it."""
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
