"""Effective draws a second: ozaki against Pyro's, NumPyro's, BlackJAX's and nutpie's samplers.

    python -m benchmarks.posteriors [--quick] [--seed N] [--repeats N] [--warmup N] [--draws N]
        [--chains N] [--device cuda] [--only PART ...] [--samplers PART ...]

On each of the fourteen posteriors in `models` every sampler in `peers` walks 100 chains from the
same points, uniform(−2, 2) in the unconstrained space, for 500 steps of warm-up and 500 draws, in
float64 and on one thread; Pyro's NUTS walks one chain, nutpie its chains one after another. The
density is one for all: nutpie's is written in PyTensor by the same lines and compiled by numba.
Samplers keep their libraries' defaults, and take turns; MAMS has a second row, with trajectories of
eight steps in the mean where BlackJAX's default is two. Counted is the smallest bulk effective
sample size over the unconstrained parameters: for a second of sampling, a second of warm-up and
sampling, and a thousand gradients while sampling (of NUTS and HMC the leapfrog steps; a curvature,
which ozaki may read as well, is not counted). Apart stand the seconds of compilation, which the
others do ahead of time and which of ozaki are the difference between a first and a second run, and
those in which ozaki looks at the model, "setup".

A run has converged where no R-hat is above 1.05, and is correct where each mean lies within 5 Monte
Carlo standard errors of the truth and each standard deviation within 10% of it or 5 of its errors.
The truth is exact for the normal and for v in the funnel, which is the centred one, 10-dimensional;
else it is a long run of NumPyro's NUTS, kept by `truths`. Bars compare the rates that count
warm-up, of samplers that converged and were correct in all repeats.

Results are merged into the JSON by model and sampler, so that they can run one by one; those of
another size or device have a file of their own. On a GPU the peers are left out unless JAX has it.
JAX, NumPyro, BlackJAX, nutpie and PyMC are optional: pip install 'ozaki[bench]'.
"""

import argparse
import statistics
import warnings
from typing import Any

import matplotlib
import torch

from benchmarks import common
from benchmarks.common import FIGURES
from benchmarks.models import POSTERIORS
from benchmarks.peers import OURS, PYRO, SAMPLERS, Run, Size, nutpie
from benchmarks.problem import Problem, jax
from benchmarks.truths import Moments, mixing, truth

matplotlib.use("Agg")
from matplotlib import pyplot as plt

QUICK = ("eight schools", "logistic")  # Pyro's NUTS walks on the first alone
NEW = list(POSTERIORS)[6:]  # of which five are to be even
WORST_R_HAT = 1.05
HINT = "to have them: pip install 'ozaki[bench]'"
SECONDS = ("compile_s", "setup_s", "warmup_s", "sampling_s")
RATES = ("ess_per_s", "ess_per_total_s", "ess_per_1000_gradients")
FIGURED = (*SECONDS, "gradients", "ess", "r_hat", *RATES)


def measured(run: Run, true: Moments | None) -> dict[str, Any]:
    """The figures of one run."""
    ess, r_hat = mixing(run.draws)
    return {
        "chains": len(run.draws),
        "compile_s": run.compile,
        "setup_s": run.setup,
        "warmup_s": run.warmup,
        "sampling_s": run.sampling,
        "gradients": run.gradients,
        "ess": ess,
        "r_hat": r_hat,
        "ess_per_s": ess / run.sampling,
        "ess_per_total_s": ess / (run.warmup + run.sampling),
        "ess_per_1000_gradients": 1000 * ess / run.gradients,
        "converged": r_hat <= WORST_R_HAT,
        "correct": None if true is None else Moments.of(run.draws).agree(true),
        "proposal": run.proposal,
    }


def runs(sampler: str, device: str) -> bool:
    """On a GPU ozaki, and the samplers of JAX where it has one."""
    if device == "cpu" or sampler in OURS:
        return True
    return sampler.startswith(("NumPyro", "BlackJAX")) and jax.default_backend() == "gpu"


def measure(name: str, args: argparse.Namespace) -> list[dict]:
    """Every sampler on one posterior, in turns."""
    problem = Problem(name, POSTERIORS[name], args.seed)
    size = Size(args.chains, args.warmup, args.draws)
    true = truth(problem, args.seed, args.quick)
    runners: dict[str, Any] = {}
    rows = []
    for seed in range(args.seed, args.seed + (1 if args.quick else args.repeats)):
        starts = problem.starts(size.chains, seed)
        for sampler, build in SAMPLERS.items():
            if not any(part in sampler for part in args.samplers) or not runs(sampler, args.device):
                continue
            if args.quick and sampler == PYRO and name != QUICK[0]:
                continue
            row = {"model": name, "sampler": sampler, "seed": seed}
            try:
                if sampler not in runners:
                    runners[sampler] = build(problem, size)
                row |= measured(runners[sampler](seed, starts), true)
            except (RuntimeError, ValueError) as error:  # which says something of the sampler
                row |= dict.fromkeys(FIGURED, 0.0) | {"error": type(error).__name__}
                print(f"{name}: {sampler} raised {row['error']}: {str(error).splitlines()[:1]}")
            rows.append(row)
            print(".", end="", flush=True)
    print()
    return rows


def summary(rows: list[dict]) -> list[dict]:
    """Medians over the repeats, and a verdict on all of them."""
    lines = []
    for model, sampler in dict.fromkeys((r["model"], r["sampler"]) for r in rows):
        same = [r for r in rows if (r["model"], r["sampler"]) == (model, sampler)]
        medians = {name: statistics.median(r[name] for r in same) for name in FIGURED}
        lines.append({"model": model, "sampler": sampler, **medians, "verdict": verdict(same)})
    return lines


def verdict(rows: list[dict]) -> str:
    if any("error" in row for row in rows):
        return "failed"
    if not all(row["converged"] for row in rows):
        return "not converged"
    found = [row["correct"] for row in rows]
    return "unknown" if None in found else "correct" if all(found) else "wrong"


def bars(rows: list[dict]) -> list[dict]:
    """Ratios of the rates that count warm-up, of correct samplers alone."""
    rates: dict[str, dict[str, float]] = {r["model"]: {} for r in rows}
    for line in summary(rows):
        if line["verdict"] == "correct":
            rates[line["model"]][line["sampler"]] = line["ess_per_total_s"]
    found, even = [], 0
    for model, own in rates.items():
        best = max((rate for s, rate in own.items() if s in OURS), default=0.0)
        others = {s: rate for s, rate in own.items() if s not in OURS}
        wanted = [(PYRO, 100)] if best and PYRO in others else []
        if others and POSTERIORS[model].asked is not None:
            fastest = max(others, key=others.__getitem__)
            wanted.append((fastest, POSTERIORS[model].asked))
            even += model in NEW and best >= others[fastest]
        for other, asked in wanted:
            bar = f"{model}: best ozaki / {other}"
            found.append({"bar": bar, "asked": f">= {asked}", "measured": best / others[other]})
    if rates.keys() >= set(NEW):
        right = sum(any(s in OURS for s in rates[model]) for model in NEW)
        found.append({"bar": "of the later eight: correct", "asked": ">= 8", "measured": right})
        found.append({"bar": "of the later eight: even", "asked": ">= 5", "measured": even})
    return found


def merged(args: argparse.Namespace, rows: list[dict]) -> list[dict]:
    """All rows known so far, with these in place of those of their model and sampler."""
    keys = ("model", "sampler")
    places = {name: i for i, name in enumerate([*POSTERIORS, *SAMPLERS])}
    return common.merged(
        args.name,
        args,
        rows,
        keys,
        lambda r: [places.get(r[key], len(places)) for key in keys],
        bars,
    )


def draw(lines: list[dict]) -> None:
    """A group of bars for each model, hollow where a sampler is not correct."""
    models, samplers = (list(dict.fromkeys(r[k] for r in lines)) for k in ("model", "sampler"))
    figure, axis = plt.subplots(figsize=(9, 4.5), layout="constrained")
    width = 0.85 / len(samplers)
    for i, sampler in enumerate(samplers):
        own = [line for line in lines if line["sampler"] == sampler]
        places = [models.index(line["model"]) + (i + 0.5) * width - 0.425 for line in own]
        rates = [line["ess_per_total_s"] for line in own]
        bodies = axis.bar(places, rates, width, color=f"C{i}", edgecolor=f"C{i}", label=sampler)
        for body, line in zip(bodies, own, strict=True):
            body.set_fill(line["verdict"] == "correct")
    axis.set(yscale="log", ylabel="smallest bulk ESS a second, warm-up counted")
    axis.set_xticks(range(len(models)), models)
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / "posteriors.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rough answer, on two models")
    parser.add_argument("--seed", type=int, default=0, help="of the data, and of the first run")
    parser.add_argument("--repeats", type=int, default=3, help="how many runs")
    parser.add_argument("--warmup", type=int, default=500, help="steps, of every sampler")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of models' names")
    parser.add_argument("--samplers", nargs="*", default=[""], help="parts of samplers' names")
    parser.add_argument("--out", type=common.Path, default=common.RESULTS, help="of the JSON")
    parser.add_argument("--chains", type=int, help="100, or 20 if quick")
    parser.add_argument("--draws", type=int, default=500, help="steps after warm-up")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args()
    usual = 20 if args.quick else 100
    args.chains = args.chains or usual
    changed = {"warmup": 500, "draws": 500, "chains": usual, "device": "cpu"}
    named = [f"{k}-{getattr(args, k)}" for k, v in changed.items() if getattr(args, k) != v]
    args.name = "-".join(["posteriors", *named])
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    common.on(args.device)
    warnings.filterwarnings("ignore", module="arviz")
    if jax is None:
        print(
            "without JAX there are no rows for NumPyro and BlackJAX, and correctness is judged "
            f"where truths.json has the truth; {HINT}"
        )
    elif nutpie is None:
        print(f"without nutpie and PyMC there are no rows for nutpie; {HINT}")
    wanted = [m for m in (QUICK if args.quick else POSTERIORS) if any(p in m for p in args.only)]
    if not wanted:
        parser.error(f"--only must name parts of {list(POSTERIORS)}")
    rows: list[dict] = []
    for name in wanted:
        rows = merged(args, measure(name, args))
    lines = summary(rows)
    common.table(lines, ["model", "sampler", *FIGURED, "verdict"])
    common.write(args.name, args, rows, bars(rows))
    if not args.quick and not named:
        draw(lines)


if __name__ == "__main__":
    main()
