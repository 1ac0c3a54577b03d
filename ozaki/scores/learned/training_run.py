"""`TrainingRun` carries out a training: its processes, phases, checkpoint and progress.

This is the only file that imports Lightning Fabric.
"""

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor

from ozaki.foundation import progress, validation
from ozaki.io import checkpoint as checkpoints
from ozaki.io.atomic import lock
from ozaki.scores.differentiation import first_line
from ozaki.scores.learned.data_source import Source
from ozaki.scores.learned.losses import LossPlan
from ozaki.scores.learned.phase import OptimiserSchedule, TrainingPhase
from ozaki.scores.learned.preconditioned import ScoreNetwork
from ozaki.scores.learned.settings import REDUCE_BELOW, TrainerSettings
from ozaki.scores.learned.standardisation import Standardisation

# share of the learning rate for a diagonal's trunk that begins with the features of s1. The whole
# rate destroys them (logistic mixture, 50-d: 27.7 after 500 steps, and 17.3 at an eighth; constant
# 17.5). A low rank's many columns are learned sooner from random weights at the whole rate (stiff
# normal, 100-d, 2,500 steps: 0.58 against 1.67)
WARM_RATE = 0.25


@dataclass(frozen=True)
class RunOptions:
    """The options of a training that do not bear on its result.

    `checked` makes valid ones.

    Attributes:
        checkpoint: a folder, or None.
        logger: a logger of Lightning Fabric, or None.

    The other attributes are as the arguments of `DSMTrainer`.
    """

    checkpoint: Path | None
    checkpoint_every: int
    logger: Any
    seed: int | None
    accelerator: str
    progress: bool

    @classmethod
    def checked(cls, **given: Any) -> "RunOptions":
        """Check the arguments of `DSMTrainer`, all given by name, and return their options.

        Raises:
            ValueError: an argument out of range.
        """
        return cls(
            validation.folder("checkpoint", given["checkpoint"]),
            validation.count("checkpoint_every", given["checkpoint_every"]),
            _logger(given["logger"], given["log_dir"]),
            validation.seed("seed", given["seed"]),
            given["accelerator"],
            given["progress"],
        )


class TrainingRun:
    """One training, by one process or by several.

    `begun` prepares it, `train` runs its phases. Where a checkpoint is kept, the state is written
    to it on the way.

    Args:
        settings: what is learned, and by what.
        options: how the run is carried out.
        resume: whether a training that was stopped may be resumed.

    Raises:
        ValueError: `resume` without a checkpoint, or a batch that the processes cannot share.
    """

    def __init__(self, settings: TrainerSettings, options: RunOptions, *, resume: bool):
        if resume and options.checkpoint is None:
            raise ValueError(
                "resume=True needs the folder of a checkpoint, but checkpoint was None; pass "
                "DSMTrainer(checkpoint=folder)"
            )
        self.settings, self.options, self.resume = settings, options, resume
        self.fabric = _fabric(settings, options)
        seed = int(torch.randint(2**31, ())) if options.seed is None else options.seed
        self.seed: int = self.fabric.broadcast(seed)
        self._saved: _Saved | None = None

    @property
    def device(self) -> torch.device:
        """Where the network is trained."""
        return self.fabric.device

    @property
    def is_chief(self) -> bool:
        """Whether this process writes files and shows progress for all."""
        return self.fabric.global_rank == 0

    @contextmanager
    def begun(self) -> Iterator[torch.Generator]:
        """Seed the run and lock its checkpoint, for as long as the context lasts.

        The global random state and the modes of autograd are afterwards as they were.

        Yields:
            The generator of all noise and of the held-out rows.

        Raises:
            FileExistsError: the checkpoint holds a state, and `resume` is False.
            BlockingIOError: another run uses the checkpoint.
            RuntimeError: another of the processes has ended or does not answer.
        """
        folder = self.options.checkpoint if self.is_chief else None
        # the initial weights, and a network of the user's own, draw from the global state
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(devices=range(torch.cuda.device_count())),
            lock(folder) if folder else nullcontext(),
        ):
            if folder:
                checkpoints.clean(folder)
            self._saved = self._read()
            if self._saved is not None and self.options.seed is None:
                self.seed = self._saved.settings["seed"]
            torch.manual_seed(self.seed)
            try:
                yield torch.Generator().manual_seed(self.seed)
            except RuntimeError as error:
                if not _is_of_others(error):
                    raise
                raise RuntimeError(
                    "another process has ended or does not answer, which ended the training; its "
                    f"own error says why ({first_line(error)})"
                ) from error

    def check_shared(self, source: Source) -> None:
        """Raise ValueError where this process has other data than the first."""
        if self.fabric.broadcast(source.fingerprint) != source.fingerprint:
            raise ValueError(
                "data must be the same on every process, but those of process "
                f"{self.fabric.global_rank} were not those of process 0; each takes its own share"
            )

    def train(
        self,
        network: ScoreNetwork,
        units: Standardisation,
        source: Source,
        generator: torch.Generator,
    ) -> tuple[ScoreNetwork, int]:
        """Run the phases that are left.

        Args:
            network: on `device`; it is trained in place.
            units: of the network's points.
            source: the clean rows.
            generator: of all noise.

        Returns:
            The weights that are kept, and the step that they are of.

        Raises:
            ValueError: the settings or the data are not those of the checkpoint.
            FloatingPointError: the loss became NaN or infinite.
        """
        fabric, saved = self.fabric, self._saved
        identity = self._identity(network, source)
        if saved is not None:
            assert self.options.checkpoint is not None
            checkpoints.match(self.options.checkpoint, saved.settings, identity)

        def prepare(rows: Tensor) -> Tensor:
            return units.forward(rows.to(fabric.device), self.settings.dtype)

        plans, steps = plan_phases(self.settings, network), self.settings.max_steps
        share = fabric.global_rank, fabric.world_size
        batches = source.batches(self.settings.batch_size, generator, prepare, share)
        held = prepare(source.held)
        network.mixed = self.settings.mixed
        begin = 0 if saved is None else saved.state["phase"]
        trainable = [
            (p, p.requires_grad) for p in network.parameters()
        ]  # as the user would have it
        shown = self.options.progress and sys.stderr.isatty() and self.is_chief
        phase: TrainingPhase | None = None
        with progress.bar(total=len(plans) * steps, desc="training", disable=not shown) as bar:
            for index, (plan, schedule) in list(enumerate(plans))[begin:]:
                _set_up(network, plan, index, trainable)
                phase = TrainingPhase(fabric, network, plan, schedule, batches, held, generator)
                if saved is not None and index == begin:
                    phase.restore(saved.tensors, saved.state)
                bar.update(index * steps + phase.step - bar.n)
                kept = phase.run(
                    partial(self._after_step, bar, index, identity),
                    partial(self._after_evaluation, bar, index * steps),
                )
                network.load_state_dict(kept.state_dict())
        assert phase is not None
        for logger in fabric.loggers:
            logger.finalize("success")
        return phase.average, phase.kept_step

    def _identity(self, network: ScoreNetwork, source: Source) -> dict[str, Any]:
        """Return the settings that must be equal for a training to be resumed."""
        found = {**asdict(self.settings), "seed": self.seed, "data": source.fingerprint}
        frozen = [name for name, p in network.network.named_parameters() if not p.requires_grad]
        return {**found, "frozen": frozen} if frozen else found

    def _after_step(
        self, bar: Any, index: int, identity: Mapping[str, Any], phase: TrainingPhase
    ) -> None:
        """Move the bar, and write the state of phase `index` when a checkpoint is due."""
        bar.update()
        due = phase.finished or phase.step % self.options.checkpoint_every == 0
        if self.options.checkpoint is None or not due:
            return
        if self.is_chief:
            state = {**phase.state(), "phase": index}
            checkpoints.write(self.options.checkpoint, phase.tensors(), identity, state)
        self.fabric.barrier()

    def _after_evaluation(
        self, bar: Any, before: int, phase: TrainingPhase, figures: dict[str, float]
    ) -> None:
        """Log the figures, counting the steps `before` this phase, and show them."""
        self.fabric.log_dict(figures, step=before + phase.step)
        bar.set_postfix(held_out=", ".join(f"{v:.4g}" for v in phase.now.means))

    def _read(self) -> "_Saved | None":
        """Read the state in the checkpoint, if there is one."""
        folder = self.options.checkpoint
        found = None if folder is None else checkpoints.read(folder)
        if found is not None and not self.resume:
            raise FileExistsError(
                f"checkpoint={str(folder)!r} holds the state of a run; pass "
                "fit(data, resume=True) to go on with it, or choose another folder"
            )
        return None if found is None else _Saved(*found)


class _Saved(NamedTuple):
    """The content of a checkpoint."""

    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    state: dict[str, Any]


def plan_phases(
    settings: TrainerSettings, network: ScoreNetwork
) -> list[tuple[LossPlan, OptimiserSchedule]]:
    """Plan the losses of each phase, and the settings of its optimiser."""
    limit = {"auto": REDUCE_BELOW * network.spread, True: math.inf, False: 0.0}
    plan = LossPlan(
        tuple(settings.objective.items()),
        order=network.heads.order,
        antithetic=settings.variance_reduction is not False,
        reduce_below=limit[settings.variance_reduction],
    )
    schedule, alone = settings.schedule, plan._replace(first=False)
    if settings.joint or not settings.objective:
        return [(plan, schedule)]
    traits = network.trunk.traits
    if not traits.separates_orders:
        return [(plan, schedule), (alone, schedule)]
    second = schedule
    if traits.inherits_features:
        second = schedule._replace(learning_rate=schedule.learning_rate * WARM_RATE)
    return [(plan._replace(terms=()), schedule), (alone, second)]


def _set_up(
    network: ScoreNetwork, plan: LossPlan, index: int, trainable: Sequence[tuple[Tensor, bool]]
) -> None:
    """Let the parameters that phase `index` trains take gradients, and set their first values.

    The other parameters take none, since processes wait for each gradient. `trainable` says of each
    parameter whether it may ever be trained.
    """
    traits = network.trunk.traits
    for parameter, wanted in trainable:
        parameter.requires_grad_(wanted)
    if traits.knows_orders:
        network.trunk.train_orders(plan.first, bool(plan.terms))
        if network.weights is not None:
            network.weights.requires_grad_(bool(plan.terms))
        for parameter, wanted in trainable:
            parameter.requires_grad_(parameter.requires_grad and wanted)
    if index and traits.inherits_features:
        network.trunk.warm_start()
    if index and not traits.separates_orders:
        # a dark pixel's residual is of the size of what mixed precision rounds off s1
        network.mixed = None


def _fabric(settings: TrainerSettings, options: RunOptions) -> Fabric:
    """Launch Lightning Fabric; under torchrun as one process of many."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if settings.batch_size % world:
        raise ValueError(
            f"batch_size must be a multiple of the number of processes, {world}, but was "
            f"{settings.batch_size}"
        )
    fabric = Fabric(
        accelerator=options.accelerator,
        devices=local,
        num_nodes=max(1, world // local),
        strategy="ddp" if world > 1 else "auto",
        precision=settings.precision,  # pyright: ignore
        loggers=options.logger,
    )
    if world > 1:
        fabric.launch()
    return fabric


def _is_of_others(error: RuntimeError) -> bool:
    """Say whether an error is torch's for processes that no longer hear one another."""
    return type(error).__name__.startswith("Dist") or "gloo" in str(error)


def _logger(logger: Any, folder: str | os.PathLike[str]) -> Any:
    """Return a logger of Lightning Fabric, built where its name was given."""
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
