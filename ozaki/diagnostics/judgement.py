"""`judge` says in plain words whether to trust the draws.

It works on plain arrays; `ozaki.diagnostics.verdict` gathers them from an InferenceData.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ozaki.diagnostics.checks import CHECKS, TAILS, UNMIXED
from ozaki.diagnostics.evidence import Evidence, Problem, chains, diverged, floats, is_constant
from ozaki.foundation.text import plural, some


class Verdict(NamedTuple):
    """The verdict on draws: whether to trust them, and why.

    Attributes:
        trusted: no problem is fatal.
        headline: one sentence.
        problems: what is wrong and what to do, fatal ones first.
        notes: what else to know.

    Example:
        >>> from ozaki.diagnostics import inference_data, verdict
        >>> found = verdict(inference_data({"x": np.zeros((4, 100))}))
        >>> found.trusted, found.headline
        (False, 'Do not trust these draws: no chain moved at all')
    """

    trusted: bool
    headline: str
    problems: list[Problem]
    notes: list[str]


def judge(evidence: Evidence) -> Verdict:
    """Reach a verdict: run every check on the evidence, and collect the problems."""
    found = [problem for check in CHECKS for problem in check(evidence)]
    found.sort(key=lambda problem: not problem.fatal)
    trusted = not any(problem.fatal for problem in found)
    return Verdict(trusted, _headline(evidence, found), found, list(_notes(evidence)))


def _headline(e: Evidence, problems: list[Problem]) -> str:
    """Say the verdict in one sentence."""
    rhat = max((v for v in e.rhat.values() if np.isfinite(v)), default=float("nan"))
    ess = min(
        (v for m in (e.ess_bulk, e.ess_tail) for v in m.values() if np.isfinite(v)),
        default=float("nan"),
    )
    number, divergences = chains(e), int(diverged(e).sum())
    counted = plural(divergences, "divergence") if divergences else "no divergences"
    if "diverging" not in e.stats:
        counted = "divergences were not recorded"
    lead = f"{number} chains agree" if number > 1 else "1 chain, with none to compare it to"
    figures = f"{lead}: R-hat {rhat:.3f}, smallest ESS {ess:.0f}"
    fatal = [problem for problem in problems if problem.fatal]
    if not fatal:
        more = f"; {plural(len(problems), 'warning')} below" if problems else ""
        return f"{figures}, {counted}{more}"
    if all(problem.what.endswith(TAILS) for problem in fatal):
        return f"{figures}; {counted}: {TAILS}"
    rest = f" (and {len(fatal) - 1} more below)" if len(fatal) > 1 else ""
    if fatal[0].what.startswith(UNMIXED):
        return f"Do not trust these draws yet: {fatal[0].what}; run longer{rest}"
    return f"Do not trust these draws: {fatal[0].what}{rest}"


def _notes(e: Evidence) -> Iterator[str]:
    """Yield further facts about the draws, a sentence each."""
    if e.law:
        yield f"The chains draw from {e.law}."
    if np.isfinite(e.worst_mcse):
        yield f"Standard errors of the means: at most {e.worst_mcse:.1%} of a standard deviation."
    if "modified_curvature" in e.stats:
        share = float((e.stats["modified_curvature"] > 0).mean())
        if share > 0:
            yield (
                f"Positive curvature was flattened in {share:.0%} of steps; along those "
                "directions the kernel steps as Langevin's does."
            )
    fixed = [name for name, d in floats(e).items() if is_constant(d)]
    if fixed and len(fixed) < len(e.draws):
        yield f"Constant by construction, so without R-hat or ESS: {some(fixed)}."
    if e.left_out:
        yield f"Left out, as no numbers by chain and draw: {some(list(e.left_out))}."
    if e.bias:
        worst = max(abs(f[of]) for f in e.bias.values() for of in ("mean", "sd"))
        error = max(f[of] for f in e.bias.values() for of in ("mean_error", "sd_error"))
        yield (
            "Step halving: the step size biases means and standard deviations by at most "
            f"{worst:.1%} of a standard deviation, with standard errors up to {error:.1%}."
        )
    if e.stein is not None:
        yield (
            f"Kernel Stein discrepancy {e.stein.discrepancy:.2g}, p = {e.stein.p_value:.2f} on "
            f"{e.stein.points} draws. It tests the sampler against its score, not the model, and "
            "does not see how much weight each of several far-apart modes has."
        )
