"""`Engine` holds the chains of a run and takes the steps that `Warmup` plans.

The same engine walks one chain in the stock `pyro.infer.MCMC` and a batch in `ozaki.MCMC`. It
holds the positions, the noise, the metric and the step size. `Warmup` decides what changes, and the
engine carries it out. Both call pure functions.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.kernels import transition
from ozaki.kernels.compiled import Compiled
from ozaki.kernels.noise import NoiseBlock, NoiseStream
from ozaki.kernels.processes import ALONE, Team
from ozaki.kernels.transition import KernelSpec, State, Trail
from ozaki.kernels.warmup import Block, Chains, Change, Warmup
from ozaki.linalg import Dense, Diagonal, SymmetricOperator
from ozaki.scores.base import CurvatureKind, Score
from ozaki.scores.transformed import Frozen, Whitened


class Engine(Chains):
    """Walks chains through warm-up and draws.

    Args:
        score: the law.
        warmup: what plans the steps and learns from them.
        generator: the source of noise; None for torch's global one.
        jitter: j in [0, 1): every step's h is scaled by 1 + j u, u uniform on (−1, 1).
        compiled: what compiles the steps; None to run them as they stand.
        team: the processes that walk the chains; positions are of all of them.
    """

    def __init__(
        self,
        score: Score,
        warmup: Warmup,
        *,
        generator: torch.Generator | None = None,
        jitter: float = 0.0,
        compiled: Compiled | None = None,
        team: Team = ALONE,
    ):
        self.score, self.warmup = score, warmup
        self.generator, self.jitter = generator, jitter
        self.count = 0  # of steps
        self._compiled, self._team = compiled, team
        self._metric = Whitened(score)
        self._fixed: SymmetricOperator | None = None  # the curvature that is frozen, in x
        self._law: Score = self._metric
        self._state: State | None = None  # of this process's chains
        self._everyone: Tensor  # where all chains are, in the metric

    @property
    def warming_up(self) -> bool:
        """Whether the next step still adapts."""
        return self.count < self.warmup.plan.total

    @property
    def spec(self) -> KernelSpec:
        """The kernel that warm-up has settled on, or the one it began with."""
        return self.warmup.spec

    @property
    def law(self) -> Score:
        """The score in the metric, its curvature frozen or not."""
        return self._law

    @property
    def metric(self) -> Float[Tensor, "..."] | None:
        """L, the factor the chains walk in; None for the identity."""
        return self._metric.factor

    @property
    def position(self) -> Float[Tensor, "chains dim"]:
        """Where the chains are, (chains, D)."""
        return self.to_x(self._everyone)

    def to_x(self, u: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Map points in the metric, such as those of a trail, to the score's coordinates."""
        return self._metric.to_x(u)

    @property
    def state(self) -> State:
        """This process's chains in the metric they walk in."""
        assert self._state is not None, "start() comes first"
        return self._state

    @property
    def step_sizes(self) -> Float[Tensor, "chains 1"]:
        """The h of each chain, in the metric, (chains, 1); equal after the transient."""
        return self._step_size

    @property
    def step_size(self) -> float:
        """h, in the metric; in the transient the median over chains."""
        return float(self._step_size.median())

    def curvature_here(self, kind: CurvatureKind | None) -> SymmetricOperator:
        """The curvature where the chains are, in the coordinates of the score."""
        position = self.position

        def own(place: slice) -> SymmetricOperator:
            curvature = self.score.expand(position[place], kind).curvature
            assert curvature is not None, "a kernel that reads curvature asks for one"
            return curvature

        return self._team.gather(own)

    def start(self, position: Float[Tensor, "chains dim"]) -> None:
        """Put the chains at `position`, keeping what was learned so far."""
        fresh = self._state is None
        if fresh:
            self._begin(position)
            self.warmup.open(position)
        self._stand(self._metric.to_u(position), under_way=not fresh)

    def refresh(self) -> None:
        """Expand the score anew where the chains are, so that only their positions carry on.

        A run that is resumed from `tensors` and `numbers` then sees the very same state.
        """
        self._stand(self._everyone)

    def walk(self, most: int = 1) -> Trail:
        """Take at most `most` steps of every chain, and at least one; adapt while in warm-up."""
        self._carry_out(self.warmup.look(self))
        # several processes exchange their steps as seldom as they can
        alone = self._compiled is None and self._team.size == 1
        block = self.warmup.next_block(self.count, most, 1 if alone else self._noise.steps)
        noise = self._noise.take(len(block.scales))
        scales = block.scales[: len(noise.scale)]
        if min(scales) < 1:
            noise = noise._replace(scale=noise.scale * noise.scale.new_tensor(scales))
        trail = block.judged(self._steps(block, noise))
        self._everyone = trail.position[-1]
        self.count += len(trail.position)
        self._carry_out(self.warmup.learn(block, trail, self))
        return trail

    @contextmanager
    def temporarily(self, factor: float) -> Iterator[None]:
        """Take steps of `factor` × h with other noise; on leaving, all is as it was before."""
        kept = self._state, self._everyone, self._step_size, self._noise
        counts = self.count, self.warmup.until
        source = torch.Generator(self.score.device)
        source.manual_seed(0 if self.generator is None else self.generator.initial_seed() ^ 1)
        self._step_size = self._step_size * factor
        self._noise = NoiseStream(self._everyone, source, self.jitter)
        try:
            yield
        finally:
            self._state, self._everyone, self._step_size, self._noise = kept
            self.count, self.warmup.until = counts

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor the next step depends on, by name; `refresh` comes first."""
        noise = {f"noise.{name}": tensor for name, tensor in self._noise.tensors.items()}
        found = {
            "walk.position": self._everyone,
            "walk.step_size": self._step_size,
            **self.warmup.tensors(),
            **noise,
        }
        if self.metric is not None:
            found["metric"] = self.metric
        if self._fixed is not None:
            diagonal = isinstance(self._fixed, Diagonal)
            found["frozen"] = self._fixed.diagonal() if diagonal else self._fixed.dense()
        return found

    def numbers(self) -> dict[str, Any]:
        """The rest of what the next step depends on, as JSON would have it."""
        return {"count": self.count, **self.warmup.numbers()}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Resume from what `tensors` and `numbers` gave, in an engine made the same way."""
        device = self.score.device
        here = {name: tensor.to(device) for name, tensor in tensors.items()}
        if (fixed := here.get("frozen")) is not None:
            self._fixed = Diagonal(fixed) if fixed.ndim == 1 else Dense(fixed)
        self._begin(here["walk.position"])
        self._set_metric(here.get("metric"))
        self._step_size = here["walk.step_size"]
        self.count = numbers["count"]
        self.warmup.restore(here, numbers)
        self._stand(here["walk.position"])
        noise = {k.removeprefix("noise."): t for k, t in here.items() if k.startswith("noise.")}
        self._noise.restore(noise)

    def _steps(self, block: Block, noise: NoiseBlock) -> Trail:
        """Take the steps of a block, as many as there is noise for."""

        def own(place: slice) -> tuple[State, Trail]:
            # contiguous, as a compiled loop was traced
            normal, uniform = (t[:, place].contiguous() for t in noise[:2])
            part = NoiseBlock(normal, uniform, noise.scale)
            given = self.state, self._law, block.spec, self._step_size[place], part, block.options
            if self._compiled is not None:
                return self._compiled.walk(*given, block.weights)
            return transition.walk(*given)

        self._state, trail = self._team.walk(noise.normal.shape, own)
        return trail

    def _carry_out(self, change: Change) -> None:
        """Apply a change that warm-up asks for."""
        if change.step_size is not None:
            self._step_size = change.step_size
        if not change.anew:
            return
        position = self.position
        self._fixed = self._fixed if change.frozen is None else change.frozen
        self._set_metric(self.metric if change.metric is None else change.metric)
        self.start(position)

    def _stand(self, u: Tensor, under_way: bool = False) -> None:
        """Put all chains at `u`, in the metric, and expand this process's share of them."""
        state = transition.init(self._law, u, self.warmup.walked, under_way)
        self._everyone = state.position
        self._state = self._team.share(state)

    def _begin(self, position: Tensor) -> None:
        """Set the first step size, noise and metric, for chains like these."""
        self._step_size = position.new_full((len(position), 1), self.warmup.first_step_size)
        self._noise = NoiseStream(position, self.generator, self.jitter)
        if self._compiled is not None and self.warmup.adapting:
            # a metric from the first step on, so that one compiled loop serves all of warm-up
            one = position.new_ones(self.score.dim)
            self._set_metric(torch.diag(one) if self.warmup.dense_metric else one)

    def _set_metric(self, factor: Tensor | None) -> None:
        """Set the metric to that of L, and express the frozen curvature in it."""
        self._metric = Whitened(self.score, factor)
        self._law = self._metric
        if self._fixed is not None:
            fixed = self._fixed if factor is None else self._fixed.congruence(factor)
            self._law = Frozen(self._metric, fixed)
