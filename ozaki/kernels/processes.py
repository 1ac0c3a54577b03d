"""`Team` shares the chains of a run out over processes.

Every process draws the noise of all chains and walks its own chains. Then the processes tell one
another what their steps did. So all adapt alike, and any number of processes makes the same draws.
No other file of the kernels imports torch.distributed. The messages are small, and pass through the
host's memory.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ozaki.kernels import transition
from ozaki.kernels.transition import Info, State, Trail
from ozaki.linalg import SymmetricOperator

FIGURES = 7  # numbers that a chain's step has beside its position


class Team:
    """The processes that walk one batch of chains; this class is a single one, with all chains.

    Attributes:
        rank: which of them this is; the first shows the progress, warns and writes.
        size: how many there are.
    """

    rank, size = 0, 1

    @property
    def chief(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def walk(
        self, shape: torch.Size, own: Callable[[slice], tuple[State, Trail]]
    ) -> tuple[State, Trail]:
        """Take steps: of this process's chains by `own`, of the others by the other processes.

        Args:
            shape: (steps, chains, D).
            own: takes the place of some chains; returns their state and the steps they made.

        Returns:
            The state of this process's chains, and the steps of all.

        Raises:
            RuntimeError: another process could not.
        """
        return own(slice(None))

    def share(self, state: State) -> State:
        """Pick this process's chains from the state of all."""
        return state

    def gather(self, own: Callable[[slice], SymmetricOperator]) -> SymmetricOperator:
        """Collect the curvatures of all chains; `own` gives those of this process.

        Raises:
            RuntimeError: another process could not.
        """
        return own(slice(None))

    def require_equal(self, what: Mapping[str, Any], remedy: str) -> None:
        """Wait for all processes, and check that they were given the same values.

        Raises:
            ValueError: on every process, naming what differs.
        """

    def on_first(self, act: Callable[[], Any]) -> None:
        """Let the first process act, while the others wait for it.

        Raises:
            RuntimeError: on the other processes, where it failed; the first raises its own error.
        """
        act()

    def broadcast(self, value: Any) -> Any:
        """Send the value that the first process has to all."""
        return value


ALONE = Team()


class _Several(Team):
    """One of several processes, under torch.distributed."""

    def __init__(self, chains: int):
        if not dist.is_initialized():
            dist.init_process_group()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._group = _host_group()
        self.require_equal({"num_chains": chains}, "give all the same")
        if chains < self.size:
            raise ValueError(
                f"num_chains must be at least the number of processes, {self.size}, but was "
                f"{chains}; walk more chains, or start fewer processes"
            )
        each, more = divmod(chains, self.size)
        self._counts = [each + (r < more) for r in range(self.size)]
        begin = sum(self._counts[: self.rank])
        self._rows = slice(begin, begin + self._counts[self.rank])

    def walk(
        self, shape: torch.Size, own: Callable[[slice], tuple[State, Trail]]
    ) -> tuple[State, Trail]:
        """As of `Team`; a process that fails tells the others before it raises."""
        steps, _, dim = shape
        sizes = [1 + steps * count * (2 * dim + FIGURES) for count in self._counts]
        message = torch.zeros(max(sizes), dtype=torch.float64)
        try:
            state, trail = own(self._rows)
            packed = _pack(trail)
            message[: len(packed)] = packed
        except Exception:
            self._all(message)  # its leading zero says that this process failed
            raise
        heard = self._all(message)
        self._check(heard)
        parts = [
            _unpack(m[:size], steps, count, dim)
            for m, size, count in zip(heard, sizes, self._counts, strict=True)
        ]
        return state, _join(parts, trail)

    def share(self, state: State) -> State:
        """As of `Team`."""
        return transition.rows(state, self._rows)

    def gather(self, own: Callable[[slice], SymmetricOperator]) -> SymmetricOperator:
        """As of `Team`; a process that fails tells the others before it raises."""
        went_well = torch.ones(1)
        try:
            curvature = own(self._rows)
        except Exception:
            self._all(0 * went_well)
            raise
        self._check(self._all(went_well))
        found = []
        for t in curvature.tensors:
            padded = torch.zeros(max(self._counts), *t.shape[1:], dtype=torch.float64)
            padded[: len(t)] = t
            parts = [p[:n] for p, n in zip(self._all(padded), self._counts, strict=True)]
            found.append(torch.cat(parts).to(t))
        return curvature.rebuild(tuple(found))

    def require_equal(self, what: Mapping[str, Any], remedy: str) -> None:
        """As of `Team`."""
        heard: list[Any] = [None] * self.size
        with _heard():
            dist.all_gather_object(heard, dict(what), group=self._group)
        for rank, other in enumerate(heard):
            different = [
                f"{name} was {heard[0].get(name)!r} in process 0 and {other.get(name)!r} in "
                f"process {rank}"
                for name in sorted(heard[0].keys() | other.keys())
                if heard[0].get(name) != other.get(name)
            ]
            if different:
                raise ValueError(
                    f"all {self.size} processes must walk the same chains, but "
                    f"{'; '.join(different)}; {remedy}"
                )

    def on_first(self, act: Callable[[], Any]) -> None:
        """As of `Team`."""
        told: list[Any] = [None]
        failure: BaseException | None = None
        if self.chief:
            try:
                act()
            except Exception as error:
                failure, told = error, [f"{type(error).__name__}: {error}"]
        with _heard():
            dist.broadcast_object_list(told, src=0, group=self._group)
        if failure is not None:
            raise failure
        if told[0] is not None:
            raise RuntimeError(f"process 0 stopped the run: {told[0]}")

    def broadcast(self, value: Any) -> Any:
        """As of `Team`."""
        found = [value]
        with _heard():
            dist.broadcast_object_list(found, src=0, group=self._group)
        return found[0]

    def _all(self, message: Tensor) -> list[Tensor]:
        heard = [torch.empty_like(message) for _ in range(self.size)]
        with _heard():
            dist.all_gather(heard, message, group=self._group)
        return heard

    def _check(self, heard: list[Tensor]) -> None:
        if failed := [rank for rank, message in enumerate(heard) if not bool(message[0])]:
            raise RuntimeError(
                f"process {failed[0]} could not walk its chains, which ended the run; its own "
                "error says why"
            )


def team(chains: int) -> Team:
    """Return the processes that `torchrun` started; this one by itself where it started none.

    Args:
        chains: how many are to be shared out.

    Raises:
        ValueError: fewer chains than processes.
    """
    several = dist.is_available() and (
        dist.get_world_size() > 1
        if dist.is_initialized()
        else int(os.environ.get("WORLD_SIZE", 1)) > 1
    )
    return _Several(chains) if several else ALONE


_groups: list[tuple[Any, Any]] = []


def _host_group() -> Any:
    """Return the group that passes messages through the host's memory; it is made once."""
    world = dist.group.WORLD
    for known, group in _groups:
        if known is world:
            return group
    group = dist.new_group(backend="gloo")
    _groups.append((world, group))
    return group


@contextmanager
def _heard() -> Iterator[None]:
    """Turn an error of torch.distributed into one that says what happened."""
    try:
        yield
    except RuntimeError as error:  # a closed connection, or too long a silence
        raise RuntimeError(
            "another process has ended or does not answer, which ended the run; its own error says "
            f"why ({error})"
        ) from error


def _pack(trail: Trail) -> Tensor:
    """Pack steps into (1 + steps × chains × (2 D + 7)); the first number says all is well."""
    info = trail.info
    zero = torch.zeros_like(info.acceptance)
    density = zero if trail.log_density is None else trail.log_density
    flags = (info.accepted, info.diverging, info.broken)
    figures = (density, info.acceptance, *flags, info.modified, info.rise)
    gradient = torch.zeros_like(trail.position) if trail.gradient is None else trail.gradient
    wide = [trail.position, gradient, *(f.unsqueeze(-1) for f in figures)]
    each = torch.cat([part.double().cpu() for part in wide], -1)
    went_well = torch.ones(1, dtype=torch.float64)
    return torch.cat([went_well, each.flatten()])


def _unpack(message: Tensor, steps: int, chains: int, dim: int) -> Tensor:
    """Unpack a message: the steps, (steps, chains, 2 D + 7)."""
    return message[1:].reshape(steps, chains, 2 * dim + FIGURES)


def _join(parts: list[Tensor], like: Trail) -> Trail:
    """Join the processes' steps into those of all chains, in the dtypes of `like`."""
    each = torch.cat(parts, 1)
    position, gradient = each[..., :-FIGURES].chunk(2, -1)
    figures = each[..., -FIGURES:].unbind(-1)
    density, acceptance, accepted, diverging, broken, modified, rise = figures
    info = like.info
    return Trail(
        position.to(like.position),
        None if like.log_density is None else density.to(like.log_density),
        Info(
            acceptance=acceptance.to(info.acceptance),
            accepted=accepted.to(info.accepted),
            diverging=diverging.to(info.diverging),
            broken=broken.to(info.broken),
            modified=modified.to(info.modified),
            rise=rise.to(info.rise),
        ),
        None if like.gradient is None else gradient.to(like.gradient),
    )
