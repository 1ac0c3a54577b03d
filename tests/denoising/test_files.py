"""`ozaki denoise`: what it writes, against the posterior of a normal, and what it refuses."""

import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from typer.testing import CliRunner

from ozaki.cli import app
from ozaki.denoising import files
from ozaki.io.png import read_png
from ozaki.report.image_sheets import contact_sheet
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.mlp import Trunks
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork
from ozaki.scores.learned.standardisation import Standardisation
from tests.kit.strategies import generator
from tests.kit.tolerances import MCSE, ROUNDING

pytestmark = pytest.mark.usefixtures("unchecked", "undrawn")

CENTRE, SPREAD, SIGMA = 0.5, 0.25, 0.2


def run(*arguments: object, command: str = "denoise"):
    return CliRunner().invoke(app, [command, *map(str, arguments)])


def normal(
    folder: Path,
    shape: tuple[int, ...] = (1, 4, 6),
    sigma: float | tuple[float, float] = SIGMA,
    *,
    order: int = 2,
    rank: int = 0,
    bent: float = 0.0,
) -> Path:
    """A saved estimator that is exact for N(CENTRE, SPREAD²) in each pixel; `bent` adds to s2."""
    dim = torch.Size(shape).numel()
    architecture = {
        "dim": dim, "order": order, "rank": rank, "width": 8, "depth": 1,
        "conditional": isinstance(sigma, tuple),
    }  # fmt: skip
    trunk = Trunks(**architecture)
    for parameter in trunk.parameters():
        nn.init.zeros_(parameter)
    if bent:
        last = [m for m in trunk.modules() if isinstance(m, nn.Linear)][-1]
        nn.init.constant_(last.bias, bent)
    net = ScoreNetwork(trunk, torch.Size(shape), sigma, Heads(order, rank), CENTRE, SPREAD)
    one = torch.ones(1, dtype=torch.float64)
    points = CENTRE + SPREAD * torch.randn(60, dim, generator=generator(0))
    units = Standardisation(None, 0 * one, one)
    estimator = ScoreEstimator(net, units, points, architecture=architecture)
    return estimator.save(folder, overwrite=True)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to be in, with an estimator of images beside it."""
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    monkeypatch.setattr(files, "SHOWN", 2)  # drawing is slow
    return normal(tmp_path / "estimator")


def noisy(n: int, shape: tuple[int, ...] = (1, 4, 6), sigma: float = SIGMA) -> np.ndarray:
    g = generator(1)
    clean = CENTRE + SPREAD * torch.randn(n, *shape, generator=g)
    return (clean + sigma * torch.randn(clean.shape, generator=g)).numpy()


def expected(x: np.ndarray, sigma: float = SIGMA) -> tuple[np.ndarray, float]:
    """The mean and the standard deviation of N(m, s²) given x̃: precisions add."""
    precision = SPREAD**-2 + sigma**-2
    return (CENTRE * SPREAD**-2 + x * sigma**-2) / precision, precision**-0.5


def opened(folder: str | Path = "out") -> dict[str, np.ndarray]:
    with np.load(Path(folder) / "denoised.npz") as archive:
        return dict(archive)


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
def test_arrays_come_back_with_the_posterior_of_a_normal(here, suffix):
    x = noisy(300)
    if suffix == "csv":
        x = x.reshape(300, -1)
        np.savetxt("x.csv", x, delimiter=",", fmt="%.9g")
    else:
        (np.save if suffix == "npy" else np.savez)(f"x.{suffix}", x)
    done = run(f"x.{suffix}", "--estimator", here, "--out", "out", "--samples", 2)
    assert done.exit_code == 0, done.output
    assert "300 points denoised at sigma 0.2" in done.output
    found, (mean, deviation) = opened(), expected(x)
    assert {p.name for p in Path("out").iterdir()} == {"denoised.npz", "contact-sheet.png"}
    # float32, some roundings: an estimator's units and back
    assert_close(found["mean"], mean.astype(found["mean"].dtype), atol=1e-6, rtol=1e-5)
    assert_close(found["standard_deviation"], np.full_like(found["mean"], deviation))
    assert found["components"].shape == (300, 3, *x.shape[1:])
    assert_close(found["component_variances"], np.full((300, 3), deviation**2, found["mean"].dtype))
    assert found["samples"].shape == (2, *x.shape)
    # 14,400 normal draws
    error = (found["samples"] - found["mean"]) / deviation
    assert abs(error.mean()) < MCSE / error.size**0.5
    assert abs(error.var() - 1) < MCSE * (2 / error.size) ** 0.5
    assert found["noise_scale"].shape == x.shape[1:]
    assert_close(found["noise_scale"], np.full(x.shape[1:], SIGMA, np.float32))
    assert found["sigma"] == SIGMA


def test_one_point_and_the_seed(here):
    x = noisy(1)[0]
    for name, array in (("one", x), ("flat", x.ravel())):
        np.save(f"{name}.npy", array)
        done = run(f"{name}.npy", "--estimator", here, "--out", name, "--samples", 3, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["points"] == 1
        assert opened(name)["mean"].shape == (1, *array.shape)
    for seed, same in ((0, True), (1, False)):
        args = ("--estimator", here, "--out", f"s{seed}", "--samples", 3, "--seed", seed)
        assert run("one.npy", *args).exit_code == 0
        assert np.array_equal(opened(f"s{seed}")["samples"], opened("one")["samples"]) == same


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    PIL.Image.fromarray(pixels).save(path)


def test_a_folder_of_images_and_the_broken_ones(here):
    Path("pngs").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 6), np.uint8)
    for name, image in zip("cab", pixels, strict=True):
        write_png(f"pngs/{name}.png", image)
    write_png("pngs/deep.PNG", (pixels[0].astype(np.uint16) * 257))
    Path("pngs/notes.txt").write_text("not an image")
    whole = Path("pngs/a.png").read_bytes()
    Path("pngs/x1.png").write_bytes(whole[:-20])
    Path("pngs/x2.png").write_bytes(b"nothing like it")
    Path("pngs/x3.png").write_bytes(whole[:45] + b"\x00\xff" + whole[47:])
    write_png("pngs/x4.png", pixels[0].T.copy())
    write_png("pngs/x5.png", np.stack([pixels[0]] * 3, -1))
    PIL.Image.fromarray(pixels[0]).save("pngs/x6.png", format="JPEG")
    done = run("pngs", "--estimator", here, "--out", "out")
    assert done.exit_code == 1, done.output
    for name in ("x1", "x2", "x3", "x4", "x5", "x6"):
        assert f"{name}.png" in done.stderr
    assert "height 4 and width 6" in done.stderr and "mode RGB" in done.stderr
    found = opened()
    assert found["files"].tolist() == ["a.png", "b.png", "c.png", "deep.PNG"]
    want = np.stack([pixels[1], pixels[2], pixels[0], pixels[0]])[:, None] / 255
    # float32, as above
    assert_close(found["mean"], expected(want)[0].astype(np.float32), atol=1e-6, rtol=1e-5)
    sheet = PIL.Image.open("out/contact-sheet.png")
    assert sheet.width > sheet.height > 100  # of two rows
    # one good file is not a failure, one broken file alone is nothing to write
    assert run("pngs/a.png", "--estimator", here, "--out", "one").exit_code == 0
    refused = run("pngs/x1.png", "--estimator", here, "--out", "none")
    assert refused.exit_code == 2 and "not a whole .png" in refused.stderr
    assert not Path("none").exists()


def test_images_of_three_channels(tmp_path):
    folder = normal(tmp_path / "e", (3, 4, 5), rank=2)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    write_png(tmp_path / "rgb.png", pixels)
    done = run(tmp_path / "rgb.png", "--estimator", folder, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    want = expected(pixels.transpose(2, 0, 1)[None] / 255)[0].astype(np.float32)
    assert_close(opened(tmp_path / "out")["mean"], want, atol=1e-6, rtol=1e-5)  # float32, as above
    with pytest.raises(ValueError, match="grey image of height 4 and width 5"):
        read_png(tmp_path / "rgb.png", (1, 4, 5))


def write_deep_rgb(path: Path) -> None:
    """A .png of RGB of 16 bits, which pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(4 * bytes(1 + 6 * 6)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))


@pytest.mark.parametrize("shape", [None, (3, 4, 6)])
def test_images_that_pillow_would_change_are_refused(shape, tmp_path):
    path = tmp_path / "x.png"
    write_deep_rgb(path)
    with pytest.raises(ValueError, match=r"x\.png .*RGB of 16 bits.* as \.npy, or .* 8 bits"):
        read_png(path, shape)
    palette = PIL.Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3)).quantize()
    palette.save(path)
    assert read_png(path, shape).shape == (3, 4, 6)
    for transparency in (0, bytes([128] * 24)):
        palette.save(path, transparency=transparency)
        with pytest.raises(ValueError, match=r"x\.png .*mode P with transparency"):
            read_png(path, shape)


def test_the_noise_is_found_or_given(here, tmp_path):
    folder = normal(tmp_path / "range", sigma=(0.05, 1.0))
    x = noisy(400, sigma=0.4)
    np.save("x.npy", x)
    done = run("x.npy", "--estimator", folder, "--out", "found", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    # of 9,600 pixels: the standard error of ln σ is that of the variance, (s² + σ²)/σ² · √(2/N)/2
    error = (SPREAD**2 + 0.4**2) / 0.4**2 / (2 * x.size) ** 0.5
    assert abs(np.log(said["sigma"] / 0.4)) < MCSE * error
    assert said["mean_standard_deviation"] == pytest.approx(
        expected(x, said["sigma"])[1], rel=ROUNDING[torch.float32]
    )
    assert run("x.npy", "--estimator", folder, "--out", "given", "--sigma", 0.4).exit_code == 0
    # float32, some roundings
    assert_close(opened("given")["mean"], expected(x, 0.4)[0], atol=1e-5, rtol=1e-5)
    np.save("loud.npy", 3 * (x - CENTRE) + CENTRE)
    loud = run("loud.npy", "--estimator", folder, "--out", "loud")
    assert loud.exit_code == 0 and "an end of the range" in loud.stderr
    assert "--sigma" in loud.stderr and "UserWarning" not in loud.stderr
    assert float(opened("loud")["sigma"]) == 1.0


def test_without_s2_the_mean_alone_is_written(here, tmp_path):
    folder = normal(tmp_path / "first", order=1)
    np.save("x.npy", noisy(3))
    done = run("x.npy", "--estimator", folder, "--out", "out")
    assert done.exit_code == 0 and "s1 alone: the mean is all" in done.stderr
    assert set(opened()) == {"mean", "noise_scale", "sigma"}
    refused = run("x.npy", "--estimator", folder, "--out", "no", "--samples", 2)
    assert refused.exit_code == 2 and "samples need s2" in refused.stderr


def test_a_covariance_that_is_not_positive_definite_is_repaired_and_said(here, tmp_path):
    folder = normal(tmp_path / "bent", bent=-100.0)
    np.save("x.npy", noisy(3))
    done = run("x.npy", "--estimator", folder, "--out", "out", "--samples", 1, "--json")
    assert done.exit_code == 0, done.output
    assert "of 3 of 3 points was not positive definite" in done.stderr
    assert json.loads(done.stdout)["repaired_points"] == 3
    assert all(np.isfinite(v).all() for v in opened().values())


def test_points_that_are_no_images_have_no_sheet(tmp_path):
    folder = normal(tmp_path / "e", (3,))
    np.save(tmp_path / "x.npy", noisy(5, (3,)))
    done = run(tmp_path / "x.npy", "--estimator", folder, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["denoised.npz"]
    write_png(tmp_path / "x.png", np.zeros((4, 6), np.uint8))
    refused = run(tmp_path / "x.png", "--estimator", folder, "--out", tmp_path / "no")
    assert refused.exit_code == 2 and "not on images" in refused.stderr


def test_what_cannot_be_denoised_is_refused_before_anything_is_written(here):
    Path("empty").mkdir()
    good = noisy(3)
    arrays = {
        "bytes": np.zeros((2, 1, 4, 6), np.uint8),
        "whole": np.zeros((2, 1, 4, 6), np.int64),
        "loud": 255 * np.ones((2, 1, 4, 6), np.float32),
        "turned": np.zeros((2, 4, 6, 1), np.float32),
        "none": np.zeros((0, 1, 4, 6), np.float32),
        "nan": np.full((2, 1, 4, 6), np.nan, np.float32),
        "good": good,
    }
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    np.savez("two.npz", a=good, b=good)
    Path("cut.npy").write_bytes(Path("good.npy").read_bytes()[:200])
    Path("photo.jpg").write_bytes(b"JFIF")
    Path("taken").mkdir()
    Path("taken/mine.txt").write_text("mine")
    for source, more, message in [
        ("bytes.npy", (), r"uint8.*/ 255"),
        ("whole.npy", (), r"int64.*/ 255"),
        ("loud.npy", (), r"units of the training data.*255"),
        ("turned.npy", (), r"points \(n, 1, 4, 6\) or \(n, 24\).*\(2, 4, 6, 1\)"),
        ("none.npy", (), r"\(0, 1, 4, 6\)"),
        ("nan.npy", (), "must be finite"),
        ("two.npz", (), "one array.*'a', 'b'"),
        ("cut.npy", (), "truncated|could not be read"),
        ("empty", (), "holds no .png files"),
        ("photo.jpg", (), r"\.csv, \.npy, \.npz or \.png.*'\.jpg'"),
        ("nowhere", (), "nowhere does not exist"),
        ("nowhere.png", (), "nowhere.png does not exist"),
        ("good.npy", ("--sigma", 0.5), "range of training"),
        ("good.npy", ("--sigma", -1), "above 0"),
        ("good.npy", ("--estimator", "missing"), "missing"),
        ("good.npy", ("--out", "taken"), "--force"),
        ("good.npy", ("--out", "taken", "--force"), "left alone"),
        ("good.npy", ("--out", "loud.npy", "--force"), "is a file"),
        ("good.npy", ("--samples", -1), "samples"),
    ]:
        given = {"--estimator": here, "--out": "out"} | dict(
            zip(more[::2], more[1::2], strict=False)
        )
        flags = [a for a in more if a == "--force"]
        given.pop("--force", None)
        refused = run(source, *(word for pair in given.items() for word in pair), *flags)
        text = re.sub(r"\s+", " ", refused.output)
        assert refused.exit_code == 2, (source, text)
        assert re.search(message, text), (message, text)
        assert not Path("out").exists()
    assert [p.name for p in Path("taken").iterdir()] == ["mine.txt"]


def test_a_run_is_whole_or_not_at_all(here, monkeypatch):
    np.save("x.npy", noisy(3))
    args = ("x.npy", "--estimator", here, "--out", "out")
    assert run(*args).exit_code == 0
    before = {p.name: p.read_bytes() for p in Path("out").iterdir()}
    assert "--force" in run(*args).stderr

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(files.np, "savez_compressed", full)
    done = run(*args, "--force", "--seed", 1)
    assert done.exit_code == 2 and "no space left" in done.stderr
    assert {p.name: p.read_bytes() for p in Path("out").iterdir()} == before
    assert sorted(p.name for p in Path().iterdir()) == ["out", "x.npy"]
    monkeypatch.undo()


def test_a_sheet_shows_each_kind_on_its_scale():
    images = np.array([[[[0.0, 0.5], [1.0, 2.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
    figure = contact_sheet(
        {"mean": images, "deviation": images, "component": images - 1},
        {"mean": "intensity", "deviation": "size", "component": "signed"},
        ["first", "second"],
    )
    shown = [axes.images[0].get_array() for axes in figure.axes]
    want = images[0, 0] / 2
    assert_close(np.asarray(shown[0]), want)
    assert_close(np.asarray(shown[1]), want)
    assert_close(np.asarray(shown[2]), np.array([[0.0, 0.25], [0.5, 1.0]]))
    assert_close(np.asarray(shown[4]), np.zeros((2, 2)))
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["first", "second"]
    assert "0 to 2" in figure.axes[1].get_title()


def test_noise_that_a_png_has_cut_off_is_told(here):
    Path("pngs").mkdir()
    for name, low in (("soft", 40), ("cut", 0)):
        pixels = np.random.default_rng(0).integers(low, 216, (4, 6)).astype(np.uint8)
        pixels[:2] = np.maximum(pixels[:2], 1) if low else 0
        write_png(f"{name}.png", pixels)
        done = run(f"{name}.png", "--estimator", here, "--out", name)
        assert done.exit_code == 0
        assert ("a .png cuts noise off" in done.stderr) == (low == 0)
    assert "50% of the pixels" in done.stderr or "54% of the pixels" in done.stderr


def test_the_truth_says_whether_the_uncertainty_is_right(here, tmp_path):
    g = generator(3)
    clean = CENTRE + SPREAD * torch.randn(400, 1, 4, 6, generator=g)
    x = clean + SIGMA * torch.randn(clean.shape, generator=g)
    np.save("x.npy", x.numpy())
    np.save("clean.npy", clean.numpy())
    done = run("x.npy", "--estimator", here, "--out", "out", "--clean", "clean.npy", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    found = said["calibration"]
    assert abs(found["ratio"] - 1) < MCSE * (2 / clean.numel()) ** 0.5
    # C is isotropic: any 3 of 24 directions hold an eighth of the error
    # 4 standard errors of p (1 − p) √(2/1,200 + 2/8,400) = 0.005, of 400 images
    assert found["explained"][-1] == pytest.approx(3 / 24, abs=0.02)
    assert said["written"] == ["denoised.npz", "contact-sheet.png", "calibration.png"]
    assert {p.name for p in Path("out").iterdir()} == set(said["written"])
    table = run("x.npy", "--estimator", here, "--out", "out", "--clean", "clean.npy", "--force")
    assert "predicted" in table.output and f"{found['ratio']:.2f}" in table.output
    np.save("few.npy", clean[:9].numpy())
    refused = run("x.npy", "--estimator", here, "--out", "no", "--clean", "few.npy")
    assert refused.exit_code == 2 and "400 true points in their order" in refused.stderr
    first = normal(tmp_path / "first", order=1)
    refused = run("x.npy", "--estimator", first, "--out", "no", "--clean", "clean.npy")
    assert refused.exit_code == 2 and "--clean needs s2" in refused.stderr


def test_true_images_are_matched_by_name(here):
    g = generator(4)
    clean = (CENTRE + 0.1 * torch.randn(6, 4, 6, generator=g)).clamp(0.2, 0.8)
    x = (clean + 0.1 * torch.randn(clean.shape, generator=g)).clamp(0.01, 0.99)
    for folder, images in (("noisy", x), ("clean", clean)):
        Path(folder).mkdir()
        for i, image in enumerate(images):
            write_png(f"{folder}/{i}.png", (image * 255).round().byte().numpy())
    Path("noisy/1.png").write_bytes(b"broken")
    arguments = ("noisy", "--estimator", here, "--clean", "clean", "--json", "--out")
    done = run(*arguments, "out")
    assert done.exit_code == 1, done.output
    found = json.loads(done.stdout)
    error = clean[[0, 2, 3, 4, 5]].numpy() - opened()["mean"][:, 0]
    want = float((error**2).mean()) / expected(x.numpy())[1] ** 2
    # pixels are in steps of 1/255, in both files
    assert found["calibration"]["ratio"] == pytest.approx(want, rel=0.02)
    Path("clean/3.png").write_bytes(b"broken")
    refused = run(*arguments, "no")
    assert refused.exit_code == 2
    assert re.search(r"true image of 3\.png: clean/3\.png is not a whole", refused.stderr)


def test_training_on_a_folder_of_images_names_the_broken_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pngs").mkdir()
    for i, image in enumerate(np.random.default_rng(0).integers(0, 256, (60, 4, 6), np.uint8)):
        write_png(f"pngs/{i:02}.png", image)
    Path("pngs/00a.png").write_bytes(b"nothing like it")
    write_png("pngs/00b.png", np.zeros((6, 4), np.uint8))
    PIL.Image.fromarray(np.zeros((4, 6, 4), np.uint8)).save("pngs/00.png")  # with transparency
    done = run("pngs", "--out", "e", "--max-steps", "3", "--batch-size", "8", command="train")
    assert done.exit_code == 1, done.output
    assert "00.png must be a grey or RGB image, but was of mode RGBA" in done.stderr
    assert "00a.png is not a whole .png image" in done.stderr
    assert "00b.png must have 1 channel(s), height 4 and width 6, as 59 of" in done.stderr
    estimator = ScoreEstimator.load("e")
    assert estimator.event_shape == (1, 4, 6)
    low, high = float(estimator.points.min()), float(estimator.points.max())
    assert low >= 0 and 0.5 < high <= 1
    Path("none").mkdir()
    for name, problem in (("none", "holds no .png files"), ("bad", "no image of the 1 in bad")):
        Path("bad").mkdir(exist_ok=True)
        Path("bad/x.png").write_bytes(b"")
        done = run(name, "--out", "f", command="train")
        assert done.exit_code == 2 and problem in done.stderr
        assert not Path("f").exists()
