"""`Sites` maps named sites to flat points and back; models and kernels share this layout."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ozaki.foundation import validation
from ozaki.foundation.shapes import Float


class Sites:
    """The layout of a flat point: where each site's tensor lies, in sorted order of the names.

    Args:
        shapes: site → unconstrained shape of one point.

    Attributes:
        names: the sites, sorted.
        shapes: as given.
        dim: D, the sum of the sizes.

    Example:
        >>> sites = Sites({"b": (2,), "a": ()})
        >>> sites.names, sites.dim
        (('a', 'b'), 3)
        >>> sites.unflatten(torch.tensor([0.0, 1.0, 2.0]))["b"]
        tensor([1., 2.])
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]):
        self.names = tuple(sorted(shapes))
        self.shapes = {name: torch.Size(shapes[name]) for name in self.names}
        self._sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.dim = sum(self._sizes)

    def flatten(self, params: Mapping[str, Tensor]) -> Float[Tensor, "*batch dim"]:
        """Tensors of shape (*batch, *site shape) → points, (*batch, D).

        Raises:
            ValueError: sites missing or too many, or shapes that do not fit.
        """
        _same_names("params", params, self)
        values = {name: torch.as_tensor(params[name]) for name in self.names}
        first, shape = values[self.names[0]], self.shapes[self.names[0]]
        batch = first.shape[: first.ndim - len(shape)]
        for name, value in values.items():
            validation.shape(f"params[{name!r}]", value, (*batch, *self.shapes[name]))
        return torch.cat(
            [
                v.flatten(len(batch)) if v.ndim > len(batch) else v.unsqueeze(-1)
                for v in values.values()
            ],
            -1,
        )

    def unflatten(self, x: Float[Tensor, "*batch dim"]) -> dict[str, Tensor]:
        """Points, (*batch, D) → site → tensor of shape (*batch, *site shape)."""
        if x.shape[-1] != self.dim:
            raise ValueError(f"x must have shape (*batch, {self.dim}), but had {tuple(x.shape)}")
        parts = x.split(self._sizes, -1)
        return {
            name: part.reshape(x.shape[:-1] + shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def __repr__(self) -> str:
        return f"Sites({ {name: tuple(shape) for name, shape in self.shapes.items()} })"


def check_initial_params(
    params: Mapping[str, Tensor], sites: Sites, leading: Sequence[int] = ()
) -> dict[str, Tensor]:
    """Return `params` as tensors if they can begin the chains.

    Args:
        params: site → unconstrained tensor, (*leading, *site shape), or all of them
            (*site shape), one start for all chains.
        sites: the layout they must fit.
        leading: the dimensions in front: `(num_chains,)`, or none for one chain.

    Raises:
        ValueError: not a dict, sites missing or unknown, a shape that does not fit, an entry that
            is not floating-point or not finite.
    """
    if not isinstance(params, Mapping):
        raise ValueError(
            f"initial_params must be a dict of site → tensor, but was a {type(params).__name__}"
        )
    _same_names("initial_params", params, sites)
    label = "initial_params[{!r}]".format
    values = {name: validation.floating(label(name), params[name]) for name in sites.names}
    if leading and all(tuple(v.shape) == tuple(sites.shapes[n]) for n, v in values.items()):
        return {name: v.expand(*leading, *v.shape) for name, v in values.items()}
    for name, value in values.items():
        expected = (*leading, *sites.shapes[name])
        if tuple(value.shape) != expected:
            chains = f" ({leading[0]} chains in front, or none for all)" if leading else ""
            raise ValueError(
                f"{label(name)} must have shape {expected}{chains}, in unconstrained coordinates, "
                f"but had {tuple(value.shape)}"
            )
    return values


def _same_names(argument: str, params: Mapping[str, Tensor], sites: Sites) -> None:
    """Raise ValueError for sites that are missing or unknown."""
    missing = sorted(set(sites.names) - set(params))
    unknown = sorted(set(params) - set(sites.names), key=str)
    if missing or unknown:
        raise ValueError(
            f"{argument} must have the sites {list(sites.names)}, but it lacked {missing} and had "
            f"{unknown} besides; name every latent site and no other"
        )
