"""A step maps a state and noise to the next state, and says what it did.

Nothing here adapts, logs or draws random numbers. A `KernelSpec` says which kernel it is: its
proposal, the kind of curvature that it reads, and its correction.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ozaki.foundation.shapes import Bool, Float
from ozaki.kernels.metropolis import Correction, Rule, log_density_change
from ozaki.kernels.noise import NoiseBlock
from ozaki.kernels.proposals import Proposal, modified
from ozaki.scores.base import CurvatureKind, Expansion, Score

DIVERGENCE = -1000.0
"""A log acceptance ratio below this is a divergence, as in Stan."""


class KernelSpec(NamedTuple):
    """The three choices that define a kernel.

    Attributes:
        proposal: expansion → Gaussian step.
        curvature: the kind the proposal reads, or None.
        correction: "none", "exact" or "line_integral".
        momentum: whether a step is a trajectory, of one step or several that share a momentum; the
            proposal is then `ornstein_uhlenbeck` or `langevin` and names the step (see
            `trajectories`).
    """

    proposal: Proposal
    curvature: CurvatureKind | None
    correction: Correction
    momentum: bool = False


class State(NamedTuple):
    """The state of chains: where each is, (chains, D), and log p near there."""

    position: Tensor
    expansion: Expansion


class Info(NamedTuple):
    """The record of a step, each (chains,); of several steps, (steps, chains).

    Attributes:
        acceptance: min(1, ratio); for an unadjusted chain the pseudo-acceptance, what Metropolis
            would have accepted.
        accepted: whether the chain moved.
        diverging: the proposal was not finite, or its log ratio fell below `DIVERGENCE`.
        broken: the proposal was not finite, or the law there was not.
        modified: directions of positive curvature that were flattened where the step began.
        rise: how much the log density rose by the move, or its line integral; 0 of no move.
    """

    acceptance: Tensor
    accepted: Tensor
    diverging: Tensor
    broken: Tensor
    modified: Tensor
    rise: Tensor


class Trail(NamedTuple):
    """The record of several steps in a row.

    Attributes:
        position: after each step, (steps, chains, D).
        log_density: there, (steps, chains); None where the law has no density.
        info: what each did.
        gradient: s1 after each step, (steps, chains, D), of trajectories; None of other steps.
    """

    position: Tensor
    log_density: Tensor | None
    info: Info
    gradient: Tensor | None = None


class StepOptions(NamedTuple):
    """The options for accepting the steps of a phase of a run; the flags may be tensors.

    Attributes:
        unadjusted: accept whatever is finite.
        uphill: also accept whatever raises the density: the transient of the warm-up, which seeks
            the typical set and samples nothing.
        rule: how a line integral is taken.
    """

    unadjusted: bool | Tensor = False
    uphill: bool | Tensor = False
    rule: Rule = "lobatto"


def init(
    score: Score,
    position: Float[Tensor, "chains dim"],
    method: KernelSpec,
    under_way: bool = False,
) -> State:
    """The state at `position`.

    Args:
        score, position, method: as for `step`.
        under_way: the chains have been walking, and a new metric has rounded their points anew. One
            at the edge of the support may lose its density by that; it goes on from another's
            point.

    Raises:
        ValueError: a position, density, gradient or curvature there that is not finite.
    """
    expansion = score.expand(position, method.curvature)
    fine = finite(position, expansion)
    if under_way and bool(fine.any()) and not bool(fine.all()):
        good = fine.nonzero().flatten()
        index = torch.arange(len(position), device=position.device)
        index[~fine] = good[index[: int((~fine).sum())] % len(good)]
        return init(score, position[index], method)
    if not bool(fine.all()):
        bad = (~fine).nonzero().flatten().tolist()
        if bool(finite(position, expansion._replace(curvature=None)).all()):
            raise ValueError(
                f"the curvature must be finite where chains are, but where chains {bad} are it is "
                "not; use ScoreLangevinKernel, which reads none, or another curvature="
            )
        raise ValueError(
            f"the starting points of chains {bad} must have a finite density and gradient, but do "
            "not; pass other initial_params"
        )
    return State(position, expansion)


def walk(
    state: State,
    score: Score,
    method: KernelSpec,
    step_size: Float[Tensor, "..."],
    noise: NoiseBlock,
    options: StepOptions | None = None,
) -> tuple[State, Trail]:
    """Take as many steps of every chain as there is noise for, one after another.

    Args:
        state: where the chains are.
        score: the law walked on.
        method: proposal, curvature, correction.
        step_size: h, a scalar or (chains, 1).
        noise: of each step, and what it scales h by.
        options: of all of them.
    """
    path, seen = [], []
    for z, u, scale in zip(*noise, strict=True):
        state, info = step(state, score, method, step_size * scale, z, u, options)
        path.append(state)
        seen.append(info)
    density = None
    if state.expansion.has_density:
        density = torch.stack([at.expansion.log_density for at in path])  # pyright: ignore
    info = Info(*(torch.stack(part) for part in zip(*seen, strict=True)))
    return state, Trail(torch.stack([at.position for at in path]), density, info)


def step(
    state: State,
    score: Score,
    method: KernelSpec,
    step_size: Float[Tensor, "..."],
    noise: Float[Tensor, "chains dim"],
    uniform: Float[Tensor, "chains"],
    options: StepOptions | None = None,
) -> tuple[State, Info]:
    """Take one step of every chain.

    Proposes y ~ N(m(x), C(x)) and accepts with min(1, p(y) q(x|y) / (p(x) q(y|x))). No value is
    looked at on the way, so that the step can be traced.

    Args:
        state: where the chains are.
        score: the law walked on.
        method: proposal, curvature, correction.
        step_size: h, a scalar or (chains, 1).
        noise: standard normal, (chains, D).
        uniform: uniform on (0, 1), (chains,).
        options: by default "none" accepts whatever is finite, and reports the same ratio as a
            pseudo-acceptance.
    """
    unadjusted, uphill, rule = options or StepOptions(method.correction == "none")
    x = state.position
    forward = method.proposal(x, state.expansion, step_size)
    y = forward.sample(noise)
    reachable = torch.isfinite(y).all(-1)
    y = torch.where(reachable.unsqueeze(-1), y, x)
    there = score.expand(y, method.curvature)
    fine = reachable & finite(y, there)
    # a NaN curvature breaks an eigendecomposition for every chain
    y, there = torch.where(fine.unsqueeze(-1), y, x), _blank(~fine, there)
    reverse = method.proposal(y, there, step_size)
    change = log_density_change(score, x, y, state.expansion, there, rule)
    log_ratio = change + reverse.log_prob(x) - forward.log_prob(y)
    log_ratio = torch.where(fine & ~log_ratio.isnan(), log_ratio, -torch.inf)
    accepted = (uniform.log() < log_ratio) | ((change > 0) & uphill) | unadjusted
    accepted = accepted & fine
    curvature = state.expansion.curvature
    acceptance = log_ratio.clamp(max=0).exp()
    flattened = torch.zeros_like(log_ratio)
    info = Info(
        acceptance=acceptance,
        accepted=accepted,
        diverging=log_ratio < DIVERGENCE,
        broken=log_ratio.isneginf(),
        modified=flattened if curvature is None else flattened + modified(curvature),
        rise=torch.where(accepted, change, 0),
    )
    moved = State(torch.where(accepted.unsqueeze(-1), y, x), select(accepted, there, state[1]))
    return moved, info


def select(mask: Bool[Tensor, "chains"], a: Expansion, b: Expansion) -> Expansion:
    """Expansion `a` where `mask` is True, `b` elsewhere."""

    def pick(u: Tensor | None, v: Tensor | None) -> Tensor | None:
        if u is None or v is None:
            return None
        return torch.where(mask.reshape(mask.shape + (1,) * (u.ndim - 1)), u, v)

    curvature = a.curvature
    if curvature is not None and curvature.batch and b.curvature is not None:
        curvature = curvature.select(mask, b.curvature)
    gradient = torch.where(mask.unsqueeze(-1), a.gradient, b.gradient)
    return Expansion(
        gradient,
        curvature,
        pick(a.log_density, b.log_density),
        pick(a.score_gradient, b.score_gradient),
    )


def rows(state: State, place: slice) -> State:
    """Pick the chains at `place` of a state."""
    position, expansion = state
    curvature = expansion.curvature
    if curvature is not None and curvature.batch:
        curvature = curvature.rebuild(tuple(t[place] for t in curvature.tensors))
    rest = (t if t is None else t[place] for t in expansion[2:])
    return State(position[place], Expansion(expansion.gradient[place], curvature, *rest))


def _blank(mask: Tensor, at: Expansion) -> Expansion:
    """Replace an expansion by zeros where `mask` is True."""

    def blank(t: Tensor) -> Tensor:
        return torch.where(mask.reshape(mask.shape + (1,) * (t.ndim - mask.ndim)), 0, t)

    curvature = at.curvature
    if curvature is not None and curvature.batch:
        curvature = curvature.rebuild(tuple(blank(t) for t in curvature.tensors))
    return Expansion(blank(at.gradient), curvature, *(t if t is None else blank(t) for t in at[2:]))


def finite(position: Float[Tensor, "chains dim"], expansion: Expansion) -> Bool[Tensor, "chains"]:
    """Say for each chain whether it can walk on from here, (chains,)."""
    fine = torch.isfinite(position).all(-1) & torch.isfinite(expansion.gradient).all(-1)
    if expansion.log_density is not None:
        fine = fine & torch.isfinite(expansion.log_density)
    if expansion.curvature is not None:
        fine = fine & torch.isfinite(expansion.curvature.frobenius_squared())
    return fine
