"""The picture on the landing page: python docs/site/steps.py."""

from pathlib import Path

import matplotlib
import torch

from ozaki.kernels.proposals import ozaki
from ozaki.scores import LogDensityScore

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.patches import Ellipse


def funnel(x: torch.Tensor) -> torch.Tensor:
    """Wide on the right, narrow on the left."""
    width = torch.exp(x[0] / 2)
    return -(x[0] ** 2) / 8 - (x[1] / width) ** 2 / 2 - x[0] / 2


def main() -> None:
    """Level lines, and one step from each of a few points."""
    score = LogDensityScore(funnel, (2,))
    at = torch.cartesian_prod(torch.linspace(-4, 4, 200), torch.linspace(-7, 7, 200))
    level = torch.vmap(funnel)(at).reshape(200, 200)
    figure, axes = plt.subplots(figsize=(8, 3.6))
    grid = at.reshape(200, 200, 2)
    axes.contourf(
        grid[..., 0], grid[..., 1], level, levels=[-8, -6, -4, -3, -2, -1, 0, 2], cmap="BuGn"
    )
    points = torch.tensor([[-3.2, 0.15], [-1.8, -0.4], [-0.3, 1.0], [1.2, -2.0], [2.6, 3.0]])
    step = ozaki(points, score.expand(points, "dense"), torch.tensor(1.5))
    for x, mean, spread in zip(points, step.mean, step.covariance.dense(), strict=True):
        values, axes_of = torch.linalg.eigh(spread)
        angle = float(torch.rad2deg(torch.atan2(axes_of[1, 1], axes_of[0, 1])))
        long, short = (2 * (1.386 * v) ** 0.5 for v in (float(values[1]), float(values[0])))
        axes.add_patch(
            Ellipse(mean.tolist(), long, short, angle=angle, alpha=0.35, color="#D55E00")
        )
        axes.annotate("", mean.tolist(), x.tolist(), arrowprops={"arrowstyle": "->", "lw": 1.5})
        axes.plot(*x.tolist(), "ko", ms=4)
    axes.set(xlim=(-4, 4), ylim=(-7, 7), xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(Path(__file__).with_name("steps.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
