"""`denoise` gives the mean and the covariance of the clean points behind noisy ones.

Given x̃ = x + noise and the score of the noisy law p_σ, the mean of x is x̃ + N s1 and its covariance
N + N s2 N, with N = diag(noise_scale²): one expansion of the score gives both.

A network trained over a range of σ can also be asked which σ its points have. Over points of a law
q, Hyvärinen's objective J(σ) = E[½‖s1‖² + tr s2] is, up to a constant of q, half the Fisher
divergence of q from p_σ: the least at the σ with which q was made, and a sum over all coordinates.

Reference:
    Efron, "Tweedie's formula and selection bias", JASA 2011;
    Hyvärinen, "Estimation of non-normalized statistical models by score matching", JMLR 2005;
    Meng et al., "Estimating High Order Gradients of the Data Distribution by Denoising",
    NeurIPS 2021, eq. 4 and 18.
"""

import math
import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ozaki.denoising.posterior import Posterior
from ozaki.foundation import validation
from ozaki.foundation.lazy import lazy
from ozaki.foundation.shapes import Float
from ozaki.scores.base import CurvatureKind, Score, is_smoothed

optimize = lazy("scipy.optimize")

LEVELS = 17  # values of σ at which J is evaluated before its minimum is narrowed down
POINTS = 512  # most points from which σ is found
FAR = 5.0  # points beyond so many times the reach of training points and noise have other units


@torch.no_grad()
def denoise(
    estimator: Any,
    noisy: Any,
    sigma: Any = None,
    *,
    curvature: CurvatureKind | str | None = "auto",
) -> Posterior:
    """The clean points behind noisy ones: their mean, covariance, components, draws.

    The mean is x̃ + N s1 (eq. 4), the covariance N + N s2 N (eq. 18), N = diag(noise_scale²). The
    noise must be what the score was smoothed by: normal, independent, of the standard deviation
    `noise_scale` (in the data's units).

    Args:
        estimator: a `ScoreEstimator`, or any score of a smoothed law, such as
            ``GaussianScore(...).smooth(sigma)``.
        noisy: one point or a batch of them, floating-point, (*batch, *event_shape); flat ones,
            (*batch, D), come back flat.
        sigma: of an estimator trained over a range, the σ to denoise at, in its standardised units,
            as `ScoreEstimator.at` takes it; None finds the one σ that all points fit best (see
            `find_sigma`), for which s2 is needed. Of a score that does not know its own noise,
            the noise's standard deviation in the data's units, a number or (D,).
        curvature: of the covariance: "auto" is the estimator's own kind, None leaves it out.

    Returns:
        A `Posterior`, in the dtype of `noisy`, of half precision in float32.

    Raises:
        ValueError: another shape, integers, values far outside of what was trained on, a σ outside
            the range or in conflict with the score's own, or none where one is needed.

    Source: Meng et al. (2021), eq. 4 and 18; Efron (2011), Tweedie's formula and selection bias.

    Example:
        >>> from ozaki.scores import GaussianScore
        >>> score = GaussianScore(torch.zeros(2), torch.eye(2)).smooth(1.0)
        >>> posterior = denoise(score, torch.tensor([2.0, -4.0]), sigma=1.0)
        >>> posterior.mean, posterior.variance
        (tensor([ 1., -2.]), tensor([0.5000, 0.5000]))
    """
    if not isinstance(estimator, Score) and not hasattr(estimator, "at"):
        raise ValueError(
            "estimator must be a ScoreEstimator or another score, but was a "
            f"{type(estimator).__name__}; a denoiser becomes one by ozaki.scores.DenoiserScore"
        )
    x, shape = _points(estimator, noisy)
    if isinstance(getattr(estimator, "sigma", None), tuple):
        sigma = find_sigma(estimator, x) if sigma is None else validation.positive("sigma", sigma)
    score, noise = _at(estimator, sigma)
    _check_units(estimator, x, noise)
    kind = score.default_curvature if curvature == "auto" else curvature
    s1, s2, *_ = score.expand(x, kind)  # pyright: ignore[reportArgumentType]
    noise = noise.to(x)
    covariance = None
    if s2 is not None:
        # N½ (I + N½ s2 N½) N½: the sum is formed where it is of order one
        covariance = s2.scale(noise).shift(1.0).scale(noise)
    more = getattr(score, "order", 2) > 2
    return Posterior(
        x + noise.square() * s1,
        covariance,
        noise,
        shape,
        sigma=getattr(score, "sigma", sigma) if hasattr(estimator, "at") else None,
        moments=partial(score.moments, x, central=True) if more else None,  # pyright: ignore
    )


@torch.no_grad()
def find_sigma(estimator: Any, noisy: Float[Tensor, "*batch dim"]) -> float:
    """The σ of an estimator's range that points fit best, by Hyvärinen's objective.

    One σ for all points: the more coordinates, the surer. On 200 points of a 6-d normal it is found
    within a few percent. It is as good as s1 and the trace of s2 are.

    Args:
        estimator: trained over a range of σ, with s2.
        noisy: points in the data's units, floating-point, (*batch, D); of many, 512 evenly spaced
            ones are read.

    Returns:
        σ in standardised units. A warning is given where it lies at an end of the range.

    Raises:
        ValueError: an estimator of one σ, or without s2; or points of whole numbers.
    """
    if not isinstance(getattr(estimator, "sigma", None), tuple):
        raise ValueError("estimator must be trained over a range of sigma, but has one sigma only")
    low, high = estimator.sigma
    if estimator.at(low).default_curvature is None:
        raise ValueError(
            "sigma must be given, as sigma=..., in standardised units from "
            f"{low:g} to {high:g}: it can be found from the points only with s2, and this "
            "estimator learned s1 alone"
        )
    check_floats("noisy", noisy)
    rows = validation.single(noisy).reshape(-1, noisy.shape[-1])
    rows = rows[:: -(-len(rows) // POINTS)]

    def objective(log_sigma: float) -> float:
        sigma = min(max(math.exp(log_sigma), low), high)
        score = estimator.at(sigma)
        units = (score.noise_scale / sigma).to(rows)
        s1, s2, *_ = score.expand(rows, score.default_curvature)
        first = (s1 * units).double().square().sum(-1) / 2
        return float((first + s2.scale(units).trace().double()).mean())

    ends = math.log(low), math.log(high)
    grid = torch.linspace(*ends, LEVELS, dtype=torch.float64).tolist()
    best = min(range(LEVELS), key=[objective(t) for t in grid].__getitem__)
    around = grid[max(best - 1, 0)], grid[min(best + 1, LEVELS - 1)]
    found: Any = optimize.minimize_scalar(objective, bounds=around, method="bounded")
    sigma = math.exp(found.x)
    for end, word in zip((low, high), ("less", "more"), strict=True):
        if abs(math.log(sigma / end)) < 0.01 * (ends[1] - ends[0]):
            warnings.warn(
                f"the noisy points fit best at sigma = {end:g}, an end of the range of training: "
                f"they may have {word} noise than the estimator knows; give sigma if it is known",
                stacklevel=5,  # the caller of `denoise`
            )
            return float(end)
    return sigma


def check_floats(name: str, noisy: Any) -> None:
    """Raise ValueError for an array of whole numbers, which are mostly the bytes of images."""
    dtype = str(getattr(noisy, "dtype", "")).removeprefix("torch.")
    if dtype.startswith(("int", "uint", "bool")):
        raise ValueError(
            f"{name} must be floating-point, in the units of the training data, but its dtype was "
            f"{dtype}; images learned as floats in [0, 1] become such by / 255, other whole "
            "numbers by .astype('float32')"
        )


def _points(estimator: Any, noisy: Any) -> tuple[Tensor, torch.Size]:
    """Flatten points to (*batch, D), and return the shape that they came in as well."""
    check_floats("noisy", noisy)
    x = validation.single(validation.floating("noisy", noisy)).to(estimator.device)
    event, dim = torch.Size(estimator.event_shape), estimator.dim
    shape = event if x.shape[max(0, x.ndim - len(event)) :] == event else torch.Size([dim])
    if x.ndim < 1 or x.shape[max(0, x.ndim - len(shape)) :] != shape:
        flat = f" or (*batch, {dim})" if len(event) > 1 else ""
        raise ValueError(
            f"noisy must have shape (*batch, {', '.join(map(str, event))}){flat}, as this "
            f"estimator was made for, but had {tuple(x.shape)}"
        )
    if not x.numel():
        raise ValueError(f"noisy must hold at least one point, but had shape {tuple(x.shape)}")
    return x.reshape(*x.shape[: x.ndim - len(shape)], dim), shape


def _at(estimator: Any, sigma: Any) -> tuple[Score, Tensor]:
    """Return the score at one σ, and the standard deviation of the noise, (D,)."""
    if hasattr(estimator, "at"):
        score = estimator if sigma is None else estimator.at(sigma)
        return score, score.noise_scale
    own = _own_noise(estimator)
    if sigma is None:
        if own is None:
            raise ValueError(
                f"sigma must be given for a {type(estimator).__name__}, which does not know how "
                "much noise it was smoothed by: its standard deviation in the data's units"
            )
        return estimator, own
    dim = estimator.dim
    try:
        given = torch.as_tensor(sigma, dtype=torch.float64).flatten()
    except (TypeError, ValueError, RuntimeError):
        given = torch.zeros(0)
    if len(given) not in (1, dim) or not bool((given > 0).all() & given.isfinite().all()):
        raise ValueError(
            f"sigma must be above 0 and finite, one number or {dim}, but was {sigma!r}"
        )
    noise = given.to(estimator.device, estimator.dtype).expand(dim)
    if own is not None and not torch.allclose(noise, own.to(noise), rtol=1e-3, atol=0):
        raise ValueError(
            f"sigma must be the noise of the score, noise_scale = {_short(own)}, but was "
            f"{_short(noise)}; leave it out, or make the score of that noise"
        )
    return estimator, noise


def _own_noise(score: Any) -> Tensor | None:
    """Return the standard deviation of a score's smoothing noise, (D,), if the score knows it."""
    return score.noise_scale if is_smoothed(score) else None


def _check_units(estimator: Any, x: Tensor, noise: Tensor) -> None:
    """Raise ValueError for points too far from the training data for noise to explain it."""
    points = getattr(estimator, "points", None)
    if points is None or len(points) < 2:
        return
    low, high = points.amin(0), points.amax(0)
    if estimator.standardisation.kind != "columns":  # a pixel may be constant
        low, high = low.amin(), high.amax()
    centre, reach = (low + high) / 2, (high - low) / 2 + 6 * noise
    far = (x.to(points) - centre).abs() > FAR * reach
    if bool(far.any()):
        value = float(x[far][0])
        raise ValueError(
            f"noisy must be in the units of the training data, which lay between "
            f"{float(low.amin()):.4g} and {float(high.amax()):.4g}, but {int(far.sum())} of its "
            f"{x.numel()} entries were too far from there for noise, the first {value:.4g}; "
            "intensities from 0 to 255 where [0, 1] was learned become noisy / 255"
        )


def _short(values: Tensor) -> str:
    few = ", ".join(f"{v:.4g}" for v in values[:4].tolist())
    return f"[{few}, …]" if len(values) > 4 else f"[{few}]"
