"""`ScoreOzakiKernel` takes steps that read the curvature."""

from typing import ClassVar

from ozaki.foundation import validation
from ozaki.kernels import proposals
from ozaki.kernels.metropolis import Correction
from ozaki.kernels.score_kernel import ScoreKernel
from ozaki.kernels.target import Model
from ozaki.kernels.warmup import LANGEVIN, ORNSTEIN_UHLENBECK, Candidate
from ozaki.scores.base import CurvatureKind, Score
from ozaki.scores.pyro_models.model import InitStrategy


class ScoreOzakiKernel(ScoreKernel):
    """Ozaki steps, N(x + (h/2) φ(h s2/2) s1, h φ(h s2)) with φ(u) = expm1(u)/u (eq. 20).

    Long steps where the density is wide, short ones where it is narrow; exact on a Gaussian at any
    h with the full curvature. Positive curvature is flattened to 0 and counted. In the metric that
    warm-up finds the curvature is −I, and several steps share a momentum: with θ given by
    cos θ = exp(−h/2), p ← p + tan(θ/2) s1, x ← x + sin(θ) p, p ← p + tan(θ/2) s1.

    Args:
        model: a `Score`, a torch or Pyro distribution (walked unconstrained, returned constrained),
            or a Pyro model.
        score: a learned score for the proposal alone, in the model's flat unconstrained
            coordinates; the chain stays exact for the model.
        step_size: h, the time of dX = ½ s1 dt + dW, kept as given in the identity metric; None
            finds it in warm-up, with a metric.
        curvature: "diagonal", "low_rank", "dense": what each step reads where it is; or "auto":
            trajectories in a metric, which read none. They compete in warm-up with steps that read
            an estimator's own kind, and under trajectory=0 a density's dense Hessian in up to 10
            dimensions.
        frozen: one curvature for all points, factorised once: its mean over warm-up and chains, or
            a metric of the chains' draws where that moves further. Under False steps that read it
            at every point compete whatever they cost; "auto" leaves it to `curvature`.
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

    Source: eq. 20 of Meng et al. (2021), after Ozaki (1992).

    Example:
        >>> from ozaki import MCMC
        >>> from ozaki.scores import GaussianScore
        >>> score = GaussianScore([0.0, 0.0], [[1.0, 0.0], [0.0, 0.01]])
        >>> mcmc = MCMC(ScoreOzakiKernel(score, step_size=2.0), 50, 0, seed=0)
        >>> mcmc.run()
        >>> round(mcmc.diagnostics()["acceptance rate"]["chain 0"], 3)  # exact on a normal
        1.0
    """

    proposal = staticmethod(proposals.ozaki)
    target_acceptance: ClassVar[dict[Correction, float]] = {
        "exact": 0.8,
        "line_integral": 0.8,
        "none": 0.9,
    }
    candidates: ClassVar[tuple[Candidate, ...]] = (LANGEVIN, ORNSTEIN_UHLENBECK)

    def competing(self, frozen: bool) -> tuple[Candidate, ...]:
        """The candidates that the settings leave to warm-up.

        Args:
            frozen: whether one curvature serves all points.

        Returns:
            All of them under curvature="auto". Where the curvature was given, those that may take
            the place of a frozen one.

        Example:
            >>> from ozaki.scores import GaussianScore
            >>> score = GaussianScore([0.0], [[1.0]])
            >>> ScoreOzakiKernel(score, curvature="diagonal").competing(frozen=False)
            ()
        """
        if self._curvature == "auto" and self._frozen is not True:
            return self.candidates
        return tuple(c for c in self.candidates if frozen and c is ORNSTEIN_UHLENBECK)

    def __init__(
        self,
        model: Model,
        *,
        score: Score | None = None,
        step_size: float | None = None,
        curvature: CurvatureKind | str = "auto",
        frozen: bool | str = "auto",
        metropolis: Correction | str = "auto",
        compile: bool = False,
        site: str = "x",
        jitter: float = 0.0,
        trajectory: int | float | str = "auto",
        init_strategy: InitStrategy | None = None,
    ):
        validation.choice("curvature", curvature, ("auto", "diagonal", "low_rank", "dense"))
        super().__init__(
            model,
            score=score,
            step_size=step_size,
            curvature=curvature,
            frozen=frozen,
            metropolis=metropolis,
            compile=compile,
            site=site,
            jitter=jitter,
            trajectory=trajectory,
            init_strategy=init_strategy,
        )
