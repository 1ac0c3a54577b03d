"""`Builder` gathers the operations that a step is lowered to."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from ozaki.kernels.loops.merging import swapped
from ozaki.kernels.loops.values import (
    Op,
    PerChain,
    Sizes,
    Unsupported,
    Value,
    broadcast,
    contiguous,
    without,
)

KINDS = {
    torch.bool: "bool",
    **dict.fromkeys((torch.int64, torch.int32, torch.uint8), "int"),
    **dict.fromkeys((torch.float64, torch.float32), "float"),
}


class Builder:
    """Adds operations, each of them once, and shows views of what they give.

    Args:
        chains: how many chains there are.
    """

    def __init__(self, chains: int):
        self.chains = chains
        self.ops: list[Op] = []
        self._known: dict[Any, int] = {}

    def add(
        self,
        name: str,
        args: Sequence[Value],
        shape: Sizes,
        axis: int | None,
        kind: str,
        how: tuple[Any, ...] = (),
    ) -> Value:
        """Add an operation, or find the same one."""
        key = name, tuple(args), shape, kind, how
        if key not in self._known:
            parts = [self.ops[v.op] for v in args if v.op >= 0]
            chain, step = any(p.chain for p in parts), any(p.step for p in parts)
            if chain and kind == "int":
                raise Unsupported("whole numbers of each chain")
            inputs = set().union(*(p.inputs for p in parts))
            self.ops.append(Op(name, tuple(args), shape, kind, chain, step, how, inputs))
            self._known[key] = len(self.ops) - 1
        return Value(self._known[key], shape, contiguous(shape), 0, axis, kind)

    def point(self, how: str, args: Sequence[Value], kind: str) -> Value:
        """Add an operation entry by entry; along axes where nothing changes it is done once."""
        args = broadcast(args, self.chains, self.ops)
        shape = args[0].shape
        once = [i for i in range(len(shape)) if all(a.strides[i] == 0 for a in args)]
        small = tuple(1 if i in once else n for i, n in enumerate(shape))
        found = self.add(
            "point", [replace(a, shape=small) for a in args], small, args[0].axis, kind, (how,)
        )
        strides = tuple(0 if i in once else s for i, s in enumerate(found.strides))
        return replace(found, shape=shape, strides=strides)

    @staticmethod
    def kind(node: Node) -> str:
        """Return the kind of what a node gives."""
        return KINDS[node.meta["val"].dtype]

    @staticmethod
    def number(what: Any, shape: Sizes, kind: str) -> Value:
        """Return a value that is one number everywhere."""
        return number(what, shape, kind)

    @staticmethod
    def pick(value: Value, order: Sequence[int]) -> Value:
        """Put axes of the full shape in another order, or leave some out."""
        return pick(value, order)

    @staticmethod
    def drop(value: Value, axes: Sequence[int]) -> Value:
        """Leave out axes of one entry."""
        return drop(value, axes)

    @staticmethod
    def swap(value: Value) -> Value:
        """Exchange the last two axes."""
        return pick(value, swapped(value))

    def whole(self, x: Value, use: str = "") -> Value:
        """Copy a view to where it lies contiguous, for this use alone."""
        return self.add("point", [x], x.shape, x.axis, x.kind, ("{0}", use))

    def total(self, x: Value) -> Value:
        """Sum over the last axis."""
        return drop(self.reduced(x, "sum"), [x.rank - 1])

    def reduced(self, x: Value, how: str) -> Value:
        """Reduce over the last axis, which stays with one entry."""
        return self.reduce_(x, (*x.shape[:-1], 1), (len(x.shape) - 1,), x.kind, how)

    def iota(self, count: int, shape: Sizes) -> Value:
        """Return 0, 1, … along the axis of that many entries."""
        found = self.add("point", [], (count,), None, "int", ("i0",))
        return replace(found, shape=shape, strides=tuple(int(n == count) for n in shape))

    def spread(self, x: Value, what: Value, place: Callable[[Value], Value]) -> tuple[Value, Value]:
        """Give what is the same in all chains an axis of chains, where a part of it has one."""
        if x.axis is not None or self.chains == 1:
            return x, what
        for axis, size in enumerate(x.shape):
            if size != self.chains or x.strides[axis] != 0:
                continue
            found = with_axis(x, axis)
            part = place(replace(found, op=-2))
            if part.axis is None:
                continue
            other = part.axis - part.rank + what.rank
            if what.axis == other and what.axis is not None:
                return found, what
            if what.axis is None and other >= 0 and what.strides[other] == 0:
                return found, with_axis(what, other)
            if what.axis is None and other < 0:
                return found, what
        if what.axis is not None:
            raise Unsupported("values of each chain in what they share")
        return x, what

    def aligned(self, parts: list[Value]) -> list[Value]:
        """Give all parts of one tensor the axis of chains that some have."""
        places = {p.axis for p in parts if p.axis is not None}
        if len(places) != 1:
            if places:
                raise Unsupported("chains along two axes")
            return parts
        axis, found = places.pop(), []
        for part in parts:
            if part.axis is None and part.strides[axis] != 0:
                raise PerChain(self.ops[part.op].inputs, axis - part.rank)
            found.append(part if part.axis is not None else with_axis(part, axis))
        return found

    def copied(self, value: Value) -> Value:
        """Return a value that is no input."""
        if value.op >= 0 and self.ops[value.op].name == "input":
            return self.point("{0}", [value], value.kind)
        return value

    def cast(self, value: Value, kind: str) -> Value:
        """Return a value as another kind."""
        if value.kind == kind:
            return value
        if value.op < 0:
            made = {"float": float, "int": int, "bool": bool}[kind]
            return replace(value, number=made(value.number), kind=kind)
        if kind == "float":
            how = "asfloat({0})"
        elif kind == "bool":
            how = "({0} != zero({0}))"
        else:
            how = "asint({0})"
        return self.point(how, [value], kind)

    def reduce_(self, x: Value, out: Sizes, own: Sizes, kind: str, how: str) -> Value:
        """Add a reduction; along axes where nothing changes it is done once."""
        once = [i for i, s in enumerate(x.strides) if s == 0 and i not in own]
        small = tuple(1 if i in once else n for i, n in enumerate(out))
        sizes = tuple(1 if i in once else n for i, n in enumerate(x.shape))
        found = self.add("reduce", [replace(x, shape=sizes)], small, x.axis, kind, (how, own))
        strides = tuple(0 if i in once else s for i, s in enumerate(found.strides))
        return replace(found, shape=out, strides=strides)


def number(what: Any, shape: Sizes, kind: str) -> Value:
    """Return a value that is one number everywhere."""
    made = {"float": float, "int": int, "bool": bool}[kind]
    return Value(-1, shape, (0,) * len(shape), 0, None, kind, made(what))


def with_axis(value: Value, axis: int) -> Value:
    """Take an axis along which nothing changes for that of the chains."""
    return replace(
        value, shape=without(value.shape, axis), strides=without(value.strides, axis), axis=axis
    )


def drop(value: Value, axes: Sequence[int]) -> Value:
    """Leave out axes of one entry, which are counted in the full shape."""
    if value.axis in axes:
        raise Unsupported("the axis of chains squeezed")
    keep = [i for i in range(value.rank) if i not in axes]
    return pick(value, keep)


def pick(value: Value, order: Sequence[int]) -> Value:
    """Put axes of the full shape in another order, or leave some out."""
    own = [i for i in order if i != value.axis]
    places = [i - (value.axis is not None and i > value.axis) for i in own]
    axis = None if value.axis is None else list(order).index(value.axis)
    return replace(
        value,
        shape=tuple(value.shape[p] for p in places),
        strides=tuple(value.strides[p] for p in places),
        axis=axis,
    )
