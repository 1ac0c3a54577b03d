"""Values of a step: what each chain holds, as strided views of the results of operations.

A traced step works on all chains at once. Here the axis of the chains is taken out of every shape,
so that one chain's numbers are left, and what is the same for all chains is told apart.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Sizes = tuple[int, ...]


class Unsupported(Exception):
    """A graph holds something that no loop of our own can be written for."""


class PerChain(Exception):
    """An input that was taken for the same in all chains has an entry for each of them."""

    def __init__(self, inputs: set[int], place: int):
        super().__init__(inputs, place)
        self.inputs, self.place = inputs, place  # the axis of the chains, from the right


@dataclass(frozen=True)
class Value:
    """A view of what an operation gave.

    Attributes:
        op: the operation's number; −1 for a number that is written into the code.
        shape, strides, offset: the view, without the axis of the chains.
        axis: where that axis stands in the full shape; None where all chains share the value.
        kind: "float", "bool" or "int".
        number: what is written into the code.
        around: how many axes before and after that of the chains are shown as one with it.
    """

    op: int
    shape: Sizes
    strides: Sizes
    offset: int = 0
    axis: int | None = None
    kind: str = "float"
    number: Any = None
    around: Sizes = (0, 0)

    @property
    def rank(self) -> int:
        """How many axes the full shape has."""
        return len(self.shape) + (self.axis is not None)

    def full(self, chains: int) -> Sizes:
        """Return the shape with the axis of the chains."""
        if self.axis is None:
            return self.shape
        return (*self.shape[: self.axis], chains, *self.shape[self.axis :])


@dataclass
class Op:
    """An operation on one chain, or on what all chains share.

    Attributes:
        name: "input", "point", "reduce", "dot", "gather", "assemble" or "scan".
        args: each broadcast to the shape that is looped over.
        shape: of the result, which is contiguous.
        kind: of the result.
        chain, step: whether it differs between chains, and between steps.
        how: the expression, the reduction, or what else the name needs.
    """

    name: str
    args: tuple[Value, ...]
    shape: Sizes
    kind: str
    chain: bool
    step: bool
    how: tuple[Any, ...] = ()
    inputs: set[int] = field(default_factory=set)  # that are taken for the same in all chains


def contiguous(shape: Sequence[int]) -> Sizes:
    """Return the strides of a contiguous tensor."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def is_identity(value: Value, shape: Sizes) -> bool:
    """Say whether a view shows a contiguous result of that shape entry by entry."""
    wanted = contiguous(value.shape)
    return (
        value.offset == 0
        and squeezed(value.shape) == squeezed(shape)
        and all(
            s == w for s, w, n in zip(value.strides, wanted, value.shape, strict=True) if n != 1
        )
    )


def squeezed(shape: Iterable[int]) -> Sizes:
    """Leave out axes of one entry."""
    return tuple(n for n in shape if n != 1)


def view_strides(shape: Sizes, strides: Sizes, new: Sizes) -> Sizes | None:
    """Return the strides of a view of another shape, or None where it takes a copy."""
    if math.prod(shape) == 0:
        raise Unsupported("empty tensors")
    old = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    found: list[int] = []
    axis = len(new) - 1
    while old:
        # gather axes that lie one in the other
        count, step = old.pop()
        block = count
        while old and old[-1][1] == block * step:
            block *= old.pop()[0]
        left, stride = block, step
        while axis >= 0 and (left > 1 or new[axis] == 1):
            if left % new[axis]:
                return None
            found.append(stride)
            left //= new[axis]
            stride *= new[axis]
            axis -= 1
        if left != 1:
            return None
    found += [1] * (axis + 1)
    return tuple(reversed(found))


def moved_axis(value: Value, chains: int, new: Sizes) -> int | None:
    """Return where the axis of the chains stands after a view, or None where it is split."""
    assert value.axis is not None
    before, after = value.shape[: value.axis], value.shape[value.axis :]
    for axis, size in enumerate(new):
        if (
            size == chains
            and math.prod(new[:axis]) == math.prod(before)
            and math.prod(new[axis + 1 :]) == math.prod(after)
        ):
            return axis
    return None


def without(shape: Sequence[int], axis: int | None) -> Sizes:
    """Leave out one axis."""
    return tuple(n for i, n in enumerate(shape) if i != axis)


def broadcast(values: Sequence[Value], chains: int, ops: Sequence[Op]) -> list[Value]:
    """Broadcast views to one shape, the axis of the chains at one place.

    Raises:
        Unsupported: chains lie along two axes.
        PerChain: a value that all chains should share has an entry for each.
    """
    rank = max(v.rank for v in values)
    places = {v.axis - v.rank for v in values if v.axis is not None}
    if len(places) > 1:
        raise Unsupported("chains along two axes")
    axis = rank + places.pop() if places else None
    sizes = [1] * rank
    for value in values:
        full = value.full(chains)
        for i, n in enumerate(full):
            at = i + rank - value.rank
            sizes[at] = n if sizes[at] == 1 else sizes[at]
    found: list[Value] = []
    for value in values:
        lead = rank - value.rank
        strides = [0] * rank
        own = list(value.strides)
        if value.axis is not None:
            own.insert(value.axis, 0)
        for i, n in enumerate(value.full(chains)):
            strides[lead + i] = own[i] if n != 1 else 0
        if value.axis is None and axis is not None and strides[axis] != 0:
            raise PerChain(ops[value.op].inputs, axis - rank)
        shape = without(sizes, axis)
        found.append(replace(value, shape=shape, strides=without(strides, axis), axis=axis))
    return found
