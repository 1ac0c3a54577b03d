"""This module reads real data sets: one shipped with the package, two from a folder.

`old_faithful` needs nothing. `mnist` reads the four IDX files of LeCun et al., as they are or
gzipped; `cifar10_subset` reads one .npz of CIFAR-10 images. `table`, of `ozaki.io.tables`, reads a
file of numbers.
"""

import os
from importlib import resources
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ozaki.foundation import validation
from ozaki.foundation.shapes import Float
from ozaki.io.tables import check_zip, read_idx, table

__all__ = [
    "CIFAR10_CLASSES",
    "OLD_FAITHFUL_COLUMNS",
    "Images",
    "cifar10_subset",
    "mnist",
    "old_faithful",
    "table",
]

OLD_FAITHFUL_COLUMNS = ("eruption_minutes", "waiting_minutes")
"""The names of the columns of `old_faithful`."""

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
"""The names of the labels of `cifar10_subset`, by number."""

_MNIST_PREFIX = {"train": "train", "test": "t10k"}


class Images(NamedTuple):
    """Images and what they show.

    Attributes:
        images: intensities in [0, 1], (N, channels, height, width), float32.
        labels: class numbers, (N,), int64.

    Example:
        >>> images, labels = Images(torch.zeros(2, 1, 28, 28), torch.tensor([7, 3]))
        >>> images[labels == 3].shape
        torch.Size([1, 1, 28, 28])
    """

    images: Tensor
    labels: Tensor


def old_faithful() -> Float[Tensor, "272 2"]:
    """The 272 eruptions of Old Faithful: their length and the wait until the next, in minutes.

    Returns:
        (272, 2), float32, with columns `OLD_FAITHFUL_COLUMNS`.

    Source: Azzalini and Bowman (1990), Applied Statistics 39, 357-365; the version in R's
    `datasets::faithful`.

    Example:
        >>> old_faithful()[0]
        tensor([ 3.6000, 79.0000])
    """
    text = resources.files("ozaki").joinpath("data/old_faithful.csv").read_text("utf-8")
    header, *rows = text.split()
    if tuple(header.split(",")) != OLD_FAITHFUL_COLUMNS:
        raise ValueError(f"old_faithful.csv begins with {header!r}; reinstall ozaki")
    return torch.tensor([[float(cell) for cell in row.split(",")] for row in rows])


def mnist(root: str | os.PathLike[str], split: Literal["train", "test"] = "train") -> Images:
    """MNIST's handwritten digits from a folder of IDX files.

    Args:
        root: the folder that holds ``train-images-idx3-ubyte`` and the other three, each with or
            without ``.gz``.
        split: "train" (60,000 images) or "test" (10,000).

    Returns:
        Images (N, 1, 28, 28) and labels (N,).

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a file that is truncated or is not what its name says.

    Source: LeCun, Bottou, Bengio and Haffner (1998), Proceedings of the IEEE 86, 2278-2324.

    Example:
        >>> import tempfile
        >>> image = bytes((0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28)) + bytes(28 * 28)
        >>> label = bytes((0, 0, 8, 1, 0, 0, 0, 1, 7))
        >>> with tempfile.TemporaryDirectory() as root:  # of one black image, a seven
        ...     _ = Path(root, "train-images-idx3-ubyte").write_bytes(image)
        ...     _ = Path(root, "train-labels-idx1-ubyte").write_bytes(label)
        ...     images, labels = mnist(root)
        >>> images.shape, labels
        (torch.Size([1, 1, 28, 28]), tensor([7]))
    """
    prefix = _MNIST_PREFIX[validation.choice("split", split, tuple(_MNIST_PREFIX))]
    folder = _folder(root)
    images = _idx_in(folder, f"{prefix}-images-idx3-ubyte")
    labels = _idx_in(folder, f"{prefix}-labels-idx1-ubyte")
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(
            f"root must hold matching images and labels, but in {folder} the {split} images had "
            f"shape {images.shape} and the labels {labels.shape}; fetch both files again"
        )
    pixels = torch.from_numpy(images).unsqueeze(1).float().div_(255)
    return Images(pixels, torch.from_numpy(labels).long())


def cifar10_subset(
    root: str | os.PathLike[str], split: Literal["train", "test"] = "train"
) -> Images:
    """A subset of CIFAR-10 from ``cifar10_subset.npz`` in a folder.

    Args:
        root: the folder that holds the file, with arrays ``train_images`` (N, 32, 32, 3) and
            ``train_labels`` (N,), and the same for test, all unsigned bytes.
        split: "train" or "test".

    Returns:
        Images (N, 3, 32, 32) and labels (N,), which index `CIFAR10_CLASSES`.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a file that is damaged or lacks these arrays.

    Source: Krizhevsky (2009), Learning multiple layers of features from tiny images.

    Example:
        >>> import tempfile
        >>> white = {"train_images": np.full((2, 32, 32, 3), 255, np.uint8)}
        >>> with tempfile.TemporaryDirectory() as root:
        ...     path = Path(root, "cifar10_subset.npz")
        ...     np.savez(path, train_labels=np.array([8, 5], np.uint8), **white)
        ...     images, labels = cifar10_subset(root)
        >>> images.shape, float(images.max()), [CIFAR10_CLASSES[i] for i in labels]
        (torch.Size([2, 3, 32, 32]), 1.0, ['ship', 'dog'])
    """
    validation.choice("split", split, ("train", "test"))
    path = _folder(root) / "cifar10_subset.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; root must be the folder that holds it")
    wrong = f"could not be read as the {split} images of CIFAR-10"
    with validation.parsing(path, wrong, "fetch it again"):
        check_zip(path)
        with np.load(path, allow_pickle=False) as archive:
            pixels, labels = archive[f"{split}_images"], archive[f"{split}_labels"]
            if not (isinstance(pixels, np.ndarray) and isinstance(labels, np.ndarray)):
                raise ValueError("one of its members is no array")
    whole = pixels.ndim == 4 and pixels.shape[1:] == (32, 32, 3) and pixels.dtype == np.uint8
    if not (whole and labels.shape == pixels.shape[:1] and labels.dtype.kind in "iu"):
        raise ValueError(
            f"{path} must hold {split}_images (N, 32, 32, 3) of bytes and {split}_labels (N,), "
            f"but they were {pixels.shape} {pixels.dtype} and {labels.shape} {labels.dtype}; "
            "fetch it again"
        )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    return Images(images.contiguous(), torch.from_numpy(labels).long())


def _folder(root: str | os.PathLike[str]) -> Path:
    folder = Path(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"root must be a folder that exists, but was {str(folder)!r}")
    return folder


def _idx_in(folder: Path, name: str) -> np.ndarray:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return read_idx(path)
    raise FileNotFoundError(f"root must hold {name} or {name}.gz, but {folder} holds neither")
