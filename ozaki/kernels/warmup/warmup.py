"""`Warmup` decides how the next steps are made, and learns from them.

It plans a block of steps. An engine takes them and shows what the chains did. `Warmup` learns the
step size, the metric, and which of its tracks to settle on. It never takes a step itself. After
warm-up it goes on planning, and learns no more.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.kernels.proposals import langevin
from ozaki.kernels.trajectories import angle, steps_of
from ozaki.kernels.transition import KernelSpec, StepOptions, Trail
from ozaki.kernels.warmup.arrival import Arrival
from ozaki.kernels.warmup.blocks import Block, Chains
from ozaki.kernels.warmup.contest import BUDGET
from ozaki.kernels.warmup.schedule import (
    MOST,
    TELLING,
    WarmupSchedule,
    check_steps,
    ended,
    schedule,
)
from ozaki.kernels.warmup.settling import AGREED, steady
from ozaki.kernels.warmup.step_size import DualAveraging, transient_step_size, update
from ozaki.kernels.warmup.tracks import Choice, Course, Track, choices, frozen_directions
from ozaki.kernels.warmup.window import Window
from ozaki.linalg import Dense

SHORT, SHORT_EVERY = 1 / 8, 16
"""The factor on a short step, and how many steps there are to each short one, where the step size
is adapted and steps are corrected. The step that suits most of a law is almost never accepted far
out in a tail whose gradient rises steeply: chains stood still for whole runs at a tau of 20 in
eight schools, where a step of h/8 is accepted four times in five."""

TURN = 1.5 * BUDGET  # gradients of a turn
OPENING = 4  # gradients of the longest trajectory of the transient
COLLECTED = 16  # steps between two readings of a curvature that is averaged


class Warmup:
    """Plans the steps of a run, and learns from them while it warms up.

    Args:
        tracks: the ways to walk that compete; the first is the kernel's own.
        dim: D.
        steps: how many adapt; "auto" ends once the chains agree and their metric has settled.
        opening: the kernel of the transient; None for that of the first track.
        step_size: a given h is kept, in the identity metric; None adapts both.
        frozen: the kind of curvature whose mean over warm-up takes the place of the local one.
        dense_metric: whether the metric is a matrix or a diagonal.

    Attributes:
        rhat: of the last window that could end a warm-up which ends by itself; None of none.

    Raises:
        ValueError: no step size, or a frozen curvature, and no warm-up to find it in.
    """

    def __init__(
        self,
        tracks: tuple[Track, ...],
        dim: int,
        *,
        steps: int | Literal["auto"],
        opening: KernelSpec | None = None,
        step_size: float | None = None,
        frozen: str | None = None,
        dense_metric: bool = False,
    ):
        check_steps(steps, step_size, frozen is not None)
        self.tracks, self.plan = tracks, schedule(steps)
        self._steps: int | Literal["auto"] = steps
        self.rhat: float | None = None
        self.adapting, self.frozen, self.dense_metric = step_size is None, frozen, dense_metric
        self.first_step_size = 1.0 if step_size is None else step_size
        self.until = 0  # the step at which the block ends that is learned from
        self.chosen = Choice(0, tracks[0].usual)
        self.opening = tracks[0].spec if opening is None else opening
        self._courses = [Course(1.0) for _ in tracks]
        self._dim = dim
        self._settled = len(choices(tracks, tuple(range(len(tracks))), True)) == 1
        self._rates: list[float] = []  # the acceptances of the block so far
        self._fixed: tuple[Tensor, Tensor] | None = None  # directions and values that are frozen

    @property
    def spec(self) -> KernelSpec:
        """The kernel that warm-up has settled on, or the one it began with."""
        return self._frozen_spec if self._fixed is not None else self.tracks[self.chosen.track].spec

    @property
    def metric(self) -> str:
        """What the metric is made of: "identity", "pooled", "scores" or "curvature"."""
        return self.tracks[self.chosen.track].metric if self.adapting else "identity"

    def open(self, like: Float[Tensor, "chains dim"]) -> None:
        """Begin with chains like these."""
        self.step_sizes = like.new_full((len(like), 1), self.first_step_size)
        self._arrival = Arrival(like)
        middle = like.new_zeros(self._dim)
        self._window = self._opened(self._running(0), like, 0, (middle, middle + 1))

    def _opened(
        self, running: list[Choice], like: Tensor, count: int, scale: tuple[Tensor, Tensor]
    ) -> Window:
        """Return the window that begins after `count` steps."""
        steps = self.plan.window_after(count) if self._steps == "auto" else None
        return Window(self.tracks, running, like, self.dense_metric, scale, steps)

    def _running(self, count: int) -> list[Choice]:
        """List what competes in the window that begins after `count` steps."""
        everything = tuple(range(len(self.tracks)))
        if not self.adapting or self._settled:
            return [self.chosen]
        windows = self.plan.windows or (self.plan.transient,)
        last = count >= (windows[-2] if len(windows) > 1 else self.plan.transient)
        places = (self.chosen.track,) if last and len(windows) > 1 else everything
        return choices(self.tracks, places, last)

    def next_block(self, count: int, most: int, in_draws: int = 1) -> Block:
        """Plan the steps after the first `count`: at most `most`, and at least one.

        Args:
            count: how many steps were taken.
            most: how many may be taken now.
            in_draws: the length of a block after warm-up.
        """
        plan = self.plan
        if count >= self.until:
            self.until = count + self._length(count, in_draws)
        steps = range(count, count + min(most, self.until - count))
        transient = count < plan.transient
        tried = [self._choice(step) for step in steps]
        short = [self._short(step) for step in steps]
        spec, factor, curvature = self._way(tried[0], transient)
        uncorrected = spec.correction == "none"
        step_size = self.step_sizes if transient or not self.adapting else self._shared(tried[0])
        return Block(
            spec=spec,
            factor=factor,
            curvature=curvature,
            step_size=step_size,
            options=StepOptions(
                # the first steps of dual averaging are bold: uncorrected they threw chains to 1e18
                unadjusted=uncorrected and count >= plan.settled,
                uphill=transient and self._arrival.climbing(count, plan.transient, spec.momentum),
                # an unadjusted draw only reports the ratio, and the trapezoid is free
                rule="trapezoid" if uncorrected and count >= plan.total else "lobatto",
            ),
            scales=[
                0.5**c.halvings * (SHORT if one else 1.0)
                for c, one in zip(tried, short, strict=True)
            ],
            lengths=[self._steps_of(spec, c, step) for step, c in zip(steps, tried, strict=True)],
            choices=tried,
            short=short,
            excused=[
                self._shortens(step) and not one for step, one in zip(steps, short, strict=True)
            ],
        )

    def _way(
        self, choice: Choice, transient: bool
    ) -> tuple[KernelSpec, Tensor | None, float | Tensor]:
        """Return kernel, factor and curvature of the steps of a choice."""
        if self._fixed is not None:
            directions, values = self._fixed
            return self._frozen_spec, directions, values
        spec = self.opening if transient else self.tracks[choice.track].spec
        factor = None if transient else self._courses[choice.track].factor
        return spec, factor, 0.0 if spec.proposal is langevin else -1.0

    @property
    def _frozen_spec(self) -> KernelSpec:
        return self.tracks[0].spec._replace(curvature=None, momentum=True)

    def _shared(self, choice: Choice) -> Tensor:
        """Return the step size of a track, which all its chains share, (chains, 1)."""
        averaging = self._courses[choice.track].averaging
        return torch.full_like(self.step_sizes, math.exp(averaging.log_step))

    def _choice(self, step: int) -> Choice:
        """Return what a step tries: in warm-up the choices block by block, in turn."""
        plan, running = self.plan, self._window.contest.running
        if step >= plan.last_window:  # whole steps are adapted, and then halved once and for all
            return self.chosen._replace(halvings=0)
        if len(running) == 1 or step < plan.transient:
            return self.chosen
        if _halved(running):
            # every block has whole steps, from which h is learned
            return running[(step // 2) % len(running)]
        return running[self._window.turns % len(running)]

    def _steps_of(self, spec: KernelSpec, choice: Choice, step: int) -> int:
        """Return how many steps the trajectory of a step takes."""
        if not spec.momentum:
            return 1
        if step < self.plan.transient and self.adapting:
            return 1 + step % OPENING if self.tracks[0].usual else 1
        size = self.first_step_size
        if self.adapting:
            size = math.exp(self._courses[choice.track].averaging.log_step)
        return steps_of(choice.time, angle(size, spec.proposal is not langevin), step)

    def _length(self, count: int, in_draws: int) -> int:
        """Return how many steps may be taken before something is learned from them."""
        plan = self.plan
        if count >= plan.total:
            return in_draws
        if count < plan.transient:
            return 1
        return plan.at_once(count, None if self.frozen is None else COLLECTED)

    def _short(self, step: int) -> bool:
        """Say whether a step is a short one, which teaches nothing about the others."""
        return step % SHORT_EVERY == SHORT_EVERY - 2 and self._shortens(step)

    def _shortens(self, step: int) -> bool:
        """Say whether a step lies in a stretch in which some are short."""
        corrected = self.spec.correction != "none" or step < self.plan.settled
        return corrected and self.adapting and step >= self.plan.transient

    def learn(
        self, block: Block, trail: Trail, before: Float[Tensor, "chains dim"], chains: Chains
    ) -> Tensor | None:
        """Learn from a block whose steps were taken.

        Args:
            block: from `next_block`.
            trail: what the steps did, in the coordinates of the law; they may be fewer than the
                block's.
            before: where the chains were.
            chains: after them.

        Returns:
            Where to move chains whose starts were hopeless, (chains, D); None as a rule.
        """
        plan, count = self.plan, chains.count
        if count > plan.total:
            return None
        if count <= plan.transient:
            return self._learn_transient(trail, before, chains)
        self._learn_window(block, trail, before, chains)
        if count in plan.windows:
            if self._may_end(count) and self._has_settled():
                self.plan = ended(plan, count)
            self._end_window(chains)
        return None

    def _may_end(self, count: int) -> bool:
        """Say whether the window that ends here was long enough to tell that all has settled."""
        if self._steps != "auto" or self.plan.total < MOST:
            return False
        ends = (self.plan.transient, *self.plan.windows)
        return count - max(end for end in ends if end < count) >= TELLING

    def _has_settled(self) -> bool:
        """Say whether the chains agree, and their metric is that of the window before."""
        agreement, place = self._window.agreement, self.chosen.track
        assert agreement is not None, "a window of a warm-up that ends by itself has one"
        self.rhat = agreement.rhat()
        if self.rhat > AGREED or not self.adapting:
            return self.rhat <= AGREED
        old = self._courses[place].factor
        dtype = torch.float64 if old is None else old.dtype
        return steady(old, self._window.factor(self.tracks[place].metric, dtype))

    def _learn_transient(self, trail: Trail, before: Tensor, chains: Chains) -> Tensor | None:
        """Change every chain's h after a step of the transient, and end it once all are home."""
        plan, count = self.plan, chains.count
        if self.adapting:
            self.step_sizes = transient_step_size(self.step_sizes, trail.info.accepted[0])
        self._arrival.add(trail, before)
        moved = None
        if self.adapting and self._arrival.arrived(count):
            self.plan = plan = schedule(self._steps, count)
        if self.adapting and count > plan.transient // 2:
            self._window.fold(trail.position, trail.gradient)
        if count == plan.transient:
            known = trail.log_density is not None
            moved = self._arrival.rescued(chains.position, known) if self.adapting else None
            self._end_window(chains)
        return moved

    def _learn_window(self, block: Block, trail: Trail, before: Tensor, chains: Chains) -> None:
        """Learn moments, jumps and the step size from steps of a window, or of the last stretch."""
        info, count = trail.info, chains.count
        if self.adapting and count <= self.plan.last_window:
            self._window.add(
                block, trail, before, self._turn_ends(block, len(info.acceptance), count)
            )
        if self.frozen is not None and count % COLLECTED == 0 and count <= self.plan.last_window:
            self._window.curvature.add(chains.curvature_here(self.frozen))  # pyright: ignore
        if not self.adapting or count > self.plan.settled:
            return
        rates = info.acceptance.nan_to_num(0.0).mean(1).tolist()
        self._rates += [
            rate
            for rate, c, short in zip(rates, block.choices, block.short, strict=False)
            if not short and not c.halvings
        ]
        if count < self.until:
            return
        # once a block: several changes from the acceptances of one step size would oscillate
        track = block.choices[0].track
        course = self._courses[track]
        if self._rates:
            seen = sum(self._rates) / len(self._rates)
            course.averaging = update(course.averaging, seen, self.tracks[track].target)
            self._rates = []
        if count == self.plan.settled:
            log_step = course.averaging.log_average - self.chosen.halvings * math.log(2)
            course.averaging = course.averaging._replace(log_step=log_step)

    def _turn_ends(self, block: Block, steps: int, count: int) -> bool:
        """Say whether another choice's turn follows.

        All turns last for as many gradients, and in a short window for so few steps that each
        choice has two of them.
        """
        plan, running = self.plan, self._window.contest.running
        last = count in plan.windows
        if count < self.until or last or len(running) == 1 or _halved(running):
            return count >= self.until
        walked, gradients = self._window.turn(block, steps)
        if gradients * self.tracks[block.choices[0].track].cost >= TURN:
            return True
        began = max(end for end in (plan.transient, *plan.windows) if end < count)
        return 2 * len(running) * walked >= plan.window_after(began)

    def _end_window(self, chains: Chains) -> None:
        """Change the metrics to what the window saw, and begin the next one."""
        position, count, seen = chains.position, chains.count, self._window
        last = count == self.plan.last_window
        if self.frozen is not None:
            seen.curvature.add(chains.curvature_here(self.frozen))  # pyright: ignore
        if self.adapting:
            if count > self.plan.transient and len(seen.contest.running) > 1:
                self._decide(last)
            for track, course in zip(self.tracks, self._courses, strict=True):
                factor = seen.factor(track.metric, position.dtype)
                course.factor = course.factor if factor is None else factor
                course.restart(1.0)
        elif self.frozen is not None and last:
            mean = seen.curvature.average()
            dense = isinstance(mean, Dense)
            self._fixed = frozen_directions(mean.dense() if dense else mean.diagonal())
        scale = seen.typical.scale() if self.adapting else seen.contest.scale
        self._window = self._opened(self._running(count), position, count, scale)

    def _decide(self, last: bool) -> None:
        """Settle on the track that earned most, and at the end of the last window on its choice."""
        best = self._window.contest.best()
        self.chosen = best if last else Choice(best.track, self.tracks[best.track].usual)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor the next decision depends on, by name."""
        found = {"walk.step_size": self.step_sizes}
        for place, course in enumerate(self._courses):
            if course.factor is not None:
                found[f"metric.{place}"] = course.factor
        if self._fixed is not None:
            found["frozen.directions"], found["frozen.values"] = self._fixed
        found |= {f"arrival.{name}": tensor for name, tensor in self._arrival.tensors.items()}
        found |= self._window.tensors
        return found

    def numbers(self) -> dict[str, Any]:
        """The numbers the next decision depends on beside the tensors, as JSON has them."""
        return {
            "chosen": list(self.chosen),
            "averaging": [list(course.averaging) for course in self._courses],
            "plan": list(self.plan),
            "rhat": self.rhat,
            "running": [list(choice) for choice in self._window.contest.running],
            "until": self.until,
            "turns": self._window.turns,
            "rates": list(self._rates),
        }

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Resume from what an engine's `tensors` and `numbers` gave, on the device to work on."""
        self.chosen = Choice(*numbers["chosen"])
        transient, windows, *rest = numbers["plan"]
        self.plan, self.rhat = WarmupSchedule(transient, tuple(windows), *rest), numbers["rhat"]
        known = zip(self._courses, numbers["averaging"], strict=True)
        for place, (course, averaging) in enumerate(known):
            course.averaging = DualAveraging(*averaging)
            course.factor = tensors.get(f"metric.{place}")
        if "frozen.values" in tensors:
            self._fixed = tensors["frozen.directions"], tensors["frozen.values"]
        self.until, self._rates = numbers["until"], list(numbers["rates"])
        self.open(tensors["walk.position"])
        self.step_sizes = tensors["walk.step_size"]
        self._arrival.restore({name: tensors[f"arrival.{name}"] for name in self._arrival.tensors})
        running = [Choice(*choice) for choice in numbers["running"]]
        scale = tensors["contest.middle"], tensors["contest.spread"]
        like = tensors["walk.position"]
        self._window = self._opened(running, like, 0, scale)  # it knows its own length
        self._window.restore(tensors)
        self._window.turns = numbers["turns"]

    def factor_like(self, factor: Tensor | None) -> Tensor | None:
        """Return the track's own tensor that a factor is equal to, or the factor itself.

        By it the engine knows that chains which are held in a metric stay in it.
        """
        own = [course.factor for course in self._courses if course.factor is not None]
        same = [f for f in own if factor is not None and torch.equal(f, factor)]
        return same[0] if same else factor


def _halved(running: list[Choice]) -> bool:
    """Say whether fractions of one step size compete."""
    return running[0].halvings != running[-1].halvings
