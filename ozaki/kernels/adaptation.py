"""What warm-up learns: when, how far to step, and in which metric (floor 3).

Three phases: a transient that walks to the typical set, windows in which the pooled covariance of
the chains becomes the metric and dual averaging finds the step size, and a last stretch for the
step size alone. All of it stands outside the transition.

Sources: dual averaging, Hoffman & Gelman, "The No-U-Turn Sampler" (2014), section 3.2; doubling
windows, the Stan reference manual, "Automatic parameter tuning".
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ozaki.kernels.proposals import concave
from ozaki.linalg import Dense, Diagonal, SymmetricOperator
from ozaki.shapes import Float

MAX_STEP_SIZE = 10.0
"""In the metric h = 10 forgets all but exp(−5) of where it was; on a Gaussian every h is accepted,
so without a cap dual averaging runs away."""


FLAT = 1e-4
"""The least curvature that counts, of the largest, where a metric is made of it."""


class Schedule(NamedTuple):
    """Which warm-up step does what.

    Attributes:
        transient: steps of phase (a).
        windows: the step at which each metric window ends.
        settled: from here on nothing adapts: an unadjusted chain forgets its corrected warm-up.
        total: all of warm-up.
    """

    transient: int
    windows: tuple[int, ...]
    settled: int
    total: int


def schedule(warmup_steps: int) -> Schedule:
    """Lay out `warmup_steps`: a transient (15%, at most 200), doubling windows, a last stretch.

    Example:
        >>> schedule(1000)
        Schedule(transient=150, windows=(212, 336, 900), settled=970, total=1000)
    """
    transient = min(200, math.ceil(0.15 * warmup_steps))
    last = warmup_steps - min(max(warmup_steps // 10, 50), warmup_steps // 4)
    size = max(20, (last - transient) // 12)
    ends: list[int] = []
    end = transient
    while end + 3 * size <= last:
        end += size
        ends.append(end)
        size *= 2
    if last - transient >= 20:
        ends.append(last)
    settled = warmup_steps - 3 * (warmup_steps - last) // 10
    return Schedule(transient, tuple(ends), settled, warmup_steps)


class DualAveraging(NamedTuple):
    """The state of Nesterov's dual averaging on log h."""

    log_step: float
    log_average: float
    error: float
    steps: int
    centre: float


def dual_averaging(step_size: float) -> DualAveraging:
    """Begin at `step_size`, drawn towards ten times it."""
    log_step = math.log(step_size)
    return DualAveraging(log_step, log_step, 0.0, 0, log_step + math.log(10))


def update(
    state: DualAveraging, acceptance: float, target: float, *, cap: float = MAX_STEP_SIZE
) -> DualAveraging:
    """Fold one mean acceptance in: the step grows while it is above `target`.

    Args:
        state: from `dual_averaging` or an earlier call.
        acceptance: mean over chains of min(1, ratio), in [0, 1].
        target: the acceptance sought.
        cap: the largest step size.
    """
    gamma, t0, kappa = 0.05, 10.0, 0.75
    steps = state.steps + 1
    weight = 1 / (steps + t0)
    error = (1 - weight) * state.error + weight * (target - acceptance)
    log_step = min(state.centre - error * math.sqrt(steps) / gamma, math.log(cap))
    fade = steps**-kappa
    average = fade * log_step + (1 - fade) * state.log_average
    return DualAveraging(log_step, average, error, steps, state.centre)


class JumpRecord:
    """Which step moves furthest: expected squared jumps of each rival proposal at h, h/2, …, h/16.

    Acceptance alone is blind where the law has several modes: a long Ozaki step is accepted because
    it lands in the mode it left. The jump sees the crossings. Every other warm-up step tries one of
    the alternatives, in turn.

    Args:
        rivals: how many proposals compete; the first is the kernel's own.
        handicap: a rival, which needs no curvature, wins if it moves further than this share of
            the kernel's own step.

    Source: Pasarica & Gelman, "Adaptively scaling the Metropolis algorithm using expected squared
    jumped distance" (2010).
    """

    HALVINGS = 4
    SHORTER = 1.1  # a shorter step must move clearly further: near the best the jump is flat
    ENOUGH = 100  # jumps of every choice, over the chains, to settle on one before the last window

    def __init__(self, rivals: int = 1, handicap: float = 0.9) -> None:
        self._handicap = handicap
        self._choices = [(r, k) for r in range(rivals) for k in range(self.HALVINGS + 1)]
        self._count = torch.zeros(len(self._choices), dtype=torch.int64)
        self._sum: Tensor | None = None  # of jumps, (choices, D)

    def trial(self, step: int) -> tuple[int, int]:
        """(rival, halvings of h) for warm-up step `step`: (0, 0) at even ones, else all in turn."""
        others = len(self._choices) - 1
        return self._choices[0 if step % 2 == 0 else 1 + (step // 2) % others]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was folded in."""
        found = {"count": self._count}
        return found if self._sum is None else {**found, "sum": self._sum}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self._count, self._sum = tensors["count"].cpu(), tensors.get("sum")

    def add(self, choice: tuple[int, int], jump: Float[Tensor, "dim"]) -> None:
        """Fold in the squared jump of one step, in the metric, (D,)."""
        if self._sum is None:
            self._sum = jump.new_zeros(len(self._choices), len(jump))
        place = self._choices.index(choice)
        self._sum[place] += jump
        self._count[place] += 1

    def enough(self, chains: int) -> bool:
        """Whether every choice was tried often enough to be judged now."""
        return int(self._count.min()) * chains >= self.ENOUGH

    def best(self) -> tuple[int, int]:
        """The (rival, halvings) whose slowest coordinate moves furthest for what it costs.

        In the metric all coordinates have the same spread, so their jumps compare.
        """
        if self._sum is None:
            return 0, 0
        slowest = self._sum.cpu().min(-1).values / self._count.clamp(min=1)
        earned = dict(zip(self._choices, slowest.tolist(), strict=True))
        own = max((c for c in self._choices if c[0] == 0), key=earned.__getitem__)
        own = own if earned[own] > self.SHORTER * earned[0, 0] else (0, 0)
        rival = max((c for c in self._choices if c[0]), key=earned.__getitem__, default=own)
        return rival if rival != own and earned[rival] > self._handicap * earned[own] else own


class PooledCovariance:
    """The covariance of all chains' positions about their common mean, by Welford's update.

    Args:
        dim: D.
        dense: whether to keep the whole matrix or its diagonal.
        like: a tensor of the dtype and device to work in.
    """

    def __init__(self, dim: int, dense: bool, like: Tensor):
        self.count = 0
        self.mean = like.new_zeros(dim, dtype=torch.float64)
        self._scatter = self.mean.new_zeros((dim, dim) if dense else (dim,))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was folded in."""
        count = torch.tensor(self.count)
        return {"count": count, "mean": self.mean, "scatter": self._scatter}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.count = int(tensors["count"])
        self.mean, self._scatter = (tensors[k].to(self.mean) for k in ("mean", "scatter"))

    def add(self, x: Float[Tensor, "chains dim"]) -> None:
        """Fold in one position a chain, (chains, D)."""
        x = x.to(self.mean)
        n = len(x)
        mean = x.mean(0)
        centred, shift = x - mean, mean - self.mean
        between = self.count * n / (self.count + n)
        if self._scatter.ndim == 1:
            self._scatter += centred.square().sum(0) + between * shift.square()
        else:
            self._scatter += centred.mT @ centred + between * torch.outer(shift, shift)
        self.mean = self.mean + shift * (n / (self.count + n))
        self.count += n

    def factor(self, dtype: torch.dtype) -> Float[Tensor, "..."] | None:
        """L with L Lᵀ the covariance, (D,) or lower triangular (D, D); None if it is not definite.

        A matrix is shrunk towards its own diagonal by (D + 5)/(n + D + 5): without units, and
        definite from the first window on.
        """
        if self.count < 2:
            return None
        covariance = self._scatter / (self.count - 1)
        dense = covariance.ndim == 2
        variance = covariance.diagonal() if dense else covariance
        if not bool((torch.isfinite(variance) & (variance > 0)).all()):
            return None
        if not dense:
            return variance.sqrt().to(dtype)
        dim = len(variance)
        weight = self.count / (self.count + dim + 5)
        shrunk = weight * covariance + (1 - weight) * torch.diag(variance)
        root, failed = torch.linalg.cholesky_ex(shrunk)
        return None if bool(failed) else root.to(dtype)


class MeanCurvature:
    """The mean, over steps and chains, of min(s2, 0): what a frozen kernel walks with."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What was folded in."""
        found = {"count": torch.tensor(self.count)}
        return found if self._sum is None else {**found, "sum": self._sum}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.count, self._sum = int(tensors["count"]), tensors.get("sum")

    def add(self, curvature: SymmetricOperator) -> None:
        """Fold in one curvature a chain."""
        fine, safe = _finite_concave(curvature)
        each = safe.diagonal() if isinstance(safe, Diagonal) else safe.dense()
        total = each[fine].sum(0)
        self._sum = total if self._sum is None else self._sum + total
        self.count += int(fine.sum())

    def average(self) -> Dense | Diagonal:
        """The mean.

        Raises:
            ValueError: no curvature was finite.
        """
        if self._sum is None or self.count == 0:
            raise ValueError(
                "frozen must be False here, but was True: the curvature was not finite at any "
                "point of warm-up, so that there is nothing to average"
            )
        mean = self._sum / self.count
        return Diagonal(mean) if mean.ndim == 1 else Dense((mean + mean.mT) / 2)


def precision_factor(curvature: SymmetricOperator, dense: bool) -> Float[Tensor, "..."] | None:
    """L with L Lᵀ = (−mean of min(s2, 0))⁻¹, a metric before there are draws to make one of.

    Directions of less than `FLAT` of the largest curvature count as having that much.

    Args:
        curvature: one a chain.
        dense: whether L is lower triangular, (D, D), or a diagonal, (D,).

    Returns:
        L, or None where no chain has a finite curvature, or one below 0.
    """
    fine, safe = _finite_concave(curvature)
    if not bool(fine.any()):
        return None
    mean = -(safe.dense() if dense else safe.diagonal())[fine].mean(0)
    values, vectors = torch.linalg.eigh(mean) if dense else (mean, None)
    largest = float(values.max())
    if not 0 < largest < math.inf:
        return None
    variance = 1 / values.clamp(min=FLAT * largest)
    if vectors is None:
        return variance.sqrt()
    root, failed = torch.linalg.cholesky_ex(vectors * variance @ vectors.mT)
    return None if bool(failed) else root


def _finite_concave(curvature: SymmetricOperator) -> tuple[Tensor, SymmetricOperator]:
    """Which chains have a finite curvature, and min(s2, 0), 0 for the others."""
    fine = torch.isfinite(curvature.frobenius_squared())

    def blank(t: Tensor) -> Tensor:
        return torch.where(fine.reshape(fine.shape + (1,) * (t.ndim - 1)), t, 0)

    return fine, concave(curvature.rebuild(tuple(blank(t) for t in curvature.tensors)))
