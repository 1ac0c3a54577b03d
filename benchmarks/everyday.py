"""Everyday posteriors by defaults: ozaki's kernel beside Pyro's NUTS.

    python -m benchmarks.everyday [--quick] [--seed N] [--only PART ...] [--samplers PART ...]
        [--nuts-draws N]

On the posteriors of `models` and `models_everyday`, ``MCMC(ScoreOzakiKernel(model))`` with four
chains, 1,000 steps of warm-up and 1,000 draws, and Pyro's ``MCMC(NUTS(model))`` with one chain; no
option of either is set. Pyro's draws are as many as `--nuts-draws`, by default 1,000, and a quarter
where a gradient is slow or paths are long, after as many steps of warm-up; what counts is processor
time for an effective draw, so that fewer stand for more. Processor time is all of it: looking at
the model, compiling, warm-up and sampling.

Told are R-hat and the smallest bulk effective sample size over the unconstrained parameters,
whether means and standard deviations are those of `truths`, and what ozaki's verdict says. Asked is
that every posterior but the funnel is converged (R-hat at most 1.05) and right, that the funnel is
not trusted, and that an effective draw costs a tenth of Pyro's at most. Results are merged into the
JSON by model and sampler, so that they can run one by one.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import torch

from benchmarks import common, models, models_everyday
from benchmarks.problem import Problem
from benchmarks.truths import Moments, mixing, truth
from ozaki import MCMC, ScoreOzakiKernel
from ozaki.diagnostics import verdict

POSTERIORS = models.POSTERIORS | models_everyday.POSTERIORS
QUICK = ("eight schools", "regression")
TOLD = "funnel"  # whose draws are not to be trusted
SLOW = {"volatility", "horseshoe", "slopes", "predators"}
WORST_R_HAT = 1.05
COLUMNS = ["model", "sampler", "r_hat", "ess", "cpu_s", "cpu_ms_per_draw", "right", "verdict"]


def ours(problem: Problem, seed: int, draws: int) -> tuple[np.ndarray, float, str]:
    """Draws, processor seconds, and what the verdict says."""
    began = time.process_time()
    kernel = ScoreOzakiKernel(problem.model)
    mcmc = MCMC(
        kernel,
        num_samples=draws,
        warmup_steps=draws,
        num_chains=4,
        seed=seed,
        disable_progbar=True,
    )
    mcmc.run(*problem.arguments)
    seconds = time.process_time() - began
    judged = verdict(mcmc.to_inference_data(log_likelihood=False))
    found = problem.unconstrained(mcmc.get_samples(group_by_chain=True))
    return found, seconds, "trusted" if judged.trusted else judged.headline


def nuts(problem: Problem, seed: int, draws: int) -> tuple[np.ndarray, float, str]:
    """Pyro's, one chain."""
    pyro.set_rng_seed(seed)
    began = time.process_time()
    kernel = pyro.infer.NUTS(problem.model)
    mcmc = pyro.infer.MCMC(kernel, draws, draws, disable_progbar=True)
    mcmc.run(*problem.arguments)
    seconds = time.process_time() - began
    return problem.unconstrained(mcmc.get_samples(group_by_chain=True)), seconds, ""


OZAKI, PYRO = "ozaki", "Pyro NUTS"
SAMPLERS: dict[str, Callable[..., tuple[np.ndarray, float, str]]] = {OZAKI: ours, PYRO: nuts}


def row(name: str, sampler: str, args: argparse.Namespace) -> dict[str, Any]:
    """One sampler on one posterior."""
    problem = Problem(name, POSTERIORS[name], args.seed)
    draws = 200 if args.quick else 1000
    if sampler == PYRO:
        slow = name in SLOW and not args.quick
        draws = args.nuts_draws or (draws // 4 if slow else draws)
    found, seconds, judged = SAMPLERS[sampler](problem, args.seed, draws)
    ess, r_hat = mixing(found)
    true = truth(problem, args.seed, args.quick)
    return {
        "model": name,
        "sampler": sampler,
        "chains": len(found),
        "draws": draws,
        "r_hat": r_hat,
        "ess": ess,
        "cpu_s": seconds,
        "cpu_ms_per_draw": 1000 * seconds / ess,
        "right": None if true is None else Moments.of(found).agree(true),
        "verdict": judged,
    }


def bars(rows: list[dict]) -> list[dict]:
    """Of the posteriors measured so far, how many are as asked; and the worst ratio."""
    mine = {r["model"]: r for r in rows if r["sampler"] == OZAKI}
    theirs = {r["model"]: r for r in rows if r["sampler"] == PYRO}
    plain = [r for model, r in mine.items() if model != TOLD]
    good = [r for r in plain if r["r_hat"] <= WORST_R_HAT and r["right"]]
    asked = f">= {len(plain)}"
    found = [{"bar": "converged and right by defaults", "asked": asked, "measured": len(good)}]
    trusted = [r for r in plain if r["verdict"] == "trusted"]
    found.append({"bar": "trusted by the verdict", "asked": asked, "measured": len(trusted)})
    if TOLD in mine:
        told = float(mine[TOLD]["verdict"] != "trusted")
        found.append({"bar": "the funnel is told", "asked": ">= 1", "measured": told})
    both = [model for model in mine if model in theirs and model != TOLD]
    if both:
        key = "cpu_ms_per_draw"
        ratios = {model: theirs[model][key] / mine[model][key] for model in both}
        worst = min(ratios, key=ratios.__getitem__)
        bar = f"Pyro NUTS's processor time an effective draw over ozaki's, worst: {worst}"
        found.append({"bar": bar, "asked": ">= 10", "measured": ratios[worst]})
        right = sum(ratio >= 10 for ratio in ratios.values())
        found.append({"bar": "ten times less", "asked": f">= {len(both)}", "measured": right})
    return found


def merged(args: argparse.Namespace, rows: list[dict]) -> list[dict]:
    """All rows known so far, with these in place of those of their model and sampler."""
    places = list(POSTERIORS)
    return common.merged(
        "everyday",
        args,
        rows,
        ("model", "sampler"),
        lambda r: (places.index(r["model"]), r["sampler"] == PYRO),
        bars,
    )


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--only", nargs="*", default=[""], help="parts of models' names")
    own.add_argument("--samplers", nargs="*", default=[""], help="parts of samplers' names")
    own.add_argument("--nuts-draws", type=int, help="of Pyro's NUTS, and its steps of warm-up")
    args = common.options(__doc__ or "", own)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.filterwarnings("ignore")
    rows: list[dict] = []
    for name in QUICK if args.quick else POSTERIORS:
        if any(part in name for part in args.only):
            for sampler in SAMPLERS:
                if any(part in sampler for part in args.samplers):
                    rows = merged(args, [row(name, sampler, args)])
                    print(".", end="", flush=True)
    print()
    common.table(rows, COLUMNS)
    common.write("everyday", args, rows, bars(rows))


if __name__ == "__main__":
    main()
