"""`run` reads noisy points from files, denoises them, and writes the results to a folder.

``denoised.npz`` holds, a row a point: mean, standard_deviation, components (rows, k, *event_shape)
and component_variances (rows, k), samples (n, rows, *event_shape) if asked for, noise_scale, sigma,
and files, the names of images. ``contact-sheet.png`` shows the first images, ``calibration.png``
whether the uncertainty is right.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ozaki.denoising.clean_points import POINTS, check_floats, denoise
from ozaki.denoising.posterior import Posterior
from ozaki.diagnostics.calibration import Calibration, calibrate
from ozaki.foundation import validation
from ozaki.io.atomic import write_folder_atomically
from ozaki.io.png import image_shape, png_files, read_png
from ozaki.io.tables import NUMPY, headers, is_csv, read_array
from ozaki.report.image_sheets import calibration, contact_sheet
from ozaki.scores.learned.estimator import ScoreEstimator

ARRAYS, SHEET, FIGURE = "denoised.npz", "contact-sheet.png", "calibration.png"
BATCH = 256  # points denoised at a time
SHOWN, SHOWN_COMPONENTS = 8, 5  # most rows and components on the sheet
CUT = 0.05  # share of pixels at an end of the range above which a note is given


class Done(NamedTuple):
    """The results of `run`, for the user.

    Attributes:
        points: how many were denoised.
        sigma: of the estimator, in its standardised units.
        deviation: the mean standard deviation, or None where only s1 was learned.
        repaired: of how many points the covariance had to be made positive definite.
        calibration: how the uncertainty agrees with the true points, where they were given.
        failed: what was wrong, by the name of an image that could not be read.
        notes: further remarks for the user.
        written: names of the files in the folder.
    """

    points: int
    sigma: float | None
    deviation: float | None
    repaired: int
    calibration: Calibration | None
    failed: dict[str, str]
    notes: list[str]
    written: list[str]

    def summary(self) -> dict[str, Any]:
        """The results in the types of JSON."""
        return {
            "points": self.points,
            "sigma": self.sigma,
            "mean_standard_deviation": self.deviation,
            "repaired_points": self.repaired,
            "calibration": None if self.calibration is None else self.calibration._asdict(),
            "failed": self.failed,
            "written": self.written,
        }


def run(
    source: Path,
    folder: Path,
    out: Path,
    sigma: float | None = None,
    samples: int = 0,
    components: int = 3,
    seed: int = 0,
    clean: Path | None = None,
    *,
    header: bool | None = None,
    overwrite: bool = False,
) -> Done:
    """Denoise the points in `source` with the estimator in `folder`, into the folder `out`.

    What `header` is of a .csv stands at `ozaki.datasets.table`.

    Raises:
        ValueError, OSError, ImportError: naming what was wrong; nothing is then written.
    """
    read = headers(header, [source] if clean is None else [source, clean])
    estimator = ScoreEstimator.load(folder)
    learned = estimator.default_curvature is not None
    if samples and not learned:
        raise ValueError(
            f"samples need s2, but {folder} holds s1 alone; train with --curvature diagonal or "
            "low_rank, or leave --samples out"
        )
    failed: dict[str, str] = {}
    noisy, names = _read(source, read[source], estimator, failed)
    truth = None if clean is None else _truth(clean, read[clean], estimator, noisy, names)
    if clean is not None and not learned:
        raise ValueError(
            f"--clean needs s2, but {folder} holds s1 alone, which states no uncertainty; leave "
            "it out"
        )
    notes = [] if learned else [f"{folder} holds s1 alone: the mean is all that is written"]
    cut = float(((noisy <= 0) | (noisy >= 1)).double().mean()) if names else 0.0
    if cut > CUT:
        notes.append(
            f"{cut:.0%} of the pixels are wholly black or white: a .png cuts noise off there, "
            "which the estimator does not expect; give floating-point arrays where you have them"
        )
    sigma, warned = _level(estimator, noisy, sigma)
    notes += warned
    generator = torch.Generator().manual_seed(seed)
    k = min(components, estimator.dim) if learned else 0
    arrays, repaired = _denoised(estimator, noisy, sigma, k, samples, generator)
    if repaired:
        notes.append(
            f"the learned covariance of {repaired} of {len(noisy)} points was not positive "
            "definite, and was repaired there (see Posterior.repaired); the means are as learned"
        )
    if names:
        arrays["files"] = np.array(names)
    figures = {SHEET: _sheet(noisy, arrays, estimator.event_shape, names)}
    found = None if truth is None else _calibration(truth, arrays)
    if found is not None:
        figures[FIGURE] = calibration(found)
    figures = {name: figure for name, figure in figures.items() if figure is not None}
    _write(out, arrays, figures, overwrite)
    deviation = float(arrays["standard_deviation"].mean()) if learned else None
    written = [ARRAYS, *figures]
    level = float(arrays["sigma"])
    return Done(len(noisy), level, deviation, repaired, found, failed, notes, written)


def _denoised(
    estimator: ScoreEstimator,
    noisy: Tensor,
    sigma: float | None,
    k: int,
    samples: int,
    generator: torch.Generator,
) -> tuple[dict[str, np.ndarray], int]:
    """Denoise all points; return their arrays, and how many covariances were repaired."""
    parts, repaired = [], 0
    for rows in noisy.split(BATCH):
        posterior = denoise(estimator, rows, sigma)
        if posterior.has_covariance:
            posterior = posterior.repaired()
            repaired += posterior.repaired_points
        parts.append(_arrays(posterior, k, samples, generator))
    arrays = {
        name: np.concatenate([p[name] for p in parts], axis=1 if name == "samples" else 0)
        for name in parts[0]
    }
    level = estimator if sigma is None else estimator.at(sigma)
    arrays["noise_scale"] = level.noise_scale.reshape(noisy.shape[1:]).numpy()
    arrays["sigma"] = np.array(level.sigma)
    return arrays, repaired


def _write(
    out: Path, arrays: Mapping[str, np.ndarray], figures: Mapping[str, Any], overwrite: bool
) -> None:
    """Write the arrays and the figures into the folder `out`, all or nothing."""

    def fill(temporary: Path) -> None:
        np.savez_compressed(temporary / ARRAYS, **arrays)  # pyright: ignore[reportArgumentType]
        for name, figure in figures.items():
            figure.savefig(temporary / name, dpi=120)

    write_folder_atomically(out, fill, ours=is_ours, overwrite=overwrite)


def _read(
    source: Path, header: bool | None, estimator: ScoreEstimator, failed: dict[str, str]
) -> tuple[Tensor, list[str]]:
    """Read points, and the names of images; images that cannot be read are noted in `failed`."""
    if source.is_dir() or source.suffix.lower() == ".png":
        return _images(source, estimator, failed)
    return _array(source, header, estimator), []


def _truth(
    clean: Path,
    header: bool | None,
    estimator: ScoreEstimator,
    noisy: Tensor,
    names: list[str],
) -> Tensor:
    """Read the true points, (n, D)."""
    failed: dict[str, str] = {}
    truth, same = _read(clean, header, estimator, failed)
    if names and same:  # matched by name, since some may be broken
        missing = [name for name in names if name not in same]
        if missing:
            why = failed.get(missing[0], f"{clean} holds none of that name")
            raise ValueError(f"--clean must have the true image of {missing[0]}: {why}")
        truth = truth[[same.index(name) for name in names]]
    if len(truth) != len(noisy):
        raise ValueError(
            f"--clean must have the {len(noisy)} true points in their order, but {clean} "
            f"had {len(truth)}"
        )
    return truth.reshape(len(noisy), -1)


def _calibration(truth: Tensor, arrays: Mapping[str, np.ndarray]) -> Calibration:
    """Compare the uncertainty with the errors at the true points."""

    def flat(name: str) -> Tensor:
        return torch.from_numpy(arrays[name]).double().reshape(truth.shape)

    error = truth.double() - flat("mean")
    along = None
    if "components" in arrays:
        directions = torch.from_numpy(arrays["components"]).double().flatten(2)
        along = (directions @ error.unsqueeze(-1)).squeeze(-1)
    noise = torch.from_numpy(arrays["noise_scale"]).double().flatten()
    return calibrate(error, flat("standard_deviation"), noise, along)


def _level(
    estimator: ScoreEstimator, noisy: Tensor, sigma: float | None
) -> tuple[float | None, list[str]]:
    """Return σ, one for all points, and the warnings that the search for it gave."""
    if sigma is not None or not isinstance(estimator.sigma, tuple):
        return sigma, []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = denoise(estimator, noisy[:: -(-len(noisy) // POINTS)]).sigma
    return found, [str(w.message).replace("; give sigma", "; give --sigma") for w in said]


def _images(
    source: Path, estimator: ScoreEstimator, failed: dict[str, str]
) -> tuple[Tensor, list[str]]:
    """Read images, (n, *event_shape), and their names; note those that cannot be read."""
    shape = image_shape(estimator.event_shape)
    read: dict[str, Tensor] = {}
    for path in png_files(source):
        try:
            read[path.name] = read_png(path, shape).reshape(estimator.event_shape)
        except ValueError as error:
            failed[path.name] = str(error)
    if not read:
        first, *others = failed.items()
        few = ", ".join(name for name, _ in others[:5]) + (", …" if len(others) > 5 else "")
        also = f"; nor could {few} be read" if others else ""
        raise ValueError(f"{first[1]}{also}; nothing was written")
    return torch.stack(list(read.values())), list(read)


def _array(source: Path, header: bool | None, estimator: ScoreEstimator) -> Tensor:
    """Read points from a file of numbers, (n, *event_shape) or (n, D)."""
    if not source.exists():
        raise FileNotFoundError(
            f"{source} does not exist; give a .csv, .npy or .npz, a .png, or a folder of .png"
        )
    if not is_csv(source) and source.suffix.lower() not in NUMPY:
        raise ValueError(
            f"{source} must be a .csv, .npy, .npz or .png file, or a folder of .png, but its "
            f"suffix was {source.suffix!r}; save it as one of those"
        )
    array = read_array(source, header)
    check_floats(str(source), array)
    noisy = validation.floating(str(source), array)
    event, flat = estimator.event_shape, torch.Size([estimator.dim])
    if noisy.shape in (event, flat):
        noisy = noisy.unsqueeze(0)
    if noisy.shape[1:] not in (event, flat) or not len(noisy):
        rows = f"(n, {', '.join(map(str, event))})"
        raise ValueError(
            f"{source} must hold points {rows}{'' if event == flat else f' or (n, {flat[0]})'}, as "
            f"the estimator was trained on, but its array had shape {tuple(noisy.shape)}"
        )
    return noisy


def _arrays(
    posterior: Posterior, k: int, samples: int, generator: torch.Generator
) -> dict[str, np.ndarray]:
    """Compute the arrays that are written for one posterior."""
    found = {"mean": posterior.mean.numpy()}
    if posterior.has_covariance:
        found["standard_deviation"] = posterior.standard_deviation.numpy()
    if k:
        variances, directions = posterior.principal_components(k)
        found["components"] = directions.numpy()
        found["component_variances"] = variances.numpy()
    if samples:
        found["samples"] = posterior.sample(samples, generator).numpy()
    return found


def _sheet(
    noisy: Tensor, arrays: Mapping[str, np.ndarray], event_shape: torch.Size, names: Sequence[str]
) -> Any:
    """Draw the first images, or return None where points are no images."""
    try:
        shape = image_shape(event_shape)
    except ValueError:
        return None
    few = min(SHOWN, len(noisy))

    def images(values: np.ndarray) -> np.ndarray:
        return values[:few].reshape(few, *shape)

    columns = {"noisy": images(noisy.numpy()), "mean": images(arrays["mean"])}
    scales = {"noisy": "intensity", "mean": "intensity"}
    if "standard_deviation" in arrays:
        columns["standard\ndeviation"] = images(arrays["standard_deviation"])
        scales["standard\ndeviation"] = "size"
    if "components" in arrays:
        for j in range(min(SHOWN_COMPONENTS, arrays["components"].shape[1])):
            columns[f"component {j + 1}"] = images(arrays["components"][:, j])
            scales[f"component {j + 1}"] = "signed"
    note = f"The first {few} of {len(noisy)}." if few < len(noisy) else ""
    if "components" in arrays:
        what = "red and blue move apart" if shape[0] == 1 else "grey stays"
        note += f" Components: {what}; each on its own scale."
    return contact_sheet(columns, scales, names[:few], note.strip())


def is_ours(folder: Path) -> bool:
    """Say whether a folder holds what `run` writes and nothing else."""
    return {p.name for p in folder.iterdir()} <= {ARRAYS, SHEET, FIGURE}
