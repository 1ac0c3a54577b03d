"""`anneal` draws from a noise-conditional estimator by lowering the noise from wide to narrow."""

import math
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from ozaki.foundation import validation
from ozaki.foundation.lazy import lazy
from ozaki.foundation.process import seed_from
from ozaki.foundation.torch_modes import ordinary
from ozaki.kernels import transition
from ozaki.kernels.langevin_kernel import ScoreLangevinKernel
from ozaki.kernels.metropolis import Correction
from ozaki.kernels.ozaki_kernel import ScoreOzakiKernel
from ozaki.kernels.transition import KernelSpec, StepOptions
from ozaki.scores.base import CurvatureKind, Score
from ozaki.scores.transformed import Whitened

optimize = lazy("scipy.optimize")

KERNELS = {"ozaki": ScoreOzakiKernel, "langevin": ScoreLangevinKernel}  # steps, acceptance sought
WIDEST = 1.5  # ratio of neighbouring levels, at most
# of the step size, in turn: points that the last level left far out reject every long step
SHARES = (1.0, 0.25, 1.0, 0.05)


def ladder(low: float, high: float, dim: int) -> list[float]:
    """Levels of noise from `high` to `low` whose neighbouring laws overlap in D dimensions.

    The ratio γ of neighbours solves Φ(√(2D)(γ − 1) + 3γ) − Φ(√(2D)(γ − 1) − 3γ) = ½, and is 1.5
    at most.

    Source: Song & Ermon, "Improved techniques for training score-based generative models" (2020),
    technique 2.

    Example:
        >>> [round(s, 3) for s in ladder(0.1, 0.3, 2)]
        [0.3, 0.208, 0.144, 0.1]
    """
    normal = NormalDist()

    def excess(ratio: float) -> float:
        shift = math.sqrt(2 * dim) * (ratio - 1)
        return normal.cdf(shift + 3 * ratio) - normal.cdf(shift - 3 * ratio) - 0.5

    ratio: Any = WIDEST if excess(WIDEST) > 0 else optimize.brentq(excess, 1.0, WIDEST)
    # rounding in the last digits must not add a level
    return spaced(low, high, max(1, math.ceil(math.log(high / low) / math.log(ratio) - 1e-9)))


def spaced(low: float, high: float, count: int) -> list[float]:
    """Space `count` levels from `high` to `low` by equal ratios; both ends are exact."""
    return [high * (low / high) ** (i / count) for i in range(count)] + [low]


@ordinary()
@torch.no_grad()
def anneal(
    estimator: Any,
    n: int,
    *,
    levels: int | None = None,
    steps: int = 20,
    proposal: str = "ozaki",
    metropolis: Correction = "line_integral",
    seed: int | None = None,
) -> Tensor:
    """Independent draws of the law smoothed by the lowest σ, walked down a ladder of noise.

    `n` points begin as draws of the widest law, data with that much noise; at each level they take
    `steps` steps of a chain that leaves its law as it is, up to the error of s1 and of the line
    integral. Modes that one chain at the lowest σ would never leave are so reached in their
    proportions. The step size is found as the points walk: all of them share it.

    The law of what is returned is that of ``estimator.at(low)``, low the lower end of its range of
    σ: the data's law smoothed by N(0, diag(``estimator.at(low).noise_scale``²)), not the data's
    own.

    Args:
        estimator: trained over a range of σ, `DSMTrainer(sigma=(low, high))`; high should be of the
            size of the spread of the data, where all modes are one.
        n: how many points.
        levels: of noise, evenly spaced on the logarithmic scale, both ends among them; None for
            neighbours that overlap (see `ladder`).
        steps: at each level.
        proposal: "ozaki", or "langevin", which needs no s2.
        metropolis: "line_integral", or "none" for unadjusted steps (of an acceptance of 0.9 had
            they been adjusted).
        seed: of all noise; None draws one from torch's global generator.

    Returns:
        The points, (n, *event_shape).

    Raises:
        ValueError: an estimator of one σ or of none, one without s2 for Ozaki's steps, or other
            arguments that cannot be used.

    Source: section 7 of Meng et al. (2021) names it as the next step; Song & Ermon, "Generative
    modeling by estimating gradients of the data distribution" (2019), algorithm 1.

    Example:
        >>> from ozaki import DSMTrainer
        >>> data = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> trainer = DSMTrainer(sigma=(0.2, 1.0), max_steps=5, seed=0)
        >>> anneal(trainer.fit(data), 10, levels=3, steps=2, seed=0).shape
        torch.Size([10, 2])
    """
    bounds = getattr(estimator, "sigma", None)
    if not isinstance(bounds, tuple) or not hasattr(estimator, "at"):
        raise ValueError(
            "estimator must be trained over a range of sigma, DSMTrainer(sigma=(low, high)), but "
            f"{type(estimator).__name__} has sigma {bounds!r}"
        )
    validation.count("n", n)
    validation.count("steps", steps)
    validation.choice("proposal", proposal, tuple(KERNELS))
    validation.choice("metropolis", metropolis, ("line_integral", "none"))
    low, high = bounds
    if levels is None:
        sigmas = ladder(low, high, estimator.dim)
    else:
        sigmas = spaced(low, high, validation.count("levels", levels, minimum=2) - 1)
    seed = validation.seed("seed", seed)
    kernel = KERNELS[proposal]
    target = kernel.target_acceptance[metropolis]
    top: Score = estimator.at(high)
    kind: CurvatureKind | None = top.default_curvature if proposal == "ozaki" else None
    if proposal == "ozaki" and kind is None:
        raise ValueError(
            "proposal='ozaki' needs s2, but this estimator was trained without; pass "
            "proposal='langevin'"
        )
    generator = torch.Generator(top.device)
    generator.manual_seed(seed_from(None) if seed is None else seed)
    x = top.start(n, generator)
    method = KernelSpec(kernel.proposal, kind, metropolis)
    # an unadjusted step only reports the ratio, and the trapezoid is free
    unadjusted = metropolis == "none"
    options = StepOptions(unadjusted, rule="trapezoid" if unadjusted else "lobatto")
    # in units of the noise: a law smoothed by σ has no curvature above 1/σ²
    units, size = top.noise_scale / high, 1.0  # pyright: ignore
    for sigma in sigmas:
        score = Whitened(estimator.at(sigma), units * sigma)
        state = transition.init(score, score.to_u(x), method)
        for k in range(steps):
            noise = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)
            uniform = torch.rand(n, dtype=x.dtype, device=x.device, generator=generator)
            share = SHARES[k % len(SHARES)]
            step_size = torch.as_tensor(size * share, dtype=x.dtype)
            state, info = transition.step(state, score, method, step_size, noise, uniform, options)
            if share == 1:
                seen = float(info.acceptance.nan_to_num(0.0).mean())
                size = min(max(size * math.exp(seen - target), 1e-6), 1e3)
        x = score.to_x(state.position)
    return x.reshape(n, *estimator.event_shape)
