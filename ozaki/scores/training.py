"""DSMTrainer: from data to a ScoreEstimator (floor 3; the only file that imports lightning)."""

import copy
import math
import sys
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ozaki import validation
from ozaki.scores.estimator import ScoreEstimator
from ozaki.scores.losses import HeldOut, LossPlan, held_out_losses
from ozaki.scores.networks import ScoreNetwork, default_network
from ozaki.scores.standardisation import collect, standardisation

LARGEST_SIGMA = 100  # in spreads: beyond it the smoothed law is the noise
REDUCE_BELOW = 0.3  # in spreads: docs/mathematics.md, section 3
EVALUATE_EVERY = 100  # steps
WARM_UP = 100  # steps
HELD_OUT_PAIRS = 8192
STORED_POINTS = 512
CLIP = 5.0  # on losses scaled to order one: it catches outliers only


class DSMTrainer:
    """Learns s1 and diag s2 of the data's smoothed law p_σ by denoising score matching.

    s1 is trained by antithetic DSM (eq. 3) and s2 jointly with it (eq. 14, 15) by the residual
    form, variance-reduced (as eq. 33) for σ up to 0.3 of the data's spread and averaged over the
    antithetic pair above, where the control variate does more harm than good. Each loss is divided
    by the size of what it estimates, so that neither drowns the other. Adam, a cosine schedule
    with a short warm-up, and a moving average of the weights. What is kept is the latest average
    whose held-out loss is within two standard errors of the lowest; training stops when that has
    long been past.

    Args:
        sigma: the standard deviation of the smoothing noise, in units of the standardised data;
            "auto" is N^(−1/6) (times the spread, where nothing is standardised).
        objective: "auto" or "residual"; "d2sm", the paper's (eq. 16); or "dsm", s1 alone.
        curvature: "diagonal", or None for s1 alone.
        rank: of a low-rank curvature, which is not in this version.
        variance_reduction: "auto" as above; True for the control variate at every σ; False for
            the plain losses at one noise draw.
        standardize: "columns", "scalar" (one mean and scale for all), or None; "auto" is
            "columns" for (N, D) data and None for images.
        network: any module called as ``network(u, noise)``, see ozaki.scores.networks; it is
            copied, not changed. None is one residual MLP each for s1 and s2.
        width: hidden units of the default network.
        depth: residual blocks of the default network.
        max_steps: optimiser steps, at most.
        batch_size: noisy pairs a step.
        learning_rate: of Adam, at its peak.
        ema: decay of the moving average of the weights, reached gradually.
        held_out: fraction of the rows kept for the held-out loss.
        patience: stop this many evaluations, one every 100 steps, after the last one worth keeping.
        curvature_weight: γ, the weight of the second loss against the first (eq. 14).
        seed: the same seed gives the same estimator, bit for bit on a CPU; None takes one from
            the global random state, which is otherwise left alone.
        accelerator: as Lightning Fabric's: "cpu", "cuda", "auto", ...
        precision: as Lightning Fabric's: "32-true", "16-mixed", "bf16-mixed", or "64-true", which
            alone makes a float64 estimator.
        progress: show a progress bar, where standard error is a terminal.

    Raises:
        ValueError: an argument out of range, or one that belongs to a later version.

    Example:
        >>> data = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> DSMTrainer(sigma=0.5, max_steps=20, seed=0).fit(data)
        ScoreEstimator(event_shape=(2,), sigma=0.5, curvature='diagonal', standardize='columns', ...

    Reference:
        Meng et al., "Estimating High Order Gradients of the Data Distribution by Denoising",
        NeurIPS 2021.
    """

    def __init__(
        self,
        sigma: float | int | str = "auto",
        *,
        objective: str = "auto",
        curvature: str | None = "diagonal",
        rank: int | None = None,
        variance_reduction: bool | str = "auto",
        standardize: str | None = "auto",
        network: nn.Module | None = None,
        width: int = 64,
        depth: int = 2,
        max_steps: int = 3000,
        batch_size: int = 256,
        learning_rate: float = 6e-3,
        ema: float = 0.998,
        held_out: float = 0.1,
        patience: int = 8,
        curvature_weight: float = 1.0,
        seed: int | None = None,
        accelerator: str = "cpu",
        precision: Any = "32-true",
        progress: bool = True,
    ):
        _refuse_later(sigma, objective, curvature)
        self.sigma = sigma if isinstance(sigma, str) else validation.positive("sigma", sigma)
        if isinstance(sigma, str):
            validation.choice("sigma", sigma, ("auto",))
        self.objective = validation.choice(
            "objective", objective, ("auto", "residual", "d2sm", "dsm")
        )
        self.curvature = validation.choice("curvature", curvature, ("diagonal", None))
        if curvature is None and objective in ("residual", "d2sm"):
            raise ValueError(
                f"objective={objective!r} learns s2, but curvature was None; use objective='dsm', "
                "or curvature='diagonal'"
            )
        self.rank = None if rank is None else validation.count("rank", rank)
        self.variance_reduction = validation.choice(
            "variance_reduction", variance_reduction, ("auto", True, False)
        )
        self.standardize = validation.choice(
            "standardize", standardize, ("auto", "columns", "scalar", None)
        )
        if network is not None and not isinstance(network, nn.Module):
            raise ValueError(f"network must be a torch.nn.Module or None, but was {network!r}")
        self.network = network
        self.width = validation.count("width", width)
        self.depth = validation.count("depth", depth, minimum=0)
        self.max_steps = validation.count("max_steps", max_steps)
        self.batch_size = validation.count("batch_size", batch_size)
        self.learning_rate = validation.positive("learning_rate", learning_rate)
        self.ema = _fraction("ema", ema)
        self.held_out = _fraction("held_out", held_out)
        self.patience = validation.count("patience", patience)
        self.curvature_weight = validation.positive("curvature_weight", curvature_weight)
        self.seed = None if seed is None else validation.count("seed", seed, minimum=0)
        self.accelerator = accelerator
        self.precision = validation.choice(
            "precision", precision, ("32-true", "64-true", "16-mixed", "bf16-mixed")
        )
        self.progress = progress

    def fit(self, data: Any) -> ScoreEstimator:
        """Train on `data`.

        Args:
            data: (N, *event_shape), floating-point: a tensor, an array, a frame, or a DataLoader
                of finite length, whose items are tensors or tuples that begin with one.

        Returns:
            The estimator, with held-out figures in its `metrics`.

        Raises:
            ValueError: data that cannot be learned from, a sigma that does not fit them, or a
                network that does not take or give the right shapes.
            FloatingPointError: the loss became NaN or infinite.
        """
        x = collect(data)
        seed = int(torch.randint(2**31, ())) if self.seed is None else self.seed
        # the initial weights, and a network of the user's own, draw from the global state
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            return self._fit(x, torch.Generator().manual_seed(seed))

    def _fit(self, x: Tensor, generator: torch.Generator) -> ScoreEstimator:
        event_shape, rows = x.shape[1:], x.reshape(len(x), -1).double()
        dim = rows.shape[1]
        self._check_rank(dim)
        kind = self.standardize
        if kind == "auto":
            kind = "columns" if len(event_shape) == 1 else None
        units, centre, spread = standardisation(rows, kind)
        sigma = self._noise_level(len(rows), spread)
        heads = 1 if self.curvature is None or self.objective == "dsm" else 2

        fabric = Fabric(accelerator=self.accelerator, devices=1, precision=self.precision)
        dtype = torch.float64 if self.precision == "64-true" else torch.float32
        rows = rows[torch.randperm(len(rows), generator=generator)]
        kept = max(1, round(self.held_out * len(rows)))
        u = units.forward(rows, dtype).to(fabric.device)

        architecture = {"dim": dim, "heads": heads, "width": self.width, "depth": self.depth}
        own = self.network is not None
        trunk = copy.deepcopy(self.network) if own else default_network(**architecture)
        net = ScoreNetwork(trunk, event_shape, sigma, heads, centre, spread)  # pyright: ignore
        net = net.requires_grad_().to(fabric.device, dtype)
        net.check(u)
        reduced = self.variance_reduction
        plan = LossPlan(
            "d2sm" if self.objective == "d2sm" else "residual",
            heads,
            antithetic=reduced is not False,
            control_variate=sigma <= REDUCE_BELOW * spread if reduced == "auto" else bool(reduced),
        )
        best, step = self._optimise(fabric, net, plan, u[kept:], u[:kept], generator)
        estimator = ScoreEstimator(
            best,
            units.to(fabric.device),
            rows[kept:][:STORED_POINTS].to(fabric.device, dtype),
            architecture=None if own else architecture,
        )
        figures = estimator.evaluate(rows[:kept], generator, draws=HELD_OUT_PAIRS)
        estimator.metrics = {**figures, "held_out_rows": float(kept), "steps": float(step)}
        return estimator

    def _optimise(
        self,
        fabric: Fabric,
        net: ScoreNetwork,
        plan: LossPlan,
        train: Tensor,
        held: Tensor,
        generator: torch.Generator,
    ) -> tuple[ScoreNetwork, int]:
        """The average of the weights that is kept, and its step."""
        # a gradient scaler cannot clip for a fused optimiser
        fused = fabric.device.type in ("cpu", "cuda") and self.precision != "16-mixed"
        optimiser = torch.optim.Adam(
            net.parameters(), self.learning_rate, betas=(0.9, 0.99), fused=fused or None
        )
        schedule = LambdaLR(optimiser, self._learning_rate_at)
        model, optimiser = fabric.setup(net, optimiser)
        average = AveragedModel(net, multi_avg_fn=_gradual(self.ema))
        averaged: ScoreNetwork = average.module  # pyright: ignore[reportAssignmentType]
        averaged.eval()
        held = held.repeat(-(-HELD_OUT_PAIRS // len(held)), 1)[:HELD_OUT_PAIRS]
        held_noise = _normal(held, generator)
        weights = (1.0, self.curvature_weight)
        lowest = held_out_losses(plan, averaged, held, held_noise)
        kept, kept_step, sizes = copy.deepcopy(averaged.state_dict()), 0, lowest.sizes
        model.train()

        shown = self.progress and sys.stderr.isatty()
        with tqdm(total=self.max_steps, desc="training", disable=not shown) as bar:
            for step in range(1, self.max_steps + 1):
                chosen = torch.randint(len(train), (self.batch_size,), generator=generator)
                x = train[chosen.to(train.device)]
                losses = plan.losses(model, x, _normal(x, generator), net.sigma)
                parts = zip(weights, losses, sizes, strict=False)
                optimiser.zero_grad(set_to_none=True)
                scaled = [w * loss.mean() / size for w, loss, size in parts]
                fabric.backward(torch.stack(scaled).sum())
                fabric.clip_gradients(model, optimiser, max_norm=CLIP, error_if_nonfinite=False)
                optimiser.step()
                schedule.step()
                average.update_parameters(net)
                bar.update()
                if step % EVALUATE_EVERY and step != self.max_steps:
                    continue
                now = held_out_losses(plan, averaged, held, held_noise)
                self._check_finite(now, step)
                sizes = now.sizes
                change, error = now.change(lowest, weights)
                if change < 0:
                    lowest = now
                # of those that cannot be told from the lowest the latest is best: the learning
                # rate falls and the average lengthens
                if change <= 2 * error:
                    kept, kept_step = copy.deepcopy(averaged.state_dict()), step
                elif step - kept_step >= self.patience * EVALUATE_EVERY:
                    break
                bar.set_postfix(held_out=", ".join(f"{v:.4g}" for v in now.means))
        averaged.load_state_dict(kept)
        return averaged, kept_step

    def _learning_rate_at(self, step: int) -> float:
        """A linear warm-up times half a cosine, as a fraction of the peak."""
        warm = min(1.0, (step + 1) / min(WARM_UP, self.max_steps))
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.max_steps))

    def _noise_level(self, n: int, spread: float) -> float:
        if isinstance(self.sigma, str):
            return spread * n ** (-1 / 6)
        if self.sigma > LARGEST_SIGMA * spread:
            raise ValueError(
                f"sigma must be at most {LARGEST_SIGMA} times the spread of the data as trained on "
                f"({spread:.4g}), but was {self.sigma}; lower it, or pass sigma='auto'"
            )
        return self.sigma

    def _check_rank(self, dim: int) -> None:
        if self.rank is not None and self.rank > dim:
            raise ValueError(
                f"rank must be at most the dimension of the data, {dim}, but was {self.rank}"
            )
        if self.rank is not None:
            raise ValueError(
                f"rank was {self.rank}, but low-rank curvature is not available in this version; "
                "leave rank out"
            )

    def _check_finite(self, now: HeldOut, step: int) -> None:
        if not all(math.isfinite(value) for value in (*now.means, *now.sizes)):
            raise FloatingPointError(
                f"the held-out loss was {now.means} at step {step} of training; lower "
                f"learning_rate (it was {self.learning_rate}), raise sigma, or look for outliers "
                "in the data"
            )


def _gradual(decay: float) -> Any:
    """A moving average whose memory grows with training, so that it forgets the first weights."""

    def update(averages: Any, current: Any, count: Any) -> None:
        n = float(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, current, count)

    return update


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise drawn on the CPU: the same numbers whatever the device."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _fraction(name: str, value: Any) -> float:
    number = validation.positive(name, value)
    if number >= 1:
        raise ValueError(f"{name} must lie between 0 and 1, but was {value!r}")
    return number


def _refuse_later(sigma: Any, objective: Any, curvature: Any) -> None:
    """What the next release brings is named, and what to use until then."""
    if isinstance(sigma, (tuple, list)):
        raise ValueError(
            f"sigma must be a number or 'auto', but was {sigma!r}; a range of noise levels is not "
            "available in this version: train one estimator for each"
        )
    if objective in ("ocm", "residual+ocm"):
        raise ValueError(
            f"objective={objective!r} is not available in this version; use objective='residual', "
            "or estimator.autodiff() for the Jacobian of s1"
        )
    if curvature == "low_rank":
        raise ValueError(
            "curvature='low_rank' is not available in this version; use curvature='diagonal', or "
            "estimator.autodiff() for a dense one"
        )
