"""`PyroModelScore` makes a Pyro model a score over all its continuous latent sites.

Pyro's own `initialize_model` gives the potential in unconstrained coordinates, with the Jacobians
in it. This module lays the sites flat and batches the potential over chains. It never assumes that
a model can be batched: it compares one batch with a loop.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from torch.distributions import Transform
from torch.func import vmap

from ozaki.foundation import validation
from ozaki.foundation.process import isolated_rng, seed_from
from ozaki.foundation.shapes import Float
from ozaki.foundation.torch_modes import ordinary, recordable
from ozaki.scores.base import CurvatureKind, Expansion, Score, dense_up_to
from ozaki.scores.batching import Batching
from ozaki.scores.differentiation import evaluated, finite_start, uniform
from ozaki.scores.pyro_models.data import has_others, observing, with_tensors
from ozaki.scores.pyro_models.inspection import Latents, inspect, located_scale
from ozaki.scores.pyro_models.layout import Sites, check_initial_params
from ozaki.scores.pyro_models.runs import begun, drawn, unvalidated
from ozaki.scores.pyro_models.site import apart, reader, reading_scores
from ozaki.scores.replays import Replays
from ozaki.scores.singular import LinAlgError
from ozaki.scores.trials import agree

InitStrategy = Callable[..., Any]
"""One of Pyro's: a site, as a trace has it → a constrained value."""


class PyroModelScore(Score):
    """log p(u) = log p(T(u), data) + log|det ∂T/∂u| of a Pyro model, and its derivatives.

    The latent sites lie in one flat point u, in sorted order of their names, unconstrained.
    Finite discrete sites are summed out by Pyro.

    Args:
        model: a Pyro model: a function, or a PyroModule.
        args: its arguments. Where it cannot compute with NumPy's arrays or frames among them, they
            become tensors, their floating-point numbers of torch's default dtype.
        kwargs: its keyword arguments.
        transforms: site → constrained-to-unconstrained transform, for sites that should not take
            the inverse of biject_to(support).
        initial_params: site → unconstrained tensor where every chain begins; None for
            uniform(−2, 2).
        init_strategy: where chains begin, one of Pyro's, as `init_to_median` or
            `init_to_value(values=...)`; None for uniform(−2, 2).
        vectorize: "auto" batches over chains where that agrees with a loop, and warns where it does
            not; False always loops; True raises where it would warn.

    Attributes:
        sites: the layout; also `names` and `shapes` (unconstrained).
        transforms: site → constrained-to-unconstrained transform, Pyro's convention.
        observed: observed site → value; also `data`, those that stay what they are.
        enumerated: the finite discrete sites that are summed out.
        learned: sites of which only a score is known (see `ScoreDistribution`).
        model: the model with its arguments bound.
        deterministic_names: the `pyro.deterministic` sites that have one value at a point.

    Raises:
        ValueError: no model, none or the wrong kind of latent sites (countable, subsampled, of a
            support that depends on other sites), a density that is random.

    Source: Bingham et al., "Pyro" (2019); the coordinates are those of its HMC.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> score = PyroModelScore(lambda: pyro.sample("scale", dist.Exponential(2.0)))
        >>> score.expand(torch.zeros(1)).gradient          # u = log scale: 1 − 2 eᵘ
        tensor([-1.])
    """

    @ordinary()
    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        transforms: Mapping[str, Transform] | None = None,
        initial_params: Mapping[str, Tensor] | None = None,
        init_strategy: InitStrategy | None = None,
        vectorize: bool | str = "auto",
    ):
        if not callable(model):
            raise ValueError(f"model must be a Pyro model, a callable, but was {model!r}")
        self._vectorize = validation.choice("vectorize", vectorize, ("auto", True, False))
        bound: Any = recordable((tuple(args), dict(kwargs or {})))
        self._made_of = (model, bound[0], bound[1], transforms, initial_params)
        self._init_strategy = init_strategy
        self._transforms = transforms or {}
        prototype: Any
        with isolated_rng(0):
            self.model, found = self._inspected(model, bound[0], bound[1])
            # its sites' transforms are known, so it is kept from finding them and from searching
            # for starting points
            with unvalidated():
                _, self._potential, self.transforms, prototype = initialize_model(
                    self.model,
                    transforms=dict(found.transforms),
                    max_plate_nesting=found.max_plate_nesting,
                    init_strategy=drawn,
                    initial_params={},
                )
        self.observed, self.enumerated = found.observed, found.enumerated
        self._complaint = found.complaint
        self.learned, self._priors = found.learned, found.priors
        self._settle(found)
        self.moving, self.masked, self._open = found.moving, found.masked, found.unbounded
        self._undetermined = dict(found.undetermined)
        for name, shape in found.deterministic.items():
            # a value that depends on a summed-out site has here an entry for each value of it
            if prototype.nodes[name]["value"].shape != shape:
                self._undetermined.setdefault(
                    name,
                    f"depend on the discrete sites {list(self.enumerated)}, which are summed out",
                )
        self.deterministic_names = [n for n in found.deterministic if n not in self._undetermined]
        self._initial = None
        if initial_params is not None:
            self._initial = self.sites.flatten(check_initial_params(initial_params, self.sites))
        hindrance = remedy = None
        if self.enumerated:
            remedy = "a mixture written as dist.MixtureSameFamily, without its labels, is batched"
            hindrance = f"its discrete sites {list(self.enumerated)} are summed out by enumeration"
            with isolated_rng(0), unvalidated():  # Pyro checks here that its plates fit
                self._log_density(self._probe()[0])
        self._batching = Batching(
            self._log_density, self._probe(), self._vectorize, hindrance, remedy
        )
        with self._same_sites():
            self._batching.check_repeatable()
        self._learned_part = Batching(self._learned_density, self._probe(), self._vectorize)
        self._replays: Replays | None = None
        self._learned_replays: Replays | None = None

    def _inspected(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Callable[[], Any], Latents]:
        """Bind the model to its arguments, and sort its sites."""
        given, tensors = partial(model, *args, **kwargs), with_tensors(model, args, kwargs)
        try:
            found, failed = inspect(given, self._transforms), None
        except Exception as error:  # Pyro raises several kinds of error where data are no tensors
            found, failed = None, error
            if has_others((args, kwargs)) or not isinstance(error, ValueError):
                with suppress(Exception):
                    return tensors, inspect(tensors, self._transforms)
        if found is None:
            assert failed is not None
            raise failed  # out here it keeps what it was raised from
        if not found.untaken:
            return given, found
        if all(isinstance(value, Tensor) for value in found.observed.values()):
            return observing(given), inspect(observing(given), self._transforms)
        return tensors, inspect(tensors, self._transforms)

    def _settle(self, found: Latents) -> None:
        """Lay the sites out in one flat point, and choose its dtype and device."""
        unconstrained: dict[str, Any] = {
            name: found.transforms[name](value) for name, value in found.values.items()
        }
        self._latent_shapes = {name: tuple(value.shape) for name, value in found.values.items()}
        self.sites = Sites({name: u.shape for name, u in unconstrained.items()})
        self.names, self.shapes, self.dim = self.sites.names, self.sites.shapes, self.sites.dim
        self.event_shape = torch.Size([self.dim])
        self.dtype = self.sites.flatten(unconstrained).dtype  # promoted over the sites
        self.device = unconstrained[self.names[0]].device

    @property
    def default_curvature(self) -> CurvatureKind:
        """Dense up to D = 100, diagonal beyond."""
        return dense_up_to(self.dim)

    def expand(
        self, x: Float[Tensor, "*batch dim"], curvature: CurvatureKind | None = None
    ) -> Expansion:
        """Gradient, curvature ("diagonal" or "dense") and log density at `x`, (*batch, D)."""
        self.check(x, curvature)
        if curvature is not None:
            self._check_curvature()
        with reading_scores(curvature is not None), self._same_sites():
            found = self._batching.expand(x, curvature, self._replays)
        # outside: of that part no second derivative is read
        return (
            found._replace(score_gradient=self.densityless_gradient(x)) if self.learned else found
        )

    def settled(self) -> "PyroModelScore":
        """The same score with recordings of its own, for one run.

        Returns:
            Another object with the same law.
        """
        found = object.__new__(type(self))  # a copy would inspect the model anew
        vars(found).update(vars(self))
        found._replays, found._learned_replays = Replays(reader), Replays(reader)
        return found

    def resettle(self) -> None:
        """Forget what was recorded."""
        for replays in (self._replays, self._learned_replays):
            if replays is not None:
                replays.forget()

    def _check_curvature(self) -> None:
        """Refuse a second derivative of the density that is not how its gradient changes."""
        with self._same_sites():
            with reading_scores():
                self._batching.possible()  # of all of it: remembered, and asked of a part below
            with apart():
                self._batching.check_curvature()

    def log_prob(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """The log density, of the part that has one, at `x`, (*batch, D)."""
        with reading_scores(False), self._same_sites():
            return self._batching.values(x)

    def densityless_gradient(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """The gradient of its learned priors alone at `x`, (*batch, D)."""
        return (
            self._learned_part.expand(x, None, self._learned_replays).gradient
            if self.learned
            else super().densityless_gradient(x)
        )

    def start(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """`n` points where density and gradient are finite, redrawn where they are not, (n, D).

        Raises:
            ValueError: still not finite after 100 tries.
        """
        if self._initial is not None:
            return self._initial.expand(n, -1).clone()
        try:
            return finite_start(self._draw, self.expand, n, generator)
        except ValueError as error:
            if not self.blamed:
                raise
            raise ValueError(f"{error} ({self.blamed})") from error

    @property
    def data(self) -> dict[str, Tensor]:
        """Observed site → value, for sites whose value does not change with the latent sites.

        An observed residual, such as `obs=y - f(x)`, has a likelihood and is no data.
        """
        return {name: v for name, v in self.observed.items() if name not in self.moving}

    @ordinary()
    def flat(self) -> dict[str, Tensor]:
        """Find entries of sites on which the density does not depend: site → mask of its shape.

        An entry of a half-bounded or unbounded site on which the density does not depend at any of
        some points, near 0 and far from it, is improper: chains walk off in it without end.
        """
        with isolated_rng(1):
            points, far = self._near(4, None), 50 * self._near(4, None)
        gradient = self.expand(points).gradient
        try:
            gradient = torch.cat([gradient, self.expand(far).gradient])
            points = torch.cat([points, far])
        except Exception:  # whatever a model raises where no chain need go
            pass
        known = gradient.isfinite()
        with torch.enable_grad():
            u = points.detach().requires_grad_()
            terms = [
                self.transforms[name].inv.log_abs_det_jacobian(v, self.transforms[name].inv(v))
                for name, v in self.unflatten(u).items()
            ]
            jacobian = sum((term.sum() for term in terms), u.sum() * 0)
            of_jacobian = torch.autograd.grad(jacobian, u)[0]
        rounding = 1e-4 * of_jacobian.abs()
        free = (((gradient - of_jacobian).abs() <= rounding) | ~known).all(0) & known.any(0)
        sites = self.unflatten(free.to(self.dtype)).items()
        return {name: v > 0 for name, v in sites if name in self._open and bool(v.any())}

    @ordinary()
    def centred(self) -> list[str]:
        """Name the latent sites of a location-scale law whose scale moves with other latent sites.

        Their reparametrisation, by which the scale leaves the prior, is `LocScaleReparam` of Pyro.
        """
        with isolated_rng(1):
            point = self._near(1, None)[0]
        with torch.enable_grad(), unvalidated():
            u = recordable(point.detach()).requires_grad_()
            try:
                trace = self.trace_at(u)
            except Exception:  # a model may refuse what asks for gradients; then nothing is known
                return []
            found = []
            for name in self.names:
                scale = located_scale(trace.nodes[name]["fn"])
                if scale is None or not scale.requires_grad:
                    continue
                moves = torch.autograd.grad(scale.sum(), u, retain_graph=True, allow_unused=True)[0]
                if moves is not None and bool((moves != 0).any()):
                    found.append(name)
        return found

    @property
    def blamed(self) -> str:
        """Say what could make the density NaN everywhere; empty where nothing is known."""
        missing = [
            name
            for name, value in self.observed.items()
            if not bool(torch.isfinite(torch.as_tensor(value)).all())
        ]
        if missing:
            return f"observed site(s) {missing} hold NaN or infinite entries"
        return f"at draws from the prior: {self._complaint}" if self._complaint else ""

    def flatten(self, params: Mapping[str, Tensor]) -> Float[Tensor, "*batch dim"]:
        """Site → unconstrained tensor, any batch dimensions in front → points, (*batch, D)."""
        return self.sites.flatten(params)

    def unflatten(self, x: Float[Tensor, "*batch dim"]) -> dict[str, Tensor]:
        """Points, (*batch, D) → site → unconstrained tensor."""
        return self.sites.unflatten(x)

    def constrain(self, x: Float[Tensor, "*batch dim"]) -> dict[str, Any]:
        """Points, (*batch, D) → site → constrained tensor."""
        return {name: self.transforms[name].inv(u) for name, u in self.unflatten(x).items()}

    def deterministic(self, x: Float[Tensor, "*batch dim"]) -> dict[str, Tensor]:
        """The `pyro.deterministic` sites at points (*batch, D): site → (*batch, *site shape).

        A site whose value depends on a summed-out one, or whose shape changes, has none, and is
        left out with a warning.
        """
        for why, names in self.left_out.items():
            warnings.warn(f"deterministic sites {names} {why}: they are left out", stacklevel=2)
        if not self.deterministic_names:
            return {}
        return self.at_points(self._deterministic_at, x)

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Why deterministic sites have no single value, in words → the sites."""
        found: dict[str, list[str]] = {}
        for name, why in self._undetermined.items():
            found.setdefault(why, []).append(name)
        return found

    def at_points(
        self, f: Callable[[Tensor], dict[str, Tensor]], x: Float[Tensor, "*batch dim"]
    ) -> dict[str, Tensor]:
        """Evaluate `f` at each point, batched over them where that agrees with a loop.

        Args:
            f: one point, (D,) → name → tensor; it draws no random numbers.
            x: points, (*batch, D).

        Returns:
            Name → (*batch, *shape).
        """
        points = x.detach().reshape(-1, self.dim)
        with isolated_rng(0), torch.no_grad():
            found = evaluated(partial(self._batched, f, points))
            if found is None:
                found = _stacked([evaluated(partial(f, point)) for point in points])
        return {name: v.reshape(x.shape[:-1] + v.shape[1:]) for name, v in found.items()}

    def _batched(
        self, f: Callable[[Tensor], dict[str, Tensor]], points: Tensor
    ) -> dict[str, Tensor] | None:
        """Evaluate `f` by vmap; return None where that fails or differs from one evaluation."""
        if self.enumerated or not self._vectorize:
            return None
        try:
            found = vmap(f, chunk_size=1000)(points)
        except LinAlgError:
            raise
        except Exception:  # a model may raise anything under vmap; the loop is the answer to all
            return None
        first = f(points[0])
        return found if all(agree(v[0], first[n]) for n, v in found.items()) else None

    def trace_at(self, point: Float[Tensor, "dim"]) -> Any:
        """Pyro's trace of the model with its latent sites at `point`."""
        return poutine.trace(poutine.condition(self.model, self.constrain(point))).get_trace()

    @contextmanager
    def _same_sites(self) -> Iterator[None]:
        """Where the block fails, raise an error that says whether the model's sites changed."""
        try:
            yield
        except Exception as error:  # whatever a model raises
            then = self._latent_shapes
            with isolated_rng(0):
                found = inspect(self.model, self._transforms)
            now = {name: tuple(value.shape) for name, value in found.values.items()}
            if now == then:
                raise
            changed = sorted(n for n in {*now, *then} if now.get(n) != then.get(n))
            raise ValueError(
                "model must have the same latent sites, of the same shapes, at every call, but "
                f"{changed} had {[then.get(n) for n in changed]} and now have "
                f"{[now.get(n) for n in changed]}; let them depend on the data alone"
            ) from error

    def _deterministic_at(self, point: Tensor) -> dict[str, Tensor]:
        trace = self.trace_at(point)
        return {name: trace.nodes[name]["value"] for name in self.deterministic_names}

    def _log_density(self, point: Tensor) -> Tensor:
        with reading_scores():
            return -self._potential(self.sites.unflatten(point))

    def _learned_density(self, point: Tensor) -> Tensor:
        """Return a number whose gradient is that of the part without a density."""
        with reading_scores(False):
            trace = self.trace_at(point)
            trace.compute_log_prob(lambda name, node: name in self.learned)
            return sum((trace.nodes[n]["log_prob_sum"] for n in self.learned), point.new_zeros(()))

    def _draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        if self._init_strategy is not None:
            with isolated_rng(seed_from(generator)):
                return torch.stack([self._begun(self._init_strategy) for _ in range(n)])
        return self._near(n, generator)

    def _begun(self, strategy: InitStrategy) -> Float[Tensor, "dim"]:
        """Return the point where a chain begins by one of Pyro's strategies."""
        values = begun(self.model, strategy, self.names)
        for name, value in values.items():
            if tuple(value.shape) != self._latent_shapes[name]:
                raise ValueError(
                    f"init_strategy must give site {name!r} a value of shape "
                    f"{self._latent_shapes[name]}, but gave one of {tuple(value.shape)}"
                )
        return self.sites.flatten(
            {name: self.transforms[name](value).to(self.dtype) for name, value in values.items()}
        )

    def _near(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw uniform(−2, 2), and for learned priors their own starting points."""
        like = torch.empty((), dtype=self.dtype, device=self.device)
        points = uniform(n, self.dim, generator, like)
        if not self._priors:
            return points
        params = self.sites.unflatten(points)
        with isolated_rng(seed_from(generator)):
            for name, prior in self._priors.items():
                params[name] = self.transforms[name](prior.sample((n,)).to(points))
        return self.sites.flatten(params)

    def _probe(self) -> Tensor:
        """Draw twenty points, (20, D), near where chains begin."""
        near = self._near(20, torch.Generator().manual_seed(1))
        return near if self._initial is None else self._initial + 0.01 * near

    def __reduce__(self) -> tuple[Any, ...]:
        # a copy builds Pyro's potential, and all that was found about it, anew
        return _rebuild, (*self._made_of, self._init_strategy, self._vectorize)


def _stacked(each: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the values that have one shape at all points; leave out the rest with a warning."""
    uneven = [n for n in each[0] if len({e[n].shape for e in each}) > 1]
    if uneven:
        warnings.warn(
            f"sites {uneven} change their shape from draw to draw: they are left out", stacklevel=2
        )
    return {n: torch.stack([e[n] for e in each]) for n in each[0] if n not in uneven}


def unconstrain(
    model: Callable[..., Any], samples: Mapping[str, Tensor], *args: Any, **kwargs: Any
) -> Float[Tensor, "*batch dim"]:
    """Draws of a model's latent sites as flat unconstrained points, to train a score on.

    Args:
        model: a Pyro model.
        samples: site → constrained draws, (*batch, *site shape).
        args: the model's arguments.
        kwargs: its keyword arguments.

    Returns:
        (*batch, D), the sites in sorted order of their names.

    Raises:
        ValueError: sites missing or too many, shapes that do not fit, draws outside the support.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> model = lambda: pyro.sample("scale", dist.Exponential(2.0))
        >>> unconstrain(model, {"scale": torch.tensor([1.0, 2.0])})  # its logarithm
        tensor([[0.0000],
                [0.6931]])
    """
    score = PyroModelScore(model, args, kwargs, vectorize=False)
    unknown = sorted(set(samples) ^ set(score.names))
    if unknown:
        raise ValueError(
            f"samples must have the sites {list(score.names)}, but differed in {unknown}"
        )
    u: dict[str, Any] = {name: score.transforms[name](samples[name]) for name in score.names}
    for name, value in u.items():
        # a bijection takes values outside its range to the nearest ones inside
        back: Any = score.transforms[name].inv(value)
        if not torch.allclose(back, samples[name], rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"samples[{name!r}] must be finite and in the support of its site, but "
                f"{int((~torch.isclose(back, samples[name], 1e-3, 1e-3)).sum())} of its "
                f"{samples[name].numel()} entries were not"
            )
        validation.finite(f"samples[{name!r}], unconstrained,", value)
    return score.flatten(u)


def _rebuild(
    model: Any, args: Any, kwargs: Any, transforms: Any, initial: Any, strategy: Any, vectorize: Any
) -> PyroModelScore:
    """Build a score anew, as `pickle` and `copy` ask."""
    return PyroModelScore(
        model,
        args,
        kwargs,
        transforms=transforms,
        initial_params=initial,
        init_strategy=strategy,
        vectorize=vectorize,
    )
