"""A trajectory is several steps that share one momentum, corrected once at its end.

Give the diffusion a momentum p and linearise its drift, as Ozaki does, about a normal of precision
ω² in each direction. One step of angle θ, cos θ = exp(−h ω²/2), is

    p ← p + k s1(x);   x ← x + d p;   p ← p + k s1(x)      k = tan(θ/2)/ω,  d = sin(θ)/ω

It is reversible, keeps volume, costs one gradient, and is exact on that normal at any θ. With
ω → 0 it is the leapfrog step of length √h. With p fresh at every step it is the single step of the
same h: `ornstein_uhlenbeck` in a metric (ω = 1), `langevin` (ω = 0). It is the turn of (x − m, p)
by θ between two kicks of tan(θ/2) times the rest force s1 + ω²(x − m): m drops out.

Everything is a flat loop over gradients. What each turn of it begins or ends stands in its data.

Source: the splitting of Hamiltonian Monte Carlo about a Gaussian, Shahbaba et al., "Split
Hamiltonian Monte Carlo" (2014); refreshing and accepting, Duane et al., "Hybrid Monte Carlo"
(1987).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ozaki.foundation.shapes import Bool, Float
from ozaki.kernels.metropolis import log_density_change
from ozaki.kernels.noise import NoiseBlock
from ozaki.kernels.transition import (
    DIVERGENCE,
    Info,
    State,
    StepOptions,
    Trail,
    finite,
    select,
)
from ozaki.scores.base import Score
from ozaki.scores.transformed import pulled, pushed

MOST = 1024  # gradients of one trajectory


class Splitting(NamedTuple):
    """The lengths of a step's kicks and of its drift, each () or (chains, 1) or (…, D)."""

    kick: Tensor
    drift: Tensor


class Flight(NamedTuple):
    """Chains on their way along a trajectory.

    Attributes:
        now: where each chain is.
        momentum: p, in the metric, (chains, D).
        start: where the trajectory began.
        kinetic: ½|p|² there, (chains,).
        gain: what a line integral says log p has changed by since, (chains,); 0 of a density.
        lost: whether something on the way was not finite, (chains,).
    """

    now: State
    momentum: Tensor
    start: State
    kinetic: Tensor
    gain: Tensor
    lost: Tensor


def splitting(step_size: Float[Tensor, "..."], curvature: float | Tensor = -1.0) -> Splitting:
    """The kick k = tan(θ/2)/ω and drift d = sin(θ)/ω of an h, where cos θ = exp(−h ω²/2).

    Args:
        step_size: h > 0.
        curvature: −ω², at most 0: −1 in the metric of a law's own covariance, 0 for leapfrog.

    Example:
        >>> kick, drift = splitting(torch.tensor(0.01), 0.0)  # leapfrog of length 0.1
        >>> round(float(kick), 4), round(float(drift), 4)
        (0.05, 0.1)
    """
    square = torch.as_tensor(-curvature, dtype=step_size.dtype, device=step_size.device)
    flat = square * step_size < 1e-12
    omega = torch.where(flat, torch.ones_like(square), square).sqrt()
    turned = torch.exp(-step_size * omega.square() / 2)
    lost = -torch.expm1(-step_size * omega.square() / 2)  # 1 − cos θ
    kick = (lost / (1 + turned)).sqrt() / omega
    drift = (lost * (1 + turned)).sqrt() / omega
    root = step_size.sqrt()
    return Splitting(torch.where(flat, root / 2, kick), torch.where(flat, root, drift))


def angle(step_size: float, rotating: bool) -> float:
    """The time θ of one step of h: arccos(exp(−h/2)) where it rotates, √h of leapfrog.

    Args:
        step_size: h > 0.
        rotating: whether ω = 1, as in the metric of a law's covariance, or 0.

    Example:
        >>> round(angle(10.0, True), 3), round(angle(0.04, False), 3)
        (1.564, 0.2)
    """
    if not rotating:
        return math.sqrt(step_size)
    # 1 − cos θ = 2 sin²(θ/2), which keeps the digits of a small h
    return 2 * math.asin(math.sqrt(-math.expm1(-step_size / 2) / 2))


def steps_of(time: float, angle: float, index: int) -> int:
    """How many steps the trajectory of this index takes: ⌈2 r T/θ⌉, at least 1.

    r in (0, 1) is the van der Corput sequence in base 2 at the index, the same for all chains. It
    knows nothing of the state, which keeps the chain exact; that n varies keeps periodic laws from
    coming back to where they were.

    Args:
        time: T, the mean angle of a trajectory; 0 for single steps.
        angle: θ of a step.
        index: of the trajectory.

    Example:
        >>> [steps_of(1.0, 0.25, i) for i in range(4)]
        [4, 2, 6, 1]
    """
    if not time:
        return 1
    r, place, i = 0.0, 0.5, index + 1
    while i:
        r += place * (i & 1)
        i >>= 1
        place /= 2
    if 2 * r * time >= MOST * angle:  # an angle may be next to nothing
        return MOST
    return max(1, math.ceil(2 * r * time / angle))


def depart(state: State, momentum: Float[Tensor, "chains dim"]) -> Flight:
    """Begin a trajectory with a fresh momentum."""
    zero = torch.zeros_like(momentum[:, 0])
    return Flight(state, momentum, state, 0.5 * momentum.square().sum(-1), zero, zero > 0)


def advance(
    flight: Flight,
    score: Score,
    factor: Float[Tensor, "..."] | None,
    split: Splitting,
    options: StepOptions,
) -> Flight:
    """Take one step of every trajectory: kick, drift, one gradient, kick.

    A chain whose point, density or gradient is not finite is lost: it waits where it began.

    Args:
        flight: where the trajectories are.
        score: the law, in its own coordinates.
        factor: L of the metric, (D,) or (D, D); None for the identity.
        split: the lengths of kicks and drift.
        options: of which the rule of line integrals is read.
    """
    x, at = flight.now
    half = flight.momentum + split.kick * pulled(at.gradient, factor)
    y = x + pushed(split.drift * half, factor)
    reachable = torch.isfinite(y).all(-1) & ~flight.lost
    y = torch.where(reachable.unsqueeze(-1), y, flight.start.position)
    there = score.expand(y)
    fine = reachable & finite(y, there)
    gain = flight.gain
    if not at.has_density:  # of a density the ends are enough
        rough = log_density_change(score, x, y, at, there, options.rule)
        gain = gain + torch.where(fine, rough, 0)
    there = select(fine, there, flight.start.expansion)
    y = torch.where(fine.unsqueeze(-1), y, flight.start.position)
    momentum = half + split.kick * pulled(there.gradient, factor)
    return flight._replace(now=State(y, there), momentum=momentum, gain=gain, lost=~fine)


def arrive(
    flight: Flight, uniform: Float[Tensor, "chains"], options: StepOptions
) -> tuple[State, Info]:
    """End the trajectories: accept each with min(1, exp(log p(y) − log p(x) − ½|p'|² + ½|p|²)).

    Args:
        flight: where they are.
        uniform: on (0, 1), (chains,).
        options: whether to accept all, or what went uphill.

    Returns:
        Where the chains are now, and what the trajectories did.
    """
    (y, there), start = flight.now, flight.start
    change = flight.gain
    if there.has_density:
        change = change + there.log_density - start.expansion.log_density  # pyright: ignore
    log_ratio = change + flight.kinetic - 0.5 * flight.momentum.square().sum(-1)
    log_ratio = torch.where(flight.lost | log_ratio.isnan(), -torch.inf, log_ratio)
    climbed = (change > 0) & options.uphill
    accepted = ((uniform.log() < log_ratio) | climbed | options.unadjusted) & ~flight.lost
    acceptance = log_ratio.clamp(max=0).exp()
    info = Info(
        acceptance=acceptance,
        accepted=accepted,
        diverging=log_ratio < DIVERGENCE,
        broken=log_ratio.isneginf(),
        modified=torch.zeros_like(acceptance),
        rise=torch.where(accepted, change, 0),
    )
    position = torch.where(accepted.unsqueeze(-1), y, start.position)
    return State(position, select(accepted, there, start.expansion)), info


def walk(
    state: State,
    score: Score,
    factor: Float[Tensor, "..."] | None,
    splits: Splitting,
    lengths: Sequence[int],
    noise: NoiseBlock,
    options: StepOptions,
) -> tuple[State, Trail]:
    """Take as many trajectories of every chain as there is noise for, one after another.

    Args:
        state: where the chains are, in the coordinates of the score.
        score: the law.
        factor: L of the metric; None for the identity.
        splits: of each trajectory, with a leading dimension.
        lengths: how many steps each takes.
        noise: of each.
        options: of all of them.
    """
    ends, seen = [], []
    for z, u, kick, drift, length in zip(*noise[:2], *splits, lengths, strict=True):
        flight = depart(state, z)
        for _ in range(length):
            flight = advance(flight, score, factor, Splitting(kick, drift), options)
        state, info = arrive(flight, u, options)
        ends.append(state)
        seen.append(info)
    density = None
    if state.expansion.has_density:
        density = torch.stack([at.expansion.log_density for at in ends])  # pyright: ignore
    return state, Trail(
        torch.stack([at.position for at in ends]),
        density,
        Info(*(torch.stack(part) for part in zip(*seen, strict=True))),
        torch.stack([at.expansion.gradient for at in ends]),
    )


def turn(
    flight: Flight,
    score: Score,
    factor: Float[Tensor, "..."] | None,
    split: Splitting,
    begins: Bool[Tensor, ""],
    ends: Bool[Tensor, ""],
    noise: tuple[Tensor, Tensor],
    options: StepOptions,
) -> tuple[Flight, Info]:
    """One turn of the flat loop: begin a trajectory, or not; one step; end it, or not.

    Args:
        flight: where the chains are.
        score, factor, split, options: as of `advance`.
        begins, ends: whether a trajectory does so here.
        noise: the momentum that it begins with, (chains, D); the uniform that it ends with.

    Returns:
        The chains after it, and what their trajectories did, which is true of those that end here.
    """
    fresh = depart(flight.now, noise[0])
    flight = advance(_either(begins, fresh, flight), score, factor, split, options)
    landed, info = arrive(flight, noise[1], options)
    ended = ends.expand(len(landed.position))
    position = torch.where(ends, landed.position, flight.now.position)
    now = State(position, select(ended, landed.expansion, flight.now.expansion))
    return flight._replace(now=now), info


def _either(mask: Tensor, a: Flight, b: Flight) -> Flight:
    """Return `a` where the lone flag is True, else `b`; both are at the same place now."""
    everyone = mask.expand(len(a.momentum))
    start = State(
        torch.where(mask, a.start.position, b.start.position),
        select(everyone, a.start.expansion, b.start.expansion),
    )
    rest = (torch.where(mask, u, v) for u, v in zip(a[3:], b[3:], strict=True))
    return Flight(a.now, torch.where(mask, a.momentum, b.momentum), start, *rest)
