"""`MCMC`: chains as one batch, from kernel to report.

A subclass of `pyro.infer.MCMC` with the same arguments, so that what reads one reads the other. The
parent is told of one chain; the batch is walked here.
"""

import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import MCMC as PyroMCMC
from pyro.infer.mcmc import util
from torch import Tensor
from torch.distributions import Transform

from ozaki import diagnostics, report
from ozaki.diagnostics.arviz_data import attach
from ozaki.diagnostics.calibration import Calibration
from ozaki.diagnostics.checks import MOST_NAMED
from ozaki.diagnostics.judgement import Verdict
from ozaki.foundation import validation
from ozaki.foundation.process import pyro_turn, seed_from, unchecked
from ozaki.foundation.text import plural
from ozaki.foundation.torch_modes import ordinary
from ozaki.io.atomic import lock
from ozaki.kernels import processes
from ozaki.kernels.score_kernel import ScoreKernel, Target
from ozaki.sampling import run_identity, zarr_draws, zarr_store
from ozaki.sampling.draws import Draws
from ozaki.sampling.loop import Walk
from ozaki.sampling.run_checkpoint import Store
from ozaki.sampling.site_facts import site_facts
from ozaki.scores.differentiation import first_line
from ozaki.scores.pyro_models import prediction
from ozaki.scores.pyro_models.layout import check_initial_params
from ozaki.scores.pyro_models.model import PyroModelScore

WARMUP_LEAST = 6  # steps in which a step size can be found at all
LIKELIHOODS_MOST = 10_000_000  # numbers kept unasked
SUMMARY_LEAST = 4  # draws a chain: R-hat splits them in two


class MCMC(PyroMCMC):
    """Markov chain Monte Carlo with all chains vectorised.

    Under ``torchrun --nproc-per-node N`` each of N processes walks its share of the chains, and all
    have the draws of all, which are those of one process up to rounding. Give all the same.

    Args:
        kernel: a `ScoreOzakiKernel` or `ScoreLangevinKernel`.
        num_samples: draws kept per chain.
        warmup_steps: adaptation steps, discarded; None means `num_samples`.
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
        checkpoint: a folder in which the run is kept as it goes. `run` takes up what it finds
            there: a run that was killed goes on from its last block, to the very draws (on a CPU)
            it would have made; one with fewer samples is extended. Another model, data or settings
            are refused.
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
        warmup_steps: int | None = 1000,
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
                f"kernel must be one of ozaki's, but was {_named(kernel)}; run other kernels in "
                "pyro.infer.MCMC"
            )
        num_samples = validation.count("num_samples", num_samples)
        num_chains = validation.count("num_chains", num_chains)
        if warmup_steps is not None:
            warmup_steps = validation.count("warmup_steps", warmup_steps, minimum=0)
        if hook_fn is not None and not callable(hook_fn):
            raise ValueError(f"hook_fn must be callable, but was {hook_fn!r}")
        validation.flag("disable_progbar", disable_progbar)
        super().__init__(
            kernel,
            num_samples,
            warmup_steps,
            num_chains=1,
            hook_fn=hook_fn,
            disable_progbar=disable_progbar,
            disable_validation=disable_validation,  # pyright: ignore[reportArgumentType]
            transforms=_checked_transforms(transforms),
        )
        self.kernel: ScoreKernel = kernel
        self.num_chains = num_chains
        self.seed = validation.seed("seed", seed)
        self.thinning = validation.count("thinning", thinning)
        self._save_params = _checked_names("save_params", save_params)
        self._hook = hook_fn
        self._quiet = disable_progbar
        self._given_transforms = transforms
        self._initial = initial_params
        self._draws: Draws | None = None
        self._walked: Walk
        self._bias: Any = None
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
        self._args, self._kwargs = args, kwargs
        self._draws, self._samples = None, None
        with self._at_work() as kernel:
            self._walk(kernel, args, kwargs)

    @contextmanager
    def _at_work(self) -> Iterator[ScoreKernel]:
        """The kernel as it walks a batch, and afterwards as it was; the checkpoint's lock held."""
        kernel, folder = self.kernel, self.checkpoint
        with ExitStack() as held:
            if kernel.model is not None:
                held.enter_context(pyro_turn())
                asked = self.disable_validation is False
                held.enter_context(pyro.validation_enabled(True) if asked else unchecked())
            kernel.cleanup()
            kernel.num_chains, kernel.team = self.num_chains, processes.team(self.num_chains)
            if not kernel.team.chief:
                held.enter_context(warnings.catch_warnings(action="ignore"))
            try:
                shared = {"checkpoint": folder is not None, "hook_fn": self._hook is not None}
                kernel.team.require_equal(shared, "give it to all or none")
                if folder is not None:
                    kernel.team.on_first(lambda: held.enter_context(lock(folder)))
                yield kernel
            finally:
                kernel.cleanup()
                kernel.num_chains, kernel.generator, kernel.team = None, None, processes.ALONE

    def _walk(self, kernel: ScoreKernel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            kernel.setup(self.warmup_steps, *args, **kwargs)
        except TypeError:
            _check_arguments(kernel.model, args, kwargs)
            raise
        target, score = kernel.target, kernel.target.score
        self._check_transforms(target)
        self._check_save_params(target)
        largest = torch.finfo(score.dtype).max
        if kernel._step_size is not None and kernel._step_size > largest:
            raise ValueError(
                f"step_size must be at most {largest:.2g}, the largest {score.dtype}, but was "
                f"{kernel._step_size}"
            )
        if kernel._step_size is None and 0 < self.warmup_steps < WARMUP_LEAST:
            warnings.warn(
                f"warmup_steps is {self.warmup_steps}: too few to find a step size in; use 500 or "
                "more, or give the kernel a step_size",
                stacklevel=4,
            )
        if kernel.team.size > 1:
            settings = {**self._settings(target), "num_samples": self.num_samples}
            kernel.team.require_equal(settings, "give all the same model, data and settings")
        self._seed = kernel.team.broadcast(seed_from(None)) if self.seed is None else self.seed
        kernel.generator = torch.Generator(score.device)
        kernel.generator.manual_seed(self._seed)
        draws = zarr_draws.draws_of(self.store, self.num_samples, kernel, self._constrained)
        walk = self._walk_of(kernel, draws, target)
        if not walk.take_up():
            kernel.initial_params = self._batched_initial(target)
        params = kernel.initial_params
        self._try_transforms(params)
        self._check_names(target, params)
        begin = {name: f"about {value.double().sum():.3g}" for name, value in params.items()}
        kernel.team.require_equal(begin, "give all the same initial_params")
        walk.go(params)
        self._collect(walk)

    def _walk_of(self, kernel: ScoreKernel, draws: Draws, target: Target) -> Walk:
        store = None
        if self.checkpoint is not None:
            store = Store(self.checkpoint, self.checkpoint_every, self._settings(target))
        return Walk(
            kernel,
            draws,
            warmup=self.warmup_steps,
            thinning=self.thinning,
            hook=self._hook,
            quiet=self._quiet,
            store=store,
        )

    def _settings(self, target: Target) -> dict[str, Any]:
        """What bears on the draws, the law by its gradient at two points."""
        kernel, score, guide = self.kernel, target.score, self.kernel.guide
        points = score.start(2, torch.Generator(score.device).manual_seed(0))
        return {
            "kernel": type(kernel).__name__,
            **kernel.settings(),
            "num_chains": self.num_chains,
            "warmup_steps": self.warmup_steps,
            "thinning": self.thinning,
            "seed": self.seed,
            "checkpoint_every": self.checkpoint_every,
            "store": self.store is not None,
            "sites": {name: list(shape) for name, shape in target.sites.shapes.items()},
            "law": run_identity.of_law(score, points),
            "guide": [] if guide is None else run_identity.of_law(guide, points),
            "data": run_identity.of_data(self._args, self._kwargs, score, guide),
        }

    @ordinary()
    def extend(self, num_samples: int) -> None:
        """Go on with the chains of the last run, and add draws to those it made.

        No warm-up is walked anew: the chains go on from where they stood, as if `num_samples` had
        been larger.

        Args:
            num_samples: how many more draws a chain.

        Raises:
            RuntimeError: `run` has not been called.
            ValueError: a `num_samples` that is no whole number above 0.
        """
        num_samples = validation.count("num_samples", num_samples)
        self._ran()
        walk = self._walked
        with self._at_work() as kernel:
            kernel.team.require_equal({"num_samples": num_samples}, "give all the same")
            params = walk.extend(num_samples)
            self.num_samples = walk.draws.room
            walk.go(params)
            self._collect(walk)

    def _check_transforms(self, target: Target) -> None:
        own, names = target.transforms, target.sites.names
        given = self._given_transforms or {}
        wrong = sorted(set(given) & set(own) | set(given) - set(names), key=str)
        if wrong:
            # another transform without its Jacobian would return draws of another law
            raise ValueError(
                f"transforms must name sites of a bare score, {list(set(names) - set(own))}, but "
                f"named {wrong}; a model or a distribution brings its own, leave them out"
            )

    def _try_transforms(self, params: dict[str, Tensor]) -> None:
        """Before the walk, since afterwards the draws would be lost."""
        for name, transform in (self._given_transforms or {}).items():
            try:
                transform.inv(params[name])
            except Exception as error:  # whatever a transform raises
                raise ValueError(
                    f"transforms[{name!r}] must take draws of shape "
                    f"{tuple(params[name].shape[1:])} by its inverse, but raised "
                    f"{first_line(error)}"
                ) from error

    def _check_save_params(self, target: Target) -> None:
        """Before the walk, since afterwards the draws would be lost."""
        if self._save_params is None:
            return
        known, left_out = set(target.sites.names), {}
        if isinstance(target.score, PyroModelScore):
            known |= set(target.score._deterministic)
            left_out = target.score.left_out
        unknown = sorted(set(self._save_params) - known)
        if unknown:
            why = "".join(
                f"; {names} {reason}"
                for reason, names in left_out.items()
                if set(names) & set(unknown)
            )
            raise ValueError(
                f"save_params must name sites among {sorted(known)}, but named {unknown}{why}"
            )

    def _check_names(self, target: Target, params: Mapping[str, Tensor]) -> None:
        """Before the walk, as above: that draws can be labelled, tried on one of them."""
        one = self._constrained(target.sites.flatten(params)[:1].unsqueeze(1))
        observed = target.score.observed if isinstance(target.score, PyroModelScore) else {}
        by_draw = {name: torch.as_tensor(value)[None, None] for name, value in observed.items()}
        labelled = diagnostics.inference_data(one, None, observed, log_likelihood=by_draw)
        if any(name.endswith("]") for name in one):  # as an entry of another is called
            diagnostics.components(labelled)

    def _batched_initial(self, target: Target) -> dict[str, Tensor] | None:
        """`initial_params` as tensors with a leading chain dimension, where chains can begin."""
        if self._initial is None:
            return None
        lone = self.num_chains == 1
        leading = () if lone else (self.num_chains,)
        given = check_initial_params(self._initial, target.sites, leading)
        params = {
            name: (value.unsqueeze(0) if lone else value).detach().to(target.score.device)
            for name, value in given.items()
        }
        found = target.score.expand(target.sites.flatten(params).to(target.score.dtype))
        good = found.gradient.isfinite().all(-1)
        if found.log_density is not None:
            good = good & found.log_density.isfinite()
        if not bool(good.all()):
            blamed = target.score.blamed if isinstance(target.score, PyroModelScore) else ""
            raise ValueError(
                "initial_params must lie where the log density and its gradient are finite, but "
                f"in chain(s) {(~good).nonzero().flatten().tolist()} they do not; begin elsewhere, "
                "or leave them out" + f" ({blamed})" * bool(blamed)
            )
        return params

    def _collect(self, walk: Walk) -> None:
        """Hold what the walk has made."""
        kernel, draws, target = walk.kernel, walk.draws, walk.kernel.target
        draws.cut()
        self._draws, self._target, self._walked, self._bias = draws, target, walk, None
        walk.suspended = kernel.suspend()
        self._steps = kernel.engine.spec
        self.transforms = self._given_transforms or target.transforms
        self._samples = draws.samples(self._constrained)
        self._diagnostics = draws.figures()
        if self.store is not None:
            draws.note(site_facts(target, draws.spread()))

    def _constrained(self, position: Tensor) -> dict[str, Tensor]:
        """Draws → constrained samples, deterministic sites among them."""
        target = self.kernel.target
        samples = target.sites.unflatten(position)
        for name, transform in (self._given_transforms or target.transforms).items():
            if name in samples:
                value: Any = transform.inv(samples[name])
                samples[name] = value
        if isinstance(target.score, PyroModelScore):
            samples.update(target.score.deterministic(position))
        names = (
            samples if self._save_params is None else sorted(set(self._save_params) & set(samples))
        )
        # a transform's bounds may ask for gradients
        return {name: samples[name].detach() for name in names}

    def get_samples(
        self, num_samples: int | None = None, group_by_chain: bool = False
    ) -> dict[str, Tensor]:
        """The draws, site → constrained tensor.

        Args:
            num_samples: so many of them, of each chain if grouped, drawn with replacement; all if
                None.
            group_by_chain: (chains, draws, *shape) in place of (chains × draws, *shape).

        Returns:
            Site → tensor, deterministic sites among them.

        Raises:
            RuntimeError: `run` has not been called.
            ValueError: a `num_samples` that is no whole number above 0.
        """
        self._ran()
        if num_samples is not None:
            validation.count("num_samples", num_samples)
        return super().get_samples(num_samples, validation.flag("group_by_chain", group_by_chain))

    def diagnostics(self) -> dict[str, Any]:
        """ESS and R-hat by site, divergences and acceptance by chain, as Pyro has them.

        Returns:
            Site → {"n_eff", "r_hat"}, each of the site's shape; "divergences" and "acceptance rate"
            → "chain 0", "chain 1", … → the draws that diverged, and the mean after warm-up.

        Raises:
            RuntimeError: `run` has not been called.
            ValueError: fewer than 4 draws a chain, which R-hat splits in two.
        """
        self._enough("diagnostics")
        found = util.diagnostics(self._numbers())
        for name in self._diagnostics[0]:
            found[name] = {f"chain {c}": each[name] for c, each in enumerate(self._diagnostics)}
        return found

    @ordinary()
    def to_inference_data(
        self,
        *,
        log_likelihood: bool | None = None,
        posterior_predictive: bool = False,
        prior: int = 0,
    ) -> Any:
        """The run as ArviZ reads it: posterior, sample_stats, observed_data, and what is asked for.

        Args:
            log_likelihood: of each observation of a Pyro model at each draw, for `az.loo`; None
                gives it where it is no more than ten million numbers.
            posterior_predictive: new data for each draw of a Pyro model, for `az.plot_ppc`.
            prior: so many draws of a Pyro model's sites and data from its prior, as groups prior
                and prior_predictive.

        Returns:
            `arviz.InferenceData`, or with arviz ≥ 1 an `xarray.DataTree`.

        Raises:
            RuntimeError: `run` has not been called.
            ValueError: a group asked for that only a Pyro model has.
        """
        draws, score = self._ran(), self._target.score
        if log_likelihood is not None:
            validation.flag("log_likelihood", log_likelihood)
        validation.flag("posterior_predictive", posterior_predictive)
        validation.count("prior", prior, minimum=0)
        posterior, stats = draws.labelled(self._samples or {})
        posterior = diagnostics.dataset(posterior)
        with self._turn():
            attach(posterior, site_facts(self._target, draws.spread()))
        if not isinstance(score, PyroModelScore):
            if log_likelihood or posterior_predictive or prior:
                raise ValueError(
                    "log_likelihood, posterior_predictive and prior need a Pyro model, which says "
                    f"what data are likely, but this run walked on a {type(score).__name__}; leave "
                    "them out"
                )
            return diagnostics.inference_data(posterior, stats, attrs=self._run_info())
        with pyro_turn():
            groups = self._groups(score, draws, log_likelihood, posterior_predictive, prior)
        if score.moving:
            warnings.warn(
                f"observed sites {list(score.moving)} change with the latent sites: they are no "
                "data, and are left out of observed_data",
                stacklevel=2,
            )
        return diagnostics.inference_data(posterior, stats, score.data, self._run_info(), **groups)

    def _groups(
        self,
        score: PyroModelScore,
        draws: Draws,
        log_likelihood: bool | None,
        posterior_predictive: bool,
        prior: int,
    ) -> dict[str, Any]:
        """What a Pyro model says of its data."""
        groups: dict[str, Any] = {}
        if log_likelihood is None:
            points = sum(v.numel() for v in score.observed.values())
            fits = points * draws.count * self.num_chains <= LIKELIHOODS_MOST
            log_likelihood = fits and not score.enumerated
        if log_likelihood:
            groups["log_likelihood"] = prediction.log_likelihood(score, draws.position)
        if posterior_predictive:
            groups["posterior_predictive"] = prediction.posterior_predictive(
                score, draws.position, self._seed
            )
        if prior:
            found = prediction.prior_predictive(score, prior, self._seed)
            groups["prior"], groups["prior_predictive"] = (
                {name: value.unsqueeze(0) for name, value in part.items()} for part in found
            )
        return groups

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
        self._enough("step_bias")
        if self._steps.correction != "none":
            raise ValueError(
                "metropolis must be 'none' for step_bias(), but was "
                f"{self._steps.correction!r}: with it the step size leaves no bias"
            )
        with self._at_work():
            half = self._walked.draws_at_half_step()
        unflatten = self._target.sites.unflatten
        position = self._ran().position
        self._bias = diagnostics.step_bias(unflatten(position), unflatten(half))
        return self._bias

    def summary(self, prob: float = 0.9) -> None:
        """Print Pyro's table, and for each chain that diverged where it began.

        Args:
            prob: the mass of the credible interval.

        Raises:
            RuntimeError: `run` has not been called.
            ValueError: fewer than 4 draws a chain, which R-hat splits in two, or a `prob` that does
                not lie between 0 and 1.
        """
        prob = validation.positive("prob", prob)
        if prob >= 1:
            raise ValueError(f"prob must lie between 0 and 1, but was {prob}")
        self._enough("summary")
        util.print_summary(self._numbers(), prob=prob)
        total = sum(len(found["divergences"]) for found in self._diagnostics)
        print(f"Number of divergences: {total}")  # noqa: T201
        found = [(i, found["divergences"]) for i, found in enumerate(self._diagnostics)]
        diverged = [(chain, at) for chain, at in found if at]
        for chain, at in diverged[:MOST_NAMED]:
            print(f"Chain {chain}: {plural(len(at), 'divergence')}, the first at draw {at[0]}")  # noqa: T201
        if len(diverged) > MOST_NAMED:
            print(f"and {plural(len(diverged) - MOST_NAMED, 'more chain')}")  # noqa: T201

    def denoised(self, group_by_chain: bool = False) -> dict[str, Tensor]:
        """The mean of the clean point behind each draw of a smoothed law, x̃ + N s1(x̃) (eq. 4).

        A change of law: the draws x̃ are those of p_σ; these means are neither that nor the data's
        own law, but narrower than both, a mean being one for all clean points a draw may have come
        from. They are for looking at, and for what reads clean points.

        Args:
            group_by_chain: (chains, draws, *shape) in place of (chains × draws, *shape).

        Returns:
            Site → tensor.

        Raises:
            RuntimeError: `run` has not been called.
            ValueError: a score that does not say how much noise its law has.
        """
        draws, target = self._ran(), self._target
        noise = getattr(target.score, "noise_scale", None)
        if noise is None:
            raise ValueError(
                "denoised needs the score of points with noise, such as a ScoreEstimator, but the "
                f"kernel's was a {type(target.score).__name__}; denoise the site that has one by "
                "ozaki.denoise(estimator, mcmc.get_samples()[site])"
            )
        found = target.sites.unflatten(self._without_noise(draws.position))
        for name, transform in (self._given_transforms or {}).items():
            value: Any = transform.inv(found[name])
            found[name] = value
        if validation.flag("group_by_chain", group_by_chain):
            return found
        return {name: value.flatten(0, 1) for name, value in found.items()}

    def _without_noise(self, x: Tensor) -> Tensor:
        """Tweedie's means of points (chains, draws, D), one chain after another."""
        score: Any = self._target.score
        noise = score.noise_scale.square()
        return torch.stack([chain + noise * score.expand(chain).gradient for chain in x])

    @ordinary()
    def report(
        self,
        path: str | Path,
        *,
        title: str = "Markov chain report",
        calibration: Calibration | None = None,
    ) -> Verdict:
        """Write one self-contained HTML page that says whether to trust the draws.

        Draws of images are shown as such, and those of noisy images without their noise as well.

        Args:
            path: the file; replaced if it is there.
            title: the page's heading.
            calibration: `Posterior.calibration` of known clean points, to be shown with the rest.

        Returns:
            The verdict that heads the page.

        Raises:
            RuntimeError: `run` has not been called.
            ValueError: a `path` that is none.
            IsADirectoryError: `path` is a folder.
            FileNotFoundError: the folder of `path` does not exist.
        """
        draws, source = self._ran(), self._target.score
        with self._turn():
            stein = diagnostics.sampler_test(source, draws.position)
        return report.write_report(
            path,
            self.to_inference_data(log_likelihood=False),
            title=title,
            law=self._law(),
            data=getattr(source, "points", None),
            estimator_metrics=getattr(source, "metrics", None),
            stein=stein,
            bias=self._bias,
            calibration=calibration,
            denoised=None if getattr(source, "noise_scale", None) is None else self._cleaned,
            run_info=self._run_info(),
        )

    def _cleaned(self, images: np.ndarray) -> np.ndarray:
        """Draws (chains, draws, *shape) without their noise."""
        site, *_ = self._target.sites.names
        transform: Any = (self._given_transforms or {}).get(site)
        x = torch.as_tensor(images).to(self._target.score.device)
        x = x if transform is None else transform(x)
        clean = self._without_noise(x.flatten(2)).reshape(x.shape)
        return (clean if transform is None else transform.inv(clean)).cpu().numpy()

    def _law(self) -> str | None:
        """Which law the draws follow, in words."""
        score = self._target.score
        if isinstance(score, PyroModelScore) and score.learned:
            return (
                f"the model's posterior, in which {', '.join(score.learned)} follows the law whose "
                "score it was given: for an estimator that of the data smoothed by its noise. Its "
                "part of the acceptance is a line integral"
            )
        scale = getattr(score, "noise_scale", None)
        if scale is None:
            return None
        sizes = ", ".join(f"{s:.3g}" for s in scale.flatten().tolist()[:4])
        return (
            "the law of the data smoothed by Gaussian noise of standard deviation "
            f"({sizes}{', …' if scale.numel() > 4 else ''}), in the data's units"
        )

    def _proposal(self) -> str:
        walked, own = self._steps.proposal, type(self.kernel).proposal
        chosen = "" if walked is own else f", which warm-up saw move further than {own.__name__}"
        return walked.__name__ + chosen

    def _run_info(self) -> dict[str, Any]:
        return {
            "kernel": type(self.kernel).__name__,
            "proposal": self._proposal(),
            "correction": self._steps.correction,
            "num_chains": self.num_chains,
            "num_samples": self._ran().count,
            "warmup_steps": self.warmup_steps,
            "thinning": self.thinning,
            "seed": "none" if self.seed is None else self.seed,
        }

    def _enough(self, asker: str) -> None:
        count = self._ran().count
        if count < SUMMARY_LEAST:
            raise ValueError(
                f"num_samples must be at least {SUMMARY_LEAST} for {asker}(), whose R-hat splits "
                f"each chain in two, but there were {plural(count, 'draw')} a chain; run longer, "
                "or read get_samples()"
            )

    def _numbers(self) -> dict[str, Tensor]:
        """The draws as Pyro's figures want them: a mean of whole numbers or flags is a share."""
        return {
            name: value if value.is_floating_point() else value.double()
            for name, value in (self._samples or {}).items()
        }

    def _turn(self) -> AbstractContextManager[None]:
        """Pyro held, where the draws are of a Pyro model."""
        return pyro_turn() if isinstance(self._target.score, PyroModelScore) else nullcontext()

    def _ran(self) -> Draws:
        if self._draws is None:
            raise RuntimeError("there are no draws yet: call run() first")
        return self._draws


def _named(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _check_arguments(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if model is None:
        return
    try:
        signature = inspect.signature(model)
    except (TypeError, ValueError):  # some built-in functions have none to read
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(
            f"run must be called with the arguments of the model, {signature}, but: {error}; if it "
            "is a log density and no Pyro model, pass LogDensityScore(model, shape) to the kernel"
        ) from None


def _checked_transforms(transforms: Any) -> Any:
    if transforms is None:
        return None
    if not isinstance(transforms, Mapping):
        raise ValueError(
            f"transforms must be a dict of site → Transform, but was a {_named(transforms)}"
        )
    for name, transform in transforms.items():
        if not isinstance(transform, Transform):
            raise ValueError(
                f"transforms[{name!r}] must be a torch Transform, but was {_named(transform)}"
            )
    return transforms


def _checked_names(argument: str, names: Any) -> list[str] | None:
    if names is None:
        return None
    listed = isinstance(names, (Sequence, set, frozenset)) and not isinstance(names, str)
    if not (listed and names and all(isinstance(name, str) for name in names)):
        raise ValueError(
            f"{argument} must be a list of site names, or None for all, but was {names!r}"
        )
    return list(names)
