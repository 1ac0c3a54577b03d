"""`DenoiserScore` makes a score of a denoiser that someone else trained."""

from typing import Any

import torch
from torch import Tensor

from ozaki.foundation import validation
from ozaki.foundation.process import isolated_rng
from ozaki.foundation.torch_modes import ordinary, recordable
from ozaki.scores.differentiation import StartSampler, draw_from, first_line, like_start
from ozaki.scores.jacobian import JacobianScore
from ozaki.scores.trials import changes


class DenoiserScore(JacobianScore):
    """The score of p ∗ N(0, σ² I) from a denoiser D(x̃, σ) ≈ E[x | x̃], whoever trained it.

    Tweedie's formula (eq. 4): s1 = (D(x̃, σ) − x̃)/σ², s2 = (J_D − I)/σ², with the Jacobian of D
    made symmetric. There is no log density: the kernels take a line integral.

    Args:
        denoiser: called as denoiser(x, sigma) with x of (n, *event_shape) and a number; returns the
            denoised points, of the same shape and dtype. It treats each point of a batch by itself,
            without memory or chance, in operations that torch.func knows: put modules in eval mode.
        sigma: σ, the standard deviation of the noise, in the units of x.
        event_shape: the shape of one point.
        start: where chains begin: `(n, generator) → (n, *event_shape)`, or a tensor of points, of
            which some are picked and noise of σ is added; None for uniform(−2, 2).
        dtype: of the points; None for that of `start`, or torch's default.
        device: of the points; None for that of `start`, or the CPU.

    Raises:
        ValueError: arguments of the wrong kind, or a denoiser that returns another shape, dtype or
            values that are not finite, that changes from call to call, writes over its argument, or
            cannot be differentiated by torch.func.

    Source: Meng et al. (2021), eq. 4 and 18; Efron, "Tweedie's formula and selection bias" (2011).

    Example:
        >>> score = DenoiserScore(lambda x, sigma: x / (1 + sigma**2), 0.5, (3,))
        >>> score.expand(torch.ones(3)).gradient  # of N(0, (1 + σ²) I)
        tensor([-0.8000, -0.8000, -0.8000])
    """

    _name = "denoiser"

    def __init__(
        self,
        denoiser: Any,
        sigma: float,
        event_shape: Any,
        *,
        start: StartSampler | Tensor | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        if not callable(denoiser):
            raise ValueError(f"denoiser must be callable, but was {denoiser!r}")
        self.denoiser: Any = denoiser
        self.sigma = validation.positive("sigma", sigma)
        shape = validation.sizes("event_shape", event_shape)
        like = like_start(start, shape, dtype, device)

        def begin(n: int, generator: torch.Generator | None) -> Tensor:
            points = draw_from(start, n, generator, shape, like)
            if not isinstance(start, Tensor):
                return points
            where = like.device if generator is None else generator.device
            noise = torch.randn(points.shape, generator=generator, device=where, dtype=like.dtype)
            return points + self.sigma * noise.to(points)

        super().__init__(self._score, begin, shape, like.dtype, like.device)
        self.noise_scale = torch.full((self.dim,), self.sigma, dtype=self.dtype, device=self.device)
        self._check()

    def _score(self, points: Tensor) -> Tensor:
        return (self._trial(points) - points) / self.sigma**2

    def _trial(self, points: Tensor) -> Tensor:
        # D and not s1: in s1 the identity could hide that the Jacobian of D is missing
        x = points.reshape(-1, *self.event_shape)
        return self.denoiser(x, self.sigma).reshape(points.shape)

    def _check(self) -> None:
        """Denoise two points, so that an error comes here and not in the middle of a run."""
        with isolated_rng(0), ordinary(), torch.no_grad():
            points = recordable(self.start(2, torch.Generator().manual_seed(0)))
            x = points.reshape(2, *self.event_shape)
            given = x.clone()
            try:
                found: Any = self.denoiser(given, self.sigma)
            except Exception as cause:
                raise ValueError(
                    f"denoiser could not be called with points of shape {tuple(x.shape)} and "
                    f"sigma {self.sigma:g}: it raised {first_line(cause)}"
                ) from cause
            if not isinstance(found, Tensor) or found.shape != x.shape:
                was = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ValueError(
                    "denoiser must return points of the shape it was given, "
                    f"{tuple(x.shape)}, but returned {was}"
                )
            if (found.dtype, found.device) != (x.dtype, x.device):
                raise ValueError(
                    "denoiser must return points of the dtype and on the device it was given, "
                    f"{x.dtype} on {x.device}, but returned {found.dtype} on {found.device}; end "
                    "it with .to(x)"
                )
            if not bool(found.isfinite().all()):
                raise ValueError(
                    "denoiser must return finite values, but returned NaN or infinite ones"
                )
            if not torch.equal(given, x):
                raise ValueError(
                    "denoiser must leave the points it is given as they are, but it wrote over "
                    "them; let it work on x.clone()"
                )
            try:
                change = changes(self._trial, points)
            except Exception as cause:  # whatever a denoiser raises
                raise ValueError(
                    "denoiser must take any number of points, and each by itself, but after two "
                    f"it could not be called with one: it raised {first_line(cause)}; put modules "
                    "in eval mode"
                ) from cause
            if change is not None:
                raise ValueError(
                    f"denoiser must be a function of each point by itself, but {change}; put "
                    "modules in eval mode, and leave out what is random or remembers"
                )
            try:
                self._pulled(points, torch.ones_like(points))
            except Exception as cause:  # whatever a denoiser raises
                raise ValueError(
                    f"denoiser could not be differentiated by torch.func ({first_line(cause)}); "
                    "write it without torch.autograd, numpy and .item(): torch.func.grad gives "
                    "gradients inside"
                ) from cause
