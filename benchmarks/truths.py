"""What posteriors are: exact moments, or those of long runs of NumPyro's NUTS, kept in a file.

    python -m benchmarks.truths [--seed N] [--only PART ...]

computes what `truths.json` lacks for the posteriors of `posteriors`, `everyday` and
`warmup`: 20 chains of NUTS, 5,000 draws each after 1,000 steps of warm-up, at target acceptance
0.95, with a dense metric for the regressions of `warmup`. A long run that has not converged (R-hat
above 1.01, or fewer than 2,000 effective draws of some parameter) is not kept. Normals and linear
regressions with flat priors need none.
"""

import argparse
import json
import warnings
from pathlib import Path
from typing import NamedTuple

import arviz as az
import numpy as np
import torch

from benchmarks import models, models_everyday, models_warmup
from benchmarks.peers import Size, numpyro_nuts
from benchmarks.problem import Problem, jax

az.utils.Numba.disable_numba()  # with it and NumPy 2.4, az.mcse raises

KEPT = Path(__file__).with_suffix(".json")
ALL = models.POSTERIORS | models_everyday.POSTERIORS | models_warmup.POSTERIORS
LONG, SHORT = Size(20, 1000, 5000), Size(20, 500, 1000)
WORST_R_HAT, FEWEST = 1.01, 2000


class Moments(NamedTuple):
    """Means and standard deviations by parameter, and their Monte Carlo standard errors."""

    mean: np.ndarray
    sd: np.ndarray
    mean_error: np.ndarray | float = 0.0
    sd_error: np.ndarray | float = 0.0

    @classmethod
    def of(cls, draws: np.ndarray) -> "Moments":
        """Of draws, (chains, draws, D)."""
        data = az.convert_to_dataset({"x": draws})
        errors = (az.mcse(data, method=method)["x"].values for method in ("mean", "sd"))
        return cls(draws.mean((0, 1)), draws.std((0, 1)), *errors)

    def agree(self, true: "Moments") -> bool:
        """Whether every parameter is as it should be; NaN in `true` is not looked at."""
        known = np.isfinite(true.mean)
        mean = 5 * np.hypot(self.mean_error, true.mean_error)
        sd = np.maximum(0.1 * true.sd, 5 * np.hypot(self.sd_error, true.sd_error))
        near = (abs(self.mean - true.mean) <= mean) & (abs(self.sd - true.sd) <= sd)
        return bool(near[known].all())


def mixing(draws: np.ndarray) -> tuple[float, float]:
    """The smallest bulk ESS and the largest R-hat; the halves of a lone chain stand for two."""
    parts = draws if len(draws) > 1 else np.stack(np.array_split(draws[0], 2))
    ess = az.ess(az.convert_to_dataset({"x": draws}))["x"].values
    r_hat = az.rhat(az.convert_to_dataset({"x": parts}))["x"].values
    return float(ess.min()), float(r_hat.max())


def mark(problem: Problem) -> list[float]:
    """Densities at two points against a third: a truth of another posterior is not taken."""
    first, *rest = (float(problem.potential(problem.split(u))) for u in problem.starts(3, 0))
    return [value - first for value in rest]


def long_run(problem: Problem, size: Size) -> Moments:
    """By NumPyro's NUTS.

    Raises:
        RuntimeError: it has not converged.
    """
    dense = problem.name in models_warmup.POSTERIORS
    options = {"target_accept_prob": 0.95, "dense_mass": dense}
    starts = problem.starts(size.chains, 10_000)
    draws = numpyro_nuts(problem, size, **options)(10_000, starts).draws
    ess, r_hat = mixing(draws)
    if r_hat > WORST_R_HAT or (ess < FEWEST and size == LONG):
        raise RuntimeError(
            f"{problem.name}: the long run has not converged (R-hat {r_hat:.3f}, {ess:.0f} "
            "effective draws); make it longer"
        )
    return Moments.of(draws)


def read() -> dict[str, dict]:
    return json.loads(KEPT.read_text()) if KEPT.exists() else {}


def truth(problem: Problem, seed: int, quick: bool = False) -> Moments | None:
    """Exact, or kept, or by a run, short if `quick`; None where there is none of these."""
    if problem.exact is not None:
        return Moments(*problem.exact)
    key, known = f"{problem.name}, seed {seed}", read()
    own = mark(problem)
    if key in known and np.allclose(known[key]["mark"], own, rtol=1e-6, atol=1e-6):
        return Moments(*(np.array(known[key][field]) for field in Moments._fields))
    if jax is None:
        return None
    if quick:
        return long_run(problem, SHORT)
    found = long_run(problem, LONG)
    entry = {"mark": own} | {f: np.asarray(v).tolist() for f, v in found._asdict().items()}
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    temporary = KEPT.with_suffix(".tmp")
    temporary.write_text(json.dumps(read() | {key: entry}, indent=None) + "\n")
    temporary.replace(KEPT)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the data")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of models' names")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.filterwarnings("ignore", module="arviz")
    for name, posterior in ALL.items():
        if any(part in name for part in args.only):
            try:
                truth(Problem(name, posterior, args.seed), args.seed)
            except RuntimeError as error:
                print(error)
            else:
                print(name, flush=True)


if __name__ == "__main__":
    main()
