"""These functions say which ways to walk a kernel's settings leave to warm-up."""

from collections.abc import Mapping, Sequence

from ozaki.kernels.metropolis import Correction
from ozaki.kernels.proposals import Proposal, langevin, ornstein_uhlenbeck
from ozaki.kernels.transition import KernelSpec
from ozaki.kernels.warmup import LANGEVIN, TIMES, Candidate, Track, cost

LOCAL = 10
"""Dimensions up to which a density's dense Hessian is worth reading at every point. Beyond, its D
products and the roots of a matrix cost as much as ten steps and more."""

WORK = 2**20
"""Chains × D³, up to which the transient reads one all the same: it brings chains home where no
metric is known, and ends as soon as they are."""

MANY = 100
"""Dimensions beyond which the transient reads no diagonal: of a density it takes D products."""

TRAJECTORIES = 0.8
"""The acceptance that trajectories seek."""

HALVINGS = 4


def tracks_of(
    spec: KernelSpec,
    candidates: Sequence[Candidate],
    targets: Mapping[Correction, float],
    dim: int,
    *,
    trajectory: float | str,
    adapting: bool,
    frozen: bool | str,
) -> tuple[Track, ...]:
    """The tracks that compete in warm-up; one where nothing is left to it.

    Args:
        spec: the kernel's own step, with the curvature that it reads.
        candidates: steps that may take its place.
        targets: the acceptance that the kernel's single steps seek, by correction.
        dim: D.
        trajectory: "auto", or a mean angle T; 0 for single steps.
        adapting: whether warm-up finds step size and metric.
        frozen: whether one curvature serves all points; "auto" leaves that to the rest.
    """
    correction, own = spec.correction, spec.proposal
    times = _times(trajectory, correction)
    if not adapting:
        moves = times[-1] > 0 and frozen is not True
        return (Track(spec._replace(momentum=moves), times=times[-1:]),)
    found = []
    single = targets[correction]
    if own is langevin:
        candidates = (LANGEVIN, *(c for c in candidates if c is not LANGEVIN))
    elif frozen is False or (frozen is not True and _local(spec, candidates, times, dim)):
        price = cost(spec.curvature, dim)
        found.append(Track(spec, "pooled", single, price, halvings=HALVINGS))
    turning = ornstein_uhlenbeck in [c.proposal for c in candidates]
    for candidate in candidates:
        target = single if candidate.target is None else candidate.target
        if not can_turn(candidate.proposal):
            if 0.0 in times:
                found.append(Track(KernelSpec(candidate.proposal, None, correction), target=target))
            continue
        mine = KernelSpec(candidate.proposal, None, correction, True)
        target = target if times == (0.0,) else TRAJECTORIES
        metrics = ("pooled", "scores")
        if candidate is LANGEVIN and turning:
            if correction == "exact" and times != (0.0,):
                continue  # turning is never worse than leapfrog in a good metric
            metrics = ("pooled",)
        if frozen is True and candidate is not LANGEVIN:
            metrics = ("curvature", *metrics)
        found += [Track(mine, metric, target, 1.0, times) for metric in metrics]
    return tuple(found)


def opening_of(
    spec: KernelSpec,
    tracks: Sequence[Track],
    dim: int,
    chains: int,
    *,
    adapting: bool,
    frozen: bool | str,
) -> KernelSpec:
    """The kernel of the transient: the local curvature where that is cheap, else trajectories.

    Args:
        spec: the kernel's own step.
        tracks: from `tracks_of`.
        dim: D.
        chains: how many walk.
        adapting: whether warm-up finds step size and metric.
        frozen: True where a curvature is averaged, and may be wanting where chains begin.
    """
    if not adapting:
        return tracks[0].spec
    costly = spec.curvature == "dense" and dim > LOCAL and chains * dim**3 > WORK
    near = spec.curvature is not None and not costly and frozen is not True
    if near and (spec.curvature != "diagonal" or dim <= MANY):
        return spec
    moving = [track.spec for track in tracks if track.spec.momentum]
    return moving[0] if moving else spec


def _times(trajectory: float | str, correction: Correction) -> tuple[float, ...]:
    """List the mean angles that compete."""
    if trajectory == "auto":
        # an unadjusted chain keeps to the steps whose bias is known
        return (0.0,) if correction == "none" else TIMES
    return (float(trajectory),)


def _local(
    spec: KernelSpec, candidates: Sequence[Candidate], times: tuple[float, ...], dim: int
) -> bool:
    """Say whether the kernel's own steps, which share no momentum, compete."""
    if not candidates:
        return True
    known = ornstein_uhlenbeck in [c.proposal for c in candidates]
    if 0.0 not in times or (known and times != (0.0,) and spec.correction == "exact"):
        return False
    return not (known and spec.curvature == "dense" and spec.correction == "exact" and dim > LOCAL)


def can_turn(proposal: Proposal) -> bool:
    """Whether a proposal can share a momentum over several steps."""
    return proposal in (langevin, ornstein_uhlenbeck)
