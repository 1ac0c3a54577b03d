"""`source` writes a lowered step as one C++ function: for blocks of chains, for steps.

A block is as many chains as a vector register has places, so that every number of a chain is a
vector, whatever is done with it. All that a block needs stays in the nearest memory.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ozaki.kernels.loops.lowering import Lowered
from ozaki.kernels.loops.schedule import Group, Schedule, Section, schedule
from ozaki.kernels.loops.values import Op, Sizes, Unsupported, Value, contiguous, without

TILE = 4  # columns of a product that are summed side by side
REGISTER = 32  # bytes of a vector
LARGE = 512  # vectors of a buffer that does not lie on the stack
MOST = 2**25  # bytes of a thread's buffers
STACK = 2**18  # of those, and of constants that are computed, on the stack
SHARED = {"float": "T", "bool": "bool", "int": "L"}
VECTORS = {"float": "V", "bool": "M"}
MEMORY = {"float": "T", "bool": "uint8_t", "int": "L"}
STARTS = {"sum": "0", "prod": "1", "max": "-inf(T{})", "min": "inf(T{})", "any": "0", "all": "1"}
JOINS = {
    "sum": "{0} + {1}",
    "prod": "{0} * {1}",
    "max": "max_({0}, {1})",
    "min": "min_({0}, {1})",
    "any": "or_({0}, {1})",
    "all": "and_({0}, {1})",
}


def source(low: Lowered, carry: int, noise: int, chains: int) -> str:
    """Return the C++ function of a loop.

    Raises:
        Unsupported: a step that needs too much memory.
    """
    return _Source(low, carry, noise, chains).text()


class _Source:
    def __init__(self, low: Lowered, carry: int, noise: int, chains: int):
        self._low, self._carry, self._noise, self._chains = low, carry, noise, chains
        self._plan: Schedule = schedule(low)
        self._lines: list[str] = []
        self._inputs = [op for op in low.ops if op.name == "input"]

    def text(self) -> str:
        plan = self._plan
        heap = sum(n for n, _ in plan.sizes if n >= LARGE)
        stack = sum(n for n, _ in plan.sizes if n < LARGE)
        if heap * REGISTER > MOST or stack * REGISTER > STACK:
            raise Unsupported(f"{(heap + stack) * REGISTER} bytes of buffers")
        put = self._put
        put('extern "C" void ozaki_loop(void** in, void** out, const L* rows, L steps,')
        put("                           L first, L last) {")
        put(f"const L chains = {self._chains}; (void)chains; (void)rows;")
        self._pointers()
        constants = range(self._carry + self._noise, len(self._inputs))
        shared = [i for i in constants if self._low.per_chain[i] is None]
        self._loads(shared, "")
        self._section((False, False))
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
        self._section((True, False))
        for n, (count, kind) in enumerate(plan.sizes):
            if count < LARGE:
                put(f"{VECTORS[kind]} s{n}[{count}];")
        put("for (L step = 0; step < steps; step++) {")
        self._loads(range(self._carry, self._carry + self._noise), " + step * {0}")
        self._section((False, True))
        self._section((True, True))
        put("const L row = rows ? rows[step] : step;")
        put("if (row >= 0) {")
        for k, value in enumerate(self._low.kept):
            self._keep(k, value)
        put("}")
        self._hand_on()
        put("}")
        self._return()
        put("}\n}")
        return "\n".join(self._lines) + "\n"

    def _put(self, line: str) -> None:
        self._lines.append(line)

    def _pointers(self) -> None:
        for i, op in enumerate(self._inputs):
            kind = MEMORY[op.kind]
            self._put(f"const {kind}* p{i} = (const {kind}*)in[{i}]; (void)p{i};")
        for k, value in enumerate([*self._low.carry, *self._low.kept]):
            kind = MEMORY[value.kind]
            self._put(f"{kind}* o{k} = ({kind}*)out[{k}]; (void)o{k};")

    def _loads(self, which: Sequence[int], ahead: str) -> None:
        """Bring inputs of each chain, and what is carried, to where they can be used."""
        for i in which:
            op = self._inputs[i]
            axis = self._low.per_chain[i]
            count = math.prod(op.shape)
            if axis is None:
                if i < self._carry:
                    self._put(f"{SHARED[op.kind]} b{i}[{count}];")
                    self._put(f"for (L e = 0; e < {count}; e++) b{i}[e] = p{i}[e];")
                elif ahead:
                    self._put(f"const {MEMORY[op.kind]}* b{i} = p{i}{ahead.format(count)};")
                else:
                    self._put(f"const {MEMORY[op.kind]}* b{i} = p{i};")
                self._put(f"(void)b{i};")
                continue
            after = math.prod(op.shape[axis:])
            start = f"p{i}{ahead.format(count * self._chains)}"
            self._put(f"{VECTORS[op.kind]} b{i}[{count}];")
            where = "e" if axis == 0 else f"e / {after} * {after * self._chains} + e % {after}"
            self._put(
                f"for (L e = 0; e < {count}; e++) b{i}[e] = load({start} + {where}, q, {after});"
            )

    def _section(self, section: Section) -> None:
        for group in self._plan.groups[section]:
            if group.fused:
                self._fused(group)
            else:
                (i,) = group.members
                self._declare(i)
                getattr(self, "_" + self._low.ops[i].name)(i, self._low.ops[i])

    def _buffer(self, i: int) -> str:
        if i in self._plan.slots:
            return f"s{self._plan.slots[i]}"
        return f"b{i}"

    def _type(self, op: Op) -> str:
        return VECTORS[op.kind] if op.chain else SHARED[op.kind]

    def _declare(self, i: int) -> None:
        """Declare a buffer, where it is none that is used anew."""
        op = self._low.ops[i]
        if i in self._plan.stored and i not in self._plan.slots:
            size = math.prod(op.shape)
            if size * REGISTER > STACK:
                raise Unsupported("large constants that are computed")
            self._put(f"{self._type(op)} b{i}[{size}];")

    def _element(self, value: Value, index: str, chain: bool, local: bool = False) -> str:
        """Write an entry of a value, for one chain or for all chains of a block."""
        if value.op < 0:
            plain = _literal(value.number)
            if value.kind == "float":
                return f"B((T){plain})" if chain else f"(T){plain}"
            if value.kind == "bool":
                return f"BM({plain})" if chain else f"(bool){plain}"
            return f"(L){plain}"
        op = self._low.ops[value.op]
        found = f"v{value.op}" if local else f"{self._buffer(value.op)}[{index}]"
        if op.name == "input" and op.kind == "bool" and not op.chain:
            found = f"({found} != 0)"
        if chain and not op.chain and value.kind != "int":
            return f"{'B' if value.kind == 'float' else 'BM'}({found})"
        return found

    def _nest(self, shape: Sizes, pragma: bool = False) -> Iterator[int]:
        """Open loops over the axes of more than one entry."""
        count = 0
        for n in shape:
            if n != 1:
                self._put(f"for (L i{count} = 0; i{count} < {n}; i{count}++) {{")
                count += 1
        yield count
        self._put("}" * count)

    def _fused(self, group: Group) -> None:
        ops, members = self._low.ops, group.members
        for i in members:
            self._declare(i)
        self._put("{")
        sums = [i for i in members if ops[i].name == "reduce"]
        whole = {i for i in sums if math.prod(ops[i].shape) == 1}
        for i in sums:
            self._begin_sum(i, i in whole)
        for _ in self._nest(group.loop):
            for i in members:
                self._member(i, set(members), i in whole)
        for i in whole:
            self._put(f"{self._buffer(i)}[0] = a{i};")
        self._put("}")

    def _begin_sum(self, i: int, whole: bool) -> None:
        op = self._low.ops[i]
        start = STARTS[op.how[0]]
        if op.chain:
            start = f"BM({start})" if op.kind == "bool" else f"B({start})"
        if whole:
            self._put(f"{self._type(op)} a{i} = {start};")
        else:
            size = math.prod(op.shape)
            self._put(f"for (L e = 0; e < {size}; e++) {self._buffer(i)}[e] = {start};")

    def _member(self, i: int, group: set[int], whole: bool) -> None:
        """Write one operation of a loop."""
        op = self._low.ops[i]
        if op.name == "gather":
            found = self._gathered(op)
        else:
            args = [
                self._element(
                    v,
                    _index(v),
                    op.chain,
                    v.op in group and self._low.ops[v.op].name != "reduce",
                )
                for v in op.args
            ]
        if op.name == "reduce":
            how, own = op.how
            strides = contiguous(op.shape)
            wide = tuple(0 if d in own else s for d, s in enumerate(strides))
            place = _at(op.args[0].shape, wide)
            target = f"a{i}" if whole else f"{self._buffer(i)}[{place}]"
            self._put(f"{target} = {JOINS[how].format(target, args[0])};")
            return
        if op.name == "point":
            found = op.how[0].format(*args)
        self._put(f"const {self._type(op)} v{i} = {found};")
        if i in self._plan.stored:
            self._put(f"{self._buffer(i)}[{_at(op.shape, contiguous(op.shape))}] = v{i};")

    def _gathered(self, op: Op) -> str:
        x, where = op.args
        size, stride = op.how
        place = self._element(where, _index(where), False)
        return self._element(x, f"{_index(x)} + {stride} * at({place}, {size})", op.chain)

    def _dot(self, i: int, op: Op) -> None:
        """Write a product, some columns side by side."""
        a, b = op.args
        full = a.shape
        shape, k = full[:-1], full[-1]
        kind = self._type(op)
        tiled = [d for d, n in enumerate(shape) if n >= TILE and 0 in (a.strides[d], b.strides[d])]
        # along the tile the vectors of the chains stay the same
        tiled.sort(
            key=lambda d: (
                (self._vector(a) and a.strides[d] == 0) or (self._vector(b) and b.strides[d] == 0)
            )
        )
        tile = tiled[-1] if tiled else None
        names = {d: f"i{d}" for d in range(len(full))}
        depth = 0
        for d, n in enumerate(shape):
            if n != 1 and d != tile:
                self._put(f"for (L i{d} = 0; i{d} < {n}; i{d}++) {{")
                depth += 1
        parts = [(1, 0, 1)]
        if tile is not None:
            n = shape[tile]
            cut = n - n % TILE
            parts = [(TILE, 0, cut)] + ([(1, cut, n)] if cut < n else [])
        for width, start, end in parts:
            if tile is not None:
                self._put(f"for (L i{tile} = {start}; i{tile} < {end}; i{tile} += {width}) {{")
            for w in range(width):
                zero = "B(0)" if op.chain else "0"
                self._put(f"{kind} a{w} = {zero};")
            self._put(f"for (L i{len(shape)} = 0; i{len(shape)} < {k}; i{len(shape)}++) {{")
            for w in range(width):
                x, y = (self._factor(v, _place(v, names, tile, w), op.chain) for v in (a, b))
                self._put(f"a{w} += {x} * {y};")
            self._put("}")
            for w in range(width):
                out = Value(i, shape, contiguous(shape))
                self._put(f"{self._buffer(i)}[{_place(out, names, tile, w)}] = a{w};")
            if tile is not None:
                self._put("}")
        self._put("}" * depth)

    def _vector(self, value: Value) -> bool:
        return value.op >= 0 and self._low.ops[value.op].chain

    def _factor(self, value: Value, index: str, chain: bool) -> str:
        if chain and value.op >= 0 and not self._vector(value):
            return f"{self._buffer(value.op)}[{index}]"  # the compiler spreads it over the chains
        return self._element(value, index, chain)

    def _assemble(self, i: int, op: Op) -> None:
        writes = op.how
        where = op.args[len(writes)] if len(op.args) > len(writes) else None
        for value, (strides, offset, special) in zip(op.args, writes, strict=False):
            for _ in self._nest(value.shape):
                place = f"{offset} + {_at(value.shape, strides)}"
                add = ""
                if special is not None:
                    size, stride, accumulate = special
                    assert where is not None
                    index = self._element(where, _index(where), False)
                    place += f" + {stride} * at({index}, {size})"
                    add = "+" if accumulate else ""
                what = self._element(value, _index(value), op.chain)
                self._put(f"{self._buffer(i)}[{place}] {add}= {what};")

    def _cholesky(self, i: int, op: Op) -> None:
        self._matrices(i, op, "cholesky({n}, {a}, {out});")

    def _eigh(self, i: int, op: Op) -> None:
        self._matrices(i, op, "eigh({n}, {a}, {out} + {n} * {n}, {out});")

    def _matrices(self, i: int, op: Op, call: str) -> None:
        """Call a function of a matrix for each of them; the matrices lie contiguous."""
        (x,) = op.args
        n = x.shape[-1]
        strides = contiguous(op.shape)
        for _ in self._nest(x.shape[:-2]):
            a = f"{self._buffer(x.op)} + {_at(x.shape[:-2], x.strides[:-2])}"
            out = f"{self._buffer(i)} + {_at(x.shape[:-2], strides[:-2])}"
            self._put(call.format(n=n, a=a, out=out))

    def _solve(self, i: int, op: Op) -> None:
        b, a = op.args
        upper, unit = op.how
        n, columns = op.shape[-2:]
        strides = contiguous(op.shape)
        for _ in self._nest(op.shape):
            what = self._element(b, _index(b), op.chain)
            self._put(f"{self._buffer(i)}[{_at(op.shape, strides)}] = {what};")
        if a.op < 0:
            raise Unsupported("a matrix of one number")
        for _ in self._nest(op.shape[:-2]):
            matrix = f"{self._buffer(a.op)} + {a.offset} + {_at(a.shape[:-2], a.strides[:-2])}"
            out = f"{self._buffer(i)} + {_at(op.shape[:-2], strides[:-2])}"
            s0, s1 = a.strides[-2:]
            flags = f"{int(upper)}, {int(unit)}"
            self._put(f"solve({n}, {columns}, {matrix}, {s0}, {s1}, {out}, {flags});")

    def _scan(self, i: int, op: Op) -> None:
        (x,), (own,) = op.args, op.how
        n = x.shape[own]
        rest = without(x.shape, own)
        strides = contiguous(op.shape)
        moved = Value(x.op, rest, without(x.strides, own), x.offset)
        for _ in self._nest(rest):
            self._put(f"{self._type(op)} a{i} = {'B(0)' if op.chain else '0'};")
            self._put(f"for (L e = 0; e < {n}; e++) {{")
            index = f"{_index(moved)} + e * {x.strides[own]}"
            self._put(f"a{i} = a{i} + {self._element(x, index, op.chain)};")
            place = f"{_at(rest, without(strides, own))} + e * {strides[own]}"
            self._put(f"{self._buffer(i)}[{place}] = a{i};\n}}")

    def _keep(self, k: int, value: Value) -> None:
        """Write one thing that a step keeps."""
        number = len(self._low.carry) + k
        factor = self._low.sums[k]
        count = math.prod(value.shape)
        if factor is not None:
            for _ in self._nest(value.shape):
                what = self._element(value, _index(value), True)
                place = f"row * {count} + {_at(value.shape, contiguous(value.shape))}"
                self._put(f"o{number}[{place}] += (T){factor!r} * total({what}, valid);")
            return
        self._write(number, value, f"row * {count * self._count(value)} + ")

    def _count(self, value: Value) -> int:
        return self._chains if value.axis is not None else 1

    def _write(self, number: int, value: Value, ahead: str) -> None:
        if value.axis is None:
            self._put("if (block == 0)")
            self._put("{")
            for _ in self._nest(value.shape):
                what = self._element(value, _index(value), False)
                place = _at(value.shape, contiguous(value.shape))
                self._put(f"o{number}[{ahead}{place}] = {what};")
            self._put("}")
            return
        full = value.full(self._chains)
        strides = contiguous(full)
        apart = strides[value.axis]
        for _ in self._nest(value.shape):
            what = self._element(value, _index(value), True)
            place = _at(value.shape, without(strides, value.axis))
            start = f"o{number} + {ahead}block * W * {apart} + {place}"
            self._put(f"store({start}, {apart}, {what}, valid);")

    def _hand_on(self) -> None:
        """Take what a step gave for what the next begins with."""
        for i, value in enumerate(self._low.carry):
            op = self._inputs[i]
            if op.chain != (value.axis is not None) and not op.chain:
                raise Unsupported("what all chains share becomes each chain's own")
            for _ in self._nest(value.shape):
                what = self._element(value, _index(value), op.chain)
                self._put(f"b{i}[{_at(value.shape, contiguous(value.shape))}] = {what};")

    def _return(self) -> None:
        for i, op in enumerate(self._inputs[: self._carry]):
            axis = self._low.per_chain[i]
            self._write(i, Value(i, op.shape, contiguous(op.shape), 0, axis, op.kind), "")


def _literal(what: Any) -> str:
    if isinstance(what, bool):
        return str(int(what))
    if isinstance(what, float) and not math.isfinite(what):
        if math.isnan(what):
            return "NAN"
        return "INFINITY" if what > 0 else "(-INFINITY)"
    return f"({what!r})"


def _at(shape: Sizes, strides: Sizes) -> str:
    """Write the place of an entry in loops over the axes of more than one entry."""
    strides = tuple(s for s, n in zip(strides, shape, strict=True) if n != 1)
    parts = [f"i{d} * {s}" if s != 1 else f"i{d}" for d, s in enumerate(strides) if s]
    return " + ".join(parts) or "0"


def _index(value: Value) -> str:
    place = _at(value.shape, value.strides)
    return f"{value.offset} + {place}" if value.offset else place


def _place(value: Value, names: dict[int, str], tile: int | None, ahead: int) -> str:
    """Write the place of an entry in the loops of a product."""
    parts = [str(value.offset + (ahead * value.strides[tile] if tile is not None else 0))]
    parts += [
        f"{names[d]} * {s}"
        for d, (s, n) in enumerate(zip(value.strides, value.shape, strict=True))
        if s and n != 1
    ]
    return " + ".join(parts)
