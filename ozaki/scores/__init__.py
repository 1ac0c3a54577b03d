"""This package holds scores of data, of models and of formulas."""

from ozaki.scores.analytic import GaussianMixtureScore, GaussianScore, LogisticMixtureScore
from ozaki.scores.base import Expansion, Score
from ozaki.scores.comparison import compare
from ozaki.scores.denoiser import DenoiserScore
from ozaki.scores.density import DistributionScore, LogDensityScore
from ozaki.scores.moments import posterior_moments

__all__ = [
    "DenoiserScore",
    "DistributionScore",
    "Expansion",
    "GaussianMixtureScore",
    "GaussianScore",
    "LogDensityScore",
    "LogisticMixtureScore",
    "Score",
    "compare",
    "posterior_moments",
]
