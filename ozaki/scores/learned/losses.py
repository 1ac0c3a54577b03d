"""This module computes the losses of training and their scales, and compares networks by them."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ozaki.scores.learned import objectives, objectives_high_order
from ozaki.scores.learned.preconditioned import BLOCK, Outputs, ScoreNetwork

LEAST_SQUARES = ("residual", "d2sm")
LIKELIHOODS = ("likelihood", "margins")  # these need a positive definite C
TERMS = (*LEAST_SQUARES, "ocm", *LIKELIHOODS)
KNOTS = 8  # noise levels at which a conditional network is judged


class LossPlan(NamedTuple):
    """The losses that a phase of training is to form.

    Attributes:
        terms: name and weight of each second-order loss, from TERMS; none for s1 alone.
        first: whether s1 is trained.
        order: of the highest score that is trained.
        antithetic: whether the noise comes in pairs ±z.
        reduce_below: the largest σ at which the control variate is used.
    """

    terms: tuple[tuple[str, float], ...] = (("residual", 1.0),)
    first: bool = True
    order: int = 2
    antithetic: bool = True
    reduce_below: float = math.inf

    @property
    def judge(self) -> str:
        """The name of the loss by which s2 is compared."""
        return next((name for name, _ in self.terms if name in LIKELIHOODS), "residual")

    @property
    def names(self) -> list[str]:
        """A name for each loss, in the order in which they are formed."""
        second = [name for name, _ in self.terms]
        higher = [f"order_{n}" for n in range(3, self.order + 1)] if second else []
        return ["dsm"] * self.first + second + higher


class NoisyBatch:
    """Clean points and the noise that one optimiser step adds to them.

    It is no tuple, since wrappers of modules convert the tensors in collections to their precision.

    Args:
        x: clean points, (n, D).
        z: standard normal noise, (n, D).
        probe: signs, (n, D), where OCM is in the plan.
        sigma: a number, or (n, 1).
    """

    def __init__(self, x: Tensor, z: Tensor, probe: Tensor | None, sigma: float | Tensor):
        self.x, self.z, self.probe, self.sigma = x, z, probe, sigma


class Losses(nn.Module):
    """The losses of a plan as one module, so that a data-parallel wrapper sees a single call.

    Args:
        net: the network that is trained.
        plan: which losses.
        reference: whose s1 gives the target of OCM; the running average of `net`, less noisy.
    """

    def __init__(self, net: ScoreNetwork, plan: LossPlan, reference: ScoreNetwork):
        super().__init__()
        self.net = net
        self.plan = plan
        self._reference = (reference,)  # in a tuple, so that it is neither trained nor wrapped

    def forward(self, batch: NoisyBatch) -> list[Tensor]:
        """One loss a sample, (n,), for each of `plan.names`."""
        # the trunk alone computes in a lower precision: the losses hold 1/σ²
        with torch.autocast(batch.x.device.type, enabled=False):
            return self._losses(batch.x, batch.z, batch.probe, batch.sigma)

    def _losses(
        self, x: Tensor, z: Tensor, probe: Tensor | None, sigma: float | Tensor
    ) -> list[Tensor]:
        """Compute the losses of the plan, each (n,)."""
        plan, net = self.plan, self.net
        if plan.antithetic:
            points, noise = objectives.pair(x, z, sigma)
        else:
            points, noise = (x + sigma * z).unsqueeze(0), z.unsqueeze(0)
        out: Outputs = net(points, sigma, (True, bool(plan.terms)))
        losses = [objectives.first_order(out.s1, noise, sigma).mean(0)] if plan.first else []
        if not plan.terms:
            return losses
        assert out.s2 is not None
        clean: list[Outputs] = []  # evaluated once, by the first loss that needs it
        for name, _ in plan.terms:
            if name == "ocm":
                assert probe is not None
                # at one point of the pair only: its noise is small, and its derivative costs most
                first = partial(self._reference[0].first, sigma=sigma)
                product = objectives.jacobian_product(first, points[0], probe)
                losses.append(objectives.ocm_of(out.s2[0], product, probe))
                continue
            elif name in LIKELIHOODS:
                loss = getattr(objectives, f"{name}_of")(out.s1, out.s2, noise, sigma)
            else:
                family: Any = name  # which `second_order` checks
                loss = objectives.second_order(family, out.s1, out.s2, noise, sigma)
            loss = loss.mean(0)
            if name in LEAST_SQUARES and self._reduces(sigma):
                if not clean:
                    clean.append(net(x, sigma, (self._needs_clean_s1, True)))
                loss = loss + self._control(name, clean[0], z, sigma)
            losses.append(loss)
        for n in range(3, plan.order + 1):
            lower = (out.s1, out.s2.diagonal(), *out.higher)[:n]
            losses.append(objectives_high_order.orthogonal_loss(lower, noise, sigma))
        return losses

    @property
    def _needs_clean_s1(self) -> bool:
        return any(name == "d2sm" for name, _ in self.plan.terms)

    def _reduces(self, sigma: float | Tensor) -> bool:
        """Say whether any point has a σ at which the control variate is used."""
        if not self.plan.antithetic:
            return False
        lowest = float(sigma.min()) if isinstance(sigma, Tensor) else sigma
        return lowest <= self.plan.reduce_below

    def _control(self, name: Any, clean: Outputs, z: Tensor, sigma: float | Tensor) -> Tensor:
        assert clean.s2 is not None
        control = objectives.control(name, clean.s1, clean.s2, z, sigma)
        if isinstance(sigma, Tensor):
            control = torch.where(sigma.squeeze(-1) <= self.plan.reduce_below, control, 0)
        return control


class LossScales(NamedTuple):
    """The scale of each loss at each noise level: ½E‖s1‖² and E‖s2‖².

    At its optimum a loss is minus its scale.

    Attributes:
        log_sigma: (K,), ascending; one knot where σ is fixed.
        log_size: (K, 2), or (K, 1) for s1 alone.
    """

    log_sigma: Tensor
    log_size: Tensor

    def at(self, sigma: float | Tensor) -> Tensor:
        """The sizes at each σ, (n, 2) for σ of (n, 1), (1, 2) for a number: log-linear."""
        if len(self.log_sigma) == 1 or not isinstance(sigma, Tensor):
            return self.log_size[:1].exp()
        s = sigma.log().squeeze(-1).to(self.log_sigma.dtype)
        right = torch.searchsorted(self.log_sigma, s).clamp(1, len(self.log_sigma) - 1)
        low, high = self.log_sigma[right - 1], self.log_sigma[right]
        share = ((s - low) / (high - low)).clamp(0, 1).unsqueeze(-1)
        between = (1 - share) * self.log_size[right - 1] + share * self.log_size[right]
        return between.exp()


def scaled(
    plan: LossPlan, losses: list[Tensor], sizes: Tensor, weight: float, dim: int, root: Any
) -> Tensor:
    """The training loss: each loss over its own size, so that none drowns another, (n,).

    Args:
        plan: which losses these are.
        losses: of `Losses`.
        sizes: `LossScales.at`.
        weight: γ, of the second order and above against the first (eq. 14).
        dim: D, the size of the likelihood.
        root: c/σ with c² = 1/(σ² + σ_d²): c⁻ⁿ s_n is regressed on noise of size √n! (cσ)⁻ⁿ for
            the orders above 2, which would drown s1 and s2 at their own scale.
    """
    parts: list[Tensor] = []
    weights = dict(plan.terms)
    for name, loss in zip(plan.names, losses, strict=True):
        if name == "dsm":
            parts.append(loss / sizes[:, 0])
        elif name in LIKELIHOODS:
            parts.append(weight * weights[name] * loss / dim)
        elif name in weights:
            parts.append(weight * weights[name] * loss / sizes[:, 1])
        else:
            n = int(name[-1])
            parts.append(weight * loss / (dim * math.factorial(n) ** 0.5 * root**n))
    return torch.stack(parts).sum(0)


class HeldOut(NamedTuple):
    """Held-out losses by head, one a pair; the sizes of s1 and s2; and the calibration."""

    losses: tuple[Tensor, ...]
    sizes: LossScales
    scale: Tensor  # the size at each pair, (n, heads) or (1, heads)
    calibration: float

    @property
    def means(self) -> tuple[float, ...]:
        """The mean loss of each head."""
        return tuple(float(loss.mean()) for loss in self.losses)

    def change(self, other: "HeldOut", weights: tuple[float, ...]) -> tuple[float, float]:
        """Return how much higher the weighted loss is than another's, and its standard error."""
        parts = zip(weights, self.losses, other.losses, self.scale.unbind(-1), strict=False)
        change = torch.stack([w * (mine - its) / size for w, mine, its, size in parts]).sum(0)
        return float(change.mean()), float(change.std() / len(change) ** 0.5)


@torch.no_grad()
def held_out(
    net: ScoreNetwork, plan: LossPlan, x: Tensor, z: Tensor, sigma: float | Tensor
) -> HeldOut:
    """Compute DSM, and the loss of s2 if it is trained, of `net` at x with noise z, both (n, D).

    That is a likelihood where s2 was trained on one, which needs a positive definite C; else the
    residual loss, which ranks every estimate, whatever it was trained on. It is taken over the pair
    always: plain losses have too much variance to choose by. A σ of (n, 1) holds KNOTS values in
    turn.
    """
    second = bool(plan.terms)
    judge = LossPlan(((plan.judge, 1.0),) if second else (), reduce_below=plan.reduce_below)
    parts = [
        _judged(net, judge, *part)
        for part in zip(*(_blocks(values, x) for values in (x, z, sigma)), strict=True)
    ]
    losses, squares, calibration = zip(*parts, strict=True)
    ratio = math.nan
    if second:  # a ratio of means over pairs, which a few tiny C do not dominate
        r2, c = (torch.stack(sums).sum(0) for sums in zip(*calibration, strict=True))
        ratio = float((r2 / c).mean())
    sizes = _sizes(torch.cat(squares), sigma)
    joined = tuple(torch.cat(loss) for loss in zip(*losses, strict=True))
    scale = sizes.at(sigma)
    if second and plan.judge in LIKELIHOODS:
        scale[:, 1] = x.shape[1]
    return HeldOut(joined, sizes, scale, ratio)


def _blocks(values: float | Tensor, x: Tensor) -> Sequence[float | Tensor]:
    """Yield the rows of `values` for each block of `x`, or the number itself for each block."""
    rows = max(KNOTS, BLOCK // x.shape[1])
    if isinstance(values, Tensor):
        return values.split(rows)
    return [values] * -(-len(x) // rows)


def _judged(
    net: ScoreNetwork, judge: LossPlan, x: Tensor, z: Tensor, sigma: float | Tensor
) -> tuple[list[Tensor], Tensor, tuple[Tensor, ...]]:
    """Compute a block's losses, ½‖s1‖² and ‖s2‖², and the sums of r² and diag C by dimension."""
    losses = Losses(net, judge, net)(NoisyBatch(x, z, None, sigma))
    out: Outputs = net(x + sigma * z, sigma, (True, bool(judge.terms)))
    squares = [0.5 * out.s1.square().sum(-1)]
    calibration: tuple[Tensor, ...] = ()
    if out.s2 is not None:
        squares.append(out.s2.frobenius_squared())
        r2 = (z + sigma * out.s1).square().sum(0)
        calibration = r2, (1 + sigma**2 * out.s2.diagonal()).sum(0)
    return losses, torch.stack(squares, -1), calibration


def _sizes(squares: Tensor, sigma: float | Tensor) -> LossScales:
    """Average squares at each noise level to the scales of the losses."""
    floor = torch.finfo(squares.dtype).tiny
    if not isinstance(sigma, Tensor):
        return LossScales(
            squares.new_zeros(1), squares.mean(0, keepdim=True).clamp_min(floor).log()
        )
    knots = sigma[:KNOTS].log().squeeze(-1)
    means = torch.stack([squares[k::KNOTS].mean(0) for k in range(KNOTS)])
    return LossScales(knots, means.clamp_min(floor).log())
