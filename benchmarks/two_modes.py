"""Is curvature worth it? Ozaki against Langevin on two narrow modes, each at its best step size.

    python -m benchmarks.two_modes [--quick] [--seed N]

The target is ½N((−m, 0), S) + ½N((m, 0), S) with standard deviations (1, 0.3) and m = 1.5. Chains
start from exact draws; a step size counts only if the standard deviation it gives is within 10% of
the truth in every dimension; the best is the one with the largest smallest effective sample size.
The grid is the same for all kernels: 20 step sizes, logarithmic.
"""

import time

import arviz as az
import torch

from benchmarks.common import options, table, write
from ozaki.kernels import proposals, transition
from ozaki.kernels.transition import KernelSpec
from ozaki.scores.analytic import GaussianMixtureScore
from ozaki.scores.learned.trainer import DSMTrainer

KERNELS = {"langevin": (proposals.langevin, None), "ozaki": (proposals.ozaki, "diagonal")}
SIGMA = 0.1  # of the learned score, in units of the data's standard deviation


def two_modes(separation: float = 1.5) -> GaussianMixtureScore:
    """The target, in float64."""
    covariance = torch.diag(torch.tensor([1.0, 0.09], dtype=torch.float64))
    means = torch.tensor([[-separation, 0.0], [separation, 0.0]], dtype=torch.float64)
    return GaussianMixtureScore(means, covariance.expand(2, 2, 2))


def spread(law: GaussianMixtureScore) -> torch.Tensor:
    """The standard deviations of a two-mode law, exactly."""
    mean = (law.weights[:, None] * law.means).sum(0)
    within = law.covariances.diagonal(dim1=-2, dim2=-1)
    return (law.weights[:, None] * (within + (law.means - mean) ** 2)).sum(0).sqrt()


def walk(score, law, method, step_size, chains, steps, seed):
    """Smallest ESS, worst relative bias of the sd, acceptance."""
    g = torch.Generator().manual_seed(seed)
    x = law.sample(chains, g).to(score.dtype)
    state = transition.init(score, x, method)
    h = torch.tensor(step_size, dtype=x.dtype)
    draws, accepted, diverged = [], 0.0, 0
    for _ in range(steps):
        z = torch.randn(x.shape, dtype=x.dtype, generator=g)
        u = torch.rand(chains, dtype=x.dtype, generator=g)
        state, info = transition.step(state, score, method, h, z, u)
        draws.append(state.position)
        accepted += float(info.acceptance.mean()) / steps
        diverged += int(info.diverging.sum())
    x = torch.stack(draws, 1).double()
    sd = x.flatten(0, 1).std(0)
    bias = float((sd / spread(law) - 1).abs().max())
    ess = min(float(az.ess(x[..., i].numpy())) for i in range(x.shape[-1]))
    return ess, bias, accepted, diverged


def best(name, score, law, correction, grid, args, chains, steps):
    """The best step size of one kernel, as a row."""
    proposal, kind = KERNELS[name]
    method = KernelSpec(proposal, kind, correction)
    found = {"ess": 0.0, "step_size": float("nan"), "bias": float("nan"), "acceptance": 0.0}
    began = time.perf_counter()
    for h in grid:
        ess, bias, acceptance, diverged = walk(score, law, method, h, chains, steps, args.seed)
        if bias < 0.1 and diverged == 0 and ess > found["ess"]:
            found = {"ess": ess, "step_size": h, "bias": bias, "acceptance": acceptance}
    return {
        "kernel": name,
        "correction": correction,
        **found,
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    args = options(__doc__)
    torch.set_num_threads(1)
    chains, steps = (64, 200) if args.quick else (64, 600)
    grid = torch.logspace(-2, 1.3, 20).tolist()
    target = two_modes()
    generator = torch.Generator().manual_seed(args.seed)
    data = target.sample(20_000, generator).float()
    estimator = DSMTrainer(SIGMA, seed=args.seed, progress=False).fit(data)
    smoothed = target.smooth(estimator.noise_scale.double())
    rows = []
    for source, score, law, corrections in (
        ("exact", target, target, ("none", "exact")),
        ("learned", estimator, smoothed, ("none", "line_integral")),
    ):
        for correction in corrections:
            for kernel in KERNELS:
                row = best(kernel, score, law, correction, grid, args, chains, steps)
                rows.append({"score": source, **row})
                print(".", end="", flush=True)
    print()
    table(rows, ["score", "kernel", "correction", "ess", "step_size", "bias", "acceptance"])
    bars = []
    for asked, source, correction in (
        (15, "exact", "none"),
        (5, "exact", "exact"),
        (5, "learned", "none"),
        (5, "learned", "line_integral"),
    ):
        ess = {
            r["kernel"]: r["ess"]
            for r in rows
            if (r["score"], r["correction"]) == (source, correction)
        }
        ratio = ess["ozaki"] / ess["langevin"] if ess["langevin"] else float("inf")
        bars.append(
            {
                "bar": f"Ozaki / Langevin, {source} score, correction {correction}",
                "asked": f">= {asked}",
                "measured": ratio,
            }
        )
    write("two_modes", args, rows, bars)


if __name__ == "__main__":
    main()
