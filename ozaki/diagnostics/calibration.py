"""`calibrate` compares stated uncertainties with true errors."""

from typing import NamedTuple

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float

LEVELS = (0.5, 0.9, 0.95)  # levels of central intervals


class Bin(NamedTuple):
    """A bin of coordinates of similar predicted variance.

    Attributes:
        share: of all coordinates.
        predicted: the mean of C_ii, as a share of the noise's variance.
        observed: the mean of (x_i − mean_i)², in the same unit.
    """

    share: float
    predicted: float
    observed: float

    @property
    def ratio(self) -> float:
        """Observed over predicted: 1 where the variance is right."""
        return self.observed / self.predicted


class Calibration(NamedTuple):
    """The comparison of a stated uncertainty with true errors; printed as a table.

    Attributes:
        ratio: the mean squared error over the mean predicted variance, of all coordinates, each in
            units of its noise; 1 where the variance is right, above 1 where it is too small.
        bins: the same by predicted variance, ascending, in bins of about equally many coordinates.
        coverage: the share of coordinates inside the central interval of each level. Nominal only
            where the posterior of a coordinate is normal; see `bins` where it is not.
        explained: the share of the squared error, in the data's units, that lies in the first
            1, 2, … components.
    """

    ratio: float
    bins: tuple[Bin, ...]
    coverage: dict[float, float]
    explained: tuple[float, ...]

    def __str__(self) -> str:
        lines = [f"{'share':>6}  {'predicted':>10}  {'observed':>10}  {'ratio':>6}"]
        lines += [
            f"{b.share:>6.1%}  {b.predicted:>10.4g}  {b.observed:>10.4g}  {b.ratio:>6.2f}"
            for b in self.bins
        ]
        lines += [f"{'all':>6}  {'':>10}  {'':>10}  {self.ratio:>6.2f}"]
        inside = ", ".join(f"{share:.1%} in {level:.0%}" for level, share in self.coverage.items())
        lines += [f"coverage: {inside}"]
        if self.explained:
            parts = ", ".join(f"{share:.1%}" for share in self.explained)
            lines += [f"of the squared error in the first components: {parts}"]
        return "\n".join(lines)


def calibrate(
    error: Float[Tensor, "*batch dim"],
    deviation: Float[Tensor, "*batch dim"],
    noise_scale: Float[Tensor, " dim"],
    along: Float[Tensor, "*batch k"] | None = None,
    bins: int = 10,
) -> Calibration:
    """Compare errors with the standard deviations that were stated for them.

    Args:
        error: truth less mean, (*batch, D).
        deviation: the standard deviation that was stated, above 0, (*batch, D).
        noise_scale: the noise's standard deviation, (D,), the unit that columns are compared in.
        along: the errors along the principal components of each point, (*batch, k).
        bins: of predicted variance.
    """
    square = (error / noise_scale).square().flatten()
    predicted = (deviation / noise_scale).square().flatten()
    ordered, order = predicted.sort(stable=True)
    parts = zip(ordered.tensor_split(bins), square[order].tensor_split(bins), strict=True)
    inside = (error.abs() / deviation).flatten()
    quantiles = {level: 2**0.5 * float(torch.erfinv(torch.tensor(level))) for level in LEVELS}
    explained: tuple[float, ...] = ()
    if along is not None:
        energy = along.square().reshape(-1, along.shape[-1]).sum(0)
        explained = tuple((energy.cumsum(0) / error.square().sum()).tolist())
    return Calibration(
        float(square.mean() / predicted.mean()),
        tuple(
            Bin(len(p) / len(square), float(p.mean()), float(s.mean())) for p, s in parts if len(p)
        ),
        {level: float((inside <= q).double().mean()) for level, q in quantiles.items()},
        explained,
    )
