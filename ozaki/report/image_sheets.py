"""These functions draw figures of denoised points: a contact sheet of images, and calibration."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ozaki.diagnostics.calibration import Calibration
from ozaki.foundation.lazy import lazy
from ozaki.report.plots import COLOURS, FAINT, INK, literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any

mpl_figure = lazy("matplotlib.figure")


def contact_sheet(
    columns: Mapping[str, np.ndarray],
    scales: Mapping[str, str],
    names: Sequence[str] = (),
    note: str = "",
) -> Figure:
    """Draw images side by side: a row a point, a column a kind, such as noisy, mean, component.

    Args:
        columns: by name, images (rows, channels, height, width) with one channel or three.
        scales: by name of a column, how it is shown: "intensity", black at 0 and white at 1, or
            as far beyond as the last such column reaches; "size", black at 0, white at the
            greatest of the column, which its title tells; "signed", each image on its own scale,
            of one channel blue below 0 and red above it, of three grey at 0.
        names: of the rows; none are written if empty.
        note: below the images.
    """
    rows = len(next(iter(columns.values())))
    plain = [c for n, c in columns.items() if scales[n] == "intensity"][-1]
    low, high = min(0.0, float(plain.min())), max(1.0, float(plain.max()))
    size = (1.1 * len(columns) + (0.9 if names else 0.0), 1.1 * rows + (0.7 if note else 0.5))
    figure = mpl_figure.Figure(figsize=size, layout="constrained", facecolor="white")
    panels = figure.subplots(rows, len(columns), squeeze=False)
    for j, (name, images) in enumerate(columns.items()):
        largest = _largest(images)
        of = f"\n0 to {largest:.2g}" if scales[name] == "size" else ""
        panels[0, j].set_title(literal(name) + of, fontsize=8, color=INK)
        for axes, image in zip(panels[:, j], images, strict=True):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            colours = "gray"
            if scales[name] == "intensity":
                shown = (image - low) / (high - low)
            elif scales[name] == "size":
                shown = image / largest
            else:
                shown = 0.5 + 0.5 * image / _largest(image)
                colours = "RdBu_r"
            shown = np.clip(shown, 0, 1).astype(float).transpose(1, 2, 0)
            flat = shown.squeeze(-1) if shown.shape[-1] == 1 else shown
            axes.imshow(flat, colours, vmin=0, vmax=1)
    for axes, name in zip(panels[:, 0], names, strict=False):
        short = name if len(name) <= 18 else f"{name[:8]}…{name[-9:]}"
        axes.set_ylabel(literal(short), fontsize=7, color=INK, rotation=0, ha="right", va="center")
    if note:
        figure.supxlabel(literal(note), fontsize=8, color=INK)
    return figure


def calibration(found: Calibration) -> Figure:
    """Draw observed against predicted variance, by bin; and the error that the components hold.

    Args:
        found: what `Posterior.calibration` returned.
    """
    figure = mpl_figure.Figure(figsize=(9, 3.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    predicted = np.array([b.predicted for b in found.bins])
    observed = np.array([b.observed for b in found.bins])
    positive = np.concatenate([predicted, observed])
    ends = positive[positive > 0]
    line = [ends.min() / 1.5, ends.max() * 1.5] if len(ends) else [0.1, 1.0]
    left.plot(line, line, color=FAINT, lw=1, label="where they agree")
    left.plot(
        predicted, observed, "o", color=COLOURS[0], label=f"bins; ratio of all {found.ratio:.2f}"
    )
    left.set(
        xscale="log",
        yscale="log",
        xlabel="mean predicted variance, of the noise's",
        ylabel="mean squared error, in the same",
    )
    left.legend(frameon=False, fontsize=8)
    right.bar(np.arange(1, 1 + len(found.explained)), found.explained, color=COLOURS[0])
    right.set(xlabel="in the first k components", ylabel="share of the squared error", ylim=(0, 1))
    right.set_xticks(np.arange(1, 1 + len(found.explained)))
    return figure


def _largest(values: np.ndarray) -> float:
    """Return the greatest absolute value; where all are zero, a number to divide by."""
    return max(float(np.abs(values).max()), np.finfo(float).tiny)
