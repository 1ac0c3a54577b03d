"""Clean points from noisy ones, and what is not known of them."""

from ozaki.denoising.clean_points import denoise, find_sigma
from ozaki.denoising.posterior import Posterior

__all__ = ["Posterior", "denoise", "find_sigma"]
