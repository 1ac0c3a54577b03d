"""`source` writes a lowered step as one C++ function: for blocks of chains, for steps.

A block is as many chains as a vector register has places, so that every number of a chain is a
vector, whatever is done with it. All that a block needs stays in the nearest memory.
"""

import math
from collections.abc import Sequence

from ozaki.kernels.loops.lowering import Lowered
from ozaki.kernels.loops.values import Unsupported, Value, contiguous, without
from ozaki.kernels.loops.writer import (
    LARGE,
    MOST,
    REGISTER,
    SHARED,
    STACK,
    VECTORS,
    Writer,
    entry,
    index_of,
)

MEMORY = {"float": "T", "bool": "uint8_t", "int": "L"}


def source(low: Lowered, carry: int, noise: int, chains: int) -> str:
    """Return the C++ function of a loop.

    Raises:
        Unsupported: a step that needs too much memory.
    """
    return _Source(low, carry, noise, chains).text()


class _Source(Writer):
    """Writes the loops over blocks and steps, and what goes in and out."""

    def __init__(self, low: Lowered, carry: int, noise: int, chains: int):
        super().__init__(low)
        self._carry, self._noise, self._chains = carry, noise, chains
        self._inputs = [op for op in low.ops if op.name == "input"]

    def text(self) -> str:
        plan = self.plan
        heap = sum(n for n, _ in plan.sizes if n >= LARGE)
        stack = sum(n for n, _ in plan.sizes if n < LARGE)
        if heap * REGISTER > MOST or stack * REGISTER > STACK:
            raise Unsupported(f"{(heap + stack) * REGISTER} bytes of buffers")
        put = self.put
        put('extern "C" void ozaki_loop(void** in, void** out, const L* rows, L steps,')
        put("                           L first, L last) {")
        put(f"const L chains = {self._chains}; (void)chains; (void)rows;")
        self._pointers()
        constants = range(self._carry + self._noise, len(self._inputs))
        shared = [i for i in constants if self.low.per_chain[i] is None]
        self._loads(shared, "")
        self.section((False, False))
        put(f"Heap heap({heap});")
        place = 0
        for n, (count, kind) in enumerate(plan.sizes):
            if count >= LARGE:
                kind = VECTORS[kind]
                put(f"{kind}* __restrict s{n} = ({kind}*)(heap.start + {place});")
                place += count
        put("for (L block = first; block < last; block++) {")
        put("L q[W]; LANES { L c = block * W + l; q[l] = c < chains ? c : chains - 1; }")
        put("const int valid = chains - block * W < W ? (int)(chains - block * W) : W;")
        put("(void)q; (void)valid;")
        self._loads(range(self._carry), "")
        self._loads([i for i in constants if i not in shared], "")
        self.section((True, False))
        for n, (count, kind) in enumerate(plan.sizes):
            if count < LARGE:
                put(f"{VECTORS[kind]} s{n}[{count}];")
        put("for (L step = 0; step < steps; step++) {")
        self._loads(range(self._carry, self._carry + self._noise), " + step * {0}")
        self.section((False, True))
        self.section((True, True))
        put("const L row = rows ? rows[step] : step;")
        put("if (row >= 0) {")
        for k, value in enumerate(self.low.kept):
            self._keep(k, value)
        put("}")
        self._hand_on()
        put("}")
        self._return()
        put("}\n}")
        return "\n".join(self.lines) + "\n"

    def _pointers(self) -> None:
        for i, op in enumerate(self._inputs):
            kind = MEMORY[op.kind]
            self.put(f"const {kind}* p{i} = (const {kind}*)in[{i}]; (void)p{i};")
        for k, value in enumerate([*self.low.carry, *self.low.kept]):
            kind = MEMORY[value.kind]
            self.put(f"{kind}* o{k} = ({kind}*)out[{k}]; (void)o{k};")

    def _loads(self, which: Sequence[int], ahead: str) -> None:
        """Bring inputs of each chain, and what is carried, to where they can be used."""
        for i in which:
            op = self._inputs[i]
            axis = self.low.per_chain[i]
            count = math.prod(op.shape)
            if axis is None:
                if i < self._carry:
                    self.put(f"{SHARED[op.kind]} b{i}[{count}];")
                    self.put(f"for (L e = 0; e < {count}; e++) b{i}[e] = p{i}[e];")
                elif ahead:
                    self.put(f"const {MEMORY[op.kind]}* b{i} = p{i}{ahead.format(count)};")
                else:
                    self.put(f"const {MEMORY[op.kind]}* b{i} = p{i};")
                self.put(f"(void)b{i};")
                continue
            after = math.prod(op.shape[axis:])
            start = f"p{i}{ahead.format(count * self._chains)}"
            self.put(f"{VECTORS[op.kind]} b{i}[{count}];")
            where = "e" if axis == 0 else f"e / {after} * {after * self._chains} + e % {after}"
            self.put(
                f"for (L e = 0; e < {count}; e++) b{i}[e] = load({start} + {where}, q, {after});"
            )

    def _keep(self, k: int, value: Value) -> None:
        """Write one thing that a step keeps."""
        number = len(self.low.carry) + k
        factor = self.low.sums[k]
        count = math.prod(value.shape)
        if factor is not None:
            for _ in self.nest(value.shape):
                what = self.element(value, index_of(value), True)
                place = f"row * {count} + {entry(value.shape, contiguous(value.shape))}"
                self.put(f"o{number}[{place}] += (T){factor!r} * total({what}, valid);")
            return
        self._write(number, value, f"row * {count * self._count(value)} + ")

    def _count(self, value: Value) -> int:
        return self._chains if value.axis is not None else 1

    def _write(self, number: int, value: Value, ahead: str) -> None:
        if value.axis is None:
            self.put("if (block == 0)")
            self.put("{")
            for _ in self.nest(value.shape):
                what = self.element(value, index_of(value), False)
                place = entry(value.shape, contiguous(value.shape))
                self.put(f"o{number}[{ahead}{place}] = {what};")
            self.put("}")
            return
        full = value.full(self._chains)
        strides = contiguous(full)
        apart = strides[value.axis]
        for _ in self.nest(value.shape):
            what = self.element(value, index_of(value), True)
            place = entry(value.shape, without(strides, value.axis))
            start = f"o{number} + {ahead}block * W * {apart} + {place}"
            self.put(f"store({start}, {apart}, {what}, valid);")

    def _hand_on(self) -> None:
        """Take what a step gave for what the next begins with."""
        for i, value in enumerate(self.low.carry):
            op = self._inputs[i]
            if op.chain != (value.axis is not None) and not op.chain:
                raise Unsupported("what all chains share becomes each chain's own")
            for _ in self.nest(value.shape):
                what = self.element(value, index_of(value), op.chain)
                self.put(f"b{i}[{entry(value.shape, contiguous(value.shape))}] = {what};")

    def _return(self) -> None:
        for i, op in enumerate(self._inputs[: self._carry]):
            axis = self.low.per_chain[i]
            self._write(i, Value(i, op.shape, contiguous(op.shape), 0, axis, op.kind), "")
