"""`Run` holds the draws of a finished run, and computes samples, diagnostics and the report."""

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.infer.mcmc import util
from torch import Tensor
from torch.distributions import Transform

from ozaki import diagnostics, report
from ozaki.diagnostics.arviz_data import attach
from ozaki.diagnostics.calibration import Calibration
from ozaki.diagnostics.checks import MOST_NAMED
from ozaki.diagnostics.judgement import Verdict
from ozaki.foundation.process import pyro_turn
from ozaki.foundation.text import plural
from ozaki.kernels.target import Target
from ozaki.sampling.draws import Draws
from ozaki.sampling.site_facts import site_facts
from ozaki.scores.pyro_models import prediction
from ozaki.scores.pyro_models.model import PyroModelScore

LIKELIHOODS_MOST = 10_000_000  # most numbers of log-likelihood that are kept unasked
SUMMARY_LEAST = 4  # draws a chain: R-hat splits them in two


def constrained(
    target: Target,
    transforms: Mapping[str, Transform],
    names: Sequence[str] | None,
    position: Tensor,
) -> dict[str, Tensor]:
    """Map draws to the model's own coordinates; deterministic sites are among them.

    Args:
        target: the model.
        transforms: of a bare score, as the user gave them; else the model's own are taken.
        names: the sites to keep; None for all.
        position: draws in the score's coordinates, (chains, draws, D).

    Returns:
        Site → (chains, draws, *shape).
    """
    samples = target.sites.unflatten(position)
    for name, transform in (transforms or target.transforms).items():
        if name in samples:
            value: Any = transform.inv(samples[name])
            samples[name] = value
    if target.observation is not None:
        samples.update(target.observation.deterministic(position))
    kept = samples if names is None else sorted(set(names) & set(samples))
    # a transform's bounds may ask for gradients
    return {name: samples[name].detach() for name in kept}


@dataclass(frozen=True, eq=False)
class Run:
    """The draws of a run, with the facts that are needed to judge and report them.

    Attributes:
        target: the model that was walked on.
        draws: positions and statistics.
        samples: site → draws in the model's own coordinates, (chains, draws, *shape).
        chains: per chain, which draws diverged and the mean acceptance, in Pyro's words.
        transforms: site → the constrained-to-unconstrained transform that the user gave.
        seed: of the noise.
        info: the run's settings, as a report shows them.
        bias: what step halving found; None where it was not asked for.
    """

    target: Target
    draws: Draws
    samples: Mapping[str, Tensor]
    chains: list[dict[str, Any]]
    transforms: Mapping[str, Transform]
    seed: int
    info: dict[str, Any]
    bias: Any = None

    @property
    def correction(self) -> str:
        """The correction of its steps: "exact", "line_integral" or "none"."""
        return self.info["correction"]

    def diagnostics(self) -> dict[str, Any]:
        """ESS and R-hat by site, divergences and acceptance by chain, as Pyro has them.

        Raises:
            ValueError: fewer than 4 draws a chain.
        """
        self.require_draws("diagnostics")
        found = util.diagnostics(self._numbers())
        for name in self.chains[0]:
            found[name] = {f"chain {c}": each[name] for c, each in enumerate(self.chains)}
        return found

    def inference_data(
        self,
        log_likelihood: bool | None = None,
        posterior_predictive: bool = False,
        prior: int = 0,
    ) -> Any:
        """The groups that ArviZ reads.

        Args:
            log_likelihood: as of `MCMC.to_inference_data`.
            posterior_predictive: likewise.
            prior: likewise.

        Raises:
            ValueError: a group asked for that only a Pyro model has.
        """
        posterior, stats = self.draws.labelled(self.samples)
        posterior = diagnostics.dataset(posterior)
        with self._turn():
            attach(posterior, site_facts(self.target, self.draws.spread()))
        model = self.target.observation
        if model is None:
            if log_likelihood or posterior_predictive or prior:
                raise ValueError(
                    "log_likelihood, posterior_predictive and prior need a Pyro model, which says "
                    f"what data are likely, but this run walked on a "
                    f"{type(self.target.score).__name__}; leave them out"
                )
            return diagnostics.inference_data(posterior, stats, attrs=self.info)
        with pyro_turn():
            groups = self._groups(model, log_likelihood, posterior_predictive, prior)
        if model.moving:
            warnings.warn(
                f"observed sites {list(model.moving)} change with the latent sites: they are no "
                "data, and are left out of observed_data",
                stacklevel=4,
            )
        return diagnostics.inference_data(posterior, stats, model.data, self.info, **groups)

    def step_bias(self, half: Tensor) -> Any:
        """How far the means at the step size lie from those at half of it.

        Args:
            half: draws at half the step size, (chains, draws, D).

        Returns:
            A frame as of `ozaki.diagnostics.step_bias`.
        """
        unflatten = self.target.sites.unflatten
        return diagnostics.step_bias(unflatten(self.draws.position), unflatten(half))

    def summary(self, prob: float) -> None:
        """Print Pyro's table, and for each chain that diverged where it began."""
        self.require_draws("summary")
        util.print_summary(self._numbers(), prob=prob)
        total = sum(len(found["divergences"]) for found in self.chains)
        print(f"Number of divergences: {total}")  # noqa: T201
        found = [(i, found["divergences"]) for i, found in enumerate(self.chains)]
        diverged = [(chain, at) for chain, at in found if at]
        for chain, at in diverged[:MOST_NAMED]:
            print(f"Chain {chain}: {plural(len(at), 'divergence')}, the first at draw {at[0]}")  # noqa: T201
        if len(diverged) > MOST_NAMED:
            print(f"and {plural(len(diverged) - MOST_NAMED, 'more chain')}")  # noqa: T201

    def denoised(self) -> dict[str, Tensor]:
        """Site → the mean of the clean point behind each draw, (chains, draws, *shape).

        Raises:
            ValueError: a score that does not say how much noise its law has.
        """
        target = self.target
        if target.noise_scale is None:
            raise ValueError(
                "denoised needs the score of points with noise, such as a ScoreEstimator, but the "
                f"kernel's was a {type(target.score).__name__}; denoise the site that has one by "
                "ozaki.denoise(estimator, mcmc.get_samples()[site])"
            )
        found = target.sites.unflatten(self._without_noise(self.draws.position))
        for name, transform in self.transforms.items():
            value: Any = transform.inv(found[name])
            found[name] = value
        return found

    def report(
        self, path: str | Path, title: str, calibration: Calibration | None = None
    ) -> Verdict:
        """Write the page that says whether to trust the draws; the verdict that heads it."""
        source = self.target.score
        with self._turn():
            stein = diagnostics.sampler_test(source, self.draws.position)
        return report.write_report(
            path,
            self.inference_data(log_likelihood=False),
            title=title,
            law=self.target.law_in_words,
            data=getattr(source, "points", None),
            estimator_metrics=getattr(source, "metrics", None),
            stein=stein,
            bias=self.bias,
            calibration=calibration,
            denoised=None if self.target.noise_scale is None else self.cleaned,
            run_info=self.info,
        )

    def cleaned(self, images: np.ndarray) -> np.ndarray:
        """Draws (chains, draws, *shape) without their noise."""
        site, *_ = self.target.sites.names
        transform: Any = self.transforms.get(site)
        x = torch.as_tensor(images).to(self.target.score.device)
        x = x if transform is None else transform(x)
        clean = self._without_noise(x.flatten(2)).reshape(x.shape)
        return (clean if transform is None else transform.inv(clean)).cpu().numpy()

    def require_draws(self, asker: str) -> None:
        """Raise ValueError where there are too few draws for an R-hat.

        Args:
            asker: the method that needs it.
        """
        if self.draws.count < SUMMARY_LEAST:
            raise ValueError(
                f"num_samples must be at least {SUMMARY_LEAST} for {asker}(), whose R-hat splits "
                f"each chain in two, but there were {plural(self.draws.count, 'draw')} a chain; "
                "run longer, or read get_samples()"
            )

    def _groups(
        self,
        model: PyroModelScore,
        log_likelihood: bool | None,
        posterior_predictive: bool,
        prior: int,
    ) -> dict[str, Any]:
        """Compute the groups that only a Pyro model has: log-likelihood, predictions, prior."""
        groups: dict[str, Any] = {}
        position = self.draws.position
        if log_likelihood is None:
            points = sum(v.numel() for v in model.observed.values())
            fits = points * self.draws.count * len(self.chains) <= LIKELIHOODS_MOST
            log_likelihood = fits and not model.enumerated
        if log_likelihood:
            groups["log_likelihood"] = prediction.log_likelihood(model, position)
        if posterior_predictive:
            found = prediction.posterior_predictive(model, position, self.seed)
            groups["posterior_predictive"] = found
        if prior:
            parts = prediction.prior_predictive(model, prior, self.seed)
            groups["prior"], groups["prior_predictive"] = (
                {name: value.unsqueeze(0) for name, value in part.items()} for part in parts
            )
        return groups

    def _without_noise(self, x: Tensor) -> Tensor:
        """Tweedie's means of points (chains, draws, D), one chain after another."""
        score, scale = self.target.score, self.target.noise_scale
        assert scale is not None, "asked for before"
        return torch.stack([chain + scale.square() * score.expand(chain).gradient for chain in x])

    def _numbers(self) -> dict[str, Tensor]:
        """The draws as Pyro's figures want them: a mean of whole numbers or flags is a share."""
        return {
            name: value if value.is_floating_point() else value.double()
            for name, value in self.samples.items()
        }

    def _turn(self) -> AbstractContextManager[None]:
        """Hold Pyro's lock while the draws of a Pyro model are read."""
        return nullcontext() if self.target.observation is None else pyro_turn()
