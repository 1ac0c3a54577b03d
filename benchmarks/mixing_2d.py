"""Does curvature make chains mix faster? Langevin and Ozaki on learned scores of 2-d data.

    python -m benchmarks.mixing_2d [--quick] [--seed N] [--out DIR]

After Table 3 and Figures 5 and 6 of Meng et al. The data, 20,000 draws each:

* two modes: ½N((±1.5, 0), diag(1, 0.3²)), narrow in the same coordinate everywhere;
* cross: ½N(0, diag(1.5², 0.25²)) + ½N(0, diag(0.25², 1.5²)), narrow in one coordinate on one arm
  and in the other on the other, so that no scaling of the coordinates helps;
* banana: x2 given x1 is N(x1²/2 − 1, 0.3²), narrow across a curve, where the diagonal of s2 says
  little. Its s2 is learned as low rank, which in 2-d is all of it, and walked by its diagonal too;
* round: ½N((±1.2, 0), 0.7² I), as narrow in every direction, where curvature has little to give.

Scores are learned by `DSMTrainer` defaults but for that one; `s1` and `s2` are relative squared
errors against the closed form of the smoothed law, at fresh draws. Both kernels walk in the
identity metric with the step size they are given. Chains begin at draws of the smoothed law. The
effective sample size is the bulk one of the worse coordinate; three groups of 16 chains stand for
three seeds, and the median counts. A step size competes if the standard deviation of every
coordinate is within 10% of that of the smoothed law: the data's, with the noise's variance added.
The grid, the same for both, is walked upwards and left where that bias passes 50% or the sample
size falls to a third of the best. `ms` is processor time a step of all chains.

"Self-tuned" is a kernel that is
given nothing but the correction, after 500 steps of warm-up, which finds a metric and a step size,
and for Ozaki whether curvature is worth it; its bias stands beside it and excludes nothing.

Convergence: 400 unadjusted chains that all begin at one point of one mode or arm, Langevin at the
best step size of the table, Ozaki at that same one and at its own best; the sliced Wasserstein
distance to 10,000 fresh draws of the smoothed law, in its standard deviations. The floor is that of
400 more draws; `reached` is the first iteration at which the distance is below 1.5 times that.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import arviz as az
import matplotlib
import torch
from torch import Generator, Tensor

from benchmarks.common import FIGURES, RESULTS, options, table, write
from benchmarks.two_modes import two_modes
from ozaki import MCMC, DSMTrainer, ScoreEstimator, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.kernels.score_kernel import ScoreKernel
from ozaki.scores.analytic import GaussianMixtureScore

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CORRECTIONS = ("none", "line_integral")
BIAS, TOO_FAR = 0.1, 0.5
TUNED = 500  # steps of warm-up
SHOWN = (1, 10, 100, 1000)
ITERATIONS = sorted({round(10 ** (i / 8)) for i in range(25)})
WIDE = 25  # draws of the law for every chain that is held against it
FLOORS = 20  # sets of draws that the floor is the mean of


class Law(NamedTuple):
    """Where data come from.

    Attributes:
        draw: so many of them.
        smooth: their law with noise of these standard deviations, in closed form.
        corner: where the chains begin whose convergence is watched; None to watch none.
        curvature: the trainer's option.
        walked: the kinds of curvature that Ozaki reads.
    """

    draw: Callable[[int, Generator], Tensor]
    smooth: Callable[[Tensor], GaussianMixtureScore]
    corner: tuple[float, float] | None = None
    curvature: str = "diagonal"
    walked: tuple[str, ...] = ("diagonal",)


def cross() -> GaussianMixtureScore:
    """A wide arm in each coordinate, in float64."""
    arms = torch.tensor([[1.5, 0.25], [0.25, 1.5]], dtype=torch.float64).square()
    return GaussianMixtureScore(torch.zeros_like(arms), torch.diag_embed(arms))


def round_modes() -> GaussianMixtureScore:
    """Two modes that are alike in every direction, in float64."""
    means = torch.tensor([[-1.2, 0.0], [1.2, 0.0]], dtype=torch.float64)
    return GaussianMixtureScore(means, (0.49 * torch.eye(2).double()).expand(2, 2, 2))


def banana(n: int, generator: Generator) -> Tensor:
    """Draws along a parabola, (n, 2)."""
    along, across = torch.randn(2, n, generator=generator, dtype=torch.float64)
    return torch.stack((along, along.square() / 2 - 1 + 0.3 * across), 1)


def smooth_banana(noise: Tensor) -> GaussianMixtureScore:
    """Its law with noise, by the trapezoid rule along the parabola, exact to many digits."""
    u = torch.linspace(-6, 6, 151, dtype=torch.float64)
    means = torch.stack((u, u.square() / 2 - 1), 1)
    within = noise.square() + torch.tensor([0.0, 0.09], dtype=torch.float64)
    return GaussianMixtureScore(
        means, torch.diag(within).expand(len(u), 2, 2), torch.softmax(-u.square() / 2, 0)
    )


LAWS = {
    "two modes": Law(two_modes().sample, two_modes().smooth, (-2.0, 0.0)),
    "cross": Law(cross().sample, cross().smooth, (2.0, 0.0)),
    "round": Law(round_modes().sample, round_modes().smooth),
    "banana": Law(banana, smooth_banana, None, "low_rank", ("diagonal", "low_rank")),
}


class Case:
    """A law with the score learned of it."""

    def __init__(self, name: str, seed: int, steps: int):
        self.name, self.law = name, LAWS[name]
        self.generator = Generator().manual_seed(seed)
        data = self.law.draw(20_000, self.generator).float()
        began = time.process_time()
        trainer = DSMTrainer(
            curvature=self.law.curvature, max_steps=steps, seed=seed, progress=False
        )
        self.estimator = trainer.fit(data)
        self.seconds = time.process_time() - began
        self.noise = self.estimator.noise_scale
        self.spread = (data.double().var(0) + self.noise.double().square()).sqrt()

    def smoothed(self, n: int) -> Tensor:
        """Fresh draws of the smoothed law, (n, 2)."""
        x = self.law.draw(n, self.generator).float()
        return x + self.noise * torch.randn(x.shape, generator=self.generator)

    def learned(self) -> dict:
        """How well, as a row."""
        x = self.smoothed(20_000)
        found = self.estimator.expand(x, "diagonal")
        truth = self.law.smooth(self.noise.double()).expand(x.double(), "diagonal")
        errors = {}
        for order, a, b in (
            ("s1", found.gradient, truth.gradient),
            ("s2", found.curvature.diagonal(), truth.curvature.diagonal()),
        ):
            errors[order] = float((a - b).square().sum() / b.square().sum())
        noise = ", ".join(f"{s:.3g}" for s in self.noise.tolist())
        return {"law": self.name, "noise": noise, **errors, "seconds": self.seconds}


def run(kernel: ScoreKernel, start: Tensor, draws: int, seed: int, warmup: int = 0) -> MCMC:
    """Chains from `start`."""
    mcmc = MCMC(
        kernel,
        num_samples=draws,
        warmup_steps=warmup,
        initial_params={"x": start},
        num_chains=len(start),
        disable_progbar=True,
        seed=seed,
    )
    mcmc.run()
    return mcmc


def walk(kernel: ScoreKernel, start: Tensor, draws: int, seed: int) -> Tensor:
    """The same, draws alone, (chains, draws, 2)."""
    return run(kernel, start, draws, seed).get_samples(group_by_chain=True)["x"]


def kernel_of(
    name: str, estimator: ScoreEstimator, step_size: float, correction: str
) -> ScoreKernel:
    """Langevin's, or "Ozaki, KIND"."""
    given = {"step_size": step_size, "metropolis": correction}
    if name == "Langevin":
        return ScoreLangevinKernel(estimator, **given)
    return ScoreOzakiKernel(estimator, curvature=name.removeprefix("Ozaki, "), **given)


def best(
    case: Case, name: str, correction: str, start: Tensor, draws: int, grid: list[float], seed: int
) -> dict:
    """The best step size of one kernel, as a row."""
    found = {"ess": 0.0, "step_size": grid[0], "bias": float("nan"), "ms": float("nan")}
    found["groups"] = []
    for h in grid:
        began = time.process_time()
        kernel = kernel_of(name, case.estimator, h, correction)
        x = walk(kernel, start, draws, seed).double()
        ms = (time.process_time() - began) / draws * 1e3
        if not float((x.flatten(0, 1).std(0) / case.spread - 1).abs().max()) < TOO_FAR:
            break
        seen = measure(case, x) | {"step_size": h, "ms": ms}
        if seen["bias"] < BIAS and seen["ess"] > found["ess"]:
            found = seen
        if seen["ess"] < found["ess"] / 3:
            break
    return {
        "law": case.name,
        "correction": correction,
        "kernel": name,
        **found,
        "proposal": "given",
    }


def measure(case: Case, x: Tensor) -> dict:
    """Effective sample sizes and bias of chains (chains, draws, 2), as part of a row."""
    bias = float((x.flatten(0, 1).std(0) / case.spread - 1).abs().max())
    groups = [min(float(az.ess(part[..., i].numpy())) for i in (0, 1)) for part in x.chunk(3)]
    return {"ess": statistics.median(groups), "bias": bias, "groups": groups}


def tuned(case: Case, name: str, correction: str, start: Tensor, draws: int, seed: int) -> dict:
    """A kernel with nothing given but the correction, after a warm-up, as a row."""
    made = ScoreLangevinKernel if name == "Langevin" else ScoreOzakiKernel
    kernel = made(case.estimator, metropolis=correction)
    began = time.process_time()
    mcmc = run(kernel, start, draws, seed, warmup=TUNED)
    ms = (time.process_time() - began) / (draws + TUNED) * 1e3
    row = {"law": case.name, "correction": correction, "kernel": f"{name}, self-tuned"}
    seen = measure(case, mcmc.get_samples(group_by_chain=True)["x"].double())
    chosen = mcmc.to_inference_data(log_likelihood=False).posterior.attrs["proposal"]
    return row | seen | {"step_size": "own", "ms": ms, "proposal": chosen.partition(",")[0]}


def distance(x: Tensor, y: Tensor) -> float:
    """The sliced Wasserstein-1 distance over 32 directions, of `WIDE` points of y to each of x."""
    angle = torch.arange(32, dtype=x.dtype) * torch.pi / 32
    directions = torch.stack((angle.cos(), angle.sin()))
    a, b = ((points @ directions).sort(0).values for points in (x, y))
    return float((a - b.unflatten(0, (len(x), WIDE)).mean(1)).abs().mean())


def converge(case: Case, sizes: dict[str, float], chains: int, seed: int) -> list[dict]:
    """From one corner, rows with the clouds at `SHOWN` and the distance at `ITERATIONS`."""
    spread, law = case.spread.float(), case.smoothed(chains * WIDE)
    floor = statistics.mean(
        distance(case.smoothed(chains) / spread, law / spread) for _ in range(FLOORS)
    )
    runs = {
        "Langevin": ("Langevin", sizes["Langevin"]),
        "Ozaki, same h": ("Ozaki, diagonal", sizes["Langevin"]),
        "Ozaki, own h": ("Ozaki, diagonal", sizes["Ozaki, diagonal"]),
    }
    start, rows = torch.tensor(case.law.corner).expand(chains, 2), []
    for run, (name, h) in runs.items():
        x = walk(kernel_of(name, case.estimator, h, "none"), start, SHOWN[-1], seed)
        curve = [distance(x[:, i - 1] / spread, law / spread) for i in ITERATIONS]
        at = dict(zip(ITERATIONS, curve, strict=True))
        reached = next((i for i, d in at.items() if d < 1.5 * floor), "–")
        row = {"law": case.name, "run": run, "step_size": h, **{f"at {i}": at[i] for i in SHOWN}}
        row |= {"floor": floor, "reached": reached, "curve": curve}
        rows.append(row | {"clouds": [x[:, i - 1] for i in SHOWN], "truth": law[:chains]})
    return rows


def draw(rows: list[dict], folder: Path) -> None:
    """Clouds by iteration, and the distance."""
    names = list(dict.fromkeys(r["law"] for r in rows))
    figure = plt.figure(figsize=(9, 4.6 * len(names)), layout="constrained")
    blocks = figure.subfigures(len(names), 1, hspace=0.04)
    for block, name in zip(blocks, names, strict=True):
        mine = [r for r in rows if r["law"] == name]
        layout = [[f"{i}{j}" for j in range(4)] + ["side"] for i in range(3)]
        layout[0][4] = "law"
        axes = block.subplot_mosaic(layout, width_ratios=[1, 1, 1, 1, 1.7])
        truth = mine[0]["truth"]
        limits = [(-m, m) for m in (1.15 * truth.abs().amax(0)).tolist()]
        panels = [(axes["law"], truth, "smoothed law")]
        for i, row in enumerate(mine):
            axes[f"{i}0"].set_ylabel(f"{row['run']}\nh = {row['step_size']:.2g}", fontsize=9)
            for j, cloud in enumerate(row["clouds"]):
                title = f"{name}, iteration {SHOWN[j]}" if j == 0 else f"{SHOWN[j]}"
                panels.append((axes[f"{i}{j}"], cloud, title if i == 0 else ""))
            axes["side"].loglog(ITERATIONS, row["curve"], color=f"C{i}", lw=1.4, label=row["run"])
        for axis, cloud, title in panels:
            axis.scatter(*cloud.T, s=2.5, lw=0, color="tab:grey", rasterized=True)
            axis.set(xlim=limits[0], ylim=limits[1], xticks=[], yticks=[])
            axis.set_title(title, fontsize=9)
        side = axes["side"]
        side.axhline(mine[0]["floor"], color="grey", ls=":", lw=1, label="floor")
        side.set(ylim=(0.04, 2), xlabel="iteration", ylabel="sliced Wasserstein distance")
        ticks = (0.05, 0.1, 0.2, 0.5, 1, 2)
        side.set_yticks(ticks, [f"{t:g}" for t in ticks])
        side.minorticks_off()
        side.legend(fontsize=8, frameon=False, loc="upper right")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "mixing_2d.svg", metadata={"Date": None}, dpi=150)


def main() -> None:
    args = options(__doc__)
    torch.set_num_threads(1)
    steps, chains, draws, crowd = (300, 24, 100, 200) if args.quick else (3000, 48, 1000, 400)
    grid = [0.04 * 1.5**i for i in range(0, 14, 2 if args.quick else 1)]
    learned, rows, watched = [], [], []
    for name, law in LAWS.items():
        case = Case(name, args.seed, steps)
        learned.append(case.learned())
        start = case.smoothed(chains)
        kernels = ("Langevin", *(f"Ozaki, {kind}" for kind in law.walked))
        for correction in CORRECTIONS:
            for kernel in kernels:
                rows.append(best(case, kernel, correction, start, draws, grid, args.seed))
                print(".", end="", flush=True)
            for kernel in ("Langevin", "Ozaki"):
                rows.append(tuned(case, kernel, correction, start, draws, args.seed))
        if law.corner is not None:
            mine = [r for r in rows if (r["law"], r["correction"]) == (name, "none")]
            sizes = {r["kernel"]: r["step_size"] for r in mine}
            watched += converge(case, sizes, crowd, args.seed)
    print()
    table(learned, list(learned[0]))
    print(f"only step sizes whose standard deviations are within {BIAS:.0%} compete:")
    table(rows, ["law", "correction", "kernel", "ess", "step_size", "bias", "ms", "proposal"])
    shown = ["law", "run", "step_size", *(f"at {i}" for i in SHOWN), "floor", "reached"]
    table(watched, shown)
    bars, asked = (
        [],
        {"two modes": ">= 10", "cross": ">= 1.8", "banana": ">= 0.95", "round": ">= 0.95"},
    )
    ess = {(r["law"], r["correction"], r["kernel"]): r["ess"] for r in rows}
    for row in rows:
        if row["kernel"].startswith("Ozaki"):
            rival = "Langevin, self-tuned" if "tuned" in row["kernel"] else "Langevin"
            langevin = ess[row["law"], row["correction"], rival]
            measured = row["ess"] / langevin if langevin else float("inf")
            bar = f"{row['kernel']} / {rival}, {row['law']}, correction {row['correction']}"
            least = ">= 0.95" if "tuned" in row["kernel"] else asked[row["law"]]
            bars.append({"bar": bar, "asked": least, "measured": measured})
    draw(watched, FIGURES if args.out == RESULTS and not args.quick else args.out)
    kept = [{k: v for k, v in r.items() if k not in ("clouds", "truth")} for r in watched]
    write("mixing_2d", args, [*learned, *rows, *kept], bars)


if __name__ == "__main__":
    main()
