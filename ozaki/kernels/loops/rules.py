"""`RULES`: how products, factorisations and what is put together are lowered.

Each takes the builder, the node and its arguments.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch.fx import Node

from ozaki.kernels.loops import views
from ozaki.kernels.loops.builder import Builder
from ozaki.kernels.loops.values import Unsupported, Value, broadcast, contiguous
from ozaki.kernels.loops.views import own_axis

LARGEST = 32  # rows of a matrix whose eigenvalues are found by rotations


def _to_copy(low: Builder, node: Node, x: Any, **_: Any) -> Value:
    if not isinstance(x, Value):
        return low.number(x, (), low.kind(node))
    return low.cast(x, low.kind(node))


def _clamp(low: Builder, node: Node, x: Value, least: Any = None, most: Any = None) -> Value:
    kind = low.kind(node)
    for how, bound in (("max_({0}, {1})", least), ("min_({0}, {1})", most)):
        if bound is not None:
            bound = bound if isinstance(bound, Value) else low.number(bound, (), kind)
            x = low.point(how, [low.cast(x, kind), low.cast(bound, kind)], kind)
    return x


def _rsub(low: Builder, node: Node, x: Value, other: Any, alpha: Any = 1) -> Value:
    if alpha != 1:
        raise Unsupported("alpha")
    kind = low.kind(node)
    other = other if isinstance(other, Value) else low.number(other, (), kind)
    return low.point("({1} - {0})", [low.cast(x, kind), low.cast(other, kind)], kind)


def _arange(
    low: Builder, node: Node, start: Any, end: Any = None, step: Any = 1, **_: Any
) -> Value:
    kind, shape = low.kind(node), tuple(node.meta["val"].shape)
    how = f"({start!r} + {step!r} * i0)"
    if shape == (1,):
        return low.number(start, shape, kind)
    return low.add("point", [], shape, None, kind, (how,))


def _mm(low: Builder, node: Node, a: Value, b: Value) -> Value:
    """Sum a product over the last axis of a, and the last but one of b, both broadcast."""
    flat = len(node.meta["val"].shape) == 2
    if flat and a.axis is not None and b.axis is not None:
        raise Unsupported("a product over chains")
    inner = node.all_input_nodes[-1].meta["val"].shape[-2]
    b = low.pick(b, [*range(1, b.rank), 0]) if flat else low.swap(b)
    rows, columns = (a.rank - 1, b.rank - 1) if flat else (1, 1)
    left, right = a, b
    for _ in range(columns):
        left = views.unsqueeze(low, node, left, left.rank - 1)  # (…, i, 1, k)
    for _ in range(rows):
        right = views.unsqueeze(low, node, right, right.rank - 1 - columns)  # (…, 1, j, k)
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


def _addmm(
    low: Builder, node: Node, c: Value, a: Value, b: Value, beta: Any = 1, alpha: Any = 1
) -> Value:
    if beta != 1 or alpha != 1:
        raise Unsupported("alpha")
    return low.point("({0} + {1})", [c, _mm(low, node, a, b)], "float")


def _lone(places: list[Value | None]) -> tuple[int, Value]:
    """Return the dimension that is indexed, and its index: one, the same for all chains."""
    found = [(i, place) for i, place in enumerate(places) if place is not None]
    if len(found) != 1:
        raise Unsupported("several indices")
    dim, place = found[0]
    if place.axis is not None or place.kind != "int" or place.op < 0:
        raise Unsupported("an index of each chain")
    return dim, place


def _index(low: Builder, node: Node, x: Value, places: list[Value | None]) -> Value:
    """x[:, …, index, …]: one index, the same for all chains."""
    dim, place = _lone(places)
    own = own_axis(x, dim)
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


def _index_select(low: Builder, node: Node, x: Value, dim: int, place: Value) -> Value:
    return _index(low, node, x, [*[None] * (dim % x.rank), place])


def _var(
    low: Builder,
    node: Node,
    x: Value,
    dims: Any = None,
    *,
    correction: Any = 1,
    keepdim: bool = False,
) -> Value:
    axes = sorted({d % x.rank for d in (dims or range(x.rank))})
    own = tuple(own_axis(x, d) for d in axes)
    out = tuple(1 if i in own else n for i, n in enumerate(x.shape))
    count = math.prod(x.shape[i] for i in own)
    if x.op < 0 or count <= correction:
        raise Unsupported("the variance of one")

    def mean(v: Value, n: float) -> Value:
        summed = low.reduce_(v, out, own, "float", "sum")
        return low.point("({0} / {1})", [summed, low.number(n, (), "float")], "float")

    apart = low.point("sq({0} - {1})", [x, mean(x, count)], "float")
    found = mean(apart, count - correction)
    return found if keepdim else low.drop(found, axes)


def _index_put(
    low: Builder,
    node: Node,
    x: Value,
    places: list[Value | None],
    what: Value,
    accumulate: bool = False,
) -> Value:
    dim, place = _lone(places)
    n = len(place.shape)

    def taken(w: Value) -> Value:
        own = own_axis(w, dim)
        axis = w.axis if w.axis is None or w.axis < dim else w.axis + n - 1
        shape = (*w.shape[:own], *place.shape, *w.shape[own + 1 :])
        return replace(w, shape=shape, strides=(0,) * len(shape), axis=axis)

    x, what = low.spread(x, what, taken)
    own = own_axis(x, dim)
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


def _cat(low: Builder, node: Node, parts: list[Value], dim: int = 0) -> Value:
    parts = [p for p in parts if 0 not in p.shape]
    kind = low.kind(node)
    parts = low.aligned([low.cast(p, kind) for p in parts])
    own, axis = own_axis(parts[0], dim), parts[0].axis
    total = sum(p.shape[own] for p in parts)
    shape = tuple(total if i == own else n for i, n in enumerate(parts[0].shape))
    strides, at, writes = contiguous(shape), 0, []
    for part in parts:
        writes.append((strides, at * strides[own], None))
        at += part.shape[own]
    return low.add("assemble", parts, shape, axis, kind, tuple(writes))


def _overwrite(low: Builder, x: Value, what: Value, place: Any) -> Value:
    """Copy x, and write `what` into the part of it that `place` shows."""
    x, what = low.spread(x, what, place)
    whole = replace(x, op=-2, strides=contiguous(x.shape), offset=0)
    part = place(whole)
    given = broadcast(
        [what, replace(part, op=-1, strides=(0,) * len(part.shape))], low.chains, low.ops
    )[0]
    writes = ((whole.strides, 0, None), (part.strides, part.offset, None))
    return low.add("assemble", [x, low.cast(given, x.kind)], x.shape, x.axis, x.kind, writes)


def _diagonal_scatter(
    low: Builder, node: Node, x: Value, what: Value, offset: int = 0, a: int = 0, b: int = 1
) -> Value:
    return _overwrite(low, x, what, lambda w: views.diagonal(low, node, w, offset, a, b))


def _select_scatter(low: Builder, node: Node, x: Value, what: Value, dim: int, at: int) -> Value:
    return _overwrite(low, x, what, lambda w: views.select(low, node, w, dim, at))


def _slice_scatter(
    low: Builder,
    node: Any,
    x: Value,
    what: Value,
    dim: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Value:
    return _overwrite(low, x, what, lambda w: views.slice_(low, node, w, dim, start, end, step))


def _cumsum(low: Builder, node: Node, x: Value, dim: int, **_: Any) -> Value:
    x = low.cast(x, "float")
    return low.add("scan", [x], x.shape, x.axis, "float", (own_axis(x, dim),))


def _cholesky(low: Builder, node: Node, x: Value, upper: bool = False, **_: Any) -> list[Value]:
    """Return the factor, and whether there is none instead of where it failed."""
    if x.axis is not None and x.axis >= x.rank - 2:
        raise Unsupported("a matrix over chains")
    x = low.whole(low.swap(x) if upper else x)
    found = low.add("cholesky", [x], x.shape, x.axis, "float")
    pivots = views.diagonal(low, node, found, 0, -2, -1)
    wrong = low.point("not_({0} > zero({0}))", [pivots], "bool")
    failed = low.drop(low.reduced(wrong, "any"), [wrong.rank - 1])
    return [low.swap(found) if upper else found, failed]


def _solve(
    low: Builder,
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


def _eigh(low: Builder, node: Node, x: Value, uplo: str = "L", vectors: bool = True) -> list[Value]:
    """Return values and vectors; both halves of a matrix are read."""
    n = x.shape[-1]
    if n > LARGEST or (x.axis is not None and x.axis >= x.rank - 2):
        raise Unsupported("a large matrix to decompose")
    x = low.whole(x, "eigh")  # which spoils it
    both = low.add("eigh", [x], (*x.shape[:-2], n + 1, n), x.axis, "float")
    rank = both.rank
    values = views.select(low, node, both, rank - 2, n)
    return [values, views.slice_(low, node, both, rank - 2, 0, n)]


def _tri(lower: bool) -> Any:
    def rule(low: Builder, node: Node, x: Value, k: int = 0) -> Value:
        rows, columns = x.shape[-2:]
        at = low.iota(rows, (rows, 1)), low.iota(columns, (1, columns))
        sign = "<=" if lower else ">="
        keep = low.point(f"({{1}} - {{0}} {sign} {k})", at, "bool")
        return low.point("sel({0}, {1}, zero({1}))", [keep, x], x.kind)

    return rule


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ["alias", "clone", "detach", "lift_fresh_copy", "lift_fresh", "lift", "contiguous", "copy"],
        views.same,
    ),
    **dict.fromkeys(["view", "reshape", "_unsafe_view"], views.view),
    "permute": views.permute,
    "transpose": views.transpose,
    "unsqueeze": views.unsqueeze,
    "squeeze": views.squeeze,
    "expand": views.expand,
    "select": views.select,
    "slice": views.slice_,
    "split_with_sizes": views.split,
    "split": views.split,
    "unbind": views.unbind,
    "diagonal": views.diagonal,
    "_to_copy": _to_copy,
    "clamp": _clamp,
    "rsub": _rsub,
    "arange": _arange,
    "mm": _mm,
    "bmm": _mm,
    "addmm": _addmm,
    "index": _index,
    "index_select": _index_select,
    "var": _var,
    "flip": views.flip,
    "index_put": _index_put,
    "cat": _cat,
    "diagonal_scatter": _diagonal_scatter,
    "select_scatter": _select_scatter,
    "slice_scatter": _slice_scatter,
    "cumsum": _cumsum,
    "linalg_cholesky_ex": _cholesky,
    "linalg_solve_triangular": _solve,
    "_linalg_eigh": _eigh,
    "tril": _tri(True),
    "triu": _tri(False),
}
