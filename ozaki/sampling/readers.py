"""`RunReaders` gives `MCMC` the methods by which users read a finished run."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ozaki.diagnostics.calibration import Calibration
from ozaki.diagnostics.judgement import Verdict
from ozaki.foundation import validation
from ozaki.foundation.torch_modes import ordinary
from ozaki.sampling.run import Run


class RunReaders:
    """The methods of `MCMC` that read the last run; the class beside it walks."""

    _result: Run | None

    @property
    def result(self) -> Run:
        """The last run: its draws, and everything that is computed from them.

        Raises:
            RuntimeError: `run` has not been called.
        """
        if self._result is None:
            raise RuntimeError("there are no draws yet: call run() first")
        return self._result

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
        self.result  # noqa: B018  there is none before a run
        if num_samples is not None:
            validation.count("num_samples", num_samples)
        return super().get_samples(  # pyright: ignore[reportAttributeAccessIssue]
            num_samples, validation.flag("group_by_chain", group_by_chain)
        )

    def diagnostics(self) -> dict[str, Any]:
        """ESS and R-hat by site, divergences and acceptance by chain, as Pyro has them.

        Returns:
            Site → {"n_eff", "r_hat"}, each of the site's shape; "divergences" and "acceptance rate"
            → "chain 0", "chain 1", … → the draws that diverged, and the mean after warm-up.

        Raises:
            RuntimeError: `run` has not been called.
            ValueError: fewer than 4 draws a chain, which R-hat splits in two.
        """
        return self.result.diagnostics()

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
        made = self.result
        if log_likelihood is not None:
            validation.flag("log_likelihood", log_likelihood)
        validation.flag("posterior_predictive", posterior_predictive)
        validation.count("prior", prior, minimum=0)
        return made.inference_data(log_likelihood, posterior_predictive, prior)

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
        self.result.summary(prob)

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
        found = self.result.denoised()
        if validation.flag("group_by_chain", group_by_chain):
            return found
        return {name: value.flatten(0, 1) for name, value in found.items()}

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
        return self.result.report(path, title, calibration)
