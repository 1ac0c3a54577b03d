"""`schedule` puts operations that loop over the same entries together, and gives out buffers."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from ozaki.kernels.loops.lowering import Lowered
from ozaki.kernels.loops.values import Op, Sizes, Value, is_identity, squeezed

FUSED = ("point", "reduce", "gather")
Section = tuple[bool, bool]  # whether it differs between chains, and between steps


@dataclass
class Group:
    """Operations in one loop."""

    loop: Sizes
    fused: bool
    members: list[int] = field(default_factory=list)


@dataclass
class Schedule:
    """The order of computation.

    Attributes:
        groups: of each section.
        group_of: the section of an operation, and its group there.
        stored: operations whose results are kept in a buffer.
        slots: the buffer of an operation of a step of a chain, and the buffers' sizes and kinds.
    """

    groups: dict[Section, list[Group]]
    group_of: dict[int, tuple[Section, int]]
    stored: set[int]
    slots: dict[int, int]
    sizes: list[tuple[int, str]]


def loop_of(op: Op) -> Sizes:
    """Return what an operation loops over."""
    return op.args[0].shape if op.name == "reduce" else op.shape


def schedule(low: Lowered) -> Schedule:
    """Order what has to be computed."""
    ops = low.ops
    needed = _needed(ops, [*low.carry, *low.kept])
    groups: dict[Section, list[Group]] = {(c, s): [] for c in (False, True) for s in (False, True)}
    group_of: dict[int, tuple[Section, int]] = {}
    stored = {v.op for v in (*low.carry, *low.kept) if v.op >= 0}
    for i in sorted(needed):
        op = ops[i]
        if op.name == "input":
            continue
        section = op.chain, op.step
        here, loop = groups[section], squeezed(loop_of(op))
        fused = op.name in FUSED
        first = 0
        for v in op.args:
            if v.op < 0 or ops[v.op].name == "input":
                continue
            other, at = group_of[v.op]
            alike = other == section and here[at].fused and here[at].loop == loop
            if alike and _in_passing(op, v, ops[v.op]):
                first = max(first, at)
            elif other == section:
                first = max(first, at + 1)
        place = next(
            (
                g
                for g in range(first, len(here))
                if fused and here[g].fused and here[g].loop == loop
            ),
            len(here),
        )
        if place == len(here):
            here.append(Group(loop, fused))
        here[place].members.append(i)
        group_of[i] = section, place
    for i in needed:
        for v in ops[i].args:
            if v.op >= 0 and not (
                group_of.get(v.op) == group_of.get(i) and _in_passing(ops[i], v, ops[v.op])
            ):
                stored.add(v.op)
    slots, sizes = _slots(low, groups[True, True], stored, group_of)
    return Schedule(groups, group_of, stored, slots, sizes)


def _needed(ops: list[Op], roots: Iterable[Value]) -> set[int]:
    """Return the operations that something comes of."""
    found: set[int] = set()
    open_ = [v.op for v in roots]
    while open_:
        i = open_.pop()
        if i >= 0 and i not in found:
            found.add(i)
            open_ += [v.op for v in ops[i].args]
    return found


def _in_passing(op: Op, value: Value, giver: Op) -> bool:
    """Say whether an operation can take a value from the one before it in the same loop."""
    return (
        op.name in ("point", "reduce")
        and giver.name in ("point", "gather")
        and is_identity(value, giver.shape)
    )


def _slots(
    low: Lowered, groups: list[Group], stored: set[int], group_of: dict[int, tuple[Section, int]]
) -> tuple[dict[int, int], list[tuple[int, str]]]:
    """Give out buffers to the results of a chain's step, which are used anew when they are free."""
    last: dict[int, int] = {}
    for g, group in enumerate(groups):
        for i in group.members:
            for v in low.ops[i].args:
                last[v.op] = g
    for v in (*low.carry, *low.kept):
        last[v.op] = len(groups)
    slots: dict[int, int] = {}
    sizes: list[tuple[int, str]] = []
    free: list[int] = []
    for g, group in enumerate(groups):
        for i in group.members:
            if i not in stored:
                continue
            op = low.ops[i]
            want = math.prod(op.shape), op.kind
            same = [s for s in free if sizes[s] == want]
            if same:
                slots[i] = same[-1]
                free.remove(same[-1])
            else:
                slots[i] = len(sizes)
                sizes.append(want)
        free += [slots[i] for i in slots if last.get(i) == g]
    return slots, sizes
