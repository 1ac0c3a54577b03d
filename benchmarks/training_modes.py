"""Together or one after the other? s1 and s2 trained jointly or apart, on shared or own trunks.

    python -m benchmarks.training_modes [--quick] [--seed N]

`DSMTrainer` at its defaults but for `joint` and `shared`, on 20,000 draws of a random Gaussian
mixture in 2-d and of one in 10-d, σ = 0.2 and 0.05. Errors are E‖error‖²/E‖truth − mean‖² of s1 and
of the diagonal of s2, at fresh noisy points, against the closed form smoothed by the estimator's
own noise. Apart, each of s1 and s2 has the steps that both together have; the seconds of processor
time say what that costs.
"""

import time
from typing import Any

import torch

from benchmarks.common import options, table, write
from benchmarks.mixtures import mixture
from ozaki.scores.learned.trainer import DSMTrainer

MODES = {
    "apart, own trunks": {},
    "joint, own trunks": {"joint": True},
    "apart, shared trunk": {"shared": True},
    "joint, shared trunk": {"shared": True, "joint": True},
}


def errors(dim: int, modes: int, sigma: float, seed: int, mode: str, steps: int | None) -> dict:
    law, g = mixture(dim, modes, seed), torch.Generator().manual_seed(seed + 1)
    data = law.sample(20_000, g)
    chosen: dict[str, Any] = {**MODES[mode], **({} if steps is None else {"max_steps": steps})}
    began = time.process_time()
    estimator = DSMTrainer(sigma, seed=seed, progress=False, **chosen).fit(data)
    seconds = time.process_time() - began
    x = law.sample(10_000, g)
    x = x + estimator.noise_scale * torch.randn(x.shape, generator=g)
    truth = law.smooth(estimator.noise_scale).expand(x, "diagonal")
    found = estimator.expand(x, "diagonal")
    pairs = {
        "s1": (found.gradient, truth.gradient),
        "s2": (found.curvature.diagonal(), truth.curvature.diagonal()),
    }
    relative = {
        name: float((a - b).square().sum() / (b - b.mean(0)).square().sum())
        for name, (a, b) in pairs.items()
    }
    return {"dim": dim, "sigma": sigma, "law": seed, "mode": mode, **relative, "seconds": seconds}


def main() -> None:
    args = options(__doc__)
    torch.set_num_threads(1)
    steps = 100 if args.quick else None
    rows = [
        errors(dim, modes, sigma, args.seed, mode, steps)
        for dim, modes in ((2, 3), (10, 4))
        for sigma in ((0.2,) if args.quick else (0.2, 0.05))
        for mode in MODES
    ]
    table(rows, list(rows[0]))
    write("training_modes", args, rows, [])


if __name__ == "__main__":
    main()
