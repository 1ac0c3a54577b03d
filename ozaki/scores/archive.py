"""How an estimator is kept on disk: one JSON file, one safetensors file, no code (floor 1).

Reading is strict: what is not exactly what `write` wrote is refused, with the path and a remedy.
"""

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
VERSION = 1
SETTINGS = "estimator.json"
WEIGHTS = "weights.safetensors"


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
    """
    header = {"format": FORMAT, "version": VERSION, "ozaki": version("ozaki")}
    text = json.dumps({**header, **settings}, indent=2, allow_nan=False)
    # cloned: safetensors refuses tensors that share memory, such as tied weights
    copies = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}

    def fill(target: Path) -> None:
        (target / SETTINGS).write_text(text + "\n", encoding="utf-8")
        safetensors.torch.save_file(copies, target / WEIGHTS)

    return write_folder_atomically(folder, fill, ours=_is_ours, overwrite=overwrite)


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and tensors in `folder`.

    Raises:
        FileNotFoundError: no such folder, or a file is missing from it.
        ValueError: a file is corrupt, or of another format or version.
    """
    path = Path(folder)
    for part in (path, path / SETTINGS, path / WEIGHTS):
        if not part.exists():
            raise FileNotFoundError(
                f"{part} does not exist; give a folder that ScoreEstimator.save wrote"
            )
    settings = _settings(path / SETTINGS)
    try:
        return settings, safetensors.torch.load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path / WEIGHTS} is truncated or not a safetensors file ({error}); restore it from "
            "a copy, or save the estimator again"
        ) from error


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


def _settings(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
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
