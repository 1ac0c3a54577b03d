"""These functions check the arguments of `MCMC`.

The checks come before the run, since an error after it would lose the draws.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributions import Transform

from ozaki import diagnostics
from ozaki.kernels.target import Target
from ozaki.kernels.warmup import AGREED, Warmup
from ozaki.scores.differentiation import first_line
from ozaki.scores.pyro_models.layout import check_initial_params

WARMUP_LEAST = 6  # steps in which a step size can be found at all


def check_model_arguments(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise TypeError, naming the arguments the model takes, where it does not take these."""
    if model is None:
        return
    try:
        signature = inspect.signature(model)
    except (TypeError, ValueError):  # some built-in functions have none to read
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"run must be called with the arguments of the model, {signature}, but: {error}; if it "
            "is a log density and no Pyro model, pass LogDensityScore(model, shape) to the kernel"
        ) from None


def checked_transforms(transforms: Any) -> Any:
    """Check the `transforms` of `MCMC`, which map sites to transforms of torch."""
    if transforms is None:
        return None
    if not isinstance(transforms, Mapping):
        raise ValueError(
            f"transforms must be a dict of site → Transform, but was a {in_words(transforms)}"
        )
    for name, transform in transforms.items():
        if not isinstance(transform, Transform):
            raise ValueError(
                f"transforms[{name!r}] must be a torch Transform, but was {in_words(transform)}"
            )
    return transforms


def checked_names(argument: str, names: Any) -> list[str] | None:
    """Return the site names that an argument gives, as a list; None stands for all sites."""
    if names is None:
        return None
    listed = isinstance(names, (Sequence, set, frozenset)) and not isinstance(names, str)
    if not (listed and names and all(isinstance(name, str) for name in names)):
        raise ValueError(
            f"{argument} must be a list of site names, or None for all, but was {names!r}"
        )
    return list(names)


def in_words(value: Any) -> str:
    """Describe a value by its class, or say that the value is itself a class."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def check_own_transforms(target: Target, given: Mapping[str, Transform]) -> None:
    """Refuse transforms of sites that the model transforms itself, or does not have."""
    own, names = target.transforms, target.sites.names
    wrong = sorted(set(given) & set(own) | set(given) - set(names), key=str)
    if wrong:
        # another transform without its Jacobian would return draws of another law
        raise ValueError(
            f"transforms must name sites of a bare score, {list(set(names) - set(own))}, but "
            f"named {wrong}; a model or a distribution brings its own, leave them out"
        )


def try_transforms(transforms: Mapping[str, Transform], params: Mapping[str, Tensor]) -> None:
    """Raise ValueError for transforms that cannot be inverted where the chains begin."""
    for name, transform in transforms.items():
        try:
            transform.inv(params[name])
        except Exception as error:  # whatever a transform raises
            raise ValueError(
                f"transforms[{name!r}] must take draws of shape "
                f"{tuple(params[name].shape[1:])} by its inverse, but raised "
                f"{first_line(error)}"
            ) from error


def check_save_params(target: Target, names: Sequence[str] | None) -> None:
    """Refuse sites to keep that the model does not have, or that have no single value."""
    if names is None:
        return
    known, left_out = set(target.sites.names), {}
    if target.observation is not None:
        known |= set(target.observation.deterministic_names)
        left_out = target.observation.left_out
    unknown = sorted(set(names) - known)
    if unknown:
        why = "".join(
            f"; {sites} {reason}" for reason, sites in left_out.items() if set(sites) & set(unknown)
        )
        raise ValueError(
            f"save_params must name sites among {sorted(known)}, but named {unknown}{why}"
        )


def check_labels(
    target: Target, params: Mapping[str, Tensor], constrain: Callable[[Tensor], dict[str, Tensor]]
) -> None:
    """Refuse sites whose draws ArviZ cannot label; one draw of each is tried."""
    one = constrain(target.sites.flatten(params)[:1].unsqueeze(1))
    observed = {} if target.observation is None else target.observation.observed
    by_draw = {name: torch.as_tensor(value)[None, None] for name, value in observed.items()}
    labelled = diagnostics.inference_data(one, None, observed, log_likelihood=by_draw)
    if any(name.endswith("]") for name in one):  # the name is also that of an entry of another site
        diagnostics.components(labelled)


def starting_params(
    given: Mapping[str, Any] | None, target: Target, num_chains: int
) -> dict[str, Tensor] | None:
    """Check `initial_params`; return them as tensors with a leading chain dimension."""
    if given is None:
        return None
    lone = num_chains == 1
    leading = () if lone else (num_chains,)
    checked = check_initial_params(given, target.sites, leading)
    params = {
        name: (value.unsqueeze(0) if lone else value).detach().to(target.score.device)
        for name, value in checked.items()
    }
    found = target.score.expand(target.sites.flatten(params).to(target.score.dtype))
    good = found.gradient.isfinite().all(-1)
    if found.log_density is not None:
        good = good & found.log_density.isfinite()
    if not bool(good.all()):
        blamed = "" if target.observation is None else target.observation.blamed
        raise ValueError(
            "initial_params must lie where the log density and its gradient are finite, but "
            f"in chain(s) {(~good).nonzero().flatten().tolist()} they do not; begin elsewhere, "
            "or leave them out" + f" ({blamed})" * bool(blamed)
        )
    return params


def warn_unsettled(warmup: Warmup) -> None:
    """Warn where a warm-up that ends by itself took all its steps, and chains did not agree."""
    if warmup.rhat is not None and warmup.rhat > AGREED:
        warnings.warn(
            f"warmup_steps='auto' ended after {warmup.plan.total:,} steps with chains that do not "
            f"agree (R-hat {warmup.rhat:.2f} in the last window): give a larger number, look for "
            "modes that chains do not leave, or reparametrise the model",
            stacklevel=4,
        )


def check_step_size(
    given: float | None, warmup_steps: int | Literal["auto"], target: Target
) -> None:
    """Refuse a step size too large for the dtype; warn of a warm-up too short to find one."""
    dtype = target.score.dtype
    largest = torch.finfo(dtype).max
    if given is not None and given > largest:
        raise ValueError(
            f"step_size must be at most {largest:.2g}, the largest {dtype}, but was {given}"
        )
    if given is None and warmup_steps != "auto" and 0 < warmup_steps < WARMUP_LEAST:
        warnings.warn(
            f"warmup_steps is {warmup_steps}: too few to find a step size in; use 500 or "
            "more, or give the kernel a step_size",
            stacklevel=5,
        )
