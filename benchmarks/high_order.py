"""Orders 3 and 4: the learned diagonals against a constant and against autodiff.

    python -m benchmarks.high_order [--quick] [--seed N]

Random Gaussian mixtures in 1-d, 2-d and 5-d, 20,000 draws, σ = 0.3, 0.5 and 1 of the data's
spread, two laws each; `DSMTrainer(sigma, order=4, standardize="scalar")`, all else default. The
truth is the n-th derivative along each axis of the smoothed log density, by nested autodiff in
float64. Errors are E‖error‖²/E‖truth‖² at fresh draws of p_σ, and the same with ‖truth‖² about
its mean, where 1 is the best constant. Beside the learned diagonal of s_n stand the derivative of
the learned diagonal of s_{n−1} ("from_below") and the (n − 1)-th of the learned s1 ("from_s1").
"""

import time
from collections.abc import Callable
from functools import partial

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.common import RESULTS, options, table, write
from benchmarks.mixtures import mixture
from ozaki.scores.analytic import GaussianMixtureScore
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.trainer import DSMTrainer

MODES = {1: 2, 2: 3, 5: 4}
LEVELS = (0.3, 0.5, 1.0)
POINTS = 4096
COLUMNS = ["dim", "sigma", "law", "order", "learned", "from_below", "from_s1", "constant"]


def along(f: Callable[[Tensor], Tensor], i: int, order: int) -> Callable[[Tensor], Tensor]:
    """The derivative along axis i, `order` times, of f from points (n, D) to (n,)."""
    if order == 0:
        return f
    lower = along(f, i, order - 1)
    return lambda x: torch.func.grad(lambda p: lower(p).sum())(x)[:, i]


def truth(law: GaussianMixtureScore, x: Tensor, order: int) -> Tensor:
    """The diagonals of s_n of `law` at x, (n, D)."""
    columns = [along(lambda p: law.expand(p).log_density, i, order)(x) for i in range(law.dim)]
    return torch.stack(columns, -1)


def derived(estimator: ScoreEstimator, x: Tensor, order: int, times: int) -> Tensor:
    """The diagonals of s_n as derivatives of the learned diagonal of s_{n − times}, (n, D)."""
    net, units = estimator.network, estimator.standardisation

    def entry(u: Tensor, i: int) -> Tensor:
        out = net(u)
        scores = (out.s1, None if out.s2 is None else out.s2.diagonal(), *out.higher)
        return scores[order - times - 1][:, i]

    u = units.forward(x, estimator.dtype)
    columns = [along(partial(entry, i=i), i, times)(u) for i in range(x.shape[1])]
    return torch.stack(columns, -1).detach().to(x.dtype) / units.scale.to(x.dtype) ** order


def errors(dim: int, sigma: float, seed: int, steps: int | None) -> list[dict]:
    """One row an order."""
    law, g = mixture(dim, MODES[dim], seed), torch.Generator().manual_seed(seed + 1)
    data = law.sample(20_000, g)
    short = {} if steps is None else {"max_steps": steps}
    trainer = DSMTrainer(sigma, order=4, standardize="scalar", seed=seed, progress=False, **short)
    began = time.perf_counter()
    estimator = trainer.fit(data)
    seconds = time.perf_counter() - began
    exact = GaussianMixtureScore(law.means.double(), law.covariances.double(), law.weights.double())
    exact = exact.smooth(estimator.noise_scale.double())
    x = exact.sample(POINTS, g)
    rows = []
    for n, found in enumerate(estimator.derivatives(x), 1):
        want = truth(exact, x, n)
        about = (want - want.mean(0)).square().sum()
        squares = {"learned": (found - want).square().sum()}
        for name, times in (("from_below", 1), ("from_s1", n - 1)):
            if n == 1:
                squares[name] = squares["learned"]
            else:
                squares[name] = (derived(estimator, x, n, times) - want).square().sum()
        total = want.square().sum()
        row = {"dim": dim, "sigma": sigma, "law": seed, "order": n, "seconds": seconds}
        row |= {name: float(s / about) for name, s in squares.items()}
        row |= {f"{name}_absolute": float(s / total) for name, s in squares.items()}
        row |= {"constant": 1.0, "constant_absolute": float(about / total)}
        rows.append(row)
    return rows


def figure(rows: list[dict], name: str) -> None:
    """Error about the constant against σ, a panel a dimension."""
    dims = sorted({r["dim"] for r in rows})
    levels = sorted({r["sigma"] for r in rows})
    fig, axes = plt.subplots(1, len(dims), figsize=(8, 2.8), sharey=True, squeeze=False)
    for axis, dim in zip(axes[0], dims, strict=True):
        for order in (1, 2, 3, 4):
            for key, style in (("learned", "o-"), ("from_below", "x:")):
                if key != "learned" and order < 3:
                    continue
                means = []
                for level in levels:
                    at = [
                        r[key]
                        for r in rows
                        if (r["dim"], r["sigma"]) == (dim, level) and r["order"] == order
                    ]
                    means.append(torch.tensor(at).log().mean().exp().item())
                label = f"s{order}" if key == "learned" else f"d s{order - 1}"
                axis.loglog(levels, means, style, color=f"C{order - 1}", label=label, ms=4)
        axis.axhline(1, color="grey", lw=0.8)
        axis.set_xticks(levels, [f"{s:g}" for s in levels])
        axis.minorticks_off()
        axis.set_title(f"{dim}-d", fontsize=10)
        axis.set_xlabel("σ / spread")
    axes[0][0].set_ylabel("squared error / constant's")
    axes[0][-1].legend(fontsize=7, bbox_to_anchor=(1.02, 1), loc="upper left")
    fig.tight_layout()
    folder = RESULTS.parent / "figures"
    folder.mkdir(exist_ok=True)
    fig.savefig(folder / f"{name}.svg", metadata={"Date": None})


def main() -> None:
    args = options(__doc__)
    torch.set_num_threads(1)
    count, steps, dims = (1, 500, (1, 2)) if args.quick else (2, None, tuple(MODES))
    rows = []
    for i in range(count):
        for dim in dims:
            for sigma in LEVELS:
                rows += errors(dim, sigma, args.seed + i, steps)
                table(rows[-4:], COLUMNS)
                write("high_order", args, rows, [], quiet=True)  # a run that is cut keeps these
    table(rows, COLUMNS)
    table(
        rows,
        [
            "dim",
            "sigma",
            "law",
            "order",
            "learned_absolute",
            "from_below_absolute",
            "from_s1_absolute",
            "constant_absolute",
        ],
    )
    if not args.quick:
        figure(rows, "high_order")
    write("high_order", args, rows, [])


if __name__ == "__main__":
    main()
