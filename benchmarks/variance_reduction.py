"""What variance reduction is worth at small σ, and from which σ on it does harm.

    python -m benchmarks.variance_reduction [--quick] [--seed N]

1. After Fig. 1 of Meng et al.: a 2-d normal with unit variances and correlation 0.8, so that σ is
in units of the spread; σ = 0.01, 0.1, 0.5. Every loss trains the same network, `ScoreNetwork` on
`Trunks` of width 32 and depth 1, on the same fresh draws, 256 a step, by Adam with half a cosine,
1,500 steps. s2 is `LowRank` of rank 2, and the losses of s2 are given the exact s1. The error is
the RMSE over all entries, at fresh draws of p_σ, against the closed form. Two seeds; the table
and the bars take their geometric mean.

2. The same losses of s2 without an optimiser: the minimiser over all quadratic functions, found
from 20,000 pairs by one Newton step in float64.

3. The crossover: residual-VR against the residual averaged over the pair ±z, which differ in the
control variate alone, for a `Diagonal` s2 on the same normal and on a mixture of three normals
scaled to spread 1, with the exact s1. Beside the RMSE of diag s2 stands the variance of the loss's
gradient in the weights of the last layer, at the exact s2, on the features of an untrained trunk.
"""

import math
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import NullFormatter
from torch import Tensor
from torch.nn.functional import silu

from benchmarks.common import RESULTS, options, table, write
from benchmarks.mixtures import mixture
from ozaki.linalg import Dense, SymmetricOperator
from ozaki.scores.analytic import GaussianMixtureScore, GaussianScore
from ozaki.scores.learned import objectives
from ozaki.scores.learned.mlp import ResidualMLP, Trunks
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork

Law = GaussianScore | GaussianMixtureScore

FIRST = {
    "DSM": objectives.dsm,
    "DSM-VR": objectives.dsm_vr,
    "antithetic DSM": objectives.dsm_antithetic,
}
SECOND = {
    "D2SM": objectives.d2sm,
    "D2SM-VR": objectives.d2sm_vr,
    "residual": objectives.residual,
    "residual-VR": objectives.residual_vr,
}
PAIRS = {
    reduced: lambda *args, reduced=reduced: objectives.joint(
        "residual", *args, control_variate=reduced
    )[1]
    for reduced in (False, True)
}
LEVELS = (0.01, 0.1, 0.5)
GRID = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
BATCH, RATE, WARM_UP = 256, 6e-3, 100
TEST = 4096


def normal() -> GaussianScore:
    """Unit variances, correlation 0.8."""
    return GaussianScore(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))


def three_modes(seed: int) -> GaussianMixtureScore:
    """Three modes in 2-d, of mean 0 and mean variance 1."""
    law = mixture(2, 3, seed)
    w, means = law.weights, law.means - (law.weights[:, None] * law.means).sum(0)
    within = law.covariances.diagonal(dim1=-2, dim2=-1)
    scale = (w[:, None] * (within + means.square())).sum(0).mean().sqrt()
    return GaussianMixtureScore(means / scale, law.covariances / scale**2, w)


def entries(s2: SymmetricOperator, heads: Heads) -> Tensor:
    """All entries, or the diagonal where that alone is learned."""
    return s2.dense() if heads.rank else s2.diagonal()


def train(
    law: Law,
    sigma: float,
    loss: Callable[..., Tensor],
    heads: Heads,
    seed: int,
    steps: int,
    every: int,
) -> tuple[list[tuple[int, float]], ScoreNetwork]:
    """The RMSE by step, of s1 where `heads` are of order 1 and else of s2, and the network."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    exact = law.smooth(sigma)
    trunk = Trunks(2, order=heads.order, rank=heads.rank, width=32, depth=1)
    net = ScoreNetwork(trunk, torch.Size([2]), sigma, heads)
    first = heads.order == 1
    test = exact.sample(TEST, g)
    kind = "dense" if heads.rank else "diagonal"
    known = exact.expand(test, kind)
    want = known.gradient if first else entries(known.curvature, heads)

    def score(x: Tensor) -> Any:
        if first:
            return net.first(x)
        return exact.expand(x).gradient, net(x, None, (False, True)).s2

    @torch.no_grad()
    def error() -> float:
        found = net.first(test) if first else entries(net(test, None, (False, True)).s2, heads)
        return float((found - want).square().mean().sqrt())

    adam = torch.optim.Adam(net.parameters(), RATE, betas=(0.9, 0.99), fused=True)
    curve = [(0, error())]
    for step in range(1, steps + 1):
        x = law.sample(BATCH, g)
        z = torch.randn(x.shape, generator=g)
        rate = RATE * min(1.0, step / WARM_UP) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        for group in adam.param_groups:
            group["lr"] = rate
        adam.zero_grad()
        loss(score, x, z, sigma).mean().backward()
        adam.step()
        if step % every == 0 or step == steps:
            curve.append((step, error()))
    return curve, net


def curves(seeds: list[int], steps: int) -> list[dict]:
    """Part 1: a row a σ, loss and seed."""
    law, rows = normal(), []
    line = torch.linspace(-2, 2, 81)[:, None] * torch.tensor([1.0, 0.8])
    for sigma in LEVELS:
        truth = law.smooth(sigma).expand(line, "dense")
        for order, losses in ((1, FIRST), (2, SECOND)):
            for name, loss in losses.items():
                heads = Heads(order, rank=2 if order == 2 else 0)
                for seed in seeds:
                    began = time.perf_counter()
                    curve, net = train(law, sigma, loss, heads, seed, steps, steps // 30)
                    row = {"part": "curves", "sigma": sigma, "score": f"s{order}", "loss": name}
                    row |= {"seed": seed, "rmse": curve[-1][1], "curve": curve}
                    row["seconds"] = time.perf_counter() - began
                    with torch.no_grad():
                        out = net(line)
                    if order == 1:
                        learned, exact = out.s1[:, 0], truth.gradient[:, 0]
                    else:
                        learned, exact = out.s2.dense()[:, 0, 0], truth.curvature.dense()[..., 0, 0]
                    row |= {"line": line[:, 0].tolist(), "learned": learned.tolist()}
                    row["exact"] = exact.expand(len(line)).tolist()
                    rows.append(row)
                print(f"{sigma:g} {name} {rows[-1]['rmse']:.3g}", flush=True)
    return rows


def regression(seeds: list[int], n: int = 20_000) -> list[dict]:
    """Part 2: a row a σ, loss and seed."""
    known, rows = normal(), []
    law = GaussianScore(known.mean.double(), known.covariance.double())
    for sigma in LEVELS:
        exact = law.smooth(sigma)
        for name, loss in SECOND.items():
            for seed in seeds:
                g = torch.Generator().manual_seed(seed)
                x = law.sample(n, g)
                z = torch.randn(x.shape, generator=g, dtype=x.dtype)

                def total(
                    theta: Tensor,
                    x: Tensor = x,
                    z: Tensor = z,
                    loss: Callable[..., Tensor] = loss,
                    exact: GaussianScore = exact,
                    sigma: float = sigma,
                ) -> Tensor:
                    return loss(
                        lambda p: (exact.expand(p).gradient, quadratic(theta, p)), x, z, sigma
                    ).mean()

                zero = torch.zeros(6, 3, dtype=x.dtype)
                slope = torch.func.grad(total)(zero).flatten()
                bend = torch.func.hessian(total)(zero).reshape(18, 18)
                theta = -torch.linalg.solve(bend, slope).reshape(6, 3)
                test = exact.sample(TEST, g)
                want = exact.expand(test, "dense").curvature.dense()
                error = float((quadratic(theta, test).dense() - want).square().mean().sqrt())
                row = {"part": "regression", "sigma": sigma, "loss": name, "seed": seed}
                rows.append({**row, "rmse": error})
    return rows


def quadratic(theta: Tensor, x: Tensor) -> Dense:
    """S of entries that are quadratic in x: θ is (6, 3)."""
    a, b = x.unbind(-1)
    features = torch.stack((torch.ones_like(a), a, b, a * a, a * b, b * b), -1)
    return Dense((features @ theta)[..., [0, 1, 1, 2]].unflatten(-1, (2, 2)))


@torch.no_grad()
def gradient_variance(law: Law, sigma: float, seed: int, n: int = 40_000) -> tuple[float, float]:
    """Variance of the gradient in the last layer's weights at the exact s2: without, and with."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    trunk, exact = ResidualMLP(2, 64, 2), law.smooth(sigma)
    x = law.sample(n, g)
    z = torch.randn(x.shape, generator=g)
    points, noise = objectives.pair(x, z, sigma)
    known = exact.expand(points, "diagonal")
    residual = noise / sigma + known.gradient
    off = 2 * (known.curvature.diagonal() - residual.square() + 1 / sigma**2)

    def features(p: Tensor) -> Tensor:
        flat = p.reshape(-1, 2) / (1 + sigma**2) ** 0.5
        level = flat.new_full((len(flat),), math.log(sigma) / 4)
        return silu(trunk.features(flat, level)).reshape(*p.shape[:-1], -1)

    plain = torch.einsum("snd,snf->ndf", off, features(points)) / 2
    control = 2 * (z.square() - 1)[:, :, None] / sigma**2 * features(x)[:, None]
    return float(plain.var(0).sum()), float((plain + control).var(0).sum())


def crossover(seeds: list[int], steps: int) -> list[dict]:
    """Part 3: a row a law, σ and seed."""
    rows = []
    for name in ("normal", "mixture"):
        for sigma in GRID:
            for seed in seeds:
                law = normal() if name == "normal" else three_modes(seed)
                final = [
                    train(law, sigma, PAIRS[reduced], Heads(2), seed, steps, steps)[0][-1][1]
                    for reduced in (False, True)
                ]
                variance = gradient_variance(law, sigma, seed)
                row = {"part": "crossover", "law": name, "sigma": sigma, "seed": seed}
                row |= {"pair": final[0], "pair_vr": final[1], "rmse_ratio": final[1] / final[0]}
                row["gradient_sd_ratio"] = (variance[1] / variance[0]) ** 0.5
                rows.append(row)
            print(f"{name} {sigma:g} {rows[-1]['rmse_ratio']:.3g}", flush=True)
    return rows


def mean(values: list[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(math.log(v) for v in values) / len(values))


def gather(rows: list[dict], keys: list[str], values: list[str]) -> list[dict]:
    """Geometric means over the seeds."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[k] for k in keys), []).append(row)
    return [
        dict(zip(keys, key, strict=True)) | {v: mean([r[v] for r in found]) for v in values}
        for key, found in groups.items()
    ]


def crossing(points: list[tuple[float, float]]) -> float:
    """The σ at which the ratio first passes 1 from below, log-linear; nan where it does not."""
    for (a, low), (b, high) in pairwise(points):
        if low < 1 <= high:
            share = -math.log(low) / (math.log(high) - math.log(low))
            return math.exp(math.log(a) + share * (math.log(b) - math.log(a)))
    return math.nan


def figures(rows: list[dict], means: list[dict]) -> None:
    """Learning curves and learned scores; and the crossover."""
    folder = RESULTS.parent / "figures"
    folder.mkdir(exist_ok=True)
    fig, axes = plt.subplots(2, 4, figsize=(11, 5))
    shown = [r for r in rows if r["part"] == "curves"]
    for i, losses in enumerate((FIRST, SECOND)):
        for j, sigma in enumerate(LEVELS):
            axis = axes[i, j]
            for k, name in enumerate(losses):
                found = [r["curve"] for r in shown if (r["loss"], r["sigma"]) == (name, sigma)]
                steps = [s for s, _ in found[0]]
                values = [mean([c[t][1] for c in found]) for t in range(len(steps))]
                axis.semilogy(steps, values, "--" if k == 2 else "-", lw=1.2, label=name)
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set_title(f"σ = {sigma:g}", fontsize=10)
            axis.set_xlabel("step")
        low, high = zip(*(a.get_ylim() for a in axes[i, :3]), strict=True)
        for axis in axes[i, :3]:
            axis.set_ylim(min(low), max(high))
        axes[i, 0].set_ylabel(f"RMSE of s{i + 1}")
        axes[i, 2].legend(fontsize=7)
        axis = axes[i, 3]
        for name in losses:
            row = next(r for r in shown if (r["loss"], r["sigma"]) == (name, LEVELS[0]))
            axis.plot(row["line"], row["learned"], lw=1.2, label=name)
        axis.plot(row["line"], row["exact"], "k:", label="exact")
        axis.set_title(f"learned, σ = {LEVELS[0]:g}", fontsize=10)
        axis.set_xlabel("x₁ along (1, 0.8)")
        axis.set_ylabel("s1, first entry" if i == 0 else "s2, first entry")
    fig.tight_layout()
    fig.savefig(folder / "variance_reduction.svg", metadata={"Date": None})
    plt.close(fig)
    fig, axis = plt.subplots(figsize=(4.5, 3.2))
    for color, law in enumerate(("normal", "mixture")):
        at = [m for m in means if m["law"] == law]
        for key, style in (("rmse_ratio", "o-"), ("gradient_sd_ratio", "x:")):
            label = f"{law}, {'RMSE of s2' if key == 'rmse_ratio' else 'sd of the gradient'}"
            ratios = [m[key] for m in at]
            axis.loglog(GRID, ratios, style, color=f"C{color}", label=label, ms=4)
    axis.axhline(1, color="grey", lw=0.8)
    axis.set_xticks(GRID, [f"{s:g}" for s in GRID], fontsize=7)
    ratios = (0.1, 0.2, 0.5, 1, 2)
    axis.set_yticks(ratios, [f"{r:g}" for r in ratios])
    axis.minorticks_off()
    axis.set_xlabel("σ / spread")
    axis.set_ylabel("with / without control variate")
    axis.legend(fontsize=7)
    fig.tight_layout()
    fig.savefig(folder / "variance_reduction_crossover.svg", metadata={"Date": None})
    plt.close(fig)


def main() -> None:
    args = options(__doc__)
    torch.set_num_threads(1)
    count, steps, short = (1, 300, 200) if args.quick else (2, 1500, 600)
    seeds = [args.seed + i for i in range(count)]
    rows = curves(seeds, steps)
    rows += regression([args.seed + i for i in range(5)])
    rows += crossover(seeds, short)
    final = gather([r for r in rows if r["part"] == "curves"], ["sigma", "score", "loss"], ["rmse"])
    table(final, ["sigma", "score", "loss", "rmse"])
    solved = gather([r for r in rows if r["part"] == "regression"], ["sigma", "loss"], ["rmse"])
    table(solved, ["sigma", "loss", "rmse"])
    compared = ["pair", "pair_vr", "rmse_ratio", "gradient_sd_ratio"]
    means = gather([r for r in rows if r["part"] == "crossover"], ["law", "sigma"], compared)
    table(means, ["law", "sigma", *compared])
    bars = []
    for way, found in (("network", final), ("regression", solved)):
        for family in ("D2SM", "residual"):
            rmse = {m["loss"]: m["rmse"] for m in found if m["sigma"] == LEVELS[0]}
            bars.append(
                {
                    "bar": f"RMSE of s2 at σ = {LEVELS[0]:g}, {way}, {family}-VR / {family}",
                    "asked": "<= 0.01",
                    "measured": rmse[f"{family}-VR"] / rmse[family],
                }
            )
    for law in ("normal", "mixture"):
        for key in ("rmse_ratio", "gradient_sd_ratio"):
            points = [(m["sigma"], m[key]) for m in means if m["law"] == law]
            bars.append(
                {
                    "bar": f"σ at which {key} passes 1, {law}",
                    "asked": "to know",
                    "measured": crossing(points),
                }
            )
    if not args.quick:
        figures(rows, means)
    write("variance_reduction", args, rows, bars)


if __name__ == "__main__":
    main()
