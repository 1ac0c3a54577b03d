"""`ScoreLangevinKernel` takes steps along the gradient."""

from typing import ClassVar

from ozaki.kernels import proposals
from ozaki.kernels.metropolis import Correction
from ozaki.kernels.score_kernel import ScoreKernel
from ozaki.kernels.target import Model
from ozaki.scores.base import Score
from ozaki.scores.pyro_models.model import InitStrategy


class ScoreLangevinKernel(ScoreKernel):
    """Langevin steps, x ← x + (h/2) s1 + √h z, with or without a Metropolis correction (eq. 19).

    Args:
        model: a `Score`, a torch or Pyro distribution (walked unconstrained, returned constrained),
            or a Pyro model.
        score: a learned score for the proposal alone, in the model's flat unconstrained
            coordinates; the chain stays exact for the model.
        step_size: h, the time of dX = ½ s1 dt + dW, kept as given in the identity metric; None
            finds it in warm-up, with a metric.
        metropolis: "exact" (a log density is needed), "line_integral" (scores are enough;
            approximate), "none" (the unadjusted chain), or "auto": exact where it can be.
        compile: run the steps as machine code, many at a call; it needs a C++ compiler, a model
            that can be batched, and some seconds at the first run of a model.
        site: the name of the draws where `model` is a score or a distribution.
        jitter: j in [0, 1): each step's h is scaled by 1 + j u, with u uniform on (−1, 1).
        trajectory: the mean angle T of a trajectory in the metric, several steps that share a
            momentum and are corrected once at their end; 0 for single steps; "auto" lets warm-up
            choose. With a `step_size` there is no metric, and T is time.
        init_strategy: where the chains of a Pyro model begin, one of Pyro's, as
            `pyro.infer.autoguide.init_to_median`; None for uniform(−2, 2), unconstrained.

    Raises:
        ValueError: an argument that cannot be used, by name.

    Source: eq. 19 of Meng et al. (2021); the correction, Roberts & Tweedie, "Exponential
    convergence of Langevin distributions and their discrete approximations" (1996).

    Example:
        >>> from ozaki import MCMC
        >>> from ozaki.scores import GaussianScore
        >>> score = GaussianScore([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
        >>> mcmc = MCMC(ScoreLangevinKernel(score, step_size=0.5), 50, 0, seed=0)
        >>> mcmc.run()
        >>> mcmc.get_samples()["x"].shape
        torch.Size([200, 2])
    """

    proposal = staticmethod(proposals.langevin)
    target_acceptance: ClassVar[dict[Correction, float]] = {
        "exact": 0.574,
        "line_integral": 0.574,
        "none": 0.9,
    }

    def __init__(
        self,
        model: Model,
        *,
        score: Score | None = None,
        step_size: float | None = None,
        metropolis: Correction | str = "auto",
        compile: bool = False,
        site: str = "x",
        jitter: float = 0.0,
        trajectory: int | float | str = "auto",
        init_strategy: InitStrategy | None = None,
    ):
        super().__init__(
            model,
            score=score,
            step_size=step_size,
            curvature=None,
            metropolis=metropolis,
            compile=compile,
            site=site,
            jitter=jitter,
            trajectory=trajectory,
            init_strategy=init_strategy,
        )
