"""How well are scores learned? Trainer defaults on random Gaussian mixtures, against the truth.

    python -m benchmarks.mixtures [--quick] [--seed N]

For each dimension, laws drawn from consecutive seeds: 3 modes in 2-d, 4 in 10-d, 20,000 draws,
σ = 0.2. Errors are E‖error‖²/E‖truth‖² of s1 and of the diagonal of s2, at fresh draws of the data,
against the closed form smoothed by the estimator's own noise. The last column measures s2 against
its spread about the best constant, which flatters less.
"""

import time

import torch

from benchmarks.common import options, table, write
from ozaki.scores.analytic import GaussianMixtureScore
from ozaki.scores.learned.trainer import DSMTrainer


def mixture(dim: int, modes: int, seed: int) -> GaussianMixtureScore:
    """A random mixture: means about 2 apart a dimension, correlated modes, unequal weights."""
    g = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(modes, dim, generator=g)
    root = torch.randn(modes, dim, dim, generator=g) / dim**0.5
    covariances = root @ root.mT * 0.5 + 0.3 * torch.eye(dim)
    weights = torch.rand(modes, generator=g) + 0.5
    return GaussianMixtureScore(means, covariances, weights / weights.sum())


def errors(dim: int, modes: int, seed: int, steps: int | None) -> dict:
    law, g = mixture(dim, modes, seed), torch.Generator().manual_seed(seed + 1)
    data = law.sample(20_000, g)
    began = time.perf_counter()
    short = {} if steps is None else {"max_steps": steps}
    estimator = DSMTrainer(0.2, seed=seed, progress=False, **short).fit(data)
    seconds = time.perf_counter() - began
    x = law.sample(20_000, g)
    truth = law.smooth(estimator.noise_scale).expand(x, "diagonal")
    found = estimator.expand(x, "diagonal")
    s2, want = found.curvature.diagonal(), truth.curvature.diagonal()
    first = (found.gradient - truth.gradient).square().sum() / truth.gradient.square().sum()
    second = (s2 - want).square().sum()
    return {
        "dim": dim,
        "law": seed,
        "s1": float(first),
        "s2": float(second / want.square().sum()),
        "s2_about_constant": float(second / (want - want.mean(0)).square().sum()),
        "seconds": seconds,
    }


def main() -> None:
    args = options(__doc__)
    torch.set_num_threads(1)
    count, steps = (1, 500) if args.quick else (4, None)
    rows = [
        errors(dim, modes, args.seed + i, steps)
        for dim, modes in ((2, 3), (10, 4))
        for i in range(count)
    ]
    table(rows, ["dim", "law", "s1", "s2", "s2_about_constant", "seconds"])
    bars = [
        {
            "bar": f"worst relative squared error of {name}, {dim}-d, {count} laws",
            "asked": "<= 0.02",
            "measured": max(r[name] for r in rows if r["dim"] == dim),
        }
        for dim in (2, 10)
        for name in ("s1", "s2")
    ]
    bars.append(
        {
            "bar": "longest training, seconds",
            "asked": "< 60",
            "measured": max(r["seconds"] for r in rows),
        }
    )
    write("mixtures", args, rows, bars)


if __name__ == "__main__":
    main()
