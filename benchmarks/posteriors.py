"""Effective draws a second: ozaki against Pyro's, NumPyro's and BlackJAX's samplers.

    python -m benchmarks.posteriors [--quick] [--seed N] [--repeats N] [--warmup N] [--only PART]

On each of the six posteriors in `models` every sampler in `peers` walks 100 chains from the same
points, uniform(−2, 2) in the unconstrained space, for 500 steps of warm-up and 500 draws, in
float64 and on one thread; Pyro's NUTS walks one chain. Samplers keep their libraries' defaults, and
take turns. Counted is the smallest bulk effective sample size over the unconstrained parameters:
for a second of sampling, a second of warm-up and sampling, and a thousand gradients while sampling
(of NUTS and HMC the leapfrog steps; a curvature, which ozaki may read as well, is not counted).
Apart stand the seconds of compilation, which JAX does ahead of time and which of ozaki are the
difference between a first and a second run, and those in which ozaki looks at the model, "setup".

A run has converged where no R-hat is above 1.05, and is correct where each mean lies within 5 Monte
Carlo standard errors of the truth and each standard deviation within 10% of it or 5 of its errors.
The truth is exact for the normal and for v in the funnel, which is the centred one, 10-dimensional;
else it is a long run of NumPyro's NUTS. Bars compare the rates that count warm-up, of samplers that
converged and were correct in all repeats.

Results are merged into the JSON by model and sampler, so that they can run one by one. JAX, NumPyro
and BlackJAX are optional.
"""

import argparse
import json
import statistics
import warnings
from typing import Any, NamedTuple

import arviz as az
import matplotlib
import numpy as np
import torch

from benchmarks import common
from benchmarks.common import FIGURES
from benchmarks.models import POSTERIORS
from benchmarks.peers import OURS, PYRO, SAMPLERS, Run, Size, numpyro_nuts
from benchmarks.problem import Problem, jax

matplotlib.use("Agg")
from matplotlib import pyplot as plt

QUICK = ("eight schools", "logistic")  # Pyro's NUTS walks on the first alone
WORST_R_HAT = 1.05
SECONDS = ("compile_s", "setup_s", "warmup_s", "sampling_s")
RATES = ("ess_per_s", "ess_per_total_s", "ess_per_1000_gradients")
FIGURED = (*SECONDS, "gradients", "ess", "r_hat", *RATES)


class Moments(NamedTuple):
    """Means and standard deviations by parameter, and their Monte Carlo standard errors."""

    mean: np.ndarray
    sd: np.ndarray
    mean_error: np.ndarray | float = 0.0
    sd_error: np.ndarray | float = 0.0

    @classmethod
    def of(cls, draws: np.ndarray) -> "Moments":
        data = az.convert_to_dataset({"x": draws})
        errors = (az.mcse(data, method=method)["x"].values for method in ("mean", "sd"))
        return cls(draws.mean((0, 1)), draws.std((0, 1)), *errors)

    def agree(self, true: "Moments") -> bool:
        """Whether every parameter is as it should be; NaN in `true` is not looked at."""
        known = np.isfinite(true.mean)
        mean = 5 * np.hypot(self.mean_error, true.mean_error)
        sd = np.maximum(0.1 * true.sd, 5 * np.hypot(self.sd_error, true.sd_error))
        near = (abs(self.mean - true.mean) <= mean) & (abs(self.sd - true.sd) <= sd)
        return bool(near[known].all())


def mixing(draws: np.ndarray) -> tuple[float, float]:
    """The smallest bulk ESS and the largest R-hat; the halves of a lone chain stand for two."""
    parts = draws if len(draws) > 1 else np.stack(np.array_split(draws[0], 2))
    ess = az.ess(az.convert_to_dataset({"x": draws}))["x"].values
    r_hat = az.rhat(az.convert_to_dataset({"x": parts}))["x"].values
    return float(ess.min()), float(r_hat.max())


def truth(problem: Problem, quick: bool) -> Moments | None:
    """Exact, or by a long run; None where there is neither."""
    if problem.exact is not None:
        return Moments(*problem.exact)
    if jax is None:
        return None
    size = Size(20, 500, 1000) if quick else Size(20, 1000, 5000)
    draws = numpyro_nuts(problem, size)(10_000, problem.starts(20, 10_000)).draws
    if mixing(draws)[1] > 1.01:
        raise RuntimeError(f"{problem.name}: the long run has not converged; make it longer")
    return Moments.of(draws)


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


def measure(name: str, args: argparse.Namespace) -> list[dict]:
    """Every sampler on one posterior, in turns."""
    problem, size = Problem(name, POSTERIORS[name], args.seed), Size(20 if args.quick else 100, args.warmup)
    true = truth(problem, args.quick)
    runners: dict[str, Any] = {}
    rows = []
    for seed in range(args.seed, args.seed + (1 if args.quick else args.repeats)):
        starts = problem.starts(size.chains, seed)
        for sampler, build in SAMPLERS.items():
            if not any(part in sampler for part in args.samplers):
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
    found = []
    for model, own in rates.items():
        best = max((rate for s, rate in own.items() if s in OURS), default=0.0)
        others = {s: rate for s, rate in own.items() if s not in OURS}
        wanted = [(PYRO, 100)] if best and PYRO in others else []
        if others and POSTERIORS[model].asked is not None:
            wanted.append((max(others, key=others.__getitem__), POSTERIORS[model].asked))
        for other, asked in wanted:
            bar = f"{model}: best ozaki / {other}"
            found.append({"bar": bar, "asked": f">= {asked}", "measured": best / others[other]})
    return found


def merged(args: argparse.Namespace, rows: list[dict]) -> list[dict]:
    """All rows known so far, with these in place of those of their model and sampler."""
    path = args.out / f"{args.name}{'-quick' if args.quick else ''}.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {(r["model"], r["sampler"]) for r in rows}
    rows = [r for r in known if (r["model"], r["sampler"]) not in new] + rows
    places = list(POSTERIORS), list(SAMPLERS)
    rows.sort(key=lambda r: (places[0].index(r["model"]), places[1].index(r["sampler"])))
    common.write(args.name, args, rows, bars(rows), quiet=True)
    return rows


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
    args = parser.parse_args()
    args.name = "posteriors" if args.warmup == 500 else f"posteriors-{args.warmup}"
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.filterwarnings("ignore", module="arviz")
    if jax is None:
        print(
            "without JAX there are no rows for NumPyro and BlackJAX, and correctness is judged on "
            "the normal and the funnel alone; to have them: pip install jax numpyro blackjax"
        )
    else:
        common.LIBRARIES += ("jax", "numpyro", "blackjax")
    wanted = [m for m in (QUICK if args.quick else POSTERIORS) if any(p in m for p in args.only)]
    if not wanted:
        parser.error(f"--only must name parts of {list(POSTERIORS)}")
    rows: list[dict] = []
    for name in wanted:
        rows = merged(args, measure(name, args))
    lines = summary(rows)
    common.table(lines, ["model", "sampler", *FIGURED, "verdict"])
    common.write(args.name, args, rows, bars(rows))
    if not args.quick and args.warmup == 500:
        draw(lines)


if __name__ == "__main__":
    main()
