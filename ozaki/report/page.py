"""`write_report` writes one self-contained HTML page that says whether to trust the draws.

The verdict comes first, in plain words, with what to do about each problem; then the table, the
figures, the learned score's held-out figures, and the run's settings and versions.
"""

import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from ozaki.diagnostics import summary, verdict
from ozaki.diagnostics.arviz_data import components, drawn
from ozaki.diagnostics.calibration import Calibration
from ozaki.diagnostics.circular import uncut
from ozaki.diagnostics.figures import angular
from ozaki.diagnostics.judgement import Verdict
from ozaki.diagnostics.netcdf import existing_folder
from ozaki.diagnostics.stein import SteinTest
from ozaki.io import atomic
from ozaki.report import image_sheets, plots

ROWS = 50
CHAINS_SHOWN, DRAWS_SHOWN = 4, 8  # of images
SIDE = 4  # least pixels of an array that is shown as an image
PACKAGES = ("ozaki", "torch", "pyro-ppl", "arviz", "numpy")
METRICS = {
    "dsm": "Denoising loss of s1 (lower is better; its best value is below 0)",
    "residual_vr": "Residual loss of s2 (lower is better; its best value is below 0)",
    "calibration": "Calibration E[r²]/C by dimension (1 is right)",
    "calibration_mean": "Its mean",
    "held_out_rows": "Rows held out",
    "steps": "Training steps of the weights kept",
}

_PAGES = Environment(
    loader=PackageLoader("ozaki.report", "templates"), autoescape=True, undefined=StrictUndefined
)


class _Figure(NamedTuple):
    heading: str
    source: str
    alt: str
    caption: str
    picture: bool = False  # draws of images, whose colours are not a chart's


class _Facts(NamedTuple):
    heading: str
    lead: str
    rows: list[tuple[str, str]]


def write_report(
    path: str | os.PathLike[str],
    idata: Any,
    *,
    title: str,
    law: str | None = None,
    data: Any = None,
    data_columns: Sequence[str] | None = None,
    estimator_metrics: Mapping[str, Any] | None = None,
    stein: SteinTest | None = None,
    bias: Any = None,
    calibration: Calibration | None = None,
    denoised: Callable[[np.ndarray], np.ndarray] | None = None,
    run_info: Mapping[str, Any] | None = None,
    need_stats: bool = False,
) -> Verdict:
    """Write the page, whole or not at all; a file that is there is replaced.

    Args:
        path: the file, in a folder that exists.
        idata: what `ozaki.diagnostics.inference_data` returned.
        title: the page's heading.
        law: what the chains draw from, in words that follow "The chains draw from".
        data: (N, D) points to draw under the samples, in the order of the components; shown where
            D is their number.
        data_columns: the D columns' names.
        estimator_metrics: held-out figures of a learned score, by name.
        stein: a test of the draws against their score.
        bias: what `ozaki.diagnostics.step_bias` found of an unadjusted chain.
        calibration: of denoising by the learned score, as `Posterior.calibration` returned it.
        denoised: draws of images (chains, draws, *shape) to means of the clean ones behind them,
            which are then shown as well.
        run_info: the run's settings, by name; those kept with the draws when None.
        need_stats: whether to doubt draws without the sampler's statistics.

    Returns:
        The verdict that stands on the page.

    Raises:
        IsADirectoryError: `path` is a folder.
        FileNotFoundError: the folder of `path` does not exist.
    """
    path = existing_folder(path)
    table = summary(idata)
    judged = verdict(
        idata,
        law=law,
        estimator_metrics=estimator_metrics,
        stein=stein,
        bias=bias,
        table=table,
        need_stats=need_stats,
    )
    angles = angular(idata)
    # angles are drawn about their mean, wherever the circle was cut
    draws = {n: uncut(d) if n in angles else d for n, d in components(idata).items()}
    rows = _rows(table)
    settings = idata["posterior"].attrs if run_info is None else run_info
    page = _PAGES.get_template("report.html.j2").render(
        title=title,
        verdict=judged,
        tone=_tone(judged),
        columns=["mean", "sd", "mcse", "ess bulk", "ess tail", "r_hat"],
        rows=rows,
        hidden_rows=len(draws) - len(rows),
        shown_panels=min(plots.PANELS, len(draws)),
        hidden_panels=max(0, len(draws) - plots.PANELS),
        lines=plots.CHAINS,
        chains=len(next(iter(draws.values()))),
        figures=[
            *_pictures(idata, denoised),
            *_figures(draws, _matching(data, len(draws)), data_columns),
            *_denoising(calibration),
        ],
        facts=[
            _Facts(
                "The learned score",
                "Held-out figures. They test the model; R-hat, ESS and the Stein discrepancy test "
                "the sampler.",
                [(METRICS.get(k, k), _text(v)) for k, v in (estimator_metrics or {}).items()],
            ),
            _Facts("The run", "", [(k, _text(v)) for k, v in settings.items()]),
            _Facts("Versions", "", _versions()),
        ],
    )
    atomic.write_atomically(path, lambda file: _write(file, page), overwrite=True)
    return judged


def _write(file: Path, page: str) -> None:
    file.write_text(page, encoding="utf-8")


def _tone(judged: Verdict) -> str:
    if not judged.trusted:
        return "bad"
    return "warn" if judged.problems else "good"


def _rows(table: Any) -> list[tuple[str, list[str]]]:
    """Format the rows of the table; of many, those with the smallest ESS."""
    if len(table) > ROWS:
        table = table.sort_values("ess_bulk", na_position="last").head(ROWS)
    shown = []
    for name, figures in zip(table.index, table.itertuples(index=False), strict=True):
        *moments, bulk, tail, rhat = (float(f) for f in figures)
        sizes = [_number(size, ".0f") for size in (bulk, tail)]
        cells = [_number(m, ".4g") for m in moments] + sizes + [_number(rhat, ".3f")]
        shown.append((str(name), cells))
    return shown


def _matching(data: Any, count: int) -> np.ndarray | None:
    """Return the data as an array (N, D) if D is the number of components; None otherwise."""
    if data is None:
        return None
    array = data.detach().cpu().numpy() if isinstance(data, Tensor) else np.asarray(data)
    return array if array.ndim == 2 and array.shape[1] == count and len(array) else None


def _figures(
    draws: Mapping[str, np.ndarray], data: np.ndarray | None, columns: Sequence[str] | None
) -> list[_Figure]:
    """Draw the figures of the page, each with its description and advice."""
    names = ", ".join(list(draws)[: plots.PANELS])
    chains = len(next(iter(draws.values())))
    lines = f"{chains} chains"
    if chains > plots.CHAINS:
        lines = f"{plots.CHAINS} of {chains:,} chains, evenly spaced"
    found = []
    if len(draws) == 2:
        over = " over the data" if data is not None else ""
        found.append(
            _Figure(
                f"Samples{over}",
                plots.encode(plots.samples_over_data(draws, data, columns)),
                f"Scatter plot of the draws of {names}{over}.",
                "Draws should lie where the data lie, a little wider where noise was added.",
            )
        )
    found += [
        _Figure(
            "Densities",
            plots.encode(plots.marginals(draws, data)),
            f"Histogram of the draws of {names}, one line for each of {lines}.",
            "The lines of all chains should lie on one another.",
        ),
        _Figure(
            "Trace",
            plots.encode(plots.trace(draws)),
            f"The draws of {names} in order, one line for each of {lines}.",
            "Each chain should look like the others, without drift and without flat stretches.",
        ),
        _Figure(
            "Ranks",
            plots.encode(plots.rank(draws)),
            f"Histogram of a chain's ranks among all draws, for {names}, one line for each of "
            f"{lines}.",
            "Each line should wander about 1, mostly within the grey band; a slope or a hump is a "
            "chain that differs from the rest. Correlated draws stray further.",
        ),
        _Figure(
            "Autocorrelation",
            plots.encode(plots.autocorrelation(draws)),
            f"Autocorrelation of {names} against the lag, one line for each of {lines}.",
            "The sooner it falls to 0, the more each draw is worth.",
        ),
        _Figure(
            "Growth of the effective sample size",
            plots.encode(plots.ess_growth(draws)),
            f"Bulk and tail effective sample size of {names} against the number of draws.",
            "Solid: bulk; dashed: tail. Both should grow in a line; one that levels off has not "
            "seen the whole law.",
        ),
    ]
    return found


def _pictures(idata: Any, denoised: Callable[[np.ndarray], np.ndarray] | None) -> list[_Figure]:
    """Show a few draws of a few chains of each site that holds images."""
    found = []
    for name, draws in drawn(idata).items():
        shape = draws.shape[2:]
        if len(shape) not in (2, 3) or shape[:-2] not in ((), (1,), (3,)) or min(shape[-2:]) < SIDE:
            continue
        count = draws.shape[1]
        places = np.unique(np.linspace(0, count - 1, min(DRAWS_SHOWN, count)).astype(int))
        few = draws[:CHAINS_SHOWN, places].to_numpy()
        if not np.issubdtype(few.dtype, np.floating):
            continue
        found.append(_sheet(f"Draws of {name}", few, places))
        if denoised is not None:
            heading = f"Draws of {name} without their noise: another law"
            found.append(_sheet(heading, denoised(few), places))
    return found


def _sheet(heading: str, few: np.ndarray, places: np.ndarray) -> _Figure:
    """Draw one contact sheet: a row a chain, a column a draw."""
    if few.ndim == 4:
        few = few[:, :, None]
    columns = {f"draw {place + 1}": few[:, i] for i, place in enumerate(places)}
    names = [f"chain {i}" for i in range(len(few))]
    sheet = image_sheets.contact_sheet(columns, dict.fromkeys(columns, "intensity"), names)
    return _Figure(
        heading,
        plots.encode(sheet),
        f"{heading}: a row for each of {len(few)} chains, {len(columns)} draws in order.",
        "Chains that mix show unlike images along a row, and the same kinds in all rows.",
        picture=True,
    )


def _denoising(calibration: Calibration | None) -> list[_Figure]:
    """Draw the calibration of denoising, where it is known."""
    if calibration is None:
        return []
    inside = ", ".join(
        f"{v:.1%} inside the central {k:.0%}" for k, v in calibration.coverage.items()
    )
    return [
        _Figure(
            "Denoising: is its uncertainty right?",
            plots.encode(image_sheets.calibration(calibration)),
            "Squared error against predicted variance by bins, and the share of the squared error "
            "in the first principal components.",
            f"Squared error over predicted variance is {calibration.ratio:.2f} (1 is right): "
            f"above the line the variance is too small. {inside}, which is "
            "nominal where the posterior of a coordinate is normal.",
        )
    ]


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def _text(value: Any) -> str:
    """Write a setting as the page shows it."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        more = f", … ({len(value)} in all)" if len(value) > 12 else ""
        return ", ".join(_text(v) for v in value[:12]) + more
    return str(value)


def _versions() -> list[tuple[str, str]]:
    """List the versions of Python and of the packages that are installed."""
    found = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found
