"""`inspect` runs a Pyro model once and sorts its sites."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Distribution, Transform, TransformedDistribution, constraints

from ozaki.scores.base import Score
from ozaki.scores.bijections import support_transform
from ozaki.scores.differentiation import first_line
from ozaki.scores.pyro_models.data import taken
from ozaki.scores.pyro_models.runs import (
    Trial,
    laws,
    run,
    scattered,
    site_transform,
    trials,
    unvalidated,
)
from ozaki.scores.pyro_models.site import ScoreDistribution
from ozaki.scores.singular import LinAlgError
from ozaki.scores.supports import Image, ends_of, support_of, unwrapped

POINTS = (-8.0, -2.0, -0.5, 0.0, 0.5, 2.0, 8.0)
"""Unconstrained coordinates at which two supports are compared: two transforms that agree at 0 may
differ elsewhere."""


class Latents(NamedTuple):
    """The sites of a Pyro model, sorted by their role.

    Attributes:
        values: continuous latent site → a constrained value.
        transforms: site → constrained-to-unconstrained transform.
        enumerated: finite discrete latent sites.
        observed: observed site → value.
        deterministic: deterministic site → shape.
        undetermined: deterministic sites without a single value or shape → why.
        moving: observed sites whose value changes with the latent ones, such as a residual.
        unbounded: latent sites that are numbers on a line or half of one.
        masked: latent site → where its own density counts, of its value's shape, if not everywhere.
        max_plate_nesting: how many dimensions on the left its plates take.
        priors: latent site → its `ScoreDistribution`, which has its own starting points.
        learned: sites of which only the score is known, and no density.
        complaint: the objection that distributions raised at draws from the prior, if any.
        untaken: observed sites whose value is no tensor, or a tensor that their law refuses.
    """

    values: dict[str, Tensor]
    transforms: dict[str, Transform]
    enumerated: tuple[str, ...]
    observed: dict[str, Tensor]
    deterministic: dict[str, torch.Size]
    max_plate_nesting: int
    priors: dict[str, Any]
    masked: dict[str, Tensor]
    learned: tuple[str, ...] = ()
    undetermined: Mapping[str, str] = MappingProxyType({})
    moving: tuple[str, ...] = ()
    unbounded: frozenset[str] = frozenset()
    complaint: str | None = None
    untaken: tuple[str, ...] = ()


def inspect(model: Callable[[], Any], transforms: Mapping[str, Transform]) -> Latents:
    """Run `model` and sort its sites; `transforms` replace what `law_transform` would give.

    Raises:
        ValueError: no continuous latent site; a subsampled plate; a countable latent site; a
            support that has no bijection or depends on other sites; a transform of no site.
    """
    complaint = None
    try:
        trace = run(model)
    except (ValueError, LinAlgError) as error:
        complaint = first_line(error)
        with unvalidated():
            trace = run(model)
    sites = _Sites(transforms)
    for name, node in trace.nodes.items():
        if node["type"] == "sample":
            sites.add(name, node)
    sites.check(trace)
    found, enumerated = sites.found, sites.enumerated
    seen = _Seen(trace, found, enumerated, set(transforms))
    for trial in trials(model, trace, found.values, found.transforms, enumerated):
        seen.add(trial)
    if names := seen.bounded:
        for elsewhere in scattered(found.values, found.transforms):
            seen.same_bounds(laws(model, elsewhere, names, sites.depth if enumerated else None))
    for name in sites.replaced:
        if name in seen.moving:  # what a reparametriser leaves of the site that it replaced
            found.deterministic[name] = found.observed.pop(name).shape
    return found._replace(
        enumerated=tuple(enumerated),
        max_plate_nesting=sites.depth,
        learned=tuple(sites.learned),
        undetermined=seen.undetermined,
        unbounded=frozenset(sites.unbounded),
        moving=tuple(name for name in found.observed if name in seen.moving),
        complaint=complaint,
        untaken=tuple(sites.untaken),
    )


class _Sites:
    """The sites of one run of a model, each put where it belongs.

    Args:
        transforms: as of `inspect`.
    """

    def __init__(self, transforms: Mapping[str, Transform]):
        self.found = Latents({}, {}, (), {}, {}, 0, {}, {})
        self.enumerated: list[str] = []
        self.learned: list[str] = []
        self.replaced: list[str] = []
        self.unbounded: list[str] = []
        self.untaken: list[str] = []
        self.depth = 0
        self._transforms = transforms

    def add(self, name: str, node: Mapping[str, Any]) -> None:
        """Put a site where it belongs."""
        fn, found = node["fn"], self.found
        plates = (-f.dim for f in node["cond_indep_stack"] if f.vectorized)
        self.depth = max([self.depth, *plates])
        score = _score_of(fn)
        if score is not None and not has_density(score):
            self.learned.append(name)
        elif _leans_on_scores(fn):
            raise ValueError(
                f"site {name!r} must not be made of a ScoreDistribution without a density, but was "
                f"a {type(fn).__name__} of one, whose own density would be lost: let the "
                "ScoreDistribution be a site, and compute from its value"
            )
        if isinstance(fn, _Subsample):
            _refuse_subsampling(name, fn)
        elif node["infer"].get("_deterministic"):
            found.deterministic[name] = node["value"].shape
        elif node["is_observed"]:
            self._add_observed(name, fn, node["value"])
        elif fn.has_enumerate_support:
            self.enumerated.append(name)
        else:
            self._add_latent(name, node, score)

    def _add_observed(self, name: str, fn: Any, value: Any) -> None:
        if isinstance(fn, dist.Unit):  # pyro.factor
            return
        self.found.observed[name] = value
        if not taken(fn, value):
            self.untaken.append(name)
        if _is_copy(fn, value):
            self.replaced.append(name)

    def _add_latent(self, name: str, node: Mapping[str, Any], score: Score | None) -> None:
        fn, found, given = node["fn"], self.found, self._transforms
        found.values[name] = node["value"].detach()
        if score is not None:
            found.priors[name] = fn
        found.transforms[name] = given.get(name) or site_transform(name, fn)
        if (mask := _mask(node)) is not None:
            found.masked[name] = mask
        ends = None if name in given else ends_of(support_of(fn))
        if ends is not None and bool((ends.upper - ends.lower).isinf().any()):
            self.unbounded.append(name)

    def check(self, trace: Any) -> None:
        """Refuse sites that cannot be walked on together."""
        values, enumerated = self.found.values, self.enumerated
        if not values:
            raise ValueError(
                "model must have a continuous latent site, a pyro.sample without obs, but it had "
                + (f"only the discrete {enumerated}" if enumerated else "none")
                + "; there is nothing to walk on"
            )
        if self.learned and enumerated:
            raise ValueError(
                f"model must not both sum out discrete sites, {enumerated}, and have a "
                f"ScoreDistribution without a density, {self.learned}: the sum weighs by values; "
                "observe the discrete sites, or use a score with a density"
            )
        if enumerated:
            _check_plates(trace, enumerated)
        unknown = sorted(set(self._transforms) - set(values))
        if unknown:
            raise ValueError(
                f"transforms must be for the latent sites {sorted(values)}, but named {unknown}"
            )


def located_scale(fn: Any) -> Tensor | None:
    """Return the scale of a location-scale law on the whole line; None of any other."""
    while hasattr(fn, "base_dist") and not hasattr(fn, "scale"):
        fn = fn.base_dist
    known = {"loc", "scale"} <= set(getattr(fn, "arg_constraints", {}))
    if not known or getattr(fn.support, "base_constraint", fn.support) is not constraints.real:
        return None
    scale: Any = fn.scale
    return scale if isinstance(scale, Tensor) else None


def has_density(score: Score) -> bool:
    """Say whether a score comes with its log density."""
    point = torch.zeros(1, score.dim, dtype=score.dtype, device=score.device)
    return score.expand(point).has_density


def _score_of(fn: Any) -> Score | None:
    """Return the score of a `ScoreDistribution`, masked, reshaped or not; None for other laws."""
    while not isinstance(fn, ScoreDistribution):
        # a Jacobian has a density: it is not the score's alone
        fn = None if isinstance(fn, TransformedDistribution) else getattr(fn, "base_dist", None)
        if fn is None:
            return None
    return fn.score


def _leans_on_scores(fn: Any) -> bool:
    """Say whether a distribution is built on a `ScoreDistribution` that has no density."""
    if isinstance(fn, ScoreDistribution):
        return not has_density(fn.score)
    parts = (part for part in vars(fn).values() if isinstance(part, Distribution))
    return any(_leans_on_scores(part) for part in parts)


def _check_plates(trace: Any, enumerated: list[str]) -> None:
    """Refuse dimensions that no plate claims: there Pyro lays the values that it sums over."""
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or isinstance(node["fn"], _Subsample):
            continue
        value, events = node["value"], len(node["fn"].event_shape)
        # of observations there may be more than the distribution says
        shape = torch.broadcast_shapes(node["fn"].batch_shape, value.shape[: value.ndim - events])
        claimed = {frame.dim for frame in node["cond_indep_stack"] if frame.vectorized}
        if any(size > 1 and i - len(shape) not in claimed for i, size in enumerate(shape)):
            raise ValueError(
                f"site {name!r} must have its batch dimensions in plates (or, unless it is summed "
                f"out, in .to_event) where the discrete sites {enumerated} are summed out, but "
                f"its batch shape was {tuple(shape)}, with plates in {sorted(claimed)}"
            )


def _refuse_subsampling(name: str, fn: Any) -> None:
    if fn.subsample_size is not None and fn.subsample_size < fn.size:
        raise ValueError(
            f"plate {name!r} must not be subsampled, but subsample_size was {fn.subsample_size} of "
            f"{fn.size}: its density would change from step to step; leave subsample_size out"
        )


def _is_copy(fn: Any, value: Tensor) -> bool:
    """Say whether a site is a point mass at its own value, as reparametrisers leave one."""
    law = unwrapped(fn)
    return isinstance(law, dist.Delta) and law.v.numel() == value.numel() and law.v is not None


def _mask(node: Mapping[str, Any]) -> Tensor | None:
    """Return where a latent site's own density counts, if it does not count everywhere."""
    masks = [node["mask"], getattr(node["fn"], "_mask", None)]
    mask: Any = True
    for found in masks:
        if found is not None:
            mask = torch.as_tensor(found) & mask
    if mask is True or bool(mask.all()):
        return None
    value, events = node["value"], len(node["fn"].event_shape)
    return mask.reshape(mask.shape + (1,) * events).expand(value.shape)


class _Seen:
    """The sites that change from one run of the model to another.

    Attributes:
        moving: observed sites whose value does.
        undetermined: deterministic sites that have no one value or no one shape → why.
    """

    def __init__(self, trace: Any, found: Latents, enumerated: list[str], given: set[str]):
        self._trace, self._found, self._enumerated = trace, found, enumerated
        self._supports = {
            name: support_transform(support_of(trace.nodes[name]["fn"]))
            for name in found.values
            if name not in given
        }
        self._discrete: dict[str, Tensor] = {}
        self.moving: set[str] = set()
        self.undetermined: dict[str, str] = {}

    @property
    def bounded(self) -> list[str]:
        """The sites whose bounds other sites could move, if there are other sites."""
        if len(self._found.values) + len(self._enumerated) < 2:
            return []
        supports = {n: support_of(self._trace.nodes[n]["fn"]) for n in self._supports}
        return [name for name, support in supports.items() if _has_bounds(support)]

    def same_bounds(self, laws: Mapping[str, Any]) -> None:
        """Compare only the supports with those of other laws; a law may stand for many at once."""
        for name, law in laws.items():
            self._fixed(name, self._supports[name], law, near=True)

    def add(self, trial: Trial) -> None:
        """Compare one more run of the model."""
        if trial.near:
            self._same_sites(trial.nodes)
        for name, transform in self._supports.items():
            if name in trial.nodes:
                self._fixed(name, transform, trial.nodes[name]["fn"], trial.near)
        for name, value in self._found.observed.items():
            if name in trial.nodes:
                if not _equal(trial.nodes[name]["value"], value):
                    self.moving.add(name)
                self._covered(name, trial)
        for name, shape in self._found.deterministic.items():
            if name in trial.nodes:
                self._determined(name, shape, trial)

    def _same_sites(self, nodes: Mapping[str, Any]) -> None:
        """Refuse a run that has other sites than the first run."""
        for name in self._found.values:
            if name not in nodes:
                raise ValueError(
                    f"model must have the same sites in every run, but {name!r} was absent in "
                    "another one; do not let latent values decide which sites there are"
                )
        for name, node in nodes.items():
            if name not in self._trace.nodes and node["type"] == "sample":
                raise ValueError(
                    f"model must have the same sites in every run, but {name!r} came in another "
                    "one; do not let latent values decide which sites there are"
                )

    def _fixed(self, name: str, transform: Transform, law: Any, near: bool) -> None:
        """Refuse a support that other sites move: Pyro would keep the first one it sees."""
        try:
            other = support_transform(support_of(law))
            u: Any = transform.inv(self._found.values[name])
            pairs: Any = [(transform(p), other(p)) for p in (torch.full_like(u, v) for v in POINTS)]
        except (NotImplementedError, ValueError, RuntimeError):  # no chain need go there
            return
        if not near and not all(bool(there.isfinite().all()) for _, there in pairs):
            return  # where numbers overflow
        if not all(_all_equal(here, there) for here, there in pairs):
            raise ValueError(
                f"latent site {name!r} must have a fixed support, but it moved with the values of "
                "other sites, where Pyro keeps the first one; sample it on a fixed support and "
                "shift or scale it by pyro.deterministic"
            )

    def _covered(self, name: str, trial: Trial) -> None:
        """Refuse observed data that have a density where their law has none."""
        node = trial.nodes[name]
        fn, value = node["fn"], node["value"]
        try:
            support = support_of(fn)
            ends = ends_of(support)
            if ends is None or bool((ends.lower.isinf() & ends.upper.isinf()).all()):
                return
            outside = ~support.check(value)
            with unvalidated():
                density = fn.log_prob(value)
                if node["mask"] is not None:
                    density = torch.where(torch.as_tensor(node["mask"]), density, -torch.inf)
                wrong = bool((outside & density.isfinite()).any())
                wrong = wrong and bool(trial.trace.log_prob_sum().isfinite())
        except (NotImplementedError, ValueError, RuntimeError):
            return
        if wrong:
            raise ValueError(
                f"observed site {name!r} must have no density outside of its support, but "
                f"{type(unwrapped(fn)).__name__}, which does not check its values, gives one to "
                "data outside where other sites have moved it; keep those sites where the data lie "
                "inside, by a support that ends there, as dist.Uniform(0.0, y.min())"
            )

    def _determined(self, name: str, shape: torch.Size, trial: Trial) -> None:
        """Note deterministic sites whose value or shape is not the same in this run."""
        value = torch.as_tensor(trial.nodes[name]["value"])
        if value.shape != shape:
            self.undetermined.setdefault(name, "change their shape with the latent sites")
        elif trial.discrete:
            first = self._discrete.setdefault(name, value)
            if not _equal(value, first):
                self.undetermined[name] = (
                    f"depend on the discrete sites {self._enumerated}, which are summed out"
                )


def _has_bounds(support: Any) -> bool:
    """Say whether a law computes its support, rather than having that of its class."""
    while (inner := getattr(support, "base_constraint", None)) is not None:
        support = inner
    parts = vars(support).values()
    return isinstance(support, Image) or any(isinstance(part, Tensor) for part in parts)


def _all_equal(one: Tensor, others: Tensor) -> bool:
    """Say whether `others`, perhaps with more dimensions in front, equal `one` up to rounding."""
    try:
        one = one.expand_as(others)
    except RuntimeError:
        return False
    rounding = 16 * torch.finfo(others.dtype).eps
    return torch.allclose(one, others, rtol=rounding, atol=rounding, equal_nan=True)


def _equal(one: Any, other: Any) -> bool:
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
