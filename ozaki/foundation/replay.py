"""`replayable` makes a function of recorded tensor operations, with as few of them as will do.

What does not lead to a result is left out, what is done twice is done once, and what depends on
Python's numbers alone is done beforehand. None of that changes a bit of a result.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ozaki.foundation.recording import CLONE, SMALL, Recorder, Slot, Step, leaves, mapped

aten: Any = torch.ops.aten
NEG: Any = aten.neg.default
# minus zero less zero is minus zero, but plus zero it is zero
NEUTRAL: dict[Any, int] = {
    aten.pow.Tensor_Scalar: 1,
    aten.sub.Tensor: 0,
    aten.div.Tensor: 1,
    aten.mul.Tensor: 1,
    aten.mul.Scalar: 1,
}

# torch's own bindings of operators, which are called in half the time
QUICK: dict[Any, Callable[..., Any]] = {
    aten.mul.Tensor: torch.mul,
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.div.Tensor: torch.div,
    aten.mul.Scalar: torch.mul,
    aten.add.Scalar: torch.add,
    aten.neg.default: torch.neg,
    aten.exp.default: torch.exp,
    aten.log.default: torch.log,
    aten.pow.Tensor_Scalar: torch.pow,
    aten.log1p.default: torch.log1p,
    aten.sum.dim_IntList: torch.sum,
    aten.cat.default: torch.cat,
    aten.mm.default: torch.mm,
    aten.bmm.default: torch.bmm,
    aten.where.self: torch.where,
    aten.lt.Scalar: torch.lt,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.squeeze.dim: torch.squeeze,
    aten.view.default: Tensor.view,
    aten.expand.default: Tensor.expand,
    aten.select.int: torch.select,
    aten.transpose.int: torch.transpose,
    aten.masked_fill.Scalar: torch.masked_fill,
    aten.sigmoid.default: torch.sigmoid,
}

Replay = Callable[[Tensor], tuple[Tensor, ...]]
"""Points of the shape, dtype and device that were recorded → the results of the operations."""


class Stale(Exception):
    """Raised where data have changed so that other operations would be done."""


def record(
    f: Callable[[Tensor], Sequence[Tensor]], points: Tensor
) -> tuple[Sequence[Tensor], Replay | str]:
    """Call `f` once, and note the operations that led from `points` to its results.

    Returns:
        The results, and a function that does the operations again, or, in words, why none can.

    Example:
        >>> points = torch.tensor([1.0, 2.0])
        >>> found, replay = record(lambda x: (x.square() + torch.ones(2),), points)
        >>> replay(2 * points)
        (tensor([ 5., 17.]),)
    """
    with Recorder(points) as recorder:
        found = f(points)
    if recorder.objection is not None:
        return found, recorder.objection
    return found, replayable(recorder, found)


def traced(
    f: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    written_out: Mapping[Any, Callable[..., Any]] = MappingProxyType({}),
) -> tuple[GraphModule, list[Tensor]]:
    """Call `f` once, and return the graph of the operations that led from `inputs` to its results.

    Args:
        f: of tensors.
        inputs: what it is called with.
        written_out: operation → a function that does it by others, or returns NotImplemented.

    Returns:
        The graph, of the inputs and of the tensors that `f` found elsewhere, and those tensors.

    Raises:
        ValueError: the operations, or the shapes of what they give, depend on values.

    Example:
        >>> graph, held = traced(lambda x, y: [x * y + torch.ones(2)], [torch.ones(2)] * 2)
        >>> graph(torch.tensor([2.0, 3.0]), torch.tensor([4.0, 5.0]), *held)
        (tensor([ 9., 16.]),)
    """
    # a tensor given twice is two inputs
    inputs = [t.detach() if any(t is u for u in inputs[:k]) else t for k, t in enumerate(inputs)]
    with Recorder(*inputs, written_out=written_out) as recorder:
        found = f(*inputs)
    if recorder.objection is not None:
        raise ValueError(recorder.objection)
    for step in recorder.steps:
        if step.expected is not None and any(map(recorder.moves, step.reads)):
            raise ValueError(f"the shapes that {step.op} gives depend on values")
    slots = [recorder.slot(t) for t in found]
    # a check that may raise leaves nothing behind
    steps = [s for s in recorder.steps if any(s.out) or s.op._schema.is_mutable]
    steps = [s._replace(expected=None) for s in steps]
    held, steps, slots = _shortened(recorder, steps, slots)
    return _generated(recorder, _needed(steps, slots), held, slots)


def replayable(recorder: Recorder, results: Sequence[Tensor]) -> Replay:
    """Return the function that does the recorded operations again."""
    slots = [recorder.slot(t) for t in results]
    held, steps, slots = _shortened(recorder, recorder.steps, slots)
    # a caller may write to a result, which must be nobody else's
    last: list[Step] = []
    foreign = {recorder.memory(s) for s in (*recorder.inputs, *held)}
    for k, slot in enumerate(slots):
        if recorder.memory(slot) in foreign or slot in slots[:k]:
            slots[k] = Slot(-1 - k)
            last.append(Step(CLONE, (slot,), {}, (slots[k],)))
    steps = _needed([*steps, *last], slots)
    graph, constants = _generated(recorder, steps, held, slots)
    run: Any = graph.forward
    found_elsewhere = [t for s, t in recorder.held.items() if s not in recorder.fresh]
    forms = [(t, t.shape, t.dtype) for t in found_elsewhere if any(t is c for c in constants)]

    def replay(x: Tensor) -> tuple[Tensor, ...]:
        for tensor, shape, dtype in forms:
            if tensor.shape != shape or tensor.dtype != dtype:
                raise Stale
        with torch.no_grad():
            return run(x, *constants)

    return replay


def _shortened(
    recorder: Recorder, steps: list[Step], slots: list[Slot]
) -> tuple[dict[Slot, Tensor], list[Step], list[Slot]]:
    """Do nothing twice, and nothing that can be done beforehand; also return what is held."""
    held = dict(recorder.held)
    with torch.no_grad():
        steps = _folded(recorder, steps, held)
    steps, renamed = _merged(recorder, steps)
    return held, steps, [renamed.get(s, s) for s in slots]


def _folded(recorder: Recorder, steps: list[Step], held: dict[Slot, Tensor]) -> list[Step]:
    """Do beforehand what depends on numbers alone, and keep it among what is held."""
    known, rest = set(recorder.fresh), []
    for step in steps:
        out = [s for s in step.out if s is not None]
        filled = bool(out) and out[0] in recorder.filled
        fixed = step.pure and all(s in known for s in step.reads)
        if any(recorder.volatile(s) for s in out) or not (fixed or filled):
            rest.append(step)
            continue
        if not fixed:
            held[out[0]] = recorder.filled[out[0]]
            known.add(out[0])
            continue
        args, kwargs = mapped(
            lambda v: held[v] if isinstance(v, Slot) else v, (step.args, step.kwargs)
        )
        found = step.op(*args, **kwargs)
        results = found if step.several else (found,)
        if any(t.numel() > SMALL for t in leaves(results)):
            rest.append(step)
            continue
        known.update(out)
        held.update((s, t) for s, t in zip(step.out, results, strict=True) if s is not None)
    return rest


def _merged(recorder: Recorder, steps: list[Step]) -> tuple[list[Step], dict[Slot, Slot]]:
    """Do equal operations once; also return slot → the slot that takes its place."""
    seen: dict[Any, Step] = {}
    renamed: dict[Slot, Slot] = {}
    producers: dict[Slot, Step] = {}
    kept = []
    for step in steps:
        args, kwargs = mapped(
            lambda v: renamed.get(v, v) if isinstance(v, Slot) else v, (step.args, step.kwargs)
        )
        step = step._replace(args=args, kwargs=kwargs)
        out = [s for s in step.out if s is not None]
        if not step.pure or any(recorder.volatile(s) for s in (*step.reads, *out)):
            kept.append(step)
            continue
        # 1, 1.0 and True are equal, and so are 0.0 and -0.0
        key = (step.op, repr((args, kwargs)))
        same = _unchanged(recorder, step, producers)
        if same is not None:
            renamed[out[0]] = same
            continue
        twin = seen.setdefault(key, step)
        producers.update((s, step) for s in out)
        if twin is step:
            kept.append(step)
        else:
            renamed.update((a, b) for a, b in zip(step.out, twin.out, strict=True) if a and b)
    return kept, renamed


def _unchanged(recorder: Recorder, step: Step, producers: Mapping[Slot, Step]) -> Slot | None:
    """Return the slot that holds what an operation would return, bit by bit; None in doubt."""
    found, out = None, step.out[0]
    if step.op is NEG:
        maker = producers.get(step.args[0])
        found = maker.args[0] if maker is not None and maker.op is NEG else None
    elif step.op in NEUTRAL and len(step.args) == 2 and not step.kwargs:
        first, second = step.args
        number = isinstance(second, (int, float)) and second == NEUTRAL[step.op]
        found = first if number and isinstance(first, Slot) else None
    # memory of another layout would lead to other loops over it
    if found is None or out is None:
        return None
    return found if recorder.form(found) == recorder.form(out) else None


def _needed(steps: list[Step], slots: list[Slot]) -> list[Step]:
    """Leave out what does not lead to the results."""
    wanted, kept = set(slots), []
    for step in reversed(steps):
        if not step.pure or any(s in wanted for s in step.out):
            kept.append(step)
            wanted.update(step.reads)
    return kept[::-1]


def _generated(
    recorder: Recorder, steps: list[Step], held: dict[Slot, Tensor], slots: list[Slot]
) -> tuple[GraphModule, list[Tensor]]:
    """Write the operations as Python, by torch.fx: of the inputs, and of what is held of them."""
    graph, root = Graph(), torch.nn.Module()
    nodes: dict[Slot, Node] = {
        slot: graph.placeholder(f"input_{i}") for i, slot in enumerate(recorder.inputs)
    }
    constants: list[Tensor] = []

    def node(slot: Slot) -> Node:
        if slot not in nodes:
            constants.append(held[slot])
            nodes[slot] = graph.placeholder(f"held_{len(constants)}")
        return nodes[slot]

    for slot in [s for step in steps for s in step.reads if s in held] + [
        s for s in slots if s in held
    ]:
        node(slot)
    for step in steps:
        args, kwargs = mapped(
            lambda v: node(v) if isinstance(v, Slot) else v, (step.args, step.kwargs)
        )
        op: Any = QUICK.get(step.op, step.op)
        found = graph.call_function(op, args, kwargs)
        if step.expected is not None:
            graph.call_function(_expect, (found, step.expected))
        if not step.several:
            if step.out and step.out[0] is not None:
                nodes[step.out[0]] = found
            continue
        for i, slot in enumerate(step.out):
            if slot is not None:
                nodes[slot] = graph.call_function(operator.getitem, (found, i))
    graph.output(tuple(node(s) for s in slots))
    return GraphModule(root, graph), constants


def _expect(found: Any, expected: Any) -> None:
    """Raise Stale where a value, or the shapes of tensors, are not what they were."""
    if isinstance(expected, tuple):
        found = tuple(t.shape for t in leaves(found))
    if found != expected:
        raise Stale
