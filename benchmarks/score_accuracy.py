"""How accurate is a learned s2? Against autodiff of s1 and the paper's loss (its Table 1).

    python -m benchmarks.score_accuracy [--quick] [--seed N] [--only FAMILY ...] [--seeds N]

For each law, σ and seed one first-order network is trained by DSM, one by antithetic DSM, one by
antithetic DSM as what is left of a normal's score (`Baseline`, of up to 100,000 of the draws), and
then, on one of the last two and with the baseline or without, as `DSMTrainer` chooses from the
draws, heads for s2, every one a network of its own of the same kind (`Trunks`, gated residual
blocks: width and depth stand in the JSON), which begins with the features of s1 where it is a
diagonal: the same fresh draws for all heads, as many steps as s1, Adam with the trainer's schedule
and averaging. Errors are E‖s2 − truth‖² at noisy points x̃ ~ p_σ, of all entries for the normals,
which have low-rank heads, and of the diagonal for the rest; the truth is the smoothed law's, and
beside it the clean law's, as in the paper. "constant" is the mean of the true s2: what a network
that has learned nothing could give at best.

The paper's own networks stand beside them on the 50-d logistic mixture: tanh, three layers, 128
units for s1 and 32 for s2, in the same preconditioning, without a baseline.

Results are merged into the JSON by law, σ and seed, so that long families can run one by one.
"""

import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib
import torch
from torch import Tensor, nn

from benchmarks import common, targets
from benchmarks.common import FIGURES
from ozaki.linalg import SymmetricOperator
from ozaki.scores.learned import objectives
from ozaki.scores.learned.assembly import LEAST_GAIN, SIGN_ROWS
from ozaki.scores.learned.baseline import fitted, starting_signs, variances
from ozaki.scores.learned.mlp import Trunks
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork
from ozaki.scores.learned.settings import OBJECTIVES, REDUCE_BELOW
from ozaki.scores.learned.training_run import WARM_RATE

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HEADS: dict[str, dict[str, float]] = {
    "d2sm-vr": {"d2sm": 1.0},
    "residual-vr": {"residual": 1.0},
    "ocm": {"ocm": 1.0},
    "residual+ocm": OBJECTIVES["residual+ocm"],
}
DEFAULT = "residual+ocm"
MARKS = {
    "d2sm-vr": ("s", "tab:red"),
    "residual-vr": ("^", "tab:orange"),
    "ocm": ("v", "tab:green"),
    DEFAULT: ("o", "tab:blue"),
    "constant": ("|", "tab:grey"),
}
FIRST = ("dsm", "dsm-vr", "dsm-vr, baseline")
ROWS = [*(f"autodiff ({name})" for name in FIRST), *HEADS, "constant"]


class Family(NamedTuple):
    law: Callable[[int], Any]
    sigmas: tuple[float, ...]
    steps: int
    batch: int
    width: int
    learning_rate: float
    rank: int = 0
    published: bool = False  # the paper's own networks


FAMILIES = {
    "normal, stiff, 100-d": Family(targets.stiff_normal, (0.05, 0.2), 4000, 64, 200, 6e-3, 40),
    "normal, flat, 100-d": Family(targets.flat_normal, (0.05, 0.2), 4000, 64, 200, 6e-3, 40),
    "logistic mixture, 50-d": Family(
        lambda s: targets.logistic_mixture(s, 50), (0.05, 0.2), 15000, 256, 128, 8e-3
    ),
    "logistic mixture, 80-d": Family(
        lambda s: targets.logistic_mixture(s, 80), (0.05, 0.2), 15000, 256, 128, 8e-3
    ),
    "Gaussian mixture, 2-d": Family(
        lambda s: targets.gaussian_mixture(s, 2, 3), (0.01, 0.05, 0.1, 0.2), 6000, 256, 64, 6e-3
    ),
    "Gaussian mixture, 10-d": Family(
        lambda s: targets.gaussian_mixture(s, 10, 4), (0.05, 0.2), 5000, 256, 128, 6e-3
    ),
    "Gaussian mixture, 50-d": Family(
        lambda s: targets.gaussian_mixture(s, 50, 4), (0.05, 0.2), 3000, 256, 128, 6e-3
    ),
}
PAPERS = "paper's networks, 50-d logistic"
FAMILIES[PAPERS] = FAMILIES["logistic mixture, 50-d"]._replace(published=True)
DEPTH, EMA, CLIP, POINTS, MOST_ROWS = 2, 0.998, 5.0, 1000, 100_000


class Published(nn.Module):
    """Three layers with tanh, as the paper's: s1 alone, or s2's diagonal beside a zero for s1."""

    def __init__(self, dim: int, order: int):
        super().__init__()
        width = 128 if order == 1 else 32
        self.order = order
        self.layers = nn.Sequential(
            nn.Linear(dim, width),
            nn.Tanh(),
            nn.Linear(width, width),
            nn.Tanh(),
            nn.Linear(width, dim),
        )

    def forward(self, u: Tensor, noise: Tensor) -> Any:
        found = self.layers(u)
        return found if self.order == 1 else (torch.zeros_like(u), found)


class Learner:
    """A network, its optimiser and its running average."""

    def __init__(self, net: ScoreNetwork, family: Family):
        self.net, self.peak, self.steps = net, family.learning_rate, family.steps
        self.average = copy.deepcopy(net).eval().requires_grad_(False)
        trained = [p for p in net.parameters() if p.requires_grad]
        self.adam = torch.optim.Adam(trained, betas=(0.9, 0.99), fused=True)
        self.seconds = 0.0

    def step(self, loss: Tensor, number: int) -> None:
        self.adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        warm = min(1.0, number / 100)
        cosine = 0.5 * (1 + math.cos(math.pi * (number - 1) / self.steps))
        self.adam.param_groups[0]["lr"] = self.peak * warm * cosine
        self.adam.step()
        share = 1 - min(EMA, (1 + number) / (10 + number))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.net.parameters()), share
            )


def train(family: Family, law: Any, sigma: float, seed: int) -> tuple[dict[str, Learner], bool]:
    """Every network, on the same draws, and whether the heads depart from a normal."""
    torch.manual_seed(seed)
    g = torch.Generator().manual_seed(seed)
    dim, scale = law.dim, targets.spread(law)
    count = min(family.steps * family.batch, MOST_ROWS)
    seen, held = law.sample(count, torch.Generator().manual_seed(seed)).split(count * 9 // 10)[:2]

    departs = not family.published and fitted(seen, held, sigma).gain(sigma) >= LEAST_GAIN

    def network(order: int, baseline: bool) -> ScoreNetwork:
        rank = family.rank if order == 2 else 0
        if family.published:
            trunk: nn.Module = Published(dim, order)
        else:
            trunk = Trunks(dim, order, rank, family.width, DEPTH)
            if order == 2:
                trunk.first.requires_grad_(False)  # s1 is another network's
        net = ScoreNetwork(trunk, torch.Size([dim]), sigma, Heads(order, rank), 0.0, scale)
        if baseline:
            net.depart_from(fitted(seen, held, sigma, rank).to(seen.dtype))
        elif net.weights is not None:
            signs = starting_signs(variances(seen[:SIGN_ROWS]), sigma, rank)
            net.weights.data.copy_(signs)
        return net

    own = not family.published
    first_order = [Learner(network(1, own and name == FIRST[-1]), family) for name in FIRST]
    plain, paired = first_order[0], first_order[2 if departs else 1]
    first_size = (sigma**2 + scale**2) / dim
    for number in range(1, family.steps + 1):
        x, z = law.sample(family.batch, g), torch.randn(family.batch, dim, generator=g)
        points, noise = objectives.pair(x, z, sigma)
        for learner in first_order:
            at, drawn = (points[0], z) if learner is plain else (points, noise)
            began = time.perf_counter()
            loss = objectives.first_order(learner.net.first(at), drawn, sigma).mean()
            learner.step(first_size * loss, number)
            learner.seconds += time.perf_counter() - began

    first = paired.average.first
    warm = not (family.published or family.rank)  # as `DSMTrainer` has it
    rate = family.learning_rate * (WARM_RATE if warm else 1.0)
    second = family._replace(learning_rate=rate)
    heads = {name: Learner(network(2, departs), second) for name in HEADS}
    for learner in heads.values() if warm else ():
        for net in (learner.net, learner.average):
            net.network.first.load_state_dict(paired.average.network.first.state_dict())
            net.network.warm_start()
    for number in range(1, family.steps + 1):
        x, z = law.sample(family.batch, g), torch.randn(family.batch, dim, generator=g)
        v = torch.where(torch.rand(x.shape, generator=g) < 0.5, -1.0, 1.0)
        points, noise = objectives.pair(x, z, sigma)
        with torch.no_grad():
            s1, clean = first(points), first(x)
        product = objectives.jacobian_product(first, points[0], v)
        for name, terms in HEADS.items():
            learner = heads[name]
            began = time.perf_counter()
            loss = _loss(
                learner.net, terms, x, z, points, noise, sigma, scale, s1, clean, product, v
            )
            learner.step(loss, number)
            learner.seconds += time.perf_counter() - began
    return {**dict(zip(FIRST, first_order, strict=True)), **heads}, departs


def _loss(net, terms, x, z, points, noise, sigma, scale, s1, clean, product, v) -> Tensor:
    s2 = net(points, None, (False, True)).s2
    centre = None
    total = 0.0
    for term, weight in terms.items():
        if term == "ocm":
            loss = objectives.ocm_of(s2[0], product, v).mean()
        else:
            loss = objectives.second_order(term, s1, s2, noise, sigma).mean()
            if sigma <= REDUCE_BELOW * scale:
                centre = net(x, None, (False, True)).s2 if centre is None else centre
                loss = loss + objectives.control(term, clean, centre, z, sigma).mean()
        total = total + weight * loss
    return total / s2.frobenius_squared().detach().mean()


@torch.no_grad()
def errors(
    learners: dict[str, Learner], first: str, law: Any, sigma: float, full: bool
) -> dict[str, Any]:
    """Summed squared errors against the smoothed and the clean law, and what s1 misses."""
    g = torch.Generator().manual_seed(10_000)
    x = law.sample(POINTS, g)
    points = x + sigma * torch.randn(x.shape, generator=g)
    kind = "dense" if full else "diagonal"
    smoothed, clean = targets.smooth(law, sigma).expand(points, kind), law.expand(points, kind)

    def entries(s2: SymmetricOperator) -> Tensor:
        return s2.dense() if full else s2.diagonal()

    found: dict[str, Tensor] = {}
    for name in FIRST:
        s1 = learners[name].average.first
        jacobian = torch.cat(
            [torch.func.vmap(torch.func.jacrev(s1))(block) for block in points.split(100)]
        )
        whole = (jacobian + jacobian.mT) / 2
        found[f"autodiff ({name})"] = whole if full else jacobian.diagonal(dim1=-2, dim2=-1)
    for name in HEADS:
        found[name] = entries(learners[name].average(points, None, (False, True)).s2)
    truth, other = entries(smoothed.curvature), entries(clean.curvature)
    found["constant"] = truth.mean(0, keepdim=True).expand_as(truth)

    def error(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().flatten(1).sum(-1).mean())

    s1 = learners[first].average.first(points)
    return {
        "error": {name: error(s2, truth) for name, s2 in found.items()},
        "error_clean": {name: error(s2, other) for name, s2 in found.items()},
        "size": error(truth, torch.zeros_like(truth)),
        "s1_error": error(s1, smoothed.gradient),
        "s1_size": error(smoothed.gradient, torch.zeros_like(s1)),
        "seconds": {name: learner.seconds for name, learner in learners.items()},
    }


def cell(name: str, sigma: float, seed: int, quick: bool) -> dict[str, Any]:
    family = FAMILIES[name]
    if quick:
        family = family._replace(steps=200, batch=32, width=32)
    law = family.law(1000 + seed)
    learners, departs = train(family, law, sigma, seed)
    settings = {
        "steps": family.steps,
        "batch": family.batch,
        "width": family.width,
        "depth": DEPTH,
        "rank": family.rank,
        "published": family.published,
        "baseline": departs,
    }
    found = errors(learners, FIRST[2 if departs else 1], law, sigma, family.rank > 0)
    return {"family": name, "sigma": sigma, "seed": seed, **settings, **found}


def summary(rows: list[dict]) -> list[dict]:
    """Mean ± standard deviation over the seeds."""
    lines = []
    for key in sorted({(r["family"], r["sigma"]) for r in rows}):
        same = [r for r in rows if (r["family"], r["sigma"]) == key]
        line: dict[str, Any] = {"family": key[0], "sigma": key[1], "seeds": len(same)}
        for name in ROWS:
            line[name] = _mean([r["error"][name] for r in same if name in r["error"]])
        lines.append(line)
    return lines


def _mean(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{spread}"


def bars(rows: list[dict]) -> list[dict]:
    """The worst over cells of each ratio of means over seeds."""

    def ratio(wanted: str, over: str, families: str, sigma: float = math.inf) -> dict | None:
        cells: dict[tuple, list[dict]] = {}
        for r in rows:
            if families in r["family"] and r["sigma"] <= sigma and r["family"] != PAPERS:
                cells.setdefault((r["family"], r["sigma"]), []).append(r)
        if not cells:
            return None
        values = {
            key: statistics.mean(r["error"][wanted] for r in same)
            / statistics.mean(r["error"][over] if over != "size" else r["size"] for r in same)
            for key, same in cells.items()
        }
        worst = max(values, key=values.__getitem__)
        return {"measured": values[worst], "worst": f"{worst[0]}, sigma {worst[1]}"}

    auto, mix = "autodiff (dsm-vr)", "Gaussian mixture, "
    asked = [
        ("normals: default / autodiff", "<= 0.2", (DEFAULT, auto, "normal")),
        ("normals: default / size", "-", (DEFAULT, "size", "normal")),
        ("logistic: default / autodiff", "<= 1", (DEFAULT, auto, "logistic")),
        ("logistic 50-d: default / constant", "<= 0.5", (DEFAULT, "constant", "tic mixture, 50")),
        ("mixture 10-d: default / autodiff", "<= 0.7", (DEFAULT, auto, mix + "10")),
        ("mixture 50-d: default / autodiff", "<= 0.7", (DEFAULT, auto, mix + "50")),
        ("mixture 2-d: default / size", "<= 0.02", (DEFAULT, "size", "Gaussian mixture, 2-d")),
        ("all: default / d2sm-vr", "<= 1.05", (DEFAULT, "d2sm-vr", "")),
        ("sigma <= 0.1: default / d2sm-vr", "<= 0.5", (DEFAULT, "d2sm-vr", "", 0.1)),
    ]  # fmt: skip
    found = [(bar, limit, ratio(*which)) for bar, limit, which in asked]
    found.append(("paper's networks: d2sm-vr / autodiff", "0.70 in the paper", published(rows)))
    return [{"bar": bar, "asked": limit, **got} for bar, limit, got in found if got is not None]


def published(rows: list[dict]) -> dict | None:
    """The mean ratio of the paper's loss to autodiff, with the paper's networks."""
    ratios = [
        r["error"]["d2sm-vr"] / r["error"]["autodiff (dsm-vr)"]
        for r in rows
        if r["family"] == PAPERS
    ]
    return {"measured": statistics.mean(ratios)} if ratios else None


def draw(rows: list[dict]) -> None:
    """Errors over autodiff's, a line for each law and σ."""
    cells = list(dict.fromkeys((r["family"], r["sigma"]) for r in rows if r["family"] != PAPERS))
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.26 * len(cells)), layout="constrained")
    for name, (marker, colour) in MARKS.items():
        ratios = []
        for cell in cells:
            same = [r["error"] for r in rows if (r["family"], r["sigma"]) == cell]
            autodiff = statistics.mean(e["autodiff (dsm-vr)"] for e in same)
            ratios.append(statistics.mean(e[name] for e in same) / autodiff)
        places = [i for i, r in enumerate(ratios) if r > 1e-6]  # a normal's s2 is its constant
        axis.scatter([ratios[i] for i in places], places, marker=marker, color=colour, label=name)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set(xscale="log", xlabel="squared error of s2 over that of autodiff of s1")
    axis.set_yticks(range(len(cells)), [f"{f}, σ = {s}" for f, s in cells])
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / "score_accuracy.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rough answer in a minute or two")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of families' names")
    parser.add_argument("--sigma", type=float, default=None, help="one σ only")
    parser.add_argument(
        "--out", type=common.Path, default=common.RESULTS, help="folder of the JSON"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = [name for name in FAMILIES if any(part in name for part in args.only)]
    seeds = range(args.seed, args.seed + (1 if args.quick else args.seeds))
    for name in wanted:
        for sigma in FAMILIES[name].sigmas[: 1 if args.quick else None]:
            if args.sigma not in (None, sigma):
                continue
            for seed in seeds:
                row = cell(name, sigma, seed, args.quick)
                errors = {k: round(v, 4) for k, v in row["error"].items()}
                print(name, sigma, seed, errors, flush=True)
                rows = merged(args, row)
    common.table(summary(rows), ["family", "sigma", "seeds", *ROWS])
    common.write("score_accuracy", args, rows, bars(rows))
    if not args.quick:
        draw(rows)


def merged(args: argparse.Namespace, row: dict) -> list[dict]:
    """All rows known so far, with this one, kept on disk after every cell."""
    path = args.out / f"score_accuracy{'-quick' if args.quick else ''}.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    key = ("family", "sigma", "seed")
    rows = [r for r in rows if any(r[k] != row[k] for k in key)] + [row]
    rows.sort(key=lambda r: tuple(r[k] for k in key))
    common.write("score_accuracy", args, rows, bars(rows), quiet=True)
    return rows


if __name__ == "__main__":
    main()
