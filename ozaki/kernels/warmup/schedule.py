"""`WarmupSchedule` says what each step of warm-up is for.

First a transient walks to the typical set. Then come windows: at the end of each the pooled
covariance of the chains becomes the metric, and dual averaging finds the step size anew. A last
stretch is for the step size alone.

Source: the Stan reference manual, "Automatic parameter tuning".
"""

import math
from typing import NamedTuple

AT_ONCE = 16  # steps between two changes of the step size, after the first steps of a window


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
        return self._ends[-1]

    @property
    def freezing(self) -> int:
        """The step after which a curvature that is frozen stays: the last window compares it."""
        return self._ends[-2:][0]

    @property
    def collecting(self) -> int:
        """The step after which curvatures are averaged, for one that is frozen."""
        ends = (self.transient, *self._ends)
        return max((end for end in ends if end < self.freezing), default=self.transient // 2)

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

    @property
    def _ends(self) -> tuple[int, ...]:
        return self.windows or (self.transient,)


def schedule(warmup_steps: int, transient: int | None = None) -> WarmupSchedule:
    """Lay out `warmup_steps`: a transient (15%, at most 200), doubling windows, a last stretch.

    Args:
        warmup_steps: all of them.
        transient: how many the transient took, where it ended early.

    Example:
        >>> schedule(1000)
        WarmupSchedule(transient=150, windows=(212, 336, 900), settled=970, total=1000)
    """
    longest = min(200, math.ceil(0.15 * warmup_steps))
    transient = longest if transient is None else min(transient, longest)
    last = warmup_steps - min(max(warmup_steps // 10, 50), warmup_steps // 4)
    size = max(20, (last - transient) // 12)
    ends: list[int] = []
    end = transient
    while end + 3 * size <= last:
        end += size
        ends.append(end)
        size *= 2
    if last - transient >= 20:
        ends.append(last)
    settled = warmup_steps - 3 * (warmup_steps - last) // 10
    return WarmupSchedule(transient, tuple(ends), settled, warmup_steps)
