"""Kernels: steps that walk on a score, their corrections, their warm-up and their Pyro face."""

from ozaki.kernels.langevin_kernel import ScoreLangevinKernel
from ozaki.kernels.ozaki_kernel import ScoreOzakiKernel

__all__ = ["ScoreLangevinKernel", "ScoreOzakiKernel"]
