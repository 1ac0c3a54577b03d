"""`compare` ranks estimates of s2 by their loss on held-out data, without knowing the true s2."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ozaki.linalg import Dense, Diagonal, SymmetricOperator
from ozaki.scores.base import CurvatureKind, Score, is_smoothed
from ozaki.scores.learned import objectives
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.standardisation import rows_of

CONSTANT = "constant"
DENSE_UP_TO = 256  # dimensions at which D × D matrices are compared


class Candidate(NamedTuple):
    """An estimate of s2, with its held-out loss.

    Attributes:
        name: of the candidate.
        loss: the held-out residual-VR loss in units of the noise: E‖σ²(s2 − s2*)‖² up to a
            constant that all candidates share.
        excess: its loss less that of the best.
        error: the standard error of `excess`, over the same points and noise.
    """

    name: str
    loss: float
    excess: float
    error: float


class Comparison(tuple[Candidate, ...]):
    """Candidates, the best first; printed as a table."""

    @property
    def best(self) -> str:
        """The name of the candidate with the lowest loss."""
        return self[0].name

    def __str__(self) -> str:
        width = max(len("candidate"), *(len(c.name) for c in self))
        lines = [f"{'candidate':<{width}}  {'loss':>11}  {'above best':>11}  {'std. error':>11}"]
        lines += [
            f"{c.name:<{width}}  {c.loss:>11.4g}  {c.excess:>11.4g}  {c.error:>11.2g}" for c in self
        ]
        return "\n".join(lines)


@torch.no_grad()
def compare(
    estimator: ScoreEstimator,
    data: Any,
    others: Mapping[str, Score] | None = None,
    *,
    generator: torch.Generator | None = None,
    draws: int = 8192,
) -> Comparison:
    """Rank estimates of s2 by their held-out residual-VR loss.

    The loss is E‖s2 − s2*‖² up to a constant where s1 is accurate, so it ranks the head of an
    estimator, the Jacobian of its s1, other estimators and a constant alike, without the truth. A
    head that does not beat the constant has learned nothing about where the curvature changes.

    Args:
        estimator: whose s1 gives the target; its s2 is the candidate "head", the Jacobian of its
            s1 "autodiff", and the mean of its s2 "constant".
        data: clean points it has not seen, in the data's units, (N, *event_shape).
        others: further scores of the same smoothed law, by name.
        generator: for the noise.
        draws: the number of noisy pairs, at least; every row is used equally often.

    Returns:
        The candidates, the best first. Of an estimator with a low rank all entries of s2 are
        compared, up to 256 dimensions; else the diagonals.

    Raises:
        ValueError: an estimator without s2 or of a range of σ, a score of another shape or of
            other noise, or without the entries that are compared, or a name that is taken.

    Source: the control variate of eq. 33 of Meng et al. (2021), on the residual form of
    `docs/mathematics.md`.

    Example:
        >>> from ozaki.scores import compare
        >>> from ozaki.scores.learned.trainer import DSMTrainer
        >>> data = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> estimator = DSMTrainer(sigma=0.5, max_steps=20, seed=0).fit(data[:400])
        >>> sorted(c.name for c in compare(estimator, data[400:]))
        ['autodiff', 'constant', 'head']
    """
    noise = estimator.noise_scale
    if estimator.default_curvature is None:
        raise ValueError(
            "estimator must have learned s2, but it was trained with curvature=None or "
            "objective='dsm'; there is nothing to compare"
        )
    scores: dict[str, Score] = {"head": estimator, "autodiff": estimator.autodiff()}
    for name, score in (others or {}).items():
        if name in (*scores, CONSTANT):
            raise ValueError(f"others must not be named {name!r}, which is taken; rename it")
        _same_law(name, score, estimator)
        scores[name] = score
    kind: CurvatureKind = "diagonal"
    if estimator.rank and estimator.dim <= DENSE_UP_TO:
        kind = "low_rank"
    x = rows_of("data", data, estimator.event_shape).to(estimator.device, estimator.dtype)
    for name in others or {}:
        _check_curvature(name, scores[name], x[:1], kind)
    x = x.repeat(-(-draws // len(x)), 1)
    where = estimator.device if generator is None else generator.device
    z = torch.randn(x.shape, generator=generator, device=where, dtype=x.dtype).to(x.device)

    blocks = list(_blocks(estimator, x, z))
    sums = [_entries(estimator, b.points[0], kind, noise).sum(0) for b in blocks]
    mean = torch.stack(sums).sum(0) / len(x)
    losses = {
        name: torch.cat([_loss(_in_noise(score, b.points, kind, noise), b) for b in blocks])
        for name, score in scores.items()
    }
    losses[CONSTANT] = torch.cat([_loss(_constant(mean, b.points), b) for b in blocks])
    means = {name: float(loss.mean()) for name, loss in losses.items()}
    ranked = sorted(means, key=means.__getitem__)
    gaps = {name: losses[name] - losses[ranked[0]] for name in ranked}
    return Comparison(
        Candidate(name, means[name], float(gap.mean()), float(gap.std() / len(gap) ** 0.5))
        for name, gap in gaps.items()
    )


class _Block(NamedTuple):
    """A block of the pairs: x± and x, (3, n, D); the noise ±z, and s1 at x± in its units."""

    points: Tensor
    noise: Tensor
    s1: Tensor


def _blocks(estimator: ScoreEstimator, x: Tensor, z: Tensor) -> Iterator[_Block]:
    scale = estimator.noise_scale
    for clean, noise in zip(x.split(1024), z.split(1024), strict=True):
        pair, signed = objectives.pair(clean, noise, scale)
        s1 = estimator.expand(pair).gradient * scale
        yield _Block(torch.cat((pair, clean.unsqueeze(0))), signed.double(), s1.double())


def _in_noise(
    score: Score, points: Tensor, kind: CurvatureKind, noise: Tensor
) -> SymmetricOperator:
    """Evaluate s2 at the points in units of the noise, in which σ is 1."""
    operator = score.expand(points, _asked(score, kind)).curvature
    assert operator is not None
    return operator.astype(torch.float64).scale(noise.double())


def _asked(score: Score, kind: CurvatureKind) -> CurvatureKind:
    """Choose a curvature that the score has and that holds the entries of `kind`."""
    return kind if kind in ("diagonal", score.default_curvature) else "dense"


def _entries(score: Score, points: Tensor, kind: CurvatureKind, noise: Tensor) -> Tensor:
    operator = _in_noise(score, points, kind, noise)
    return operator.diagonal() if kind == "diagonal" else operator.dense()


def _constant(mean: Tensor, points: Tensor) -> SymmetricOperator:
    """Repeat one operator at every point."""
    values = mean.expand(*points.shape[:-1], *mean.shape)
    return Diagonal(values) if mean.ndim == 1 else Dense(values)


def _loss(operator: SymmetricOperator, block: _Block) -> Tensor:
    """Compute the residual-VR loss of each pair."""
    pair, clean = operator[:2], operator[2]
    loss = objectives.second_order("residual", block.s1, pair, block.noise, 1.0).mean(0)
    return loss + objectives.control("residual", block.s1[0], clean, block.noise[0], 1.0)


def _check_curvature(name: str, score: Score, point: Tensor, kind: CurvatureKind) -> None:
    """Raise ValueError unless the score has the entries that are compared, at one point."""
    try:
        score.expand(point, _asked(score, kind))
    except ValueError as cause:
        what, remedy = "the diagonal of s2", "leave it out"
        if kind != "diagonal":
            what = "all entries of s2, which the low rank of the estimator has compared"
            remedy += ", or compare(it, …) with this estimator among others, by the diagonals"
        raise ValueError(f"others[{name!r}] must give {what}, but {cause}; {remedy}") from cause


def _same_law(name: str, score: Score, estimator: ScoreEstimator) -> None:
    """Raise ValueError unless the score has the estimator's shape and noise."""
    if score.event_shape != estimator.event_shape:
        raise ValueError(
            f"others[{name!r}] must have event shape {tuple(estimator.event_shape)}, but had "
            f"{tuple(score.event_shape)}"
        )
    if not is_smoothed(score):
        return
    noise, own = score.noise_scale, estimator.noise_scale
    if not torch.allclose(noise.to(own), own, rtol=1e-3, atol=0):
        raise ValueError(
            f"others[{name!r}] must have the estimator's noise_scale, "
            f"{own.tolist()}, but had {noise.tolist()}; train both at one sigma"
        )
