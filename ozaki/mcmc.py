"""`MCMC`: chains as one batch, from kernel to report (floor 8).

A subclass of `pyro.infer.MCMC` with the same arguments, so that what reads one reads the other. The
parent is told of one chain; the batch is walked here.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC as PyroMCMC
from torch import Tensor
from tqdm import tqdm

from ozaki import diagnostics, report, validation
from ozaki.draws import Draws
from ozaki.kernels.pyro_model import PyroModelScore
from ozaki.kernels.score_kernel import ScoreKernel
from ozaki.verdict import Verdict


class MCMC(PyroMCMC):
    """Markov chain Monte Carlo with all chains vectorised in one process.

    Args:
        kernel: a `ScoreOzakiKernel` or `ScoreLangevinKernel`.
        num_samples: draws kept per chain.
        warmup_steps: adaptation steps, discarded; None means `num_samples`.
        initial_params: site → unconstrained tensor, with a leading chain dimension when
            `num_chains` > 1; drawn from the score if None.
        num_chains: chains walked at once.
        hook_fn: called as ``hook_fn(kernel, params, "Warmup" or "Sample", i)`` once a step with the
            unconstrained batch.
        mp_context: accepted for compatibility and not used: there is one process.
        disable_progbar: no progress bar; there is none either where the output is no terminal.
        disable_validation: as in Pyro.
        transforms: site → constrained-to-unconstrained transform, applied inverted to the draws;
            the kernel's own if None.
        save_params: the latent or deterministic sites to keep; all if None.
        seed: makes the run reproducible; None draws a seed from torch's global generator.
        thinning: keep every `thinning`-th draw; num_samples of them are kept all the same.

    Raises:
        ValueError: an argument that cannot be used, by name.

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
        initial_params: dict[str, Tensor] | None = None,
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
    ):
        if not isinstance(kernel, ScoreKernel):
            raise ValueError(
                f"kernel must be one of ozaki's, but was {type(kernel).__name__}; run other "
                "kernels in pyro.infer.MCMC"
            )
        validation.count("num_samples", num_samples)
        validation.count("num_chains", num_chains)
        if warmup_steps is not None:
            validation.count("warmup_steps", warmup_steps, minimum=0)
        super().__init__(
            kernel,
            num_samples,
            warmup_steps,
            num_chains=1,
            hook_fn=hook_fn,
            disable_progbar=disable_progbar,
            disable_validation=disable_validation,  # pyright: ignore[reportArgumentType]
            transforms=transforms,
        )
        self.kernel: ScoreKernel = kernel
        self.num_chains = num_chains
        self.seed = None if seed is None else validation.count("seed", seed, minimum=0)
        self.thinning = validation.count("thinning", thinning)
        self._save_params = save_params
        self._hook = hook_fn
        self._quiet = disable_progbar
        self._given_transforms = transforms
        self._initial = initial_params
        self._draws: Draws | None = None

    @poutine.block
    def run(self, *args: Any, **kwargs: Any) -> None:
        """Warm up, draw, and bring the draws back to the model's own coordinates.

        Ctrl-C after warm-up keeps the draws made so far and says how many there are.

        Args:
            args, kwargs: passed to the Pyro model.
        """
        self._args, self._kwargs = args, kwargs
        self._draws, self._samples = None, None
        with pyro.validation_enabled(self.disable_validation is False):
            kernel = self.kernel
            kernel.cleanup()
            kernel.num_chains = self.num_chains
            try:
                self._walk(kernel, args, kwargs)
            finally:
                kernel.cleanup()
                kernel.num_chains, kernel.generator = None, None

    def _walk(self, kernel: ScoreKernel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kernel.initial_params = self._batched_initial()
        kernel.setup(self.warmup_steps, *args, **kwargs)
        self._check_transforms(kernel)
        score = kernel.target.score
        kernel.generator = torch.Generator(score.device)
        kernel.generator.manual_seed(
            int(torch.randint(2**31, ())) if self.seed is None else self.seed
        )
        draws = Draws(self.num_chains, self.num_samples, score)
        params = kernel.initial_params
        bar = tqdm(
            total=self.warmup_steps + self.num_samples * self.thinning,
            disable=True if self._quiet else None,
            mininterval=0.2,
        )
        stage = "Warmup"
        try:
            with bar:
                for i in range(self.warmup_steps):
                    params = self._advance(kernel, params, stage, i, bar)
                stage = "Sample"
                for i in range(self.num_samples):
                    for _ in range(self.thinning):
                        params = self._advance(kernel, params, stage, i, bar)
                        draws.note(kernel)
                    draws.keep(kernel)
        except KeyboardInterrupt:
            if draws.count == 0:
                raise
            warnings.warn(
                f"interrupted: {draws.count} of {self.num_samples} draws a chain were made and "
                "are kept",
                stacklevel=4,
            )
        draws.cut()
        self._collect(kernel, draws)

    def _advance(
        self, kernel: ScoreKernel, params: dict[str, Tensor], stage: str, i: int, bar: Any
    ) -> dict[str, Tensor]:
        params = kernel.sample(params)
        if self._hook is not None:
            self._hook(kernel, params, stage, i)
        bar.update()
        if bar.n % 50 == 0 and not bar.disable:
            bar.set_description(stage, refresh=False)
            bar.set_postfix(kernel.logging(), refresh=False)
        return params

    def _check_transforms(self, kernel: ScoreKernel) -> None:
        own, names = kernel.target.transforms, kernel.target.sites.names
        given = self._given_transforms or {}
        wrong = sorted(set(given) & set(own) | set(given) - set(names))
        if wrong:
            # another transform without its Jacobian would return draws of another law
            raise ValueError(
                f"transforms must name sites of a bare score, {list(set(names) - set(own))}, but "
                f"named {wrong}; a model or a distribution brings its own, leave them out"
            )

    def _batched_initial(self) -> dict[str, Tensor] | None:
        if self._initial is None or self.num_chains > 1:
            return self._initial
        return {name: value.unsqueeze(0) for name, value in self._initial.items()}

    def _collect(self, kernel: ScoreKernel, draws: Draws) -> None:
        """Draws → constrained samples, deterministic sites among them."""
        target = kernel.target
        self._draws, self._target = draws, target
        self._steps = kernel.engine.method
        self.transforms = self._given_transforms or target.transforms
        samples = target.sites.unflatten(draws.position)
        for name, transform in self.transforms.items():
            if name in samples:
                value: Any = transform.inv(samples[name])
                samples[name] = value
        if isinstance(target.score, PyroModelScore):
            samples.update(target.score.deterministic(draws.position))
        if self._save_params is not None:
            unknown = sorted(set(self._save_params) - set(samples))
            if unknown:
                raise ValueError(
                    f"save_params must name sites among {sorted(samples)}, but named {unknown}"
                )
            samples = {name: samples[name] for name in sorted(self._save_params)}
        self._samples = samples
        self._diagnostics = [
            {"divergences": found, "acceptance rate": float(rate)}
            for found, rate in zip(
                draws.divergences(), draws.stats["acceptance_rate"].mean(1), strict=True
            )
        ]

    def to_inference_data(self) -> Any:
        """The run as ArviZ reads it: posterior, sample_stats, observed_data.

        Returns:
            `arviz.InferenceData`, or with arviz ≥ 1 an `xarray.DataTree`.

        Raises:
            RuntimeError: `run` has not been called.
        """
        draws, target = self._ran(), self._target
        observed = target.score.observed if isinstance(target.score, PyroModelScore) else None
        return diagnostics.inference_data(
            self._samples or {}, draws.stats, observed, attrs=self._run_info()
        )

    def summary(self, prob: float = 0.9) -> None:
        """Print Pyro's table, and for each chain that diverged where it began.

        Args:
            prob: the mass of the credible interval.
        """
        self._ran()
        super().summary(prob)
        for chain, found in enumerate(self._diagnostics):
            if found["divergences"]:
                first = found["divergences"][0]
                print(  # noqa: T201
                    f"Chain {chain}: {len(found['divergences'])} divergences, the first at draw "
                    f"{first}"
                )

    def report(self, path: str | Path, *, title: str = "Markov chain report") -> Verdict:
        """Write one self-contained HTML page that says whether to trust the draws.

        Args:
            path: the file; replaced if it is there.
            title: the page's heading.

        Returns:
            The verdict that heads the page.
        """
        draws, source = self._ran(), self._target.score
        return report.write_report(
            path,
            self.to_inference_data(),
            title=title,
            law=self._law(),
            data=getattr(source, "points", None),
            estimator_metrics=getattr(source, "metrics", None),
            stein=diagnostics.sampler_test(source, draws.position),
            run_info=self._run_info(),
        )

    def _law(self) -> str | None:
        """Which law the draws follow, in words."""
        scale = getattr(self._target.score, "noise_scale", None)
        if scale is None:
            return None
        sizes = ", ".join(f"{s:.3g}" for s in scale.flatten().tolist()[:4])
        return (
            "the law of the data smoothed by Gaussian noise of standard deviation "
            f"({sizes}{', …' if scale.numel() > 4 else ''}), in the data's units"
        )

    def _proposal(self) -> str:
        walked, own = self._steps.proposal, type(self.kernel)._proposal
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

    def _ran(self) -> Draws:
        if self._draws is None:
            raise RuntimeError("there are no draws yet: call run() first")
        return self._draws
