"""`twins` finds chains that are the same draws.

Two chains of one stream of random numbers agree perfectly, and every figure counts them twice. They
may be equal from the first draw on. Or one is delayed by some draws, or began elsewhere and came
together with the other, as chains with the same noise do.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

LEAST = 8  # equal moves in a row that make two chains twins; independent chains make none
PART = 0.1  # share of the draws that must be alike, where the chains part again
WINDOW = 256  # draws that show whether a component takes a value twice
RETURNS = 1.5  # mean visits to a value from which on a component is discrete
NEAR = 1e-6  # share of a move within which draws are alike: another order of sums brings it
JUMP = 1e3  # least length of a move that counts, in that distance
HASH = 16  # bits of a hash
UNLIKELY = -50.0  # log of the chance below which discrete draws are not alike by chance


class Twins(NamedTuple):
    """A pair of chains that are the same draws.

    Attributes:
        one, other: the chains.
        delay: how many draws later `other` makes them.
        first, last: where they begin in `other`, and end, beyond the last.
        names: the components that are alike; None for all.
    """

    one: int
    other: int
    delay: int
    first: int
    last: int
    names: tuple[str, ...] | None


def twins(draws: Mapping[str, np.ndarray]) -> list[Twins]:
    """Find pairs of chains that are the same draws; of three, the first two and the last two.

    Components that are constant or discrete say nothing where others are neither. Chains that begin
    at one point and part are no twins.

    Args:
        draws: by component, (chains, draws), finite.

    Returns:
        The pairs, those of the lowest chains first.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4, 100))
        >>> x[2] = x[0]
        >>> [(found.one, found.other) for found in twins({"x": x})]
        [(0, 2)]
    """
    fresh = {name: d for name, d in draws.items() if d.dtype.kind == "f" and _is_fresh(d)}
    if not fresh:
        return list(_discrete(list(draws.values())))
    seen: dict[tuple[int, int, int], dict[str, tuple[int, int]]] = {}
    for name, d in fresh.items():
        for one, other, delay, first, last in _pairs(d):
            seen.setdefault((one, other, delay), {})[name] = first, last
    return [
        Twins(
            *pair,
            max(first for first, _ in where.values()),
            min(last for _, last in where.values()),
            None if len(where) == len(fresh) else tuple(where),
        )
        for pair, where in sorted(seen.items())
    ]


def _is_fresh(draws: np.ndarray) -> bool:
    """Say whether chains seldom come back to a value that they have left."""
    few = draws[:, :WINDOW]
    moves = (np.diff(few, axis=1) != 0).sum()
    values = (np.diff(np.sort(few, axis=1), axis=1) != 0).sum()
    return bool(0 < moves <= RETURNS * values)


def _pairs(draws: np.ndarray) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield (one, other, delay, first, last) of each pair in a continuous component."""
    length = draws.shape[1]
    places = sorted({length // 4, length // 2, 3 * length // 4, length - 1})
    few = draws[:, :WINDOW].astype(float)
    step = np.abs(np.diff(few, axis=1))
    # draws in half precision were rounded when they were kept, and so are equal to the bit
    digits = min(np.finfo(draws.dtype).eps, np.finfo(np.float32).eps)
    rounding = 8 * float(digits) * float(np.median(np.abs(few)))
    near = max(NEAR * float(np.median(step[step > 0])), rounding)
    probed = draws[:, places]
    order = np.argsort(probed, axis=0, kind="stable")
    beside = np.diff(np.take_along_axis(probed, order, 0), axis=0) <= near
    tried = {
        tuple(sorted((int(order[i, p]), int(order[i + 1, p])))) for i, p in np.argwhere(beside)
    }
    for one, other in sorted(tried):
        if (run := _alike(draws[one], draws[other], near)) is not None:
            yield one, other, 0, *run
    found = set()
    for one, other, delay in _delays(draws, places):
        if (one, other) not in found:
            run = _alike(draws[one, : length - delay], draws[other, delay:], 0.0)
            if run is not None:
                found.add((one, other))
                yield one, other, delay, run[0] + delay, run[1] + delay


def _delays(draws: np.ndarray, places: list[int]) -> Iterator[tuple[int, int, int]]:
    """Find where a chain takes a value that another takes later, for a few of its values."""
    chains, length = draws.shape
    values = draws[:, places].ravel()
    owners = np.repeat(np.arange(chains), len(places))
    table = np.zeros(2**HASH, bool)
    table[_hashes(values)] = True
    maybe = np.flatnonzero(table[_hashes(draws.ravel())])
    order = np.argsort(values, kind="stable")
    low, high = (
        np.searchsorted(values[order], draws.ravel()[maybe], side) for side in ("left", "right")
    )
    offered = set()
    for hit, *span in zip(maybe, low, high, strict=True):
        other, when = divmod(int(hit), length)
        for probe in order[slice(*span)]:
            one = int(owners[probe])
            if one == other or (when and draws[other, when] == draws[other, when - 1]):
                continue  # the same chain, or not the first draw at a value where the chain rests
            start = places[int(probe) % len(places)]
            while start and draws[one, start] == draws[one, start - 1]:
                start -= 1
            delay = when - start
            if delay > 0 and (one, other, delay) not in offered:
                offered.add((one, other, delay))
                size = min(4 * LEAST, length - when)
                if np.array_equal(
                    draws[one, start : start + size], draws[other, when : when + size]
                ):
                    yield one, other, delay


def _hashes(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float64).view(np.uint64)
    return (bits * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - HASH)


def _alike(one: np.ndarray, other: np.ndarray, near: float) -> tuple[int, int] | None:
    """Find where the longest stretch of equal draws begins and ends, if it is not chance."""
    same = np.abs(one - other) <= near
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    if not len(edges):
        return None
    runs = edges.reshape(-1, 2)
    first, last = (int(edge) for edge in runs[np.argmax(runs[:, 1] - runs[:, 0])])
    moves = np.abs(np.diff(one[first:last])) > JUMP * near
    if moves.sum() + 1 < LEAST or (last < len(one) and last - first < PART * len(one)):
        return None
    return first, last


def _discrete(draws: list[np.ndarray]) -> Iterator[Twins]:
    """Find chains that are equal in all discrete components, if it is not chance.

    The chance is that of two chains that go from state to state as those here do, independently.
    """
    chains, length = draws[0].shape
    keys = np.zeros((chains, length), np.int64)
    for d in draws:
        codes = np.unique(d, return_inverse=True)[1].reshape(d.shape)
        keys = np.unique(keys * (int(codes.max()) + 1) + codes, return_inverse=True)[1]
        keys = keys.reshape(d.shape)
    equal = [
        (one, other)
        for one in range(chains)
        for other in range(one + 1, chains)
        if np.array_equal(keys[one], keys[other])
    ]
    copies = {other for _, other in equal}
    own = np.stack([key for chain, key in enumerate(keys) if chain not in copies])
    states = int(keys.max()) + 1
    steps, counts = np.unique(own[:, :-1] * states + own[:, 1:], return_counts=True)
    left = np.bincount(steps // states, counts, states)
    same = np.bincount(steps // states, counts**2, states)[left > 0] / left[left > 0]
    chance = (length - 1) * np.log(same.sum() / left.sum())
    if chance < UNLIKELY:
        before: set[int] = set()
        for one, other in equal:
            if other not in before:
                before.add(other)
                yield Twins(one, other, 0, 0, length, None)
