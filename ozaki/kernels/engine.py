"""Chains in flight: a state, and the warm-up that shapes the next step.

One engine serves both faces: one chain in the stock `pyro.infer.MCMC`, a batch in `ozaki.MCMC`.
It holds the only mutable state of a run; everything it calls is pure.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.kernels import transition, warmup
from ozaki.kernels.compiled import Compiled
from ozaki.kernels.noise import Noise, Share
from ozaki.kernels.processes import ALONE, Team
from ozaki.kernels.proposals import Proposal, langevin, ornstein_uhlenbeck, ozaki
from ozaki.kernels.transition import Method, Options, State, Trail
from ozaki.kernels.warmup import DualAveraging, JumpRecord, MeanCurvature, PooledCovariance
from ozaki.linalg import Dense, Diagonal, SymmetricOperator
from ozaki.scores.base import Score
from ozaki.scores.transformed import Frozen, Whitened

LANGEVIN_TARGET = 0.574
"""Optimal acceptance of adjusted Langevin in high dimension (Roberts & Rosenthal, 1998)."""

GROW, SHRINK = 1.5, 1 / 3
"""Transient step sizes, per chain: in balance at an acceptance of 0.73."""


CHEAPER: dict[str | None, float] = {None: 1.0, "diagonal": 0.9, "low_rank": 0.4, "dense": 0.4}
"""What share of the jump of a step with curvature one without must make: it costs less."""

HESSIANS = 4.0
"""Over D, the same of a dense curvature in many dimensions: D products and D³ for its roots. At 100
a step with it was seen to cost 30 steps without, compiled 77."""

LOOKS = (0, 4, 12, 28)
"""Transient steps before which the metric is made of the curvature where the chains are, by kernels
that need not walk with it: a Hessian costs as much as ten steps and more."""

SHORT, SHORT_EVERY = 1 / 8, 16
"""One step in so many of an adapted, corrected walk is short. The step that suits most of a law is
all but never accepted far out in a tail whose gradient rises steeply: chains stood still for whole
runs at a tau of 20 in eight schools, where a step of h/8 is accepted four times in five."""

AT_ONCE = 8  # steps between two changes of the step size, once a window has seen some

COLLECTED = 4  # curvatures a step, on average over the steps, of those that are frozen as a mean


class Rival(NamedTuple):
    """A step that warm-up may settle on.

    Attributes:
        proposal: by itself.
        weight, shift: the same step as a `blend` of the curvature that the kernel reads.
        target: the acceptance it seeks; None for the kernel's own.
    """

    proposal: Proposal
    weight: float
    shift: float
    target: float | None = None


LANGEVIN = Rival(langevin, 0.0, 0.0, LANGEVIN_TARGET)
ORNSTEIN_UHLENBECK = Rival(ornstein_uhlenbeck, 0.0, -1.0)


class Engine:
    """Walks chains through warm-up and draws.

    Args:
        score: the law.
        method: proposal, curvature, correction.
        warmup_steps: how many steps adapt.
        target: the acceptance dual averaging seeks.
        step_size: a given h is kept, in the identity metric; None adapts both.
        frozen: average the curvature over warm-up and use that one from then on, or the pooled
            covariance of the chains in its place, where that moves further.
        dense_metric: whether the metric is a matrix or a diagonal.
        choose: whether warm-up may settle on a step in the metric that reads no curvature, where
            that moves further: Langevin's, or Ozaki's of the pooled covariance.
        generator: the source of noise; None for torch's global one.
        jitter: j in [0, 1): every step's h is scaled by 1 + j u, u uniform on (−1, 1).
        compiled: what compiles the steps; None to run them as they stand.
        team: the processes that walk the chains; positions are of all of them.

    Raises:
        ValueError: no step size, and no warm-up to find one in.
    """

    def __init__(
        self,
        score: Score,
        method: Method,
        *,
        warmup_steps: int,
        target: float,
        step_size: float | None = None,
        frozen: bool = False,
        dense_metric: bool = False,
        choose: bool = False,
        generator: torch.Generator | None = None,
        jitter: float = 0.0,
        compiled: Compiled | None = None,
        team: Team = ALONE,
    ):
        if warmup_steps == 0 and step_size is None:
            raise ValueError(
                "step_size must be given where warmup_steps is 0, but was None; warm-up is where "
                "it is found"
            )
        if warmup_steps == 0 and frozen:
            raise ValueError(
                "frozen must be False where warmup_steps is 0, but was True; the curvature is "
                "averaged over warm-up"
            )
        self.score, self.method, self.target = score, method, target
        self.plan = warmup.schedule(warmup_steps)
        self.generator = generator
        self.adapting = step_size is None
        self.frozen, self.dense_metric = frozen, dense_metric
        self.jitter, self._compiled = jitter, compiled
        own = Rival(method.proposal, 1.0, 0.0)
        others = (LANGEVIN, ORNSTEIN_UHLENBECK) if choose else (ORNSTEIN_UHLENBECK,)
        competes = method.proposal is ozaki and (choose or frozen)
        self._rivals = (own, *others) if competes else (own,)
        self._sparing = competes and self.adapting  # walks with a curvature only to judge it
        self.count, self._halvings, self._rival = 0, 0, 0
        self._until = 0  # where the block of steps ends, of which something is learned
        self._rates: list[float] = []  # of acceptance, in the block
        ends = self.plan.windows or (self.plan.transient,)
        self._last_window, self._freezing = ends[-1], ends[-2:][0]
        before = [end for end in (self.plan.transient, *ends) if end < self._freezing]
        self._collecting = max(before, default=self.plan.transient // 2)
        self._metric = Whitened(score)
        self._fixed: SymmetricOperator | None = None  # the curvature that is frozen, in x
        self._law: Score = self._metric
        self._given = 1.0 if step_size is None else step_size
        self._averaging = warmup.dual_averaging(self._given)
        self._team = team
        self._state: State | None = None  # of this process's chains
        self._everyone: Tensor  # where all chains are, in the metric

    @property
    def warming_up(self) -> bool:
        """Whether the next step still adapts."""
        return self.count < self.plan.total

    @property
    def metric(self) -> Float[Tensor, "..."] | None:
        """L, the factor the chains walk in; None for the identity."""
        return self._metric.factor

    @property
    def position(self) -> Float[Tensor, "chains dim"]:
        """Where the chains are, (chains, D)."""
        return self.to_x(self._everyone)

    def to_x(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Points in the metric, as of a trail, in the coordinates of the score."""
        return self._metric.to_x(u)

    @property
    def state(self) -> State:
        """This process's chains in the metric they walk in."""
        assert self._state is not None, "start() comes first"
        return self._state

    @property
    def step_size(self) -> float:
        """h, in the metric; in the transient the median over chains."""
        return float(self._step_size.median())

    def start(self, position: Float[Tensor, "chains dim"]) -> None:
        """Put the chains at `position`, keeping what was learned so far."""
        fresh = self._state is None
        if fresh:
            self._begin(position)
            self._open_window(position)
        self._stand(self._metric.to_u(position), under_way=not fresh)

    def _stand(self, u: Tensor, under_way: bool = False) -> None:
        """All chains at `u`, in the metric, and this process's share of them."""
        state = transition.init(self._law, u, self._method, under_way)
        self._everyone = state.position
        self._state = self._team.share(state)

    def _begin(self, position: Tensor) -> None:
        self._every = max(1, len(position) // COLLECTED)
        self._step_size = position.new_full((len(position), 1), self._given)
        self._noise = Noise(position, self.generator, self.jitter)
        if self._compiled is not None and self.adapting:
            # a metric from the first step on, so that one compiled loop serves all of warm-up
            one = position.new_ones(self.score.dim)
            self._set_metric(torch.diag(one) if self.dense_metric else one)

    def _set_metric(self, factor: Tensor | None) -> None:
        """Walk in the metric of L, the frozen curvature with it."""
        self._metric = Whitened(self.score, factor)
        self._law = self._metric
        if self._fixed is not None:
            fixed = self._fixed if factor is None else self._fixed.congruence(factor)
            self._law = Frozen(self._metric, fixed)

    def refresh(self) -> None:
        """Look again from where the chains are, so that nothing but the positions carries on.

        A run that is taken up from `tensors` and `numbers` sees the very same.
        """
        self._stand(self._everyone)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor the next step depends on, by name; `refresh` comes first."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "walk": {"position": self._everyone, "step_size": self._step_size},
            "jumps": self._jumps.tensors,
            "covariance": self._covariance.tensors,
            "curvature": self._curvature.tensors,
            "noise": self._noise.tensors,
        }
        found = {f"{part}.{name}": t for part, group in parts.items() for name, t in group.items()}
        if self.metric is not None:
            found["metric"] = self.metric
        if self._fixed is not None:
            diagonal = isinstance(self._fixed, Diagonal)
            found["frozen"] = self._fixed.diagonal() if diagonal else self._fixed.dense()
        return found

    def numbers(self) -> dict[str, Any]:
        """The rest of what the next step depends on, as JSON would have it."""
        return {
            "count": self.count,
            "rival": self._rival,
            "halvings": self._halvings,
            "averaging": list(self._averaging),
            "until": self._until,
            "rates": list(self._rates),
        }

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `numbers` gave, in an engine made the same way."""
        device = self.score.device
        if "frozen" in tensors:
            found = tensors["frozen"].to(device)
            self._fixed = Diagonal(found) if found.ndim == 1 else Dense(found)
        position = tensors["walk.position"].to(device)
        self._begin(position)
        metric = tensors.get("metric")
        self._set_metric(None if metric is None else metric.to(device))
        self.count, self._halvings = numbers["count"], numbers["halvings"]
        if numbers["rival"] or self.count >= self._last_window:
            self._settle(numbers["rival"])
        self._averaging = DualAveraging(*numbers["averaging"])
        self._until, self._rates = numbers["until"], list(numbers["rates"])
        self._step_size = tensors["walk.step_size"].to(device)
        self._open_window(position)
        self._stand(position)
        kept = {
            "jumps": self._jumps,
            "covariance": self._covariance,
            "curvature": self._curvature,
            "noise": self._noise,
        }
        for part, record in kept.items():
            prefix = f"{part}."
            group = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            record.restore({name: t.to(device) for name, t in group.items()})

    def walk(self, most: int = 1) -> Trail:
        """Walk every chain at most `most` steps and at least one, adapting if still in warm-up."""
        transient = self.count < self.plan.transient
        if transient and self._sparing and self.count in LOOKS:
            self._look()
        seeking = self.adapting and not transient and self.count < self._last_window
        if self.count >= self._until:
            self._until = self.count + self._block()
        length = min(most, self._until - self.count)
        trials = [
            self._jumps.trial(step) if seeking else (0, 0)
            for step in range(self.count, self.count + length)
        ]
        # an unadjusted draw only reports the ratio, and the trapezoid is free
        free = self.method.correction == "none" and not self.warming_up
        options = Options(
            # the first steps of dual averaging are bold: uncorrected they threw chains to 1e18
            unadjusted=self.method.correction == "none" and self.count >= self.plan.settled,
            uphill=transient,
            rule="trapezoid" if free else "lobatto",
        )
        share = self._noise.take(length)
        trials = trials[: len(share.scale)]
        shorter = [
            0.5**halvings * (SHORT if self._short(step) else 1.0)
            for step, (_, halvings) in enumerate(trials, self.count)
        ]
        if min(shorter) < 1:
            share = share._replace(scale=share.scale * share.scale.new_tensor(shorter))
        rival = self._running[trials[0][0]]
        # every rival sees the same curvature, so that the next step can be the kernel's own
        method = self._method._replace(proposal=rival.proposal)
        weights = (rival.weight, rival.shift) if len(self._running) > 1 else None

        def own(place: slice) -> tuple[State, Trail]:
            # contiguous, as a compiled loop was told
            normal, uniform = (t[:, place].contiguous() for t in share[:2])
            part = Share(normal, uniform, share.scale)
            given = self.state, self._law, method, self._step_size[place], part, options
            if self._compiled is not None:
                return self._compiled.walk(*given, weights)
            return transition.walk(*given)

        self._state, trail = self._team.walk(share.normal.shape, own)
        trail = self._judged(trail)
        self._everyone = trail.position[-1]
        self.count += len(trail.position)
        if self.count <= self.plan.total:
            self._adapt(trail, transient, trials)
        return trail

    def _short(self, step: int) -> bool:
        """Whether a step is a short one, from which nothing is learned of the others."""
        # an even one: odd ones are the trials of warm-up
        return step % SHORT_EVERY == SHORT_EVERY - 2 and self._shortens(step)

    def _shortens(self, step: int) -> bool:
        """Whether a step is of a stretch in which some are short."""
        corrected = self.method.correction != "none" or step < self.plan.settled
        return corrected and self.adapting and step >= self.plan.transient

    def _judged(self, trail: Trail) -> Trail:
        """Where some steps are short, it is a divergence if the short ones cannot be taken.

        That an ordinary step would end far below is then no more than a step refused.
        """
        info, count = trail.info, self.count
        mended = [
            self._shortens(step) and not self._short(step)
            for step in range(count, count + len(trail.position))
        ]
        if not any(mended):
            return trail
        rough = info.diverging.new_tensor(mended).unsqueeze(-1)
        return trail._replace(
            info=info._replace(diverging=torch.where(rough, info.broken, info.diverging))
        )

    def _block(self) -> int:
        """How many steps may be walked before something is learned of them."""
        plan, count = self.plan, self.count
        if not self.warming_up:
            # what several processes walk is passed on as seldom as may be
            return 1 if self._compiled is None and self._team.size == 1 else self._noise.steps
        if count < plan.transient or len(self._running) > 1:
            return 1
        began = max(end for end in (plan.transient, *plan.windows) if end <= count)
        ends = [*plan.windows, plan.settled, plan.total]
        if self._collecting <= count < self._freezing and self.frozen:
            ends.append((count // self._every + 1) * self._every)
        # dual averaging is bold at first, and later each step says little
        return max(1, min((count - began) // 4, AT_ONCE, min(e for e in ends if e > count) - count))

    @contextmanager
    def aside(self, factor: float) -> Iterator[None]:
        """Steps of `factor` × h and of other noise, after which all is as it was before."""
        kept = self._state, self._everyone, self._step_size, self._noise
        counts = self.count, self._until
        source = torch.Generator(self.score.device)
        source.manual_seed(0 if self.generator is None else self.generator.initial_seed() ^ 1)
        self._step_size = self._step_size * factor
        self._noise = Noise(self._everyone, source, self.jitter)
        try:
            yield
        finally:
            self._state, self._everyone, self._step_size, self._noise = kept
            self.count, self._until = counts

    def _adapt(self, trail: Trail, transient: bool, trials: list[tuple[int, int]]) -> None:
        """Learn from the steps of a trail."""
        info, steps = trail.info, len(trail.position)
        if transient:
            self._adapt_transient(info.accepted[0])
        elif self.adapting and self.count <= self.plan.settled:
            rates = info.acceptance.nan_to_num(0.0).mean(1).tolist()
            first = self.count - steps
            for step, trial in enumerate(trials):
                if self._short(first + step):
                    continue
                self._jumps.add(trial, info.jump[step])
                if trial == (0, 0):
                    self._rates.append(rates[step])
            if self.count == self._until:
                self._adapt_step()
        for i in range(steps):
            # the second half of the transient gives the first, rough metric
            if self.count - steps + i + 1 > self.plan.transient // 2:
                self._covariance.add(self.to_x(trail.position[i]))
        collecting = self._collecting < self.count < self._freezing
        if self.frozen and collecting and self.count % self._every == 0:
            self._curvature.add(self._curvature_here())
        if self.count == self.plan.transient or self.count in self.plan.windows:
            self._end_window()

    def _adapt_step(self) -> None:
        """Once for a block: several changes on what one step size did would swing."""
        if self._rates:
            seen = sum(self._rates) / len(self._rates)
            self._averaging = warmup.update(self._averaging, seen, self.target)
            self._rates = []
        settled = self.count == self.plan.settled
        shorter = self._halvings * math.log(2) if settled else 0.0
        average = self._averaging.log_average if settled else self._averaging.log_step
        self._set_step(average - shorter)

    def _set_step(self, log_step: float) -> None:
        self._step_size = torch.full_like(self._step_size, log_step).exp()

    def _adapt_transient(self, accepted: Tensor) -> None:
        if not self.adapting:
            return
        rate = torch.where(accepted, GROW, SHRINK).unsqueeze(-1).to(self._step_size)
        self._step_size = (self._step_size * rate).clamp(max=1e6)

    def _end_window(self) -> None:
        """Change the metric to what the window saw, and begin the next one."""
        position, last = self.position, self.count == self._last_window
        if self.frozen and self.count == self._freezing:
            # the last window walks with it, and compares it with the pooled covariance
            self._curvature.add(self._curvature_here())
            self._fixed = self._curvature.average()
        factor = self._covariance.factor(position.dtype) if self.adapting else None
        self._set_metric(self.metric if factor is None else factor)
        if self.adapting:
            # in a metric of the law's own scale h is of order 1
            begin = self.step_size if factor is None else 1.0
            self._averaging = warmup.dual_averaging(begin)
            self._step_size = torch.full_like(self._step_size, begin)
        if last or self._decided(len(position)):
            self._choose()
        self._open_window(position)
        self.start(position)

    def _decided(self, chains: int) -> bool:
        """Whether a rival can be told to be the better one already."""
        early = len(self._running) > 1 and not self.frozen and self._jumps.enough(chains)
        return early and self._jumps.best()[0] > 0

    def _choose(self) -> None:
        """Settle on the proposal and the fraction of its step that moved furthest."""
        judged = self.adapting and self._running == self._rivals
        rival, halvings = self._jumps.best() if judged else (0, 0)
        self._halvings = 0 if rival else halvings
        self._settle(rival)

    def _settle(self, rival: int) -> None:
        """From now on walk by one proposal, which pays no curvature if it is not the kernel's."""
        chosen = self._rivals[rival]
        self._rivals = (chosen,)
        if rival == 0:
            return
        self._rival = rival
        self.method = self.method._replace(proposal=chosen.proposal, curvature=None)
        if self.method.correction != "none" and chosen.target is not None:
            self.target = chosen.target

    def _curvature_here(self) -> SymmetricOperator:
        position = self.position

        def own(place: slice) -> SymmetricOperator:
            found = self.score.expand(position[place], self.method.curvature).curvature
            assert found is not None, "a kernel that reads curvature asks for one"
            return found

        return self._team.gather(own)

    def _look(self) -> None:
        """Make the metric of the mean curvature where the chains are."""
        factor = warmup.precision_factor(self._curvature_here(), self.dense_metric)
        if factor is not None:
            position = self.position
            self._set_metric(factor)
            self._step_size = torch.ones_like(self._step_size)
            self.start(position)

    def _open_window(self, like: Tensor) -> None:
        self._running, self._method = self._rivals, self.method
        if self._sparing and self.count < self.plan.transient:
            self._running = (LANGEVIN,)
        elif self._sparing and self.frozen and self._fixed is None:
            self._running = (ORNSTEIN_UHLENBECK,)
        if self._running != self._rivals:
            self._method = self.method._replace(curvature=None)
        handicap = 1.0 if self.frozen else CHEAPER[self.method.curvature]
        if self.method.curvature == "dense" and not self.frozen:
            handicap = min(handicap, HESSIANS / self.score.dim)
        self._jumps = JumpRecord(len(self._running), handicap)
        self._covariance = PooledCovariance(self.score.dim, self.dense_metric, like)
        self._curvature = MeanCurvature()
