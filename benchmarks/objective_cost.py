"""What does a second-order objective cost? Low-rank against dense, and a joint step against DSM.

    python -m benchmarks.objective_cost [--quick] [--seed N]

One evaluation is the variance-reduced loss of a batch at x± and x, and its gradient in a, B and s1,
which are leaves: no network. The dense form, that of the published code, builds diag(a) + B E Bᵀ,
s1 s1ᵀ and (I − z zᵀ)/σ² as D × D matrices and takes their norms and products; both give the same
value, which is checked first. Contenders take turns over the repeats; a time is the median of
processor seconds, float32, one thread. Memory is the peak of what one evaluation allocates through
torch (its profiler's record), above what was there before; `rss_mb` is how far one evaluation
raised the resident memory of a fresh process. Exponents are least squares on logarithms.

Training steps: trunk, losses, backward and Adam, at D = 100, width 128, batch 256, joint residual
with control variate and a diagonal s2, against antithetic DSM of s1 alone.
"""

import multiprocessing
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from benchmarks.common import (
    FIGURES,
    Route,
    highest_memory,
    medians,
    options,
    peak_memory,
    table,
    write,
)
from ozaki.linalg import LowRank
from ozaki.scores.learned import objectives
from ozaki.scores.learned.losses import Losses, LossPlan, NoisyBatch
from ozaki.scores.learned.mlp import Trunks
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIGMA = 0.5
FORMS = ("low-rank d2sm", "low-rank residual", "dense d2sm", "dense residual")


class Case:
    """Leaves and noise of one size: a, B and s1 at x± and at x."""

    def __init__(self, dim: int, rank: int, batch: int, seed: int):
        g = torch.Generator().manual_seed(seed)

        def leaf(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(*shape, generator=g)).requires_grad_()

        self.pair = (
            leaf(2, batch, dim),
            leaf(2, batch, dim, rank, scale=rank**-0.5),
            leaf(2, batch, dim),
        )
        self.clean = leaf(batch, dim), leaf(batch, dim, rank, scale=rank**-0.5), leaf(batch, dim)
        self.signs = 1.0 - 2.0 * (torch.arange(rank) % 2)
        self.z = torch.randn(batch, dim, generator=g)

    def loss(self, form: str) -> Tensor:
        """The batch's mean loss."""
        kind, family = form.split()
        return (self._dense(family) if kind == "dense" else self._low_rank(family)).mean()

    def gradients(self, form: str) -> tuple[Any, ...]:
        """Those of `loss` in every leaf."""
        return torch.autograd.grad(
            self.loss(form), (*self.pair, *self.clean), allow_unused=True
        )  # the residual form has none in s1

    def _low_rank(self, family: Any) -> Tensor:
        a, b, s1 = self.pair
        noise = torch.stack((self.z, -self.z))
        s2 = LowRank(a, b, self.signs)
        second = objectives.second_order(family, s1, s2, noise, SIGMA).mean(0)
        a, b, s1 = self.clean
        return second + objectives.control(family, s1, LowRank(a, b, self.signs), self.z, SIGMA)

    def _dense(self, family: str) -> Tensor:
        plus, minus = ([t[i] for t in self.pair] for i in (0, 1))
        eye = torch.eye(self.z.shape[-1])
        noise = (eye - _outer(self.z)) / SIGMA**2
        psi = [self._psi(family, *point) for point in (plus, minus, self.clean)]
        if family == "d2sm":
            targets = [noise, noise]
        else:  # r is detached
            r = [self.z + SIGMA * plus[2].detach(), -self.z + SIGMA * minus[2].detach()]
            targets = [(eye - _outer(v)) / SIGMA**2 for v in r]
        loss = -2 * (noise * psi[2]).sum((-2, -1))
        for estimate, target in zip(psi[:2], targets, strict=True):
            loss = loss + 0.5 * (estimate * estimate).sum((-2, -1))
            loss = loss + (target * estimate).sum((-2, -1))
        return loss

    def _psi(self, family: str, a: Tensor, b: Tensor, s1: Tensor) -> Tensor:
        s2 = torch.diag_embed(a) + (b * self.signs) @ b.mT
        return s2 + _outer(s1) if family == "d2sm" else s2


def _outer(v: Tensor) -> Tensor:
    return v.unsqueeze(-1) * v.unsqueeze(-2)


def _rss(form: str, *size: int) -> float:
    """Megabytes by which one evaluation raises the highest resident memory of this process."""
    torch.set_num_threads(1)
    Case(8, 2, 2, 0).gradients(form)  # libraries load what they load
    case = Case(*size)
    before = highest_memory()
    case.gradients(form)
    return highest_memory() - before


def resident(form: str, *size: int) -> float:
    """`_rss` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_rss, (form, *size))


def compare(dim: int, batch: int, repeats: int, seed: int, fresh: bool) -> list[dict]:
    """The four forms at one D, rank 50; `fresh` asks for the resident memory."""
    size = (dim, 50, batch, seed)
    case = Case(*size)
    for family in ("d2sm", "residual"):
        values = [case.loss(f"{kind} {family}").item() for kind in ("low-rank", "dense")]
        np.testing.assert_allclose(*values, rtol=1e-3)
    routes: dict[str, Route] = {f: lambda f=f: case.gradients(f) for f in FORMS}
    seconds = medians(routes, repeats)
    memory = {form: peak_memory(route) for form, route in routes.items()}
    return [
        {
            "dim": dim,
            "batch": batch,
            "form": form,
            "milliseconds": seconds[form] * 1e3,
            "dense_is_slower": seconds[f"dense {form.split()[1]}"] / seconds[form],
            "peak_mb": memory[form] / 1e6,
            "dense_is_larger": memory[f"dense {form.split()[1]}"] / memory[form],
            "rss_mb": resident(form, *size) if fresh else None,
        }
        for form in FORMS
    ]


def growth(sizes: dict[tuple[int, int], str], repeats: int, seed: int) -> list[dict]:
    """Low-rank forms at (D, r), batch 40."""
    rows = []
    for (dim, rank), along in sizes.items():
        case = Case(dim, rank, 40, seed)
        routes: dict[str, Route] = {f: lambda f=f, c=case: c.gradients(f) for f in FORMS[:2]}
        seconds = medians(routes, repeats)
        rows.extend(
            {
                "along": along,
                "dim": dim,
                "rank": rank,
                "form": form,
                "milliseconds": seconds[form] * 1e3,
                "peak_mb": peak_memory(route) / 1e6,
            }
            for form, route in routes.items()
        )
    return rows


def exponents(rows: list[dict]) -> list[dict]:
    """Slopes of log time and log memory in log D and log r."""
    found = []
    for along in ("dim", "rank"):
        for form in FORMS[:2]:
            mine = [r for r in rows if (r["along"], r["form"]) == (along, form)]
            x = np.log([r[along] for r in mine])
            time, memory = (
                float(np.polyfit(x, np.log([r[key] for r in mine]), 1)[0])
                for key in ("milliseconds", "peak_mb")
            )
            found.append({"along": along, "form": form, "time": time, "memory": memory})
    return found


def training(repeats: int, batch: int = 256, dim: int = 100) -> list[dict]:
    """Whole steps, as ratios to that of DSM."""
    joint = LossPlan((("residual", 1.0),), reduce_below=float("inf"))
    x = torch.randn(batch, dim)
    routes: dict[str, Route] = {}
    for name, order, plan, shared in (
        ("DSM", 1, LossPlan(()), False),
        ("joint, shared trunk", 2, joint, True),
        ("joint, separate networks", 2, joint, False),
    ):
        trunk = Trunks(dim, order, width=128, depth=2, shared=shared)
        net = ScoreNetwork(trunk, torch.Size([dim]), SIGMA, Heads(order))
        adam = torch.optim.Adam(net.parameters(), 1e-3, betas=(0.9, 0.99), fused=True)
        routes[name] = lambda net=net, adam=adam, plan=plan: _step(net, adam, plan, x)
    seconds = medians(routes, repeats)
    return [
        {
            "step": name,
            "milliseconds": seconds[name] * 1e3,
            "of_dsm": seconds[name] / seconds["DSM"],
            "peak_mb": peak_memory(route) / 1e6,
        }
        for name, route in routes.items()
    ]


def _step(net: ScoreNetwork, adam: torch.optim.Adam, plan: LossPlan, x: Tensor) -> None:
    losses = Losses(net, plan, net)(NoisyBatch(x, torch.randn_like(x), None, SIGMA))
    torch.stack([loss.mean() for loss in losses]).sum().backward()
    adam.step()
    adam.zero_grad(set_to_none=True)


def draw(compared: list[dict], grown: list[dict]) -> None:
    """Milliseconds against D: low-rank and dense; megabytes against D: low-rank."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    for form, colour in (("low-rank d2sm", "tab:blue"), ("dense d2sm", "tab:grey")):
        mine = [r for r in compared if r["form"] == form]
        per = [r["milliseconds"] / r["batch"] for r in mine]
        left.loglog([r["dim"] for r in mine], per, "o-", color=colour, label=form)
    left.set(xlabel="D", ylabel="milliseconds a sample", title="rank 50")
    left.legend(frameon=False)
    mine = [r for r in grown if (r["along"], r["form"]) == ("dim", "low-rank d2sm")]
    dims, memory = [r["dim"] for r in mine], [r["peak_mb"] for r in mine]
    right.loglog(dims, memory, "o", color="tab:blue", label="low-rank d2sm")
    line = [memory[-1] * d / dims[-1] for d in dims]
    right.loglog(dims, line, "--", color="tab:grey", label="linear")
    right.set(xlabel="D", ylabel="megabytes", title="rank 20, batch 40")
    right.legend(frameon=False)
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / "objective_cost.svg", metadata={"Date": None})


def main() -> None:
    args = options(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    quick, repeats = args.quick, 3 if args.quick else 7
    cases = ((100, 40, repeats), (784, 40 if not quick else 8, repeats), (3072, 8, 3))
    compared = [
        row for case in cases[: 2 if quick else 3] for row in compare(*case, args.seed, not quick)
    ]
    table(compared, list(compared[0]))
    sizes = {(2**k, 20): "dim" for k in range(6, 11 if quick else 13)}
    sizes |= {(1024, 2**k): "rank" for k in range(3, 7 if quick else 9)}
    grown = growth(sizes, repeats, args.seed)
    table(grown, list(grown[0]))
    slopes = exponents(grown)
    table(slopes, list(slopes[0]))
    steps = training(5 if quick else 21)
    table(steps, list(steps[0]))
    bars = []
    for dim, asked in ((784, 20), (3072, 100)):
        for row in compared:
            if row["dim"] == dim and row["form"].startswith("low-rank"):
                name = f"dense / {row['form']}, D = {dim}, rank 50, time"
                measured = row["dense_is_slower"]
                bars.append({"bar": name, "asked": f">= {asked}", "measured": measured})
    for row in slopes[:2]:
        name = f"memory exponent in D, {row['form']}"
        bars.append({"bar": name, "asked": "<= 1.1", "measured": row["memory"]})
    for row, asked in zip(steps[1:], (2, 3), strict=True):
        name = f"{row['step']} / DSM, training step"
        bars.append({"bar": name, "asked": f"<= {asked}", "measured": row["of_dsm"]})
    if not quick:
        draw(compared, grown)
    write("objective_cost", args, [*compared, *grown, *slopes, *steps], bars)


if __name__ == "__main__":
    main()
