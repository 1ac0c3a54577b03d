"""These functions make fingerprints by which a checkpoint recognises its run's law and data."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ozaki.foundation.shapes import Float
from ozaki.kernels.score_kernel import ScoreKernel
from ozaki.kernels.target import Target
from ozaki.scores.base import Score

DIRECTIONS = 8


def of_run(
    kernel: ScoreKernel, target: Target, data: tuple[Any, ...], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything that bears on the draws; a run with another identity is refused.

    Args:
        kernel: its kernel.
        target: the model that the kernel walks on; its law is known by its gradient at two points.
        data: the arguments of the model.
        settings: those of `MCMC`.

    Returns:
        Name → value, as JSON has it.
    """
    score, guide = target.score, kernel.guide
    points = score.start(2, torch.Generator(score.device).manual_seed(0))
    return {
        "kernel": type(kernel).__name__,
        **kernel.settings(),
        **settings,
        "sites": {name: list(shape) for name, shape in target.sites.shapes.items()},
        "law": of_law(score, points),
        "guide": [] if guide is None else of_law(guide, points),
        "data": of_data(*data, score, guide),
    }


def of_law(score: Score, points: Float[Tensor, "n dim"]) -> list[str]:
    """The length of a score's gradient at each point, and its share in random directions.

    Rounded, since another machine or number of threads computes other last digits.

    Args:
        score: of any law.
        points: where its gradient is finite, (n, D).
    """
    like = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(0, 2, (DIRECTIONS, score.dim), generator=like).double() - 1
    gradient = score.expand(points.to(score.dtype)).gradient.detach().double().cpu()
    found = []
    for g in gradient:
        norm = float(g.norm())
        # + 0: no minus before a zero
        shares = [round(v, 2) + 0.0 for v in (signs @ g / (norm or 1.0)).tolist()]
        found.append(f"{norm:.3g}: " + " ".join(f"{v:.2f}" for v in shares))
    return found


def of_data(*parts: Any) -> str:
    """A digest of the tensors, arrays, frames, numbers, text and weights in `parts`, to the bit.

    Of a score its networks count, and what a model has observed. Anything else counts by its type
    alone: what it does to the law is seen by `of_law`.
    """
    digest = hashlib.sha256()
    _add(digest, parts)
    return digest.hexdigest()[:16]


def _add(digest: Any, part: Any) -> None:
    """Add a part, and all that it holds, to a digest."""
    digest.update(type(part).__name__.encode())
    if isinstance(part, nn.Module):
        part = part.state_dict()
    elif isinstance(part, Score):
        own = vars(part).items()
        part = {k: v for k, v in own if k == "observed" or isinstance(v, nn.Module)}
    elif hasattr(part, "to_numpy"):  # a frame
        digest.update(repr(list(getattr(part, "columns", ()))).encode())
        part = part.to_numpy()
    if isinstance(part, Tensor):
        digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
        plain = part.detach().cpu().to_dense() if part.layout != torch.strided else part.detach()
        flat = plain.cpu().resolve_conj().resolve_neg().reshape(-1)
        part = flat.view(torch.uint8).numpy()  # NumPy has not all of torch's dtypes
    if isinstance(part, np.ndarray):
        digest.update(f"{part.dtype}{part.shape}".encode())
        digest.update(repr(part.tolist()).encode() if part.dtype.hasobject else part.tobytes())
    elif isinstance(part, Mapping):
        for key in sorted(part, key=repr):
            digest.update(repr(key).encode())
            _add(digest, part[key])
    elif isinstance(part, Sequence) and not isinstance(part, (str, bytes)):
        digest.update(str(len(part)).encode())
        for each in part:
            _add(digest, each)
    elif isinstance(part, (str, bytes, int, float, complex, np.generic, type(None))):
        digest.update(repr(part).encode())
