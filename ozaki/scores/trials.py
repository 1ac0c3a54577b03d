"""These functions try out a user's function before it is trusted.

* `changes` finds out whether its values depend on its argument alone, without memory and chance;
* `untrue_curvature` finds out whether the second derivative by autograd is how its gradient
  changes. A gradient that was saved, detached or computed elsewhere is a constant to autograd,
  which then finds no curvature, or that of the rest alone, and does not warn.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float

POINTS, ENOUGH = 6, 3  # most points tried; so many, and most of the conclusive ones, must object
NEAR = 20  # points to take them from, and their spread
STEPS = 6  # of each difference, from a quarter of the spread down to what rounding leaves
ROUGH = 1e-5  # relative noise of a gradient, above which its differences are not read
RESOLVED = 0.05  # relative error of a difference that tells anything
SLACK = 1 / 3  # power of the rounding unit that two derivatives may differ by, relatively
CERTAIN = 10.0  # how many times its own error a difference must be off
ASYMMETRIC = 0.1  # of the terms of a product; no rounding that leaves digits does that

First = Callable[[Tensor], Tensor]
"""Points, (n, D) → s1 there, (n, D)."""

Product = Callable[[Tensor, Tensor], Tensor]
"""Points and directions, (n, D) each → Jᵀ v at each, J the Jacobian of s1, by autograd."""


def changes(
    evaluate: Callable[[Tensor], Tensor], points: Float[Tensor, "n dim"], together: bool = True
) -> str | None:
    """Say how the value of `evaluate` at one point changes; None where it does not.

    Args:
        evaluate: points, (n, D) → numbers, (n, …).
        points: at least two; the first is evaluated twice, after the others, and among them.
        together: whether several points are evaluated at once.

    Returns:
        A clause with the two numbers that should be one.
    """
    lone, others = points[:1], points[1:]
    first = evaluate(lone)
    again = evaluate(lone)
    evaluate(others)
    after = evaluate(lone)
    close = 32 * torch.finfo(first.dtype).eps
    for found, when in ((again, "at one point"), (after, "at one point, others in between,")):
        if not _same(found, first, close):
            return f"two evaluations {when} gave {_differ(first, found)}"
    if together:
        among = evaluate(points)[:1]
        if not agree(among, first):
            return f"one point gave {_differ(first, among)}, alone and among others"
    return None


def agree(a: Tensor, b: Tensor, rounding: float = 0.0) -> bool:
    """Say whether two routes gave the same numbers, up to rounding or `rounding` if larger."""
    if a.shape != b.shape:
        return False
    if not b.is_floating_point():
        return torch.equal(a, b)
    return _same(a, b, max(torch.finfo(b.dtype).eps ** 0.4, rounding), 1.0)


def _same(a: Tensor, b: Tensor, tolerance: float, least: float = 0.0) -> bool:
    finite = b.abs()[b.isfinite()]
    scale = least + (float(finite.max()) if finite.numel() else 0.0)
    return torch.allclose(a, b, rtol=0, atol=tolerance * scale, equal_nan=True)


def _differ(a: Tensor, b: Tensor) -> str:
    """Return the entry in which two tensors differ most."""
    a, b = a.flatten(), b.flatten()
    worst = int((a - b).abs().nan_to_num(math.inf).argmax())
    return f"{float(a[worst]):.6g} and {float(b[worst]):.6g}"


class _Evidence(NamedTuple):
    """The evidence on entries of J v at one point.

    Attributes:
        claim: what autograd gives.
        truth: how s1 changes.
        error: of `truth`; infinite where it tells nothing.
    """

    claim: Tensor
    truth: Tensor
    error: Tensor

    def objects(self) -> Tensor:
        """Which entries speak against the claim; kernels report those that are not finite."""
        claim, truth, error = self
        usual = torch.finfo(claim.dtype).eps ** SLACK * (claim.abs() + truth.abs())
        off = (claim - truth).abs() > usual + CERTAIN * error
        return error.isfinite() & off

    def confirms(self) -> Tensor:
        """Which entries speak for it."""
        fine = self.error.isfinite() & self.claim.isfinite() & ~self.objects()
        return fine | (self.claim == self.truth)


def no_curvature(what: str, complaint: str) -> str:
    """Return the message for a curvature that is asked for and untrue."""
    return (
        f"{what} must have derivatives that give a curvature where one is asked for, but "
        f"{complaint}; write it in torch operations, without a part that is saved, detached or "
        "computed elsewhere, or walk without curvature, by ScoreLangevinKernel"
    )


def untrue_curvature(
    first: First, product: Product, near: Float[Tensor, "n dim"], gradient: bool = True
) -> str | None:
    """Say what speaks against the second derivative by autograd; None where nothing does.

    Jᵀv by autograd is compared with (s1(x + h v) − s1(x − h v))/2h, entry by entry, for lengths h
    over several orders of magnitude. The differences between these lengths give the error of the
    best one, from truncation and from rounding. Where the error is too large, a point is not
    conclusive: beside a kink, where lengths contradict one another, or where s1 is rough on every
    scale. An entry is wrong where it is wrong at most of the conclusive points.

    Args:
        first: s1; it may be called with many points.
        product: its second derivative, as a kernel would read it.
        near: points near which chains begin; their spread is the unit of the steps.
        gradient: whether s1 is a gradient, so that J is symmetric; else uᵀJv alone is compared, for
            two u.

    Returns:
        A clause with the two numbers that should be one, or with the error it raised.
    """
    eps = torch.finfo(near.dtype).eps
    if eps > ROUGH:  # half precision is never conclusive
        return None
    generator = torch.Generator().manual_seed(7)

    def random(low: float, high: float) -> Tensor:
        signs = torch.randint(2, near.shape[1:], generator=generator) * 2.0 - 1
        size = torch.rand(near.shape[1:], generator=generator) * (high - low) + low
        return (signs * size).to(near)

    middle = near.median(0).values
    spread = (near - middle).abs().median(0).values
    spread = torch.where(spread > 0, spread, torch.where(middle == 0, 1.0, middle.abs()))
    found: list[_Evidence] = []
    for point in near[:POINTS]:
        x = point + 0.01 * spread * random(0.0, 1.0)  # users begin at special points
        v, w = spread * random(0.5, 1.5), spread * random(0.5, 1.5)
        try:
            here = _evidence(first, product, x, (v, w), None if gradient else spread)
        except _Underivable as error:
            return f"to take its {_order(gradient)} raises {error}"
        if here is not None:
            found.append(here)
        if len(found) > 1:
            against, in_favour = _votes(found)
            if bool((in_favour > against).all()):
                return None
    return _verdict(found, gradient)


class _Underivable(Exception):
    """Raised with the error of a derivative."""


def _evidence(
    first: First, product: Product, x: Tensor, along: tuple[Tensor, Tensor], unit: Tensor | None
) -> _Evidence | None:
    """Return the evidence of one point; None where s1 is not finite there.

    Args:
        first, product: as in `untrue_curvature`.
        x: the point, (D,).
        along: two directions.
        unit: None where s1 is a gradient; else that of the entries of x.
    """
    eps = torch.finfo(x.dtype).eps
    v, w = along
    steps = torch.logspace(math.log2(0.25), 0.4 * math.log2(eps), STEPS, 2.0).to(x)
    offsets = steps.unsqueeze(-1) * v
    ahead, behind = x + offsets, x - offsets
    s1 = first(torch.cat([x.unsqueeze(0), ahead, behind]))
    if not bool(s1[0].isfinite().all()):
        return None
    change = (s1[1 : STEPS + 1] - s1[STEPS + 1 :]) / (2 * steps.unsqueeze(-1))
    # where x is so large that a step is rounded, it is not the step that was meant
    meant = ((ahead - behind) / (2 * offsets) - 1).abs().amax(-1) < 0.1 * eps**SLACK
    change = torch.where(meant.unsqueeze(-1), change, torch.nan)
    largest = s1.abs().nan_to_num(0.0, 0.0, 0.0).amax(0)
    pulled = torch.stack(along) if unit is None else torch.stack(along) / unit.square()
    try:
        claim = product(x.expand(2, -1), pulled)
    except Exception as error:  # whatever a function raises
        text = str(error).strip().splitlines()
        raise _Underivable(f"{type(error).__name__}: {text[0] if text else ''}") from error
    if unit is not None:
        truth, error = _difference(change @ pulled.mT, pulled.abs() @ largest, steps)
        return _Evidence(claim @ v, truth, error)
    truth, error = _difference(change, largest, steps)
    terms = torch.stack([w * claim[0], v * claim[1]])
    one, other = terms.sum(-1)
    return _Evidence(
        torch.cat([claim[0], other.reshape(1)]),
        torch.cat([truth, one.reshape(1)]),
        # no rounding that leaves digits makes products so unlike
        torch.cat([error, (ASYMMETRIC / CERTAIN * terms.abs().sum()).reshape(1)]),
    )


def _difference(change: Tensor, largest: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best of differences over several lengths, and its error.

    Args:
        change: differences, (steps, m), the longest first; NaN where there is none.
        largest: the largest of the numbers whose differences they are, (m,).
        steps: their lengths, (steps,).
    """
    h = steps[1:].unsqueeze(-1)
    eps = torch.finfo(change.dtype).eps
    apart = (change[1:] - change[:-1]).abs()
    finite = apart.isfinite()
    shortest = finite & (finite.flip(0).cumsum(0).flip(0) <= 2)
    # of a smooth s1 what the two shortest steps differ by is rounding
    noise = torch.where(shortest, apart * h, 0).amax(0)
    error = torch.where(finite, apart.maximum(noise / h).maximum(4 * eps * largest / h), torch.inf)
    best = error.argmin(0, keepdim=True)
    truth, least = change[1:].gather(0, best), error.gather(0, best)
    clear = (error <= RESOLVED * change[1:].abs()) & (change[1:] != 0)
    usual = eps**SLACK * (change[1:].abs() + truth.abs())
    contradicts = clear & ((change[1:] - truth).abs() > usual + CERTAIN * (error + least))
    tells = clear.gather(0, best) & ~contradicts.any(0) & (noise <= ROUGH * largest)
    return truth[0], torch.where(tells, least, torch.inf)[0]


def _votes(found: list[_Evidence]) -> tuple[Tensor, Tensor]:
    """Count the points that speak against each entry, and those that speak for it."""
    against = torch.stack([e.objects() for e in found]).sum(0)
    return against, torch.stack([e.confirms() for e in found]).sum(0)


def _verdict(found: list[_Evidence], gradient: bool) -> str | None:
    """Return the entry that most points speak against, if there is one."""
    if len(found) < ENOUGH:
        return None
    against, in_favour = _votes(found)
    wrong = (against >= ENOUGH) & (against > in_favour)
    if not bool(wrong.any()):
        return None
    entry = int((wrong * against).argmax())
    one = next(e for e in found if bool(e.objects()[entry]))
    return (
        f"along some direction its {_order(gradient)} is {float(one.claim[entry]):.6g} by autograd "
        f"where {'its gradient' if gradient else 'it'} changes by {float(one.truth[entry]):.6g}"
    )


def _order(gradient: bool) -> str:
    return "second derivative" if gradient else "derivative"
