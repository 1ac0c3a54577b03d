"""`Compiled` takes the steps of `transition.walk` in one compiled loop.

One step is traced to a graph of tensor operations; the score may be a Pyro model, a formula or a
network. `loops` makes the graph a loop of any number of steps in machine code. Warm-up walks it
step by step, and draws are walked a hundred steps at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen

from ozaki.kernels import transition
from ozaki.kernels.code_cache import CacheError
from ozaki.kernels.loops import compiled_loop
from ozaki.kernels.noise import NoiseBlock
from ozaki.kernels.proposals import blend
from ozaki.kernels.transition import Info, KernelSpec, State, StepOptions, Trail
from ozaki.linalg import Dense, SymmetricOperator
from ozaki.scores.base import Expansion, Score
from ozaki.scores.differentiation import first_line
from ozaki.scores.transformed import Frozen, Whitened
from ozaki.scores.trials import agree

KEPT = 32  # most compiled loops kept, for all kernels of a process
SMALL = 1024  # most entries of a matrix whose product with a vector is written out

Weights = tuple[float, float]


class Compiled:
    """Takes steps by compiled loops: one for each kernel spec, made at its first step."""

    def __init__(self) -> None:
        self._score: Score | None = None
        self._loops: dict[tuple[Any, ...], _Loop] = {}

    def walk(
        self,
        state: State,
        law: Score,
        method: KernelSpec,
        step_size: Tensor,
        noise: NoiseBlock,
        options: StepOptions,
        weights: Weights | None = None,
    ) -> tuple[State, Trail]:
        """The same as `transition.walk`.

        Args:
            state, step_size, noise, options: as there.
            law: a score in a metric, its curvature frozen or not.
            method: of which the proposal is not looked at where `weights` are given.
            weights: the proposal as a `blend`, so that one loop serves several.

        Raises:
            ValueError: a model that cannot be traced, or no compiler to compile it with.
        """
        parts = _Parts.of(law)
        if parts.score is not self._score:
            self._score, self._loops = parts.score, {}
        if weights is not None:
            method = method._replace(proposal=blend)  # pyright: ignore[reportArgumentType]
        key = (method, options.rule, parts.kinds, state.position.shape)
        loop = self._loops.get(key)
        if loop is None:
            loop = _Loop(state, parts, method, options.rule, weights is not None)
            loop.build(state, step_size, noise, options, weights or (1.0, 0.0), parts)
            self._loops[key] = loop
        return loop(state, step_size, noise, options, weights or (1.0, 0.0), parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return Compiled, ()  # loops are made anew


class _Parts(NamedTuple):
    """The parts of a law: its score, the factor of its metric, its frozen curvature."""

    score: Score
    factor: Tensor | None
    fixed: SymmetricOperator | None

    @classmethod
    def of(cls, law: Score) -> "_Parts":
        fixed = law.curvature if isinstance(law, Frozen) else None
        metric: Any = law.score if isinstance(law, Frozen) else law
        return cls(metric.score, metric.factor, fixed)

    @property
    def kinds(self) -> tuple[Any, ...]:
        shape = None if self.factor is None else self.factor.ndim
        return shape, type(self.fixed)

    @property
    def tensors(self) -> list[Tensor]:
        first = [] if self.factor is None else [self.factor]
        return first if self.fixed is None else [*first, *self.fixed.tensors]

    def law(self, tensors: Sequence[Tensor]) -> Score:
        """Rebuild the law with these tensors in place of its own."""
        rest = list(tensors)
        metric = Whitened(self.score, None if self.factor is None else rest.pop(0))
        return metric if self.fixed is None else Frozen(metric, self.fixed.rebuild(tuple(rest)))


class _Loop:
    """The steps of one kernel spec, traced and compiled."""

    def __init__(self, state: State, parts: _Parts, method: KernelSpec, rule: Any, blended: bool):
        self._like, self._parts = state, parts
        self._method, self._rule, self._blended = method, rule, blended
        self._has_density = state.expansion.has_density
        self._carried = len(self._flatten(state))
        self._constants: list[Tensor] = []
        self._run: Callable[..., Any]

    def build(
        self,
        state: State,
        step_size: Tensor,
        noise: NoiseBlock,
        options: StepOptions,
        weights: Weights,
        parts: _Parts,
    ) -> None:
        """Trace and compile the loop, and compare its first step with one not compiled."""
        carry = self._flatten(state)
        rest = self._rest(step_size, options, weights, parts)
        one = [part[0] for part in noise]
        try:
            with torch.no_grad():
                graph = make_fx(self._step, decomposition_table=_WRITTEN_OUT)(*carry, *one, *rest)
        except Exception as error:  # a model that is traced may raise anything
            raise ValueError(
                f"compile=True needs a model that can be traced, but {first_line(error)}; leave "
                "compile out"
            ) from error
        graph.graph.eliminate_dead_code()
        self._constants = _lift_constants(graph)
        try:
            self._run = _compiled(graph, carry, [p[:1] for p in noise], rest + self._constants)
        except CacheError:
            raise
        except Exception as error:  # torch's compiler and the C++ compiler raise many kinds
            raise ValueError(
                "compile=True needs torch's compiler and a C++ compiler such as g++ on the PATH, "
                f"but {first_line(error)}; install one, or leave compile out"
            ) from error
        self._check(state, step_size, noise, options, weights, parts)

    def __call__(
        self,
        state: State,
        step_size: Tensor,
        noise: NoiseBlock,
        options: StepOptions,
        weights: Weights,
        parts: _Parts,
    ) -> tuple[State, Trail]:
        rest = self._rest(step_size, options, weights, parts)
        carry = self._flatten(state)
        with torch.no_grad():
            found = list(self._run(*carry, *noise, *rest, *self._constants))
        moved = self._rebuild(found[: self._carried], parts.fixed)
        return moved, self._trail(found[self._carried :])

    def _step(self, *tensors: Tensor) -> list[Tensor]:
        """One step, tensors in and tensors out."""
        carry, rest = tensors[: self._carried], tensors[self._carried :]
        normal, uniform, scale, step_size, numbers, *law = rest
        weight, shift, unadjusted, uphill = numbers.unbind()
        score = self._parts.law(law)
        fixed = score.curvature if isinstance(score, Frozen) else None
        method = self._method
        if self._blended:
            method = method._replace(proposal=blend(weight, shift))
        state, info = transition.step(
            self._rebuild(carry, fixed),
            score,
            method,
            step_size * scale,
            normal,
            uniform,
            StepOptions(unadjusted > 0, uphill > 0, self._rule),
        )
        density = [state.expansion.log_density] if self._has_density else []
        return [*self._flatten(state), state.position, *density, *info]  # pyright: ignore

    def _trail(self, kept: list[Tensor]) -> Trail:
        """Turn what each step kept into a trail."""
        position, *rest = kept
        density = rest.pop(0) if self._has_density else None
        return Trail(position, density, Info(*rest))

    def _rest(
        self, step_size: Tensor, options: StepOptions, weights: Weights, parts: _Parts
    ) -> list[Tensor]:
        """Return the tensors that are the same at every step."""
        numbers = step_size.new_tensor([*weights, *(float(flag) for flag in options[:2])])
        return [step_size, numbers, *(t.contiguous() for t in parts.tensors)]

    def _flatten(self, state: State) -> list[Tensor]:
        """List the tensors that one step hands to the next."""
        at = state.expansion
        found = [state.position, at.gradient, at.log_density, at.score_gradient]
        if at.curvature is not None and at.curvature.batch:
            if isinstance(at.curvature, Dense):
                at.curvature.eigen()  # a step leaves it decomposed
            found += at.curvature.tensors
        return [t.contiguous() for t in found if t is not None]

    def _rebuild(self, tensors: Sequence[Tensor], fixed: SymmetricOperator | None) -> State:
        """Make a state of the tensors that `_flatten` listed."""
        like, rest = self._like.expansion, list(tensors)
        position, gradient = rest.pop(0), rest.pop(0)
        density = None if like.log_density is None else rest.pop(0)
        rough = None if like.score_gradient is None else rest.pop(0)
        curvature = fixed if like.curvature is not None else None
        if rest:
            curvature = like.curvature.rebuild(tuple(rest))  # pyright: ignore
        return State(position, Expansion(gradient, curvature, density, rough))

    def _check(
        self,
        state: State,
        step_size: Tensor,
        noise: NoiseBlock,
        options: StepOptions,
        weights: Weights,
        parts: _Parts,
    ) -> None:
        """Raise ValueError unless the compiled first step agrees with one not compiled."""
        first = NoiseBlock(*(part[:1].contiguous() for part in noise))
        method = self._method
        if self._blended:
            method = method._replace(proposal=blend(*weights))
        law = parts.law(parts.tensors)
        # a short step is accepted; a refused step would leave nothing to compare
        short = step_size / 100
        plain, seen = transition.walk(state, law, method, short, first, options)
        found, trail = self(state, short, first, options, weights, parts)
        # rounding reverses the acceptance of one in many thousand chains
        alike = (trail.info.accepted == seen.info.accepted)[0]
        # a density that sums D terms is rounded D times over
        rounding = 64 * len(state.position[0]) * torch.finfo(state.position.dtype).eps
        pairs = (
            (trail.info.acceptance, seen.info.acceptance),
            (found.position[alike], plain.position[alike]),
            (found.expansion.gradient[alike], plain.expansion.gradient[alike]),
        )
        if not all(agree(a, b, rounding) for a, b in pairs):
            raise ValueError(
                "compile=True gave another first step than the model as it stands; leave compile "
                "out"
            )


def _lift_constants(graph: GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph holds into its last arguments, and return them."""
    nodes = graph.graph
    nodes.set_codegen(CodeGen())
    last = [node for node in nodes.nodes if node.op == "placeholder"][-1]
    held: dict[str, Any] = {}
    with nodes.inserting_after(last):
        for node in [n for n in nodes.nodes if n.op == "get_attr"]:
            if node.target not in held:
                last.append(place := nodes.placeholder(f"constant_{len(held)}"))
                last, held[node.target] = place, (place, getattr(graph, node.target))
            node.replace_all_uses_with(held[node.target][0])
            nodes.erase_node(node)
    graph.recompile()
    return [value.detach().contiguous() for _, value in held.values()]


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
