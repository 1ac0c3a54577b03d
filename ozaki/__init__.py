"""Second-order scores of data, Pyro models and formulas, and the chains that walk on them.

data → objective → estimator ─┐
Pyro model ───────────────────┼→ score → proposal (+ Metropolis) → MCMC → InferenceData → report
closed form ──────────────────┘
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ozaki import interruption as interruption  # first: the others take seconds

# isort: split
from ozaki import datasets, scores
from ozaki.annealing import anneal
from ozaki.denoising import denoise
from ozaki.kernels.pyro_kernel import ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.kernels.pyro_model import unconstrain
from ozaki.mcmc import MCMC
from ozaki.posterior import Posterior
from ozaki.scores.distribution import ScoreDistribution
from ozaki.scores.estimator import ScoreEstimator

if TYPE_CHECKING:
    from ozaki.scores.training import DSMTrainer

__version__ = "0.1.0"

__all__ = [
    "MCMC",
    "DSMTrainer",
    "Posterior",
    "ScoreDistribution",
    "ScoreEstimator",
    "ScoreLangevinKernel",
    "ScoreOzakiKernel",
    "anneal",
    "datasets",
    "denoise",
    "scores",
    "unconstrain",
]


def __getattr__(name: str) -> Any:
    # training brings Lightning, which who only samples need not wait for
    if name == "DSMTrainer":
        return import_module("ozaki.scores.training").DSMTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
