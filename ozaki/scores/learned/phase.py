"""`TrainingPhase` runs one phase of optimisation, and its whole state can be saved.

A phase trains s1, s2 or both on one plan of losses. `TrainingPhase.tensors` and
`TrainingPhase.state` hold everything that the next step depends on, so that a stopped training
resumes bit for bit. Every process of a data-parallel training draws the same random numbers for the
whole batch and keeps its share of the rows. The number of processes therefore changes nothing but
rounding.
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ozaki.scores.learned.data_source import Batches
from ozaki.scores.learned.losses import (
    KNOTS,
    HeldOut,
    Losses,
    LossPlan,
    LossScales,
    NoisyBatch,
    held_out,
    scaled,
)
from ozaki.scores.learned.preconditioned import ScoreNetwork

EVALUATE_EVERY = 100  # steps
WARM_UP = 100  # steps
HELD_OUT_PAIRS = 8192  # most pairs
HELD_OUT_BATCHES = 8  # most batches for a trunk that is not lightweight: a tenth of the time
CLIP = 5.0  # norm of the gradient of losses scaled to order one: it catches outliers only


def held_out_pairs(net: ScoreNetwork, batch_size: int) -> int:
    """Return how many noisy pairs the held-out losses are taken from, a multiple of KNOTS."""
    affordable = HELD_OUT_BATCHES * batch_size
    if net.trunk.traits.lightweight:
        affordable = HELD_OUT_PAIRS
    return KNOTS * -(-min(HELD_OUT_PAIRS, affordable) // KNOTS)


class OptimiserSchedule(NamedTuple):
    """The settings of one phase's optimiser; `DSMTrainer` explains each field."""

    max_steps: int
    batch_size: int
    learning_rate: float
    ema: float
    patience: int
    curvature_weight: float

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 1: a linear warm-up times half a cosine."""
        warm = min(1.0, step / min(WARM_UP, self.max_steps))
        return (
            self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * (step - 1) / self.max_steps))
        )


class TrainingPhase:
    """One phase of training. `run` goes on from the step that the state has reached.

    Args:
        fabric: Lightning Fabric's, launched.
        net: trained in place, on the fabric's device.
        plan: which losses.
        schedule: how.
        batches: standardised clean rows.
        held: standardised rows that are never trained on, (m, D).
        generator: of all noise, on the CPU: the same numbers whatever the device.
    """

    def __init__(
        self,
        fabric: Any,
        net: ScoreNetwork,
        plan: LossPlan,
        schedule: OptimiserSchedule,
        batches: Batches,
        held: Tensor,
        generator: torch.Generator,
    ):
        self.fabric, self.net, self.plan, self.schedule = fabric, net, plan, schedule
        self.batches, self.generator = batches, generator
        mixed, net.mixed = net.mixed, None
        self._average = AveragedModel(net, multi_avg_fn=_gradual(schedule.ema))
        net.mixed = mixed
        self.average: ScoreNetwork = self._average.module.eval()  # pyright: ignore
        # a gradient scaler cannot clip for a fused optimiser
        fused = fabric.device.type in ("cpu", "cuda") and mixed != torch.float16
        trained = [p for p in net.parameters() if p.requires_grad]
        self._adam = torch.optim.Adam(
            trained, schedule.learning_rate, betas=(0.9, 0.99), fused=fused or None
        )
        self._model, self._optimiser = fabric.setup(Losses(net, plan, self.average), self._adam)
        pairs = held_out_pairs(net, schedule.batch_size)
        self._held = held.repeat(-(-pairs // len(held)), 1)[:pairs]
        self._began = generator.get_state()
        self._held_noise = _normal(self._held, generator)
        self._held_sigma: float | Tensor = net.sigma  # pyright: ignore
        if isinstance(net.sigma, tuple):
            low, high = (math.log(s) for s in net.sigma)
            knots = torch.linspace(low, high, KNOTS, dtype=held.dtype).exp()
            turns = knots.repeat(pairs // KNOTS)
            self._held_sigma = turns.unsqueeze(-1).to(held.device)
        self._weights = (1.0,) * plan.first + (schedule.curvature_weight,) * bool(plan.terms)
        self.step = self.kept_step = 0
        self.finished = False
        self._lowest = self.now = self._judge()
        self.kept = copy.deepcopy(self.average.state_dict())

    def run(
        self,
        after: Callable[["TrainingPhase"], None],
        evaluated: Callable[["TrainingPhase", dict[str, float]], None],
    ) -> ScoreNetwork:
        """Train to the end of the schedule, or until the held-out loss has long been past its best.

        Args:
            after: called after every step, when the state is whole.
            evaluated: called after every evaluation, with figures to log.

        Returns:
            The average of the weights that is kept.
        """
        self.net.train()
        while not self.finished:
            self.step += 1
            losses = self._advance()
            last = self.step == self.schedule.max_steps
            if last or self.step % EVALUATE_EVERY == 0:
                self._evaluate()
                self.finished = self.finished or last
                evaluated(self, self._figures(losses))
            after(self)
        self.average.load_state_dict(self.kept)
        return self.average

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor the next step depends on, by name."""
        parts = {
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "kept": self.kept,
            "lowest": {
                **{f"loss_{i}": loss for i, loss in enumerate(self._lowest.losses)},
                "scale": self._lowest.scale,
                "log_sigma": self._lowest.sizes.log_sigma,
                "log_size": self._lowest.sizes.log_size,
            },
            "now": {"log_sigma": self.now.sizes.log_sigma, "log_size": self.now.sizes.log_size},
            "random": {
                "began": self._began,
                "noise": self.generator.get_state(),
                "torch": torch.get_rng_state(),
            },
        }
        if self.fabric.device.type == "cuda":
            parts["random"]["cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        named = {f"{group}.{k}": v for group, part in parts.items() for k, v in part.items()}
        for i, moments in self._adam.state_dict()["state"].items():
            named |= {f"adam.{i}.{k}": torch.as_tensor(v) for k, v in moments.items()}
        return named

    def state(self) -> dict[str, Any]:
        """The rest of the state, in the types of JSON."""
        return {
            "step": self.step,
            "kept_step": self.kept_step,
            "finished": self.finished,
            "averaged": int(self._average.n_averaged),  # pyright: ignore
            "calibration": self._lowest.calibration,
            "batches": self.batches.state(),
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Resume from what `tensors` and `state` gave."""
        device = self.fabric.device

        def part(group: str) -> dict[str, Tensor]:
            prefix = f"{group}."
            return {
                k.removeprefix(prefix): v.to(device)
                for k, v in tensors.items()
                if k.startswith(prefix)
            }

        self.net.load_state_dict(part("net"))
        self.average.load_state_dict(part("average"))
        self.kept = part("kept")
        lowest = part("lowest")
        count = sum(k.startswith("loss_") for k in lowest)
        self._lowest = HeldOut(
            tuple(lowest[f"loss_{i}"] for i in range(count)),
            LossScales(lowest["log_sigma"], lowest["log_size"]),
            lowest["scale"],
            state["calibration"],
        )
        self.now = self._lowest._replace(sizes=LossScales(**part("now")))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in part("adam").items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        self._adam.load_state_dict({**self._adam.state_dict(), "state": moments})
        self._average.n_averaged.fill_(state["averaged"])  # pyright: ignore
        self.step, self.kept_step = state["step"], state["kept_step"]
        self.finished = state["finished"]
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.batches.restore(state["batches"])
        self._began = tensors["random.began"]
        self.generator.set_state(self._began)
        self._held_noise = _normal(self._held, self.generator)
        self.generator.set_state(tensors["random.noise"])
        torch.set_rng_state(tensors["random.torch"])
        if "random.cuda" in tensors and device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], device)

    def _advance(self) -> list[Tensor]:
        """Take one optimiser step; return the mean of each loss over this process's share."""
        x = self.batches.next()
        batch = self._noisy(x)
        for group in self._adam.param_groups:
            group["lr"] = self.schedule.rate(self.step)
        self._optimiser.zero_grad(set_to_none=True)
        losses, sigma = self._model(batch), batch.sigma
        sizes = self.now.sizes.at(sigma)
        variance = sigma**2 + self.net.spread**2
        root = 1 / (sigma * variance**0.5)
        root = root.squeeze(-1) if isinstance(root, Tensor) else root
        total = scaled(
            self.plan,
            losses,
            self._columns(sizes),
            self.schedule.curvature_weight,
            x.shape[1],
            root,
        )
        self.fabric.backward(total.mean())
        self.fabric.clip_gradients(
            self._model, self._optimiser, max_norm=CLIP, error_if_nonfinite=False
        )
        self._optimiser.step()
        self._average.update_parameters(self.net)
        return [loss.detach().mean() for loss in losses]

    def _noisy(self, x: Tensor) -> NoisyBatch:
        """Return this process's share of the batch, with noise, probe and σ."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        n = self.schedule.batch_size
        z = torch.randn(n, x.shape[1], generator=self.generator, dtype=x.dtype)
        probe = None
        if any(name == "ocm" for name, _ in self.plan.terms):
            signs = torch.randint(2, z.shape, generator=self.generator)
            probe = (2 * signs - 1).to(x.dtype)[rank::world].to(x.device)
        sigma: float | Tensor = self.net.sigma  # pyright: ignore
        if isinstance(self.net.sigma, tuple):
            low, high = (math.log(s) for s in self.net.sigma)
            # one in each of n equal parts of the range, on the logarithmic scale
            places = torch.arange(n) + torch.rand(n, generator=self.generator)
            drawn = (low + (high - low) * places / n).exp().to(x.dtype)
            sigma = drawn[rank::world].unsqueeze(-1).to(x.device)
        return NoisyBatch(x, z[rank::world].to(x.device), probe, sigma)

    def _columns(self, sizes: Tensor) -> Tensor:
        """Return scales as columns for s1 and s2, whichever of them are trained."""
        return sizes if self.plan.first else torch.cat((sizes, sizes), -1)

    def _judge(self) -> HeldOut:
        """Compute the held-out losses of the averaged weights."""
        plan = self.plan
        found = held_out(self.average, plan, self._held, self._held_noise, self._held_sigma)
        if plan.first:
            return found
        # s1 is fixed, so only s2 is compared
        sizes = found.sizes._replace(log_size=found.sizes.log_size[:, 1:])
        return found._replace(losses=found.losses[1:], sizes=sizes, scale=found.scale[:, 1:])

    def _evaluate(self) -> None:
        """Judge the averaged weights, keep them if they are the best, or end the phase."""
        self.now = self._judge()
        values = (*self.now.means, *self.now.sizes.log_size.flatten().tolist())
        if not all(math.isfinite(value) for value in values):
            raise FloatingPointError(
                f"the held-out loss was {self.now.means} at step {self.step} of training; lower "
                f"learning_rate (it was {self.schedule.learning_rate}), raise sigma, or look for "
                "outliers in the data"
            )
        change, error = self.now.change(self._lowest, self._weights)
        # the same on every process, though rounding may differ
        change, error = self.fabric.broadcast((change, error))
        if change < 0:
            self._lowest = self.now
        # among those that cannot be told from the lowest, the latest is best: the learning rate
        # falls and the average lengthens
        if change <= 2 * error:
            self.kept, self.kept_step = copy.deepcopy(self.average.state_dict()), self.step
        elif self.step - self.kept_step >= self.schedule.patience * EVALUATE_EVERY:
            self.finished = True

    def _figures(self, losses: list[Tensor]) -> dict[str, float]:
        """Name the losses and figures that are logged."""
        names = ["dsm"] * self.plan.first + [
            self.plan.judge.replace("residual", "residual_vr")
        ] * bool(self.plan.terms)
        figures = {f"train/{k}": float(v) for k, v in zip(self.plan.names, losses, strict=True)}
        figures |= {f"held_out/{k}": v for k, v in zip(names, self.now.means, strict=True)}
        if self.plan.terms:
            figures["held_out/calibration"] = self.now.calibration
        figures["learning_rate"] = self.schedule.rate(self.step)
        return figures


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw noise on the CPU: the same numbers whatever the device."""
    z = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    return z.to(like.device)


def _gradual(decay: float) -> Any:
    """A moving average whose memory grows with training, so that it forgets the first weights."""

    def update(averages: Any, current: Any, count: Any) -> None:
        n = float(count)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averages, current, count)

    return update
