"""`Replays` evaluates a density by its recorded tensor operations, where it is asked for often.

Handlers of Pyro and torch.func take most of the time of an evaluation, and lead to the same
operations every time. These are recorded at a shape that has been asked for some times, compared at
other points with the density as it stands, to the bit, and done in its place from then on. So a
result does not depend on whether there was a recording: a run that was stopped and resumed makes
the draws of one that was not.

A recording sees what changes in the tensors that the density reads, but not a number or an
attribute that is replaced. That is why `Score.settled` gives each run recordings of its own, and
why they are compared with the density again and again.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from ozaki.foundation.process import unchecked
from ozaki.foundation.replay import Replay, record
from ozaki.foundation.shapes import Float
from ozaki.foundation.torch_modes import ordinary, recordable
from ozaki.scores.base import CurvatureKind, Expansion
from ozaki.scores.differentiation import Function, assembled, evaluated, expanding
from ozaki.scores.singular import LinAlgError
from ozaki.scores.trials import agree

FIRST = 16  # evaluations at a shape before it is recorded, which takes as long as some ten
CHECKS = 2  # comparisons, at other points, before a recording is trusted
AGAIN = 256  # evaluations from one later comparison to the next
KEPT = 16  # most shapes that are remembered, those of the latest evaluations
ATTEMPTS = 3  # most recordings of one shape


class Replays:
    """The recordings of one density, made as they are needed.

    Args:
        state: what else than the points an evaluation depends on; None where there is nothing.
    """

    def __init__(self, state: Callable[[], Hashable] | None = None):
        self._state = state
        self._shapes: dict[Hashable, _Shape] = {}
        self._lock = threading.Lock()

    @ordinary()
    def expand(
        self, f: Function, x: Float[Tensor, "*batch dim"], curvature: CurvatureKind | None = None
    ) -> Expansion:
        """The same as `expand_vectorised`.

        Raises:
            ValueError: `f` has changed since it was recorded.
        """
        points = recordable(x.detach()).reshape(-1, x.shape[-1]).contiguous()
        key = (
            *(points.shape, points.dtype, points.device, curvature),
            *(torch.get_default_dtype(), torch.get_default_device()),
            None if self._state is None else self._state(),
        )
        found = self._at(key).evaluate(vmap(expanding(f, curvature, len(points))), points)
        return assembled(found, x, curvature)

    def _at(self, key: Hashable) -> "_Shape":
        with self._lock:
            found = self._shapes.pop(key, None) or _Shape()
            self._shapes[key] = found  # the latest is the last
            while len(self._shapes) > KEPT:
                del self._shapes[next(iter(self._shapes))]
        return found

    def forget(self) -> None:
        """Forget all recordings: the density may have changed."""
        with self._lock:
            self._shapes.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return Replays, (self._state,)  # recordings are made anew


class _Shape:
    """The evaluations at one shape, and their recording."""

    def __init__(self) -> None:
        self._asked = self._attempts = self._checked = 0
        self._replay: Replay | None = None
        self._recorded_at = torch.empty(0)

    def evaluate(
        self, compute: Callable[[Tensor], Sequence[Tensor]], points: Tensor
    ) -> Sequence[Tensor]:
        """Return what `compute` gives at `points`, by the recording once it is trusted."""
        self._asked += 1
        replay = self._replay
        if replay is None:
            if self._asked < FIRST or self._attempts >= ATTEMPTS:
                return evaluated(lambda: compute(points))
            return self._recording(compute, points)
        found = self._replayed(replay, points)
        if found is not None and self._checked >= CHECKS and self._asked % AGAIN:
            return found
        true = evaluated(lambda: compute(points))
        if found is not None:
            self._compare(found, true, points)
        return true

    def _recording(
        self, compute: Callable[[Tensor], Sequence[Tensor]], points: Tensor
    ) -> Sequence[Tensor]:
        """Record an evaluation, and return what it gave."""
        self._attempts += 1
        try:
            with unchecked():
                found, replay = record(compute, points)
        except Exception:  # where a matrix fails, other operations are done
            return evaluated(lambda: compute(points))
        if isinstance(replay, str):
            self._attempts = ATTEMPTS
        else:
            self._checked, self._recorded_at, self._replay = 0, points.clone(), replay
        return found

    def _replayed(self, replay: Replay, points: Tensor) -> Sequence[Tensor] | None:
        """Return the results of the recording; None where it does not fit."""
        try:
            return replay(points)
        except LinAlgError:  # so would the density: other operations are done
            return None
        except Exception:  # data of another shape, or on another device
            self._replay = None
            return None

    def _compare(self, found: Sequence[Tensor], true: Sequence[Tensor], points: Tensor) -> None:
        """Trust the recording where it gives the bits that the density gives, else forget it."""
        if all(map(_same, found, true)):
            if self._checked < CHECKS and not torch.equal(points, self._recorded_at):
                self._checked += 1
            return
        trusted, self._replay, self._attempts = self._checked >= CHECKS, None, ATTEMPTS
        if trusted and not all(agree(a, b) for a, b in zip(found, true, strict=True)):
            raise ValueError(
                "model must stay the same while chains walk on it, but its density at one point "
                f"was {float(found[1][0]):.6g} and is now {float(true[1][0]):.6g}; begin another "
                "run to sample it as it is now, or change its tensors in place"
            )


def _same(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are equal, NaN to NaN."""
    return a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())
