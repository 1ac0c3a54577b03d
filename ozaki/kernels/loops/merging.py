"""Views in which the axis of the chains is one with axes beside it.

Batched products and factorisations of a library put all matrices along one axis. Here such an axis
stays taken apart, and `around` counts the axes that are shown as one with that of the chains.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ozaki.kernels.loops.values import Sizes, Unsupported, Value, view_strides

# which arguments of an operation are axes
AXES = {
    **dict.fromkeys(("select", "slice", "unbind", "squeeze", "cumsum", "unsqueeze", "flip"), (1,)),
    **dict.fromkeys(("sum", "mean", "amax", "amin", "any", "all", "prod", "permute", "var"), (1,)),
    **dict.fromkeys(("transpose",), (1, 2)),
    **dict.fromkeys(("split_with_sizes", "split", "diagonal"), (2, 3)),
}


def groups(value: Value) -> list[list[int]]:
    """Return for each axis that is shown those that it is made of."""
    if value.axis is None:
        return [[i] for i in range(value.rank)]
    before, after = value.around
    first, last = value.axis - before, value.axis + after
    return [
        *([i] for i in range(first)),
        list(range(first, last + 1)),
        *([i] for i in range(last + 1, value.rank)),
    ]


def merged_view(value: Value, chains: int, new: Sizes) -> Value | None:
    """View a value so that an axis holds the chains and axes beside them; None where none does."""
    assert value.axis is not None
    full = value.full(chains)
    for q, size in enumerate(new):
        for first in range(value.axis + 1):
            if math.prod(full[:first]) != math.prod(new[:q]):
                continue
            for last in range(value.axis, value.rank):
                if math.prod(full[first : last + 1]) != size:
                    continue
                if math.prod(full[last + 1 :]) != math.prod(new[q + 1 :]):
                    continue
                before, after = value.axis - first, last - value.axis
                middle = full[first : value.axis] + full[value.axis + 1 : last + 1]
                shape = (*new[:q], *middle, *new[q + 1 :])
                strides = view_strides(value.shape, value.strides, shape)
                if strides is None:
                    return None
                return replace(
                    value, shape=shape, strides=strides, axis=q + before, around=(before, after)
                )
    return None


def apart(args: list[Any], chains: int, name: str) -> tuple[list[Any], Sizes]:
    """Show axes that are merged apart in all arguments, and what names axes with them.

    Returns:
        The arguments, and `around` of the result.
    """
    values = [a for a in args if isinstance(a, Value)]
    merged = [v for v in values if v.around != (0, 0)]
    first = merged[0]
    place = _place(first)
    several = any(v.around != first.around or _place(v) != place for v in merged)
    if several and name not in ("mm", "addmm"):
        raise Unsupported("axes merged in several ways")
    found: list[Any] = []
    for a in args:
        if isinstance(a, Value):
            alone = name in ("mm", "addmm")
            found.append(
                replace(a, around=(0, 0)) if a in merged or alone else _split(a, first, chains)
            )
        else:
            found.append(a)
    for i in AXES.get(name, ()):
        if i < len(found) and found[i] is not None:
            found[i] = _axes(found[i], first, name)
    return found, first.around


def _place(value: Value) -> int:
    """Return the merged axis, from the right."""
    assert value.axis is not None
    return value.axis + value.around[1] - value.rank


def _axes(what: Any, value: Value, name: str) -> Any:
    known = groups(value)
    if name == "unsqueeze":
        at = what % (len(known) + 1)
        return known[at][0] if at < len(known) else value.rank
    if isinstance(what, (list, tuple)):
        return [d for a in what for d in _several(known[a], name)]
    return _several(known[what], name)[0]


def _several(axes: list[int], name: str) -> list[int]:
    if len(axes) > 1 and name != "permute":
        raise Unsupported("an operation along merged axes")
    return axes


def _split(value: Value, like: Value, chains: int) -> Value:
    """Give a value the axes of another, along which it does not change."""
    assert like.axis is not None
    place, count = _place(like), sum(like.around) + 1
    at = value.rank + place
    if at < 0:
        return value
    full, own = list(value.full(chains)), list(value.strides)
    if value.axis is not None:
        raise Unsupported("chains along two axes")
    sizes = like.full(chains)[like.axis - like.around[0] : like.axis + like.around[1] + 1]
    if full[at] == 1:
        new = [1] * count
    elif own[at] == 0:
        new = list(sizes)
    else:
        raise Unsupported("a constant along merged axes")
    full[at : at + 1] = new
    own[at : at + 1] = [0] * count
    return replace(value, shape=tuple(full), strides=tuple(own))


def together(found: Any, around: Sizes) -> Any:
    """Show the axes of a result as one again."""
    if isinstance(found, list):
        return [together(f, around) for f in found]
    if found is None or found.axis is None:
        return found
    return replace(found, around=around)


def swapped(value: Value) -> Sequence[int]:
    """Return the order of axes that exchanges the last two that are shown."""
    known = groups(value)
    return [d for g in (*known[:-2], known[-1], known[-2]) for d in g]
