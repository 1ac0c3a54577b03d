"""DSMTrainer: from data to a ScoreEstimator."""

import copy
import math
import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn

from ozaki.foundation import progress, validation
from ozaki.io import checkpoint as checkpoints
from ozaki.io.atomic import lock
from ozaki.scores.differentiation import first_line
from ozaki.scores.learned import settings as options
from ozaki.scores.learned.baseline import Baseline, fitted, starting_signs, variances
from ozaki.scores.learned.data_source import Source, open_source
from ozaki.scores.learned.estimator import ScoreEstimator
from ozaki.scores.learned.losses import LIKELIHOODS, LossPlan
from ozaki.scores.learned.phase import Phase, Schedule, held_out_pairs
from ozaki.scores.learned.preconditioned import Heads, ScoreNetwork, Trunks
from ozaki.scores.learned.standardisation import Standardisation, standardisation
from ozaki.scores.learned.unet import PRESETS, UNet, channels_of

STORED_POINTS = 512
# of the learning rate, for a diagonal's trunk that begins with the features of s1: at the whole of
# it they are lost again (logistic mixture, 50-d: 27.7 after 500 steps, and 17.3 at an eighth;
# constant 17.5). A low rank's many columns are learned sooner from nothing at the whole rate (stiff
# normal, 100-d, 2,500 steps: 0.58 against 1.67)
WARM_RATE = 0.25
SIGN_ROWS = 2048  # from which a normal is fitted for the first signs of low-rank weights


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
        self.sigma = options.noise(sigma)
        self.curvature = validation.choice("curvature", curvature, ("diagonal", "low_rank", None))
        self.terms = options.losses(objective, curvature)
        self.rank = options.low_rank(rank, self.curvature)
        self.signed = validation.flag("signed", signed)
        self.order = options.highest(order, self.terms, self.curvature)
        likelihood = next((name for name in self.terms if name in LIKELIHOODS), None)
        if likelihood and curvature == "low_rank" and self.signed:
            raise ValueError(
                f"objective={likelihood!r} needs a positive definite posterior covariance, but "
                "curvature was 'low_rank' and signed True; pass signed=False (--unsigned), or "
                "objective='residual'"
            )
        self.variance_reduction = validation.choice(
            "variance_reduction", variance_reduction, ("auto", True, False)
        )
        module = isinstance(network, nn.Module)
        self.joint = module if joint is None else validation.flag("joint", joint)
        self.baseline = None if baseline is None else validation.flag("baseline", baseline)
        self.standardize = validation.choice(
            "standardize", standardize, ("auto", "columns", "scalar", None)
        )
        if not (network is None or isinstance(network, nn.Module) or network in PRESETS):
            raise ValueError(
                f"network must be a torch.nn.Module, one of {sorted(PRESETS)} or None, but was "
                f"{network!r}"
            )
        if module and not self.joint:
            raise ValueError(
                "joint=False needs one of ozaki's networks, of which it knows what belongs to s1, "
                f"but network was {type(network).__name__}; leave one of them out"
            )
        self.network = network
        own = options.U_NET if isinstance(network, str) else options.MLP
        self.width = None if width is None else validation.count("width", width)
        self.depth = validation.count("depth", depth, minimum=0)
        self.shared = validation.flag("shared", shared)
        self.schedule = Schedule(
            validation.count("max_steps", max_steps),
            validation.count("batch_size", batch_size),
            validation.positive(
                "learning_rate", own.rate if learning_rate is None else learning_rate
            ),
            options.fraction("ema", ema),
            validation.count("patience", patience),
            validation.positive(
                "curvature_weight", own.weight if curvature_weight is None else curvature_weight
            ),
        )
        self.held_out = options.fraction("held_out", held_out)
        self.checkpoint = validation.folder("checkpoint", checkpoint)
        self.checkpoint_every = validation.count("checkpoint_every", checkpoint_every)
        self.logger = _logger(logger, log_dir)
        self.seed = validation.seed("seed", seed)
        self.accelerator = accelerator
        self.precision = validation.choice(
            "precision", precision, ("32-true", "64-true", *options.MIXED)
        )
        self.progress = progress

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
        if resume and self.checkpoint is None:
            raise ValueError(
                "resume=True needs the folder of a checkpoint, but checkpoint was None; pass "
                "DSMTrainer(checkpoint=folder)"
            )
        fabric = self._fabric()
        chief = fabric.global_rank == 0
        seed = int(torch.randint(2**31, ())) if self.seed is None else self.seed
        seed = fabric.broadcast(seed)
        # the initial weights, and a network of the user's own, draw from the global state
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices=range(torch.cuda.device_count())),
            lock(self.checkpoint) if self.checkpoint and chief else nullcontext(),
        ):
            if self.checkpoint and chief:
                checkpoints.clean(self.checkpoint)
            saved = self._saved(resume)
            if saved is not None and self.seed is None:
                seed = saved.settings["seed"]
            torch.manual_seed(seed)
            try:
                return self._fit(fabric, data, seed, saved)
            except RuntimeError as error:
                if not _is_of_others(error):
                    raise
                raise RuntimeError(
                    "another process has ended or does not answer, which ended the training; its "
                    f"own error says why ({first_line(error)})"
                ) from error

    def _fit(self, fabric: Fabric, data: Any, seed: int, saved: "_Saved | None") -> ScoreEstimator:
        generator = torch.Generator().manual_seed(seed)
        source = open_source(data, self.held_out, generator)
        if fabric.broadcast(source.fingerprint) != source.fingerprint:
            raise ValueError(
                "data must be the same on every process, but those of process "
                f"{fabric.global_rank} were not those of process 0; each takes its own share"
            )
        units, net = self._network(fabric, source)
        settings = {**self._settings(), "seed": seed, "data": source.fingerprint}
        frozen = [name for name, p in net.network.named_parameters() if not p.requires_grad]
        if frozen:
            settings["frozen"] = frozen
        if saved is not None:
            assert self.checkpoint is not None
            checkpoints.match(self.checkpoint, saved.settings, settings)
        net, steps = self._train(fabric, source, units, net, generator, settings, saved)
        stored = source.train[:STORED_POINTS].to(fabric.device, options.dtype(self.precision))
        own = not isinstance(self.network, nn.Module)
        architecture = self._architecture(net.event_shape) if own else None
        estimator = ScoreEstimator(net, units, stored, architecture=architecture)
        estimator.metrics = {
            **self._metrics(estimator, source.held, generator),
            "held_out_rows": float(len(source.held)),
            "steps": float(steps),
        }
        return estimator

    def _network(self, fabric: Fabric, source: Source) -> tuple[Standardisation, ScoreNetwork]:
        """The data's units, and a network that fits them, on the device."""
        rows = source.train
        dim, kind = rows.shape[1], self.standardize
        if self.rank is not None and self.rank > dim:
            raise ValueError(
                f"rank must be at most the dimension of the data, {dim}, but was {self.rank}"
            )
        if kind == "auto":
            kind = "columns" if len(source.event_shape) == 1 else None
        units, centre, spread = standardisation(rows, kind, options.dtype(self.precision))
        sigma = options.noise_level(
            self.sigma, len(rows) + len(source.held), spread, self.order, self.precision
        )
        rank = self._rank(dim)
        if isinstance(self.network, nn.Module):
            _check_trainable(self.network)
            trunk: nn.Module = copy.deepcopy(self.network)
        else:
            built = Trunks if self.network is None else UNet
            trunk = built(**self._architecture(source.event_shape))
        order = 1 if not self.terms else self.order
        net = ScoreNetwork(
            trunk,
            source.event_shape,
            sigma,
            Heads(order, rank, self.signed),
            centre,
            spread,
        )
        dtype = options.dtype(self.precision)
        level = math.sqrt(sigma[0] * sigma[1]) if isinstance(sigma, tuple) else sigma
        base: Baseline | None = None
        if self._departs(source.event_shape):
            seen, held = (units.forward(part, torch.float64) for part in (rows, source.held))
            base = fitted(seen, held, level, rank, self.signed)
            if self.baseline is None and base.gain(level) < options.LEAST_GAIN:
                base = None
        if base is not None:
            net.depart_from(base)
        elif net.weights is not None:
            some = rows[:: max(1, len(rows) // SIGN_ROWS)][:SIGN_ROWS]
            spectrum = variances(units.forward(some, torch.float64))
            net.weights.data.copy_(starting_signs(spectrum, level, rank))
        net = net.to(fabric.device, dtype)
        net.check(torch.empty(0, dtype=dtype, device=fabric.device))
        return units.to(fabric.device), net

    def _departs(self, event_shape: torch.Size) -> bool:
        """Whether s1 and s2 may be learned as what they are beyond a normal's."""
        if self.baseline is not None:
            return self.baseline
        plain = len(event_shape) == 1 and event_shape.numel() <= options.MOST_BASELINE
        return self.network is None and plain

    def _rank(self, dim: int) -> int:
        """The rank of s2's low rank; 0 for a diagonal."""
        if self.curvature != "low_rank":
            return 0
        return min(options.DEFAULT_RANK, dim) if self.rank is None else self.rank

    def _architecture(self, event_shape: torch.Size) -> dict[str, Any]:
        """The arguments of `Trunks` or `UNet`."""
        dim = event_shape.numel()
        heads = {"order": self.order if self.terms else 1, "rank": self._rank(dim)}
        if self.network is not None:
            preset = {"preset": self.network, "width": self.width}
            return {"channels": channels_of(event_shape), **heads, **preset}
        return {
            "dim": dim,
            **heads,
            "width": self.width or min(options.MOST_WIDTH, max(options.LEAST_WIDTH, 2 * dim)),
            "depth": self.depth,
            "conditional": isinstance(self.sigma, tuple),
            "shared": self.shared,
        }

    def _train(
        self,
        fabric: Fabric,
        source: Source,
        units: Standardisation,
        net: ScoreNetwork,
        generator: torch.Generator,
        settings: Mapping[str, Any],
        saved: "_Saved | None",
    ) -> tuple[ScoreNetwork, int]:
        """The weights that are kept, and the step they are of."""
        dtype = options.dtype(self.precision)

        def prepare(rows: Tensor) -> Tensor:
            return units.forward(rows.to(fabric.device), dtype)

        plans = self._plans(net)
        batches = source.batches(
            self.schedule.batch_size, generator, prepare, (fabric.global_rank, fabric.world_size)
        )
        net.mixed = options.MIXED.get(self.precision)
        shown = self.progress and sys.stderr.isatty() and fabric.global_rank == 0
        begin = 0 if saved is None else saved.state["phase"]
        phase: Phase | None = None
        total = sum(schedule.max_steps for _, schedule in plans)
        trainable = [(p, p.requires_grad) for p in net.parameters()]  # as the user would have it
        with progress.bar(total=total, desc="training", disable=not shown) as bar:
            for i, (plan, schedule) in enumerate(plans):
                if i < begin:
                    continue
                for parameter, wanted in trainable:
                    parameter.requires_grad_(wanted)
                if isinstance(net.network, (Trunks, UNet)):
                    # what a phase does not train takes no gradients: processes wait for each one
                    net.network.train_orders(plan.first, bool(plan.terms))
                    if net.weights is not None:
                        net.weights.requires_grad_(bool(plan.terms))
                    for parameter, wanted in trainable:
                        parameter.requires_grad_(parameter.requires_grad and wanted)
                if i and isinstance(net.network, Trunks) and not net.heads.rank:
                    net.network.warm_start()
                if i and isinstance(net.network, UNet):
                    # a dark pixel's residual is of the size of what mixed precision rounds off s1
                    net.mixed = None
                phase = Phase(fabric, net, plan, schedule, batches, prepare(source.held), generator)
                if saved is not None and i == begin:
                    phase.restore(saved.tensors, saved.state)
                bar.update(i * self.schedule.max_steps + phase.step - bar.n)

                def after(phase: Phase, i: int = i) -> None:
                    bar.update()
                    if phase.finished or phase.step % self.checkpoint_every == 0:
                        self._save(fabric, phase, i, settings)

                def evaluated(
                    phase: Phase, figures: dict[str, float], done: int = i * self.schedule.max_steps
                ) -> None:
                    fabric.log_dict(figures, step=done + phase.step)
                    bar.set_postfix(held_out=", ".join(f"{v:.4g}" for v in phase.now.means))

                kept = phase.run(after, evaluated)
                net.load_state_dict(kept.state_dict())
        assert phase is not None
        for logger in fabric.loggers:
            logger.finalize("success")
        return phase.average, phase.kept_step

    def _plans(self, net: ScoreNetwork) -> list[tuple[LossPlan, Schedule]]:
        """The losses of each phase, and how they are optimised."""
        limit = {"auto": options.REDUCE_BELOW * net.spread, True: math.inf, False: 0.0}
        plan = LossPlan(
            tuple(self.terms.items()),
            order=net.heads.order,
            antithetic=self.variance_reduction is not False,
            reduce_below=limit[self.variance_reduction],
        )
        schedule, alone = self.schedule, plan._replace(first=False)
        if self.joint or not self.terms:
            return [(plan, schedule)]
        if isinstance(net.network, UNet):
            return [(plan, schedule), (alone, schedule)]
        second = schedule
        if not self.shared and not net.heads.rank:
            second = schedule._replace(learning_rate=schedule.learning_rate * WARM_RATE)
        return [(plan._replace(terms=()), schedule), (alone, second)]

    def _save(self, fabric: Fabric, phase: Phase, index: int, settings: Mapping[str, Any]) -> None:
        if self.checkpoint is None:
            return
        if fabric.global_rank == 0:
            state = {**phase.state(), "phase": index}
            checkpoints.write(self.checkpoint, phase.tensors(), settings, state)
        fabric.barrier()

    def _saved(self, resume: bool) -> "_Saved | None":
        found = None if self.checkpoint is None else checkpoints.read(self.checkpoint)
        if found is not None and not resume:
            raise FileExistsError(
                f"checkpoint={str(self.checkpoint)!r} holds the state of a run; pass "
                "fit(data, resume=True) to go on with it, or choose another folder"
            )
        return None if found is None else _Saved(*found)

    def _settings(self) -> dict[str, Any]:
        """What bears on the result, as JSON would have it."""
        sigma = list(self.sigma) if isinstance(self.sigma, tuple) else self.sigma
        return {
            "sigma": sigma,
            "objective": dict(self.terms),
            "curvature": self.curvature,
            "rank": self.rank,
            "signed": self.signed,
            "order": self.order,
            "variance_reduction": self.variance_reduction,
            "joint": self.joint,
            "baseline": self.baseline,
            "standardize": self.standardize,
            "network": type(self.network).__qualname__
            if isinstance(self.network, nn.Module)
            else self.network,
            "width": self.width,
            "depth": self.depth,
            "shared": self.shared,
            **self.schedule._asdict(),
            "held_out": self.held_out,
            "precision": self.precision,
        }

    def _fabric(self) -> Fabric:
        """Lightning Fabric; under torchrun one process of many."""
        world = int(os.environ.get("WORLD_SIZE", 1))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
        if self.schedule.batch_size % world:
            raise ValueError(
                f"batch_size must be a multiple of the number of processes, {world}, but was "
                f"{self.schedule.batch_size}"
            )
        fabric = Fabric(
            accelerator=self.accelerator,
            devices=local,
            num_nodes=max(1, world // local),
            strategy="ddp" if world > 1 else "auto",
            precision=self.precision,
            loggers=self.logger,
        )
        if world > 1:
            fabric.launch()
        return fabric

    def _metrics(
        self, estimator: ScoreEstimator, held: Tensor, generator: torch.Generator
    ) -> dict[str, Any]:
        pairs = held_out_pairs(estimator.network, self.schedule.batch_size)
        held = held[:pairs]
        if not isinstance(estimator.sigma, tuple):
            return estimator.evaluate(held, generator, draws=pairs)
        low, high = (math.log(s) for s in estimator.sigma)
        levels = [math.exp(low + (high - low) * i / 4) for i in range(5)]
        levels[0], levels[-1] = estimator.sigma
        found = [estimator.at(s).evaluate(held, generator, draws=pairs) for s in levels]
        columns = {k: [figures[k] for figures in found] for k in found[0] if k != "calibration"}
        return {"sigma": levels, **columns}


class _Saved(NamedTuple):
    """What a checkpoint held."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    state: dict[str, Any]


def _is_of_others(error: RuntimeError) -> bool:
    """Whether it is what torch says when processes no longer hear one another."""
    return type(error).__name__.startswith("Dist") or "gloo" in str(error)


def _check_trainable(network: nn.Module) -> None:
    """Raise ValueError for a network of which nothing would be trained."""
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


def _logger(logger: Any, folder: str | os.PathLike[str]) -> Any:
    if isinstance(logger, str):
        validation.choice("logger", logger, ("csv", "tensorboard"))
        kind = CSVLogger if logger == "csv" else TensorBoardLogger
        return kind(root_dir=Path(folder), name="training")
    if logger is not None and not hasattr(logger, "log_metrics"):
        raise ValueError(
            f"logger must be 'csv', 'tensorboard', a logger of Lightning Fabric or None, but was "
            f"{logger!r}"
        )
    return logger
