"""`Warmup` decides how the next steps are made, and learns from them.

It plans a block of steps. An engine takes them and shows what the chains did. `Warmup` then says
what changes: the step size, the metric, the frozen curvature, the proposal. It never takes a step
itself. After warm-up it goes on planning, and learns no more.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.kernels.transition import KernelSpec, StepOptions, Trail
from ozaki.kernels.warmup.blocks import Block, Chains, Change
from ozaki.kernels.warmup.candidates import (
    LANGEVIN,
    ORNSTEIN_UHLENBECK,
    Candidate,
    Contest,
    JumpDistances,
    handicap,
)
from ozaki.kernels.warmup.metric import MeanCurvature, PooledCovariance, precision_factor
from ozaki.kernels.warmup.schedule import schedule
from ozaki.kernels.warmup.step_size import (
    DualAveraging,
    dual_averaging,
    transient_step_size,
    update,
)

LOOKS = (0, 4, 12, 28)
"""Before these transient steps, kernels whose steps need no curvature make the metric from the
curvature where the chains are: a Hessian costs as much as ten steps and more."""

SHORT, SHORT_EVERY = 1 / 8, 16
"""The factor on a short step, and how many steps there are to each short one, where the step size
is adapted and steps are corrected. The step that suits most of a law is almost never accepted far
out in a tail whose gradient rises steeply: chains stood still for whole runs at a tau of 20 in
eight schools, where a step of h/8 is accepted four times in five."""

COLLECTED = 4  # curvatures that a frozen mean collects, per step on average


class Warmup:
    """Plans the steps of a run, and learns from them while it warms up.

    Args:
        spec: proposal, curvature, correction of the kernel.
        dim: D.
        steps: how many adapt.
        target: the acceptance that dual averaging seeks.
        step_size: a given h is kept, in the identity metric; None adapts both.
        frozen: average the curvature over warm-up and use that one from then on.
        dense_metric: whether the metric is a matrix or a diagonal.
        candidates: steps that it may settle on in place of the kernel's own.

    Raises:
        ValueError: no step size, or a frozen curvature, and no warm-up to find it in.
    """

    def __init__(
        self,
        spec: KernelSpec,
        dim: int,
        *,
        steps: int,
        target: float,
        step_size: float | None = None,
        frozen: bool = False,
        dense_metric: bool = False,
        candidates: tuple[Candidate, ...] = (),
    ):
        _check(steps, step_size, frozen)
        self.spec, self.plan, self.target = spec, schedule(steps), target
        self.adapting, self.frozen, self.dense_metric = step_size is None, frozen, dense_metric
        self.first_step_size = 1.0 if step_size is None else step_size
        self.until = 0  # the step at which the block ends that is learned from
        self.walked = spec  # the kernel of this window: without a curvature where none is read
        self._dim = dim
        self._contest = Contest(spec.proposal, candidates)
        # whether steps without a curvature take its place until it is judged
        self._sparing = bool(candidates) and self.adapting and spec.curvature is not None
        self._froze = False
        self._rates: list[float] = []  # the acceptances of the block so far
        self._averaging = dual_averaging(self.first_step_size)

    def open(self, like: Float[Tensor, "chains dim"], count: int = 0) -> None:
        """Begin a window after `count` steps, of chains like these.

        Until the curvature is judged, steps that need none are taken in its place.
        """
        self._every = max(1, len(like) // COLLECTED)
        alone = None
        if self._sparing and count < self.plan.transient:
            alone = LANGEVIN
        elif self._sparing and self.frozen and not self._froze:
            alone = ORNSTEIN_UHLENBECK
        self.walked = self.spec if alone is None else self.spec._replace(curvature=None)
        self._contest.open(alone, handicap(self.spec.curvature, self.frozen, self._dim))
        self._covariance = PooledCovariance(self._dim, self.dense_metric, like)
        self._curvature = MeanCurvature()

    def look(self, chains: Chains) -> Change:
        """Before a step early in the transient, make a metric from the mean curvature."""
        early = chains.count < self.plan.transient and chains.count in LOOKS
        if not (early and self._sparing):
            return Change()
        factor = precision_factor(chains.curvature_here(self.spec.curvature), self.dense_metric)
        if factor is None:
            return Change()
        return Change(torch.ones_like(chains.step_sizes), metric=factor, anew=True)

    def next_block(self, count: int, most: int, in_draws: int = 1) -> Block:
        """Plan the steps after the first `count`: at most `most`, and at least one.

        Args:
            count: how many steps were taken.
            most: how many may be taken now.
            in_draws: the length of a block after warm-up.
        """
        plan, uncorrected = self.plan, self.spec.correction == "none"
        if count >= self.until:
            self.until = count + self._length(count, in_draws)
        steps = range(count, count + min(most, self.until - count))
        transient = count < plan.transient
        seeking = self.adapting and not transient and count < plan.last_window
        trials = [self._contest.jumps.trial(step) if seeking else (0, 0) for step in steps]
        short = [self._short(step) for step in steps]
        place = trials[0][0]
        return Block(
            # every candidate sees the same curvature, so that the next step can be the kernel's own
            spec=self.walked._replace(proposal=self._contest.running[place].proposal),
            weights=self._contest.weights(place),
            options=StepOptions(
                # the first steps of dual averaging are bold: uncorrected they threw chains to 1e18
                unadjusted=uncorrected and count >= plan.settled,
                uphill=transient,
                # an unadjusted draw only reports the ratio, and the trapezoid is free
                rule="trapezoid" if uncorrected and count >= plan.total else "lobatto",
            ),
            scales=[
                0.5**halvings * (SHORT if one else 1.0)
                for (_, halvings), one in zip(trials, short, strict=True)
            ],
            trials=trials,
            short=short,
            excused=[
                self._shortens(step) and not one for step, one in zip(steps, short, strict=True)
            ],
        )

    def _length(self, count: int, in_draws: int) -> int:
        """Return how many steps may be taken before something is learned from them."""
        plan = self.plan
        if count >= plan.total:
            return in_draws
        if count < plan.transient or len(self._contest.running) > 1:
            return 1
        collecting = self.frozen and plan.collecting <= count < plan.freezing
        return plan.at_once(count, self._every if collecting else None)

    def _short(self, step: int) -> bool:
        """Say whether a step is a short one, which teaches nothing about the others."""
        # a short step is an even one: odd ones are the trials of warm-up
        return step % SHORT_EVERY == SHORT_EVERY - 2 and self._shortens(step)

    def _shortens(self, step: int) -> bool:
        """Say whether a step lies in a stretch in which some are short."""
        corrected = self.spec.correction != "none" or step < self.plan.settled
        return corrected and self.adapting and step >= self.plan.transient

    def learn(self, block: Block, trail: Trail, chains: Chains) -> Change:
        """Learn from a block whose steps were taken, and say what it changes.

        Args:
            block: from `next_block`.
            trail: what the steps did; they may be fewer than the block's.
            chains: after them.
        """
        plan, count = self.plan, chains.count
        if count > plan.total:
            return Change()
        change = self._learn_step_size(block, trail, chains)
        first = count - len(trail.position) + 1
        for step, position in enumerate(trail.position, first):
            # the second half of the transient gives the first, rough metric
            if step > plan.transient // 2:
                self._covariance.add(chains.to_x(position))
        collecting = self.frozen and plan.collecting < count < plan.freezing
        if collecting and count % self._every == 0:
            self._curvature.add(chains.curvature_here(self.spec.curvature))
        if count == plan.transient or count in plan.windows:
            return self._end_window(chains, change)
        return change

    def _learn_step_size(self, block: Block, trail: Trail, chains: Chains) -> Change:
        """Change h after a step of the transient, and after a whole block from then on."""
        info, count, steps = trail.info, chains.count, len(trail.position)
        if not self.adapting:
            return Change()
        if count - steps < self.plan.transient:
            return Change(transient_step_size(chains.step_sizes, info.accepted[0]))
        if count > self.plan.settled:
            return Change()
        rates = info.acceptance.nan_to_num(0.0).mean(1).tolist()
        for step in range(steps):
            if block.short[step]:
                continue
            self._contest.jumps.add(block.trials[step], info.jump[step])
            if block.trials[step] == (0, 0):
                self._rates.append(rates[step])
        if count < self.until:
            return Change()
        # once a block: several changes from the acceptances of one step size would oscillate
        if self._rates:
            seen = sum(self._rates) / len(self._rates)
            self._averaging = update(self._averaging, seen, self.target)
            self._rates = []
        settled = count == self.plan.settled
        shorter = self._contest.halvings * math.log(2) if settled else 0.0
        average = self._averaging.log_average if settled else self._averaging.log_step
        return Change(torch.full_like(chains.step_sizes, average - shorter).exp())

    def _end_window(self, chains: Chains, change: Change) -> Change:
        """Change the metric to what the window saw, and begin the next one."""
        position, count, frozen = chains.position, chains.count, None
        if self.frozen and count == self.plan.freezing:
            # the last window uses it, and compares it with the pooled covariance
            self._curvature.add(chains.curvature_here(self.spec.curvature))
            frozen, self._froze = self._curvature.average(), True
        step_size, factor = change.step_size, None
        if self.adapting:
            factor = self._covariance.factor(position.dtype)
            now = chains.step_sizes if step_size is None else step_size
            # in a metric of the law's own scale h is of order 1
            begin = float(now.median()) if factor is None else 1.0
            self._averaging = dual_averaging(begin)
            step_size = torch.full_like(now, begin)
        early = not self.frozen and self._contest.decided(len(position))
        if count == self.plan.last_window or early:
            self._take(self._contest.choose(self.adapting))
        self.open(position, count)
        return Change(step_size, metric=factor, frozen=frozen, anew=True)

    def _take(self, winner: Candidate | None) -> None:
        """Settle on the winner, which reads no curvature; None is the kernel's own step."""
        if winner is None:
            return
        self.spec = self.spec._replace(proposal=winner.proposal, curvature=None)
        if self.spec.correction != "none" and winner.target is not None:
            self.target = winner.target

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor the next decision depends on, by name."""
        return {
            f"{part}.{name}": tensor
            for part, record in self._records().items()
            for name, tensor in record.tensors.items()
        }

    def numbers(self) -> dict[str, Any]:
        """The numbers the next decision depends on beside the tensors, as JSON has them."""
        return {
            "rival": self._contest.settled,
            "halvings": self._contest.halvings,
            "averaging": list(self._averaging),
            "until": self.until,
            "rates": list(self._rates),
        }

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Resume from what an engine's `tensors` and `numbers` gave, on the device to work on."""
        self._froze = "frozen" in tensors
        self._contest.halvings = numbers["halvings"]
        if numbers["rival"] or numbers["count"] >= self.plan.last_window:
            self._take(self._contest.settle(numbers["rival"]))
        self._averaging = DualAveraging(*numbers["averaging"])
        self.until, self._rates = numbers["until"], list(numbers["rates"])
        self.open(tensors["walk.position"], numbers["count"])
        for part, record in self._records().items():
            prefix = f"{part}."
            record.restore(
                {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            )

    def _records(self) -> dict[str, JumpDistances | PooledCovariance | MeanCurvature]:
        return {
            "jumps": self._contest.jumps,
            "covariance": self._covariance,
            "curvature": self._curvature,
        }


def _check(steps: int, step_size: float | None, frozen: bool) -> None:
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
