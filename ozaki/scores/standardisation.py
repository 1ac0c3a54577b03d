"""Data made ready: collected, checked, and put into units of their own spread (floor 1)."""

from collections.abc import Mapping, Sized
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ozaki import validation


class Standardisation(NamedTuple):
    """u = (x − mean) / scale, with float64 entries.

    Attributes:
        kind: "columns", "scalar", or None, where mean is 0 and scale 1.
        mean: (D,) by column, else (1,).
        scale: as `mean`.
    """

    kind: str | None
    mean: Tensor
    scale: Tensor

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The standardised x in `dtype`, by way of float64: x − mean cancels for a large mean."""
        return ((x.double() - self.mean) / self.scale).to(dtype)

    def to(self, device: torch.device | str) -> "Standardisation":
        """The same on another device."""
        return Standardisation(self.kind, self.mean.to(device), self.scale.to(device))


def standardisation(rows: Tensor, kind: str | None) -> tuple[Standardisation, float, float]:
    """How u is made from rows (N, D), and the centre and the spread that are left in u.

    Raises:
        ValueError: a constant column under "columns", or data that are constant throughout.
    """
    tiny = 1e-6 * rows.abs().amax(0)
    if kind == "columns":
        mean, scale = rows.mean(0), rows.std(0)
        constant = (scale <= tiny).nonzero().flatten().tolist()
        if constant:
            raise ValueError(
                f"data must vary in every column to be standardised, but column(s) {constant} "
                "were constant; drop them, or pass standardize='scalar' or None"
            )
        return Standardisation(kind, mean, scale), 0.0, 1.0
    mean, scale = rows.mean().reshape(1), rows.std().reshape(1)
    if not bool(scale > tiny.amax()):
        raise ValueError(
            f"data must vary, but every entry was {float(mean):.4g}; check how they were loaded"
        )
    if kind == "scalar":
        return Standardisation(kind, mean, scale), 0.0, 1.0
    identity = Standardisation(kind, torch.zeros_like(mean), torch.ones_like(scale))
    return identity, float(mean), float(scale)


def collect(data: Any) -> Tensor:
    """`data` as one finite tensor of at least two rows, (N, *event_shape).

    Args:
        data: a tensor, an array, a frame, or a DataLoader of finite length, whose items are
            tensors or begin with one.

    Raises:
        ValueError: naming what was wrong with it.
    """
    if isinstance(data, DataLoader):
        data = _concatenate(data)
    x = validation.floating("data", data)
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(
            f"data must have shape (N, D) or (N, *event_shape), but had {tuple(x.shape)}; for one "
            "variable pass data.reshape(-1, 1)"
        )
    if len(x) < 2:
        raise ValueError(
            f"data must have at least 2 rows, but had {len(x)}; a law cannot be learned from fewer"
        )
    return x.detach().cpu()


def _concatenate(loader: DataLoader[Any]) -> Tensor:
    if isinstance(loader.dataset, torch.utils.data.IterableDataset) and not isinstance(
        loader.dataset, Sized
    ):
        raise ValueError(
            "data must be of finite length, but was a DataLoader over an IterableDataset without "
            "one; give the dataset a __len__, or pass a tensor"
        )
    parts: list[Tensor] = []
    for item in loader:
        first = item[0] if isinstance(item, (tuple, list)) and len(item) > 0 else item
        if isinstance(first, Mapping) or not isinstance(first, Tensor):
            raise ValueError(
                "data must be a DataLoader whose items are tensors or tuples that begin with one, "
                f"but an item was {type(item).__name__}; choose the tensor in a collate_fn"
            )
        parts.append(first)
    if not parts:
        raise ValueError("data must have at least 2 rows, but the DataLoader gave no items")
    return torch.cat(parts)
