"""What every benchmark shares: its options, where it ran, a table, and a JSON file."""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parent / "figures"
LIBRARIES = ("ozaki", "torch", "pyro-ppl", "numpy", "arviz")
LEAST = 0.02  # seconds that one timing lasts at least
Route = Callable[[], Any]
PEERS = ("jax", "numpyro", "blackjax", "nutpie", "pymc", "torchebm")  # optional


def options(description: str, *parents: argparse.ArgumentParser) -> argparse.Namespace:
    """--quick, --seed and --out, and what `parents` (made with add_help=False) add."""
    parser = argparse.ArgumentParser(
        description=description,
        parents=parents,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="a rough answer in a minute or two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """The machine and the versions the figures were taken with."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "system": platform.system(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        **{name: version(name) for name in LIBRARIES},
        **{name: version(name) for name in PEERS if find_spec(name)},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write(
    name: str, args: argparse.Namespace, rows: list[dict], bars: list[dict], *, quiet: bool = False
) -> None:
    """Print the bars and keep everything in `args.out`/name.json; a quick run has its own file."""
    for bar in [] if quiet else bars:
        print(f"{bar['bar']}: asked {bar['asked']}, measured {bar['measured']:.3g}")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{name}{'-quick' if args.quick else ''}.json"
    content = {
        "benchmark": name,
        "seed": args.seed,
        "quick": args.quick,
        "machine": machine(),
        "bars": bars,
        "rows": rows,
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)
    if not quiet:
        print(f"written to {path}")


def merged(
    name: str,
    args: argparse.Namespace,
    rows: list[dict],
    keys: tuple[str, str],
    order: Callable[[dict], Any],
    bars: Callable[[list[dict]], list[dict]],
) -> list[dict]:
    """Write all rows known so far, with these in place of those that have the same keys.

    Args:
        name: of the benchmark.
        args: its options.
        rows: new ones.
        keys: the columns that say which row is which.
        order: what rows are sorted by.
        bars: of all rows.

    Returns:
        All rows, in order.
    """
    path = args.out / f"{name}{'-quick' if args.quick else ''}.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    new = {tuple(row[key] for key in keys) for row in rows}
    kept = [row for row in known if tuple(row[key] for key in keys) not in new]
    found = sorted(kept + rows, key=order)
    write(name, args, found, bars(found), quiet=True)
    return found


def table(rows: list[dict], columns: list[str]) -> None:
    """Print rows under their column names."""
    cells = [[_text(row[c]) for c in columns] for row in rows]
    widths = [max([len(c), *(len(r[i]) for r in cells)]) for i, c in enumerate(columns)]
    for line in [columns, *cells]:
        print("  ".join(text.rjust(w) for text, w in zip(line, widths, strict=True)))


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def medians(routes: dict[str, Route], repeats: int) -> dict[str, float]:
    """Median processor seconds of one call of each route; they take turns."""
    calls, times = {}, {name: [] for name in routes}
    for name, route in routes.items():
        route()
        calls[name] = math.ceil(LEAST / max(_seconds(route, 1), 1e-6))
    for _ in range(repeats):
        for name, route in routes.items():
            times[name].append(_seconds(route, calls[name]))
    return {name: statistics.median(t) for name, t in times.items()}


def _seconds(route: Route, calls: int) -> float:
    began = time.process_time()
    for _ in range(calls):
        route()
    return (time.process_time() - began) / calls


def on(device: str) -> None:
    """Make tensors there from now on; on the CPU nothing is set, as a setting costs each call."""
    if device != "cpu":
        torch.set_default_device(device)


def now() -> float:
    """The clock, once a GPU has done what it was told."""
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(route: Route) -> int:
    """The most bytes that torch holds during one call, above those held before it."""
    route()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        route()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def highest_memory() -> float:
    """The most megabytes that this process has held in memory."""
    try:  # getrusage would begin at the parent's
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
