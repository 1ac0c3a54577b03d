"""How often chains are told not to be trusted: equal ones, and ones of which one is off.

Equal chains are four AR(1) chains of a normal, of 1,000 draws worth 400, 500, 1,000 or 4,000
(independent). Runs of fewer components are parts of one of 200. Of chains that differ, one is off
in one component by a standard deviation or by half of one; the others are not looked at, so that no
false alarm counts as finding it. Told is what the verdict does not trust for its R-hat, one above
1.01 that chance does not explain; beside it stands the rule without chance, R-hat above 1.01.

    python -m benchmarks.verdicts
"""

import argparse
import math
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
from scipy.signal import lfilter
from scipy.stats import binomtest

from benchmarks import common
from ozaki.diagnostics.agreement import Agreement, agreement, differ
from ozaki.diagnostics.checks import RHAT_WARN

COMPONENTS = (1, 5, 20, 90, 200)
CHAINS, DRAWS = 4, 1000
WORTH = (400, 500, 1000, CHAINS * DRAWS)
OFF = (1.0, 0.5)
COLUMNS = ["chains", "off", "worth", "components", "runs", "told", "low", "high", "plain"]


def ar1(rng: np.random.Generator, chains: int, draws: int, count: int, worth: float) -> np.ndarray:
    """(count, chains, draws) of a stationary AR(1) process of variance 1."""
    tau = chains * draws / worth
    rho = (tau - 1) / (tau + 1)
    noise = rng.standard_normal((count, chains, draws))
    noise[..., 1:] *= math.sqrt(1 - rho**2)
    return lfilter([1], [1, -rho], noise)


def told(found: Agreement, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Of runs of so many components, by both rules."""
    high = found.rhat > RHAT_WARN
    beyond = differ(found, components, RHAT_WARN)
    runs = len(high) // components

    def some(which: np.ndarray) -> np.ndarray:
        return which[: runs * components].reshape(runs, components).any(1)

    return some(beyond), some(high)


def row(
    rules: list[tuple[np.ndarray, np.ndarray]], off: float, worth: int, draws: int, components: int
) -> dict[str, Any]:
    ours, plain = (np.concatenate(found) for found in zip(*rules, strict=True))
    low, high = binomtest(int(ours.sum()), len(ours)).proportion_ci(method="wilson")
    return {
        "chains": f"{CHAINS} × {draws}",
        "off": off,
        "worth": worth,
        "components": components,
        "runs": len(ours),
        "told": float(ours.mean()),
        "low": float(low),
        "high": float(high),
        "plain": float(plain.mean()),
    }


def equal(task: tuple[int, list[int], int]) -> list[dict[str, Any]]:
    """Four chains of one law: what they are worth, a seed, how many runs."""
    worth, seed, runs = task
    rng = np.random.default_rng(seed)
    rules: dict[int, list[Any]] = {components: [] for components in COMPONENTS}
    for _ in range(runs):
        found = agreement(list(ar1(rng, CHAINS, DRAWS, max(COMPONENTS), worth)))
        for components in COMPONENTS:
            rules[components].append(told(found, components))
    return [row(rules[components], 0.0, worth, DRAWS, components) for components in COMPONENTS]


def differing(rng: np.random.Generator, runs: int) -> Iterator[dict[str, Any]]:
    """One of four chains is off in one of the components."""
    worth = min(WORTH)
    for draws in (DRAWS, worth // CHAINS):
        for off in OFF:
            x = ar1(rng, CHAINS, draws, runs, worth)
            x[:, 1] += off
            found = agreement(list(x))
            high = found.rhat > RHAT_WARN
            for components in COMPONENTS:
                rule = differ(found, components, RHAT_WARN), high
                yield row([rule], off, worth, draws, components)


def markdown(rows: list[dict[str, Any]]) -> None:
    """The table of the documentation."""
    print("| of 100 runs told | components | " + " | ".join(map(str, COMPONENTS)) + " |")
    print("|---|---|" + "---|" * len(COMPONENTS))
    for key in dict.fromkeys((r["off"], r["worth"], r["chains"]) for r in rows):
        few = [r for r in rows if (r["off"], r["worth"], r["chains"]) == key]
        off, worth, chains = key
        what = f"one off by {off:g} sd" if off else "equal"
        for rule in ("told", "plain"):
            cells = [
                f"{100 * r['told']:.1f} ({100 * r['low']:.1f}–{100 * r['high']:.1f})"
                if rule == "told"
                else f"{100 * r['plain']:.0f}"
                for r in few
            ]
            name = "beyond chance" if rule == "told" else "R-hat > 1.01"
            print(f"| {what}, {chains} worth {worth} | {name} | " + " | ".join(cells) + " |")


def bars(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    false = max(r["told"] for r in rows if not r["off"])
    whole = min(r["told"] for r in rows if r["off"] == 1)
    half = min(r["told"] for r in rows if r["off"] == 0.5 and r["components"] == 1)
    return [
        {"bar": "equal chains told, at most", "asked": 0.02, "measured": false},
        {"bar": "off by one sd told, at least", "asked": 0.95, "measured": whole},
        {"bar": "off by half an sd told, one component", "asked": 0.8, "measured": half},
    ]


def main(args: argparse.Namespace) -> None:
    """Print the table, and write every row."""
    runs = 20 if args.quick else 500
    tasks = [(worth, [args.seed, worth], runs) for worth in WORTH]
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        found = workers.map(equal, tasks)
        rows = list(differing(np.random.default_rng(args.seed), 10 * runs))
        rows += [row for rows in found for row in rows]
    common.table(rows, COLUMNS)
    markdown(rows)
    common.write("verdicts", args, rows, bars(rows))


if __name__ == "__main__":
    main(common.options(__doc__ or ""))
