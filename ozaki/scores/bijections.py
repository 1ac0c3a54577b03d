"""`law_transform` finds the bijection from unconstrained coordinates to a law's support.

Each bijection is tried on its law before it is used.
"""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    ComposeTransform,
    Distribution,
    IndependentTransform,
    Transform,
    TransformedDistribution,
    biject_to,
    constraints,
)
from torch.distributions.constraints import Constraint

from ozaki.foundation.torch_modes import ordinary, recordable
from ozaki.scores.supports import (
    BOUNDED,
    WRONG_SUPPORT,
    Image,
    NoBijection,
    ends_of,
    interval,
    kind,
    named,
    support_of,
    unwrapped,
)

REPARAMETRISERS = {"ProjectedNormal": "ProjectedNormalReparam"}
PERIOD = 2 * math.pi
INSIDE = (0.0, 2.0, 10.0, 100.0)
"""Unconstrained coordinates, of either sign, whose values must lie in a law's support."""
DRAWS = 20  # draws that must lie in the support that a law states


class WrapTransform(Transform):
    """x = u − 2π·round(u / 2π): real numbers to the angles in [−π, π).

    A density of period 2π is proper on the circle alone. Chains walk on the line, and what they
    draw are angles. It is no bijection, but the identity on angles undoes it, and its slope is one.
    """

    domain = constraints.real
    codomain = constraints.half_open_interval(-math.pi, math.pi)
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return torch.remainder(x + math.pi, PERIOD) - math.pi

    def _inverse(self, y: Tensor) -> Tensor:
        return y

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """0: the slope is one."""
        return torch.zeros_like(x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WrapTransform)

    __hash__ = None  # pyright: ignore


class PositiveDefiniteTransform(Transform):
    """X = L Lᵀ with L lower triangular: log Lᵢᵢ and the entries below from a vector of n(n + 1)/2.

    |∂X/∂u| = 2ⁿ ∏ Lᵢᵢⁿ⁻ⁱ⁺², i = 1 … n, over the lower triangle of X.

    Source: Muirhead (1982), Aspects of Multivariate Statistical Theory, Theorem 2.1.9; one more
    Lᵢᵢ each is that of the logarithm.
    """

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        factor = self._factor(x)
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(y)
        n = y.shape[-1]
        rows, columns = torch.tril_indices(n, n, device=y.device)
        entries = factor[..., rows, columns]
        return torch.where(rows == columns, entries.clamp_min(0).log(), entries)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |∂X/∂u|, for the lower triangle of X."""
        n = self._size(x.shape[-1])
        diagonal = torch.arange(1, n + 1, device=x.device).cumsum(0) - 1
        powers = torch.arange(n + 1, 1, -1, device=x.device, dtype=x.dtype)
        return (x[..., diagonal] * powers).sum(-1) + n * math.log(2.0)

    def forward_shape(self, shape: Any) -> torch.Size:
        """(*batch, n(n + 1)/2) → (*batch, n, n)."""
        n = self._size(shape[-1])
        return torch.Size((*shape[:-1], n, n))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """(*batch, n, n) → (*batch, n(n + 1)/2)."""
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))

    def _factor(self, x: Tensor) -> Tensor:
        """Return L, lower triangular, from its vector."""
        n = self._size(x.shape[-1])
        rows, columns = torch.tril_indices(n, n, device=x.device)
        entries = torch.where(rows == columns, x.exp(), x)
        # no writing in place: the entries are picked, zero above the diagonal
        place = torch.full((n, n), x.shape[-1], device=x.device)
        place[rows, columns] = torch.arange(x.shape[-1], device=x.device)
        padded = torch.cat([entries, torch.zeros_like(entries[..., :1])], -1)
        return padded[..., place.reshape(-1)].reshape(*x.shape[:-1], n, n)

    @staticmethod
    def _size(entries: int) -> int:
        n = (math.isqrt(8 * entries + 1) - 1) // 2
        if n * (n + 1) // 2 != entries:
            raise ValueError(f"u must have n(n + 1)/2 entries for some n, but had {entries}")
        return n

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PositiveDefiniteTransform)

    __hash__ = None  # pyright: ignore


def support_transform(support: Constraint) -> Transform:
    """The bijection from unconstrained coordinates to `support`: biject_to, and what it lacks.

    Raises:
        NotImplementedError: none is known.
    """
    # newer torch wraps the support of a mixture in a constraint that it cannot biject to
    if type(support).__name__ == "MixtureSameFamilyConstraint":
        return support_transform(getattr(support, "base_constraint"))  # noqa: B009
    if isinstance(support, Image):
        return ComposeTransform([support_transform(support.base), support.transform])
    if isinstance(support, constraints.independent):
        inner = support_transform(support.base_constraint)
        return IndependentTransform(inner, support.reinterpreted_batch_ndims)
    if isinstance(support, type(constraints.positive_definite)):
        return PositiveDefiniteTransform()
    ends = ends_of(support)
    if ends is not None and isinstance(support, BOUNDED):
        # a bound may be infinite, as that of a generalised Pareto law
        found = interval(ends)
        if found is None:
            raise NoBijection(
                "some of its entries end where others go on without end",
                "sample those entries as sites of their own",
            )
        support = found
    return biject_to(support)


def law_transform(law: Distribution) -> Transform:
    """The bijection from unconstrained coordinates to where `law` lives, tried on the law.

    Raises:
        NoBijection: the law does not live where it says.
        NotImplementedError: no bijection is known.
    """
    support = support_of(law)
    if support.is_discrete:
        raise NotImplementedError("it is discrete")
    transform = support_transform(support)
    _try_inverse(unwrapped(law))
    _try(law, support, transform)
    ends = ends_of(support)
    if ends is not None and bool((ends.upper - ends.lower).isinf().all()) and is_periodic(law):
        events = support.event_dim
        return IndependentTransform(WrapTransform(), events) if events else WrapTransform()
    return transform


def remedy(law: Distribution, site: str, cause: Exception) -> str:
    """Say what to do about a law that no bijection leads to."""
    if isinstance(cause, NoBijection):
        return cause.remedy
    name = type(unwrapped(law)).__name__
    if name in REPARAMETRISERS:
        return (
            f"reparametrise it, pyro.poutine.reparam(model, {{{site!r}: "
            f"pyro.infer.reparam.{REPARAMETRISERS[name]}()}})"
        )
    if "phere" in repr(support_of(law)):
        return (
            "sample a Normal of as many entries in its place, divide it by its length in "
            "pyro.deterministic, and add the density by pyro.factor"
        )
    return "sample a law on a known support in its place, and transform it by pyro.deterministic"


def is_periodic(law: Distribution) -> bool:
    """Say whether a density on the line has the period 2π, so that it is one of angles."""
    try:
        x = torch.stack([law.sample() for _ in range(4)]).detach()
        here, turned, moved = (law.log_prob(v) for v in (x, x + PERIOD, x + 1))
    except (NotImplementedError, ValueError, RuntimeError):  # no sampler, or no density
        return False
    if not bool(here.isfinite().all()):
        return False
    # the rounding of an angle, and of a sum of as many terms as there are
    error = 100 * torch.finfo(x.dtype).eps * (1 + here.abs().max()) * max(1, x[0].numel())
    return bool((here - turned).abs().max() < error and (here - moved).abs().max() > 10 * error)


def _try(law: Distribution, support: Constraint, transform: Transform) -> None:
    """Refuse a transform that does not lead to where the law has its draws and its density."""
    shape = torch.Size(law.batch_shape + law.event_shape)
    try:
        x = torch.stack([law.sample() for _ in range(DRAWS if shape.numel() < DRAWS else 1)])
    except (NotImplementedError, ValueError, RuntimeError):  # no sampler, or arguments it cannot
        return
    x = x.detach()
    if ends_of(support) is None or not bool(x.isfinite().all()):
        return  # of other sets rounding alone moves points out
    u: Any = transform.inv(x)
    back: Any = transform(u)
    if back.shape != x.shape:
        return  # told elsewhere, with the shapes
    # what rounding or saturation move is little beside the law's own size
    wrong = ~((back - x).abs() <= 1e-2 * (x.abs().amax() + 1))
    if bool(wrong.any()):
        raise NoBijection(
            f"its support is said to be {named(support)}, but it draws values outside, such as "
            f"{float(x[wrong][0]):.4g}",
            WRONG_SUPPORT,
        )
    strict, u = checked(law, True), u[0]
    for value in (s * v for v in INSIDE for s in (1, -1)):
        point = torch.full_like(u, value)
        inside: Any = transform(point)
        again: Any = transform.inv(inside)
        if not bool(((again - point).abs() <= 0.1 * (1 + point.abs())).all()):
            continue  # rounded to the bound
        try:
            strict.log_prob(inside)
        except ValueError as error:
            raise NoBijection(
                f"its support is said to be {named(support)}, but it has no density at "
                f"{float(inside.reshape(-1)[0]):.4g} there ({str(error).splitlines()[0][:200]})",
                WRONG_SUPPORT,
            ) from error
        except (NotImplementedError, RuntimeError):  # no density at all: told elsewhere
            return


def _try_inverse(law: Distribution) -> None:
    """Refuse a transform that has no inverse but what it remembers: a flow to be sampled alone."""
    if not isinstance(law, TransformedDistribution):
        return
    try:
        x: Any = law.sample()
        law.log_prob(x.clone())
    except (KeyError, NotImplementedError) as error:
        if isinstance(error, NotImplementedError) and not _no_inverse(error):
            return  # no sampler, or no density of the base: told elsewhere
        raise NoBijection(
            f"{', '.join(map(kind, law.transforms))} cannot be inverted where it was not drawn, "
            "and there is no density without an inverse",
            "let its base be the site, and transform the value by pyro.deterministic",
        ) from error
    except (ValueError, RuntimeError):
        return


def _no_inverse(error: BaseException) -> bool:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_code.co_name in ("_inverse", "_inv_call", "inv")


@ordinary()
def checked(law: Distribution, checks: bool) -> Distribution:
    """A copy of a law that checks its values, or does not; nor do those inside it.

    torch.func.vmap allows no checks. Nor does it hold tensors that inference mode made, as far as
    they are its own.
    """
    twin = copy.copy(law)
    for name, value in vars(law).items():
        vars(twin)[name] = recordable(value)
        if isinstance(value, Distribution):
            vars(twin)[name] = checked(value, checks)
        elif isinstance(value, (list, tuple)) and any(isinstance(v, Distribution) for v in value):
            vars(twin)[name] = type(value)(
                checked(v, checks) if isinstance(v, Distribution) else v for v in value
            )
    vars(twin)["_validate_args"] = checks
    return twin
