"""`save` and `load` keep an estimator in a folder: a JSON and a safetensors file, and no code.

`save` and `load` know the parts of an estimator; `write` and `read` know the two files. Reading is
strict: a file that is not exactly as `write` wrote it is refused, with the path and a remedy. The
settings hold the SHA-256 of the weights and of each of themselves, so that a flipped bit is not
taken for a weight or for another noise level.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ozaki.foundation import validation
from ozaki.io import sealed
from ozaki.io.atomic import write_folder_atomically
from ozaki.scores.learned.estimator_description import (
    DTYPES,
    describe,
    metrics_of,
    rebuild,
    sketch,
)
from ozaki.scores.learned.preconditioned import ScoreNetwork
from ozaki.scores.learned.standardisation import Standardisation

FORMAT = "ozaki.ScoreEstimator"
VERSION = 2
SETTINGS = "estimator.json"
WEIGHTS = "weights.safetensors"
DIGEST = "weights_sha256"
PARTS = "settings_sha256"
REMEDY = "restore it from a copy, or save the estimator again"


class Loaded(NamedTuple):
    """The parts of a `ScoreEstimator`; its constructor explains each."""

    network: ScoreNetwork
    standardisation: Standardisation
    points: Tensor
    metrics: dict[str, Any]
    architecture: dict[str, Any] | None


def save(
    folder: str | os.PathLike[str],
    network: ScoreNetwork,
    standardisation: Standardisation,
    points: Tensor,
    *,
    metrics: Mapping[str, Any],
    architecture: Mapping[str, Any] | None,
    overwrite: bool,
) -> Path:
    """Write the parts of a `ScoreEstimator` into `folder`; see `ScoreEstimator.save`."""
    settings = {
        **describe(network, points.dtype),
        "standardize": standardisation.kind,
        "architecture": architecture,
        "network": type(network.network).__qualname__,
        "metrics": metrics,
    }
    scaling = {"mean": standardisation.mean, "scale": standardisation.scale}
    tensors = {**scaling, "points": points, **network.state_dict()}
    return write(folder, settings, tensors, overwrite=overwrite)


def load(folder: str | os.PathLike[str], network: nn.Module | None) -> Loaded:
    """Read the parts that `save` wrote; see `ScoreEstimator.load`."""
    settings, tensors = read(folder)
    if network is None and settings.get("architecture") is None:
        raise ValueError(
            f"{folder} holds the weights of a network of your own "
            f"({validation.short(str(settings.get('network')))}); build it and pass it: "
            "ScoreEstimator.load(folder, network=...)"
        )
    if network is not None and settings.get("architecture") is not None:
        raise ValueError(
            f"network must be None for {folder}, which was trained with ozaki's own network, "
            f"but was {type(network).__name__}; call ScoreEstimator.load(folder)"
        )
    path = Path(folder) / SETTINGS
    lacks = "lacks a setting or holds one that does not fit"
    with validation.parsing(path, lacks, "save the estimator again"):
        kind = validation.choice(
            "standardize", settings["standardize"], ("columns", "scalar", None)
        )
        metrics = metrics_of(settings["metrics"])
        drawn = sketch(settings, tensors) if network is None else rebuild(settings, network)
    dim = drawn.event_shape.numel()
    units = torch.empty(dim if kind == "columns" else 1, dtype=torch.float64, device="meta")
    stored = tensors.get("points", units)
    dtype = DTYPES[settings["dtype"]]
    points = torch.empty((*stored.shape[:1], dim), dtype=dtype, device="meta")
    expected = {**drawn.state_dict(), "mean": units, "scale": units, "points": points}
    match(folder, expected, tensors)
    unchanged(folder, settings)
    wrapped = rebuild(settings, None) if network is None else drawn
    wrapped.load_state_dict({k: tensors[k] for k in wrapped.state_dict()})
    return Loaded(
        wrapped,
        Standardisation(kind, tensors["mean"], tensors["scale"]),
        tensors["points"],
        metrics,
        settings["architecture"],
    )


def write(
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    overwrite: bool,
) -> Path:
    """Write settings and tensors into `folder`, all or nothing.

    Raises:
        FileExistsError: the folder is not free; see `write_folder_atomically`.
        ValueError: settings that JSON cannot hold, or tensors that are not finite.
    """
    folder = _path(folder)
    header = {"format": FORMAT, "version": VERSION, "ozaki": version("ozaki")}
    for name, value in settings.items():
        _check_json(name, value)
    for name, tensor in tensors.items():
        # `match` would refuse it only when it is loaded, which is too late
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} must be finite to be saved, but was not; train again")
    copies = sealed.detached(tensors)

    def fill(target: Path) -> None:
        sealed.write(target / WEIGHTS, copies)
        whole = {**header, DIGEST: digest(target / WEIGHTS), **settings, PARTS: parts(settings)}
        text = json.dumps(whole, indent=2, allow_nan=False)
        (target / SETTINGS).write_text(text + "\n", encoding="utf-8")

    return write_folder_atomically(folder, fill, ours=is_ours, overwrite=overwrite)


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and tensors in `folder`.

    Raises:
        FileNotFoundError: no such folder, or a file is missing from it.
        NotADirectoryError: `folder` is a file.
        ValueError: a file is corrupt, or of another format or version.
    """
    path = _path(folder)
    if path.is_file():
        raise NotADirectoryError(
            f"{path} is a file; give the folder that ScoreEstimator.save wrote"
        )
    for part in (path, path / SETTINGS, path / WEIGHTS):
        if not (part.is_dir() if part == path else part.is_file()):
            raise FileNotFoundError(
                f"{part} does not exist; give a folder that ScoreEstimator.save wrote"
            )
    settings = _settings(path / SETTINGS)
    content = (path / WEIGHTS).read_bytes()
    expected, found = settings.get(DIGEST), hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path / WEIGHTS} is truncated, damaged or another estimator's: its SHA-256 is "
            f"{found[:12]}…, where {SETTINGS} has {str(expected)[:12]}…; restore the folder from a "
            "copy, or save the estimator again"
        )
    _, tensors = sealed.parse(path / WEIGHTS, content, "is not a safetensors file", REMEDY)
    return settings, tensors


def parts(settings: Mapping[str, Any]) -> dict[str, str]:
    """The beginning of each setting's SHA-256, by name."""
    return {
        name: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
        for name, value in settings.items()
        if name != PARTS
    }


def unchanged(folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
    """Check that every setting is as it was saved; older archives do not say how they were.

    Call this after the settings were checked, since those checks can say what is wrong with one.

    Raises:
        ValueError: naming those that are not.
    """
    path, saved, now = Path(folder) / SETTINGS, settings.get(PARTS, {}), parts(settings)
    if not isinstance(saved, dict):
        raise ValueError(f"{path}: {PARTS} must hold a text by setting, but did not; {REMEDY}")
    if changed := sorted(name for name in now.keys() & saved.keys() if now[name] != saved[name]):
        raise ValueError(
            f"{path} is damaged: {changed} are not as they were saved, by their SHA-256; {REMEDY}"
        )


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def match(
    folder: str | os.PathLike[str],
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
) -> None:
    """Check the name, shape, dtype and finiteness of every tensor.

    Args:
        folder: where they were.
        expected: tensors of any content; those of the device "meta" have none.
        found: what was read.

    Raises:
        ValueError: the first thing that does not fit.
    """
    path = Path(folder) / WEIGHTS
    if expected.keys() != found.keys():
        missing, unknown = (
            validation.short(str(sorted(names)))
            for names in (expected.keys() - found.keys(), found.keys() - expected.keys())
        )
        raise ValueError(
            f"{path} does not hold the tensors of this network: missing {missing}, unknown "
            f"{unknown}; pass the network it was trained with"
        )
    for name, tensor in found.items():
        like = expected[name]
        if tensor.shape != like.shape:
            raise ValueError(
                f"{path}: {name} must have shape {tuple(like.shape)}, but had "
                f"{tuple(tensor.shape)}; pass the network it was trained with"
            )
        if tensor.dtype != like.dtype:
            raise ValueError(
                f"{path}: {name} must be of {like.dtype}, but was of {tensor.dtype}; {REMEDY}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{path}: {name} holds NaN or infinite entries; train again, or restore the file "
                "from a copy"
            )
    if len(found["points"]) == 0 or bool((found["scale"] <= 0).any()):
        raise ValueError(
            f"{path}: points must not be empty and scale must be above 0; save the estimator again"
        )


def _path(folder: str | os.PathLike[str]) -> Path:
    if not isinstance(folder, (str, os.PathLike)):
        raise ValueError(f"folder must be a path, but was a {type(folder).__name__}")
    return Path(folder)


def _check_json(name: str, value: Any) -> None:
    """Raise ValueError for a value that JSON cannot hold."""
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} must be finite numbers, text, lists and dicts to be saved, but was {value!r} "
            f"({error})"
        ) from None


def _settings(path: Path) -> dict[str, Any]:
    """Read the settings, and check their format and version."""
    found = validation.json_text(path, path.read_bytes(), REMEDY)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        kind = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f"{path} must be of format {FORMAT!r}, but was {_short(kind)}; give a folder that "
            "ScoreEstimator.save wrote"
        )
    if found.get("version") != VERSION:
        raise ValueError(
            f"{path} must be of version {VERSION}, but was {_short(found.get('version'))} (written "
            f"by ozaki {_short(found.get('ozaki'))}); read it with that release, or train again"
        )
    return found


def _short(value: Any) -> str:
    return validation.short(repr(value))


def is_ours(folder: Path) -> bool:
    """Say whether a folder holds an estimator and nothing else."""
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    names = {entry.name for entry in folder.iterdir()}
    return (
        isinstance(found, dict) and found.get("format") == FORMAT and names <= {SETTINGS, WEIGHTS}
    )
