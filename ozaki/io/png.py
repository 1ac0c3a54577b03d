"""These functions read .png files as points of an estimator.

A .png holds whole numbers; they are divided by the largest that the file's depth allows, so that
intensities lie in [0, 1], as those of `ozaki.datasets`. Nothing else is changed: an image of
another size or with other channels is refused, not fitted.
"""

import math
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ozaki.foundation import validation
from ozaki.foundation.lazy import lazy

pillow = lazy("PIL.Image")

# pillow's mode: channels, and the largest intensity
_MODES = {"1": (1, 1), "L": (1, 255), "I;16": (1, 65535), "RGB": (3, 255)}


def png_files(source: Path) -> list[Path]:
    """Return the .png file `source`, or the .png files in the folder `source`, sorted by name.

    Raises:
        ValueError: a folder without any.
    """
    if not source.is_dir():
        return [source]
    files = sorted(p for p in source.iterdir() if p.suffix.lower() == ".png" and p.is_file())
    if not files:
        raise ValueError(f"{source} holds no .png files; give a folder of images, or one file")
    return files


def image_shape(event_shape: torch.Size) -> tuple[int, int, int]:
    """Return (channels, height, width) of points that are images.

    Raises:
        ValueError: points of another kind.
    """
    shape = (1, *event_shape) if len(event_shape) == 2 else tuple(event_shape)
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"the estimator was trained on points of shape {tuple(event_shape)}, not on images "
            "(channels, height, width) of 1 or 3 channels; give it a .csv, .npy or .npz"
        )
    return shape  # pyright: ignore[reportReturnType]


def read_folder(source: Path, failed: dict[str, str]) -> Tensor:
    """Read the images of a folder, (n, channels, height, width), all of the most common shape.

    Args:
        source: a folder of .png.
        failed: a mapping into which the files that are left out are put: name → what was wrong.

    Raises:
        ImportError: pillow is not installed.
        ValueError: no image could be read.
    """
    images: dict[str, Tensor] = {}
    for path in png_files(source):
        try:
            images[path.name] = read_png(path)
        except ValueError as error:
            failed[path.name] = str(error)
    if not images:
        first = next(iter(failed.values()))
        raise ValueError(f"{first}; no image of the {len(failed)} in {source} could be read")
    shapes = Counter(image.shape for image in images.values())
    shape, count = shapes.most_common(1)[0]
    for name, image in images.items():
        if image.shape != shape:
            failed[name] = (
                f"{source / name} must have {shape[0]} channel(s), height {shape[1]} and width "
                f"{shape[2]}, as {count} of the images have, but had {tuple(image.shape)}"
            )
    return torch.stack([image for image in images.values() if image.shape == shape])


def read_png(path: Path, shape: tuple[int, int, int] | None = None) -> Tensor:
    """Read one image with intensities in [0, 1], float32, (channels, height, width).

    Args:
        path: a .png of grey, 8 or 16 bits deep, or of RGB; a palette counts as RGB.
        shape: what it must have; None takes any.

    Raises:
        ImportError: pillow is not installed.
        ValueError: a file that is missing or broken, or an image of another shape.
    """
    try:
        opener: Any = pillow.open
    except ImportError as error:
        raise ImportError(
            "reading .png needs pillow, which is not installed: pip install 'ozaki[images]'"
        ) from error
    if not path.is_file():
        raise ValueError(f"{path} does not exist or is not a file")
    # pillow's own limit lets a file of 200 kB become 170 MB
    with (
        warnings.catch_warnings(action="ignore", category=pillow.DecompressionBombWarning),
        validation.parsing(path, "is not a whole .png image", "restore it from a copy"),
    ):
        with opener(path, formats=("PNG",)) as image:
            image.verify()  # the checksums, which unpacking does not check
        with opener(path, formats=("PNG",)) as image:
            mode = "RGB" if image.mode == "P" else image.mode
            lost = _lost(image)
            found = (_MODES.get(mode, (0, 0))[0], image.height, image.width)
            if found[0] and shape in (None, found) and not lost:  # before the pixels are unpacked
                validation.unpacked(path, 4 * math.prod(found))  # of floats
                pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
            else:
                pixels = None
    if lost:
        raise ValueError(f"{path} must be a grey or RGB image, but was {lost}")
    if pixels is None:
        if shape is None:
            raise ValueError(f"{path} must be a grey or RGB image, but was of mode {mode}")
        what = "grey" if shape[0] == 1 else "RGB"
        raise ValueError(
            f"{path} must be a {what} image of height {shape[1]} and width {shape[2]}, as the "
            f"estimator was trained on, but was of mode {mode}, height {found[1]}, width {found[2]}"
        )
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes, np.float32, order="C")).div_(_MODES[mode][1])


def _lost(image: Any) -> str:
    """Say what pillow would drop from the pixels of an opened .png, and what to do; or nothing."""
    if "transparency" in image.info:
        return f"of mode {image.mode} with transparency; save it without"
    if image.mode == "RGB" and image.tile and str(image.tile[0][3]).endswith(";16B"):
        return (
            "RGB of 16 bits, of which pillow reads 8; save the numbers as .npy, or the image with "
            "8 bits"
        )
    return ""
