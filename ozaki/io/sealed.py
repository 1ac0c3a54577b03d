"""These functions write safetensors files, and read them whole before any content is used.

Checkpoints and saved estimators are such files. Both keep a SHA-256 of their content, each in its
own way; this module has what they share.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ozaki.foundation import validation


def detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to the CPU without shared memory: safetensors refuses tied weights."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> None:
    """Write tensors that `detached` gave, with texts by name.

    Raises:
        OSError: they could not be written.
    """
    # not save_file: it writes to a temporary file of its own, which it leaves when it is killed,
    # and its errors do not say that the system wrote no more
    path.write_bytes(safetensors.torch.save(dict(tensors), header))


def parse(
    path: Path, content: bytes, wrong: str, remedy: str
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the texts and the tensors of a file.

    The content is read once and passed on, since a file may be replaced between two readings, and
    one that is mapped may be cut off while it is in use.

    Args:
        path: of the file, for the error.
        content: all of it.
        wrong: the error's words for a file that cannot be parsed.
        remedy: what can be done then.

    Raises:
        ValueError: it is no safetensors file.
    """
    text = content[8 : 8 + int.from_bytes(content[:8], "little")]
    header: Any = validation.json_text(path, text, remedy, wrong)
    with validation.parsing(path, wrong, remedy):
        tensors = safetensors.torch.load(content)
    return header.get("__metadata__", {}), tensors
