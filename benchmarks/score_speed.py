"""What does s2 cost at a point? Learned, against derivatives of s1: time and memory.

    python -m benchmarks.score_speed [--quick] [--seed N]

Untrained networks of width 128 and depth 2, a batch of 10 points, float32, one thread. Contenders
of one dimension take turns over the repeats; a time is the median of processor seconds of one
evaluation, which other work on the machine disturbs less than it does the clock. Memory is the
peak of what one evaluation allocates through torch (its profiler's record), above what was there
before; the weights are not in it and have a column of their own.

Full s2: learned factors with s1, as `net(x)` gives them, or alone; the same with s1 applied to a
vector or multiplied out; against the Jacobian of s1 by a backward pass a dimension, by one batched
backward pass, and by vmap of jacrev and of jacfwd. The diagonal: learned with s1, against one
Hutchinson probe v ⊙ Jv, which is an unbiased guess, and against the exact one by a backward pass a
dimension.
"""

from typing import Any

import matplotlib
import torch
from torch import Tensor, nn

from benchmarks.common import FIGURES, Route, medians, options, peak_memory, table, write
from ozaki.scores.learned.mlp import Trunks
from ozaki.scores.learned.objectives import jacobian_product
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork

matplotlib.use("Agg")
from matplotlib import pyplot as plt

BATCH, WIDTH, DEPTH, SIGMA = 10, 128, 2, 0.2
FULL = ("loop of VJPs", "batched VJPs", "vmap(jacrev)", "vmap(jacfwd)")


def network(dim: int, rank: int) -> ScoreNetwork:
    """Frozen, as a trained one; its output layers are drawn, not zero."""
    trunk = Trunks(dim, order=2, rank=rank, width=WIDTH, depth=DEPTH)
    for part in (trunk.first, *trunk.rest):
        for layer in part.head.children():
            nn.init.normal_(layer.weight, std=0.1 / WIDTH**0.5)
    heads = Heads(2, rank)
    return ScoreNetwork(trunk, torch.Size([dim]), SIGMA, heads).eval().requires_grad_(False)


def weights(net: ScoreNetwork) -> float:
    """Megabytes of weights that are there for s2 alone."""
    assert isinstance(net.network, Trunks)
    return sum(p.numel() * p.element_size() for p in net.network.rest.parameters()) / 1e6


def looped(net: ScoreNetwork, x: Tensor, diagonal: bool = False) -> Tensor:
    """s2 by one backward pass a dimension, or its diagonal."""
    x = x.detach().requires_grad_()
    s1 = net.first(x)
    rows = []
    for i in range(x.shape[-1]):
        row = torch.autograd.grad(s1[:, i].sum(), x, retain_graph=True)[0]
        rows.append(row[:, i] if diagonal else row)
    return torch.stack(rows, 1)


def batched(net: ScoreNetwork, x: Tensor) -> Tensor:
    """s2 by one backward pass over all dimensions at once."""
    x = x.detach().requires_grad_()
    s1 = net.first(x)
    eye = torch.eye(x.shape[-1]).unsqueeze(1).expand(-1, *x.shape)
    return torch.autograd.grad(s1, x, eye, is_grads_batched=True)[0].movedim(0, 1)


def learned(net: ScoreNetwork, x: Tensor, what: str, v: Tensor) -> Any:
    """s2 out of the network: its factors, its product with v, or the matrix."""
    with torch.no_grad():
        s2 = net(x, None, (what != "factors alone", True)).s2
        assert s2 is not None
        if what == "times v":
            return s2.matmul(v)
        return s2.dense() if what == "dense" else s2


def measure(dim: int, ranks: tuple[int, ...], repeats: int) -> list[dict]:
    """The rows of one dimension."""
    x, v = torch.randn(BATCH, dim), torch.randn(BATCH, dim).sign()
    plain = network(dim, 0)
    routes: dict[str, Route] = {
        FULL[0]: lambda: looped(plain, x),
        FULL[1]: lambda: batched(plain, x),
        FULL[2]: lambda: torch.func.vmap(torch.func.jacrev(plain.first))(x),
        FULL[3]: lambda: torch.func.vmap(torch.func.jacfwd(plain.first))(x),
    }
    truth = routes[FULL[0]]()
    for name in FULL[1:]:
        torch.testing.assert_close(routes[name](), truth, rtol=1e-3, atol=1e-4)
    routes |= {
        "diagonal, learned": lambda: learned(plain, x, "factors", v),
        "diagonal, one probe": lambda: v * jacobian_product(plain.first, x, v),
        "diagonal, loop of VJPs": lambda: looped(plain, x, diagonal=True),
    }
    stored = {"diagonal, learned": weights(plain)}
    for rank in ranks:
        net = network(dim, rank)
        for what in ("factors", "factors alone", "times v", "dense"):
            name = f"rank {rank}, {what}"
            routes[name] = lambda net=net, what=what: learned(net, x, what, v)
            stored[name] = weights(net)
    seconds = medians(routes, repeats)
    fastest = min(seconds[name] for name in FULL)
    rows = []
    for name, route in routes.items():
        exact = seconds["diagonal, loop of VJPs" if name.startswith("diagonal") else FULL[0]]
        rows.append(
            {
                "dim": dim,
                "route": name,
                "milliseconds": seconds[name] * 1e3,
                "of_loop": exact / seconds[name],
                "of_fastest_full": fastest / seconds[name],
                "peak_mb": peak_memory(route) / 1e6,
                "s2_weights_mb": stored.get(name, 0.0),
            }
        )
    return rows


def draw(rows: list[dict]) -> None:
    """Milliseconds of each route that gives s2, by dimension."""
    dims = sorted({r["dim"] for r in rows})
    figure, axes = plt.subplots(1, len(dims), figsize=(8, 2.8), layout="constrained")
    for axis, dim in zip(axes, dims, strict=True):
        shown = [
            r
            for r in rows
            if r["dim"] == dim and (r["route"] in FULL or r["route"].endswith("factors"))
        ][::-1]
        colours = ["tab:grey" if r["route"] in FULL else "tab:blue" for r in shown]
        # points: a bar has no honest start on a logarithmic axis
        axis.scatter([r["milliseconds"] for r in shown], [r["route"] for r in shown], c=colours)
        axis.grid(axis="x", alpha=0.3)
        axis.set(xscale="log", xlabel="milliseconds, batch of 10", title=f"D = {dim}")
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / "score_speed.svg", metadata={"Date": None})


def main() -> None:
    args = options(__doc__)
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rows = measure(100, (20, 50), 7 if args.quick else 21)
    rows += measure(1024, (20, 50) if args.quick else (20, 50, 200, 1000), 3 if args.quick else 9)
    table(rows, list(rows[0]))
    if not args.quick:
        draw(rows)
    bars = []
    for what in ("factors", "factors alone"):
        found = next(r for r in rows if r["route"] == f"rank 20, {what}")
        for than, asked, key in (
            ("loop of VJPs", ">= 80", "of_loop"),
            ("fastest full autodiff", ">= 10", "of_fastest_full"),
        ):
            name = f"{than} / learned {what}, rank 20, 100-d"
            bars.append({"bar": name, "asked": asked, "measured": found[key]})
    write("score_speed", args, rows, bars)


if __name__ == "__main__":
    main()
