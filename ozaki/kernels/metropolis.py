"""Metropolis corrections compute how much the log density changes over a step.

``exact`` needs a log density. ``line_integral`` needs scores only:
log p(y) − log p(x) ≈ ∫₀¹ s1(x + tΔ)·Δ dt with Δ = y − x. Where only a part of the law has a
density, that part is exact and the rest is a line integral. A line-integral chain keeps a small
bias: the rule is approximate, and a learned s1 need not be a gradient. `loop_integral` measures how
far s1 is from one.

Ozaki's steps are long, and a bad rule is a bias. RMS error of the log ratio on a two-mode mixture,
for steps of 0.3, 1 and 2 (its modes are 2 apart): trapezoid 0.06, 0.75, 1.5; Simpson 0.006, 0.23,
0.85; Lobatto's five points 0.0001, 0.04, 0.2; on each half of the way 1e-6, 0.002, 0.01, the rule
here.
"""

from typing import Literal

import torch
from torch import Tensor

from ozaki.foundation.shapes import Float
from ozaki.scores.base import Expansion, Score

Correction = Literal["none", "exact", "line_integral"]
Rule = Literal["lobatto", "trapezoid"]

# Lobatto's five points on each half of (0, 1): exact for s1 of degree 7 along each. In one batch
_OUTER = (3 / 28) ** 0.5
_HALF = (0.0, 0.5 - _OUTER, 0.5, 0.5 + _OUTER, 1.0)
NODES = (*(t / 2 for t in _HALF[1:]), *((1 + t) / 2 for t in _HALF[1:4]))
_WEIGHTS = (49 / 360, 8 / 45, 49 / 360)
WEIGHTS = (*_WEIGHTS, 1 / 20, *_WEIGHTS)
END = 1 / 40


def log_density_change(
    score: Score,
    x: Float[Tensor, "*batch dim"],
    y: Float[Tensor, "*batch dim"],
    at_x: Expansion,
    at_y: Expansion,
    rule: Rule = "lobatto",
) -> Float[Tensor, "*batch"]:
    """Log p(y) − log p(x): exact for the part with a density, by line integral for the rest.

    Args:
        score: evaluated at seven points between by Lobatto's rule, and only if a part has
            no density.
        x, y: points, (*batch, D).
        at_x, at_y: the expansions there.
        rule: "lobatto", or "trapezoid", which costs no further evaluation.
    """
    change = torch.zeros_like(x[..., 0])
    if at_x.log_density is not None and at_y.log_density is not None:
        change = at_y.log_density - at_x.log_density
    if at_x.has_density:
        return change
    delta = y - x
    ends = at_x.densityless_gradient + at_y.densityless_gradient
    if rule == "trapezoid":
        return change + (ends * delta).sum(-1) / 2
    between = score.densityless_gradient(torch.stack([x + t * delta for t in NODES]))
    mean = END * ends + sum(w * s for w, s in zip(WEIGHTS, between.unbind(0), strict=True))
    return change + (mean * delta).sum(-1)


def loop_integral(score: Score, corners: Float[Tensor, "3 *batch dim"]) -> Float[Tensor, "*batch"]:
    """∮ s1·dx around triangles, by Lobatto's rule on each side: 0 where s1 is a gradient.

    A measure of what the line-integral correction leaves undone for a learned score.

    Args:
        score: the score measured.
        corners: three points of each triangle, (3, *batch, D).
    """
    at = [score.expand(corner) for corner in corners]
    total = torch.zeros_like(corners[0, ..., 0])
    for i, j in ((0, 1), (1, 2), (2, 0)):
        total = total + log_density_change(score, corners[i], corners[j], at[i], at[j])
    return total
