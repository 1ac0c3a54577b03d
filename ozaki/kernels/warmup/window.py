"""A `Window` of warm-up gathers what its steps showed; at its end warm-up learns from it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.kernels.transition import Trail
from ozaki.kernels.warmup.blocks import Block, Walked
from ozaki.kernels.warmup.contest import Contest
from ozaki.kernels.warmup.metric import MeanCurvature, PooledMoments, Typical, precision_factor
from ozaki.kernels.warmup.settling import Agreement
from ozaki.kernels.warmup.tracks import Choice, MetricKind, Track


class Window:
    """The records of a window.

    Args:
        tracks: all of them.
        running: what competes in it.
        like: the chains, (chains, D).
        dense_metric: whether the metric is a matrix or a diagonal.
        scale: the middle and the spread of each coordinate, as the window before saw them.
        steps: how many it takes, where the chains' agreement is asked for.

    Attributes:
        contest: how far each choice moved the chains.
        typical: where coordinates lie as a rule.
        agreement: of the chains in its two halves, where it is asked for.
        curvature: the mean one, where it is read.
        turns: how many have ended, in each of which one choice is tried.
    """

    def __init__(
        self,
        tracks: tuple[Track, ...],
        running: Sequence[Choice],
        like: Float[Tensor, "chains dim"],
        dense_metric: bool,
        scale: tuple[Tensor, Tensor],
        steps: int | None = None,
    ):
        self.contest = Contest(tracks, running, *scale)
        self.typical, self.curvature = Typical(like), MeanCurvature()
        self.agreement = None if steps is None else Agreement(like, steps)
        self.turns = 0
        self._moments = PooledMoments(like.shape[-1], dense_metric, like)
        self._walked, self._dense = Walked(like), dense_metric

    def fold(self, position: Float[Tensor, "steps chains dim"], gradient: Tensor | None) -> None:
        """Fold in the positions of steps, and the gradients there if they are known."""
        known = gradient is not None and len(gradient) > 0
        self._moments.add(
            position.flatten(0, 1),
            gradient.flatten(0, 1) if known else None,  # pyright: ignore
        )
        self.typical.add(position)
        if self.agreement is not None:
            self.agreement.add(position)

    def add(self, block: Block, trail: Trail, before: Tensor, ended: bool) -> None:
        """Add steps of a block, and learn from the turn once it has ended.

        Args:
            block: that they are of.
            trail: what they did.
            before: where the chains were.
            ended: whether they are the last of the turn.
        """
        self.turns += ended
        running = self.contest.running
        self._walked.add(block, trail, before, running)
        if not ended:
            return
        whole, self._walked = self._walked, Walked(before)
        self.fold(whole.path[1:], whole.gradient)
        if len(running) > 1:
            self.contest.add(*whole.judged(running), whole.path)

    def turn(self, block: Block, steps: int) -> tuple[int, int]:
        """Count the steps of the turn, a block's first ones with them, and their gradients."""
        walked, gradients = self._walked.counts
        return walked + steps, gradients + sum(block.lengths[:steps])

    def factor(self, kind: MetricKind, dtype: torch.dtype) -> Tensor | None:
        """Return L of a metric; of few draws that of the pooled covariance, or None."""
        found = None
        if kind == "scores":
            found = self._moments.scores_factor(dtype)
        elif kind == "curvature":
            found = precision_factor(self.curvature.average(), self._dense)
            found = None if found is None else found.to(dtype)
        return self._moments.factor(dtype) if found is None else found

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of it, by name."""
        found: dict[str, Tensor] = {}
        for part, record in self._records().items():
            found |= {f"{part}.{name}": tensor for name, tensor in record.tensors.items()}
        found["contest.middle"], found["contest.spread"] = self.contest.scale
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave, in a window made with the same `scale`."""
        for part, record in self._records().items():
            prefix = f"{part}."
            record.restore(
                {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            )

    def _records(self) -> dict[str, Any]:
        found = {
            "walked": self._walked,
            "contest": self.contest,
            "moments": self._moments,
            "typical": self.typical,
            "curvature": self.curvature,
        }
        return found if self.agreement is None else {**found, "agreement": self.agreement}
