import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from ozaki import datasets


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def digits(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """A tiny MNIST: train as it is, test gzipped."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 28, 28)), np.arange(5)
    for prefix, suffix, pack in (("train", "", bytes), ("t10k", ".gz", gzip.compress)):
        (tmp_path / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
        (tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))
    return tmp_path, images, labels


def test_old_faithful_is_the_published_table():
    data = datasets.old_faithful()
    assert data.dtype == torch.float32
    # R: summary(faithful), var(faithful$waiting)
    torch.testing.assert_close(data.mean(0), torch.tensor([3.487783, 70.897059]), rtol=0, atol=1e-4)
    # R's digits: half of the last that is given, and float32's sums
    torch.testing.assert_close(data[:, 1].var(), torch.tensor(184.82331), rtol=1e-5, atol=0)
    assert len(datasets.OLD_FAITHFUL_COLUMNS) == data.shape[1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_reads_what_was_written(digits, split):
    root, images, labels = digits
    read = datasets.mnist(root, split)
    assert read.images.shape == (5, 1, 28, 28) and read.images.dtype == torch.float32
    assert np.array_equal((read.images[:, 0] * 255).round().numpy(), images)
    assert np.array_equal(read.labels.numpy(), labels)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-3], "announces 5 entries"),
        (lambda raw: raw + b"x", "announces 5 entries"),
        (lambda raw: b"\x89PNG" + raw, "began 89 50 4e 47"),
        (lambda raw: raw[:6], "inside its header"),
        (lambda raw: b"", "it is empty"),
    ],
)
def test_a_damaged_idx_file_is_named(digits, damage, message):
    root, _, _ = digits
    path = root / "train-labels-idx1-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        datasets.mnist(root)
    assert str(path) in str(error.value)


def test_a_truncated_gzip_is_named(digits):
    root, _, _ = digits
    path = root / "t10k-labels-idx1-ubyte.gz"
    for raw in (path.read_bytes()[:-9], b"not gzip at all"):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match="not a whole gzip file"):
            datasets.mnist(root, "test")


def test_images_and_labels_must_match(digits):
    root, _, _ = digits
    (root / "train-labels-idx1-ubyte").write_bytes(idx(np.arange(4)))
    with pytest.raises(ValueError, match="matching images and labels"):
        datasets.mnist(root)


def test_missing_things_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        datasets.mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        datasets.mnist(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"cifar10_subset\.npz"):
        datasets.cifar10_subset(tmp_path)


def test_cifar_reads_what_was_written(tmp_path):
    images = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    file = tmp_path / "cifar10_subset.npz"
    np.savez(file, test_images=images, test_labels=np.array([0, 9, 4], np.uint8))
    read = datasets.cifar10_subset(tmp_path, "test")
    assert np.array_equal((read.images * 255).round().permute(0, 2, 3, 1).numpy(), images)
    assert [datasets.CIFAR10_CLASSES[i] for i in read.labels] == ["airplane", "truck", "deer"]
    with pytest.raises(ValueError, match="train_images"):
        datasets.cifar10_subset(tmp_path)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(ValueError, match="fetch it again"):
        datasets.cifar10_subset(tmp_path, "test")
    np.savez(file, test_images=images[..., :1], test_labels=np.zeros(3))
    with pytest.raises(ValueError, match="must hold test_images"):
        datasets.cifar10_subset(tmp_path, "test")


def _real(name: str) -> Path:
    root = Path(os.environ.get("OZAKI_DATA", "")) / name
    if "OZAKI_DATA" not in os.environ or not root.is_dir():
        pytest.skip(f"the environment variable OZAKI_DATA names no folder that holds {name}/")
    return root


def test_the_real_mnist():
    read = datasets.mnist(_real("mnist"), "test")
    assert read.images.shape == (10_000, 1, 28, 28)
    assert read.labels.bincount().tolist()[:3] == [980, 1135, 1032]


def test_the_real_cifar():
    read = datasets.cifar10_subset(_real("cifar10"))
    assert read.images.shape == (10_000, 3, 32, 32)
    assert float(read.images.min()) >= 0 and float(read.images.max()) <= 1
