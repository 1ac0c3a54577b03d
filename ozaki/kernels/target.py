"""`Target` is a model as kernels see it, and `RunContext` the run that they serve."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from ozaki.kernels.processes import ALONE, Team
from ozaki.scores.base import Score, is_smoothed
from ozaki.scores.density import DistributionScore
from ozaki.scores.pyro_models.inspection import has_density
from ozaki.scores.pyro_models.layout import Sites
from ozaki.scores.pyro_models.model import InitStrategy, PyroModelScore
from ozaki.scores.pyro_models.site import ScoreDistribution

Model = Score | Distribution | Callable[..., Any]
"""What a kernel may be given: a score, a distribution, or a Pyro model."""


class Target(NamedTuple):
    """A model as the kernels see it.

    Attributes:
        score: over flat, unconstrained points.
        sites: names and unconstrained shapes, flat points to tensors and back.
        transforms: site → constrained-to-unconstrained transform, Pyro's convention.
        observation: the Pyro model, which says what data are likely; None for a bare score.
    """

    score: Score
    sites: Sites
    transforms: dict[str, Transform]
    observation: PyroModelScore | None = None

    @property
    def noise_scale(self) -> Tensor | None:
        """The noise that the law was smoothed by, (D,); None of a law that was not."""
        return self.score.noise_scale if is_smoothed(self.score) else None

    @property
    def law_in_words(self) -> str | None:
        """Say which law the draws follow, where it is not the density that the user wrote."""
        model = self.observation
        if model is not None and model.learned:
            return (
                f"the model's posterior, in which {', '.join(model.learned)} follows the law whose "
                "score it was given: for an estimator that of the data smoothed by its noise. Its "
                "part of the acceptance is a line integral"
            )
        scale = self.noise_scale
        if scale is None:
            return None
        sizes = ", ".join(f"{s:.3g}" for s in scale.flatten().tolist()[:4])
        return (
            "the law of the data smoothed by Gaussian noise of standard deviation "
            f"({sizes}{', …' if scale.numel() > 4 else ''}), in the data's units"
        )


class RunContext(NamedTuple):
    """The facts about a run that a kernel needs.

    Attributes:
        num_chains: how many chains one step moves; None for Pyro's lone chain, without a batch.
        generator: the source of noise and of starting points; None for torch's global one.
        team: the processes that share the chains.
    """

    num_chains: int | None = None
    generator: torch.Generator | None = None
    team: Team = ALONE


LONE = RunContext()
"""One chain in one process, as Pyro's own `MCMC` walks it."""


def check_model(model: Any, score: Any, init_strategy: Any) -> None:
    """Refuse what no kernel can walk on.

    Args:
        model: as of a kernel.
        score: of the proposal, likewise.
        init_strategy: likewise.
    """
    if not (isinstance(model, (Score, Distribution)) or callable(model)):
        raise ValueError(
            f"model must be a score, a distribution or a Pyro model, but was {type(model).__name__}"
        )
    if score is not None and not isinstance(score, Score):
        raise ValueError(f"score must be a Score, but was {type(score).__name__}")
    if init_strategy is not None:
        if not callable(init_strategy):
            raise ValueError(
                "init_strategy must be one of Pyro's, as init_to_median or "
                f"init_to_value(values=...), but was {init_strategy!r}"
            )
        if isinstance(model, (Score, Distribution)):
            raise ValueError(
                "init_strategy must be left out where model is no Pyro model, but model was a "
                f"{type(model).__name__}; give MCMC initial_params"
            )


def checked_trajectory(trajectory: Any) -> float | str:
    """Check the `trajectory` of a kernel: "auto", or a number from 0 on.

    Args:
        trajectory: as it was given.

    Raises:
        ValueError: anything else.
    """
    if isinstance(trajectory, str) and trajectory == "auto":
        return trajectory
    number = isinstance(trajectory, (int, float)) and not isinstance(trajectory, bool)
    angle = float(trajectory) if number else math.nan
    if not 0 <= angle < math.inf:
        raise ValueError(
            f"trajectory must be 'auto', or a mean angle from 0 on, but was {trajectory!r}; 0 "
            "takes single steps, 1.57 is a quarter turn"
        )
    return angle


def bind(
    source: Model,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    site: str,
    init_strategy: InitStrategy | None,
) -> Target:
    """Give a model its arguments, and make it a score over flat points.

    Args:
        source: a score, a distribution or a Pyro model.
        args: of a Pyro model.
        kwargs: of it, by name.
        site: the name of the draws of a score or a distribution.
        init_strategy: where chains of a Pyro model begin.

    Raises:
        ValueError: what cannot be walked on.
    """
    if isinstance(source, (Score, Distribution)) and (args or kwargs):
        raise ValueError(
            f"run must be called without arguments for a {type(source).__name__}, but got "
            f"{len(args) + len(kwargs)}; only a Pyro model takes data"
        )
    if isinstance(source, ScoreDistribution) and not source.batch_shape:
        source = source.score
    if isinstance(source, Score):
        return Target(source.settled(), Sites({site: source.event_shape}), {})
    if isinstance(source, ScoreDistribution) and not has_density(source.score):
        raise ValueError(
            "model must be one ScoreDistribution where its score has no density, but its "
            f"batch_shape was {tuple(source.batch_shape)}; sample it in a plate of a Pyro model"
        )
    if isinstance(source, Distribution):
        score = DistributionScore(source)
        sites = Sites({site: score.unconstrained_shape})
        return Target(score.settled(), sites, {site: score.transform.inv})
    score = PyroModelScore(source, args, kwargs, init_strategy=init_strategy).settled()
    return Target(score, score.sites, score.transforms, score)
