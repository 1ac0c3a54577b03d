"""Scores: of data, of models, of formulas."""

from ozaki.scores.analytic import GaussianMixtureScore, GaussianScore, LogisticMixtureScore
from ozaki.scores.autodiff import DistributionScore, LogDensityScore
from ozaki.scores.base import Expansion, Score

__all__ = [
    "DistributionScore",
    "Expansion",
    "GaussianMixtureScore",
    "GaussianScore",
    "LogDensityScore",
    "LogisticMixtureScore",
    "Score",
]
