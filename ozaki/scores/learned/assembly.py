"""`build` makes a network that fits the data: the units, the noise level, baseline and trunk.

It turns settings and clean rows into the objects that a training begins with. It trains nothing.
"""

import copy
import math

import torch
from torch import nn

from ozaki.scores.learned.baseline import Baseline, fitted, starting_signs, variances
from ozaki.scores.learned.data_source import Source
from ozaki.scores.learned.mlp import Trunks
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork
from ozaki.scores.learned.settings import TrainerSettings
from ozaki.scores.learned.standardisation import Standardisation, standardisation
from ozaki.scores.learned.unet import UNet, channels_of

LARGEST_SIGMA = 100  # in spreads: above it the smoothed law is almost the noise
# in spreads: below it the losses, of size 1/σ², are only rounding in that dtype
SMALLEST_SIGMA = {torch.float32: 1e-3, torch.float64: 1e-7}
# in spreads: below the first, the targets of orders 3 and 4 are all noise. From the second on, all
# laws that were tried, in up to 5 dimensions, were learned better than a constant
HIGH_ORDER_FROM, HIGH_ORDER_AUTO = 0.3, 0.5
DEFAULT_RANK = 20
LEAST_WIDTH, MOST_WIDTH = 64, 512  # between them the width is twice the dimension
MOST_BASELINE = 1024  # most dimensions: it takes an eigendecomposition and keeps two D × D matrices
LEAST_GAIN = 3.0  # gain over an isotropic baseline; below it clusters are learned better without
SIGN_ROWS = 2048  # rows to which a normal is fitted for the first signs of low-rank weights


def build(
    settings: TrainerSettings,
    source: Source,
    device: torch.device,
    module: nn.Module | None = None,
) -> tuple[Standardisation, ScoreNetwork]:
    """The data's units, and a network that is to be trained in them.

    The initial weights are drawn from torch's global random state.

    Args:
        settings: what is to be learned, and by what.
        source: the clean rows.
        device: where both are put.
        module: a trunk of the user's own, which is copied; None for one of ozaki's.

    Raises:
        ValueError: rows that cannot be learned from, a rank or a sigma that does not fit them, or
            a network that does not take or give the right shapes or has nothing to train.
    """
    rows = source.train
    dim, kind = rows.shape[1], settings.standardize
    if settings.rank is not None and settings.rank > dim:
        raise ValueError(
            f"rank must be at most the dimension of the data, {dim}, but was {settings.rank}"
        )
    if kind == "auto":
        kind = "columns" if len(source.event_shape) == 1 else None
    units, centre, spread = standardisation(rows, kind, settings.dtype)
    sigma = _noise_level(settings, len(rows) + len(source.held), spread)
    heads = _heads(settings, dim)
    trunk = _trunk(settings, source.event_shape, heads, module)
    network = ScoreNetwork(trunk, source.event_shape, sigma, heads, centre, spread)
    _set_start(network, settings, source, units, may_depart(settings, source.event_shape, module))
    network = network.to(device, settings.dtype)
    network.check(torch.empty(0, dtype=settings.dtype, device=device))
    return units.to(device), network


def may_depart(
    settings: TrainerSettings, event_shape: torch.Size, module: nn.Module | None = None
) -> bool:
    """Say whether s1 and s2 may be learned as differences from those of a normal."""
    if settings.baseline is not None:
        return settings.baseline
    plain = len(event_shape) == 1 and event_shape.numel() <= MOST_BASELINE
    return module is None and settings.network is None and plain


def _heads(settings: TrainerSettings, dim: int) -> Heads:
    """Choose which scores the network estimates, and in what form."""
    rank = 0
    if settings.curvature == "low_rank":
        rank = min(DEFAULT_RANK, dim) if settings.rank is None else settings.rank
    return Heads(settings.order if settings.objective else 1, rank, settings.signed)


def _trunk(
    settings: TrainerSettings, event_shape: torch.Size, heads: Heads, module: nn.Module | None
) -> nn.Module:
    """A trunk of ozaki's own with random weights, or a copy of the user's."""
    if module is not None:
        _check_trainable(module)
        return copy.deepcopy(module)
    if settings.network is not None:
        channels = channels_of(event_shape)
        return UNet(channels, heads.order, heads.rank, settings.network, settings.width)
    dim = event_shape.numel()
    return Trunks(
        dim,
        heads.order,
        heads.rank,
        settings.width or min(MOST_WIDTH, max(LEAST_WIDTH, 2 * dim)),
        settings.depth,
        isinstance(settings.sigma, tuple),
        settings.shared,
    )


def _set_start(
    network: ScoreNetwork,
    settings: TrainerSettings,
    source: Source,
    units: Standardisation,
    depart: bool,
) -> None:
    """Let the network begin at a normal fitted to the rows, or its weights at matching signs."""
    sigma, heads, rows = network.sigma, network.heads, source.train
    level = math.sqrt(sigma[0] * sigma[1]) if isinstance(sigma, tuple) else sigma
    base: Baseline | None = None
    if depart:
        seen, held = (units.forward(part, torch.float64) for part in (rows, source.held))
        base = fitted(seen, held, level, heads.rank, heads.signed)
        if settings.baseline is None and base.gain(level) < LEAST_GAIN:
            base = None
    if base is not None:
        network.depart_from(base)
    elif network.weights is not None:
        some = rows[:: max(1, len(rows) // SIGN_ROWS)][:SIGN_ROWS]
        spectrum = variances(units.forward(some, torch.float64))
        network.weights.data.copy_(starting_signs(spectrum, level, heads.rank))


def _noise_level(settings: TrainerSettings, n: int, spread: float) -> float | tuple[float, float]:
    """Return σ for n rows of standard deviation `spread`: the given one, or one chosen by n.

    Raises:
        ValueError: it is beyond what can be learned from these data.
    """
    sigma, order = settings.sigma, settings.order
    if isinstance(sigma, str):
        return spread * max(n ** (-1 / 6), HIGH_ORDER_AUTO if order > 2 else 0)
    smallest = SMALLEST_SIGMA[settings.dtype]
    for value in sigma if isinstance(sigma, tuple) else (sigma,):
        if value > LARGEST_SIGMA * spread:
            raise ValueError(
                f"sigma must be at most {LARGEST_SIGMA} times the spread of the data as "
                f"trained on ({spread:.4g}), but was {sigma}; lower it, or pass "
                "sigma='auto'"
            )
        if value < smallest * spread:
            raise ValueError(
                f"sigma must be at least {smallest:g} times the spread of the data as trained "
                f"on ({spread:.4g}) in precision {settings.precision!r}, but was {sigma}; "
                "raise it, or pass precision='64-true'"
            )
        if order > 2 and value < HIGH_ORDER_FROM * spread:
            raise ValueError(
                f"sigma must be at least {HIGH_ORDER_FROM} times the spread of the data as "
                f"trained on ({spread:.4g}) for order={order}, whose targets are all "
                f"noise below, but was {sigma}; raise it, or pass order=2"
            )
    return sigma


def _check_trainable(network: nn.Module) -> None:
    """Raise ValueError for a network in which no parameter would be trained."""
    parameters, name = list(network.parameters()), type(network).__name__
    if not parameters:
        raise ValueError(
            f"network must have parameters to train, but {name} has none; pass one with layers"
        )
    if not any(p.requires_grad for p in parameters):
        raise ValueError(
            f"network must have parameters to train, but all {len(parameters)} of {name}'s were "
            "frozen; call network.requires_grad_(), or that of the layers that are to be trained"
        )
