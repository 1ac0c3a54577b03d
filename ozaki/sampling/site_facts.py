"""`site_facts` finds the facts about sites that a verdict on their draws needs.

Each fact is an attribute of the site's variable in the posterior, in the form in which files keep
it, and is read by `ozaki.diagnostics.verdict`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributions import IndependentTransform, Transform

from ozaki.foundation.shapes import Float
from ozaki.kernels.target import Target
from ozaki.scores.bijections import WrapTransform

LOST = 0.5  # error of an unconstrained coordinate after the transform and its inverse


def site_facts(
    target: Target, position: Float[Tensor, "chains draws dim"]
) -> dict[str, dict[str, Any]]:
    """Return site → attribute → value, for the sites about which there is a fact.

    - ``circular``: 1 where values are angles, in radians.
    - ``saturated``: the share of draws of which the dtype does not hold the value: back in
      unconstrained coordinates it is another, and the density there is not the law's.
    - ``flat``, ``masked``: which entries, in the order of the flattened site, the density does not
      depend on, and which of those the model itself leaves out by a mask.
    - ``centred``: 1 where the site's scale is itself drawn, and it could be drawn without.

    Args:
        target: what was walked on.
        position: flat unconstrained draws, (chains, draws, D).
    """
    found: dict[str, dict[str, Any]] = {}
    for name, u in target.sites.unflatten(position).items():
        facts = {}
        if name in target.transforms:
            transform = target.transforms[name].inv
            if _wraps(transform):
                facts["circular"] = 1
            elif share := _saturated(transform, u):
                facts["saturated"] = share
        found[name] = facts
    model = target.observation
    if model is not None:
        for name in model.centred():
            found[name]["centred"] = 1
        for name, free in model.flat().items():
            masked = model.masked.get(name, torch.tensor(True))
            # its draws walk off without end: no other fact about them matters
            found[name] = {"flat": _places(free)}
            if own := _places(free & ~masked):
                found[name]["masked"] = own
    return {name: facts for name, facts in found.items() if facts}


def _wraps(transform: Transform) -> bool:
    while isinstance(transform, IndependentTransform):
        transform = transform.base_transform
    return isinstance(transform, WrapTransform)


def _saturated(transform: Any, u: Float[Tensor, "chains draws *shape"]) -> float:
    """Return the share of draws that a transform and its inverse do not give back."""
    with torch.no_grad():
        back = transform.inv(transform(u))
    lost = ~((back - u).abs() <= LOST)
    return (
        float(lost.flatten(2).any(-1).float().mean()) if u.ndim > 2 else float(lost.float().mean())
    )


def _places(mask: Tensor) -> list[int]:
    return mask.reshape(-1).nonzero().flatten().tolist()
