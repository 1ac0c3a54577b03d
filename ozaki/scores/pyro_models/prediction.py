"""These functions compute likelihoods and predictions of a Pyro model at draws of its sites.

They give pointwise log-likelihoods and predictive draws, as ArviZ's `loo` and `plot_ppc` read them.
"""

import warnings
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor

from ozaki.foundation.process import isolated_rng
from ozaki.foundation.shapes import Float
from ozaki.scores.pyro_models.model import PyroModelScore
from ozaki.scores.pyro_models.runs import unvalidated


def pointwise(fn: Any, value: Tensor) -> Float[Tensor, "*points"]:
    """The log density of each observation in `value`, (*points,).

    The plates and batch dimensions of `fn` tell observations apart. Where there are none and
    `to_event` made one event of independent entries, the entries are the observations.
    """
    events = getattr(fn, "reinterpreted_batch_ndims", 0)
    if events and not fn.batch_shape and value.ndim <= len(fn.event_shape):
        return pointwise(fn.base_dist, value)
    return fn.log_prob(value)


def log_likelihood(
    score: PyroModelScore, x: Float[Tensor, "*batch dim"]
) -> dict[str, Float[Tensor, "..."]]:
    """Log p(observation | latent sites), observed site → (*batch, *points).

    Masked observations are 0; `poutine.scale` is left out: it says how a site is weighted and not
    how likely it is. A site whose law is known by its score alone has none, and is left out.

    Args:
        score: a Pyro model.
        x: flat unconstrained points, (*batch, D).
    """
    sites = [name for name in score.observed if name not in score.learned]
    if score.enumerated and sites:
        warnings.warn(
            f"the discrete sites {list(score.enumerated)} are summed out, so that the likelihood "
            f"of {sites} given the others does not fall into one factor an observation: no "
            "log_likelihood is given",
            stacklevel=2,
        )
        return {}

    def at(point: Tensor) -> dict[str, Tensor]:
        nodes = score.trace_at(point).nodes
        found = {}
        for name in sites:
            value = pointwise(nodes[name]["fn"], nodes[name]["value"])
            mask = nodes[name]["mask"]
            if mask is not None:
                value = torch.where(torch.as_tensor(mask), value, torch.zeros_like(value))
            found[name] = value
        return found

    return score.at_points(at, x) if sites else {}


def posterior_predictive(
    score: PyroModelScore, x: Float[Tensor, "*batch dim"], seed: int
) -> dict[str, Tensor]:
    """New data given each draw, observed site → (*batch, *shape of the data).

    Discrete sites that are one for each observation are drawn anew with it. Where others are summed
    out there is a warning, and nothing is given.

    Args:
        score: a Pyro model.
        x: flat unconstrained draws, (*batch, D).
        seed: of the new data.
    """
    sites = list(score.observed)
    if not sites:
        return {}
    if shared := _shared(score):
        warnings.warn(
            f"the discrete sites {shared} are summed out and are not one for each observation, so "
            "that their values given the data are not known: no posterior_predictive is given",
            stacklevel=2,
        )
        return {}
    draws = score.constrain(x.detach().reshape(-1, score.dim))
    found = _predict(score, seed, posterior_samples=draws, return_sites=sites)
    return {
        name: value.reshape(x.shape[:-1] + score.observed[name].shape)
        for name, value in found.items()
    }


def _shared(score: PyroModelScore) -> list[str]:
    """Name the summed-out sites that several observations have in common."""
    if not score.enumerated:
        return []
    with isolated_rng(0), unvalidated():
        nodes = score.trace_at(score.start(1, torch.Generator().manual_seed(0))[0]).nodes
    plates = {
        name: {frame.name for frame in nodes[name]["cond_indep_stack"]}
        for name in (*score.enumerated, *score.observed)
    }
    common = set[str]().union(*(plates[y] for y in score.observed))
    return [z for z in score.enumerated if not plates[z] or not common <= plates[z]]


def prior_predictive(
    score: PyroModelScore, count: int, seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`count` draws of latent sites from the prior, and of data from them, each (count, *shape).

    Args:
        score: a Pyro model.
        count: how many.
        seed: of the draws.
    """
    sites = [*score.names, *score.observed]
    found = _predict(score, seed, num_samples=count, return_sites=sites)
    like = {**score.constrain(torch.zeros(score.dim, dtype=score.dtype)), **score.observed}
    # Predictive's own plate can leave a dimension of 1 behind
    shaped = {
        name: v.reshape(count, *torch.as_tensor(like[name]).shape) for name, v in found.items()
    }
    data = {name: shaped.pop(name) for name in score.observed}
    return shaped, data


def _predict(score: PyroModelScore, seed: int, **options: Any) -> dict[str, Tensor]:
    model = poutine.uncondition(score.model)
    with isolated_rng(seed), torch.no_grad():
        found: dict[str, Tensor] = Predictive(model, **options)()
    return {name: value.detach() for name, value in found.items()}
