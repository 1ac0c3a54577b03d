"""The cost of a step of an uncompiled run, with recordings and without.

    python -m benchmarks.step_cost [--quick] [--seed N]

Processor time of a step of `MCMC(ScoreOzakiKernel(model))` with all defaults, after warm-up: a long
run less a short one, over the steps between. "model" evaluates the Pyro model at every step, as
a run does before a shape has been recorded; "recorded" is what a run does. Both make the same
draws, in turns, in one process, on one thread, and the medians are compared; so is one evaluation
of gradient and density. "both cores": a process that does the same stands on the other core.
"""

import multiprocessing
import statistics
import time
import warnings
from functools import partial

import numpy as np
import pyro
import torch
from pyro import distributions as dist

from benchmarks.common import medians, options, table, write
from benchmarks.models import POSTERIORS, logistic
from ozaki import MCMC, ScoreOzakiKernel
from ozaki.scores import replays
from ozaki.scores.pyro_models.model import PyroModelScore

NEVER = 10**9
WARMUP, SHORT, LONG, ASKED = 150, 50, 250, 1 / 3


def many_rows(rng):
    """10,000 of them."""
    x, w = rng.standard_normal((10_000, 10)), rng.standard_normal(10)
    return x, (rng.random(10_000) < 1 / (1 + np.exp(-x @ w))).astype(float)


MODELS = {
    "eight schools": POSTERIORS["eight schools"][:2],
    "hierarchical": POSTERIORS["hierarchical"][:2],
    "logistic, 10,000 rows": (logistic, many_rows),
}


def problem(name: str, seed: int):
    """A model and its arguments."""
    model, data = MODELS[name]
    arguments = tuple(map(torch.as_tensor, data(np.random.default_rng(seed))))
    return partial(model, pyro, dist, torch), arguments


def seconds(name: str, chains: int, samples: int, warmup: int, first: int, seed: int) -> float:
    """Processor time of a run."""
    model, arguments = problem(name, seed)
    kept, replays.FIRST = replays.FIRST, first
    try:
        mcmc = MCMC(ScoreOzakiKernel(model), samples, warmup, num_chains=chains, seed=seed)
        began = time.process_time()
        mcmc.run(*arguments)
        return time.process_time() - began
    finally:
        replays.FIRST = kept


def step(name: str, chains: int, first: int, scale: float, seed: int) -> tuple[float, float]:
    """Seconds of a step after warm-up, and of a step of the whole of a short run."""
    warmup, short, long = (int(n * scale) for n in (WARMUP, SHORT, LONG))
    a = seconds(name, chains, short, warmup, first, seed)
    b = seconds(name, chains, long, warmup, first, seed)
    return (b - a) / (long - short), b / (warmup + long)


def evaluations(name: str, chains: int, seed: int) -> dict[str, float]:
    """Seconds of one evaluation, of the model and recorded."""
    model, arguments = problem(name, seed)
    plain = PyroModelScore(model, arguments)
    score = plain.settled()
    each = (torch.Generator().manual_seed(k) for k in range(replays.FIRST + 4))
    points = [plain.start(chains, generator) for generator in each]
    for x in points:
        score.expand(x)
    return medians(
        {"model": lambda: plain.expand(points[0]), "recorded": lambda: score.expand(points[0])}, 5
    )


def row(name: str, chains: int, busy: bool, quick: bool, seed: int) -> dict:
    """The figures of one posterior."""
    scale, turns = (0.3, 1) if quick else (1.0, 3)
    steps: dict[str, list[tuple[float, float]]] = {"model": [], "recorded": []}
    for _ in range(turns):
        steps["model"].append(step(name, chains, NEVER, scale, seed))
        steps["recorded"].append(step(name, chains, replays.FIRST, scale, seed))
    after = {k: statistics.median(s for s, _ in found) for k, found in steps.items()}
    whole = {k: statistics.median(s for _, s in found) for k, found in steps.items()}
    alone = evaluations(name, chains, seed)
    return {
        "posterior": name,
        "chains": chains,
        "both cores": busy,
        "model ms": 1e3 * after["model"],
        "recorded ms": 1e3 * after["recorded"],
        "ratio": after["recorded"] / after["model"],
        "whole run's ratio": whole["recorded"] / whole["model"],
        "evaluation, model ms": 1e3 * alone["model"],
        "evaluation, recorded ms": 1e3 * alone["recorded"],
        "evaluation's ratio": alone["recorded"] / alone["model"],
    }


def occupy(seed: int) -> None:
    """Walk on and on."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    while True:
        seconds("eight schools", 4, 1000, 100, replays.FIRST, seed)


def main() -> None:
    args = options(__doc__ or "")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    seconds("eight schools", 4, 30, 30, replays.FIRST, args.seed)  # imports
    rows = [
        row(name, chains, False, args.quick, args.seed)
        for name in MODELS
        for chains in (4, 100)
        if chains == 4 or not (args.quick or "rows" in name)  # where arithmetic is all
    ]
    other = multiprocessing.get_context("spawn").Process(target=occupy, args=(1,), daemon=True)
    other.start()
    try:
        rows.append(row("eight schools", 4, True, args.quick, args.seed))
    finally:
        other.terminate()
    table(rows, list(rows[0]))
    bars = [
        {
            "bar": f"{what} of eight schools, 4 chains, over that of the model",
            "asked": f"<= {ASKED:.2g}",
            "measured": rows[0][column],
        }
        for what, column in (("a step", "ratio"), ("an evaluation", "evaluation's ratio"))
    ]
    write("step_cost", args, rows, bars)


if __name__ == "__main__":
    main()
