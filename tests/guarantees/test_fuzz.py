"""Thousands of spoiled files: each is read right or refused in a sentence, and that is all.

Each format is read in a forked process of its own, so that a reader that crashes, hangs or fills
the memory is a failed test. There an audit hook sees what Python does: nothing is unpickled or run,
and nothing is written. Mutations are drawn from a fixed seed: the failure names the format, the
kind, the number and the file, and `spoil` makes the very bytes again.
"""

import gzip
import io
import json
import os
import pickle
import random
import re
import shutil
import signal
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import PIL.Image
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
from torch import nn
from typer.testing import CliRunner

from ozaki import MCMC, ScoreOzakiKernel, datasets, diagnostics
from ozaki.cli import app
from ozaki.cli.compare import _read as read_draws
from ozaki.denoising import files as denoise_files
from ozaki.io import checkpoint, tables
from ozaki.io.png import read_folder, read_png
from ozaki.sampling.zarr_store import ZarrStore
from ozaki.scores import GaussianScore
from ozaki.scores.learned import estimator_folder
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.mlp import Trunks
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork
from ozaki.scores.learned.standardisation import Standardisation
from ozaki.scores.learned.unet import UNet

resource = pytest.importorskip("resource")  # which Windows lacks, as it lacks forks

pytestmark = [pytest.mark.usefixtures("unchecked"), pytest.mark.thorough]

MB = 2**20
SPARE = 100 * MB  # of memory, beside twice the file
PATIENCE = 20  # seconds for a file
SENTENCE = 600  # letters, beside the path
ALLOWED = (ValueError, OSError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
LEFT = 2**32  # of addresses: a reader that fills the memory must not take the machine with it


# -- what is done to bytes ------------------------------------------------------------------------

NUMBERS = (0, 1, 127, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
TEXTS = (b"0", b"-1", b"7", b"65536", b"2147483648", b"99999999999999999999", b"1e999", b"NaN")


def mutate(chance: random.Random, raw: bytes, other: bytes) -> tuple[str, bytes]:
    """A kind of damage, and the bytes that have it."""
    kind = chance.choice(KINDS)
    if not raw:
        return "inserted", other[: chance.randrange(1, 64)]
    a, n = bytearray(raw), len(raw)
    i = chance.randrange(n)
    if chance.random() < 0.4:  # headers are where the decisions are made
        i = chance.randrange(min(n, 256))
    size = min(chance.choice((1, 2, 4, 8, 16, 64)), n - i)
    if kind == "bits":
        for _ in range(chance.choice((1, 1, 1, 4))):
            a[i] ^= 1 << chance.randrange(8)
            i = chance.randrange(n)
    elif kind == "truncated":
        del a[i:]
    elif kind == "inserted":
        a[i:i] = chance.randbytes(size)
    elif kind == "deleted":
        del a[i : i + size]
    elif kind == "filled":
        a[i : i + size] = chance.choice((b"\0", b"\xff", b" ", b"[", b"9")) * size
    elif kind == "number":
        size = min(chance.choice((2, 4, 8)), n - i)
        number = chance.choice(NUMBERS) % 2 ** (8 * size)
        a[i : i + size] = number.to_bytes(size, chance.choice(("little", "big")))
    elif kind == "text":
        runs = list(re.finditer(rb"\d+", raw))
        run = chance.choice(runs).span() if runs else (i, i)
        a[slice(*run)] = chance.choice(TEXTS)
    elif kind == "doubled":
        a[i:i] = a[: chance.randrange(n)]
    elif kind == "head of another":
        a[:i] = other[:i]
    elif kind == "tail of another":
        a[i:] = other[i:]
    elif kind == "another":
        a = bytearray(other)
    else:
        a.clear()
    return kind, bytes(a)


KINDS = (
    *("bits", "bits", "truncated", "inserted", "deleted", "filled", "number", "number", "text"),
    *("doubled", "head of another", "tail of another", "another", "empty"),
)

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 3, 10**6, 10**9, 2**63, 10**400, 0.5, -0.5, 1e308, float("inf"),
    float("nan"), "", "x", "../../outside", "/etc/passwd", "float64", "object", "O", [], [1],
    [0, 0], [2**40, 2**40], [[1]], {}, {"x": 1}, {"name": "pickle"},
)  # fmt: skip


def hostile(chance: random.Random, value: Any) -> Any:
    """`value`, made of JSON, with one thing in it replaced, dropped or added."""
    if isinstance(value, (dict, list)) and value and chance.random() < 0.85:
        places = list(value) if isinstance(value, dict) else list(range(len(value)))
        place, changed = chance.choice(places), value.copy()
        if chance.random() < 0.1:
            del changed[place]
        else:
            changed[place] = hostile(chance, value[place])
        return changed
    return chance.choice(HOSTILE)


def hostile_text(chance: random.Random, text: bytes) -> bytes:
    """The same of a JSON text."""
    return json.dumps(hostile(chance, json.loads(text))).encode()


# -- how a file is read, and what may come of it --------------------------------------------------


class Format(NamedTuple):
    """Files of one kind.

    Attributes:
        make: writes whole files into a folder; of another seed, others of the same kind.
        read: what the library makes of the folder.
        right: whether what was read of a spoiled file is right, given what the whole ones hold.
        count: how many are spoiled.
        seal: spoils what lies under a checksum and renews it; its result must be `usable`.
        usable: whether what was read of it is well formed.
        twin: whether files of another seed may stand in the place of these and be read as they are.
        special: by name, what to write in place of the files, and whether it must be refused.
    """

    make: Callable[[Path, int], Any]
    read: Callable[[Path], Any]
    right: Callable[[Any, Any], bool]
    count: int
    seal: Callable[[random.Random, Path], None] | None = None
    usable: Callable[[Any, Any], bool] = lambda found, whole: True
    twin: bool = False
    special: Mapping[str, tuple[Callable[[Path], Any], bool]] = MappingProxyType({})


def only(folder: Path) -> Path:
    """The one file of a folder."""
    (path,) = folder.iterdir()
    return path


def equal(found: Any, whole: Any) -> bool:
    return np.array_equal(np.asarray(found), np.asarray(whole), equal_nan=True)


def numbers(found: Any, whole: Any) -> bool:
    """Any finite floating-point numbers, a row an observation."""
    return found.is_floating_point() and found.dim() > 0 and bool(torch.isfinite(found).all())


def rows(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(12, 3))


class Armed:
    """What makes a folder when it is unpickled."""

    place = "executed"

    def __reduce__(self):
        return os.mkdir, (self.place,)


def arms(*shape: int) -> np.ndarray:
    array = np.empty(shape, object)
    array.fill(Armed())
    return array


BOMB = 300  # MB that a small file unpacks to


def gzipped(path: Path, head: bytes, body: bytes = bytes(MB), times: int = BOMB) -> None:
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(head)
        for _ in range(times):
            file.write(body)


def deflated() -> bytes:
    packer = zlib.compressobj(1)
    return b"".join(packer.compress(bytes(MB)) for _ in range(BOMB)) + packer.flush()


def packed(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive_:
        for name, content in members.items():
            archive_.writestr(name, content)


def npy(array: np.ndarray, **header: Any) -> bytes:
    """The bytes of a .npy file; `header` says something else of it than is true."""
    file = io.BytesIO()
    if not header:
        np.save(file, array)
        return file.getvalue()
    told = np.lib.format.header_data_from_array_1_0(array) | header
    np.lib.format.write_array_header_1_0(file, told)
    return file.getvalue() + array.tobytes()


def table_of(folder: Path) -> torch.Tensor:
    return tables.table(only(folder))


def spoil_packed(chance: random.Random, folder: Path) -> None:
    """What lies in a gzip or zip file, its checksums renewed."""
    path = only(folder)
    if path.suffix == ".gz":
        _, inner = mutate(chance, gzip.decompress(path.read_bytes()), rows(3).tobytes())
        path.write_bytes(gzip.compress(inner, 1))
        return
    with zipfile.ZipFile(path) as archive_:
        members = {name: archive_.read(name) for name in archive_.namelist()}
    name = chance.choice(list(members))
    _, members[name] = mutate(chance, members[name], rows(3).tobytes())
    packed(path, members)


def spoil_png(chance: random.Random, folder: Path) -> None:
    """One chunk of a .png, its checksum renewed."""
    path = only(folder)
    raw = path.read_bytes()
    chunks, place = [], 8
    while place < len(raw):
        size = int.from_bytes(raw[place : place + 4], "big")
        chunks.append((raw[place + 4 : place + 8], raw[place + 8 : place + 8 + size]))
        place += size + 12
    i = chance.randrange(len(chunks))
    kind, content = chunks[i]
    if kind == b"IDAT" and chance.random() < 0.5:
        content = zlib.compress(mutate(chance, zlib.decompress(content), raw)[1])
    else:
        content = mutate(chance, content, raw)[1]
    kind = chance.choice((kind, kind, kind, b"zTXt", b"iCCP", b"acTL", b"tRNS", b"PLTE"))
    chunks[i] = kind, content
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks))


def chunk(kind: bytes, content: bytes) -> bytes:
    whole = kind + content
    return struct.pack(">I", len(content)) + whole + struct.pack(">I", zlib.crc32(whole))


def png(width: int, height: int, lines: bytes, text: bytes = zlib.compress(b"")) -> bytes:
    """A grey .png of the announced size, with the packed `lines` and a packed text in it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (b"IHDR", head), (b"zTXt", b"title\0\0" + text), (b"IDAT", lines), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def digits(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# -- the formats ----------------------------------------------------------------------------------


def learned(seed: int, unet: bool = False) -> ScoreEstimator:
    """An estimator of random weights."""
    torch.manual_seed(seed)
    shape = torch.Size([1, 4, 4] if unet else [3])
    rank, architecture = 0, {"channels": 1, "order": 2, "rank": 0, "preset": "unet", "width": 8}
    if not unet:
        rank, architecture = 1, {"dim": 3, "order": 2, "rank": 1, "width": 4, "depth": 1}
    trunk: nn.Module = (UNet if unet else Trunks)(**architecture)  # pyright: ignore
    for parameter in trunk.parameters():
        nn.init.normal_(parameter, std=0.3)
    one = torch.ones(1, dtype=torch.float64)
    return ScoreEstimator(
        ScoreNetwork(trunk, shape, 0.4, Heads(2, rank)),
        Standardisation("scalar", 0 * one, one),
        torch.randn(8, shape.numel()),
        metrics={"dsm": -1.5, "calibration": [1.0] * shape.numel()},
        architecture=architecture,
    )


def estimator(folder: Path, seed: int) -> None:
    learned(seed).save(folder)


def reseal(folder: Path, **changes: Any) -> None:
    """Other settings, with the digests that belong to them and to the weights there."""
    path = folder / estimator_folder.SETTINGS
    settings = json.loads(path.read_text()) | changes
    settings[estimator_folder.DIGEST] = estimator_folder.digest(folder / estimator_folder.WEIGHTS)
    settings[estimator_folder.PARTS] = estimator_folder.parts(settings)
    path.write_text(json.dumps(settings))


def same_estimator(found: ScoreEstimator, whole: ScoreEstimator) -> bool:
    a, b = found.network.state_dict(), whole.network.state_dict()
    return (
        a.keys() == b.keys()
        and all(torch.equal(a[name], b[name]) for name in a)
        and torch.equal(found.points, whole.points)
        and found.metrics == whole.metrics
        and repr(found) == repr(whole)
    )


def usable_estimator(found: ScoreEstimator, whole: ScoreEstimator) -> bool:
    """It gives what it says it gives."""
    low = found.sigma[0] if isinstance(found.sigma, tuple) else found.sigma
    one = found.at(low)
    x = one.start(2, torch.Generator().manual_seed(0))
    out = one.expand(x, one.default_curvature)
    if one.default_curvature is not None:
        out.curvature.diagonal()
    return out.gradient.shape == x.shape and "ScoreEstimator" in repr(found)


def spoil_estimator(chance: random.Random, folder: Path) -> None:
    """Its settings or its weights, with the digests that belong to them."""
    path, weights = folder / estimator_folder.SETTINGS, folder / estimator_folder.WEIGHTS
    settings = json.loads(path.read_text())
    if chance.random() < 0.3:
        raw = weights.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        if chance.random() < 0.5:  # the header, its length and the padding as they should be
            head = hostile_text(chance, raw[8 : 8 + size])
            weights.write_bytes(struct.pack("<Q", len(head)) + head + raw[8 + size :])
        else:
            weights.write_bytes(mutate(chance, raw, raw[::-1])[1])
    else:
        for _ in range(chance.choice((1, 1, 2))):
            settings = hostile(chance, settings)
    path.write_text(json.dumps(settings))
    if isinstance(settings, dict):
        reseal(folder)


def checkpointed(folder: Path, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    tensors = {"random": g.get_state()[:40], "w": torch.randn(3, 2, generator=g)}
    settings = {"sigma": 0.4, "sizes": [1, 2], "name": "auto", "rank": None}
    checkpoint.write(folder, tensors, settings, {"step": seed, "losses": [0.5, float("inf")]})


def same_checkpoint(found: Any, whole: Any) -> bool:
    return (
        found[1:] == whole[1:]
        and found[0].keys() == whole[0].keys()
        and all(torch.equal(found[0][name], whole[0][name]) for name in whole[0])
    )


def sign(folder: Path, change: Callable[[bytes], bytes]) -> None:
    """A checkpoint with other text, signed anew."""
    path = folder / checkpoint.FILE
    raw = path.read_bytes()
    tensors = safetensors.torch.load(raw)
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    text = change(header[checkpoint.FORMAT].encode()).decode()
    signed = {checkpoint.FORMAT: text, "sha256": checkpoint._digest(text, tensors)}
    path.write_bytes(safetensors.torch.save(tensors, signed))


def spoil_checkpoint(chance: random.Random, folder: Path) -> None:
    sign(folder, lambda text: hostile_text(chance, text))


GAUSS = GaussianScore([1.0, -1.0], [[1.0, 0.3], [0.3, 2.0]])


def chains(folder: Path, seed: int = 0) -> torch.Tensor:
    """A run that is finished, or what can be taken up of it."""
    kernel = ScoreOzakiKernel(GAUSS, step_size=0.5)
    options = {"num_samples": 6, "warmup_steps": 0, "num_chains": 2, "checkpoint_every": 3}
    mcmc = MCMC(kernel, checkpoint=folder, seed=seed, disable_progbar=True, **options)
    mcmc.run()
    return mcmc.get_samples()["x"]


COUNT = 5


def one_draw() -> dict[str, Any]:
    return {
        "posterior": {"x": torch.zeros(2, 1, 3).double(), "k": torch.ones(2, 1).long()},
        "sample_stats": {"diverging": torch.zeros(2, 1).bool()},
    }


def store(folder: Path) -> None:
    draws = ZarrStore(folder / "d", "the run")
    draws.create(one_draw(), 7, 3)
    draws.find(0, one_draw())
    g = torch.Generator().manual_seed(0)
    for first, n in ((0, 3), (3, 2)):
        posterior = {"x": torch.randn(2, n, 3, generator=g).double(), "k": torch.ones(2, n).long()}
        stats = {"diverging": torch.ones(2, n) > 0}
        draws.write(first, {"posterior": posterior, "sample_stats": stats})


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """What a run that goes on reads, and what it gives a person."""
    draws = ZarrStore(folder / "d", "the run")
    draws.find(COUNT, one_draw())
    draws.sweep()
    for group in ("posterior", "sample_stats"):
        assert set(draws.names(group)) == set(draws.dataset(group).data_vars)
    return {
        name: draws.read(group, name, 0, COUNT)
        for group in ("posterior", "sample_stats")
        for name in draws.names(group)
    }


def same_draws(found: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> bool:
    """As they were, though in another order where one file of an array is in place of another."""
    return found.keys() == whole.keys() and all(
        found[name].shape == whole[name].shape
        and found[name].dtype == whole[name].dtype
        and bool(torch.isin(found[name].double(), whole[name].double()).all())
        for name in whole
    )


def netcdf(folder: Path, seed: int) -> None:
    idata = diagnostics.inference_data(
        {"x": rows(seed).reshape(2, 6, 3), "k": np.arange(12).reshape(2, 6)},
        {"diverging": np.zeros((2, 6), bool)},
    )
    diagnostics.save(idata, folder / "draws.nc")


def read_netcdf(folder: Path) -> dict[str, np.ndarray]:
    return read_draws(only(folder), None)


def chain_columns(found: dict[str, np.ndarray], whole: Any) -> bool:
    return all(v.ndim == 2 and v.dtype.kind in "biuf" for v in found.values())


CONFIG = """
[report]
title = "Draws of a chain"
force = true
[train]
sigma = [0.2, 0.6]
max-steps = 5
since = 2026-01-31T07:32:00Z
"""


def configured(folder: Path) -> None:
    """A command that ends before it does anything, for there are no draws."""
    arguments = ["report", "nowhere.nc", "--config", str(only(folder))]
    done = CliRunner().invoke(app, [*arguments, "--out", str(folder / "r.html")])
    if done.exit_code != 2 or not isinstance(done.exception, SystemExit):
        raise done.exception or AssertionError(done.output)
    said = " ".join(done.output.replace("│", " ").split())
    if "nowhere.nc does not exist" not in said:
        raise ValueError(f"c.toml: {said}")  # in a box, which breaks the path


def saved(name: str, array: Callable[[int], Any], save: Callable[[Path, Any], Any]) -> Any:
    return lambda folder, seed: save(folder / name, array(seed))


def pictures(folder: Path) -> torch.Tensor:
    return read_png(only(folder))


def intensities(found: torch.Tensor, whole: torch.Tensor) -> bool:
    return found.dim() == 3 and float(found.min()) >= 0 and float(found.max()) <= 1


def folder_of_pictures(folder: Path, seed: int) -> None:
    for i in range(3):
        PIL.Image.fromarray(digits(seed + i, 4, 6)).save(folder / f"{i}.png")


def parquet(path: Path, array: np.ndarray) -> None:
    pd.DataFrame(array, columns=list("abc")).to_parquet(path)


def cifar(folder: Path, seed: int) -> None:
    np.savez_compressed(
        folder / "cifar10_subset.npz",
        test_images=digits(seed, 1, 32, 32, 3),
        test_labels=digits(seed, 1),
    )


def mnist(folder: Path, seed: int) -> None:
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(digits(seed, 2, 4, 4)))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(digits(seed, 2))))


def flat(found: datasets.Images) -> np.ndarray:
    return np.concatenate([found.images.flatten().numpy(), found.labels.numpy()])


CSV = "a,b,c\n" + "\n".join(",".join(f"{v:.6g}" for v in row) for row in rows(0)) + "\n"


def points_to_denoise(folder: Path) -> torch.Tensor:
    return denoise_files._read(only(folder), None, learned(0), {})[0]


# -- files that chance would not make -------------------------------------------------------------


def becomes(content: Callable[[], bytes]) -> Callable[[Path], Any]:
    """The one file with other content."""
    return lambda folder: only(folder).write_bytes(content())


def linked(target: str, name: str | None = None) -> Callable[[Path], Any]:
    """A file, or a folder of the name, as a link to something outside."""

    def write(folder: Path) -> None:
        path = only(folder) if name is None else folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(target if target.startswith("/") else folder.parent.parent / target)

    return write


def zipped(**members: Any) -> Callable[[Path], Any]:
    return lambda folder: packed(only(folder), {k: v() for k, v in members.items()})


def zipped_as(name: str) -> Callable[[Path], Any]:
    return lambda folder: packed(only(folder), {name: npy(rows(0))})


def encrypted(folder: Path) -> None:
    raw = bytearray(only(folder).read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\1\2") + 8] |= 1
    only(folder).write_bytes(raw)


def few_bytes_many_rows(folder: Path) -> None:
    part = pyarrow.table({"a": np.zeros(MB)})
    with pyarrow.parquet.ParquetWriter(only(folder), part.schema) as writer:
        for _ in range(BOMB // 8):
            writer.write_table(part)


def of_hdf5(change: Callable[[Any, str], Any]) -> Callable[[Path], Any]:
    """The draws with something done to their group, which is told of a file outside."""

    def write(folder: Path) -> None:
        with h5py.File(only(folder), "r+") as file:
            change(file["posterior"], str(folder.parent.parent / "outside" / "secret.nc"))

    return write


def virtual(group: Any, outside: str) -> None:
    layout = h5py.VirtualLayout((2, 6), "f8")
    layout[:] = h5py.VirtualSource(outside, "x", (2, 6))
    group.create_virtual_dataset("other", layout)


def link(group: Any, what: Any) -> None:
    group["other"] = what


def deep(group: Any, outside: str) -> None:
    for _ in range(900):
        group = group.create_group("g")


def pickled_store(folder: Path) -> None:
    """A store of the second format of Zarr, of which arrays may be pickles."""
    shutil.rmtree(folder / "d")
    (folder / "d" / "posterior" / "x").mkdir(parents=True)
    array = {
        "zarr_format": 2, "shape": [2], "chunks": [2], "dtype": "|O", "compressor": None,
        "fill_value": None, "order": "C", "filters": [{"id": "pickle", "protocol": 5}],
    }  # fmt: skip
    for place, name, content in (
        ("d", ".zgroup", {"zarr_format": 2}),
        ("d", ".zattrs", {"ozaki_run": "the run", "draws": 5}),
        ("d/posterior", ".zgroup", {"zarr_format": 2}),
        ("d/posterior/x", ".zarray", array),
    ):
        (folder / place / name).write_text(json.dumps(content))
    (folder / "d/posterior/x/0").write_bytes(pickle.dumps(arms(2)))


def pickled_codec(folder: Path) -> None:
    path = folder / "d/posterior/x/zarr.json"
    found = json.loads(path.read_text())
    found["codecs"] = [{"name": "numcodecs.pickle", "configuration": {"protocol": 5}}]
    path.write_text(json.dumps(found))


def pickled_weights(folder: Path) -> None:
    torch.save(Armed(), folder / estimator_folder.WEIGHTS)
    reseal(folder)


def larger(**changes: Any) -> Callable[[Path], Any]:
    """An estimator whose settings ask for a larger network than its weights are of."""

    def write(folder: Path) -> None:
        settings = json.loads((folder / estimator_folder.SETTINGS).read_text())
        reseal(folder, architecture=settings["architecture"] | changes)

    return write


LISTS = b"[" + b"[]," * (3 * MB) + b"[]]"  # 9 MB, and 200 in memory
HUGE = {"shape": (2**40, 3)}

FORMATS: dict[str, Format] = {
    "estimator": Format(
        estimator, ScoreEstimator.load, same_estimator, 400, spoil_estimator, usable_estimator,
        special={
            "pickled weights": (pickled_weights, True),
            "a hundred million layers": (larger(depth=10**8), True),
            "layers of a million units": (larger(width=10**6), True),
            "other heads": (larger(order=4), True),
            "settings of small things": (
                lambda folder: (folder / estimator_folder.SETTINGS).write_bytes(LISTS), True,
            ),
            "weights without end": (linked("/dev/zero", estimator_folder.WEIGHTS), True),
            "settings without end": (linked("/dev/zero", estimator_folder.SETTINGS), True),
        },
    ),
    "unet": Format(
        lambda folder, seed: learned(seed, unet=True).save(folder), ScoreEstimator.load,
        same_estimator, 40, spoil_estimator, usable_estimator,
        special={
            "channels": (larger(channels=10**6), True),
            "heads": (larger(order=10**8), True),
        },
    ),
    "checkpoint": Format(
        checkpointed, checkpoint.read, same_checkpoint, 500, spoil_checkpoint,
        lambda found, whole: isinstance(found[1], dict) and isinstance(found[2], dict),
        twin=True,
        special={
            "without end": (linked("/dev/zero"), True),
            "beyond floats": (
                lambda folder: sign(folder, lambda text: text.replace(b'"inf"', b"1" + b"0" * 400)),
                True,
            ),
            "of small things": (becomes(lambda: struct.pack("<Q", len(LISTS)) + LISTS), True),
        },
    ),
    "chains": Format(chains, chains, equal, 60),
    "zarr": Format(
        lambda folder, seed: store(folder), stored, same_draws, 100,
        special={
            "pickles of the second format": (pickled_store, True),
            "pickles of the third": (pickled_codec, True),
            "lost draws": (lambda folder: (folder / "d/posterior/draw/c/1").unlink(), True),
            "an array elsewhere": (linked("outside", "d/posterior/x"), True),
            "a chunk without end": (linked("/dev/zero", "d/posterior/x/c/0/0/0"), True),
            "attributes without end": (linked("/dev/zero", "d/zarr.json"), True),
        },
    ),
    "netcdf": Format(
        netcdf, read_netcdf, chain_columns, 120,
        special={
            "a link to another file": (
                of_hdf5(lambda g, outside: link(g, h5py.ExternalLink(outside, "/x"))), True,
            ),
            "a link in the file": (
                of_hdf5(lambda g, outside: link(g, h5py.SoftLink("/posterior"))), True,
            ),
            "a loop": (of_hdf5(lambda g, outside: link(g, g)), True),
            "groups in groups": (of_hdf5(deep), True),
            "values in another file": (of_hdf5(virtual), True),
            "bytes of another file": (
                of_hdf5(
                    lambda g, outside: g.create_dataset(
                        "o", (1,), "f8", external=[(outside, 0, h5py.h5f.UNLIMITED)]
                    )
                ),
                True,
            ),
            "a terabyte": (
                of_hdf5(lambda g, outside: g.create_dataset("o", (2**37,), "f8", chunks=(9,))),
                True,
            ),
            "a bomb": (
                of_hdf5(
                    lambda g, outside: g.create_dataset(
                        "o", data=np.zeros((BOMB, MB), "i1"), compression="gzip"
                    )
                ),
                True,
            ),
        },
    ),
    "toml": Format(
        lambda folder, seed: (folder / "c.toml").write_text(CONFIG), configured,
        lambda found, whole: True, 80,
        special={
            "deep": (becomes(lambda: b"[report]\ntitle = " + b"[" * 100_000), True),
            "a long number": (becomes(lambda: b"[report]\ntitle = " + b"9" * 5000), True),
            "a table": (becomes(lambda: b"[report]\ntitle = {a = 1}"), True),
            "a day": (becomes(lambda: b"[report]\nforce = 2026-01-31"), True),
        },
    ),
    "csv": Format(
        saved("x.csv", lambda seed: CSV, lambda path, text: path.write_text(text)), table_of,
        numbers, 500,
        special={
            "one line": (becomes(lambda: b"123," * (4 * MB)), True),
            "a long word": (becomes(lambda: b"1,2\n3," + b"w" * 100_000), True),
            "a link": (linked("outside/secret.csv"), False),
            "a device": (linked("/dev/zero"), True),
        },
    ),
    "csv.gz": Format(
        saved("x.csv.gz", lambda seed: CSV, lambda p, t: p.write_bytes(gzip.compress(t.encode()))),
        table_of, equal, 500, spoil_packed, numbers,
        special={
            "a bomb": (
                # of the shortest entries, which take the most memory for their text
                lambda folder: gzipped(only(folder), b"", (b"1," * 511 + b"1\n") * 1024, 30), True,
            ),
            "a bomb of one line": (
                lambda folder: gzipped(only(folder), b"", b"1," * MB, 9), True,
            ),
        },
    ),
    "parquet": Format(
        saved("x.parquet", rows, parquet), table_of, numbers, 500,
        special={"a bomb": (few_bytes_many_rows, True)},
    ),
    "npy": Format(
        saved("x.npy", rows, np.save), table_of, numbers, 500,
        special={
            "pickled": (lambda folder: np.save(only(folder), arms(2, 2)), True),
            "terabytes": (becomes(lambda: npy(rows(0), **HUGE)), True),
            "records": (becomes(lambda: npy(np.zeros(3, "f8,i4"))), True),
            "of no size": (becomes(lambda: npy(np.zeros(3, "V0"), shape=(2**60,))), True),
        },
    ),
    "npz": Format(
        saved("x.npz", rows, np.savez_compressed), table_of, equal, 600, spoil_packed, numbers,
        twin=True,
        special={
            "pickled": (lambda folder: np.savez(only(folder), a=arms(2, 2)), True),
            "a bomb": (zipped(a=lambda: npy(np.zeros((BOMB, MB // 8)))), True),
            "terabytes": (zipped(a=lambda: npy(rows(0), **HUGE)), True),
            "no array": (zipped(a=lambda: b"text" * 99), True),
            "encrypted": (encrypted, True),
            "the folder above": (zipped_as("../outside/x.npy"), False),
            "the root": (zipped_as("/tmp/x.npy"), False),
            "a link": (linked("outside/secret.npz"), False),
        },
    ),
    "cifar": Format(
        cifar, lambda folder: flat(datasets.cifar10_subset(folder, "test")), equal, 150, twin=True,
        special={
            "pickled": (
                lambda folder: np.savez(only(folder), test_images=arms(1), test_labels=arms(1)),
                True,
            ),
            "a bomb": (zipped(test_images=lambda: npy(np.zeros((BOMB, MB // 8)))), True),
        },
    ),
    "idx": Format(
        saved("x-ubyte", lambda seed: idx(digits(seed, 2, 3, 4)), lambda p, b: p.write_bytes(b)),
        table_of, numbers, 400,
        special={
            "255 dimensions": (becomes(lambda: b"\0\0\x08\xff" + b"\0\0\0\1" * 255 + b"x"), True),
            "terabytes": (becomes(lambda: b"\0\0\x08\3" + b"\0\1\0\0" * 3 + b"x"), True),
        },
    ),
    "idx.gz": Format(
        saved(
            "x.idx.gz", lambda seed: gzip.compress(idx(digits(seed, 2, 3, 4))),
            lambda p, b: p.write_bytes(b),
        ),
        table_of, equal, 300, spoil_packed, numbers, twin=True,
        special={
            "a bomb": (
                lambda folder: gzipped(
                    only(folder), b"\0\0\x08\3" + struct.pack(">3I", BOMB, 1024, 1024)
                ),
                True,
            ),
            "much beyond the end": (
                lambda folder: gzipped(only(folder), idx(digits(0, 1, 1, 1))), True,
            ),
        },
    ),
    "mnist": Format(
        mnist, lambda folder: flat(datasets.mnist(folder, "test")),
        lambda found, whole: bool(np.isfinite(found).all()), 150,
    ),
    "png": Format(
        lambda folder, seed: PIL.Image.fromarray(digits(seed, 5, 7, 3)).save(folder / "x.png"),
        pictures, equal, 600, spoil_png, intensities, twin=True,
        special={
            "a bomb": (becomes(lambda: png(12_500, 12_500, deflated())), True),
            "many pixels": (
                becomes(lambda: png(4000, 4000, zlib.compress(bytes(4000 * 4001), 9))), True,
            ),
            "a text that is a bomb": (
                becomes(lambda: png(1, 1, zlib.compress(b"\0\0"), text=deflated())), True,
            ),
            "a pickle": (becomes(lambda: pickle.dumps(Armed())), True),
        },
    ),
    "pngs": Format(
        folder_of_pictures, lambda folder: read_folder(folder, {}),
        lambda found, whole: found.dim() == 4, 150,
        special={"a link": (linked("outside/secret.csv", "1.png"), False)},
    ),
    "denoise": Format(
        saved("x.npy", rows, np.save), points_to_denoise, numbers, 150,
        special={"pickled": (lambda folder: np.save(only(folder), arms(2, 3)), True)},
    ),
}  # fmt: skip


# -- the process that reads them ------------------------------------------------------------------


def tree(*folders: Path) -> dict[str, tuple[int, ...]]:
    """All that lies in folders, and what changes when it is written to; but for locks."""
    found = {}
    for folder in folders:
        for place, inner, files in os.walk(folder):
            for name in (*inner, *files):
                s = os.lstat(path := os.path.join(place, name))
                what = () if stat.S_ISDIR(s.st_mode) else (s.st_size, s.st_mtime_ns, s.st_ino)
                if name != ".lock":
                    found[path] = (s.st_mode, *what)
    return found


NOTES = "notes"  # where the process tells what it is about to do


def status(name: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS is the memory held, VmHWM the most so far."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


class Memory:
    """The most that a block took beyond what it began with: the kernel's own high-water mark.

    Resident memory and not addresses, which mapped files and allocators take without using them;
    and not Python's own count, which knows nothing of C. Linux alone lets the mark be put back.
    """

    taken = 0

    def __enter__(self):
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")
            self.before = status("VmRSS")
        return self

    def __exit__(self, *_: object):
        if sys.platform == "linux":
            self.taken = status("VmHWM") - self.before


class Watch:
    """What Python did while it was armed, by the interpreter's own audit events."""

    def __init__(self, folder: Path):
        self.folder, self.seen, self.armed = str(folder), [], False
        sys.addaudithook(self)

    def __enter__(self) -> None:
        self.seen, self.armed = [], True

    def __exit__(self, *_: object) -> None:
        self.armed = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        told = event in ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn")
        if event.startswith(("subprocess.", "socket.", "shutil.", "ctypes.dlopen")):
            told = True
        if event in ("os.remove", "os.rename", "os.mkdir", "os.symlink", "os.link", "os.chmod"):
            told = not str(args[0]).startswith(self.folder)
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
            told = not str(args[0]).startswith((self.folder, "/dev/null"))
        if told:
            self.seen.append(f"{event} {args}"[:200])


def problem(error: BaseException, folder: Path) -> str | None:
    """What is wrong with an error as a person meets it."""
    said = str(error)
    names = {folder.name, *(p.name for p in folder.rglob("*")), "nowhere.nc"}
    if type(error) not in ALLOWED:
        return f"a bare {type(error).__name__}: {said[:300]}"
    if not any(name in said for name in names):
        return f"no path in the message: {said[:300]}"
    if len(said) > SENTENCE + len(str(folder)) * 2 or "\n" in said.strip():
        return f"not one sentence: {said[:900]!r}"
    return None


def child(name: str, root: str) -> None:
    """Spoil and read, and leave what was found in the notes."""
    form, base = FORMATS[name], Path(root)
    whole, other, folder = base / "whole", base / "other", base / "given" / "files"
    outside = base / "outside"
    outside.mkdir()
    np.savetxt(outside / "secret.csv", rows(0), delimiter=",")
    np.savez(outside / "secret.npz", rows(0))
    Armed.place = str(outside / "executed")
    for seed, place in ((0, whole), (1, other)):
        place.mkdir(parents=True)
        form.make(place, seed)
    shutil.copytree(whole, folder)
    expected = [form.read(p) for p in ((folder, other) if form.twin else (folder,))]
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + LEFT,) * 2)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    watch, found = Watch(base), []
    content = {p.relative_to(whole): p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    with (base / NOTES).open("w", buffering=1) as notes:
        for number in (*form.special, *range(form.count)):
            label, sealed, refused = spoil(name, number, folder, other)
            print(label, file=notes)
            if bad := trial(form, folder, expected, watch, sealed=sealed, refused=refused):
                found.append(f"{label}: {bad}")
            mend(folder, content)
        print(json.dumps(found), file=notes)


def mend(folder: Path, content: dict[Path, bytes]) -> None:
    """The whole files again."""
    for path in list(folder.rglob("*")):
        if path.is_symlink() or (path.is_file() and path.relative_to(folder) not in content):
            path.unlink()
    for name, raw in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or not path.is_file() or path.read_bytes() != raw:
            path.unlink(missing_ok=True)
            path.write_bytes(raw)


def spoil(name: str, number: int | str, folder: Path, other: Path) -> tuple[str, bool, bool]:
    """Do to the files in `folder` what belongs to a number, or to a special name.

    Returns:
        What was done, whether checksums are right, and whether it must be refused.
    """
    form, chance = FORMATS[name], random.Random(f"{name} {number}")
    if isinstance(number, str):
        write, refused = form.special[number]
        write(folder)
        return f"{name}, special, {number!r}", False, refused
    if form.seal is not None and number % 2:
        form.seal(chance, folder)
        return f"{name}, sealed, number {number}", True, False
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    path = chance.choice(files)
    if len(files) > 1 and chance.random() < 0.15:
        source = chance.choice(files)
        kind, content = f"as {source.relative_to(folder)}", source.read_bytes()
    elif path.suffix == ".json" and chance.random() < 0.6:
        kind, content = "a hostile setting", hostile_text(chance, path.read_bytes())
    else:
        twin = other / path.relative_to(folder)
        kind, content = mutate(
            chance, path.read_bytes(), twin.read_bytes() if twin.is_file() else b"other" * 9
        )
    path.write_bytes(content)
    return f"{name}, {kind}, number {number}, file {path.relative_to(folder)}", False, False


def trial(
    form: Format, folder: Path, expected: list[Any], watch: Watch, *, sealed: bool, refused: bool
) -> str | None:
    """Read the files in `folder`; what went wrong."""
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    places = folder, folder.parent.parent / "outside"
    before = tree(*places)
    signal.alarm(PATIENCE)
    with Memory() as memory, watch:
        try:
            read, bad = form.read(folder), None
        except Exception as error:
            read, bad = None, problem(error, folder) or ""
    signal.alarm(0)
    if bad is None:
        try:
            right = any((form.usable if sealed else form.right)(read, e) for e in expected)
            bad = "" if right and not refused else f"was taken for {read}"[:300]
        except Exception as error:
            bad = f"was read as what fails: {type(error).__name__}: {error}"[:500]
    if memory.taken > 2 * size + SPARE:
        bad += f"; took {memory.taken // MB} MB of memory"
    if watch.seen:
        bad += f"; did {watch.seen[:3]}"
    if (after := tree(*places)) != before:
        changed = set(after.items()) ^ set(before.items())
        bad += f"; changed {sorted({name for name, _ in changed})[:5]}"
    return bad or None


def last_note(root: Path) -> str:
    lines = (root / NOTES).read_text().splitlines() if (root / NOTES).exists() else []
    return lines[-1] if lines else "before the first"


SLOW = ("unet",)  # diffusers takes six seconds to import


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FORMATS]
)
def test_spoiled_files_are_read_right_or_refused(name: str, tmp_path: Path):
    process = get_context("fork").Process(target=child, args=(name, str(tmp_path)))
    process.start()
    process.join()
    last = last_note(tmp_path)
    assert process.exitcode == 0, f"the process ended with {process.exitcode} at {last}"
    found = json.loads(last)
    assert not found, f"{len(found)} of {FORMATS[name].count}:\n" + "\n".join(found[:40])


def test_there_are_as_many_files_as_is_said():
    assert sum(form.count for name, form in FORMATS.items() if name not in SLOW) >= 5000
