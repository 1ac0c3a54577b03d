"""What s2 of an image costs through a U-Net (Table 2 of the paper), against derivatives of s1.

    python -m benchmarks.images_cost [--quick | --gpu] [--seed N]

Untrained networks, ten images of 28 × 28, float32, one thread (or a GPU). Learned: s1 and the
factors of s2 from one pass. Derivatives, all through the trunk that the factors come from: a
backward pass a dimension, as the paper's; one batched backward pass; forward ones, eight at a time.
Each is the median of a few repeats in turns; a backward pass a dimension is timed over 49 of the
784 and told for all.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import images
from benchmarks.common import table
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork
from ozaki.scores.learned.unet import UNet

BATCH, SIDE, SIGMA = 10, 28, 0.5
DIM = SIDE * SIDE
RANKS = (20, 50, 200, DIM)  # the paper has 1000, more than a matrix of 784 can have
SOME = 49  # dimensions that are timed
TOGETHER = 7  # derivatives at once, where they are batched: more are no faster on two cores


def network(rank: int, preset: str, device: str) -> ScoreNetwork:
    """Frozen, as a trained one."""
    trunk = UNet(1, 2, rank, preset)
    net = ScoreNetwork(trunk, torch.Size([SIDE, SIDE]), SIGMA, Heads(2, rank, signed=False))
    return net.eval().requires_grad_(False).to(device)


def learned(net: ScoreNetwork, x: Tensor) -> object:
    """s1, and s2 as factors."""
    with torch.no_grad():
        return net(x).s2


def loop(net: ScoreNetwork, x: Tensor) -> None:
    """Rows of s2 by a backward pass each."""
    x = x.detach().requires_grad_()
    s1 = net.first(x)
    for i in range(SOME):
        torch.autograd.grad(s1[:, i].sum(), x, retain_graph=True)


def batched(net: ScoreNetwork, x: Tensor) -> None:
    """Rows of s2 by backward passes several at a time."""
    x = x.detach().requires_grad_()
    s1 = net.first(x)
    eye = torch.eye(DIM, device=x.device)[:SOME]
    for rows in eye.split(TOGETHER):
        seeds = rows.unsqueeze(1).expand(-1, *x.shape)
        torch.autograd.grad(s1, x, seeds, retain_graph=True, is_grads_batched=True)


def forward(net: ScoreNetwork, x: Tensor) -> None:
    """Columns of s2 by forward derivatives several at a time."""
    eye = torch.eye(DIM, device=x.device)[:SOME]

    def column(v: Tensor) -> Tensor:
        return torch.func.jvp(net.first, (x,), (v.expand_as(x),))[1]

    with torch.no_grad():
        for rows in eye.split(TOGETHER):
            torch.func.vmap(column)(rows)


def seconds(route: Callable[[], object], device: str) -> float:
    """Of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    route()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    args = images.options(__doc__ or "")
    torch.set_num_threads(1)
    device, preset = args.setting.device, args.setting.network
    x = torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(args.seed)).to(device)
    repeats = 3 if args.quick else 7
    autodiff = {"loop": loop, "batched": batched, "forward": forward}
    rows, bars = [], []
    for rank in RANKS:
        net = network(rank, preset, device)
        routes: dict[str, Callable[[], object]] = {
            "learned": lambda net=net: learned(net, x),
            **{name: lambda f=f, net=net: f(net, x) for name, f in autodiff.items()},
        }
        for route in routes.values():
            route()
        times: dict[str, list[float]] = {name: [] for name in routes}
        for _ in range(repeats):
            for name, route in routes.items():
                times[name].append(seconds(route, device))
        medians = {name: statistics.median(t) for name, t in times.items()}
        whole = {name: medians[name] * DIM / SOME for name in autodiff}
        fastest = min(whole.values())
        rows.append(
            {
                "rank": rank,
                "learned": medians["learned"],
                **whole,
                "loop / learned": whole["loop"] / medians["learned"],
                "fastest / learned": fastest / medians["learned"],
            }
        )
        for which, asked in (("loop", ">= 500" if rank == RANKS[0] else "as it comes"),):
            bars.append(
                {
                    "bar": f"rank {rank}: {which} of backward passes / learned",
                    "asked": asked,
                    "measured": rows[-1][f"{which} / learned"],
                }
            )
    table(rows, list(rows[0]))
    images.write("images_cost", args, rows, bars)


if __name__ == "__main__":
    main()
