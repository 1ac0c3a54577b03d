"""`MCMC` runs all chains as one batch.

It is a subclass of `pyro.infer.MCMC` with the same arguments, so that code for the one works with
the other. The parent class is told of one chain; this class walks the batch.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pyro
import torch
from pyro.infer import MCMC as PyroMCMC
from torch import Tensor

from ozaki.foundation import validation
from ozaki.foundation.process import pyro_turn, seed_from, unchecked
from ozaki.foundation.torch_modes import ordinary
from ozaki.io.atomic import lock
from ozaki.kernels import processes
from ozaki.kernels.processes import Team
from ozaki.kernels.score_kernel import ScoreKernel
from ozaki.kernels.target import RunContext, Target
from ozaki.sampling import arguments, run_identity, zarr_draws, zarr_store
from ozaki.sampling.loop import SamplingLoop
from ozaki.sampling.readers import RunReaders
from ozaki.sampling.run import Run, constrained
from ozaki.sampling.run_checkpoint import RunCheckpoint
from ozaki.sampling.site_facts import site_facts


class MCMC(RunReaders, PyroMCMC):
    """Markov chain Monte Carlo with all chains vectorised.

    Under ``torchrun --nproc-per-node N`` each of N processes walks its share of the chains, and all
    have the draws of all, which are those of one process up to rounding. Give all the same.

    Args:
        kernel: a `ScoreOzakiKernel` or `ScoreLangevinKernel`.
        num_samples: draws kept per chain.
        warmup_steps: adaptation steps, discarded; None means `num_samples`. "auto" ends once the
            chains agree and their metric has settled, after 600 to 2,000 steps, and warns where
            they do not agree by then.
        initial_params: site → unconstrained tensor, or array or list of floats, with a leading
            chain dimension when `num_chains` > 1, or without it for all chains; drawn from the
            score if None.
        num_chains: chains walked at once.
        hook_fn: called as ``hook_fn(kernel, params, "Warmup" or "Sample", i)`` once a step with the
            unconstrained batch.
        mp_context: accepted for compatibility and not used: there is one process.
        disable_progbar: no progress bar; there is none either where the output is no terminal.
        disable_validation: as in Pyro.
        transforms: site → constrained-to-unconstrained transform, applied inverted to the draws of
            a bare score. Refused for a model or a distribution, which bring their own: another
            without its Jacobian would give draws of another law.
        save_params: the latent or deterministic sites to keep; all if None.
        seed: makes the run reproducible, below 2⁶³; None draws one from torch's global generator.
        thinning: keep every `thinning`-th draw; num_samples of them are kept all the same.
        checkpoint: a folder in which the run is kept as it goes. `run` resumes the run that it
            finds there: a run that was killed goes on from its last block, to the very draws (on a
            CPU) it would have made; one with fewer samples is extended. Another model, data or
            settings are refused.
        checkpoint_every: steps from one block to the next.
        store: a new folder to which draws go in blocks while they are made, as Zarr and in ArviZ's
            groups, where memory would not hold them all; needs ``ozaki[zarr]``.

    Raises:
        ValueError: an argument that cannot be used, by name.
        ImportError: `store` without Zarr.

    Example:
        >>> from ozaki import MCMC, ScoreOzakiKernel
        >>> from ozaki.scores import GaussianScore
        >>> kernel = ScoreOzakiKernel(GaussianScore(torch.zeros(2), torch.eye(2)))
        >>> mcmc = MCMC(kernel, num_samples=50, warmup_steps=50, seed=0)
        >>> mcmc.run()
        >>> mcmc.get_samples(group_by_chain=True)["x"].shape
        torch.Size([4, 50, 2])
    """

    def __init__(
        self,
        kernel: ScoreKernel,
        num_samples: int = 1000,
        warmup_steps: int | Literal["auto"] | None = 1000,
        initial_params: Mapping[str, Any] | None = None,
        num_chains: int = 4,
        hook_fn: Callable[..., Any] | None = None,
        mp_context: str | None = None,
        disable_progbar: bool = False,
        disable_validation: bool | None = True,
        transforms: dict[str, Any] | None = None,
        save_params: list[str] | None = None,
        *,
        seed: int | None = None,
        thinning: int = 1,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 200,
        store: str | os.PathLike[str] | None = None,
    ):
        if not isinstance(kernel, ScoreKernel):
            raise ValueError(
                f"kernel must be one of ozaki's, but was {arguments.in_words(kernel)}; run other "
                "kernels in pyro.infer.MCMC"
            )
        num_samples = validation.count("num_samples", num_samples)
        num_chains = validation.count("num_chains", num_chains)
        if warmup_steps is not None and warmup_steps != "auto":
            warmup_steps = validation.count("warmup_steps", warmup_steps, minimum=0)
        if hook_fn is not None and not callable(hook_fn):
            raise ValueError(f"hook_fn must be callable, but was {hook_fn!r}")
        validation.flag("disable_progbar", disable_progbar)
        super().__init__(
            kernel,
            num_samples,
            warmup_steps,  # pyright: ignore[reportArgumentType]
            num_chains=1,
            hook_fn=hook_fn,
            disable_progbar=disable_progbar,
            disable_validation=disable_validation,  # pyright: ignore[reportArgumentType]
            transforms=arguments.checked_transforms(transforms),
        )
        self.kernel: ScoreKernel = kernel
        self.num_chains = num_chains
        self.seed = validation.seed("seed", seed)
        self.thinning = validation.count("thinning", thinning)
        self._save_params = arguments.checked_names("save_params", save_params)
        self._hook = hook_fn
        self._quiet = disable_progbar
        self._given_transforms: dict[str, Any] = transforms or {}
        self._initial = initial_params
        self._result: Run | None = None
        self._walked: SamplingLoop
        self.checkpoint = validation.folder("checkpoint", checkpoint)
        self.checkpoint_every = validation.count("checkpoint_every", checkpoint_every)
        self.store = zarr_store.checked(store)

    @ordinary()
    def run(self, *args: Any, **kwargs: Any) -> None:
        """Warm up, draw, and bring the draws back to the model's own coordinates.

        Ctrl-C after warm-up keeps the draws made so far and says how many there are. Runs of scores
        and distributions may go on in several threads at once; those of Pyro models, whose handlers
        are one stack for all threads, take turns.

        Args:
            args: passed to the Pyro model.
            kwargs: passed to it by name.

        Raises:
            ValueError: what cannot be walked: a model without continuous sites, settings, starting
                points or a checkpoint that do not fit it; by name.
            TypeError: arguments that the model does not take.
            BlockingIOError: another run uses `checkpoint`.
        """
        self._result, self._samples = None, None
        with self._at_work() as team:
            walk, seed = self._prepared(team, args, kwargs)
            walk.run(self.kernel.initial_params)
            self._keep(walk, seed)
            if self.warmup_steps == "auto":
                arguments.warn_unsettled(self.kernel.engine.warmup)

    @ordinary()
    def extend(self, num_samples: int) -> None:
        """Go on with the chains of the last run, and add draws to those it made.

        There is no new warm-up: the chains go on from where they stood, as if `num_samples` had
        been larger.

        Args:
            num_samples: how many more draws a chain.

        Raises:
            RuntimeError: `run` has not been called.
            ValueError: a `num_samples` that is no whole number above 0.
        """
        num_samples = validation.count("num_samples", num_samples)
        seed, walk = self.result.seed, self._walked
        with self._at_work() as team:
            team.require_equal({"num_samples": num_samples}, "give all the same")
            params = walk.extend(num_samples)
            self.num_samples = walk.draws.room
            walk.run(params)
            self._keep(walk, seed)

    @contextmanager
    def _at_work(self) -> Iterator[Team]:
        """Hold the kernel and the lock of the checkpoint while the team of processes walks."""
        kernel, folder = self.kernel, self.checkpoint
        with ExitStack() as held:
            if kernel.model is not None:
                held.enter_context(pyro_turn())
                asked = self.disable_validation is False
                held.enter_context(pyro.validation_enabled(True) if asked else unchecked())
            kernel.cleanup()
            held.callback(kernel.cleanup)
            team = processes.team(self.num_chains)
            if not team.chief:
                held.enter_context(warnings.catch_warnings(action="ignore"))
            shared = {"checkpoint": folder is not None, "hook_fn": self._hook is not None}
            team.require_equal(shared, "give it to all or none")
            if folder is not None:
                team.on_first(lambda: held.enter_context(lock(folder)))
            yield team

    def _prepared(
        self, team: Team, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[SamplingLoop, int]:
        """Return a loop whose chains are at their start or at their checkpoint, and the seed."""
        kernel, given = self.kernel, self._given_transforms
        try:
            target = kernel.bind(args, kwargs)
        except TypeError:
            arguments.check_model_arguments(kernel.model, args, kwargs)
            raise
        arguments.check_own_transforms(target, given)
        arguments.check_save_params(target, self._save_params)
        arguments.check_step_size(kernel.step_size, self.warmup_steps, target)
        told = team.size > 1 or self.checkpoint is not None
        own = self._settings() if told else {}
        settings = run_identity.of_run(kernel, target, (args, kwargs), own) if told else {}
        if team.size > 1:
            every = {**settings, "num_samples": self.num_samples}
            team.require_equal(every, "give all the same model, data and settings")
        seed = team.broadcast(seed_from(None)) if self.seed is None else self.seed
        generator = torch.Generator(target.score.device)
        generator.manual_seed(seed)
        kernel.begin(target, self.warmup_steps, RunContext(self.num_chains, generator, team))
        constrain = self._constrain(target)
        draws = zarr_draws.draws_of(self.store, self.num_samples, kernel, constrain)
        store = None
        if self.checkpoint is not None:
            store = RunCheckpoint(self.checkpoint, self.checkpoint_every, settings)
        walk = SamplingLoop(
            kernel,
            draws,
            thinning=self.thinning,
            hook=self._hook,
            quiet=self._quiet,
            store=store,
        )
        if not walk.take_up():
            kernel.initial_params = arguments.starting_params(
                self._initial, target, self.num_chains
            )
        params = kernel.initial_params
        arguments.try_transforms(given, params)
        arguments.check_labels(target, params, constrain)
        begin = {name: f"about {value.double().sum():.3g}" for name, value in params.items()}
        team.require_equal(begin, "give all the same initial_params")
        return walk, seed

    def _settings(self) -> dict[str, Any]:
        """The settings that bear on the draws."""
        return {
            "num_chains": self.num_chains,
            "warmup_steps": self.warmup_steps,
            "thinning": self.thinning,
            "seed": self.seed,
            "checkpoint_every": self.checkpoint_every,
            "store": self.store is not None,
        }

    def _constrain(self, target: Target) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return the function from draws in the score's coordinates to the sites to keep."""
        return partial(constrained, target, self._given_transforms, self._save_params)

    def _keep(self, walk: SamplingLoop, seed: int) -> None:
        """Keep the draws of the loop as the last run."""
        kernel, draws, target = walk.kernel, walk.draws, walk.kernel.target
        draws.cut()
        walk.suspended = kernel.suspend()
        samples = draws.samples(self._constrain(target))
        if self.store is not None:
            draws.note(site_facts(target, draws.spread()))
        self._walked = walk
        self._result = Run(
            target=target,
            draws=draws,
            samples=samples,
            chains=draws.figures(),
            transforms=self._given_transforms,
            seed=seed,
            info=self._info(draws.count),
        )
        # what the parent class reads
        self.transforms = self._given_transforms or target.transforms
        self._samples, self._diagnostics = samples, self._result.chains

    def _info(self, count: int) -> dict[str, Any]:
        """The settings of the run, as a report shows them."""
        engine, own = self.kernel.engine, type(self.kernel).proposal
        spec = engine.spec
        walked, chosen = spec.proposal, ""
        if own in [track.spec.proposal for track in engine.warmup.tracks]:
            chosen = f", which warm-up saw move further than {own.__name__}"
        return {
            "kernel": type(self.kernel).__name__,
            "proposal": walked.__name__ + ("" if walked is own else chosen),
            "correction": spec.correction,
            "metric": engine.warmup.metric,
            "trajectory": _in_turns(engine.time),
            "num_chains": self.num_chains,
            "num_samples": count,
            "warmup_steps": engine.warmup.plan.total,
            "thinning": self.thinning,
            "seed": "none" if self.seed is None else self.seed,
        }

    @ordinary()
    def step_bias(self) -> Any:
        """How far the step size of an unadjusted run biases it, measured by step halving.

        The chains walk on from where they are with half the step, a quarter longer than the run,
        and come back. `report` tells what was found.

        Returns:
            A pandas frame as of `ozaki.diagnostics.step_bias`, a row for each component of the
            unconstrained coordinates.

        Raises:
            RuntimeError: `run` has not been called.
            ValueError: a run with Metropolis correction, whose law does not depend on the step
                size; fewer than 4 draws a chain.
        """
        made = self.result
        made.require_draws("step_bias")
        if made.correction != "none":
            raise ValueError(
                "metropolis must be 'none' for step_bias(), but was "
                f"{made.correction!r}: with it the step size leaves no bias"
            )
        with self._at_work():
            half = self._walked.draws_at_half_step()
        self._result = replace(made, bias=made.step_bias(half))
        return self._result.bias


def _in_turns(time: float) -> str:
    """Say how long trajectories are."""
    return f"a mean angle of {time:.3g}" if time else "single steps"
