"""Each check finds one thing that can be wrong with draws, and names its remedy.

Thresholds for R-hat and ESS: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021),
Rank-normalization, folding, and localization. Above 1.01 an R-hat is judged by what chance gives
(`ozaki.diagnostics.agreement`).
"""

from collections.abc import Callable, Iterator

import numpy as np

from ozaki.diagnostics.agreement import agreement, differ, more_draws
from ozaki.diagnostics.circular import parts
from ozaki.diagnostics.evidence import (
    Evidence,
    Problem,
    by_chain,
    chains,
    diverged,
    floats,
    is_constant,
)
from ozaki.diagnostics.twins import Twins, twins
from ozaki.foundation.text import plural, some

RHAT_WARN, RHAT_FAIL = 1.01, 1.05
UNMIXED = "the chains have not quite mixed"  # for an R-hat between the two
TAILS = "do not trust the tails"
DRAWS_LEAST = 8
ESS_PER_CHAIN, ESS_TOTAL = 100, 100
ACCEPTANCE_LOW = 0.2
CALIBRATION = (0.8, 1.25)
STEIN_P = 0.01
BIAS_LEAST, BIAS_ERRORS = 0.1, 3.0  # in standard deviations, and in standard errors

# a share of the draws. More of the law lies beyond the digits than is drawn there: where it is cut
# off, the density falls as e⁻ᵘ, however slowly it fell before. Of Beta(0.1, 0.1) a tenth is lost
# in float32
SATURATED = 0.005

RISE_LEAST, RISE_SPREADS = 10.0, 5.0  # of a log density, in itself and in its standard deviations

MOST_NAMED = 4  # most chains that one problem names

STUCK_REMEDY = "Use a smaller step_size or a longer warm-up, or start that chain elsewhere."

Check = Callable[[Evidence], Iterator[Problem]]


def _first_few(check: Check, more: str) -> Check:
    """Make a check name the first chains that it finds, and count the rest."""

    def few(e: Evidence) -> Iterator[Problem]:
        problems = list(check(e))
        yield from problems[:MOST_NAMED]
        if len(problems) > MOST_NAMED:
            rest = plural(len(problems) - MOST_NAMED, "more chain")
            yield problems[0]._replace(what=f"{rest} {more}")

    return few


def _not_finite(e: Evidence) -> Iterator[Problem]:
    """Find chains with draws that are not finite."""
    bad = {name: ~np.isfinite(d) for name, d in e.draws.items() if d.dtype.kind == "f"}
    bad = {name: where for name, where in bad.items() if where.any()}
    never = [name for name, where in bad.items() if where.all()]
    if never and len(never) < len(e.draws):
        yield Problem(
            f"{some(never)} {'is' if len(never) == 1 else 'are'} not finite in any draw",
            "If it is a deterministic site, keep a finite function of it, or leave it out; else "
            "see that the model gives it a value.",
            True,
        )
        bad = {name: where for name, where in bad.items() if name not in never}
    for chain in range(chains(e)):
        names = [name for name, where in bad.items() if where[chain].any()]
        if not names:
            continue
        out = np.any([bad[name][chain] for name in names], 0)
        first = int(np.argmax(out))
        named = some([f"{name} is {_odd(e.draws[name][chain])}" for name in names])
        yield Problem(
            f"chain {chain} left the finite numbers at draw {first}; {int(out.sum())} of its "
            f"{len(out)} draws are not finite: {named} there",
            "Use a smaller step_size, or Metropolis correction if it was off; for a learned score, "
            "start the chains from training points. Where a deterministic site may be infinite, "
            "keep a finite function of it, or leave it out.",
            True,
        )


def _odd(draws: np.ndarray) -> str:
    """Describe the draws of one chain that are not finite."""
    kinds = {"NaN": np.isnan(draws), "inf": draws == np.inf, "-inf": draws == -np.inf}
    return " or ".join(kind for kind, where in kinds.items() if where.any())


def _divergences(e: Evidence) -> Iterator[Problem]:
    """Find divergences, and name the chain that has most."""
    diverging = diverged(e)
    counts = diverging.sum(1)
    if not counts.any():
        return
    worst = int(np.argmax(counts))
    number, of = int((counts > 0).sum()), len(counts)
    among = f", in {number} of {of} chains, {counts[worst]} of them in this one"
    yield Problem(
        f"chain {worst} diverged first at draw {int(np.argmax(diverging[worst]))}; "
        f"{plural(int(counts.sum()), 'divergence')} in all{among * (number > 1)}: {TAILS}",
        "Run again with a smaller step_size or a longer warm-up; if a model's divergences "
        "stay, reparametrise it.",
        True,
    )


def _few(e: Evidence) -> Iterator[Problem]:
    """Find that there are too few draws a chain to tell anything."""
    draws = next(iter(e.draws.values())).shape[1]
    if draws < DRAWS_LEAST:
        swapped = (
            f" If these are {chains(e)} draws of {plural(draws, 'chain')}, swap the first two "
            "dimensions."
        )
        yield Problem(
            f"{plural(draws, 'draw')} a chain say{'s' * (draws == 1)} nothing about agreement",
            "Draw more (num_samples=1000)." + swapped * (chains(e) > 2 * DRAWS_LEAST),
            True,
        )


def _stuck(e: Evidence) -> Iterator[Problem]:
    """Find chains that stopped moving."""
    if next(iter(e.draws.values())).shape[1] < 2:
        return  # a single draw does not show movement
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
        if not all(np.isfinite(d[chain]).all() for d in moving.values()):
            continue  # `_not_finite` reports it
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


def _arriving(e: Evidence) -> Iterator[Problem]:
    """Find chains whose log density rose from the first tenth of the draws to the last."""
    lp = e.stats.get("lp")
    if lp is None or not np.isfinite(lp).all() or lp.shape[1] < 2 * DRAWS_LEAST:
        return
    tenth = max(1, lp.shape[1] // 10)
    rises = np.median(lp[:, -tenth:], 1) - np.median(lp[:, :tenth], 1)
    # of a chain that is at home; one that climbs steadily rises by six of its own
    spread = float(np.median(lp[:, lp.shape[1] // 2 :].std(1)))
    late = np.flatnonzero(rises > max(RISE_LEAST, RISE_SPREADS * spread))
    if not len(late):
        return
    one, most = len(late) == 1, float(rises[late].max())
    named = some([str(chain) for chain in late], MOST_NAMED)
    yield Problem(
        f"chain{'s' * (not one)} {named} had not arrived when warm-up ended: over the draws "
        f"{'its' if one else 'their'} log density rose by {'' if one else 'up to '}{most:,.0f}",
        "Use a longer warm-up (warmup_steps), or begin nearer (initial_params): more draws leave "
        "the first ones as they are.",
        True,
    )


def _returns(draws: np.ndarray) -> bool:
    """Say whether chains (chains, draws) return to values they have left, as discrete ones do."""
    rests = len(draws) + int((draws[:, 1:] != draws[:, :-1]).sum())
    return rests > 1.5 * len(np.unique(draws))


def _longest_rest(path: np.ndarray) -> tuple[int, int]:
    """Find where the longest rest at one state begins in (D, draws), and its length."""
    moves = np.flatnonzero((np.diff(path, axis=1) != 0).any(0)) + 1
    edges = np.concatenate([[0], moves, [path.shape[1]]])
    lengths = np.diff(edges)
    longest = int(np.argmax(lengths))
    return int(edges[longest]), int(lengths[longest])


def _twins(e: Evidence) -> Iterator[Problem]:
    """Find chains that are the same draws, in groups."""
    draws = {name: d for name, d in floats(e).items() if np.isfinite(d).all()}
    if not draws or chains(e) == 1 or next(iter(draws.values())).shape[1] < DRAWS_LEAST:
        return
    found = twins(draws)
    groups: list[tuple[Twins, set[int]]] = []
    for pair in found:
        if not any(pair.one in group for _, group in groups):
            groups.append((pair, _all_alike(pair, found)))
    if not groups:
        return
    pair, group = groups[0]
    more = [str(chain) for chain in sorted(group - {pair.one, pair.other})]
    also = f"; chain{'s' * (len(more) > 1)} {some(more)} as well"
    rest = [f"chains {' and '.join(map(str, sorted(group)))}" for _, group in groups[1:]]
    yield Problem(
        f"chains {min(pair[:2])} and {max(pair[:2])} are the same draws{_where(pair, e)}"
        + also * bool(more)
        + f"; so are {some(rest, MOST_NAMED)}" * bool(rest),
        "Draw again, each chain with random numbers of its own: all chains in one run, or runs "
        "that are joined with another seed each.",
        True,
    )


def _all_alike(first: Twins, found: list[Twins]) -> set[int]:
    """Collect the chains that are the same as a pair, directly or through others."""
    group, before = {first.one, first.other}, 0
    while before < len(group):
        before = len(group)
        group |= {c for pair in found if group & {pair.one, pair.other} for c in pair[:2]}
    return group


def _where(pair: Twins, e: Evidence) -> str:
    """Say in which components and draws a pair is the same."""
    where = "" if pair.names is None else f" in {some(list(pair.names))}"
    if pair.delay:
        where += f", which chain {pair.other} makes {plural(pair.delay, 'draw')} later"
    if pair.last < next(iter(e.draws.values())).shape[1]:
        return f"{where} from draw {pair.first} to draw {pair.last - 1}"
    return where + f" from draw {pair.first} on" * (pair.first > pair.delay)


def _rhat(e: Evidence) -> Iterator[Problem]:
    """Find R-hats that are too high, and say whether chance explains them."""
    if chains(e) == 1:
        yield Problem(
            "one chain only: whether chains agree is unknown (the R-hat shown compares its halves)",
            "Run with num_chains=4.",
            False,
        )
    known = [name for name, r in e.rhat.items() if np.isfinite(r) or r > RHAT_WARN]
    high = [name for name in known if e.rhat[name] > RHAT_WARN]
    if not high:
        return
    # an angle is two components, its cosine and its sine
    looked = [(name, x) for name in high for x in parts(e.draws[name], name in e.circular)]
    count = len(known) + sum(name in e.circular for name in known)
    found = agreement([x for _, x in looked])
    apart = differ(found, count, RHAT_WARN)
    beyond = {name for (name, _), is_apart in zip(looked, apart, strict=True) if is_apart}
    # the first of the components where several have the same R-hat
    worst = max([n for n in high if n in beyond] or high, key=lambda name: e.rhat[name])
    size = f"R-hat {e.rhat[worst]:.3f} for {worst}"
    if beyond:
        word = "the chains disagree" if e.rhat[worst] > RHAT_FAIL else UNMIXED
        more = f", and above {RHAT_WARN} in {len(beyond) - 1} more" * (len(beyond) > 1)
        yield Problem(
            f"{word}: {size}{more}",
            "Run longer (warmup_steps and num_samples). If chains stay in different places, the "
            "law has modes they do not cross between: more draws will not mend that.",
            True,  # perhaps nothing is broken, but the run was too short
        )
        return
    place = min(
        (i for i, (name, _) in enumerate(looked) if name == worst), key=lambda i: found.ess[i]
    )
    more = more_draws(found, place, count, RHAT_WARN)
    many = f"about {_round(more)} more draws a chain" if more else "over 100 times as many draws"
    yield Problem(
        f"{size} is within what chance gives at ESS {found.ess[place]:.0f} in "
        f"{plural(count, 'component')}; {many} would settle it",
        f"Draw more (num_samples) to know that the chains agree to an R-hat of {RHAT_WARN}.",
        False,
    )


def _round(number: int) -> str:
    """Round a number up to two digits."""
    unit = 10 ** max(0, len(str(number)) - 2)
    return f"{-(-number // unit) * unit:,}"


def _ess(e: Evidence) -> Iterator[Problem]:
    """Find components with too few independent draws."""
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
    """Find that divergences were not recorded, or not for all draws."""
    if e.need_stats and not e.stats:
        yield Problem(
            "no statistics of the sampler are there: divergences and acceptance are unknown",
            "Give a file that keeps sample_stats with the draws, as MCMC.to_inference_data() and "
            "Stan's CSV do; where writing one raised an error, write it again.",
            True,
        )
        return
    flags = e.stats.get("diverging")
    if flags is not None and (missing := int((~np.isfinite(flags)).sum())):
        yield Problem(
            f"{plural(missing, 'flag')} of divergence {'is' if missing == 1 else 'are'} missing: "
            "whether the chains diverged there is unknown",
            "Give a file whose 'diverging' of sample_stats is whole; where writing one raised an "
            "error, write it again.",
            True,
        )
    told = [what for what in e.left_out if what.startswith("diverging of sample_stats ")]
    if e.need_stats and flags is None and told:
        yield Problem(
            f"divergences are unknown: {told[0]} does not flag each draw of each chain",
            "Give 'diverging' of sample_stats as true or false, with dimensions chain and draw "
            "like the posterior's.",
            True,
        )


def _flat(e: Evidence) -> Iterator[Problem]:
    """Find components that the density does not depend on."""
    improper = [name for name in e.flat if name not in e.masked]
    if improper:
        yield Problem(
            f"the density does not depend on {some(improper)}: it is flat there, no law can be "
            "drawn from, and the draws walk off",
            "Give the site a prior that can be normalised, or data that bear on it.",
            True,
        )
    if e.masked:
        yield Problem(
            f"a mask takes the density from {some(list(e.masked))}: these draws walk off and mean "
            "nothing; the others are not touched",
            "Leave them out (save_params); of obs_mask they stand where there are data.",
            False,
        )


def _centred(e: Evidence) -> Iterator[Problem]:
    """Find sites whose scale is itself drawn, where the chains do not mix well."""
    rhats = [r for r in e.rhat.values() if np.isfinite(r)]
    sizes = [v for values in (e.ess_bulk, e.ess_tail) for v in values.values() if np.isfinite(v)]
    ill = max(rhats, default=1.0) > RHAT_WARN or min(sizes, default=np.inf) < ESS_TOTAL
    if not e.centred or not (ill or diverged(e).any()):
        return
    one = len(e.centred) == 1
    config = ", ".join(f"{name!r}: LocScaleReparam(0.0)" for name in e.centred[:MOST_NAMED])
    yield Problem(
        f"{some(list(e.centred))} {'has a scale' if one else 'have scales'} that "
        f"{'is itself' if one else 'are themselves'} drawn: where it is small the law is a narrow "
        "neck, which steps that suit the rest do not enter",
        f"Walk on pyro.poutine.reparam(model, config={{{config}}}), with LocScaleReparam from "
        "pyro.infer.reparam; or on AutoReparam(centered=0.0)(model), which does so for all such "
        "sites.",
        False,
    )


def _saturated(e: Evidence) -> Iterator[Problem]:
    """Find sites with draws that the dtype cannot hold."""
    for site, share in e.saturated.items():
        yield Problem(
            f"{share:.2%} of the draws of {site} lie where its dtype does not hold them, nearer to "
            "a bound than its digits go: the density is cut off there",
            "Give the law of the site parameters in float64 (torch.set_default_dtype(torch.float64)"
            "), or sample a site that does not pile up at a bound.",
            share > SATURATED,
        )


def _acceptance(e: Evidence) -> Iterator[Problem]:
    """Find chains that accept too few steps."""
    for chain, rate in enumerate(by_chain(e, "acceptance_rate")):
        if rate < ACCEPTANCE_LOW:
            yield Problem(
                f"chain {chain} accepted only {rate:.0%} of its moves",
                "Use a smaller step_size, or step_size=None to let warm-up choose it.",
                False,
            )


def _calibration(e: Evidence) -> Iterator[Problem]:
    """Find a learned score whose calibration is off."""
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
    """Find draws that the Stein test rejects."""
    if e.stein is not None and e.stein.p_value < STEIN_P:
        yield Problem(
            "the draws do not follow the score they were drawn with (kernel Stein discrepancy "
            f"{e.stein.discrepancy:.2g}, p = {e.stein.p_value:.3f} on {e.stein.points} draws)",
            "Use a smaller step_size, Metropolis correction if it was off, or a longer warm-up.",
            False,
        )


def _step_bias(e: Evidence) -> Iterator[Problem]:
    """Find components that the step size biases."""
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


# in the order in which problems are reported; a new check is a function and a row here
CHECKS: tuple[Check, ...] = (
    _first_few(_not_finite, "left the finite numbers"),
    _divergences,
    _few,
    _first_few(_stuck, "stood still"),
    _arriving,
    _twins,
    _rhat,
    _ess,
    _unrecorded,
    _centred,
    _flat,
    _saturated,
    _acceptance,
    _calibration,
    _stein,
    _step_bias,
)
