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
from ozaki.kernels import trajectories, transition
from ozaki.kernels.compiled import Compiled
from ozaki.kernels.noise import NoiseBlock, NoiseStream
from ozaki.kernels.processes import ALONE, Team
from ozaki.kernels.transition import KernelSpec, State, Trail
from ozaki.kernels.warmup import Block, Chains, Warmup
from ozaki.linalg import SymmetricOperator
from ozaki.scores.base import CurvatureKind, Score
from ozaki.scores.transformed import Whitened


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
        self._metric = Whitened(score)  # the coordinates that the chains are held in
        self._state: State | None = None  # of this process's chains
        self._everyone: Tensor  # where all chains are, in these coordinates
        self._walked: KernelSpec = warmup.spec
        self._block: Block | None = None
        self._longer = 1.0  # what step sizes are multiplied by

    @property
    def warming_up(self) -> bool:
        """Whether the next step still adapts."""
        return self.count < self.warmup.plan.total

    @property
    def spec(self) -> KernelSpec:
        """The kernel that warm-up has settled on, or the one it began with."""
        return self.warmup.spec

    @property
    def metric(self) -> Float[Tensor, "..."] | None:
        """L, the factor of the metric of the last step; None for the identity."""
        return None if self._block is None else self._block.factor

    @property
    def position(self) -> Float[Tensor, "chains dim"]:
        """Where the chains are, (chains, D)."""
        return self._metric.to_x(self._everyone)

    @property
    def has_density(self) -> bool:
        """Whether a log density is known, for the whole of the law."""
        return self._here.expansion.has_density

    @property
    def step_sizes(self) -> Float[Tensor, "chains 1"]:
        """The h of each chain in its last step, (chains, 1); equal after the transient."""
        return self.warmup.step_sizes if self._block is None else self._block.step_size

    @property
    def step_size(self) -> float:
        """h, in the metric; in the transient the median over chains."""
        return float(self.step_sizes.median()) * self._longer

    @property
    def time(self) -> float:
        """The mean angle of the trajectories; 0 of single steps."""
        return self.warmup.chosen.time if self.spec.momentum else 0.0

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
            self._noise = NoiseStream(position, self.generator, self.jitter)
            self.warmup.open(position)
            self._walked = self.warmup.opening
        self._stand(self._metric.to_u(position), under_way=not fresh)

    def refresh(self) -> None:
        """Expand the score anew where the chains are, so that only their positions carry on.

        A run that is resumed from `tensors` and `numbers` then sees the very same state.
        """
        self._stand(self._everyone)

    def walk(self, most: int = 1) -> Trail:
        """Take at most `most` steps of every chain, and at least one; adapt while in warm-up.

        Returns:
            The record of the steps, in the coordinates of the score.
        """
        # several processes exchange their steps as seldom as they can
        alone = self._compiled is None and self._team.size == 1
        block = self.warmup.next_block(self.count, most, 1 if alone else self._noise.steps)
        noise = self._noise.take(len(block.scales))
        self._block = block = block.cut(len(noise.scale))
        if min(block.scales) < 1:
            noise = noise._replace(scale=noise.scale * noise.scale.new_tensor(block.scales))
        self._change_coordinates(block)
        before = self.position
        trail = block.judged(self._steps(block, noise))
        self._everyone = trail.position[-1]
        if not block.spec.momentum:
            trail = trail._replace(position=self._metric.to_x(trail.position))
        self.count += len(trail.position)
        moved = self.warmup.learn(block, trail, before, self)
        if moved is not None:
            self.start(moved)
        return trail

    @contextmanager
    def temporarily(self, factor: float) -> Iterator[None]:
        """Take steps of `factor` × h with other noise; on leaving, all is as it was before."""
        kept = self._state, self._everyone, self._noise, self._metric, self._walked, self._block
        counts = self.count, self.warmup.until
        source = torch.Generator(self.score.device)
        source.manual_seed(0 if self.generator is None else self.generator.initial_seed() ^ 1)
        self._longer = factor
        self._noise = NoiseStream(self._everyone, source, self.jitter)
        try:
            yield
        finally:
            self._state, self._everyone, self._noise, self._metric, self._walked, self._block = kept
            self.count, self.warmup.until = counts
            self._longer = 1.0

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor the next step depends on, by name; `refresh` comes first."""
        noise = {f"noise.{name}": tensor for name, tensor in self._noise.tensors.items()}
        found = {"walk.position": self._everyone, **self.warmup.tensors(), **noise}
        if self._metric.factor is not None:
            found["walk.factor"] = self._metric.factor
        return found

    def numbers(self) -> dict[str, Any]:
        """The rest of what the next step depends on, as JSON would have it."""
        walked = {"momentum": self._walked.momentum, "reads": self._walked.curvature}
        return {"count": self.count, **walked, **self.warmup.numbers()}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Resume from what `tensors` and `numbers` gave, in an engine made the same way."""
        device = self.score.device
        here = {name: tensor.to(device) for name, tensor in tensors.items()}
        self._noise = NoiseStream(here["walk.position"], self.generator, self.jitter)
        self.count = numbers["count"]
        self.warmup.restore(here, numbers)
        self._metric = Whitened(self.score, self.warmup.factor_like(here.get("walk.factor")))
        self._walked = self.warmup.spec._replace(
            curvature=numbers["reads"], momentum=numbers["momentum"]
        )
        self._stand(here["walk.position"])
        noise = {k.removeprefix("noise."): t for k, t in here.items() if k.startswith("noise.")}
        self._noise.restore(noise)

    @property
    def _here(self) -> State:
        assert self._state is not None, "start() comes first"
        return self._state

    def _steps(self, block: Block, noise: NoiseBlock) -> Trail:
        """Take the steps of a block, as many as there is noise for."""
        compiled, factor = self._compiled, block.factor
        if compiled is not None and factor is None:
            # one compiled loop serves all of a run
            one = noise.normal.new_ones(self.score.dim)
            factor = torch.diag(one) if self.warmup.dense_metric else one
        size = block.step_size * self._longer
        scales = noise.scale[:, None, None]
        splits = None
        if block.spec.momentum:
            splits = trajectories.splitting(size * scales, block.curvature)

        def own(place: slice) -> tuple[State, Trail]:
            # contiguous, as a compiled loop was traced
            normal, uniform = (t[:, place].contiguous() for t in noise[:2])
            part = NoiseBlock(normal, uniform, noise.scale)
            if splits is None:
                given = self._here, self._metric, block.spec, size[place], part, block.options
                return transition.walk(*given) if compiled is None else compiled.walk(*given)
            mine = trajectories.Splitting(*(t[:, place] for t in splits))
            rest = factor, mine, block.lengths, part, block.options
            if compiled is not None:
                return compiled.fly(self._here, self.score, *rest)
            # held in x, the metric only detaches what is read from the score's own graph
            return trajectories.walk(self._here, self._metric, *rest)

        self._state, trail = self._team.walk(noise.normal.shape, own)
        return trail

    def _change_coordinates(self, block: Block) -> None:
        """Hold the chains as a block asks: in x, or in the metric and with a curvature."""
        spec, held = block.spec, self._metric.factor
        factor = None if spec.momentum else block.factor
        reads = spec.curvature == self._walked.curvature
        if factor is held and reads:
            self._walked = spec
            return
        position = self.position
        self._metric, self._walked = Whitened(self.score, factor), spec
        self._stand(self._metric.to_u(position), under_way=True)

    def _stand(self, u: Tensor, under_way: bool = False) -> None:
        """Put all chains at `u`, in their coordinates, and expand this process's share of them."""
        state = transition.init(self._metric, u, self._walked, under_way)
        self._everyone = state.position
        self._state = self._team.share(state)
