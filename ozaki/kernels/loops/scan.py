"""`loop` makes a loop of a step by torch's compiler: a scan over the noise."""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from ozaki.foundation.lazy import lazy

# the compiler takes a second to import
inductor = lazy("torch._inductor")
scans, fakes = lazy("torch._higher_order_ops.scan"), lazy("torch._subclasses.fake_tensor")
symbols = lazy("torch.fx.experimental.symbolic_shapes")


def loop(
    step: GraphModule, carry: list[Tensor], noise: list[Tensor], rest: list[Tensor]
) -> Callable[..., list[Tensor]]:
    """Do as `compiled_loop` does."""
    n = len(carry)
    kept: list[tuple[torch.Size, torch.dtype]] = []

    def body(*tensors: Tensor) -> list[Tensor]:
        found = list(step(*tensors))
        kept[:] = [(t.shape, t.dtype) for t in found[n:]]
        # a loop pays for every tensor that it keeps, however small
        row = torch.cat([t.to(carry[0].dtype).flatten() for t in found[n:]])
        # the carried tensors and the kept ones must not share memory
        return [*(t.clone() for t in found[:n]), row]

    run = _compiled(body, carry, noise, rest)

    def taken(*tensors: Tensor, rows: Tensor | None = None) -> list[Tensor]:
        found = list(run(*(t.contiguous() for t in tensors)))
        table = found[-1]
        if rows is not None:
            chosen = (rows >= 0).nonzero().flatten()
            shape = int(rows.max()) + 1 if len(rows) else 0, table.shape[1]
            table = table.new_empty(shape).index_copy_(0, rows[chosen], table[chosen])
        parts = table.split([math.prod(shape) for shape, _ in kept], 1)
        return [
            *found[:n],
            *(
                part.reshape(len(table), *shape).to(dtype)
                for part, (shape, dtype) in zip(parts, kept, strict=True)
            ),
        ]

    return taken


def _compiled(
    body: Callable[..., list[Tensor]], carry: list[Tensor], noise: list[Tensor], rest: list[Tensor]
) -> Callable[..., Any]:
    """Compile the loop: carry, noise of any number of steps, rest → carry, a row for each step."""
    n, m = len(carry), len(noise)

    def whole(*tensors: Tensor) -> Any:
        return scans.scan_op(body, list(tensors[:n]), list(tensors[n : n + m]), tensors[n + m :])

    mode = fakes.FakeTensorMode(shape_env=symbols.ShapeEnv())

    def fake(t: Tensor, grows: bool) -> Tensor:
        sizes = [symbols.DimDynamic.STATIC] * t.ndim
        if grows:
            sizes[0] = symbols.DimDynamic.DYNAMIC
        return mode.from_tensor(t, symbolic_context=symbols.StatelessSymbolicContext(sizes))

    # two steps stand for any number: the compiler would take one for a constant
    two = [torch.cat([t[:1], t[:1]]) for t in noise]
    arguments = [fake(t, n <= i < n + m) for i, t in enumerate([*carry, *two, *rest])]
    with torch.no_grad(), _quiet():
        with mode:
            graph = make_fx(whole)(*arguments)
        # Python between the kernels would cost more than they do
        options = {"cpp_wrapper": carry[0].device.type == "cpu"}
        return inductor.compile(graph, arguments, options=options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of the compiler."""
    log = logging.getLogger("torch._inductor")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(level)
