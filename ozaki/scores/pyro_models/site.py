"""`ScoreDistribution` makes a score a site of a Pyro model.

Its `log_prob` needs no true value, since a kernel reads only derivatives. Under ozaki's kernels it
is a number whose gradient is s1 and whose Hessian is s2. Two autograd Functions make it so: the
backward of the value is the gradient, and the backward of the gradient multiplies by s2. They hold
under torch.func's grad, jacrev and vmap, and under make_fx.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, cast

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ozaki.foundation.process import seed_from
from ozaki.linalg import SymmetricOperator
from ozaki.scores.base import Score

_READER: ContextVar[str | None] = ContextVar("reader of log_prob", default=None)


@contextmanager
def reading_scores(second: bool = True) -> Iterator[None]:
    """Let `log_prob` of a score without a density give derivatives, while a kernel reads them.

    Args:
        second: whether second derivatives will be read; inside another `reading_scores` the
            value of the outer one holds.
    """
    token = _READER.set(_READER.get() or ("second" if second else "first"))
    try:
        yield
    finally:
        _READER.reset(token)


def reader() -> str | None:
    """Say what is being read of scores: "first" or "second" derivatives, or "none" of theirs."""
    return _READER.get()


@contextmanager
def apart() -> Iterator[None]:
    """Leave every `ScoreDistribution` out of a density while the rest of it is tried.

    A learned s2 is not the Jacobian of s1, and is not meant to be.
    """
    token = _READER.set("none")
    try:
        yield
    finally:
        _READER.reset(token)


class ScoreDistribution(TorchDistribution):
    """A distribution of which only a score is known, as a site of a Pyro model.

    log p has gradient s1 and Hessian s2, those of the score; its value is the score's log density
    where it has one, else 0. A learned prior with any likelihood is so sampled by
    `ScoreOzakiKernel(model)` and `ScoreLangevinKernel(model)`: the rest of the model exactly, the
    prior by line integral (see `docs/sampling.md`).

    Args:
        score: a `ScoreEstimator`, a closed form, any `Score`.
        validate_args: whether `log_prob` checks its values, as in torch; None for torch's default.

    Raises:
        ValueError: not a score.
        NotImplementedError: `log_prob` where the score has no log density and the reader is not one
            of ozaki's kernels: HMC, NUTS and SVI weigh by values, and there are none.

    Source: `docs/mathematics.md`; the name of the idea is plug-and-play prior.

    Example:
        >>> import pyro
        >>> from ozaki.scores import GaussianScore
        >>> prior = GaussianScore(torch.zeros(2), torch.eye(2))
        >>> def model(y):
        ...     x = pyro.sample("x", ScoreDistribution(prior))
        ...     pyro.sample("y", pyro.distributions.Normal(x, 0.1).to_event(1), obs=y)
        >>> ScoreDistribution(prior).log_prob(torch.ones(2))  # up to a constant
        tensor(-1.)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore
    has_rsample = False

    def __init__(self, score: Any, *, validate_args: bool | None = None):
        if not isinstance(score, Score):
            raise ValueError(f"score must be a Score, but was {type(score).__name__}")
        self.score = score
        super().__init__(torch.Size(), score.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> Any:
        """All of ℝᴰ."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ScoreDistribution":
        """Independent copies, for a plate.

        Args:
            batch_shape: of the copies.

        Returns:
            A `ScoreDistribution` of that batch shape.
        """
        new: Any = self._get_checked_instance(ScoreDistribution, _instance)
        new.score = self.score
        TorchDistribution.__init__(
            new, torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        return new

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Points to begin from: draws where the score can draw, else training points with noise.

        Args:
            sample_shape: the dimensions in front.

        Returns:
            (*sample_shape, *batch_shape, *event_shape).
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        generator = torch.Generator(self.score.device).manual_seed(seed_from(None))
        return self.score.start(shape.numel(), generator).reshape(shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """A number a point with gradient s1 and Hessian s2, (*batch,).

        Args:
            value: points, (*batch, *event_shape).

        Returns:
            The log density up to a constant where the score has one, else 0, (*batch,).

        Raises:
            NotImplementedError: no log density, and a reader that is none of ozaki's kernels.
        """
        reader, kind = _READER.get(), self.score.default_curvature
        if self._validate_args and reader is None:  # a kernel sees to it that its points are finite
            self._validate_sample(value)
        events = len(self.event_shape)
        if reader == "none":
            return value.new_zeros(value.shape[: value.ndim - events])
        x = value.reshape(*value.shape[: value.ndim - events], self.score.dim)
        if reader == "first" or (reader is None and kind != "dense"):
            kind = None  # only who knows that s2 is not whole may read it
        # at the present level of torch.func: called inside a Function the score would crash
        with torch.no_grad():
            at = self.score.expand(x.to(self.score.dtype), kind)
            height = at.log_density
        if height is None:
            if reader is None:
                raise NotImplementedError(
                    f"{type(self.score).__name__} has no log density, only its gradient and "
                    "curvature: HMC, NUTS, SVI and importance sampling cannot use it; sample the "
                    "model with ozaki.MCMC(ozaki.ScoreOzakiKernel(model)), or give "
                    "ScoreDistribution a score with a density, as GaussianMixtureScore"
                )
            height = torch.zeros_like(at.gradient[..., 0])
        operator = at.curvature
        parts = () if operator is None else operator.tensors
        found = _Value.apply(
            x,
            height.to(x.dtype),
            at.gradient.to(x.dtype),
            None if operator is None else type(operator),
            *(part.to(x.dtype) for part in parts),
        )
        return cast(Tensor, found)


class _Value(torch.autograd.Function):
    """The height, with gradient s1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, height: Tensor, s1: Tensor, kind: type[SymmetricOperator] | None, *s2: Tensor
    ) -> Tensor:
        return height.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, s1, ctx.kind, *s2 = inputs
        ctx.save_for_backward(x, s1, *s2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, s1, *s2 = ctx.saved_tensors
        gradient = cast(Tensor, _Gradient.apply(x, s1, ctx.kind, *s2))
        return (grad_outputs[0].unsqueeze(-1) * gradient, *(None,) * (3 + len(s2)))


class _Gradient(torch.autograd.Function):
    """s1, with Jacobian s2."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, s1: Tensor, kind: type[SymmetricOperator] | None, *s2: Tensor) -> Tensor:
        return s1.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, ctx.kind, *s2 = inputs
        ctx.save_for_backward(*s2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.kind is None:
            raise NotImplementedError(
                "the Hessian of a ScoreDistribution is read through ozaki's kernels, or where its "
                "score has a dense curvature; here it was not evaluated"
            )
        s2 = ctx.kind.rebuild(ctx.saved_tensors)
        return (s2.matmul(grad_outputs[0]), *(None,) * (2 + len(ctx.saved_tensors)))
