"""What every sampler must meet, with tolerances that come from the estimator."""

from importlib.metadata import version

import arviz as az
import numpy as np

from tests.kit.tolerances import MCSE, MINIMUM_ESS

ARVIZ = int(version("arviz").split(".")[0])


def moments_match(draws, mean, covariance, *, minimum_ess=MINIMUM_ESS, mcse=MCSE):
    """Mean and covariance of (chains, draws, D) within 5 MCSE of the truth, at ESS ≥ 400.

    The covariance is checked on the products (x − μ)_i (x − μ)_j, each with its own MCSE.
    """
    draws = np.asarray(draws, dtype=float)
    mean, covariance = np.asarray(mean, dtype=float), np.asarray(covariance, dtype=float)
    centred = draws - mean
    d = draws.shape[-1]
    checks = [(f"mean[{i}]", centred[..., i], 0.0) for i in range(d)]
    checks += [
        (f"covariance[{i},{j}]", centred[..., i] * centred[..., j], covariance[i, j])
        for i in range(d)
        for j in range(i, d)
    ]
    for name, values, truth in checks:
        ess = float(az.ess(values, method="mean"))
        assert ess >= minimum_ess, f"{name}: ESS {ess:.0f}"
        error = abs(values.mean() - truth) / (values.std() / ess**0.5)
        assert error < mcse, f"{name}: {values.mean():.4g} against {truth:.4g}, {error:.1f} MCSE"


def same_law(draws, reference, *, mcse=MCSE, minimum_ess=MINIMUM_ESS):
    """Means and second moments of two sets of draws, (chains, draws), agree within their MCSE."""
    for power in (1, 2):
        a, b = (np.asarray(x, dtype=float) ** power for x in (draws, reference))
        ea, eb = (float(az.ess(x, method="mean")) for x in (a, b))
        assert min(ea, eb) >= minimum_ess, (ea, eb)
        error = abs(a.mean() - b.mean()) / (a.var() / ea + b.var() / eb) ** 0.5
        assert error < mcse, f"power {power}: {a.mean():.4g} against {b.mean():.4g}"
