"""`TracedLoop` traces one turn of a loop to a graph of tensor operations, and compiles the loop.

The score may be a Pyro model, a formula or a network. The graph becomes a loop of any number of
turns: warm-up takes them few by few, and draws are walked a hundred at a time, so that the time to
compile does not grow with the number of steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ozaki.foundation.replay import traced
from ozaki.kernels.code_cache import CacheError
from ozaki.kernels.loops import compiled_loop
from ozaki.kernels.transition import State
from ozaki.linalg import Dense
from ozaki.scores.base import Expansion
from ozaki.scores.differentiation import first_line
from ozaki.scores.trials import agree

KEPT = 32  # most compiled loops kept, for all kernels of a process
SMALL = 1024  # most entries of a matrix whose product with a vector is written out

Turn = Callable[..., list[Tensor]]
"""Tensors carried, noise of one turn, and the rest → tensors carried, and what is kept."""


class TracedLoop:
    """A compiled loop of a turn.

    Args:
        turn: what one turn does.
        carry: tensors that one turn hands to the next.
        noise: with a leading axis of turns.
        rest: the same at every turn.

    Raises:
        ValueError: a model that cannot be traced, or no compiler to compile it with.
    """

    def __init__(
        self, turn: Turn, carry: list[Tensor], noise: list[Tensor], rest: list[Tensor]
    ) -> None:
        one = [part[0] for part in noise]
        try:
            with torch.no_grad():
                graph, held = traced(turn, [*carry, *one, *rest], _WRITTEN_OUT)
        except Exception as error:  # a model that is traced may raise anything
            raise ValueError(
                f"compile=True needs a model that can be traced, but {first_line(error)}; leave "
                "compile out"
            ) from error
        self._constants = [t.detach().contiguous() for t in held]
        try:
            self._run = _compiled(graph, carry, [p[:1] for p in noise], rest + self._constants)
        except CacheError:
            raise
        except Exception as error:  # torch's compiler and the C++ compiler raise many kinds
            raise ValueError(
                "compile=True needs torch's compiler and a C++ compiler such as g++ on the PATH, "
                f"but {first_line(error)}; install one, or leave compile out"
            ) from error

    def __call__(
        self,
        carry: list[Tensor],
        noise: list[Tensor],
        rest: list[Tensor],
        rows: Tensor | None = None,
    ) -> list[Tensor]:
        """Take as many turns as there is noise for.

        Args:
            carry, noise, rest: like those that it was made with.
            rows: the row in which each turn is kept, −1 for none; all of them in turn by default.
        """
        with torch.no_grad():
            return list(self._run(*carry, *noise, *rest, *self._constants, rows=rows))


def flatten(state: State) -> list[Tensor]:
    """List the tensors of a state."""
    at = state.expansion
    found = [state.position, at.gradient, at.log_density, at.score_gradient]
    if at.curvature is not None and at.curvature.batch:
        if isinstance(at.curvature, Dense):
            at.curvature.eigen()  # a step leaves it decomposed
        found += at.curvature.tensors
    return [t.contiguous() for t in found if t is not None]


def rebuild(tensors: Sequence[Tensor], like: Expansion) -> State:
    """Make a state of the tensors that `flatten` listed."""
    rest = list(tensors)
    position, gradient = rest.pop(0), rest.pop(0)
    density = None if like.log_density is None else rest.pop(0)
    rough = None if like.score_gradient is None else rest.pop(0)
    curvature = None
    if rest:
        curvature = like.curvature.rebuild(tuple(rest))  # pyright: ignore
    return State(position, Expansion(gradient, curvature, density, rough))


def check_alike(found: list[Tensor], plain: list[Tensor], same: Tensor) -> None:
    """Raise ValueError unless a compiled step agrees with one not compiled.

    Args:
        found: acceptances, positions and gradients of the compiled one, (chains, …).
        plain: those of the other.
        same: which chains both accepted, or both refused: rounding reverses one in many thousand.
    """
    # a density that sums D terms is rounded D times over
    position = plain[1]
    rounding = 64 * position.shape[-1] * torch.finfo(position.dtype).eps
    if not all(agree(a[same], b[same], rounding) for a, b in zip(found, plain, strict=True)):
        raise ValueError(
            "compile=True gave another first step than the model as it stands; leave compile out"
        )


def _compiled(
    step: GraphModule, carry: list[Tensor], noise: list[Tensor], rest: list[Tensor]
) -> Callable[..., Any]:
    """Return the compiled loop of a graph; the same graph with other data shares one loop."""
    kinds = [(t.shape, t.stride(), t.dtype, t.device) for t in (*carry, *noise, *rest)]
    key = (step.code, str(kinds))
    found = _LOOPS.pop(key, None) or compiled_loop(step, carry, noise, rest)
    _LOOPS[key] = found
    while len(_LOOPS) > KEPT:
        del _LOOPS[next(iter(_LOOPS))]
    return found


def _bmm(a: Tensor, b: Tensor) -> Any:
    """Write out a batched matrix product.

    One matrix for all of the batch makes one large product. Small matrices times vectors are
    written out, and fuse with what stands around them.
    """
    batch, rows, inner = a.shape
    columns = b.shape[2]
    if batch > 1 and a.stride(0) == 0:
        found = b.mT.reshape(batch * columns, inner) @ a[0].mT
        return found.reshape(batch, columns, rows).mT
    if batch > 1 and b.stride(0) == 0:
        return (a.reshape(batch * rows, inner) @ b[0]).reshape(batch, rows, columns)
    if 1 in (rows, columns) and rows * inner * columns <= SMALL:
        return (a.unsqueeze(3) * b.unsqueeze(1)).sum(2)
    return NotImplemented


_LOOPS: dict[tuple[str, str], Callable[..., Any]] = {}  # the last used at the end
_WRITTEN_OUT: dict[Any, Any] = {torch.ops.aten.bmm.default: _bmm}
