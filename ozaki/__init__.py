"""Second-order scores of data, Pyro models and formulas, and the chains that walk on them.

data → objective → estimator ─┐
Pyro model ───────────────────┼→ score → proposal (+ Metropolis) → MCMC → InferenceData → report
closed form ──────────────────┘
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ozaki.foundation import interruption as interruption  # first: the others take seconds

# isort: split
from ozaki import datasets, scores
from ozaki.denoising.clean_points import denoise
from ozaki.denoising.posterior import Posterior
from ozaki.kernels.langevin_kernel import ScoreLangevinKernel
from ozaki.kernels.ozaki_kernel import ScoreOzakiKernel
from ozaki.sampling.annealing import anneal
from ozaki.sampling.mcmc import MCMC
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.pyro_models.model import unconstrain
from ozaki.scores.pyro_models.site import ScoreDistribution

if TYPE_CHECKING:
    from ozaki.scores.learned.trainer import DSMTrainer

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
        return import_module("ozaki.scores.learned.trainer").DSMTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
