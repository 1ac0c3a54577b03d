"""Do chains arrive? Regressions and time series far from centred, from starts that know nothing.

    python -m benchmarks.warmup [--quick] [--seed N] [--only PART ...]

``MCMC(ScoreOzakiKernel(model))`` on the ten posteriors of `models_warmup`, whose priors are flat
and whose intercepts and slopes are correlated up to −0.9999, from uniform(−2, 2) in the
unconstrained space: 32 chains with 500 steps of warm-up and 500 draws, and 4 chains with 300 and
500; nothing else is set. A posterior is arrived at where each mean lies within 0.15 posterior
standard deviations of the truth and each standard deviation within 15% of it; the truth is exact
for the linear ones and a long run (`truths`) for the others. Asked is that all are, in both
settings. Told are the largest errors, and what the verdict says.
"""

import argparse
import time
import warnings

import torch

from benchmarks import common
from benchmarks.models_warmup import POSTERIORS
from benchmarks.problem import Problem
from benchmarks.truths import mixing, truth
from ozaki import MCMC, ScoreOzakiKernel
from ozaki.diagnostics import verdict

SETTINGS = ((32, 500, 500), (4, 300, 500))  # chains, warm-up, draws
QUICK = ("scores", "summers", "trend")
MEAN, SD = 0.15, 0.15
COLUMNS = ["model", "chains", "warmup", "mean_off", "sd_off", "arrived", "r_hat", "ess", "cpu_s"]


def row(problem: Problem, setting: tuple[int, int, int], args: argparse.Namespace) -> dict:
    """One run, held against the truth."""
    chains, warmup, draws = setting
    true = truth(problem, args.seed)
    if true is None:
        raise SystemExit("there are no kept truths; with JAX they are computed: ozaki[bench]")
    began = time.process_time()
    mcmc = MCMC(
        ScoreOzakiKernel(problem.model),
        num_samples=draws,
        warmup_steps=warmup,
        num_chains=chains,
        initial_params=problem.split(problem.starts(chains, args.seed)),
        seed=args.seed,
        disable_progbar=True,
    )
    mcmc.run(*problem.arguments)
    seconds = time.process_time() - began
    found = problem.unconstrained(mcmc.get_samples(group_by_chain=True))
    mean_off = float((abs(found.mean((0, 1)) - true.mean) / true.sd).max())
    sd_off = float(abs(found.std((0, 1)) / true.sd - 1).max())
    ess, r_hat = mixing(found)
    judged = verdict(mcmc.to_inference_data(log_likelihood=False))
    return {
        "model": problem.name,
        "chains": chains,
        "warmup": warmup,
        "draws": draws,
        "mean_off": mean_off,
        "sd_off": sd_off,
        "arrived": mean_off <= MEAN and sd_off <= SD,
        "r_hat": r_hat,
        "ess": ess,
        "cpu_s": seconds,
        "verdict": "trusted" if judged.trusted else judged.headline,
    }


def bars(rows: list[dict]) -> list[dict]:
    """How many arrive, by setting."""
    found = []
    for chains, warmup, draws in SETTINGS:
        own = [r for r in rows if r["chains"] == chains]
        bar = f"{chains} chains, {warmup} + {draws}: arrived"
        measured = sum(r["arrived"] for r in own)
        found.append({"bar": bar, "asked": f">= {len(own)}", "measured": measured})
    return found


def merged(args: argparse.Namespace, rows: list[dict]) -> list[dict]:
    """All rows known so far, with these in place of those of their model and setting."""
    places = list(POSTERIORS)
    return common.merged(
        "warmup",
        args,
        rows,
        ("model", "chains"),
        lambda r: (places.index(r["model"]), -r["chains"]),
        bars,
    )


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--only", nargs="*", default=[""], help="parts of models' names")
    args = common.options(__doc__ or "", own)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.filterwarnings("ignore")
    rows: list[dict] = []
    for name in QUICK if args.quick else POSTERIORS:
        if any(part in name for part in args.only):
            problem = Problem(name, POSTERIORS[name], args.seed)
            rows = merged(args, [row(problem, setting, args) for setting in SETTINGS])
            print(".", end="", flush=True)
    print()
    common.table(rows, COLUMNS)
    common.write("warmup", args, rows, bars(rows))


if __name__ == "__main__":
    main()
