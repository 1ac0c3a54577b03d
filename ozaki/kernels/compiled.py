"""`Compiled` takes the steps of `transition.walk` and `trajectories.walk` in compiled loops."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ozaki.kernels import trajectories, transition
from ozaki.kernels.noise import NoiseBlock
from ozaki.kernels.traced import TracedLoop, check_alike, flatten, rebuild
from ozaki.kernels.trajectories import Flight, Splitting
from ozaki.kernels.transition import Info, KernelSpec, State, StepOptions, Trail
from ozaki.scores.base import Expansion, Score
from ozaki.scores.transformed import Whitened


class Compiled:
    """Takes steps by compiled loops: one for each kernel spec, made at its first step."""

    def __init__(self) -> None:
        self._score: Score | None = None
        self._loops: dict[tuple[Any, ...], Any] = {}

    def walk(
        self,
        state: State,
        law: Whitened,
        method: KernelSpec,
        step_size: Tensor,
        noise: NoiseBlock,
        options: StepOptions,
    ) -> tuple[State, Trail]:
        """The same as `transition.walk`, of a law in a metric.

        Raises:
            ValueError: a model that cannot be traced, or no compiler to compile it with.
        """
        loops = self._of(law.score)
        shape = None if law.factor is None else law.factor.ndim
        key = (method, options.rule, shape, state.position.shape)
        given = state, law.factor, step_size, noise, options
        if key not in loops:
            loops[key] = _Steps(law.score, method, *given)
        return loops[key](*given)

    def fly(
        self,
        state: State,
        score: Score,
        factor: Tensor | None,
        splits: Splitting,
        lengths: Sequence[int],
        noise: NoiseBlock,
        options: StepOptions,
    ) -> tuple[State, Trail]:
        """The same as `trajectories.walk`.

        Raises:
            ValueError: a model that cannot be traced, or no compiler to compile it with.
        """
        loops = self._of(score)
        shape = None if factor is None else factor.ndim
        key = ("flight", options.rule, shape, splits.kick.shape[1:], state.position.shape)
        given = state, factor, splits, lengths, noise, options
        if key not in loops:
            loops[key] = _Flights(score, *given)
        return loops[key](*given)

    def _of(self, score: Score) -> dict[tuple[Any, ...], Any]:
        """Return the loops of a score; those of another are forgotten."""
        if score is not self._score:
            self._score, self._loops = score, {}
        return self._loops

    def __reduce__(self) -> tuple[Any, ...]:
        return Compiled, ()  # loops are made anew


class _Steps:
    """The steps of one kernel spec."""

    def __init__(
        self,
        score: Score,
        method: KernelSpec,
        state: State,
        factor: Tensor | None,
        step_size: Tensor,
        noise: NoiseBlock,
        options: StepOptions,
    ):
        self._score, self._method, self._rule = score, method, options.rule
        self._like, self._carried = state.expansion, len(flatten(state))
        rest = _rest([step_size], options, factor)
        self._loop = TracedLoop(self._turn, flatten(state), list(noise), rest)
        # a short step is accepted; a refused step would leave nothing to compare
        short, first = step_size / 100, NoiseBlock(*(part[:1].contiguous() for part in noise))
        plain, seen = transition.walk(state, Whitened(score, factor), method, short, first, options)
        _check((plain, seen), self(state, factor, short, first, options))

    def __call__(
        self,
        state: State,
        factor: Tensor | None,
        step_size: Tensor,
        noise: NoiseBlock,
        options: StepOptions,
    ) -> tuple[State, Trail]:
        rest = _rest([step_size], options, factor)
        found = self._loop(flatten(state), list(noise), rest)
        moved = rebuild(found[: self._carried], self._like)
        position, *others = found[self._carried :]
        density = others.pop(0) if self._like.has_density else None
        return moved, Trail(position, density, Info(*others))

    def _turn(self, *tensors: Tensor) -> list[Tensor]:
        """One step, tensors in and tensors out."""
        carry, rest = tensors[: self._carried], tensors[self._carried :]
        normal, uniform, scale, step_size, flags, *factor = rest
        law = Whitened(self._score, factor[0] if factor else None)
        state, info = transition.step(
            rebuild(carry, self._like),
            law,
            self._method,
            step_size * scale,
            normal,
            uniform,
            _options(flags, self._rule),
        )
        return [*flatten(state), state.position, *_density(state, self._like), *info]


class _Flights:
    """Trajectories of any lengths: a flat loop over gradients."""

    def __init__(
        self,
        score: Score,
        state: State,
        factor: Tensor | None,
        splits: Splitting,
        lengths: Sequence[int],
        noise: NoiseBlock,
        options: StepOptions,
    ):
        self._score, self._rule = score, options.rule
        self._like, self._own = state.expansion, len(flatten(state))
        given = self._carry(state), self._noise(splits, lengths, noise)
        self._loop = TracedLoop(self._turn, *given, _rest([], options, factor))
        short = Splitting(*(part[:1] / 10 for part in splits))
        first = NoiseBlock(*(part[:1].contiguous() for part in noise))
        plain = trajectories.walk(state, score, factor, short, [2], first, options)
        _check(plain, self(state, factor, short, [2], first, options))

    def __call__(
        self,
        state: State,
        factor: Tensor | None,
        splits: Splitting,
        lengths: Sequence[int],
        noise: NoiseBlock,
        options: StepOptions,
    ) -> tuple[State, Trail]:
        ends = torch.tensor(lengths).cumsum(0) - 1
        rows = torch.full((sum(lengths),), -1, dtype=torch.int64)
        rows[ends] = torch.arange(len(lengths))
        found = self._loop(
            self._carry(state),
            self._noise(splits, lengths, noise),
            _rest([], options, factor),
            rows.to(state.position.device),
        )
        moved = rebuild(found[: self._own], self._like)
        position, gradient, *others = found[2 * self._own + 4 :]
        density = others.pop(0) if self._like.has_density else None
        return moved, Trail(position, density, Info(*others), gradient)

    def _carry(self, state: State) -> list[Tensor]:
        """List what one turn hands to the next: state, momentum, start, and three figures."""
        zero = torch.zeros_like(state.position)
        figures = [zero[:, 0].clone() for _ in range(3)]
        return [*flatten(state), zero, *(t.clone() for t in flatten(state)), *figures]

    def _noise(self, splits: Splitting, lengths: Sequence[int], noise: NoiseBlock) -> list[Tensor]:
        """List, for every turn, the noise of its trajectory, kick and drift, and what it ends."""
        like = noise.normal
        index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        last = torch.tensor(lengths).cumsum(0) - 1
        flags = like.new_zeros(2, len(index))
        flags[0, 0] = 1
        flags[0, (last + 1)[:-1]] = 1
        flags[1, last] = 1
        index = index.to(like.device)
        wide = (noise.normal, noise.uniform, *splits)
        return [*(part.index_select(0, index) for part in wide), *flags.unbind(0)]

    def _turn(self, *tensors: Tensor) -> list[Tensor]:
        """One turn of the loop, tensors in and tensors out."""
        own = self._own
        now, momentum, start = tensors[:own], tensors[own], tensors[own + 1 : 2 * own + 1]
        kinetic, gain, lost = tensors[2 * own + 1 : 2 * own + 4]
        normal, uniform, kick, drift, begins, ends, flags, *factor = tensors[2 * own + 4 :]
        flight, info = trajectories.turn(
            Flight(
                rebuild(now, self._like),
                momentum,
                rebuild(start, self._like),
                kinetic,
                gain,
                lost > 0,
            ),
            self._score,
            factor[0] if factor else None,
            Splitting(kick, drift),
            begins > 0,
            ends > 0,
            (normal, uniform),
            _options(flags, self._rule),
        )
        here, figures = flight.now, (flight.kinetic, flight.gain, flight.lost.to(kinetic))
        return [
            *flatten(here),
            flight.momentum,
            *flatten(flight.start),
            *figures,
            here.position,
            here.expansion.gradient,
            *_density(here, self._like),
            *info,
        ]


def _rest(first: list[Tensor], options: StepOptions, factor: Tensor | None) -> list[Tensor]:
    """List the tensors that are the same at every turn."""
    flags = [float(flag) for flag in options[:2]]
    like = first[0] if first else factor
    dtype = torch.get_default_dtype() if like is None else like.dtype
    device = None if like is None else like.device
    made = torch.tensor(flags, dtype=dtype, device=device)
    return [*first, made, *([] if factor is None else [factor.contiguous()])]


def _options(flags: Tensor, rule: Any) -> StepOptions:
    unadjusted, uphill = flags.unbind()
    return StepOptions(unadjusted > 0, uphill > 0, rule)


def _density(state: State, like: Expansion) -> list[Tensor]:
    return [state.expansion.log_density] if like.has_density else []  # pyright: ignore


def _check(plain: tuple[State, Trail], found: tuple[State, Trail]) -> None:
    """Compare a compiled first step with one not compiled."""

    def figures(made: tuple[State, Trail]) -> list[Tensor]:
        return [made[1].info.acceptance[0], made[0].position, made[0].expansion.gradient]

    same = (plain[1].info.accepted == found[1].info.accepted.bool())[0]
    check_alike(figures(found), figures(plain), same)
