"""Real data sets: one shipped with the package, two read from a folder, and tables (floor 1).

`old_faithful` needs nothing. `mnist` reads the four IDX files of LeCun et al., as they are or
gzipped; `cifar10_subset` reads one .npz of CIFAR-10 images; `table` reads a file of numbers.
"""

import csv
import gzip
import os
import struct
import zipfile
import zlib
from importlib import resources
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ozaki import validation
from ozaki.shapes import Float

OLD_FAITHFUL_COLUMNS = ("eruption_minutes", "waiting_minutes")

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

_IDX_UNSIGNED_BYTE = 0x08
_MNIST_PREFIX = {"train": "train", "test": "t10k"}


class Images(NamedTuple):
    """Images and what they show.

    Attributes:
        images: intensities in [0, 1], (N, channels, height, width), float32.
        labels: class numbers, (N,), int64.
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
    pixels = torch.from_numpy(images).unsqueeze(1).float() / 255
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
    """
    validation.choice("split", split, ("train", "test"))
    path = _folder(root) / "cifar10_subset.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; root must be the folder that holds it")
    try:
        with np.load(path, allow_pickle=False) as archive:
            pixels, labels = archive[f"{split}_images"], archive[f"{split}_labels"]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} could not be read as the {split} images of CIFAR-10 ({error}); fetch it again"
        ) from error
    whole = pixels.ndim == 4 and pixels.shape[1:] == (32, 32, 3) and pixels.dtype == np.uint8
    if not (whole and labels.shape == pixels.shape[:1]):
        raise ValueError(
            f"{path} must hold {split}_images (N, 32, 32, 3) of bytes and {split}_labels (N,), "
            f"but they were {pixels.shape} {pixels.dtype} and {labels.shape}; fetch it again"
        )
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return Images(images.contiguous(), torch.from_numpy(labels).long())


def table(path: str | os.PathLike[str]) -> Tensor:
    """The numbers in a .csv, .npy or .npz file, a row an observation.

    Args:
        path: a .csv with commas, of which the first line may name the columns; a .npy array; or a
            .npz of one array.

    Returns:
        (N, ...), of the file's floating dtype; float64 from a .csv.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, several arrays, a line of another length, an entry that
            is not a number: with its line and column; or whole numbers.
    """
    return validation.floating(str(path), read_array(path))


def read_array(path: str | os.PathLike[str]) -> np.ndarray:
    """What `table` reads, in the dtype of the file.

    Raises:
        FileNotFoundError, ValueError: as `table`, but for whole numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist or is not a file; give a .csv, .npy or .npz"
        )
    if path.suffix == ".csv":
        return _csv(path)
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(
            f"{path} must be a .csv, .npy or .npz file, but its suffix was {path.suffix!r}"
        )
    try:
        with path.open("rb") as file:
            found: Any = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            names = found.files
            if len(names) == 1:
                return found[names[0]]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is truncated, or not a numpy file of numbers ({error})"
        ) from error
    raise ValueError(
        f"{path} must hold one array, but held {names}; save the one that is meant alone"
    )


def _csv(path: Path) -> np.ndarray:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [(i, line) for i, line in enumerate(csv.reader(file), 1) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path} is not a text file of comma-separated numbers ({error})"
        ) from error
    names: list[str] = []
    if lines and not any(_is_number(cell) for cell in lines[0][1]):
        names = lines.pop(0)[1]
    if not lines:
        raise ValueError(f"{path} holds no rows of numbers")
    width = len(lines[0][1])
    rows = np.empty((len(lines), width))
    for row, (number, line) in zip(rows, lines, strict=True):
        if len(line) != width:
            raise ValueError(
                f"{path}, line {number}, has {len(line)} entries where others have {width}"
            )
        for j, cell in enumerate(line):
            if not _is_number(cell):
                column = f" ({names[j]})" if j < len(names) else ""
                raise ValueError(
                    f"{path}, line {number}, column {j + 1}{column}: {cell!r} is not a number; "
                    "remove or impute it"
                )
            row[j] = float(cell)
    return rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of unsigned bytes in one IDX file, gzipped if its name ends in ``.gz``.

    The file is two zero bytes, the type 0x08, the number of dimensions, each size as a big-endian
    32-bit integer, then the entries.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another format, a damaged archive, too few or too many bytes.
    """
    path = Path(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}); fetch it again") from error
    if len(raw) < 4 or raw[:3] != bytes((0, 0, _IDX_UNSIGNED_BYTE)):
        raise ValueError(
            f"{path} must be an IDX file of unsigned bytes, which begins 00 00 08, but it began "
            f"{raw[:4].hex(' ') or 'nowhere: it is empty'}; fetch it again"
        )
    begin = 4 + 4 * raw[3]
    if len(raw) < begin:
        raise ValueError(f"{path} ends inside its header; fetch it again")
    shape = struct.unpack(f">{raw[3]}I", raw[4:begin])
    if len(raw) != begin + prod(shape):
        raise ValueError(
            f"{path} announces {prod(shape)} entries of shape {shape} but holds "
            f"{len(raw) - begin}; fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=begin).reshape(shape).copy()


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
