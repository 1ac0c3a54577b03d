"""The largest work asked of one machine, and whether it fits in 8 GB.

    python -m benchmarks.load [--quick] [--seed N] [--out DIR]

Each in a process of its own, of which the highest resident memory is told, libraries and all:

- 10⁶ chains in 2 dimensions, 10 draws each, by Ozaki's kernel with its warm-up, of a correlated
  normal: draws, summary and report. The moments must be the law's.
- 100 chains in 10⁴ dimensions, 10 draws each, the same, of a normal with standard deviations from
  0.1 to 10 whose curvature is a diagonal.
- 10⁷ rows of 8 columns, streamed from a generator in batches that are never held together, one pass
  of `DSMTrainer`.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.common import highest_memory, options, table, write
from ozaki import MCMC, DSMTrainer, ScoreOzakiKernel
from ozaki.linalg import Diagonal
from ozaki.scores import GaussianScore
from ozaki.scores.base import Expansion, Score

GIGABYTES = 8
BATCH = 4096


class Stretched(Score):
    """N(0, diag(s²)), s from 0.1 to 10: s1 = −x/s², diag s2 = −1/s²."""

    default_curvature = "diagonal"

    def __init__(self, dim: int):
        self.dim, self.event_shape, self.dtype = dim, torch.Size([dim]), torch.float32
        self.precision = torch.logspace(-1, 1, dim).square().reciprocal()

    def expand(self, x: Tensor, curvature: Any = None) -> Expansion:
        self.check(x, curvature)
        second = None if curvature is None else Diagonal((-self.precision).expand_as(x))
        density = -(x.square() * self.precision).sum(-1) / 2
        return Expansion(-x * self.precision, second, density)

    def start(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, self.dim, generator=generator)


class Rows(IterableDataset[Tensor]):
    """Rows of two clusters, made as they are read."""

    def __init__(self, rows: int, columns: int, seed: int):
        self.rows, self.columns, self.seed = rows, columns, seed

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        for first in range(0, self.rows, BATCH):
            n = min(BATCH, self.rows - first)
            side = torch.randint(2, (n, 1), generator=generator) * 3.0
            yield side + torch.randn(n, self.columns, generator=generator)


def chains(score: Score, count: int, steps: int, seed: int) -> MCMC:
    """Draws, summary and report."""
    kernel = ScoreOzakiKernel(score)
    mcmc = MCMC(
        kernel,
        num_samples=10,
        warmup_steps=steps,
        num_chains=count,
        seed=seed,
        disable_progbar=True,
    )
    mcmc.run()
    with tempfile.TemporaryDirectory() as folder:
        mcmc.report(Path(folder) / "report.html")
    return mcmc


def many(size: int, seed: int) -> float:
    """`size` chains in the plane; the largest error of a second moment."""
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    x = chains(GaussianScore(torch.zeros(2), covariance), size, 20, seed).get_samples()["x"]
    return float((x.T @ x / len(x) - covariance).abs().max())


def wide(size: int, seed: int) -> float:
    """A hundred chains in `size` dimensions; the error of the mean squared standardised draw."""
    score = Stretched(size)
    x = chains(score, 100, 200, seed).get_samples()["x"]
    return float(((x.square() * score.precision).mean() - 1).abs())


def stream(size: int, seed: int) -> float:
    """One pass over `size` rows; held-out calibration less 1."""
    loader = DataLoader(Rows(size, 8, seed), batch_size=None)
    trainer = DSMTrainer(
        0.3, max_steps=size // BATCH, batch_size=BATCH, width=64, seed=seed, progress=False
    )
    estimator = trainer.fit(loader)
    return float(abs(estimator.metrics["calibration_mean"] - 1))


CELLS = {
    "10⁶ chains × 2-d × 10 draws": (many, 10**6, 0.02),
    "10⁴-d × 100 chains × 10 draws": (wide, 10**4, 0.05),
    "10⁷ training rows, streamed": (stream, 10**7, 0.1),
}


def measure(name: str, size: int, seed: int) -> dict[str, Any]:
    """One cell, as a row, in a process that has measured nothing yet."""
    torch.set_num_threads(1)
    work, _, most = CELLS[name]
    before, began = highest_memory(), time.perf_counter()
    error = work(size, seed)
    seconds = time.perf_counter() - began
    return {
        "what": name,
        "size": size,
        "seconds": seconds,
        "GB": highest_memory() / 1e3,
        "GB before": before / 1e3,
        "error": error,
        "error allowed": most,
    }


def main() -> None:
    args = options(__doc__ or "")
    rows = []
    for name, (_, size, _) in CELLS.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measure, (name, size // 100 if args.quick else size, args.seed)))
        print(rows[-1], flush=True)
    table(rows, list(rows[0]))
    bars = []
    for r in rows:
        bars.append({"bar": f"{r['what']}: GB", "asked": f"<= {GIGABYTES}", "measured": r["GB"]})
        asked = f"<= {r['error allowed']:g}"
        bars.append({"bar": f"{r['what']}: error", "asked": asked, "measured": r["error"]})
    write("load", args, rows, bars)


if __name__ == "__main__":
    main()
