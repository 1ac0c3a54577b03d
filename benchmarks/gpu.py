"""What the GPU brings, in less than ten minutes: posteriors, throughput, and the cost of images.

    python -m benchmarks.gpu [--minutes N] [--images] [--data FOLDER] [--models FOLDER] [--out DIR]

runs one after another, each as a process of its own that is ended when time is up: `posteriors`
with 1,000 and 10,000 chains on cuda, the compiled kernel, one run each; `throughput` on cuda;
`images_cost` with the large network. Each writes its JSON, and `gpu.json` tells which came to their
end and how long they took. Correctness is judged by the truths kept in `truths.json`, so
that no JAX is needed. With `--images` the image benchmarks that train the large networks follow,
with the GPU's settings; they take hours and have no limit.
"""

import argparse
import subprocess
import sys
import time

import torch

from benchmarks import common

MODELS = ("eight schools", "logistic", "normal", "hierarchical", "radon", "item response")
POSTERIORS = ("posteriors", "--device", "cuda", "--repeats", "1", "--samplers", "ozaki, compiled")
TRAINED = ("components", "covariance", "denoising_2d", "inverse", "mixing", "out_of_distribution")


def jobs(args: argparse.Namespace) -> list[tuple[str, ...]]:
    """What is run while time is left, what matters most first."""
    out = ("--out", str(args.out))
    first = [("throughput", "--device", "cuda", "--quick", *out)]
    for model in MODELS:
        for chains in ("1000", "10000"):
            size = ("--chains", chains, "--only", model)
            first.append((*POSTERIORS, *size, *out))
    first.insert(5, ("images_cost", "--gpu", *out))
    return first


def run(job: tuple[str, ...], limit: float | None) -> dict:
    """One benchmark; what it prints is shown."""
    began = time.monotonic()
    print("$", *job, flush=True)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{job[0]}", *job[1:]], timeout=limit
        )
    except subprocess.TimeoutExpired:
        state = "out of time"
    else:
        state = "done" if ended.returncode == 0 else "failed"
    return {"job": " ".join(job), "state": state, "seconds": time.monotonic() - began}


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--minutes", type=float, default=9.0, help="for all but the trained images")
    own.add_argument("--images", action="store_true", help="train on images as well: hours")
    own.add_argument("--data", default="data", help="of the images")
    own.add_argument("--models", default="build/models", help="where trained networks are kept")
    args = common.options(__doc__ or "", own)
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here (torch.cuda.is_available() is False)")
    end = time.monotonic() + 60 * args.minutes
    rows: list[dict] = []
    for job in jobs(args):
        left = end - time.monotonic()
        if left > 1:
            rows.append(run(job, left))
        else:
            rows.append({"job": " ".join(job), "state": "no time", "seconds": 0.0})
    if args.images:
        folders = ("--data", args.data, "--models", args.models, "--out", str(args.out))
        rows += [run((f"images_{name}", "--gpu", *folders), None) for name in TRAINED]
    common.table(rows, ["job", "state", "seconds"])
    ended = sum(row["state"] == "done" for row in rows)
    bars = [{"bar": "benchmarks done", "asked": f">= {len(rows)}", "measured": ended}]
    common.write("gpu", args, rows, bars)


if __name__ == "__main__":
    main()
