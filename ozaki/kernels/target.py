"""`Target` is a model as kernels see it, and `RunContext` the run that they serve."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Transform

from ozaki.kernels.processes import ALONE, Team
from ozaki.scores.base import Score, is_smoothed
from ozaki.scores.pyro_models.layout import Sites
from ozaki.scores.pyro_models.model import PyroModelScore


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
