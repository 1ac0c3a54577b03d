"""This package estimates clean points from noisy ones, with the uncertainty of each."""

from ozaki.denoising.clean_points import denoise, find_sigma
from ozaki.denoising.posterior import Posterior

__all__ = ["Posterior", "denoise", "find_sigma"]
