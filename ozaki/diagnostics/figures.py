"""These functions compute the figures that say whether to trust draws.

R-hat, ESS and MCSE are ArviZ's, rank-normalised as in Vehtari, Gelman, Simpson, Carpenter and
Bürkner (2021). The package passes these names on.
"""

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ozaki.diagnostics import circular
from ozaki.diagnostics.arviz_data import (
    component,
    components,
    drawn,
    groups,
    inference_data,
    left_out,
)
from ozaki.diagnostics.evidence import Evidence, is_constant
from ozaki.diagnostics.judgement import Verdict, judge
from ozaki.diagnostics.stein import SteinTest, stein_test
from ozaki.foundation.lazy import lazy
from ozaki.foundation.shapes import Float
from ozaki.scores.base import Score

if TYPE_CHECKING:
    from pandas import DataFrame
else:
    DataFrame = Any

az = lazy("arviz")
pd = lazy("pandas")

LEAST_POINTS = 50  # least nearly independent draws for a test that can fail
TAILS = (0.05, 0.95)  # the quantiles of the tail ESS


def summary(idata: Any) -> DataFrame:
    """Mean, sd, MCSE of the mean, bulk and tail ESS, and R-hat of every scalar component.

    R-hat and ESS are NaN for a component that is constant or not finite. For one chain, R-hat
    compares its halves. Of a variable with the attribute ``circular = 1``, angles in radians, the
    mean is atan2(mean sin, mean cos), the sd and the MCSE are those of the angles from it on, and
    R-hat and ESS the worse of the cosine's and the sine's. What is no numbers by chain and draw has
    no row: `left_out` names it.

    Args:
        idata: what `inference_data` returned.

    Returns:
        A pandas frame, a row for each component, with columns ``mean``, ``sd``, ``mcse_mean``,
        ``ess_bulk``, ``ess_tail`` and ``r_hat``.

    Raises:
        ValueError: no component, or two of one name.

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and
    localization.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4, 500))
        >>> float(summary(inference_data({"x": x})).loc["x", "r_hat"].round(2))
        1.0
    """
    angles = angular(idata)
    rows = {n: (_angle if n in angles else _figures)(d) for n, d in components(idata).items()}
    if not rows:
        raise ValueError("idata must hold at least one number a draw, but all its sites are empty")
    return pd.DataFrame.from_dict(rows, orient="index")


def angular(idata: Any) -> set[str]:
    """The components that are angles, by the attribute ``circular`` of their variable.

    Args:
        idata: what `inference_data` returned.

    Returns:
        Names of components.

    Example:
        >>> idata = inference_data({"a": np.zeros((4, 10, 2)), "x": np.zeros((4, 10))})
        >>> idata["posterior"]["a"].attrs["circular"] = 1
        >>> sorted(angular(idata))
        ['a[0]', 'a[1]']
    """
    return set(components(idata, marked=circular.MARK))


def _marked_entries(idata: Any, mark: str) -> list[str]:
    """Return the components whose place an attribute of their variable lists."""
    found = []
    for site, variable in drawn(idata).items():
        places = {int(i) for i in np.atleast_1d(variable.attrs.get(mark, []))}
        entries = itertools.product(*map(range, variable.shape[2:]))
        found += [component(site, index) for i, index in enumerate(entries) if i in places]
    return found


def effective_sample_size(draws: np.ndarray, method: str = "bulk") -> float:
    """ArviZ's effective sample size of draws; NaN where it is not defined.

    Args:
        draws: (chains, draws).
        method: of ArviZ's, such as "bulk", of which the mean is known, or "tail", the quantiles.

    Returns:
        A number of independent draws.

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and
    localization.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4, 500))
        >>> effective_sample_size(x) > 1500, effective_sample_size(0 * x)
        (True, nan)
    """
    options = {"prob": TAILS} if method == "tail" else {}
    return _number(az.ess(draws, method=method, **options)) if _usable(draws) else math.nan


def thinning(draws: np.ndarray) -> int:
    """How far apart draws must be to be nearly independent (correlation at most 0.02).

    The correlation is taken to fall off as ρᵏ with ρ = (τ − 1)/(τ + 1), where τ is draws by ESS of
    the slowest coordinate.

    Args:
        draws: (chains, draws, D).

    Returns:
        k: every k-th draw is to be kept; 1 for independent draws.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4, 5000, 1))
        >>> for i in range(1, 5000):  # correlation ρᵏ, ρ = ½: log 0.02 / log ½ = 5.6
        ...     x[:, i] += 0.5 * x[:, i - 1]
        >>> thinning(x)
        6
    """
    count = draws.shape[0] * draws.shape[1]
    sizes = [effective_sample_size(draws[..., i]) for i in range(draws.shape[-1])]
    tau = count / min((size for size in sizes if size > 0), default=1.0)
    rho = (tau - 1) / (tau + 1)
    return max(1, math.ceil(math.log(0.02) / math.log(rho))) if rho > 0 else 1


def sampler_test(score: Score, draws: Float[Tensor, "chains draws dim"]) -> SteinTest | None:
    """Test chains against the score they were drawn with, thinned until nearly independent.

    Args:
        score: what gives ∇ log p.
        draws: in the score's own flat coordinates, (chains, draws, D).

    Returns:
        The test, or None where draws are not finite or too few are nearly independent (fewer
        than 50): it would pass anything.

    Source: Chwialkowski, Strathmann and Gretton (2016), A kernel test of goodness of fit.

    Example:
        >>> from ozaki.scores import GaussianScore
        >>> score = GaussianScore(torch.zeros(2), torch.eye(2))
        >>> draws = score.sample(400, torch.Generator().manual_seed(0)).reshape(4, 100, 2)
        >>> sampler_test(score, draws).p_value > 0.05, sampler_test(score, draws[:, :10])
        (True, None)
    """
    if not bool(torch.isfinite(draws).all()):
        return None
    apart = thinning(draws.double().cpu().numpy())
    x = draws[:, ::apart].reshape(-1, draws.shape[-1])
    if len(x) < LEAST_POINTS:
        return None
    gradient = score.expand(x).gradient.detach()
    seeded = torch.Generator(x.device).manual_seed(0)  # the same draws, the same verdict
    return stein_test(x.double(), gradient.double(), generator=seeded)


def verdict(
    idata: Any,
    *,
    law: str | None = None,
    estimator_metrics: Mapping[str, Any] | None = None,
    stein: SteinTest | None = None,
    bias: DataFrame | None = None,
    table: DataFrame | None = None,
    need_stats: bool = False,
) -> Verdict:
    """Whether to trust the draws, in plain words, with a remedy for each problem.

    Args:
        idata: what `inference_data` returned.
        law: what the chains draw from, in words that follow "The chains draw from".
        estimator_metrics: held-out figures of a learned score; ``calibration`` is judged.
        stein: a test of the draws against their score.
        bias: what `step_bias` found of an unadjusted chain.
        table: what `summary` returned of the same draws, where it is at hand.
        need_stats: whether to doubt draws without the sampler's statistics, as ``ozaki report``
            does: chains that diverged may agree.

    Returns:
        The verdict; it is not trusted where a problem is fatal. Its notes name what is `left_out`.

    Raises:
        ValueError: no component, or two of one name.

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and
    localization.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4, 500))
        >>> verdict(inference_data({"x": x})).trusted
        True
    """
    draws = components(idata)
    table = summary(idata) if table is None else table
    flat = _marked_entries(idata, "flat")
    judged = table.drop(index=flat)  # whose R-hat and ESS say nothing of the rest
    relative = (judged["mcse_mean"] / judged["sd"]).to_numpy()
    known = relative[np.isfinite(relative)]
    return judge(
        Evidence(
            draws=draws,
            rhat=judged["r_hat"].to_dict(),
            ess_bulk=judged["ess_bulk"].to_dict(),
            ess_tail=judged["ess_tail"].to_dict(),
            stats=components(idata, "sample_stats") if "sample_stats" in groups(idata) else {},
            law=law,
            estimator_metrics=estimator_metrics,
            stein=stein,
            bias={} if bias is None else bias.to_dict("index"),
            worst_mcse=float(known.max()) if len(known) else math.nan,
            need_stats=need_stats,
            left_out=left_out(idata),
            circular=angular(idata),
            flat=flat,
            masked=_marked_entries(idata, "masked"),
            centred=[
                str(name)
                for name, variable in idata["posterior"].data_vars.items()
                if variable.attrs.get("centred")
            ],
            saturated={
                name: float(variable.attrs["saturated"])
                for name, variable in drawn(idata).items()
                if "saturated" in variable.attrs
            },
        )
    )


def step_bias(whole: Mapping[str, Any], half: Mapping[str, Any]) -> DataFrame:
    """What the step size does to the means and spreads of an unadjusted chain, by step halving.

    The bias of a step of weak order one is proportional to h: twice the change from h to h/2.

    Args:
        whole: draws at step size h by name, (chains, draws, ...).
        half: draws at h/2.

    Returns:
        A row for each component: `mean`, its bias in standard deviations, and `sd`, that of the
        standard deviation as a share of it, with their Monte Carlo standard errors, `mean_error`
        and `sd_error`.

    Raises:
        ValueError: no draws, or arrays that disagree in chains and draws.

    Source: Talay and Tubaro (1990), Expansion of the global error for numerical schemes.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(4, 500))
        >>> float(step_bias({"x": 1.1 * x}, {"x": x}).loc["x", "sd"].round(3))  # 2 (1.1 − 1)
        0.2
    """
    rows = {}
    one, other = (components(inference_data(draws)) for draws in (whole, half))
    for name, x in one.items():
        y = other[name]
        spread = y.std()
        errors = [
            [_number(az.mcse(d.astype(float), method=m)) / spread for d in (x, y)]
            for m in ("mean", "sd")
        ]
        rows[name] = {
            "mean": 2 * (x.mean() - y.mean()) / spread,
            "mean_error": 2 * math.hypot(*errors[0]),
            "sd": 2 * (x.std() / spread - 1),
            "sd_error": 2 * math.hypot(*errors[1]),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _figures(draws: np.ndarray) -> dict[str, float]:
    """Compute the row of `summary` for one component."""
    x = draws.astype(float)
    usable = _usable(draws)
    # halves in place of chains where there is one: ArviZ wants two
    chains = x if len(x) > 1 else x[:, : x.shape[1] // 2 * 2].reshape(2, -1)
    with np.errstate(invalid="ignore"):
        mean, sd = float(x.mean()), float(x.std(ddof=1)) if x.size > 1 else math.nan
    return {
        "mean": mean,
        "sd": sd,
        "mcse_mean": _number(az.mcse(x, method="mean")) if usable else math.nan,
        "ess_bulk": effective_sample_size(draws, "bulk"),
        "ess_tail": effective_sample_size(draws, "tail"),
        "r_hat": _number(az.rhat(chains)) if usable and chains.shape[1] >= 4 else math.nan,
    }


def _angle(draws: np.ndarray) -> dict[str, float]:
    """Compute the row of `summary` for an angle."""
    if not np.isfinite(draws).all():
        return _figures(draws)
    mean, away = circular.centred(draws.astype(float))
    of = [_figures(part) for part in circular.parts(draws, True)]
    return {
        **_figures(away),
        "mean": mean,
        # a constant cosine or sine has no R-hat and no ESS
        **{name: float(np.fmin.reduce([f[name] for f in of])) for name in ("ess_bulk", "ess_tail")},
        "r_hat": float(np.fmax.reduce([f["r_hat"] for f in of])),
    }


def _usable(draws: np.ndarray) -> bool:
    """Say whether ArviZ's figures are defined: at least 4 draws, finite, and not constant."""
    return draws.shape[1] >= 4 and bool(np.isfinite(draws).all()) and not is_constant(draws)


def _number(found: Any) -> float:
    """Return what ArviZ found as a number: where numba is installed it is an array of one entry."""
    return float(np.ravel(found)[0])
