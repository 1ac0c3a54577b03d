"""A checkpoint holds the state of a run in one safetensors file, so that it can be resumed.

A file is written as a whole or not at all, and nothing in it is executed.
The header holds one JSON text and a SHA-256 of that text and of every tensor's name, dtype, shape
and bytes. Reading is strict: what is not exactly what `write` wrote is refused.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ozaki.foundation import validation
from ozaki.io import sealed
from ozaki.io.atomic import sweep, write_atomically

FORMAT = "ozaki.checkpoint"  # the name in the files: it does not change with the module's
VERSION = 1
FILE = "checkpoint.safetensors"
REMEDY = "remove it to begin anew, or restore it from a copy"
_NUMBER = "__float__"  # JSON knows no NaN and no infinity: {"__float__": "inf"}

Checkpoint = tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]


def write(
    folder: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    state: Mapping[str, Any],
    file: str = FILE,
) -> Path:
    """Write a checkpoint into `folder` in place of the one there, all or nothing.

    Args:
        folder: made if it is missing.
        tensors: of any shape, dtype and device; they may share memory.
        settings: what must be equal for the run to be resumed, see `match`; strings, numbers,
            None, and lists and mappings of them. A tuple is read as a list.
        state: where the run stands, made of the same.
        file: its name.

    Returns:
        The file.

    Raises:
        OSError: it could not be written, for want of space for instance. The checkpoint that was
            there is as it was.
    """
    path = Path(folder) / file
    parts = {"settings": _plain(settings), "state": _plain(state)}
    # the name is hashed too, lest one file of draws pass for another
    head = {"format": FORMAT, "version": VERSION, "file": file}
    text = json.dumps({**head, **parts}, allow_nan=False)
    copies = sealed.detached(tensors)
    header = {FORMAT: text, "sha256": _digest(text, copies)}

    def save(target: Path) -> None:
        sealed.write(target, copies, header)

    return write_atomically(path, save, overwrite=True)


def read(folder: str | os.PathLike[str], file: str = FILE) -> Checkpoint | None:
    """The tensors, settings and state in `folder`; None where there is no checkpoint.

    Raises:
        ValueError: the file is corrupt, or of another format or version.
        OSError: it could not be read at all.
    """
    path = Path(folder) / file
    if not path.exists():
        return None
    if not path.is_file():  # reading a device would not end
        raise ValueError(f"{path} must be a file, but is none; {REMEDY}")
    wrong = "is truncated or not a safetensors file"
    header, tensors = sealed.parse(path, path.read_bytes(), wrong, REMEDY)
    if FORMAT not in header:
        raise ValueError(f"{path} must be of format {FORMAT!r}, but was not; {REMEDY}")
    if header.get("sha256") != _digest(header[FORMAT], tensors):
        raise ValueError(f"{path} is corrupt: its content does not match its SHA-256; {REMEDY}")
    found = _parse(path, header[FORMAT], file)
    return tensors, found["settings"], found["state"]


def match(
    folder: str | os.PathLike[str],
    saved: Mapping[str, Any],
    settings: Mapping[str, Any],
    file: str = FILE,
) -> None:
    """Check that a run has the settings of the checkpoint that it resumes.

    Raises:
        ValueError: naming every setting that differs.
    """
    was, now = dict(saved), _revived(_plain(settings))
    changes = [
        f"{name} {_shown(was, name, 'was')} in the checkpoint and {_shown(now, name, 'is')} now"
        for name in sorted(was.keys() | now.keys())
        if _plain(was.get(name)) != _plain(now.get(name)) or (name in was) != (name in now)
    ]
    if changes:
        raise ValueError(
            f"{Path(folder) / file} is of a run with other settings: {'; '.join(changes)}; "
            "go on with the same settings, or choose another folder"
        )


def clean(folder: str | os.PathLike[str], file: str = FILE) -> list[Path]:
    """Remove files that killed writes have left in `folder`; to be called under its lock.

    Returns:
        What was removed.
    """
    return sweep(Path(folder) / file)


def _parse(path: Path, text: str, file: str) -> dict[str, Any]:
    """Read the settings and the state from a header, and check its format and version."""
    found = validation.json_text(path, text.encode(), REMEDY, "has a header that is not JSON")
    with validation.parsing(path, "has a header that cannot be read", REMEDY):
        if found.get("file", file) != file:
            raise ValueError(f"it was written as {validation.short(repr(found['file']))}")
        if found["format"] == FORMAT and found["version"] == VERSION:
            return {name: dict(_revived(found[name])) for name in ("settings", "state")}
        version = validation.short(repr(found["version"]))
    raise ValueError(
        f"{path} must be of version {VERSION}, but was of {version}; take the run up "
        "with the release of ozaki that began it, or remove the file to begin anew"
    )


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the text and of all tensors."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(content)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Write `value` in the types of JSON, with nothing changed on the way."""
    if isinstance(value, float) and not math.isfinite(value):
        return {_NUMBER: str(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping) and all(isinstance(k, str) and k != _NUMBER for k in value):
        return {k: _plain(v) for k, v in value.items()}
    raise ValueError(
        "settings and state must be made of strings, numbers, None, lists and mappings from "
        f"strings, but held {value!r}; convert it first"
    )


def _revived(value: Any) -> Any:
    """Return the value that `_plain` was given."""
    if isinstance(value, list):
        return [_revived(v) for v in value]
    if isinstance(value, dict):
        if value.keys() == {_NUMBER}:
            return float(value[_NUMBER])
        return {k: _revived(v) for k, v in value.items()}
    return value


def _shown(settings: Mapping[str, Any], name: str, verb: str) -> str:
    return f"{verb} {settings[name]!r}" if name in settings else f"{verb} not there"
