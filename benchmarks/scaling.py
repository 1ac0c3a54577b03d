"""What does a step cost as chains and dimensions grow? Time for each chain, and memory.

    python -m benchmarks.scaling [--quick] [--seed N] [--out DIR] [--compile]

The law is ½N(m, I) + ½N(−m, I) with |m| = 1.5, in closed form and single precision. Langevin's and
Ozaki's kernel, diagonal, walk on it with exact Metropolis and a given step size: 1 to 10⁶ chains in
2 dimensions, and 100 chains in up to 10⁴. No warm-up precedes the steps and no draws are kept.
Every cell is a fresh process of one thread. A time is the least of seven timings of 0.1 s or more
of processor time, since other work on the machine only adds to it. Memory is how far the first four
steps, with their beginning, raise the highest resident memory of the process; the noise of small
runs is drawn ahead, up to 2¹⁷ numbers, which is most of what they take.

`--compile` adds rows of compiled steps. Their memory is not told: the compiler's own is far above
it.

The time rises by the most that any number of chains from 10³ to 10⁵ costs more, chain for chain,
than a smaller one among them; exponents are least squares on logarithms, from 10⁴ numbers on.
"""

import argparse
import math
import multiprocessing
import time
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Generator, Tensor

from benchmarks.common import FIGURES, RESULTS, highest_memory, options, table, write
from ozaki import ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.kernels.score_kernel import ScoreKernel
from ozaki.kernels.target import RunContext
from ozaki.linalg import Diagonal
from ozaki.scores.base import Expansion, Score

matplotlib.use("Agg")
from matplotlib import pyplot as plt

KERNELS = ("Langevin", "Ozaki")
STEP, FEW, LEAST, REPEATS = 0.1, 100, 0.1, 7
FLAT = (1e3, 1e5)  # chains between which the time must not rise
LARGE = 1e4  # numbers from which memory is fitted


class TwoModes(Score):
    """½N(m, I) + ½N(−m, I): s1 = m tanh(m·x) − x, diag s2 = m² sech²(m·x) − 1."""

    default_curvature = "diagonal"

    def __init__(self, dim: int):
        self.dim, self.event_shape, self.dtype = dim, torch.Size([dim]), torch.float32
        self.mode = torch.full((dim,), 1.5 / dim**0.5)

    def expand(self, x: Tensor, curvature: Any = None) -> Expansion:
        self.check(x, curvature)
        along = x @ self.mode
        slope = along.tanh()
        density = torch.logaddexp(along, -along) - x.square().sum(-1) / 2
        bend = (1 - slope.square()).unsqueeze(-1) * self.mode.square() - 1
        second = None if curvature is None else Diagonal(bend)
        return Expansion(slope.unsqueeze(-1) * self.mode - x, second, density)

    def start(self, n: int, generator: Generator | None = None) -> Tensor:
        side = 2 * torch.rand(n, 1, generator=generator).round() - 1
        return side * self.mode + torch.randn(n, self.dim, generator=generator)


def begin(name: str, compiled: bool, chains: int, dim: int, seed: int) -> ScoreKernel:
    """A kernel with its chains in place, as `MCMC` puts them."""
    score, given = TwoModes(dim), {"step_size": STEP, "metropolis": "exact", "compile": compiled}
    if name == "Langevin":
        kernel = ScoreLangevinKernel(score, **given)
    else:
        kernel = ScoreOzakiKernel(score, curvature="diagonal", **given)
    context = RunContext(chains, Generator().manual_seed(seed))
    kernel.begin(kernel.bind(), 0, context)
    kernel.place(kernel.initial_params)
    return kernel


def walk(kernel: ScoreKernel, steps: int) -> float:
    """Processor seconds a step."""
    began, done = time.process_time(), 0
    while done < steps:
        done += len(kernel.walk(steps - done).position)
    return (time.process_time() - began) / steps


def measure(name: str, compiled: bool, chains: int, dim: int, seed: int) -> dict:
    """One cell, as a row, in a process that has measured nothing yet."""
    torch.set_num_threads(1)
    walk(begin(name, False, 2, 2, seed), 4)  # libraries load what they load
    before = highest_memory()
    kernel = begin(name, compiled, chains, dim, seed)
    walk(kernel, 4)
    memory = "–" if compiled else highest_memory() - before
    steps = math.ceil(LEAST / max(walk(kernel, 4), 1e-6))
    seconds = min(walk(kernel, steps) for _ in range(REPEATS))
    return {
        "kernel": name + ", compiled" * compiled,
        "chains": chains,
        "dim": dim,
        "ms a step": seconds * 1e3,
        "µs a chain-step": seconds / chains * 1e6,
        "peak MB": memory,
    }


def fresh(*cell: Any) -> dict:
    """`measure` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, cell)


def rise(rows: list[dict]) -> float:
    """The most that a chain-step costs over one among fewer chains, within `FLAT`."""
    times = [r["µs a chain-step"] for r in rows if FLAT[0] <= r["chains"] <= FLAT[1]]
    return max(b / min(times[: i + 1]) for i, b in enumerate(times))


def exponent(rows: list[dict]) -> float:
    """The slope of log memory in log chains × D."""
    large = [r for r in rows if r["chains"] * r["dim"] >= LARGE]
    sizes, memory = zip(*((r["chains"] * r["dim"], r["peak MB"]) for r in large), strict=True)
    return float(np.polyfit(np.log(sizes), np.log(memory), 1)[0])


def draw(rows: list[dict], path: Any) -> None:
    """Time by chains and by dimension, and memory."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    names = list(dict.fromkeys(r["kernel"] for r in rows))
    for name in names:
        style = {"color": "C1" if "Ozaki" in name else "C0", "label": name, "ms": 4}
        line = "s--" if "compiled" in name else "o-"
        for axis, key, fixed in ((left, "chains", ("dim", 2)), (middle, "dim", ("chains", FEW))):
            mine = [r for r in rows if r["kernel"] == name and r[fixed[0]] == fixed[1]]
            axis.loglog([r[key] for r in mine], [r["µs a chain-step"] for r in mine], line, **style)
        for key, mark in ((("dim", 2), "o"), (("chains", FEW), "x")):
            mine = [r for r in rows if r["kernel"] == name and r[key[0]] == key[1]]
            mine = [r for r in mine if r["peak MB"] != "–" and r["peak MB"] > 0]
            label = f"{name}, {'D = 2' if mark == 'o' else f'{FEW} chains'}"
            sizes = [r["chains"] * r["dim"] for r in mine]
            memory = [r["peak MB"] for r in mine]
            if mine:
                right.loglog(sizes, memory, mark, **style | {"label": label})
    largest = max((r for r in rows if r["peak MB"] != "–"), key=lambda r: r["peak MB"])
    top = largest["chains"] * largest["dim"]
    right.loglog(
        (LARGE, top), (largest["peak MB"] * LARGE / top, largest["peak MB"]), "k:", label="linear"
    )
    left.set(xlabel="chains", ylabel="µs a chain-step", title="D = 2")
    middle.set(xlabel="D", ylabel="µs a chain-step", title=f"{FEW} chains")
    right.set(xlabel="chains × D", ylabel="megabytes", title="peak memory")
    for axis in (left, right):
        axis.legend(frameon=False, fontsize=7)
    path.mkdir(parents=True, exist_ok=True)
    figure.savefig(path / "scaling.svg", metadata={"Date": None})


def main() -> None:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--compile", action="store_true")
    args = options(__doc__, extra)
    chains = (1, 100, 1000, 10**4, 10**5) if args.quick else [10**i for i in range(7)]
    dims = (100, 10**4) if args.quick else (10, 100, 1000, 10**4)
    cells = sorted({(n, 2) for n in chains} | {(FEW, d) for d in dims})
    rows, bars = [], []
    for compiled in (False, True)[: 1 + args.compile]:
        for name in KERNELS:
            mine = [fresh(name, compiled, *cell, args.seed) for cell in cells]
            rows += mine
            table(mine, list(mine[0]))
            along = [r for r in mine if r["dim"] == 2]
            across = [r for r in mine if r["chains"] == FEW]
            bar = f"{mine[0]['kernel']}: time a chain-step, rise from 10³ to 10⁵ chains"
            bars.append({"bar": bar, "asked": "<= 1.2", "measured": rise(along)})
            for what, part in (("chains", along), ("D", across)) if not compiled else ():
                bar = f"{name}: memory exponent in {what}"
                bars.append({"bar": bar, "asked": "0.9 to 1.1", "measured": exponent(part)})
    draw(rows, FIGURES if args.out == RESULTS and not args.quick else args.out)
    write("scaling", args, rows, bars)


if __name__ == "__main__":
    main()
