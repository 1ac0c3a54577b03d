"""`Batching` evaluates a log density over batches, by vmap where vmap is right and else by a loop.

torch.func.vmap is some twenty times faster than a loop, but fails for some models. It is compared
with the loop before it is trusted: once for the gradient, and once for each kind of curvature.
"""

import warnings
from functools import partial

import torch
from torch import Tensor

from ozaki.foundation.process import isolated_rng
from ozaki.foundation.shapes import Float
from ozaki.foundation.torch_modes import ordinary
from ozaki.foundation.tracing import tracing
from ozaki.scores.base import CurvatureKind, Expansion
from ozaki.scores.differentiation import (
    Function,
    derivatives,
    expand_looped,
    expand_vectorised,
    first_line,
    products_looped,
    values_looped,
    values_vectorised,
)
from ozaki.scores.replays import Replays
from ozaki.scores.trials import agree, changes, no_curvature, untrue_curvature

POINTS, ROWS = 3, 4  # compared: points, and rows of the Hessian at each


class Batching:
    """Expansions of a model's log density, batched where that agrees with a loop.

    Args:
        f: log p of one point, (D,) → ().
        near: candidate points for the comparison, (n, D); the first finite ones are used.
        vectorize: "auto" falls back to the loop with one warning, True raises instead, False loops.
        hindrance: why batching need not even be tried; None where it may work.
        remedy: a form of the model that could be batched.
    """

    def __init__(
        self,
        f: Function,
        near: Float[Tensor, "n dim"],
        vectorize: bool | str = "auto",
        hindrance: str | None = None,
        remedy: str | None = None,
    ):
        self._f, self._near = f, near
        self._vectorize, self._hindrance = vectorize, hindrance
        self._remedy = "" if remedy is None else f"; {remedy}"
        self._found: dict[CurvatureKind | None, bool] = {}
        self._warned = False
        self._untrue: str | None = None  # the objection to its curvature, if there is one

    def expand(
        self,
        x: Float[Tensor, "*batch dim"],
        curvature: CurvatureKind | None = None,
        replays: Replays | None = None,
    ) -> Expansion:
        """The expansion at `x`, (*batch, D).

        Args:
            x: points.
            curvature: None, "diagonal" or "dense".
            replays: the recordings of a run, if they may be used.
        """
        if self.possible(curvature):
            if replays is not None and not tracing():
                return replays.expand(self._f, x, curvature)
            return expand_vectorised(self._f, x, curvature)
        if tracing():
            raise ValueError("it cannot be batched over chains")
        return expand_looped(self._f, x, curvature)

    def values(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """Log p at `x`, (*batch, D), without its derivatives."""
        if self.possible():
            return values_vectorised(self._f, x)
        if tracing():
            raise ValueError("it cannot be batched over chains")
        return values_looped(self._f, x)

    def possible(self, curvature: CurvatureKind | None = None) -> bool:
        """Say whether the batched route is right for this kind; it is tried at the first call.

        Raises:
            ValueError: it is not, and vectorize=True.
        """
        if not self._vectorize:
            return False
        if curvature not in self._found:
            cause = self._cause(curvature)
            self._found[curvature] = cause is None
            if cause is not None:
                if self._hindrance is None:
                    self.check_repeatable()  # a function that has changed may be the cause
                self._complain(cause)
        return self._found[curvature]

    @ordinary()
    def check_repeatable(self) -> None:
        """Raise ValueError unless evaluations at one point agree, whatever came between them."""

        def evaluate(points: Tensor) -> Tensor:
            found = [derivatives(self._f, point)[:2] for point in points]
            return torch.stack([torch.cat([v.reshape(1).to(g), g]) for v, g in found])

        with isolated_rng(2):
            change = changes(evaluate, self._near[:2], together=False)
        if change is not None:
            raise ValueError(
                f"model must have a density that is a function of its latent sites, but {change}; "
                "draw random numbers by pyro.sample, or outside the model, and keep no state"
            )

    @ordinary()
    def check_curvature(self) -> None:
        """Raise ValueError where the second derivative is not that of the gradient; tried once."""
        if self._untrue is None and not tracing():
            with isolated_rng(4):
                found = untrue_curvature(
                    lambda x: self.expand(x).gradient,
                    partial(products_looped, self._f),
                    self._near,
                )
            self._untrue = found or ""
        if self._untrue:
            raise ValueError(no_curvature("model", self._untrue))

    def _cause(self, curvature: CurvatureKind | None) -> str | None:
        """Say why the batched route is not right; None where it is right."""
        if self._hindrance is not None:
            return self._hindrance
        if curvature is not None and not self.possible(None):
            return "its gradient cannot be batched"
        with isolated_rng(3):
            points = self._points()
            rows = () if curvature is None else range(min(ROWS, points.shape[-1]))
            looped = [derivatives(self._f, point, rows) for point in points]
            try:
                batch = expand_vectorised(self._f, points, curvature)
            except Exception as error:  # models may raise anything, and the loop has just succeeded
                return f"under torch.func.vmap it raises {first_line(error)}"
        value, gradient, hessian = (torch.stack(part) for part in zip(*looped, strict=True))
        assert batch.log_density is not None
        pairs = [(batch.log_density, value.to(points)), (batch.gradient, gradient)]
        if batch.curvature is not None and curvature == "dense":
            pairs.append((batch.curvature.dense()[:, list(rows)], hessian))
        elif batch.curvature is not None:
            seen = batch.curvature.diagonal()[:, list(rows)]
            pairs.append((seen, hessian.diagonal(dim1=-2, dim2=-1)))
        if all(agree(a, b) for a, b in pairs):
            return None
        return "batched by torch.func.vmap it gives other values than point by point"

    def _points(self) -> Tensor:
        """Return some candidates at which the density is finite, if there are any."""
        good: list[Tensor] = []
        for point in self._near:
            value, gradient, _ = derivatives(self._f, point)
            if bool(value.isfinite()) and bool(gradient.isfinite().all()):
                good.append(point)
            if len(good) == POINTS:
                break
        return torch.stack(good) if good else self._near[:POINTS]

    def _complain(self, cause: str) -> None:
        """Raise or warn, by `vectorize`, that the model cannot be batched."""
        message = f"the model cannot be vectorised over chains: {cause}"
        if self._vectorize is True:
            raise ValueError(
                f"vectorize=True, but {message}; use vectorize='auto' to loop{self._remedy}"
            )
        if not self._warned:
            warnings.warn(
                f"{message}; its chains are evaluated one by one, which is slower{self._remedy}",
                UserWarning,
                stacklevel=5,
            )
        self._warned = True
