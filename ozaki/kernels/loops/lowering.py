"""`lower` turns the graph of a step into operations on one chain."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from ozaki.kernels.loops.builder import KINDS, Builder, drop, number
from ozaki.kernels.loops.merging import apart, together
from ozaki.kernels.loops.rules import RULES
from ozaki.kernels.loops.tables import FILLS, KEPT, LOGICAL, POINTS, REDUCTIONS, SHOWN
from ozaki.kernels.loops.values import Op, PerChain, Unsupported, Value, contiguous, without

aten = torch.ops.aten
MORE = [
    *(aten.gelu, aten._softmax, aten._log_softmax, aten.logsumexp, aten.linalg_vector_norm),
    *(aten.glu, aten.logit),
]


@dataclass
class Lowered:
    """A step of one chain.

    Attributes:
        ops: in the order of their computation.
        carry: what is handed to the next step, one for each carried input.
        kept: what a step keeps.
        sums: of those kept, which are a mean or sum over the chains: factor; None elsewhere.
        per_chain: for each input the axis of the chains, or None.
        constants: tensors that the graph holds, inputs after those that were given.
    """

    ops: list[Op]
    carry: list[Value]
    kept: list[Value]
    sums: list[float | None]
    per_chain: list[int | None]
    dtype: torch.dtype


def plain_graph(step: GraphModule, inputs: Sequence[Tensor]) -> GraphModule:
    """Trace a step anew, without changes in place and with few kinds of operation."""
    table: Any = {
        op: how
        for op, how in {**core_aten_decompositions(), **get_decompositions(MORE)}.items()
        if op.overloadpacket.__name__ not in KEPT  # pyright: ignore
    }
    with torch.no_grad():
        made = make_fx(functionalize(step, remove="mutations"), decomposition_table=table)
        graph = made(*inputs)
    graph.graph.eliminate_dead_code()
    return graph


def results(graph: GraphModule) -> list[Tensor]:
    """Return what a plain graph gives, as tensors without data."""
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    return [node.meta["val"] for node in output.args[0]]


def lower(graph: GraphModule, carry: int, noise: int, chains: int) -> Lowered:
    """Lower a plain graph whose inputs are carry, one step's noise, and what is the same always.

    Raises:
        Unsupported: no loop of our own can be written for it.
    """
    inputs = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
    per_chain: list[int | None] = [
        0 if i < carry + noise and t.ndim and t.shape[0] == chains and chains > 1 else None
        for i, t in enumerate(inputs)
    ]
    for _ in inputs:
        try:
            return _Lowering(graph, carry, noise, chains, per_chain).run()
        except PerChain as error:
            per_chain = _recognised(error, inputs, per_chain, chains, carry + noise)
    raise Unsupported("chains along an axis of constants")


def _recognised(
    error: PerChain, inputs: list[Tensor], per_chain: list[int | None], chains: int, first: int
) -> list[int | None]:
    """Take constants that have an entry for each chain for what they are."""
    found = list(per_chain)
    for i in error.inputs:
        axis = inputs[i].ndim + error.place
        if i >= first and axis >= 0 and inputs[i].shape[axis] == chains:
            found[i] = axis
    if found == per_chain:
        raise Unsupported("a value for each chain that no input has")
    return found


class _Lowering(Builder):
    """Lowers one graph, node after node."""

    def __init__(
        self, graph: GraphModule, carry: int, noise: int, chains: int, per_chain: list[int | None]
    ):
        super().__init__(chains)
        self._graph, self._per_chain = graph, per_chain
        self._counts = carry, noise
        self._values: dict[Node, Any] = {}
        self._sums: dict[Node, tuple[Value, float]] = {}

    def run(self) -> Lowered:
        carry, _ = self._counts
        floats: set[torch.dtype] = set()
        count = 0
        for node in self._graph.graph.nodes:
            val: Any = node.meta.get("val")
            for one in val if isinstance(val, (list, tuple)) else [val]:
                if isinstance(one, Tensor):
                    if one.dtype not in KINDS or one.device.type != "cpu":
                        raise Unsupported(f"{one.dtype} on {one.device}")
                    if KINDS[one.dtype] == "float":
                        floats.add(one.dtype)
            if node.op == "placeholder":
                self._values[node] = self._input(count, val)  # pyright: ignore
                count += 1
            elif node.op == "call_function":
                self._values[node] = self._call(node)
            elif node.op == "output":
                kept = [self._output(n) for n in node.args[0][carry:]]
                moved = [self._output(n)[0] for n in node.args[0][:carry]]
                if len(floats) != 1:
                    raise Unsupported(f"{len(floats)} floating types")
                return Lowered(
                    self.ops,
                    moved,
                    [v for v, _ in kept],
                    [f for _, f in kept],
                    self._per_chain,
                    floats.pop(),
                )
            else:
                raise Unsupported(node.op)
        raise AssertionError

    def _input(self, i: int, like: Tensor) -> Value:
        axis = self._per_chain[i]
        shape = without(like.shape, axis)
        step = i < sum(self._counts)
        inputs = {i} if axis is None else set()
        op = Op("input", (), shape, KINDS[like.dtype], axis is not None, step, (i,), inputs)
        if op.kind == "int" and (op.chain or like.dtype != torch.int64):
            raise Unsupported(f"an input of {like.dtype}")
        self.ops.append(op)
        return Value(len(self.ops) - 1, shape, contiguous(shape), 0, axis, op.kind)

    def _output(self, node: Node) -> tuple[Value, float | None]:
        if node in self._sums:
            value, factor = self._sums[node]
            return self.copied(value), factor
        if self._values[node] is None or self._values[node].around != (0, 0):
            raise Unsupported("a mean over chains that is used, or merged axes")
        return self.copied(self._values[node]), None

    def _call(self, node: Node) -> Any:
        if node.target is operator.getitem:
            whole, place = node.args
            return self._values[whole][place]  # pyright: ignore
        name = node.target.overloadpacket.__name__  # pyright: ignore
        args = [self._argument(a) for a in node.args]
        if any(a is None and isinstance(b, Node) for a, b in zip(args, node.args, strict=True)):
            raise Unsupported("a mean over chains that is used")
        if name in ("cat", "index", "index_put") and any(
            isinstance(a, Value) and a.around != (0, 0)
            for b in args
            for a in (b if isinstance(b, list) else [b])
        ):
            raise Unsupported(f"{name} of merged axes")
        if any(isinstance(a, Value) and a.around != (0, 0) for a in args) and name not in SHOWN:
            args, around = apart(args, self.chains, name)
            return together(self._known_call(node, name, args), around)
        return self._known_call(node, name, args)

    def _known_call(self, node: Node, name: str, args: list[Any]) -> Any:
        rule = RULES.get(name)
        if rule is not None:
            return rule(self, node, *args, **node.kwargs)
        if name in POINTS:
            return self._pointwise(node, name, args)
        if name in REDUCTIONS:
            return self._reduce(node, name, *args)
        if name in FILLS:
            fill = FILLS[name](args)
            return number(fill, tuple(node.meta["val"].shape), self.kind(node))
        raise Unsupported(name)

    def _argument(self, a: Any) -> Any:
        if isinstance(a, Node):
            return self._values[a]
        if isinstance(a, (list, tuple)):
            return [self._argument(b) for b in a]
        return a

    def _pointwise(self, node: Node, name: str, args: list[Any]) -> Value:
        val = node.meta["val"]
        if node.kwargs.get("alpha", 1) != 1 or (name == "div" and node.kwargs.get("rounding_mode")):
            raise Unsupported("alpha or rounding")
        if name in ("add", "sub") and len(args) > 2:
            raise Unsupported("alpha")
        kind = KINDS[val.dtype]
        if name in ("eq", "ne") and _is_bool(args[0]) and args[1] == 0:
            return args[0] if name == "ne" else self.point("not_({0})", args[:1], "bool")
        values = [a if isinstance(a, Value) else number(a, (), _kind_of(a)) for a in args]
        if (
            name in ("eq", "ne")
            and len({v.kind for v in values}) == 2
            and any(v.kind == "bool" for v in values)
        ):
            values = [self.cast(v, "float") for v in values]
        if all(v.op < 0 for v in values):
            plain = [torch.tensor(v.number) for v in values]
            if any(KINDS.get(p.dtype) == "float" for p in plain):
                plain = [p.double() if KINDS[p.dtype] == "float" else p for p in plain]
            found = getattr(torch.ops.aten, name)(*plain).item()
            return number(found, tuple(val.shape), kind)
        same = _unchanged(name, values)
        if (
            same is not None
            and same.kind == kind
            and same.rank >= max(v.rank for v in values)
            and math.prod(same.full(self.chains)) == val.numel()
        ):
            return same
        if kind == "bool":
            name = {"mul": "bitwise_and", "add": "bitwise_or"}.get(name, name)
            if name not in LOGICAL and name != "where":
                raise Unsupported(f"{name} of booleans")
        how = POINTS[name]
        if name == "pow":
            how, values = _power(values)
        if name not in ("where",) and kind != "bool":
            values = [self.cast(v, kind) for v in values]
        elif name == "where":
            values = [values[0], *(self.cast(v, kind) for v in values[1:])]
        elif name.startswith("logical"):
            values = [self.cast(v, "bool") for v in values]
        elif any(v.kind == "float" for v in values):
            values = [self.cast(v, "float") for v in values]
        elif name in ("eq", "ne", "lt", "le", "gt", "ge") and any(v.kind == "int" for v in values):
            values = [self.cast(v, "int") for v in values]
        return self.point(how, values, kind)

    def _reduce(
        self, node: Node, name: str, x: Value, dims: Any = None, keep: bool = False, **_: Any
    ) -> Any:
        rank = x.rank
        dims = [dims] if isinstance(dims, int) else dims
        axes = {d % rank for d in dims} if dims else set(range(rank))
        if name in ("any", "all"):
            x = self.cast(x, "bool")
        if rank == 0:
            return x
        if x.axis is not None and x.axis in axes:
            if axes != {x.axis} or name not in ("sum", "mean") or x.kind != "float":
                raise Unsupported(f"{name} over chains")
            self._sums[node] = x, (1 / self.chains if name == "mean" else 1.0)
            return None
        sizes = x.full(self.chains)
        count = math.prod(sizes[d] for d in axes)
        shape = tuple(1 if i in axes else n for i, n in enumerate(sizes))
        kind = KINDS[node.meta["val"].dtype]
        if x.op < 0:
            if name not in ("sum", "mean", "amax", "amin", "any", "all") or kind == "bool":
                raise Unsupported(f"{name} of a number")
            found = number(x.number * (count if name == "sum" else 1), shape, kind)
        else:
            x = self.cast(x, kind)
            own = tuple(i - (x.axis is not None and i > x.axis) for i in sorted(axes))
            out = tuple(1 if i in own else n for i, n in enumerate(x.shape))
            found = x if count == 1 else self.reduce_(x, out, own, kind, REDUCTIONS[name])
            if name == "mean":
                found = self.point("({0} * {1})", [found, number(1 / count, (), "float")], kind)
        if keep:
            return found
        return drop(found, sorted(axes))


def _unchanged(name: str, values: list[Value]) -> Value | None:
    """Return the value that adding 0 or multiplying by 1 leaves as it is."""
    for one, other in ((0, 1), (1, 0)):
        if len(values) != 2 or values[other].op >= 0:
            continue
        what = values[other].number
        first = one == 0 or name in ("add", "mul")  # x − 0, and not 0 − x
        if first and what == {"add": 0, "sub": 0, "mul": 1, "div": 1}.get(name):
            return values[one]
    return None


def _power(values: list[Value]) -> tuple[str, list[Value]]:
    """Write small powers out."""
    base, power = values
    known = {
        0.5: "sqrt_({0})",
        1: "{0}",
        2: "({0} * {0})",
        3: "({0} * {0} * {0})",
        4: "sq({0} * {0})",
        -0.5: "(one({0}) / sqrt_({0}))",
        -1: "(one({0}) / {0})",
        -2: "(one({0}) / ({0} * {0}))",
    }
    if power.op < 0 and power.number in known:
        return known[power.number], [base]
    return POINTS["pow"], values


def _is_bool(a: Any) -> bool:
    return isinstance(a, Value) and a.op >= 0 and a.kind == "bool"


def _kind_of(a: Any) -> str:
    return "bool" if isinstance(a, bool) else "int" if isinstance(a, int) else "float"
