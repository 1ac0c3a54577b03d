"""These functions expand a scalar function of one point over a batch of points.

Every density that is differentiated takes one of two routes: `expand_vectorised` (torch.func over
the batch) or `expand_looped` (plain autograd, point by point, for functions that cannot be
batched). Second derivatives are reverse over reverse: some functions have no forward mode. The
module also finds points at which such a density can begin a chain.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import vjp, vmap

from ozaki.foundation import validation
from ozaki.foundation.process import unchecked
from ozaki.foundation.shapes import Float
from ozaki.foundation.torch_modes import ordinary, recordable
from ozaki.foundation.tracing import tracing
from ozaki.linalg import Dense, Diagonal
from ozaki.scores.base import CurvatureKind, Expansion
from ozaki.scores.singular import LinAlgError, singular_is_nan

Function = Callable[[Tensor], Tensor]
"""One point, (D,) → its log density, ()."""

StartSampler = Callable[[int, torch.Generator | None], Tensor]
"""(n, generator) → n points."""

T = TypeVar("T")

TRIES = 100
CHUNK = 2**22  # most numbers that the diagonal's basis vectors hold at once


def evaluated(compute: Callable[[], T]) -> T:
    """Call `compute` while its densities make no checks that branch on values.

    Where a matrix cannot be factorised it is called again, and that density is NaN.
    """
    with unchecked():
        if not tracing():
            try:
                return compute()
            except LinAlgError:
                pass
        with singular_is_nan():  # slower: only where something fails
            return compute()


@ordinary()
def expand_vectorised(
    f: Function, x: Float[Tensor, "*batch dim"], curvature: CurvatureKind | None = None
) -> Expansion:
    """The expansion (log p, ∇ log p, ∇² log p or its diagonal) by torch.func, the batch at once.

    Args:
        f: log p of one point, (D,) → ().
        x: points, (*batch, D).
        curvature: None, "diagonal" (exact, D vector products, never D × D) or "dense".
    """
    points = recordable(x.detach()).reshape(-1, x.shape[-1])
    compute = vmap(expanding(f, curvature, len(points)))
    return assembled(evaluated(lambda: compute(points)), x, curvature)


def assembled(
    found: Sequence[Tensor], x: Float[Tensor, "*batch dim"], curvature: CurvatureKind | None
) -> Expansion:
    """The expansion at `x`, of gradients, values and the curvatures' entries, each (n, …)."""
    batch, dim = x.shape[:-1], x.shape[-1]
    gradient, value, *second = (t.detach() for t in found)
    operator = None
    if curvature == "dense":
        operator = Dense(second[0].reshape(*batch, dim, dim))
    elif curvature == "diagonal":
        operator = Diagonal(second[0].reshape(*batch, dim))
    return Expansion(gradient.reshape(*batch, dim), operator, value.reshape(batch).to(x.dtype))


def expanding(
    f: Function, curvature: CurvatureKind | None, n: int
) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """Return a function of one point: its gradient, its value, and the entries of its curvature.

    Derivatives are taken inside of `vjp`, as `torch.func.grad` does. That function and its like
    import torch's compiler, for seconds.

    Args:
        f: log p of one point, (D,) → ().
        curvature: None, "diagonal" or "dense".
        n: how many points will be evaluated at once.
    """

    def first(point: Tensor) -> tuple[Tensor, Tensor]:
        def inside(p: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            value = f(p)
            return value, (_along(value, p), value)

        return vjp(inside, point, has_aux=True)[2]  # pyright: ignore

    def dense(gradient: Tensor, p: Tensor) -> Tensor:
        basis = torch.eye(len(p), dtype=p.dtype, device=p.device)
        return vmap(lambda row: _along(gradient, p, row))(basis)

    def diagonal(gradient: Tensor, p: Tensor) -> Tensor:
        index = torch.arange(len(p), device=p.device)

        def entry(i: Tensor) -> Tensor:
            basis = index == i
            return torch.where(basis, _along(gradient, p, basis.to(p.dtype)), 0).sum()

        size = max(1, min(len(p), CHUNK // max(1, n * len(p))))
        return vmap(entry, chunk_size=size)(index)

    def second(point: Tensor) -> tuple[Tensor, ...]:
        def inside(p: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            gradient, value = first(p)
            entries = dense(gradient, p) if curvature == "dense" else diagonal(gradient, p)
            return value, (gradient, value, entries)

        return vjp(inside, point, has_aux=True)[2]  # pyright: ignore

    return first if curvature is None else second


def _along(output: Tensor, point: Tensor, v: Tensor | None = None) -> Tensor:
    """Return vᵀ ∂output/∂point; zeros where the output does not depend on the point."""
    if not output.requires_grad:
        return torch.zeros_like(point)
    # without create_graph some derivatives are written in place, which vmap has to loop for
    return torch.autograd.grad(output, point, v, create_graph=True, materialize_grads=True)[0]


@ordinary()
def values_vectorised(f: Function, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
    """The values of log p by torch.func, the batch at once."""

    def value(point: Tensor) -> Tensor:
        # nothing is pulled back, but Pyro's handlers read `.data`, which vmap alone forbids
        return vjp(f, point)[0]  # pyright: ignore

    points = recordable(x.detach()).reshape(-1, x.shape[-1])
    found = evaluated(lambda: vmap(value)(points)).detach()
    return found.reshape(x.shape[:-1]).to(x.dtype)


@ordinary()
def values_looped(f: Function, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
    """The same as `values_vectorised`, one point at a time."""
    with torch.no_grad():
        points = recordable(x.detach()).reshape(-1, x.shape[-1])
        found = torch.stack([evaluated(partial(f, point)) for point in points])
    return found.reshape(x.shape[:-1]).to(x.dtype)


@ordinary()
def expand_looped(
    f: Function, x: Float[Tensor, "*batch dim"], curvature: CurvatureKind | None = None
) -> Expansion:
    """The same as `expand_vectorised`, one point at a time, for an `f` that cannot be batched."""
    batch, dim = x.shape[:-1], x.shape[-1]
    rows = range(dim) if curvature is not None else ()
    second = None
    found = [derivatives(f, point, rows) for point in recordable(x).reshape(-1, dim)]
    value, gradient, hessian = (torch.stack(part) for part in zip(*found, strict=True))
    if curvature == "dense":
        second = Dense(hessian.reshape(*batch, dim, dim))
    elif curvature == "diagonal":
        second = Diagonal(hessian.diagonal(dim1=-2, dim2=-1).reshape(*batch, dim))
    return Expansion(gradient.reshape(*batch, dim), second, value.reshape(batch).to(x.dtype))


@ordinary()
def products_vectorised(
    f: Function, x: Float[Tensor, "n dim"], v: Float[Tensor, "n dim"]
) -> Float[Tensor, "n dim"]:
    """∇² log p times a vector at each point by torch.func, the batch at once."""
    first = expanding(f, None, len(x))

    def product(point: Tensor, direction: Tensor) -> Tensor:
        def inside(p: Tensor) -> tuple[Tensor, Tensor]:
            gradient, value = first(p)
            return value, _along(gradient, p, direction)

        return vjp(inside, point, has_aux=True)[2]  # pyright: ignore

    return evaluated(lambda: vmap(product)(recordable(x.detach()), v)).detach()


@ordinary()
def products_looped(
    f: Function, x: Float[Tensor, "n dim"], v: Float[Tensor, "n dim"]
) -> Float[Tensor, "n dim"]:
    """The same as `products_vectorised`, one point at a time."""
    found = []
    with torch.enable_grad():
        for each, direction in zip(x, v, strict=True):
            point = recordable(each.detach()).requires_grad_()
            value = evaluated(partial(f, point))
            gradient = _pull(value, point, create=True) if value.requires_grad else value
            product = (gradient * direction).sum()
            found.append(_pull(product, point) if product.requires_grad else 0 * direction)
    return torch.stack(found).detach()


@ordinary()
def derivatives(
    f: Function, point: Float[Tensor, "dim"], rows: Sequence[int] = ()
) -> tuple[Float[Tensor, ""], Float[Tensor, "dim"], Float[Tensor, "rows dim"]]:
    """(f, ∇f, the chosen rows of ∇²f) at one point, by plain autograd.

    What does not depend on the point has derivative 0.
    """
    with torch.enable_grad():
        point = recordable(point.detach()).requires_grad_()
        value = evaluated(partial(f, point))
        hessian = point.new_zeros(len(rows), len(point))
        if not value.requires_grad:
            return value, torch.zeros_like(point), hessian
        gradient = _pull(value, point, create=len(rows) > 0)
        if gradient.requires_grad:
            for k, i in enumerate(rows):
                hessian[k] = _pull(gradient[i], point)
    return value.detach(), gradient.detach(), hessian


def _pull(output: Tensor, point: Tensor, create: bool = False) -> Tensor:
    return torch.autograd.grad(
        output, point, retain_graph=True, create_graph=create, materialize_grads=True
    )[0]


def uniform(
    n: int, dim: int, generator: torch.Generator | None, like: Tensor
) -> Float[Tensor, "n dim"]:
    """`n` points uniform on (−2, 2)ᴰ, in the dtype and on the device of `like`."""
    device = like.device if generator is None else generator.device
    unit = torch.rand(n, dim, generator=generator, dtype=like.dtype, device=device)
    return (4 * unit - 2).to(like.device)


def like_start(
    start: Any, shape: torch.Size, dtype: torch.dtype | None, device: torch.device | str | None
) -> Tensor:
    """Return a scalar of the dtype and device of points: as given, else those of `start`.

    Raises:
        ValueError: a tensor `start` that does not hold points of that shape.
    """
    like = torch.empty(())
    if isinstance(start, Tensor):
        like = validation.floating("start", start)
        validation.shape("start", like, (None, *shape))
        validation.count("len(start)", len(like))
    return torch.empty((), dtype=dtype or like.dtype, device=device or like.device)


def draw_from(
    source: StartSampler | Tensor | None,
    n: int,
    generator: torch.Generator | None,
    shape: torch.Size,
    like: Tensor,
) -> Float[Tensor, "n dim"]:
    """Return `n` flat points to begin from, in the dtype and on the device of `like`.

    Args:
        source: a function of n and generator, a tensor of points of which some are picked, again
            and again only where there are too few, or None for uniform(−2, 2).
        n, generator: how many, and whence the choice.
        shape: of one point.
        like: a tensor.
    """
    dim = shape.numel()
    if source is None:
        return uniform(n, dim, generator, like)
    if isinstance(source, Tensor):
        device = None if generator is None else generator.device
        if n <= len(source):
            index = torch.randperm(len(source), generator=generator, device=device)[:n]
        else:
            index = torch.randint(len(source), (n,), generator=generator, device=device)
        points = source[index.to(source.device)]
    else:
        points = source(n, generator)
        validation.shape("start(n, generator)", points, (n, *shape))
    return points.reshape(n, dim).to(like)


def finite_start(
    draw: StartSampler,
    expand: Callable[[Tensor], Expansion],
    n: int,
    generator: torch.Generator | None,
) -> Float[Tensor, "n dim"]:
    """`n` points by `draw`, each redrawn until its density and gradient are finite.

    Raises:
        ValueError: after 100 tries some still are not.
    """
    x = draw(n, generator)
    bad = torch.ones(n, dtype=torch.bool)
    for attempt in range(TRIES):
        found = expand(x)
        good = found.gradient.isfinite().all(-1)
        if found.log_density is not None:
            good = good & found.log_density.isfinite()
        bad = ~good
        if not bool(bad.any()):
            return x
        if attempt < TRIES - 1:
            x = x.clone()
            x[bad] = draw(int(bad.sum()), generator)
    raise ValueError(
        f"cannot find valid initial params: after {TRIES} tries the log density or its gradient "
        f"was not finite at {int(bad.sum())} of {n} starting points; check the observed data for "
        "NaN and the density for values outside its support, or give points to begin from"
    )


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
