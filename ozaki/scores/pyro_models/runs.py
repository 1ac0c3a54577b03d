"""These functions run a Pyro model in many places, to see what changes with its latent sites.

A support, a shape or an observation may be another where latent sites have other values. Two draws
from the prior seldom show it. Here a *run* is one call of the model, and not a whole MCMC.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Transform

from ozaki.foundation.process import unchecked
from ozaki.scores.bijections import law_transform, remedy
from ozaki.scores.differentiation import first_line, uniform
from ozaki.scores.singular import singular_is_nan
from ozaki.scores.supports import support_of, unwrapped

Model = Callable[[], Any]

NEAR = 2.0  # how far from 0, unconstrained, chains begin
FAR = (2.0, 8.0, 100.0)  # further distances at which a model is run, and may fail
SCATTERED = 100  # runs near 0, to see whether bounds move
RANDOM = 8  # runs with discrete sites at random values; half as many near 0


class Trial(NamedTuple):
    """A run of a model.

    Attributes:
        trace: what Pyro saw.
        discrete: whether the discrete sites alone were moved, the continuous ones held.
        near: whether chains may well begin there.
    """

    trace: Any
    discrete: bool
    near: bool

    @property
    def nodes(self) -> Mapping[str, Any]:
        """Site → Pyro's record of it."""
        return self.trace.nodes


@contextmanager
def unvalidated() -> Iterator[None]:
    """Leave the arguments and values of distributions, and matrices, unchecked for a while.

    A prior may draw values that its own model cannot take; the chains then start elsewhere.
    """
    with unchecked(), singular_is_nan():
        yield


def drawn(site: Mapping[str, Any]) -> Tensor:
    """Return a value for a site: a draw, or T(u) with u uniform(−2, 2) where none can be drawn.

    It has the form of Pyro's init strategies.
    """
    fn = site["fn"]
    try:
        value: Any = fn.sample().detach()
    except NotImplementedError:
        transform: Any = site_transform(site["name"], fn).inv
        shape = torch.Size(transform.inverse_shape(fn.batch_shape + fn.event_shape))
        like = torch.empty(())
        value = transform(uniform(1, shape.numel(), None, like).reshape(shape))
    value._pyro_custom_init = False  # which Pyro's reparametrisers would warn of
    return value


def site_transform(name: str, fn: Any) -> Transform:
    """Return the transform from a site's support to unconstrained coordinates.

    Raises:
        ValueError: no bijection leads there.
    """
    law = unwrapped(fn)
    try:
        if not support_of(fn).is_discrete:
            return law_transform(fn).inv
    except NotImplementedError as cause:
        raise ValueError(
            f"latent site {name!r} must have a support that a bijection leads to, but "
            f"{type(law).__name__} has none ({cause}); {remedy(fn, name, cause)}"
        ) from cause
    if getattr(law, "has_enumerate_support", False):
        each = len(law.enumerate_support(expand=False))
        entries = (fn.batch_shape + fn.event_shape).numel()
        raise ValueError(
            f"latent site {name!r} must have its entries in a pyro.plate to be summed out, but "
            f".to_event made one event of {entries} of them, with {each}^{entries} = "
            f"{each**entries} values that Pyro does not list; leave .to_event out and sample it in "
            "a plate"
        )
    raise ValueError(
        f"latent site {name!r} must be continuous, or discrete with finitely many values that Pyro "
        f"lists, but {type(law).__name__} is discrete and has no such list, nor a score; observe "
        "it, integrate it out, or replace it by a continuous approximation"
    )


class _Fill(Messenger):
    """A handler that gives a value to each site whose law cannot be drawn from."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and not isinstance(msg["fn"], _Subsample):
            msg["value"] = drawn(msg)


def run(model: Model) -> Any:
    """Run a model once by itself, even where some of its laws cannot be drawn from."""
    with poutine.block():
        try:
            return poutine.trace(model).get_trace()
        except NotImplementedError:
            return poutine.trace(_Fill()(model)).get_trace()


def begun(model: Model, strategy: Callable[..., Any], names: Sequence[str]) -> dict[str, Tensor]:
    """Return where one of Pyro's init strategies begins a chain: site → constrained value.

    Raises:
        ValueError: the strategy failed.
    """

    def chosen(site: Any) -> Any:
        # strategies are of continuous sites, and most of them refuse others
        discrete = getattr(unwrapped(site["fn"]), "has_enumerate_support", False)
        return drawn(site) if discrete else strategy(site)

    with poutine.block(), unvalidated():
        try:
            trace = poutine.trace(InitMessenger(chosen)(model)).get_trace()
        except Exception as error:  # whatever a strategy raises
            raise ValueError(
                f"init_strategy must give each latent site a value, but raised {first_line(error)}"
            ) from error
    nodes: Any = trace.nodes
    return {name: torch.as_tensor(nodes[name]["value"]).detach() for name in names}


def trials(
    model: Model,
    trace: Any,
    values: Mapping[str, Tensor],
    transforms: Mapping[str, Transform],
    enumerated: list[str],
) -> Iterator[Trial]:
    """Run a model with the latent sites elsewhere than in `trace`; leave out runs that fail.

    The continuous sites are at uniform(−2, 2) and at ±2, ±8 and ±100, unconstrained. All discrete
    sites take their first value, their second, … to the last, and then random values with equal
    chances. Equal values hide what depends on their spread, and the prior may hardly ever draw
    some of the values.

    Args:
        model: with its arguments bound.
        trace: one run of it.
        values: continuous latent site → its value there.
        transforms: site → constrained-to-unconstrained transform.
        enumerated: finite discrete latent sites.
    """
    us: dict[str, Any] = {name: transforms[name](value) for name, value in values.items()}

    def at(choose: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        return {name: transforms[name].inv(choose(u)) for name, u in us.items()}

    def anywhere(u: Tensor) -> Tensor:
        return (2 * torch.rand_like(u) - 1) * NEAR

    values_of = _Discrete(trace, enumerated)
    for far in (None,) * (RANDOM // 2) + tuple(s * v for v in FAR for s in (1, -1)):
        moved = at(anywhere) if far is None else at(lambda u, far=far: torch.full_like(u, far))
        found = _attempt(poutine.condition(model, {**moved, **values_of.mixed()}))
        if found is not None:
            yield Trial(found, False, far is None)
    for discrete in values_of:
        found = _attempt(poutine.condition(model, {**values, **discrete}))
        if found is not None:
            yield Trial(found, True, True)


def scattered(
    values: Mapping[str, Tensor], transforms: Mapping[str, Transform]
) -> Iterator[dict[str, Any]]:
    """Yield values of the continuous sites, each at uniform(−2, 2) unconstrained, many times."""
    us: dict[str, Any] = {name: transforms[name](value) for name, value in values.items()}
    for _ in range(SCATTERED):
        yield {n: transforms[n].inv((2 * torch.rand_like(u) - 1) * NEAR) for n, u in us.items()}


def laws(
    model: Model, values: Mapping[str, Any], names: Collection[str], depth: int | None
) -> dict[str, Any]:
    """Return the laws of some sites, for all combinations of the discrete sites at once.

    The run ends at the last of these sites: what comes after does not matter.

    Args:
        model: with its arguments bound.
        values: continuous latent site → its value.
        names: the sites.
        depth: how many dimensions to the left plates take; None where no site is discrete.

    Returns:
        Site → law, with dimensions in front for the discrete sites, as Pyro sums them out; those
        that the run came to before it failed.
    """
    at: Any = poutine.condition(model, dict(values))
    if depth is not None:
        at = poutine.enum(config_enumerate(at, "parallel"), first_available_dim=-1 - depth)
    found = _Laws(names)
    held: Any = found(at)
    _attempt(held)
    return found.laws


class _Laws(Messenger):
    """A handler that keeps the laws of some sites, and ends the run when it has them all."""

    def __init__(self, names: Collection[str]):
        super().__init__()
        self._names = frozenset(names)
        self.laws: dict[str, Any] = {}

    def _pyro_post_sample(self, msg: Mapping[str, Any]) -> None:
        if msg["name"] in self._names:
            self.laws[msg["name"]] = msg["fn"]
            if len(self.laws) == len(self._names):
                raise _Enough


class _Enough(Exception):
    """Raised to end a run that has given all that was wanted."""


def _attempt(model: Model) -> Any:
    try:
        with unvalidated():
            return run(model)
    except Exception:  # whatever a model raises where no chain need go
        return None


class _Discrete:
    """The values of the finite discrete sites."""

    def __init__(self, trace: Any, enumerated: list[str]):
        self._supports: dict[str, Tensor] = {}
        self._shapes: dict[str, torch.Size] = {}
        for name in enumerated:
            fn = trace.nodes[name]["fn"]
            found = fn.enumerate_support(expand=False)
            self._supports[name] = found.reshape(len(found), *fn.event_shape)
            self._shapes[name] = fn.batch_shape

    def mixed(self) -> dict[str, Tensor]:
        """Give each entry one of its values at random."""
        return self._taking(torch.randint)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if self._supports:
            for k in range(max(map(len, self._supports.values()))):
                yield self._taking(lambda n, shape, k=k: torch.full(shape, min(k, n - 1)))
            for _ in range(RANDOM):
                yield self.mixed()

    def _taking(self, place: Callable[[int, torch.Size], Tensor]) -> dict[str, Tensor]:
        return {n: s[place(len(s), self._shapes[n])] for n, s in self._supports.items()}
