"""This package holds the kernels: their steps, corrections, warm-up and Pyro interface."""

from ozaki.kernels.langevin_kernel import ScoreLangevinKernel
from ozaki.kernels.ozaki_kernel import ScoreOzakiKernel

__all__ = ["ScoreLangevinKernel", "ScoreOzakiKernel"]
