"""`DSMTrainer` trains a `ScoreEstimator` on data."""

import math
import os
from typing import Any

import torch
from torch import Tensor, nn

from ozaki.scores.learned.assembly import build
from ozaki.scores.learned.data_source import open_source
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.phase import held_out_pairs
from ozaki.scores.learned.settings import TrainerSettings
from ozaki.scores.learned.training_run import RunOptions, TrainingRun

STORED_POINTS = 512


class DSMTrainer:
    """Learns s1 and s2 of the data's smoothed law p_σ by denoising score matching.

    s1 is trained by antithetic DSM (eq. 3); then s2 on it, a diagonal on a trunk that begins with
    the features s1 has learned, or with `joint` both at once (eq. 14, 15); by default by a fifth of
    the residual form and four of optimal covariance matching. The residual form is variance-reduced
    (as eq. 33) for σ up to 0.3 of the data's spread and averaged over the antithetic pair above,
    where the control variate does more harm than good. Each loss is divided by the size of what it
    estimates, so that neither drowns the other. Adam, a cosine schedule with a short warm-up, and a
    moving average of the weights. What is kept is the latest average whose held-out loss is within
    two standard errors of the lowest; training stops when that has long been past.

    Under ``torchrun --nproc-per-node N`` each of the N processes computes its share of every batch,
    and all end with the same estimator.

    Args:
        sigma: the standard deviation of the smoothing noise, in units of the standardised data; a
            (low, high) range for an estimator of every σ in it, see `ScoreEstimator.at`; "auto" is
            N^(−1/6), for orders 3 and 4 at least ½ (times the spread, where nothing is
            standardised).
        objective: of s2: "residual"; "ocm", on the Jacobian of s1; "residual+ocm", 0.2 and 0.8
            of them; "d2sm", the paper's (eq. 13, 16); "likelihood", of the residual; "margins",
            that of its entries and of their correlation, which is the surest of variances; or
            weights by name, as {"residual": 1.0, "ocm": 0.3}. "dsm" is s1 alone. "auto" is
            "residual+ocm".
        curvature: "diagonal", "low_rank" (diag(a) + B diag(e) Bᵀ), or None for s1 alone.
        rank: r of the low rank; None is 20, or the dimension where that is less.
        signed: whether the low-rank part may be negative as well; False learns the posterior
            covariance as diag(d) + B Bᵀ, positive definite by construction.
        order: the highest score learned: 2, or 3 or 4, whose diagonals are then learned too; for
            σ of 0.3 of the spread and above.
        variance_reduction: "auto" as above; True for the control variate at every σ; False for
            the plain losses at one noise draw.
        joint: True trains s1 and s2 together, False s1 first and then s2 on it, in as many steps
            again. A U-Net, whose orders share a trunk, learns both at once all the same, and False
            trains its heads of s2 once more on the s1 that is kept, in whole precision. None is
            False for ozaki's own networks, and True for another.
        baseline: whether the network learns what is left of the score of the normal with the data's
            covariance, S, which is what makes correlated data quick to learn; of data in many
            clusters more is learned without. None is True for ozaki's own network and (N, D) data,
            D ≤ 1024, where the eigenvalues of S + σ² have an arithmetic mean of at least three
            times their harmonic one.
        standardize: "columns", "scalar" (one mean and scale for all), or None; "auto" is
            "columns" for (N, D) data and None for images.
        network: any module called as ``network(u, noise)``, see
            `ozaki.scores.learned.preconditioned`; it is copied, not changed, and parameters that
            require no gradient are not trained. "unet", or "unet_large" for a GPU, is a U-Net for
            images with a head for each order, see `ozaki.scores.learned.unet`. None
            is one residual MLP for each order.
        width: hidden units of the default network; None is twice the dimension, from 64 to 512.
            Of a U-Net the channels of its first level, a multiple of 8; None is 32, or 64.
        depth: residual blocks of the default network.
        shared: one trunk for all orders in the default network, in place of one each.
        max_steps: optimiser steps, at most; of each phase where s1 is trained first.
        batch_size: noisy pairs a step, over all processes.
        learning_rate: of Adam, at its peak; a quarter of it for a diagonal s2, whose trunk begins
            with the features of s1. None is 6e-3, or 2e-3 for a U-Net.
        ema: decay of the moving average of the weights, reached gradually.
        held_out: fraction of the rows kept for the held-out loss.
        patience: stop this many evaluations, one every 100 steps, after the last one worth keeping.
        curvature_weight: γ, the weight of the second loss against the first (eq. 14). None is 1, or
            0.1 for a U-Net, whose trunk s2 would else take from s1.
        checkpoint: a folder to keep the state of the run in, so that it can be resumed.
        checkpoint_every: steps between two checkpoints.
        logger: "csv", "tensorboard", or any logger of Lightning Fabric; None logs nothing.
        log_dir: folder of the "csv" and "tensorboard" loggers.
        seed: the same seed gives the same estimator, bit for bit on a CPU; None takes one from
            the global random state, which is otherwise left alone.
        accelerator: as Lightning Fabric's: "cpu", "cuda", "auto", ...
        precision: as Lightning Fabric's: "32-true", "16-mixed", "bf16-mixed", or "64-true", which
            alone makes a float64 estimator. Mixed is the trunk's; the losses stay in float32.
        progress: show a progress bar, where standard error is a terminal.

    Raises:
        ValueError: an argument out of range, or arguments that do not fit each other.

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
        sigma: Any = "auto",
        *,
        objective: Any = "auto",
        curvature: str | None = "diagonal",
        rank: int | None = None,
        signed: bool = True,
        order: int = 2,
        variance_reduction: bool | str = "auto",
        joint: bool | None = None,
        baseline: bool | None = None,
        standardize: str | None = "auto",
        network: nn.Module | str | None = None,
        width: int | None = None,
        depth: int = 2,
        shared: bool = False,
        max_steps: int = 3000,
        batch_size: int = 256,
        learning_rate: float | None = None,
        ema: float = 0.998,
        held_out: float = 0.1,
        patience: int = 6,
        curvature_weight: float | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 500,
        logger: Any = None,
        log_dir: str | os.PathLike[str] = "ozaki-logs",
        seed: int | None = None,
        accelerator: str = "cpu",
        precision: Any = "32-true",
        progress: bool = True,
    ):
        self.network = network
        self.settings = TrainerSettings.checked(
            sigma=sigma, objective=objective, curvature=curvature, rank=rank, signed=signed,
            order=order, variance_reduction=variance_reduction,
            joint=joint, baseline=baseline, standardize=standardize,
            network=network, width=width, depth=depth, shared=shared,
            max_steps=max_steps, batch_size=batch_size,
            learning_rate=learning_rate, ema=ema, patience=patience,
            curvature_weight=curvature_weight, held_out=held_out,
            precision=precision,
        )  # fmt: skip
        self.options = RunOptions.checked(
            checkpoint=checkpoint, checkpoint_every=checkpoint_every, logger=logger,
            log_dir=log_dir, seed=seed, accelerator=accelerator, progress=progress,
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        """A setting or an option by its name, as in `trainer.sigma`."""
        for part in ("settings", "options"):
            # `vars`, since a copy is asked for attributes before it has any
            if not name.startswith("_") and hasattr(found := vars(self).get(part), name):
                return getattr(found, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def fit(self, data: Any, *, resume: bool = False) -> ScoreEstimator:
        """Train on `data`; also where gradients are turned off, by ``torch.no_grad()`` or such.

        Args:
            data: (N, *event_shape), floating-point, of half precision computed with in float32: a
                tensor, an array or a frame, which stay on the device as a whole; or a DataLoader or
                Dataset, read as a stream, of which a finite one is begun again at its end.
            resume: go on from the state in `checkpoint`, if there is one, else begin; the run ends
                with the same estimator as one that was never stopped, on a CPU bit for bit. The
                data and all that bears on the result must be as they were.

        Returns:
            The estimator, with held-out figures in its `metrics`.

        Raises:
            ValueError: data that cannot be learned from, a sigma that does not fit them, a
                network that does not take or give the right shapes or has nothing to train, or a
                resume with other settings or data than those of the checkpoint.
            FileExistsError: `checkpoint` holds a state, and `resume` is False.
            BlockingIOError: another run uses `checkpoint`.
            FloatingPointError: the loss became NaN or infinite.
            RuntimeError: another of the processes has ended or does not answer.
        """
        run = TrainingRun(self.settings, self.options, resume=resume)
        module = self.network if isinstance(self.network, nn.Module) else None
        with run.begun() as generator:
            source = open_source(data, self.settings.held_out, generator)
            run.check_shared(source)
            units, network = build(self.settings, source, run.device, module)
            network, steps = run.train(network, units, source, generator)
            estimator = ScoreEstimator(
                network,
                units,
                source.train[:STORED_POINTS].to(run.device, self.settings.dtype),
                architecture=None if module else network.trunk.architecture,
            )
            estimator.metrics = {
                **_figures(estimator, source.held, self.settings.batch_size, generator),
                "held_out_rows": float(len(source.held)),
                "steps": float(steps),
            }
            return estimator


def _figures(
    estimator: ScoreEstimator, held: Tensor, batch_size: int, generator: torch.Generator
) -> dict[str, Any]:
    """Compute held-out figures; for a range of σ, at five levels of it."""
    pairs = held_out_pairs(estimator.network, batch_size)
    held = held[:pairs]
    if not isinstance(estimator.sigma, tuple):
        return estimator.evaluate(held, generator, draws=pairs)
    low, high = (math.log(s) for s in estimator.sigma)
    levels = [math.exp(low + (high - low) * i / 4) for i in range(5)]
    levels[0], levels[-1] = estimator.sigma
    found = [estimator.at(s).evaluate(held, generator, draws=pairs) for s in levels]
    columns = {k: [figures[k] for figures in found] for k in found[0] if k != "calibration"}
    return {"sigma": levels, **columns}
