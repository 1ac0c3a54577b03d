"""These functions draw figures of draws.

Each function takes components by name, each (chains, draws), and returns a matplotlib `Figure`
outside of matplotlib's global state. Only the first `PANELS` components are drawn, and lines of at
most `CHAINS` chains. Colours are Okabe and Ito's, which colour-blind readers can tell apart. The
ground is white, so that a figure reads on any page (the report turns it dark where the page is).
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ozaki.diagnostics import effective_sample_size
from ozaki.foundation.lazy import lazy

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any

mpl_figure = lazy("matplotlib.figure")
mpl_lines = lazy("matplotlib.lines")
stats = lazy("scipy.stats")

PANELS = 8
CHAINS = 40  # most chains with a line: more cannot be told apart
CHAINS_IN_LEGEND = 8
POINTS = 1000  # most points drawn per line or cloud
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
INK, FAINT = "#222222", "#8a8a8a"
_WIDTH = 5.0

Components = Mapping[str, np.ndarray]


def trace(components: Components) -> Figure:
    """Draw the draws of each chain in order, one panel a component."""
    figure, panels = _panels(components, 1.5)
    for axes, (name, draws) in zip(panels, _shown(components), strict=True):
        step = max(1, draws.shape[1] // POINTS)
        for chain, row in _lines(draws):
            steps = np.arange(len(row))[::step]
            axes.plot(steps, row[::step], color=_colour(chain), lw=0.6, alpha=0.8)
        axes.set_ylabel(name)
    panels[-1].set_xlabel("draw")
    _chain_legend(figure, len(next(iter(components.values()))))
    return figure


def rank(components: Components, bins: int = 20) -> Figure:
    """Draw how often each chain holds each rank among all draws, with a 95% band for equal chains.

    Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021).
    """
    figure, panels = _panels(components, 1.6)
    for axes, (name, draws) in zip(panels, _shown(components), strict=True):
        count = draws.shape[1]
        # shuffled first: ranking ties by chain would make equal chains look different
        shuffled = np.random.default_rng(0).permutation(draws.size)
        order = np.empty(draws.size, int)
        order[shuffled[np.argsort(draws.ravel()[shuffled], kind="stable")]] = np.arange(draws.size)
        order = order.reshape(draws.shape)
        edges = np.linspace(0, draws.size, min(bins, count) + 1)
        share = count / (len(edges) - 1)
        low, high = stats.binom.interval(0.95, count, 1 / (len(edges) - 1))
        axes.axhspan(low / share, high / share, color="#dddddd", lw=0)
        axes.axhline(1, color=FAINT, lw=0.8, ls="--")
        for chain, row in _lines(order):
            held, _ = np.histogram(row, edges)
            axes.stairs(
                held / share, edges / draws.size, baseline=None, color=_colour(chain), lw=1.2
            )
        axes.set_ylim(bottom=0)
        axes.set_ylabel(name)
    panels[-1].set_xlabel("rank among all draws, as a fraction")
    figure.supylabel("count / expected", fontsize=10)
    _chain_legend(figure, len(next(iter(components.values()))))
    return figure


def autocorrelation(components: Components, lags: int = 60) -> Figure:
    """Draw the correlation of draws k apart within each chain, against the lag k."""
    figure, panels = _panels(components, 1.4)
    for axes, (name, draws) in zip(panels, _shown(components), strict=True):
        axes.axhline(0, color=FAINT, lw=0.8)
        for chain, row in _lines(draws):
            axes.plot(_correlation(row, lags), color=_colour(chain), lw=1.2)
        axes.set_ylim(-0.25, 1.05)
        axes.set_ylabel(name)
    panels[-1].set_xlabel("lag in draws")
    _chain_legend(figure, len(next(iter(components.values()))))
    return figure


def ess_growth(components: Components, points: int = 10) -> Figure:
    """Draw bulk (solid) and tail (dashed) ESS of the first n draws, against n."""
    figure = mpl_figure.Figure(figsize=(_WIDTH, 3.8), layout="constrained")
    axes = _styled(figure.add_subplot())
    for number, (name, draws) in enumerate(_shown(components)):
        chains, count = draws.shape
        sizes = np.unique(np.linspace(min(20, count), count, points).astype(int))
        for method, style in (("bulk", "-"), ("tail", "--")):
            grown = [effective_sample_size(draws[:, :size], method) for size in sizes]
            label = name if method == "bulk" else None
            axes.plot(sizes * chains, grown, style, color=_colour(number), lw=1.5, label=label)
    wanted = 100 * len(next(iter(components.values())))
    axes.axhline(wanted, color=INK, lw=1, ls=":", label=f"wanted: {wanted}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("draws, all chains")
    axes.set_ylabel("effective sample size")
    axes.legend(frameon=False, fontsize=9)
    return figure


def marginals(components: Components, data: np.ndarray | None = None) -> Figure:
    """Draw the density of each component by chain, over that of the data where they match.

    Args:
        components: draws by name, each (chains, draws).
        data: (N, number of components), in the same units and order.
    """
    figure, panels = _panels(components, 1.8)
    for i, (axes, (name, draws)) in enumerate(zip(panels, _shown(components), strict=True)):
        finite = draws[np.isfinite(draws)]
        if data is not None:
            finite = np.concatenate([finite, data[:, i]])
        if len(finite):
            edges = np.linspace(finite.min(), finite.max(), 41)
            if data is not None and edges[-1] > edges[0]:
                held, _ = np.histogram(data[:, i], edges, density=True)
                axes.stairs(held, edges, fill=True, color="#cccccc", label="data")
            for chain, row in _lines(draws):
                if np.isfinite(row).any() and edges[-1] > edges[0]:
                    held, _ = np.histogram(row[np.isfinite(row)], edges, density=True)
                    axes.stairs(held, edges, color=_colour(chain), lw=1.2)
        axes.set_xlabel(name)
        axes.set_ylabel("density")
    if data is not None:
        panels[0].legend(frameon=False, fontsize=9)
    _chain_legend(figure, len(next(iter(components.values()))))
    return figure


def samples_over_data(
    components: Components, data: np.ndarray | None, labels: Sequence[str] | None = None
) -> Figure:
    """Draw two components against each other, with the data beneath.

    Args:
        components: the two components, each (chains, draws).
        data: (N, 2), or None.
        labels: the axes' names; the components' own when None.

    Raises:
        ValueError: other than two components, or data of another shape.
    """
    if len(components) != 2:
        raise ValueError(f"components must be two, but were {list(components)}")
    if data is not None and (data.ndim != 2 or data.shape[1] != 2):
        raise ValueError(f"data must have shape (N, 2), but had {data.shape}")
    figure = mpl_figure.Figure(figsize=(_WIDTH, 4.4), layout="constrained")
    axes = _styled(figure.add_subplot())
    x, y = (draws.reshape(-1) for draws in components.values())
    step = max(1, len(x) // (2 * POINTS))
    axes.scatter(
        x[::step], y[::step], s=9, color=COLOURS[0], alpha=0.35, lw=0, label="draws", zorder=1
    )
    if data is not None:
        few = data[:: max(1, len(data) // POINTS)]
        axes.scatter(
            few[:, 0], few[:, 1], s=16, marker="+", color=COLOURS[1], lw=1, label="data", zorder=2
        )
    across, up = (literal(name) for name in (labels or list(components))[:2])
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.legend(frameon=False, markerscale=1.6)
    return figure


def encode(figure: Figure) -> str:
    """Encode the figure as a PNG in a data URI, for a page that loads nothing."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def literal(text: str) -> str:
    """Escape a name, since matplotlib reads TeX between dollars."""
    return text.replace("$", r"\$")


def _shown(components: Components) -> list[tuple[str, np.ndarray]]:
    """Return the first components in float64, with NaN for infinities: matplotlib leaves gaps."""
    few = list(components.items())[:PANELS]
    return [(literal(name), np.where(np.isfinite(d), d, np.nan).astype(float)) for name, d in few]


def _lines(draws: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Return the numbers of the chains with a line, evenly spaced among all."""
    chains = len(draws)
    few = np.linspace(0, chains - 1, min(CHAINS, chains)).astype(int)
    return [(int(chain), draws[chain]) for chain in few]


def _panels(components: Components, height: float) -> tuple[Any, list[Any]]:
    rows = min(PANELS, len(components))
    figure = mpl_figure.Figure(figsize=(_WIDTH, height * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    return figure, [_styled(a) for a in axes]


def _styled(axes: Any) -> Any:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)
    axes.xaxis.label.set_size(10)
    axes.yaxis.label.set_size(10)
    return axes


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _chain_legend(figure: Any, chains: int) -> None:
    """Add a legend of the chains, if they are few."""
    if 1 < chains <= CHAINS_IN_LEGEND:
        handles = [mpl_lines.Line2D([], [], color=_colour(c), lw=2) for c in range(chains)]
        names = [f"chain {c}" for c in range(chains)]
        figure.legend(
            handles, names, loc="outside upper center", ncols=4, frameon=False, fontsize=9
        )


def _correlation(row: np.ndarray, lags: int) -> np.ndarray:
    """Compute autocorrelation by FFT, up to a quarter of the chain; NaN for an unusable row."""
    lags = max(2, min(lags, len(row) // 4))
    centred = row - row.mean()
    variance = float(centred @ centred)
    if not np.isfinite(variance) or variance == 0:
        return np.full(lags, np.nan)
    spectrum = np.fft.rfft(centred, 2 * len(row))
    return np.fft.irfft(np.abs(spectrum) ** 2)[:lags] / variance
