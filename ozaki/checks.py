"""What can be wrong with draws: one check a function, each with its remedy (floor 2).

Thresholds for R-hat and ESS: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021),
Rank-normalization, folding, and localization.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ozaki.stein import SteinTest

RHAT_WARN, RHAT_FAIL = 1.01, 1.05
UNMIXED = "the chains have not quite mixed"  # between the two
DRAWS_LEAST = 8
ESS_PER_CHAIN, ESS_TOTAL = 100, 100
ACCEPTANCE_LOW = 0.2
CALIBRATION = (0.8, 1.25)
STEIN_P = 0.01
BIAS_LEAST, BIAS_ERRORS = 0.1, 3.0  # in standard deviations, and in standard errors

MOST_NAMED = 4  # chains that one thing is wrong with

STUCK_REMEDY = "Use a smaller step_size or a longer warm-up, or start that chain elsewhere."


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        what: what was seen.
        remedy: what to do about it.
        fatal: whether the draws should not be trusted because of it.

    Example:
        >>> from ozaki.diagnostics import inference_data, verdict
        >>> verdict(inference_data({"x": np.zeros((4, 100))})).problems[0].what
        'no chain moved at all'
    """

    what: str
    remedy: str
    fatal: bool


class Evidence(NamedTuple):
    """What a verdict is reached from.

    Attributes:
        draws: each scalar component's draws, (chains, draws).
        rhat, ess_bulk, ess_tail: by component, NaN where it is constant or not finite.
        stats: sampler statistics by name, (chains, draws).
        law: the law drawn from, in words.
        estimator_metrics: held-out figures of a learned score.
        stein: a test of the draws against their score.
        bias: by component, the bias of the mean and of the standard deviation that step halving
            found, and their errors, in standard deviations; empty where it was not looked for.
        worst_mcse: the largest standard error of a mean, in standard deviations.
        need_stats: whether the sampler's statistics must be there.
        left_out: what was kept with the draws and is not judged, in words.
    """

    draws: Mapping[str, np.ndarray]
    rhat: Mapping[str, float]
    ess_bulk: Mapping[str, float]
    ess_tail: Mapping[str, float]
    stats: Mapping[str, np.ndarray]
    law: str | None
    estimator_metrics: Mapping[str, Any] | None
    stein: SteinTest | None
    bias: Mapping[str, Mapping[str, float]]
    worst_mcse: float
    need_stats: bool = False
    left_out: Sequence[str] = ()


Check = Callable[[Evidence], Iterator[Problem]]


def is_constant(draws: np.ndarray) -> bool:
    """Whether draws differ by rounding alone."""
    if draws.dtype.kind != "f":
        return bool(np.all(draws == draws.flat[0]))
    size = np.abs(draws).max()
    return bool(np.ptp(draws) <= 4 * np.finfo(draws.dtype).eps * size)


def _first_few(check: Check, more: str) -> Check:
    """A check that names the first chains it finds, and counts the rest."""

    def few(e: Evidence) -> Iterator[Problem]:
        problems = list(check(e))
        yield from problems[:MOST_NAMED]
        if len(problems) > MOST_NAMED:
            rest = plural(len(problems) - MOST_NAMED, "more chain")
            yield problems[0]._replace(what=f"{rest} {more}")

    return few


def _not_finite(e: Evidence) -> Iterator[Problem]:
    bad = np.zeros((chains(e), next(iter(e.draws.values())).shape[1]), bool)
    for draws in e.draws.values():
        bad |= ~np.isfinite(draws)
    for chain in np.flatnonzero(bad.any(1)):
        first = int(np.argmax(bad[chain]))
        yield Problem(
            f"chain {chain} left the finite numbers at draw {first}; "
            f"{int(bad[chain].sum())} of its {bad.shape[1]} draws are NaN or infinite",
            "Use a smaller step_size, or Metropolis correction if it was off; for a learned score, "
            "start the chains from training points.",
            True,
        )


def _divergences(e: Evidence) -> Iterator[Problem]:
    if "diverging" not in e.stats:
        return
    diverging = e.stats["diverging"].astype(bool)
    for chain in np.flatnonzero(diverging.any(1)):
        number = int(diverging[chain].sum())
        yield Problem(
            f"chain {chain} diverged first at draw {int(np.argmax(diverging[chain]))}; "
            f"{plural(number, 'divergence')} in all: do not trust the tails",
            "Run again with a smaller step_size or a longer warm-up; if a model's divergences "
            "stay, reparametrise it.",
            True,
        )


def _few(e: Evidence) -> Iterator[Problem]:
    draws = next(iter(e.draws.values())).shape[1]
    if draws < DRAWS_LEAST:
        yield Problem(
            f"{plural(draws, 'draw')} a chain say nothing about agreement",
            "Draw more (num_samples=1000).",
            True,
        )


def _stuck(e: Evidence) -> Iterator[Problem]:
    moving = {name: d for name, d in floats(e).items() if not is_constant(d)}
    if not moving and all(is_constant(d) for d in e.draws.values()):
        yield Problem(
            "no chain moved at all",
            "Use a smaller step_size, and check that the log density or score is finite where the "
            "chains start.",
            True,
        )
        return
    # a discrete value may stay for long: R-hat and ESS judge those
    moving = {name: d for name, d in moving.items() if not _returns(d)}
    if not moving:
        return
    chains, draws = next(iter(moving.values())).shape
    for chain in range(chains):
        stuck = [name for name, d in moving.items() if is_constant(d[chain])]
        if stuck:
            what = "" if len(stuck) == len(moving) else f" in {some(stuck)}"
            yield Problem(
                f"chain {chain} never moved{what}",
                STUCK_REMEDY,
                True,
            )
            continue
        first, length = _longest_rest(np.stack([d[chain] for d in moving.values()]))
        if length >= max(50, 0.1 * draws):
            yield Problem(
                f"chain {chain} stood still for {length} draws from draw {first}",
                STUCK_REMEDY,
                True,
            )


def _returns(draws: np.ndarray) -> bool:
    """Whether chains (chains, draws) come back to values they have left, as discrete ones do."""
    rests = len(draws) + int((np.diff(draws, axis=1) != 0).sum())
    return rests > 1.5 * len(np.unique(draws))


def _longest_rest(path: np.ndarray) -> tuple[int, int]:
    """Where the longest run of equal states begins in (D, draws), and its length."""
    moves = np.flatnonzero((np.diff(path, axis=1) != 0).any(0)) + 1
    edges = np.concatenate([[0], moves, [path.shape[1]]])
    lengths = np.diff(edges)
    longest = int(np.argmax(lengths))
    return int(edges[longest]), int(lengths[longest])


def _rhat(e: Evidence) -> Iterator[Problem]:
    if chains(e) == 1:
        yield Problem(
            "one chain only: whether chains agree is unknown (the R-hat shown compares its halves)",
            "Run with num_chains=4.",
            False,
        )
    bad = {name: r for name, r in e.rhat.items() if r > RHAT_WARN}
    if not bad:
        return
    worst = max(bad, key=lambda name: bad[name])
    found = "the chains disagree" if bad[worst] > RHAT_FAIL else UNMIXED
    yield Problem(
        f"{found}: R-hat {bad[worst]:.3f} for {worst}"
        + (f", above {RHAT_WARN} for {len(bad)} components" if len(bad) > 1 else ""),
        "Run longer (warmup_steps and num_samples). If chains stay in different places, the law "
        "has modes they do not cross between: more draws will not mend that.",
        True,  # nothing need be broken, but the run was too short
    )


def _ess(e: Evidence) -> Iterator[Problem]:
    enough = ESS_PER_CHAIN * chains(e)
    kinds = (("bulk", "mean is", e.ess_bulk), ("tail", "quantiles are", e.ess_tail))
    for kind, of, values in kinds:
        known = {name: v for name, v in values.items() if np.isfinite(v)}
        worst = min(known, key=lambda name: known[name], default=None)
        if worst is not None and known[worst] < enough:
            fatal = known[worst] < ESS_TOTAL
            yield Problem(
                f"few independent draws: {kind} ESS {known[worst]:.0f} for {worst}, so its {of} "
                f"{'not known' if fatal else 'rough'}; {enough} are wanted",
                "Draw more (num_samples), or let warm-up find a better step and metric "
                "(step_size=None, more warmup_steps).",
                fatal,
            )


def _unrecorded(e: Evidence) -> Iterator[Problem]:
    if e.need_stats and not e.stats:
        yield Problem(
            "no statistics of the sampler are there: divergences and acceptance are unknown",
            "Give a file that keeps sample_stats with the draws, as MCMC.to_inference_data() and "
            "Stan's CSV do; where writing one raised an error, write it again.",
            True,
        )


def _acceptance(e: Evidence) -> Iterator[Problem]:
    for chain, rate in enumerate(_by_chain(e, "acceptance_rate")):
        if rate < ACCEPTANCE_LOW:
            yield Problem(
                f"chain {chain} accepted only {rate:.0%} of its moves",
                "Use a smaller step_size, or step_size=None to let warm-up choose it.",
                False,
            )


def _calibration(e: Evidence) -> Iterator[Problem]:
    values = np.atleast_1d(np.asarray((e.estimator_metrics or {}).get("calibration", []), float))
    out = ~((values >= CALIBRATION[0]) & (values <= CALIBRATION[1]))
    if out.any():
        worst = int(np.argmax(np.abs(np.log(np.where(values > 0, values, 1e-12)))))
        yield Problem(
            f"the learned curvature is miscalibrated in {plural(int(out.sum()), 'dimension')} of "
            f"{len(values)}: E[r²]/C is {values[worst]:.2f} in dimension {worst}, where 1 is right",
            "Train longer (max_steps), on more data, or with a larger sigma. The chains may be "
            "sound; the law they draw from is off.",
            False,
        )


def _stein(e: Evidence) -> Iterator[Problem]:
    if e.stein is not None and e.stein.p_value < STEIN_P:
        yield Problem(
            "the draws do not follow the score they were drawn with (kernel Stein discrepancy "
            f"{e.stein.discrepancy:.2g}, p = {e.stein.p_value:.3f} on {e.stein.points} draws)",
            "Use a smaller step_size, Metropolis correction if it was off, or a longer warm-up.",
            False,
        )


def _step_bias(e: Evidence) -> Iterator[Problem]:
    found = [
        (abs(figures[of]), name, of)
        for name, figures in e.bias.items()
        for of in ("mean", "sd")
        if abs(figures[of]) > max(BIAS_LEAST, BIAS_ERRORS * figures[f"{of}_error"])
    ]
    if found:
        size, name, of = max(found)
        what = "mean" if of == "mean" else "standard deviation"
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        yield Problem(
            f"the step size biases the {what} of {name} by {size:.0%} of a standard deviation "
            f"(step halving{more})",
            "Use a smaller step_size, or Metropolis correction.",
            False,
        )


def floats(e: Evidence) -> dict[str, np.ndarray]:
    """The components that are measurements and finite, else what there is."""
    finite = {name: d for name, d in e.draws.items() if np.isfinite(d).all()}
    return {name: d for name, d in finite.items() if d.dtype.kind == "f"} or finite or dict(e.draws)


def _by_chain(e: Evidence, name: str) -> list[float]:
    values = e.stats.get(name)
    return [] if values is None else [float(row.mean()) for row in values.astype(float)]


def chains(e: Evidence) -> int:
    """How many chains there are."""
    return len(next(iter(e.draws.values())))


def plural(number: int, noun: str) -> str:
    """As in "1 chain", "4 chains"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def some(names: list[str], limit: int = 5) -> str:
    """The first names, and how many more."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# in the order in which they are told; a new check is a function and a row here
CHECKS: tuple[Check, ...] = (
    _first_few(_not_finite, "left the finite numbers"),
    _first_few(_divergences, "diverged"),
    _few,
    _first_few(_stuck, "stood still"),
    _rhat,
    _ess,
    _unrecorded,
    _acceptance,
    _calibration,
    _stein,
    _step_bias,
)
