"""These functions check the data, and put them into units of their own spread."""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ozaki.foundation import validation

FEW = 50  # a warning is given for fewer rows
LARGEST = 1e18  # largest spread whose square float32 holds, and the inverse of the smallest
FAR = 1e6  # an entry so many times as large as all others is no measurement
RESOLUTION = 1e-2  # share of a standard deviation that the dtype must resolve


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
        """Return the same standardisation on another device."""
        return Standardisation(self.kind, self.mean.to(device), self.scale.to(device))


def standardisation(
    rows: Tensor, kind: str | None, dtype: torch.dtype | None = None
) -> tuple[Standardisation, float, float]:
    """Find how u is made from rows (N, D), and the centre and the spread that are left in u.

    Args:
        rows: in the dtype in which they came: it says how finely they are known.
        kind: "columns", "scalar" or None.
        dtype: what points are walked in, where that is coarser than the rows' own.

    Raises:
        ValueError: one row; a constant column under "columns", or data that are constant
            throughout; a spread that scores cannot be given in, or that a dtype does not resolve.
    """
    if len(rows) < 2:
        raise ValueError(
            f"data must have at least 2 rows to train on, but {len(rows)} was left beside those "
            "held out; a spread cannot be known from fewer"
        )
    x = rows.double() if kind == "columns" else rows.double().reshape(-1, 1)
    mean, scale = x.mean(0), x.std(0)
    coarse = rows.dtype
    if dtype is not None and torch.finfo(dtype).eps > torch.finfo(coarse).eps:
        coarse = dtype
    _check_varied(rows.dtype, kind, mean, x.amax(0) == x.amin(0))
    _check_size(kind, scale, x)
    _check_resolved(rows.dtype, coarse, kind, mean, scale)
    if kind is not None:
        return Standardisation(kind, mean, scale), 0.0, 1.0
    identity = Standardisation(kind, torch.zeros_like(mean), torch.ones_like(scale))
    return identity, float(mean), float(scale)


def _check_varied(own: torch.dtype, kind: str | None, mean: Tensor, constant: Tensor) -> None:
    """Raise ValueError for columns, or data, that are constant."""
    if not bool(constant.any()):
        return
    # values that float32 rounds to one look constant
    rounded = own != torch.float64 and bool((mean[constant] != 0).any())
    hint = f"; if they should vary, subtract an offset before converting them to {own}"
    if kind == "columns":
        raise ValueError(
            "data must vary in every column to be standardised, but column(s) "
            f"{_where(constant)} were constant; drop them, or pass standardize='scalar' or None"
            + hint
            * rounded
        )
    raise ValueError(
        f"data must vary, but every entry was {float(mean):.4g}; check how they were loaded"
        + hint * rounded
    )


def _check_size(kind: str | None, scale: Tensor, x: Tensor) -> None:
    """Raise ValueError for a spread too large or too small for scores."""
    wrong = ~((scale >= 1 / LARGEST) & (scale <= LARGEST))
    if not bool(wrong.any()):
        return
    i = int(wrong.nonzero()[0])
    column = x[:, i]
    largest = column.abs().max()
    code = column[column.abs() == largest][0]
    rest = column[column != code]
    # what is left spreads as other data do: the entry is no measurement
    if len(rest) and float(rest.abs().max()) < float(largest) / FAR:
        whose = f"column {i}" if kind == "columns" else "them"
        count = len(column) - len(rest)
        raise ValueError(
            f"data must be measurements, but {count} of the {len(column)} entries of {whose} "
            f"{'was' if count == 1 else 'were'} {float(code):.6g} and the others at most "
            f"{float(rest.abs().max()):.4g} in size, which looks like a code for a missing value; "
            "remove or impute them"
        )
    raise ValueError(
        f"data must have a standard deviation from {1 / LARGEST:g} to {LARGEST:g}, since a "
        f"curvature comes in units of its inverse square, but {_whose(kind, wrong)} was "
        f"{float(scale[i]):.3g}; change the units"
    )


def resolution(dtype: torch.dtype, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the spacing of a dtype's numbers near `mean`, and where it is too wide for `scale`."""
    step = torch.finfo(dtype).eps * mean.abs()
    return step, step > RESOLUTION * scale


def _check_resolved(
    own: torch.dtype, coarse: torch.dtype, kind: str | None, mean: Tensor, scale: Tensor
) -> None:
    """Raise ValueError where a dtype is too coarse for the spread about a large mean."""
    step, blurred = resolution(coarse, mean, scale)
    if not bool(blurred.any()):
        return
    i = int(blurred.nonzero()[0])
    remedy = "subtract an offset in float64, such as the mean, before converting them"
    if coarse != own:
        remedy = "subtract an offset, such as the mean, or train with precision='64-true'"
    raise ValueError(
        f"data must be resolved by {coarse}, but near {float(mean[i]):.4g} it holds only every "
        f"{float(step[i]):.2g}, where the standard deviation of {_whose(kind, blurred)} was "
        f"{float(scale[i]):.2g}; {remedy}"
    )


def _where(columns: Tensor, limit: int = 10) -> str:
    found = columns.nonzero().flatten().tolist()
    return f"{found[:limit]}" + (f" and {len(found) - limit} more" if len(found) > limit else "")


def _whose(kind: str | None, columns: Tensor) -> str:
    return f"column(s) {_where(columns)}" if kind == "columns" else "all entries"


def collect(data: Any) -> Tensor:
    """Return `data` as one finite tensor of at least two rows, (N, *event_shape).

    Args:
        data: a tensor, an array or a frame.

    Raises:
        ValueError: naming what was wrong with it.
    """
    x = validation.floating("data", data)
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(
            f"data must have shape (N, D) or (N, *event_shape), but had {tuple(x.shape)}; for one "
            "variable pass data.reshape(-1, 1)"
        )
    if len(x) < 2:
        inner = "; if its second dimension counts the rows, pass data[0]"
        raise ValueError(
            f"data must have at least 2 rows, but had {len(x)}, of shape {tuple(x.shape[1:])}; a "
            "law cannot be learned from fewer" + inner * (x.ndim > 2 and len(x) == 1)
        )
    if len(x) < FEW:
        warnings.warn(
            f"data have {len(x)} rows only: a law learned from fewer than {FEW} is little more "
            "than those rows with noise",
            stacklevel=4,  # the caller of `fit`
        )
    return x.detach().cpu()


def rows_of(name: str, data: Any, event_shape: torch.Size) -> Tensor:
    """Return finite data as (N, D), with half precision turned into float32."""
    x = validation.single(validation.floating(name, data))
    dim = event_shape.numel()
    if x.ndim < 2 or len(x) == 0 or x.shape[1:] not in (event_shape, torch.Size([dim])):
        raise ValueError(
            f"{name} must have shape (N, {', '.join(map(str, event_shape))}) with N ≥ 1, but had "
            f"{tuple(x.shape)}"
        )
    return x.reshape(len(x), dim)
