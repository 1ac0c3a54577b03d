"""The tolerances of the suite, each with the place that it comes from.

A number that is not named here has a comment beside it that says where it comes from. Where nothing
is said, `assert_close` and `approx` hold the roundings that are theirs by default.
"""

import torch

# -- chance ---------------------------------------------------------------------------------------

# |error| < 5 standard errors, which for a mean of draws is its MCSE. A normal error is beyond them
# once in 1.7 million checks, so that a thousand checks fail by chance in one run of 1,700.
MCSE = 5.0

# The ESS from which on an MCSE is itself to be trusted: Vehtari et al. (2021) ask for 400.
MINIMUM_ESS = 400

# -- rounding -------------------------------------------------------------------------------------

# Of values about 1 after a solve, an eigendecomposition or a second derivative, whose condition
# multiplies the resolution of the dtype (2e-16 and 1e-7): by up to 4e7 and 800.
ROUNDING = {torch.float64: 1e-8, torch.float32: 1e-4}


def rounding(dtype: torch.dtype, terms: int = 1) -> dict[str, float]:
    """`rtol` and `atol` of `assert_close` where so many roundings of a dtype add up."""
    return dict.fromkeys(("rtol", "atol"), terms * ROUNDING[dtype])


# -- learned scores -------------------------------------------------------------------------------

# Shares E‖error‖² / E‖truth‖² that a trained network leaves.
MIXTURE_SHARE = 0.02  # s1 and s2 of a mixture at one sigma: the bar that was asked for

# The others are not bars of anyone's: a few hundred steps of a small network are to leave far less
# than 1, which is the share of a score of 0. What they leave today, at
# most, stands beside all but the last; what is above it is room for another build of torch.
RANGE_SHARE = 0.05  # s1 at each level of a range: 0.02
RANGE_CURVATURE_SHARE = 0.15  # s2 there: 0.04
LOW_RANK_SHARE = 0.05  # a whole s2 of low rank: 0.001
HIGH_ORDER_SHARE = 0.1  # s3 and s4 in one dimension: 0.013
BASELINE_SHARE = 0.01  # of a normal, which the baseline holds from the start: 0.003
IMAGE_SHARE = 0.1  # s1 of smooth images, by a U-Net, against 0.5 and more of pixels alone
