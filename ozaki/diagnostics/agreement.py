"""`agreement` tests whether chains differ by more than chance.

R-hat of equal chains is above 1 by chance, the more so the fewer independent draws there are and
the more components are looked at. What chance gives is known from the chains' own correlations:
with V the variance of the mean of a chain of n draws,

    (μ_i − μ̄) / √(V (m − 1)/m)  ~  t,        Σ_halves (μ_j − μ̄)² / (V_½ (2m − 1))  ~  F,

the first for the chain that is furthest from the mean of all m, the second for the 2m halves that
R-hat compares. Both are taken of the draws' normal scores and of those of their distance from the
median, as R-hat is. V comes from the correlations *within* half chains. An effective sample size
that counts the spread between chains, as the bulk ESS does, shrinks where chains disagree, and
would forgive what is looked for.

Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and
localization; Geyer (1992), Practical Markov chain Monte Carlo, for V.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ozaki.foundation.lazy import lazy

special = lazy("scipy.special")
stats = lazy("scipy.stats")

ALARMS = 0.018  # runs of equal chains told to differ; measured rates lie below: benchmarks/verdicts
# the share of the alarms that each test may raise; most go to one chain whose mean is off
SHARES = {"chain": 0.7, "halves": 0.1, "chain, folded": 0.1, "halves, folded": 0.1}
BLOCKS = 1024  # most blocks of a half chain: its slow correlations are those of its block means
ROUNDS = 4  # iterations to solve for V: the correlations that give V depend on V
# V is found too small where a half chain is worth e < 10 independent draws: by 1.03 at e = 10, 1.14
# at 5, 1.33 at 3.5, 1.7 at 2.6 (equal AR(1) chains, 4 to 100 of them)
SHORT = 5.0
SPREAD = 0.7  # factor on V's degrees of freedom: its estimate has heavier tails
TELLS = 150  # least independent draws to judge chance by; 400 are taken for fewer once in 10⁵
NONE = 1e-18  # relative variance that is only rounding
AT_ONCE = 2**18  # most draws in a batch of components
MOST_TIMES = 100  # most times as many draws for which a number is given


class Agreement(NamedTuple):
    """The figures that tell how far chains differ, by component.

    Attributes:
        p_value: the chance of so much between equal chains, in one component.
        rhat: split R-hat of ranks, of the draws or of their distances from the median.
        ess: independent draws of all chains, by the correlations within them, of the same.
        freedom: degrees of freedom of the estimate of `ess`.
        bulk: as `ess`, of the draws also where their distances from the median differ more.
        halves: how many half chains were compared.
        length: draws of each.
    """

    p_value: np.ndarray
    rhat: np.ndarray
    ess: np.ndarray
    freedom: np.ndarray
    bulk: np.ndarray
    halves: int
    length: int


def agreement(draws: list[np.ndarray]) -> Agreement:
    """Test for each component whether its chains differ by more than chance.

    The p-value is the smallest of the four tests', each over its share of the alarms.

    Args:
        draws: of each component, (chains, draws), finite; the two halves of a lone chain stand for
            chains.

    Returns:
        An entry for each component.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(2, 4, 500))
        >>> x[1, 3] += 1
        >>> [bool(p < 0.018) for p in agreement(list(x)).p_value]
        [False, True]
    """
    parts = [_agreement(np.stack(few).astype(float)) for few in _batches(draws)]
    p, rhat, ess, freedom, bulk = (np.concatenate([part[i] for part in parts]) for i in range(5))
    return Agreement(p, rhat, ess, freedom, bulk, parts[0].halves, parts[0].length)


def differ(found: Agreement, components: int, rhat: float) -> np.ndarray:
    """Say which components have an R-hat above `rhat` that chance does not explain.

    Chance does not explain it where the p-value is below one component's share of the alarms. Nor
    does it where independent draws are so few that slow chains look like chains that stay apart.

    Args:
        found: what `agreement` returned.
        components: how many are looked at.
        rhat: such as 1.01.

    Returns:
        Truth values, an entry for each component.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(2, 4, 500))
        >>> x[1, 3] += 1
        >>> differ(agreement(list(x)), 2, 1.01).tolist()
        [False, True]
    """
    chance = (found.p_value >= ALARMS / components) & (found.bulk >= TELLS)
    return (found.rhat > rhat) & ~chance


def more_draws(found: Agreement, component: int, components: int, rhat: float) -> int | None:
    """Return how many more draws a chain needs before chance alone gives no R-hat above `rhat`.

    With F the quantile of the second test, the bound on R-hat is √(1 − 1/n + F n⁻¹ τ), where n/τ
    independent draws are in a half chain of n.

    Args:
        found: what `agreement` returned.
        component: which of its entries.
        components: how many are looked at.
        rhat: such as 1.01.

    Returns:
        A number of draws, or None for more than a hundred times as many.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(1, 4, 100))
        >>> 100 < more_draws(agreement(list(x)), 0, 1, 1.01) < 200
        True
    """
    level = ALARMS * SHARES["halves"] / components
    worth = found.ess[component] / found.halves

    def above(times: float) -> bool:
        quantile = stats.f.isf(level, found.halves - 1, found.freedom[component] * times)
        bound = 1 - 1 / (found.length * times) + quantile / (worth * times)
        return bool(bound > rhat**2)

    low, high = 1.0, float(MOST_TIMES)
    if above(high):
        return None
    while high > 1.001 * low:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if above(middle) else (low, middle)
    return int(np.ceil((high - 1) * 2 * found.length))


def _batches(draws: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    size = max(1, AT_ONCE // draws[0].size)
    for first in range(0, len(draws), size):
        yield draws[first : first + size]


def _agreement(x: np.ndarray) -> Agreement:
    """Test components, (components, chains, draws), together."""
    if x.shape[1] == 1:
        x = x[:, 0, : x.shape[2] // 2 * 2].reshape(len(x), 2, -1)
    chains, length = x.shape[1], x.shape[2] // 2
    halves = np.concatenate([x[..., :length], x[..., -length:]], 1)
    folded = np.abs(halves - np.median(halves, (1, 2), keepdims=True))
    draws, distances = (_tests(_scores(y), chains) for y in (halves, folded))
    tests = (draws.chain, draws.halves, distances.chain, distances.halves)
    shared = [p / share for p, share in zip(tests, SHARES.values(), strict=True)]
    folds = distances.rhat > draws.rhat
    rhat, ess, freedom = (
        np.where(folds, b, a) for a, b in zip(draws[2:], distances[2:], strict=True)
    )
    p_value = np.minimum(np.min(shared, 0), 1)
    return Agreement(p_value, rhat, ess, freedom, draws.ess, 2 * chains, length)


class _Tests(NamedTuple):
    """The p-values of both tests, and the figures behind them, by component."""

    chain: np.ndarray
    halves: np.ndarray
    rhat: np.ndarray
    ess: np.ndarray
    freedom: np.ndarray


def _scores(x: np.ndarray) -> np.ndarray:
    """Return normal scores of ranks among all draws of a component; equal draws share a rank."""
    flat = x.reshape(len(x), -1)
    count = flat.shape[1]
    order = np.argsort(flat, axis=1)
    in_order = np.take_along_axis(flat, order, 1)
    begins = np.ones(flat.shape, bool)
    np.not_equal(in_order[:, 1:], in_order[:, :-1], out=begins[:, 1:])
    place = np.arange(count)
    twice = np.broadcast_to(2 * place, flat.shape)
    if not begins.all():
        first = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
        ends = np.roll(begins, -1, axis=1)
        last = np.minimum.accumulate(np.where(ends, place, count)[:, ::-1], axis=1)[:, ::-1]
        twice = first + last
    of_rank = special.ndtri((1 + np.arange(2 * count) / 2 - 0.375) / (count + 0.25))
    scores = np.empty(flat.shape)
    np.put_along_axis(scores, order, of_rank[twice], 1)
    return scores.reshape(x.shape)


def _tests(z: np.ndarray, chains: int) -> _Tests:
    """Run both tests on (components, halves, draws): the first halves, then the second."""
    length = z.shape[2]
    within = z.var(2, ddof=1).mean(1)
    half, whole, freedom = _variances(z, within)
    mean = z.mean(2)
    first, second = mean[:, :chains], mean[:, chains:]
    off = (first + second) / 2
    off = off - off.mean(1, keepdims=True)
    turn = (first - second) / 2  # uncorrelated with the mean of the two, of variance half − whole
    furthest = np.abs(off).max(1) / np.sqrt(whole * (chains - 1) / chains)
    spread = (off**2).sum(1) / whole + (turn**2).sum(1) / (half - whole)
    apart = 2 * chains - 1
    either = 1 if chains == 2 else chains  # two stand equally far from their mean
    ratio = mean.var(1, ddof=1) / np.maximum(within, NONE)
    return _Tests(
        chain=2 * either * stats.t.sf(furthest, freedom),
        halves=stats.f.sf(spread / apart, apart, freedom),
        rhat=np.sqrt((length - 1) / length + ratio),
        ess=2 * chains * within / half,
        freedom=freedom,
    )


def _variances(z: np.ndarray, within: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Estimate the variance of the mean of half a chain and of a whole one, with its freedom.

    Geyer's initial monotone sequence of the correlations that all half chains have in common. They
    are taken about each half's own mean, which makes each of them too small by V.
    """
    components, halves, length = z.shape
    width = -(-length // BLOCKS)
    blocks = length // width
    z = z[..., : blocks * width].reshape(components, halves, blocks, width).mean(3)
    z = z - z.mean(2, keepdims=True)
    spectrum = np.fft.rfft(z, 2 * blocks)
    power = (spectrum.real**2 + spectrum.imag**2).mean(1)
    pairs = blocks // 2
    lag = np.arange(2 * pairs)
    seen = np.fft.irfft(power, 2 * blocks)[:, : 2 * pairs] / (blocks - lag)
    times = np.where(lag == 0, 1, 2)
    in_half = times * (1 - lag / blocks) / blocks
    in_whole = times * (1 - lag / (2 * blocks)) / (2 * blocks)
    variance = seen[:, 0] / blocks
    share, used = _monotone(seen + variance[:, None])
    for _ in range(ROUNDS):
        variance = np.maximum((share * seen) @ in_half, 0) / np.maximum(1 - share @ in_half, 0.1)
        share, used = _monotone(seen + variance[:, None])
    corrected = share * (seen + variance[:, None])
    half = corrected @ in_half
    whole = corrected @ in_whole / np.where(half > 0, half, 1)
    # alternating draws count at most as independent; rounding is no spread
    within = np.maximum(within, NONE)
    half = np.maximum(half, within / length)
    half = half * (1 + SHORT * (half / within) ** 2)
    return half, half * np.clip(whole, 0.3, 0.9), SPREAD * halves * blocks / (2 * used - 1)


def _monotone(correlations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of each correlation, and how many count, by Geyer's monotone sequence."""
    sums = correlations[:, ::2] + correlations[:, 1::2]
    positive = np.logical_and.accumulate(sums > 0, axis=1)
    positive[:, 0] = True
    least = np.minimum.accumulate(np.where(positive, sums, 0), axis=1)
    share = np.where(positive & (sums > 0), least / np.where(sums > 0, sums, 1), 0)
    return np.repeat(share, 2, axis=1), 2 * positive.sum(1)
