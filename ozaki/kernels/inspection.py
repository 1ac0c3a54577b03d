"""What a Pyro model is made of, read from one run of it (floor 4)."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Distribution, Transform, TransformedDistribution

from ozaki.scores.autodiff import support_transform
from ozaki.scores.base import Score
from ozaki.scores.derivatives import first_line
from ozaki.scores.distribution import ScoreDistribution
from ozaki.scores.singular import LinAlgError, singular_is_nan

TRIALS = 8  # of values of discrete sites, to see what depends on them


class Latents(NamedTuple):
    """One run of a model, sorted.

    Attributes:
        values: continuous latent site → a constrained value.
        transforms: site → constrained-to-unconstrained transform.
        enumerated: finite discrete latent sites.
        observed: observed site → value.
        deterministic: deterministic site → shape.
        undetermined: those of them that change with the enumerated ones.
        max_plate_nesting: how many dimensions to the left its plates take.
        priors: latent site → its `ScoreDistribution`, where chains begin in a way of their own.
        learned: sites of whose density only the score is known.
        complaint: what distributions objected to at draws from the prior, if they did.
    """

    values: dict[str, Tensor]
    transforms: dict[str, Transform]
    enumerated: tuple[str, ...]
    observed: dict[str, Tensor]
    deterministic: dict[str, torch.Size]
    max_plate_nesting: int
    priors: dict[str, Any]
    learned: tuple[str, ...] = ()
    undetermined: frozenset[str] = frozenset()
    complaint: str | None = None


@contextmanager
def lenient() -> Iterator[None]:
    """Leave the arguments and values of distributions unchecked for a while, and matrices too.

    A prior may draw what its own model cannot take; the chains then start elsewhere.
    """
    before = dist.is_validation_enabled()
    dist.enable_validation(False)
    try:
        with singular_is_nan():
            yield
    finally:
        dist.enable_validation(before)


def inspect(model: Callable[[], Any], transforms: Mapping[str, Transform]) -> Latents:
    """Run `model` twice and sort its sites; `transforms` replace what biject_to would give.

    Raises:
        ValueError: no continuous latent site; a subsampled plate; a countable latent site; a
            support that has no bijection or depends on other sites; a transform of no site.
    """
    complaint = None
    try:
        trace, again = _run(model), _run(model)
    except (ValueError, LinAlgError) as error:
        complaint = first_line(error)
        with lenient():
            trace, again = _run(model), _run(model)
    found = Latents({}, {}, (), {}, {}, 0, {})
    enumerated, learned, depth = [], [], 0
    for name, node in trace.nodes.items():
        if node["type"] != "sample":
            continue
        fn = node["fn"]
        depth = max([depth, *(-f.dim for f in node["cond_indep_stack"] if f.vectorized)])
        score = _score_of(fn)
        if score is not None and not has_density(score):
            learned.append(name)
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
            if not isinstance(fn, dist.Unit):  # pyro.factor
                found.observed[name] = node["value"]
        elif fn.has_enumerate_support:
            enumerated.append(name)
        else:
            found.values[name] = node["value"].detach()
            if score is not None:
                found.priors[name] = fn
            found.transforms[name] = transforms.get(name) or _transform(name, fn)
            if name not in transforms:
                _check_fixed(name, found.transforms[name], again, found.values[name])
    if not found.values:
        raise ValueError(
            "model must have a continuous latent site, a pyro.sample without obs, but it had "
            + (f"only the discrete {enumerated}" if enumerated else "none")
            + "; there is nothing to walk on"
        )
    if learned and enumerated:
        raise ValueError(
            f"model must not both sum out discrete sites, {enumerated}, and have a "
            f"ScoreDistribution without a density, {learned}: the sum weighs by values; observe "
            "the discrete sites, or use a score with a density"
        )
    undetermined = frozenset()
    if enumerated:
        _check_plates(trace, enumerated)
    if enumerated and found.deterministic:
        undetermined = _undetermined(model, trace, found.values, enumerated, found.deterministic)
    unknown = sorted(set(transforms) - set(found.values))
    if unknown:
        raise ValueError(
            f"transforms must be for the latent sites {sorted(found.values)}, but named {unknown}"
        )
    return found._replace(
        enumerated=tuple(enumerated),
        max_plate_nesting=depth,
        learned=tuple(learned),
        undetermined=undetermined,
        complaint=complaint,
    )


def has_density(score: Score) -> bool:
    """Whether a score comes with the log density it is of."""
    point = torch.zeros(1, score.dim, dtype=score.dtype, device=score.device)
    return score.expand(point).has_density


def _score_of(fn: Any) -> Score | None:
    """The score of a `ScoreDistribution`, masked, reshaped or not; None of anything else."""
    while not isinstance(fn, ScoreDistribution):
        # a Jacobian has a density: it is not the score's alone
        fn = None if isinstance(fn, TransformedDistribution) else getattr(fn, "base_dist", None)
        if fn is None:
            return None
    return fn.score


def _leans_on_scores(fn: Any) -> bool:
    """Whether a distribution is made of a `ScoreDistribution` that has no density."""
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


def _run(model: Callable[[], Any]) -> Any:
    with poutine.block():
        return poutine.trace(model).get_trace()


def _undetermined(
    model: Callable[[], Any],
    trace: Any,
    values: Mapping[str, Tensor],
    enumerated: list[str],
    deterministic: Iterable[str],
) -> frozenset[str]:
    """The deterministic sites that change with the discrete ones, the others held where they were.

    All discrete sites take their first value, their second, …, and then any of their values alike:
    what is the same for equal values, as their spread, is not for mixed ones, and the prior may
    hardly ever draw some.
    """
    supports, shapes = {}, {}
    for name in enumerated:
        fn = trace.nodes[name]["fn"]
        found = fn.enumerate_support(expand=False)
        supports[name] = found.reshape(len(found), *fn.event_shape)
        shapes[name] = fn.batch_shape

    def taking(place: Callable[[int, torch.Size], Tensor]) -> dict[str, Tensor]:
        return {n: s[place(len(s), shapes[n])] for n, s in supports.items()}

    most = min(TRIALS, max(map(len, supports.values())))
    alike = (taking(lambda n, shape, k=k: torch.full(shape, min(k, n - 1))) for k in range(most))
    trials = [*alike, *(taking(torch.randint) for _ in range(TRIALS))]
    seen = []
    with lenient():
        for discrete in trials:
            run = _run(poutine.condition(model, {**values, **discrete}))
            seen.append({n: torch.as_tensor(run.nodes[n]["value"]) for n in deterministic})
    first = seen[0]
    return frozenset(
        n
        for n in deterministic
        if not all(
            s[n].shape == first[n].shape and torch.equal(s[n].nan_to_num(), first[n].nan_to_num())
            for s in seen
        )
    )


def _refuse_subsampling(name: str, fn: Any) -> None:
    if fn.subsample_size is not None and fn.subsample_size < fn.size:
        raise ValueError(
            f"plate {name!r} must not be subsampled, but subsample_size was {fn.subsample_size} of "
            f"{fn.size}: its density would change from step to step; leave subsample_size out"
        )


def _transform(name: str, fn: Any) -> Transform:
    try:
        support = fn.support
        if not support.is_discrete:
            return support_transform(support).inv
    except NotImplementedError as cause:
        raise ValueError(
            f"latent site {name!r} must have a support that biject_to knows, but "
            f"{type(fn).__name__} has none ({cause}); pass transforms={{{name!r}: ...}}"
        ) from cause
    raise ValueError(
        f"latent site {name!r} must be continuous, or discrete with finitely many values, but "
        f"{type(fn).__name__} is countable and has no score; observe it, integrate it out, or "
        "replace it by a continuous approximation"
    )


def _check_fixed(name: str, transform: Transform, again: Any, value: Tensor) -> None:
    """Refuse a support that other sites move: Pyro would fix it at its first value, silently."""
    if name not in again.nodes:
        raise ValueError(
            f"model must have the same sites in every run, but {name!r} was absent in a second "
            "one; do not let latent values decide which sites there are"
        )
    start: Any = transform(value)
    u = torch.zeros_like(start)
    here: Any = transform.inv(u)
    there: Any = _transform(name, again.nodes[name]["fn"]).inv(u)
    if here.shape != there.shape or not torch.equal(here, there):
        raise ValueError(
            f"latent site {name!r} must have a fixed support, but it moved with the values of "
            "other sites, where Pyro keeps the first one; sample it on a fixed support and shift "
            "or scale it by pyro.deterministic"
        )
