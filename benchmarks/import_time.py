"""What `import ozaki` costs beside `import pyro`.

    python -m benchmarks.import_time [--quick] [--seed N] [--out DIR]

Each import is a process of its own; the two take turns, after one of each that is not counted. Wall
and processor time of the whole process, interpreter and all, less those of a process that imports
nothing, and the medians' ratio; `--seed` is not used.
"""

import os
import statistics
import subprocess
import sys
import time

from benchmarks.common import options, table, write

IMPORTS = {"nothing": "pass", "pyro": "import pyro", "ozaki": "import ozaki"}
REPEATS, ASKED = 15, 1.3


def spent(code: str) -> dict[str, float]:
    """Seconds of a process that runs `code`."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    after, ended = os.times(), time.perf_counter()
    used = after.children_user - before.children_user
    used += after.children_system - before.children_system
    return {"wall": ended - began, "processor": used}


def main() -> None:
    args = options(__doc__ or "")
    repeats = 3 if args.quick else REPEATS
    found: dict[str, list[dict[str, float]]] = {name: [] for name in IMPORTS}
    for turn in range(repeats + 1):
        for name, code in IMPORTS.items():
            seconds = spent(code)
            if turn:  # the first fills the disk's cache
                found[name].append(seconds)
    rows = [
        {
            "import": name,
            **{k: statistics.median(r[k] for r in runs) for k in ("wall", "processor")},
            "least wall": min(r["wall"] for r in runs),
            "most wall": max(r["wall"] for r in runs),
        }
        for name, runs in found.items()
    ]
    table(rows, list(rows[0]))
    none, pyro, ozaki = rows
    bars = [
        {
            "bar": f"{clock} time of `import ozaki` over `import pyro`",
            "asked": f"<= {ASKED}",
            "measured": (ozaki[clock] - none[clock]) / (pyro[clock] - none[clock]),
        }
        for clock in ("wall", "processor")
    ]
    write("import_time", args, rows, bars)


if __name__ == "__main__":
    main()
