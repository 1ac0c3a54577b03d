"""`RULES`: how views, products and scatters of a graph are lowered."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ozaki.kernels.loops.merging import merged_view
from ozaki.kernels.loops.values import (
    Sizes,
    Unsupported,
    Value,
    broadcast,
    contiguous,
    moved_axis,
    view_strides,
    without,
)

LARGEST = 32  # rows of a matrix whose eigenvalues are found by rotations


def same(low: Any, node: Any, x: Value, *_: Any, **__: Any) -> Value:
    return x


def view(low: Any, node: Any, x: Value, *_: Any) -> Value:
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


def permute(low: Any, node: Any, x: Value, order: Sequence[int]) -> Value:
    return low.pick(x, [i % x.rank for i in order])


def transpose(low: Any, node: Any, x: Value, a: int, b: int) -> Value:
    order = list(range(x.rank))
    order[a], order[b] = order[b], order[a]
    return low.pick(x, order)


def unsqueeze(low: Any, node: Any, x: Value, at: int) -> Value:
    at %= x.rank + 1
    if x.axis is not None and at <= x.axis:
        return replace(
            x, shape=_put(x.shape, at, 1), strides=_put(x.strides, at, 0), axis=x.axis + 1
        )
    own = at - (x.axis is not None)
    return replace(x, shape=_put(x.shape, own, 1), strides=_put(x.strides, own, 0))


def _put(sizes: Sizes, at: int, what: int) -> Sizes:
    return (*sizes[:at], what, *sizes[at:])


def squeeze(low: Any, node: Any, x: Value, dims: Any = None) -> Value:
    sizes = x.full(low.chains)
    dims = range(x.rank) if dims is None else [dims] if isinstance(dims, int) else dims
    axes = [d % x.rank for d in dims]
    return low.drop(x, [d for d in axes if sizes[d] == 1 and d != x.axis])


def expand(low: Any, node: Any, x: Value, *_: Any, **__: Any) -> Value:
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


def _own(x: Value, dim: int) -> int:
    """Return the place of an axis among those that are not the chains'."""
    dim %= x.rank
    if dim == x.axis:
        raise Unsupported("a part of the chains")
    return dim - (x.axis is not None and dim > x.axis)


def select(low: Any, node: Any, x: Value, dim: int, index: int) -> Value:
    own = _own(x, dim)
    index += x.shape[own] if index < 0 else 0
    found = replace(x, offset=x.offset + index * x.strides[own])
    return low.drop(found, [dim % x.rank])


def slice_(
    low: Any, node: Any, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Value:
    sizes = x.full(low.chains)
    size = sizes[dim % x.rank]
    first, last, step = slice(start, end, step).indices(size)
    if (first, last, step) == (0, size, 1):
        return x
    own = _own(x, dim)
    return _sliced(x, own, first, len(range(first, last, step)), step)


def _sliced(x: Value, own: int, first: int, count: int, step: int) -> Value:
    shape, strides = list(x.shape), list(x.strides)
    offset = x.offset + first * strides[own]
    shape[own], strides[own] = count, strides[own] * step
    return replace(x, shape=tuple(shape), strides=tuple(strides), offset=offset)


def split(low: Any, node: Any, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    own = _own(x, dim)
    if isinstance(sizes, int):
        whole = x.shape[own]
        sizes = [min(sizes, whole - i) for i in range(0, whole, sizes)]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [_sliced(x, own, first, n, 1) for first, n in zip(starts, sizes, strict=True)]


def unbind(low: Any, node: Any, x: Value, dim: int = 0) -> list[Value]:
    return [select(low, node, x, dim, i) for i in range(x.shape[_own(x, dim)])]


def diagonal(low: Any, node: Any, x: Value, offset: int = 0, a: int = 0, b: int = 1) -> Value:
    if offset or (x.axis is not None and x.axis in (a % x.rank, b % x.rank)):
        raise Unsupported("an offset diagonal")
    a, b = a % x.rank, b % x.rank
    p, q = _own(x, a), _own(x, b)
    size, stride = min(x.shape[p], x.shape[q]), x.strides[p] + x.strides[q]
    found = low.drop(x, [a, b])
    return replace(found, shape=(*found.shape, size), strides=(*found.strides, stride))


def to_copy(low: Any, node: Any, x: Any, **_: Any) -> Value:
    if not isinstance(x, Value):
        return low.number(x, (), low.kind(node))
    return low.cast(x, low.kind(node))


def clamp(low: Any, node: Any, x: Value, least: Any = None, most: Any = None) -> Value:
    kind = low.kind(node)
    for how, bound in (("max_({0}, {1})", least), ("min_({0}, {1})", most)):
        if bound is not None:
            bound = bound if isinstance(bound, Value) else low.number(bound, (), kind)
            x = low.point(how, [low.cast(x, kind), low.cast(bound, kind)], kind)
    return x


def rsub(low: Any, node: Any, x: Value, other: Any, alpha: Any = 1) -> Value:
    if alpha != 1:
        raise Unsupported("alpha")
    kind = low.kind(node)
    other = other if isinstance(other, Value) else low.number(other, (), kind)
    return low.point("({1} - {0})", [low.cast(x, kind), low.cast(other, kind)], kind)


def arange(low: Any, node: Any, start: Any, end: Any = None, step: Any = 1, **_: Any) -> Value:
    kind, shape = low.kind(node), tuple(node.meta["val"].shape)
    how = f"({start!r} + {step!r} * i0)"
    if shape == (1,):
        return low.number(start, shape, kind)
    return low.add("point", [], shape, None, kind, (how,))


def mm(low: Any, node: Any, a: Value, b: Value) -> Value:
    """Sum a product over the last axis of a, and the last but one of b, both broadcast."""
    flat = len(node.meta["val"].shape) == 2
    if flat and a.axis is not None and b.axis is not None:
        raise Unsupported("a product over chains")
    inner = node.args[-1].meta["val"].shape[-2]
    b = low.pick(b, [*range(1, b.rank), 0]) if flat else low.swap(b)
    rows, columns = (a.rank - 1, b.rank - 1) if flat else (1, 1)
    left, right = a, b
    for _ in range(columns):
        left = unsqueeze(low, node, left, left.rank - 1)  # (…, i, 1, k)
    for _ in range(rows):
        right = unsqueeze(low, node, right, right.rank - 1 - columns)  # (…, 1, j, k)
    if any(v.full(low.chains)[-1] != inner or v.axis == v.rank - 1 for v in (left, right)):
        raise Unsupported("a product over chains")
    if left.op < 0 or right.op < 0:
        return low.total(low.point("({0} * {1})", [left, right], "float"))
    one, other = broadcast([left, right], low.chains, low.ops)
    shape, strides = one.shape[:-1], zip(one.strides[:-1], other.strides[:-1], strict=True)
    once = [i for i, (p, q) in enumerate(strides) if p == q == 0]
    small = tuple(1 if i in once else n for i, n in enumerate(shape))
    full = (*small, one.shape[-1])
    args = [replace(one, shape=full), replace(other, shape=full)]
    found = low.add("dot", args, small, one.axis, "float")
    made = tuple(0 if i in once else s for i, s in enumerate(contiguous(small)))
    return replace(found, shape=shape, strides=made)


def addmm(
    low: Any, node: Any, c: Value, a: Value, b: Value, beta: Any = 1, alpha: Any = 1
) -> Value:
    if beta != 1 or alpha != 1:
        raise Unsupported("alpha")
    return low.point("({0} + {1})", [c, mm(low, node, a, b)], "float")


def index(low: Any, node: Any, x: Value, places: list[Value | None]) -> Value:
    """x[:, …, index, …]: one index, the same for all chains."""
    dims = [i for i, p in enumerate(places) if p is not None]
    if len(dims) != 1:
        raise Unsupported("several indices")
    dim, place = dims[0], places[dims[0]]
    assert place is not None
    if place.axis is not None or place.kind != "int" or place.op < 0:
        raise Unsupported("an index of each chain")
    own = _own(x, dim)
    size, stride = x.shape[own], x.strides[own]
    n = len(place.shape)
    shape = (*x.shape[:own], *place.shape, *x.shape[own + 1 :])
    rest = (*x.strides[:own], *(0,) * n, *x.strides[own + 1 :])
    before, after = own, len(x.shape) - own - 1
    where = replace(
        place, shape=shape, strides=(*(0,) * before, *place.strides, *(0,) * after), axis=None
    )
    axis = x.axis if x.axis is None or x.axis < dim else x.axis + n - 1
    args = [replace(x, shape=shape, strides=rest, axis=axis), where]
    return low.add("gather", args, shape, axis, x.kind, (size, stride))


def index_put(
    low: Any, node: Any, x: Value, places: list[Value | None], what: Value, accumulate: bool = False
) -> Value:
    dims = [i for i, p in enumerate(places) if p is not None]
    if len(dims) != 1:
        raise Unsupported("several indices")
    dim, place = dims[0], places[dims[0]]
    assert place is not None
    if place.axis is not None or place.kind != "int" or place.op < 0:
        raise Unsupported("an index of each chain")
    n = len(place.shape)

    def taken(w: Value) -> Value:
        own = _own(w, dim)
        axis = w.axis if w.axis is None or w.axis < dim else w.axis + n - 1
        shape = (*w.shape[:own], *place.shape, *w.shape[own + 1 :])
        return replace(w, shape=shape, strides=(0,) * len(shape), axis=axis)

    x, what = low.spread(x, what, taken)
    own = _own(x, dim)
    strides = contiguous(x.shape)
    shape = (*x.shape[:own], *place.shape, *x.shape[own + 1 :])
    target = (*strides[:own], *(0,) * n, *strides[own + 1 :])
    after = len(x.shape) - own - 1
    where = replace(place, shape=shape, strides=(*(0,) * own, *place.strides, *(0,) * after))
    like = replace(taken(x), op=-1)
    axis, given = like.axis, broadcast([what, like], low.chains, low.ops)[0]
    if given.shape != shape or given.axis not in (None, axis):
        raise Unsupported("values of another shape")
    writes = ((strides, 0, None), (target, 0, (x.shape[own], strides[own], accumulate)))
    return low.add("assemble", [x, given, where], x.shape, x.axis, x.kind, writes)


def cat(low: Any, node: Any, parts: list[Value], dim: int = 0) -> Value:
    parts = [p for p in parts if 0 not in p.shape]
    kind = low.kind(node)
    parts = low.aligned([low.cast(p, kind) for p in parts])
    own, axis = _own(parts[0], dim), parts[0].axis
    total = sum(p.shape[own] for p in parts)
    shape = tuple(total if i == own else n for i, n in enumerate(parts[0].shape))
    strides, at, writes = contiguous(shape), 0, []
    for part in parts:
        writes.append((strides, at * strides[own], None))
        at += part.shape[own]
    return low.add("assemble", parts, shape, axis, kind, tuple(writes))


def _overwrite(low: Any, x: Value, what: Value, place: Any) -> Value:
    """Copy x, and write `what` into the part of it that `place` shows."""
    x, what = low.spread(x, what, place)
    whole = replace(x, op=-2, strides=contiguous(x.shape), offset=0)
    part = place(whole)
    given = broadcast(
        [what, replace(part, op=-1, strides=(0,) * len(part.shape))], low.chains, low.ops
    )[0]
    writes = ((whole.strides, 0, None), (part.strides, part.offset, None))
    return low.add("assemble", [x, low.cast(given, x.kind)], x.shape, x.axis, x.kind, writes)


def diagonal_scatter(
    low: Any, node: Any, x: Value, what: Value, offset: int = 0, a: int = 0, b: int = 1
) -> Value:
    return _overwrite(low, x, what, lambda w: diagonal(low, node, w, offset, a, b))


def select_scatter(low: Any, node: Any, x: Value, what: Value, dim: int, at: int) -> Value:
    return _overwrite(low, x, what, lambda w: select(low, node, w, dim, at))


def slice_scatter(
    low: Any,
    node: Any,
    x: Value,
    what: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    return _overwrite(low, x, what, lambda w: slice_(low, node, w, dim, start, end, step))


def cumsum(low: Any, node: Any, x: Value, dim: int, **_: Any) -> Value:
    x = low.cast(x, "float")
    return low.add("scan", [x], x.shape, x.axis, "float", (_own(x, dim),))


def cholesky(low: Any, node: Any, x: Value, upper: bool = False, **_: Any) -> list[Value]:
    """Return the factor, and whether there is none instead of where it failed."""
    if x.axis is not None and x.axis >= x.rank - 2:
        raise Unsupported("a matrix over chains")
    x = low.whole(low.swap(x) if upper else x)
    found = low.add("cholesky", [x], x.shape, x.axis, "float")
    pivots = diagonal(low, node, found, 0, -2, -1)
    wrong = low.point("not_({0} > zero({0}))", [pivots], "bool")
    failed = low.drop(low.reduced(wrong, "any"), [wrong.rank - 1])
    return [low.swap(found) if upper else found, failed]


def solve(
    low: Any,
    node: Any,
    a: Value,
    b: Value,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> Value:
    if not left:
        # x a = b, transposed
        a, b, upper = low.swap(a), low.swap(b), not upper
    if (a.axis is not None and a.axis >= a.rank - 2) or (
        b.axis is not None and b.axis >= b.rank - 2
    ):
        raise Unsupported("a matrix over chains")
    n, columns = a.shape[-1], b.shape[-1]
    # batches broadcast: an entry of each stands for its matrix
    lead = [low.pick(v, range(v.rank - 2)) for v in (a, b)]
    one, other = broadcast(lead, low.chains, low.ops)
    shape = (*one.shape, n, columns)
    left_, right = (
        replace(
            v, shape=(*w.shape, *v.shape[-2:]), strides=(*w.strides, *v.strides[-2:]), axis=one.axis
        )
        for v, w in ((a, one), (b, other))
    )
    args = [right, left_]
    found = low.add("solve", args, shape, one.axis, "float", (upper, unitriangular))
    return found if left else low.swap(found)


def eigh(low: Any, node: Any, x: Value, uplo: str = "L", vectors: bool = True) -> list[Value]:
    """Return values and vectors; both halves of a matrix are read."""
    n = x.shape[-1]
    if n > LARGEST or (x.axis is not None and x.axis >= x.rank - 2):
        raise Unsupported("a large matrix to decompose")
    x = low.whole(x, "eigh")  # which spoils it
    both = low.add("eigh", [x], (*x.shape[:-2], n + 1, n), x.axis, "float")
    rank = both.rank
    values = select(low, node, both, rank - 2, n)
    return [values, slice_(low, node, both, rank - 2, 0, n)]


def tri(lower: bool) -> Any:
    def rule(low: Any, node: Any, x: Value, k: int = 0) -> Value:
        rows, columns = x.shape[-2:]
        at = low.iota(rows, (rows, 1)), low.iota(columns, (1, columns))
        sign = "<=" if lower else ">="
        keep = low.point(f"({{1}} - {{0}} {sign} {k})", at, "bool")
        return low.point("sel({0}, {1}, zero({1}))", [keep, x], x.kind)

    return rule


RULES = {
    **dict.fromkeys(
        ["alias", "clone", "detach", "lift_fresh_copy", "lift_fresh", "lift", "contiguous", "copy"],
        same,
    ),
    **dict.fromkeys(["view", "reshape", "_unsafe_view"], view),
    "permute": permute,
    "transpose": transpose,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "expand": expand,
    "select": select,
    "slice": slice_,
    "split_with_sizes": split,
    "split": split,
    "unbind": unbind,
    "diagonal": diagonal,
    "_to_copy": to_copy,
    "clamp": clamp,
    "rsub": rsub,
    "arange": arange,
    "mm": mm,
    "bmm": mm,
    "addmm": addmm,
    "index": index,
    "index_put": index_put,
    "cat": cat,
    "diagonal_scatter": diagonal_scatter,
    "select_scatter": select_scatter,
    "slice_scatter": slice_scatter,
    "cumsum": cumsum,
    "linalg_cholesky_ex": cholesky,
    "linalg_solve_triangular": solve,
    "_linalg_eigh": eigh,
    "tril": tri(True),
    "triu": tri(False),
}
