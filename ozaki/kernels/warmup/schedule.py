"""`WarmupSchedule` says what each step of warm-up is for.

First a transient walks to the typical set. Then come windows: at the end of each the pooled
covariance of the chains becomes the metric, and dual averaging finds the step size anew. A last
stretch is for the step size alone.

Source: the Stan reference manual, "Automatic parameter tuning".
"""

import math
from typing import Literal, NamedTuple

AT_ONCE = 16  # steps between two changes of the step size, after the first steps of a window

MOST, LONGEST, SHORTEST, STRETCH = 2000, 150, 50, 60
"""Of a warm-up that ends by itself: all steps at most, its longest transient, its first window, and
the last stretch."""

TELLING = 4 * SHORTEST
"""The shortest window whose chains tell by agreeing that warm-up may end. By one of 80 steps it
ended at 260 on eight schools, and the scale earned a third of what it did after 1,000."""


class WarmupSchedule(NamedTuple):
    """The purpose of each step of warm-up.

    Attributes:
        transient: steps of phase (a).
        windows: the step at which each metric window ends.
        settled: from here on nothing adapts: an unadjusted chain forgets its corrected warm-up.
        total: all of warm-up.
    """

    transient: int
    windows: tuple[int, ...]
    settled: int
    total: int

    @property
    def last_window(self) -> int:
        """The step after which the metric stays."""
        return (self.windows or (self.transient,))[-1]

    def window_after(self, count: int) -> int:
        """Return how many steps the window takes that begins after `count` steps."""
        return min((end for end in self.windows if end > count), default=count) - count

    def at_once(self, count: int, every: int | None = None) -> int:
        """Return how many steps of a window may be taken before the step size changes.

        Args:
            count: how many steps were taken, the transient among them.
            every: a block ends where the count is a multiple of it; None for no such end.
        """
        began = max(end for end in (self.transient, *self.windows) if end <= count)
        ends = [*self.windows, self.settled, self.total]
        if every is not None:
            ends.append((count // every + 1) * every)
        # dual averaging is bold at first, and later each step says little
        return max(1, min((count - began) // 4, AT_ONCE, min(e for e in ends if e > count) - count))


def schedule(warmup_steps: int | Literal["auto"], transient: int | None = None) -> WarmupSchedule:
    """Lay out `warmup_steps`: a transient (15%, at most 200), doubling windows, a last stretch.

    Args:
        warmup_steps: all of them; "auto" for the longest that `ended` may cut short.
        transient: how many the transient took, where it ended early.

    Example:
        >>> schedule(1000)
        WarmupSchedule(transient=150, windows=(212, 336, 584, 900), settled=970, total=1000)
        >>> schedule("auto", transient=20).windows
        (70, 170, 370, 770, 1940)
    """
    if warmup_steps == "auto":
        transient = min(LONGEST, MOST if transient is None else transient)
        return _closed(transient, _doubling(transient, SHORTEST, MOST - STRETCH))
    longest = min(200, math.ceil(0.15 * warmup_steps))
    transient = longest if transient is None else min(transient, longest)
    last = warmup_steps - min(max(warmup_steps // 10, 50), warmup_steps // 4)
    ends = _doubling(transient, max(20, (last - transient) // 12), last)
    settled = warmup_steps - 3 * (warmup_steps - last) // 10
    return WarmupSchedule(transient, ends, settled, warmup_steps)


def ended(plan: WarmupSchedule, count: int) -> WarmupSchedule:
    """Cut a schedule short after `count` steps: one window half as long as all, a last stretch.

    Args:
        plan: of "auto".
        count: where one of its windows ends.

    Example:
        >>> ended(schedule("auto", transient=20), 370)
        WarmupSchedule(transient=20, windows=(70, 170, 370, 545), settled=585, total=605)
    """
    last = count + (count - plan.transient) // 2
    if last + STRETCH >= plan.total:
        return plan
    return _closed(plan.transient, (*(end for end in plan.windows if end <= count), last))


def _closed(transient: int, windows: tuple[int, ...]) -> WarmupSchedule:
    """Add the last stretch."""
    total = windows[-1] + STRETCH
    return WarmupSchedule(transient, windows, total - STRETCH // 3, total)


def _doubling(first: int, size: int, last: int) -> tuple[int, ...]:
    """List where windows end that double in size and fill the steps from `first` to `last`."""
    ends: list[int] = []
    end = first
    while end + 2 * size <= last:
        end += size
        ends.append(end)
        size *= 2
    return (*ends, last) if last - first >= 20 else tuple(ends)


def check_steps(steps: int | str, step_size: float | None, frozen: bool) -> None:
    """Raise ValueError where something is to be found in a warm-up of no steps."""
    if steps == 0 and step_size is None:
        raise ValueError(
            "step_size must be given where warmup_steps is 0, but was None; warm-up is where "
            "it is found"
        )
    if steps == 0 and frozen:
        raise ValueError(
            "frozen must be False where warmup_steps is 0, but was True; the curvature is "
            "averaged over warm-up"
        )
