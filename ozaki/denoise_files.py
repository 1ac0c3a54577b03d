"""Noisy points from files, and what is known of the clean ones into a folder (floor 8).

``denoised.npz`` holds, a row a point: mean, standard_deviation, components (rows, k, *event_shape)
and component_variances (rows, k), samples (n, rows, *event_shape) if asked for, noise_scale, sigma,
and files, the names of images. ``contact-sheet.png`` shows the first images.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ozaki.datasets import table
from ozaki.denoising import denoise, find_sigma
from ozaki.images import image_shape, png_files, read_png
from ozaki.plots import contact_sheet
from ozaki.posterior import Posterior
from ozaki.scores.estimator import ScoreEstimator
from ozaki.storage import write_folder_atomically

ARRAYS, SHEET = "denoised.npz", "contact-sheet.png"
BATCH = 256  # points a time
SHOWN, SHOWN_COMPONENTS = 8, 5  # rows and components on the sheet


class Done(NamedTuple):
    """What a run did.

    Attributes:
        points: how many were denoised.
        sigma: of the estimator, in its standardised units.
        deviation: the mean standard deviation, or None where only s1 was learned.
        repaired: of how many points the covariance had to be made positive definite.
        failed: what was wrong, by the name of an image that could not be read.
        notes: what else a person should know.
        written: names of the files in the folder.
    """

    points: int
    sigma: float | None
    deviation: float | None
    repaired: int
    failed: dict[str, str]
    notes: list[str]
    written: list[str]

    def summary(self) -> dict[str, Any]:
        """The same, as JSON can say it."""
        return {
            "points": self.points,
            "sigma": self.sigma,
            "mean_standard_deviation": self.deviation,
            "repaired_points": self.repaired,
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
    *,
    overwrite: bool = False,
) -> Done:
    """Denoise the points in `source` with the estimator in `folder`, into the folder `out`.

    Raises:
        ValueError, OSError, ImportError: naming what was wrong; nothing is then written.
    """
    estimator = ScoreEstimator.load(folder)
    failed: dict[str, str] = {}
    if source.is_dir() or source.suffix.lower() == ".png":
        noisy, names = _images(source, estimator, failed)
    else:
        noisy, names = _array(source, estimator), []
    notes: list[str] = []
    learned = estimator.default_curvature is not None
    if samples and not learned:
        raise ValueError(
            f"samples need s2, but {folder} holds s1 alone; train with --curvature diagonal or "
            "low_rank, or leave --samples out"
        )
    if not learned:
        notes.append(f"{folder} holds s1 alone: the mean is all that is written")
    if isinstance(estimator.sigma, tuple):
        sigma = find_sigma(estimator, noisy.reshape(len(noisy), -1)) if sigma is None else sigma
    generator = torch.Generator().manual_seed(seed)
    k = min(components, estimator.dim)
    parts = []
    repaired = 0
    for rows in noisy.split(BATCH):
        posterior = denoise(estimator, rows, sigma)
        if learned:
            posterior = posterior.repaired()
            repaired += posterior.repaired_points
        parts.append(_arrays(posterior, k if learned else 0, samples, generator))
    if repaired:
        notes.append(
            f"the learned covariance of {repaired} of {len(noisy)} points was not positive "
            "definite, and was repaired there (see Posterior.repaired); the means are as learned"
        )
    arrays = {
        name: np.concatenate([p[name] for p in parts], axis=1 if name == "samples" else 0)
        for name in parts[0]
    }
    arrays["noise_scale"] = posterior.noise_scale.numpy()  # pyright: ignore
    if posterior.sigma is not None:  # pyright: ignore
        sigma = float(posterior.sigma)  # pyright: ignore
        arrays["sigma"] = np.array(sigma)
    if names:
        arrays["files"] = np.array(names)
    sheet = _sheet(noisy, arrays, estimator.event_shape)

    def write(temporary: Path) -> None:
        np.savez_compressed(temporary / ARRAYS, **arrays)  # pyright: ignore[reportArgumentType]
        if sheet is not None:
            sheet.savefig(temporary / SHEET, dpi=120)

    write_folder_atomically(out, write, ours=_is_ours, overwrite=overwrite)
    written = [ARRAYS, *([SHEET] if sheet is not None else [])]
    deviation = float(arrays["standard_deviation"].mean()) if learned else None
    return Done(len(noisy), sigma, deviation, repaired, failed, notes, written)


def _images(
    source: Path, estimator: ScoreEstimator, failed: dict[str, str]
) -> tuple[Tensor, list[str]]:
    """The images that can be read, (n, *event_shape), and their names; the others are noted."""
    shape = image_shape(estimator.event_shape)
    read: dict[str, Tensor] = {}
    for path in png_files(source):
        try:
            read[path.name] = read_png(path, shape).reshape(estimator.event_shape)
        except ValueError as error:
            failed[path.name] = str(error)
    if not read:
        others = f"; nor could {len(failed) - 1} others be read" if len(failed) > 1 else ""
        raise ValueError(f"{next(iter(failed.values()))}{others}; nothing was written")
    return torch.stack(list(read.values())), list(read)


def _array(source: Path, estimator: ScoreEstimator) -> Tensor:
    """Points (n, *event_shape) or (n, D)."""
    try:
        noisy = table(source)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{source} does not exist; give a .csv, .npy or .npz, a .png, or a folder of .png"
        ) from None
    return noisy.unsqueeze(0) if noisy.shape == estimator.event_shape else noisy


def _arrays(
    posterior: Posterior, k: int, samples: int, generator: torch.Generator
) -> dict[str, np.ndarray]:
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


def _sheet(noisy: Tensor, arrays: Mapping[str, np.ndarray], event_shape: torch.Size) -> Any:
    """A figure of the first images, or None where points are none."""
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
    return contact_sheet(columns, scales)


def _is_ours(folder: Path) -> bool:
    return {p.name for p in folder.iterdir()} <= {ARRAYS, SHEET}
