"""Chain-steps per second of ozaki's kernels, compiled and not, beside those of other libraries.

    python -m benchmarks.throughput [--quick] [--seed N] [--out DIR] [--device cuda]

The law is ½N(m, I) + ½N(−m, I) with |m| = 1.5, in single precision on one thread; every step is
kept in memory. Within one dimension and number of chains the libraries take turns; medians. The
first call, compilation in it, is told apart. The second table holds an unadjusted Ozaki step on a
learned score, a network of width 128, against one compiled forward pass of that network.

With `--device cuda` ozaki's kernels and torchebm's walk on the GPU, BlackJAX's where JAX has it,
and Pyro's are left out; the JSON has its own name.

BlackJAX and torchebm are optional: pip install jax blackjax torchebm. Without them their rows are
left out.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import matplotlib.pyplot as plt
import torch
from pyro.infer.mcmc import HMC
from torch import Tensor, nn

from benchmarks.common import now, on, options, table, write
from ozaki.kernels import proposals
from ozaki.kernels.compiled import Compiled
from ozaki.kernels.engine import Engine
from ozaki.kernels.transition import KernelSpec
from ozaki.kernels.warmup import Track, Warmup
from ozaki.linalg import Diagonal
from ozaki.scores.base import Expansion, Score

try:
    import blackjax
    import jax
except ImportError:
    jax = None
try:
    import torchebm.core
    import torchebm.samplers
except ImportError:
    torchebm = None

STEP = 0.3
Timed = tuple[float, Callable[[], int]]  # seconds to compile, and chain-steps when called


class TwoModes(Score):
    """The law in closed form: s1 = m tanh(m·x) − x, diag s2 = m² sech²(m·x) − 1."""

    def __init__(self, dim: int):
        self.dim, self.event_shape, self.dtype = dim, torch.Size([dim]), torch.float32
        self.device = torch.get_default_device()
        self.mode = torch.zeros(dim)
        self.mode[0] = 1.5

    default_curvature = "diagonal"

    def expand(self, x: Tensor, curvature: Any = None) -> Expansion:
        along = (self.mode * x).sum(-1, keepdim=True)
        slope = torch.tanh(along)
        density = torch.nn.functional.softplus(-2 * along.abs()).squeeze(-1)
        density = density + along.abs().squeeze(-1) - x.square().sum(-1) / 2
        second = None
        if curvature is not None:
            second = Diagonal(self.mode.square() * (1 - slope.square()) - torch.ones_like(x))
        return Expansion(self.mode * slope - x, second, density)

    def start(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, self.dim, generator=generator)


class Network(Score):
    """A learned score as it is evaluated: two heads, s1 and diag s2, on one trunk of width 128."""

    def __init__(self, dim: int):
        self.dim, self.event_shape, self.dtype = dim, torch.Size([dim]), torch.float32
        self.device = torch.get_default_device()
        layers = [nn.Linear(dim, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(128, 2 * dim)).requires_grad_(False)

    default_curvature = "diagonal"

    def expand(self, x: Tensor, curvature: Any = None) -> Expansion:
        first, second = self.net(x).chunk(2, -1)
        bent = Diagonal(-1 - second.square()) if curvature is not None else None
        return Expansion(first - x, bent, None)

    def start(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, self.dim, generator=generator)


def ours(score: Score, method: KernelSpec, chains: int, steps: int, compiled: bool) -> Timed:
    """An engine without warm-up: what MCMC walks with after its own."""
    generator = torch.Generator(score.device).manual_seed(0)
    engine = Engine(
        score,
        Warmup((Track(method),), score.dim, steps=0, step_size=STEP),
        generator=generator,
        compiled=Compiled() if compiled else None,
    )
    engine.start(score.start(chains, generator))
    begun = now()
    engine.walk(steps)
    first = now() - begun

    def run() -> int:
        kept = torch.empty(steps, chains, score.dim)
        done = 0
        while done < steps:
            position = engine.walk(steps - done).position
            kept[done : done + len(position)] = position
            done += len(position)
        return steps * chains

    return first, run


def blackjax_mala(dim: int, chains: int, steps: int) -> Timed:
    mode = jax.numpy.zeros(dim).at[0].set(1.5)

    def log_density(x: Any) -> Any:
        along = (mode * x).sum()
        return jax.numpy.logaddexp(along, -along) - (x**2).sum() / 2

    # BlackJAX's step is Δ = h/2
    sampler = blackjax.mala(log_density, STEP / 2)
    key = jax.random.key(0)
    states = jax.vmap(sampler.init)(jax.random.normal(key, (chains, dim)))

    @jax.jit
    def walk(key: Any, states: Any) -> Any:
        def one(states: Any, key: Any) -> Any:
            states, _ = jax.vmap(sampler.step)(jax.random.split(key, chains), states)
            return states, states.position

        return jax.lax.scan(one, states, jax.random.split(key, steps))

    begun = time.perf_counter()
    walk(key, states)[1].block_until_ready()
    first = time.perf_counter() - begun

    def run() -> int:
        walk(key, states)[1].block_until_ready()
        return steps * chains

    return first, run


def torchebm_langevin(dim: int, chains: int, steps: int) -> Timed:
    mode = TwoModes(dim).mode

    class Energy(torchebm.core.BaseModel):
        def forward(self, x: Tensor) -> Tensor:
            along = (mode * x).sum(-1)
            return x.square().sum(-1) / 2 - torch.logaddexp(along, -along)

    sampler = torchebm.samplers.LangevinDynamics(Energy(), step_size=STEP / 2)
    start = torch.randn(chains, dim)

    def run() -> int:
        sampler.sample(x=start, n_steps=steps, return_trajectory=True)
        return steps * chains

    return 0.0, run


def pyro_hmc(dim: int, chains: int, steps: int) -> Timed:
    """One leapfrog step, one chain: Pyro's chains are processes."""
    score = TwoModes(dim)

    def potential(params: dict[str, Tensor]) -> Tensor:
        density = score.expand(params["x"]).log_density
        assert density is not None
        return -density

    kernel = HMC(potential_fn=potential, step_size=STEP**0.5, num_steps=1, adapt_step_size=False)
    kernel.initial_params = {"x": torch.zeros(dim)}
    kernel.setup(0)
    params = kernel.initial_params

    def run() -> int:
        at = params
        for _ in range(steps):
            at = kernel.sample(at)
        return steps

    return 0.0, run


LANGEVIN = KernelSpec(proposals.langevin, None, "exact")
OZAKI = KernelSpec(proposals.ozaki, "diagonal", "exact")
UNADJUSTED = KernelSpec(proposals.ozaki, "diagonal", "none")


def runs(dim: int, chains: int, steps: int) -> dict[str, Timed]:
    """Every library's, where it can."""
    score = TwoModes(dim)
    slow = max(2, min(steps, 50))  # what is not compiled needs fewer to be timed
    found = {
        "Langevin, Metropolis, compiled": ours(score, LANGEVIN, chains, steps, True),
        "Ozaki, Metropolis, compiled": ours(score, OZAKI, chains, steps, True),
        "Langevin, Metropolis": ours(score, LANGEVIN, chains, slow, False),
        "Ozaki, Metropolis": ours(score, OZAKI, chains, slow, False),
    }
    gpu = score.device.type == "cuda"
    if jax is not None and (not gpu or jax.default_backend() == "gpu"):
        found["BlackJAX MALA"] = blackjax_mala(dim, chains, steps)
    if torchebm is not None:
        found["torchebm Langevin"] = torchebm_langevin(dim, chains, slow)
    if chains == 1 and not gpu:
        found["Pyro HMC"] = pyro_hmc(dim, chains, slow)
    return found


def in_turn(timed: dict[str, Timed], repeats: int) -> dict[str, float]:
    """Chain-steps per second, medians of rounds in which each is timed once."""
    rates: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, (_, run) in timed.items():
            begun = now()
            steps = run()
            rates[name].append(steps / (now() - begun))
    return {name: median(seen) for name, seen in rates.items()}


def forward_pass(network: Network, chains: int, steps: int) -> Timed:
    """Compiled evaluations of the network alone, one after another."""
    forward = torch.compile(network.net, fullgraph=True, dynamic=False)
    x = torch.randn(chains, network.dim)
    with torch.no_grad():
        begun = time.perf_counter()
        forward(x)
        first = time.perf_counter() - begun

    def run() -> int:
        with torch.no_grad():
            for _ in range(steps):
                forward(x)
        return steps * chains

    return first, run


def draw(rows: list[dict], path: Any) -> None:
    """Rates by number of chains, a panel a dimension."""
    dims = sorted({row["dim"] for row in rows})
    figure, axes = plt.subplots(1, len(dims), figsize=(3.2 * len(dims), 3.4), sharey=True)
    for axis, dim in zip(axes, dims, strict=True):
        here = [row for row in rows if row["dim"] == dim]
        for i, name in enumerate(sorted({row["sampler"] for row in rows})):
            seen = sorted((r["chains"], r["per_second"]) for r in here if r["sampler"] == name)
            style = "-" if "compiled" in name else "--"
            axis.plot(*zip(*seen, strict=True), style, marker="o", color=f"C{i}", label=name)
        axis.set(xscale="log", yscale="log", title=f"D = {dim}", xlabel="chains")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("chain-steps per second")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=4, loc="lower center", frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = options(__doc__ or "", own)
    on(args.device)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    dims = (2, 100) if args.quick else (2, 10, 100, 1000)
    counts = (1, 100) if args.quick else (1, 100, 10_000)
    repeats = 3 if args.quick else 5
    rows: list[dict] = []
    for dim in dims:
        for chains in counts:
            steps = max(8, min(1000, 4_000_000 // (dim * chains)))
            timed = runs(dim, chains, steps)
            for name, rate in in_turn(timed, repeats).items():
                first = timed[name][0]
                row = {"dim": dim, "chains": chains, "sampler": name, "per_second": rate}
                rows.append({**row, "first_call": first})
            table(rows[-len(timed) :], ["dim", "chains", "sampler", "per_second", "first_call"])
    learned: list[dict] = []
    for chains in counts[1:]:
        network = Network(10)
        steps = max(20, 200_000 // chains)
        timed = {
            "Ozaki, unadjusted": ours(network, UNADJUSTED, chains, steps, True),
            "forward pass": forward_pass(network, chains, steps),
        }
        seen = in_turn(timed, repeats)
        ratio = seen["forward pass"] / seen["Ozaki, unadjusted"]
        learned.append({"dim": 10, "chains": chains, "step_over_forward_pass": ratio})
    table(learned, ["dim", "chains", "step_over_forward_pass"])

    def worst(one: str, other: str, few: bool = False) -> float:
        rate = {(r["dim"], r["chains"], r["sampler"]): r["per_second"] for r in rows}
        cells = [(d, c) for d in dims for c in counts if not few or c == 1]
        if any((d, c, other) not in rate for d, c in cells):
            return float("nan")
        return min(rate[d, c, one] / rate[d, c, other] for d, c in cells)

    pairs = [
        ("Langevin, Metropolis, compiled", "BlackJAX MALA", ">= 1", False),
        ("Ozaki, Metropolis, compiled", "BlackJAX MALA", ">= 0.7", False),
        ("Langevin, Metropolis, compiled", "torchebm Langevin", ">= 10", True),
    ]
    bars = [
        {
            "bar": f"{one} / {other}, worst cell" + ", one chain" * few,
            "asked": asked,
            "measured": worst(one, other, few),
        }
        for one, other, asked, few in pairs
    ]
    most = max(row["step_over_forward_pass"] for row in learned)
    asked = "<= 1.15"
    bars.append({"bar": "unadjusted Ozaki step / forward pass", "asked": asked, "measured": most})
    name = "throughput" + f"-{args.device}" * (args.device != "cpu")
    write(name, args, rows + learned, bars)
    if not args.quick and args.device == "cpu":
        draw(rows, args.out.parent / "figures" / "throughput.svg")


if __name__ == "__main__":
    main()
