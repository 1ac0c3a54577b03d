"""How an estimator is kept on disk: one JSON file, one safetensors file, no code (floor 1).

Reading is strict: what is not exactly what `write` wrote is refused, with the path and a remedy.
The settings hold the SHA-256 of the weights, so that a flipped bit is not taken for a weight.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ozaki.storage import write_folder_atomically

FORMAT = "ozaki.ScoreEstimator"
VERSION = 2
SETTINGS = "estimator.json"
WEIGHTS = "weights.safetensors"
DIGEST = "weights_sha256"


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
        # `match` would refuse it, when it is too late
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} must be finite to be saved, but was not; train again")
    # cloned: safetensors refuses tensors that share memory, such as tied weights
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}

    def fill(target: Path) -> None:
        safetensors.torch.save_file(copies, target / WEIGHTS)
        whole = {**header, DIGEST: digest(target / WEIGHTS), **settings}
        text = json.dumps(whole, indent=2, allow_nan=False)
        (target / SETTINGS).write_text(text + "\n", encoding="utf-8")

    return write_folder_atomically(folder, fill, ours=_is_ours, overwrite=overwrite)


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
    expected, found = settings.get(DIGEST), digest(path / WEIGHTS)
    if found != expected:
        raise ValueError(
            f"{path / WEIGHTS} is truncated, damaged or another estimator's: its SHA-256 is "
            f"{found[:12]}…, where {SETTINGS} has {str(expected)[:12]}…; restore the folder from a "
            "copy, or save the estimator again"
        )
    try:
        return settings, safetensors.torch.load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path / WEIGHTS} is not a safetensors file ({error}); restore it from a copy, or "
            "save the estimator again"
        ) from error


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def match(
    folder: str | os.PathLike[str],
    expected: Mapping[str, torch.Size],
    found: Mapping[str, Tensor],
) -> None:
    """Check the name, shape and finiteness of every tensor.

    Raises:
        ValueError: the first thing that does not fit.
    """
    path = Path(folder) / WEIGHTS
    if expected.keys() != found.keys():
        raise ValueError(
            f"{path} does not hold the tensors of this network: missing "
            f"{sorted(expected.keys() - found.keys())}, unknown "
            f"{sorted(found.keys() - expected.keys())}; pass the network it was trained with"
        )
    for name, tensor in found.items():
        if tensor.shape != expected[name]:
            raise ValueError(
                f"{path}: {name} must have shape {tuple(expected[name])}, but had "
                f"{tuple(tensor.shape)}; pass the network it was trained with"
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
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{name} must be finite numbers, text, lists and dicts to be saved, but was {value!r} "
            f"({error})"
        ) from None


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not JSON ({error}); restore it from a copy, or save the estimator again"
        ) from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        kind = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f"{path} must be of format {FORMAT!r}, but was {kind!r}; give a folder that "
            "ScoreEstimator.save wrote"
        )
    if found.get("version") != VERSION:
        raise ValueError(
            f"{path} must be of version {VERSION}, but was {found.get('version')!r} (written by "
            f"ozaki {found.get('ozaki')}); read it with that release, or train again"
        )
    return found


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds an estimator and nothing else."""
    try:
        found = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = {entry.name for entry in folder.iterdir()}
    return (
        isinstance(found, dict) and found.get("format") == FORMAT and names <= {SETTINGS, WEIGHTS}
    )
