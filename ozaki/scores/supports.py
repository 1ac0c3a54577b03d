"""`support_of` finds the support of a law, by mapping its base's support through its transforms.

`law.support` alone does not tell: for torch's TransformedDistribution it is the codomain of the
last transform, which an affine transform of a positive law does not fill.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Distribution,
    Independent,
    IndependentTransform,
    MixtureSameFamily,
    Transform,
    TransformedDistribution,
    constraints,
)
from torch.distributions.constraints import Constraint

HALVES = (constraints.greater_than, constraints.greater_than_eq, constraints.less_than)
BOUNDED = (constraints.interval, constraints.half_open_interval)
WRONG_SUPPORT = "let its class say where it lives, by `support`"


class NoBijection(NotImplementedError):
    """The error where no bijection leads from unconstrained coordinates to a law's support.

    Args:
        cause: in words.
        remedy: what to do, in words.
    """

    def __init__(self, cause: str, remedy: str):
        super().__init__(cause)
        self.remedy = remedy


class Ends(NamedTuple):
    """The bounds of an interval, −∞ and ∞ where it is open to that side."""

    lower: Tensor
    upper: Tensor


class Image(Constraint):
    """The image of a set under a bijection.

    Args:
        base: the set.
        transform: the bijection.
    """

    is_discrete = False  # pyright: ignore

    def __init__(self, base: Constraint, transform: Transform):
        self.base, self.transform = base, transform

    @property
    def event_dim(self) -> int:  # pyright: ignore
        """The number of dimensions on the right that belong to one value."""
        more = max(0, self.base.event_dim - self.transform.domain.event_dim)
        return self.transform.codomain.event_dim + more

    def check(self, value: Tensor) -> Tensor:
        """Say whether each value lies in the image."""
        return self.base.check(self.transform.inv(value))


def support_of(law: Distribution) -> Constraint:
    """Return the set in which a law has its density: `law.support`, or the image of the base's.

    Raises:
        NoBijection: a transform that takes several points to one, or values it is not defined for.
        NotImplementedError: the law has no support.
    """
    if isinstance(law, TransformedDistribution):
        # a class that says where it lives is believed: LogNormal, HalfCauchy, Gumbel, ...
        if type(law).support is TransformedDistribution.support:
            support = support_of(law.base_dist)
            for transform in law.transforms:
                support = _pushed(support, transform)
            return _events(support, len(law.event_shape))
    elif isinstance(law, Independent):
        return _events(support_of(law.base_dist), len(law.event_shape))
    elif isinstance(law, MixtureSameFamily):
        return _alike(support_of(law.component_distribution), law)
    elif isinstance(base := getattr(law, "base_dist", None), Distribution) and (
        (own := _own_support(law)) is base.support or repr(own) == repr(base.support)
    ):
        return support_of(base)  # masked, expanded: the same law
    return _own_support(law)


def _own_support(law: Distribution) -> Constraint:
    try:
        support: Any = law.support
    except NotImplementedError as error:
        raise NoBijection("its class does not say where it lives", WRONG_SUPPORT) from error
    return support


def unwrapped(law: Any) -> Any:
    """Return the law inside of masks, expansions and `.to_event`."""
    while isinstance(base := getattr(law, "base_dist", None), Distribution) and not isinstance(
        law, TransformedDistribution
    ):
        law = base
    return law


def ends_of(support: Constraint) -> Ends | None:
    """The bounds of an interval of numbers; None of any other set."""
    bare = _bare(support)
    if isinstance(bare, type(constraints.real)):
        lower, upper = -math.inf, math.inf
    elif isinstance(bare, (*HALVES, *BOUNDED)):
        lower = getattr(bare, "lower_bound", -math.inf)
        upper = getattr(bare, "upper_bound", math.inf)
    else:
        return None
    return Ends(torch.as_tensor(lower), torch.as_tensor(upper))


def _pushed(support: Constraint, transform: Transform) -> Constraint:
    """Return the image of a set under a transform."""
    if isinstance(transform, ComposeTransform):
        for part in transform.parts:
            support = _pushed(support, part)
        return support
    if isinstance(transform, IndependentTransform):
        return _pushed(support, transform.base_transform)
    if not transform.bijective:
        raise NoBijection(
            f"{kind(transform)} takes several points to one, and torch has no density for what it "
            "makes of a law",
            "use a law that has one, as dist.FoldedDistribution or dist.HalfNormal for an absolute "
            "value",
        )
    domain, codomain = transform.domain, transform.codomain
    given, wanted = ends_of(support), ends_of(domain)
    if given is None or wanted is None:
        return (
            codomain if type(_bare(support)) is type(_bare(domain)) else Image(support, transform)
        )
    if bool((given.lower < wanted.lower).any() or (given.upper > wanted.upper).any()):
        raise NoBijection(
            f"{kind(transform)} is defined on {named(domain)}, but what it is given lies in "
            f"{named(support)}",
            "give it a base that lies where the transform is defined",
        )
    if bool((given.lower == wanted.lower).all() and (given.upper == wanted.upper).all()):
        return codomain
    goal = ends_of(codomain)
    if goal is None or not (domain.event_dim == 0 or isinstance(transform, AffineTransform)):
        return Image(support, transform)
    try:
        rising = torch.as_tensor(transform.sign) > 0
    except NotImplementedError:
        return Image(support, transform)
    # an end that is the domain's own goes to one of the codomain's, without rounding
    move: Any = transform
    first, last = (
        torch.where(end == own, torch.where(rising, near, far), move(end))
        for end, own, near, far in (
            (given.lower, wanted.lower, goal.lower, goal.upper),
            (given.upper, wanted.upper, goal.upper, goal.lower),
        )
    )
    ends = Ends(torch.where(rising, first, last), torch.where(rising, last, first))
    return interval(ends) or Image(support, transform)


def interval(ends: Ends) -> Constraint | None:
    """The interval with these ends; None where some entries are open and some are not."""
    left, right = (bool(end.isinf().all()) for end in ends)
    if any(bool(end.isinf().any()) and not bool(end.isinf().all()) for end in ends):
        return None
    if left and right:
        return constraints.real
    if right:
        return constraints.greater_than(ends.lower)
    return constraints.less_than(ends.upper) if left else constraints.interval(*ends)


def _alike(support: Constraint, mixture: MixtureSameFamily) -> Constraint:
    """The support of a mixture's components, which must be one, without their dimension."""
    ends = ends_of(support)
    if ends is None or not isinstance(_bare(support), (*HALVES, *BOUNDED)):
        return support
    shape = mixture.component_distribution.batch_shape + mixture.event_shape
    dim = -1 - len(mixture.event_shape)
    lower, upper = (end.expand(shape) for end in ends)
    one = Ends(lower.select(dim, 0), upper.select(dim, 0))
    same = all(
        torch.equal(end, own.unsqueeze(dim).expand(shape))
        for end, own in zip((lower, upper), one, strict=True)
    )
    if not same:
        raise NoBijection(
            "its components have different supports, from "
            f"{_number(lower.min())} to {_number(lower.max())} and from {_number(upper.min())} to "
            f"{_number(upper.max())}: its density jumps where one of them ends",
            "use components of one support",
        )
    if all(end.numel() == 1 for end in ends):
        return support
    return _events(interval(one) or support, len(mixture.event_shape))


def _events(support: Constraint, events: int) -> Constraint:
    more = events - support.event_dim
    return constraints.independent(support, more) if more > 0 else support


def _bare(support: Constraint) -> Constraint:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def named(support: Constraint) -> str:
    """Name a set in words, an interval by its bounds."""
    ends = ends_of(support)
    if ends is None:
        return str(_bare(support))
    return f"({_number(ends.lower.min())}, {_number(ends.upper.max())})"


def _number(value: Tensor) -> str:
    found = float(value)
    return ("∞" if found > 0 else "−∞") if math.isinf(found) else f"{found:.4g}"


def kind(transform: Transform) -> str:
    """Name a transform in words."""
    inverse = getattr(transform, "_inv", None)
    if type(transform).__name__ == "_InverseTransform" and inverse is not None:
        return f"the inverse of {type(inverse).__name__}"
    return type(transform).__name__
