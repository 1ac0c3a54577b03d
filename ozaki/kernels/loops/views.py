"""Views: how what is only looked at otherwise is lowered.

Each takes the builder, the node and its arguments.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch.fx import Node

from ozaki.kernels.loops.builder import Builder
from ozaki.kernels.loops.merging import merged_view
from ozaki.kernels.loops.values import Sizes, Unsupported, Value, moved_axis, view_strides, without


def same(low: Builder, node: Node, x: Value, *_: Any, **__: Any) -> Value:
    """Hand a value on."""
    return x


def view(low: Builder, node: Node, x: Value, *_: Any) -> Value:
    """View a value with another shape; copy it where that takes a copy."""
    new = tuple(node.meta["val"].shape)
    axis = None
    if x.op < 0:
        return replace(x, shape=new, strides=(0,) * len(new))
    if x.axis is not None:
        x = replace(x, around=(0, 0))
        axis = moved_axis(x, low.chains, new)
        if axis is None:
            merged = merged_view(x, low.chains, new) or merged_view(low.whole(x), low.chains, new)
            if merged is None:
                raise Unsupported("a view that splits the axis of chains")
            return merged
    shape = without(new, axis)
    strides = view_strides(x.shape, x.strides, shape)
    if strides is None:
        x = low.whole(x)
        strides = view_strides(x.shape, x.strides, shape)
        assert strides is not None
    return replace(x, shape=shape, strides=strides, axis=axis)


def permute(low: Builder, node: Node, x: Value, order: Sequence[int]) -> Value:
    """Put axes in another order."""
    return low.pick(x, [i % x.rank for i in order])


def transpose(low: Builder, node: Node, x: Value, a: int, b: int) -> Value:
    """Exchange two axes."""
    order = list(range(x.rank))
    order[a], order[b] = order[b], order[a]
    return low.pick(x, order)


def unsqueeze(low: Builder, node: Node, x: Value, at: int) -> Value:
    """Add an axis of one entry."""
    at %= x.rank + 1
    if x.axis is not None and at <= x.axis:
        return replace(
            x, shape=_put(x.shape, at, 1), strides=_put(x.strides, at, 0), axis=x.axis + 1
        )
    own = at - (x.axis is not None)
    return replace(x, shape=_put(x.shape, own, 1), strides=_put(x.strides, own, 0))


def _put(sizes: Sizes, at: int, what: int) -> Sizes:
    return (*sizes[:at], what, *sizes[at:])


def squeeze(low: Builder, node: Node, x: Value, dims: Any = None) -> Value:
    """Leave out axes of one entry."""
    sizes = x.full(low.chains)
    dims = range(x.rank) if dims is None else [dims] if isinstance(dims, int) else dims
    axes = [d % x.rank for d in dims]
    return low.drop(x, [d for d in axes if sizes[d] == 1 and d != x.axis])


def expand(low: Builder, node: Node, x: Value, *_: Any, **__: Any) -> Value:
    """Repeat entries along axes of one."""
    new = tuple(node.meta["val"].shape)
    if x.around != (0, 0):
        if math.prod(new) != math.prod(x.full(low.chains)):
            raise Unsupported("merged axes expanded")
        return x
    lead = len(new) - x.rank
    axis = None if x.axis is None else x.axis + lead
    own, strides = list(x.shape), list(x.strides)
    if x.axis is not None:
        own.insert(x.axis, low.chains)
        strides.insert(x.axis, 0)
    full = [0] * lead + [s if n != 1 else 0 for n, s in zip(own, strides, strict=True)]
    return replace(x, shape=without(new, axis), strides=without(full, axis), axis=axis)


def own_axis(x: Value, dim: int) -> int:
    """Return the place of an axis among those that are not the chains'."""
    dim %= x.rank
    if dim == x.axis:
        raise Unsupported("a part of the chains")
    return dim - (x.axis is not None and dim > x.axis)


def select(low: Builder, node: Node, x: Value, dim: int, index: int) -> Value:
    """Take one entry along an axis."""
    own = own_axis(x, dim)
    index += x.shape[own] if index < 0 else 0
    found = replace(x, offset=x.offset + index * x.strides[own])
    return low.drop(found, [dim % x.rank])


def slice_(
    low: Builder,
    node: Node,
    x: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    """Take entries at equal distances along an axis."""
    sizes = x.full(low.chains)
    size = sizes[dim % x.rank]
    first, last, step = slice(start, end, step).indices(size)
    if (first, last, step) == (0, size, 1):
        return x
    own = own_axis(x, dim)
    return _sliced(x, own, first, len(range(first, last, step)), step)


def _sliced(x: Value, own: int, first: int, count: int, step: int) -> Value:
    shape, strides = list(x.shape), list(x.strides)
    offset = x.offset + first * strides[own]
    shape[own], strides[own] = count, strides[own] * step
    return replace(x, shape=tuple(shape), strides=tuple(strides), offset=offset)


def flip(low: Builder, node: Node, x: Value, dims: Sequence[int]) -> Value:
    """Turn the order along axes round."""
    for dim in dims:
        own = own_axis(x, dim)
        x = _sliced(x, own, x.shape[own] - 1, x.shape[own], -1)
    return x


def split(low: Builder, node: Node, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    """Cut along an axis."""
    own = own_axis(x, dim)
    if isinstance(sizes, int):
        whole = x.shape[own]
        sizes = [min(sizes, whole - i) for i in range(0, whole, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [_sliced(x, own, first, n, 1) for first, n in zip(starts, sizes, strict=True)]


def unbind(low: Builder, node: Node, x: Value, dim: int = 0) -> list[Value]:
    """Take all entries along an axis."""
    return [select(low, node, x, dim, i) for i in range(x.shape[own_axis(x, dim)])]


def diagonal(low: Builder, node: Node, x: Value, offset: int = 0, a: int = 0, b: int = 1) -> Value:
    """View the diagonal of matrices."""
    if offset or (x.axis is not None and x.axis in (a % x.rank, b % x.rank)):
        raise Unsupported("an offset diagonal")
    a, b = a % x.rank, b % x.rank
    p, q = own_axis(x, a), own_axis(x, b)
    size, stride = min(x.shape[p], x.shape[q]), x.strides[p] + x.strides[q]
    found = low.drop(x, [a, b])
    return replace(found, shape=(*found.shape, size), strides=(*found.strides, stride))
