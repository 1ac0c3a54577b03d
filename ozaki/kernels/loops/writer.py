"""`Writer` writes what is computed entry by entry, and what has loops of its own.

Operations that loop over the same entries stand in one loop, and hand numbers on in registers.
"""

import math
from collections.abc import Iterator
from typing import Any

from ozaki.kernels.loops.lowering import Lowered
from ozaki.kernels.loops.schedule import Group, Schedule, Section, schedule
from ozaki.kernels.loops.values import Op, Sizes, Unsupported, Value, contiguous, without

TILE = 8  # columns of a product that are summed side by side
REGISTER = 32  # bytes of a vector
LARGE = 512  # vectors of a buffer that does not lie on the stack
MOST = 2**25  # bytes of a thread's buffers
STACK = 2**18  # of those, and of constants that are computed, on the stack
SHARED = {"float": "T", "bool": "bool", "int": "L"}
VECTORS = {"float": "V", "bool": "M"}
STARTS = {"sum": "0", "prod": "1", "max": "-inf(T{})", "min": "inf(T{})", "any": "0", "all": "1"}
JOINS = {
    "sum": "{0} + {1}",
    "prod": "{0} * {1}",
    "max": "max_({0}, {1})",
    "min": "min_({0}, {1})",
    "any": "or_({0}, {1})",
    "all": "and_({0}, {1})",
}


class Lines:
    """Lines of C++, with what a lowered step needs to name its values."""

    def __init__(self, low: Lowered):
        self.low = low
        self.plan: Schedule = schedule(low)
        self.lines: list[str] = []

    def put(self, line: str) -> None:
        """Add a line."""
        self.lines.append(line)

    def buffer(self, i: int) -> str:
        """Return the name of an operation's buffer."""
        if i in self.plan.slots:
            return f"s{self.plan.slots[i]}"
        return f"b{i}"

    def type(self, op: Op) -> str:
        """Return the C++ type of an entry of a result."""
        return VECTORS[op.kind] if op.chain else SHARED[op.kind]

    def declare(self, i: int) -> None:
        """Declare a buffer, where it is none that is used anew."""
        op = self.low.ops[i]
        if i in self.plan.stored and i not in self.plan.slots:
            size = math.prod(op.shape)
            if size * REGISTER > STACK:
                raise Unsupported("large constants that are computed")
            self.put(f"{self.type(op)} b{i}[{size}];")

    def element(self, value: Value, index: str, chain: bool, local: bool = False) -> str:
        """Write an entry of a value, for one chain or for all chains of a block."""
        if value.op < 0:
            plain = _literal(value.number)
            if value.kind == "float":
                return f"B((T){plain})" if chain else f"(T){plain}"
            if value.kind == "bool":
                return f"BM({plain})" if chain else f"(bool){plain}"
            return f"(L){plain}"
        op = self.low.ops[value.op]
        found = f"v{value.op}" if local else f"{self.buffer(value.op)}[{index}]"
        if op.name == "input" and op.kind == "bool" and not op.chain:
            found = f"({found} != 0)"
        if chain and not op.chain and value.kind != "int":
            return f"{'B' if value.kind == 'float' else 'BM'}({found})"
        return found

    def nest(self, shape: Sizes) -> Iterator[int]:
        """Open loops over the axes of more than one entry."""
        count = 0
        for n in shape:
            if n != 1:
                self.put(f"for (L i{count} = 0; i{count} < {n}; i{count}++) {{")
                count += 1
        yield count
        self.put("}" * count)


class Writer(Lines):
    """Writes operations, group by group."""

    def section(self, section: Section) -> None:
        """Write the operations of a section."""
        for group in self.plan.groups[section]:
            if group.fused:
                self._fused(group)
            else:
                (i,) = group.members
                self.declare(i)
                getattr(self, "_" + self.low.ops[i].name)(i, self.low.ops[i])

    def _fused(self, group: Group) -> None:
        ops, members = self.low.ops, group.members
        for i in members:
            self.declare(i)
        self.put("{")
        sums = [i for i in members if ops[i].name == "reduce"]
        whole = {i for i in sums if math.prod(ops[i].shape) == 1}
        for i in sums:
            self._begin_sum(i, i in whole)
        for _ in self.nest(group.loop):
            for i in members:
                self._member(i, set(members), i in whole)
        for i in whole:
            self.put(f"{self.buffer(i)}[0] = a{i};")
        self.put("}")

    def _begin_sum(self, i: int, whole: bool) -> None:
        op = self.low.ops[i]
        start = STARTS[op.how[0]]
        if op.chain:
            start = f"BM({start})" if op.kind == "bool" else f"B({start})"
        if whole:
            self.put(f"{self.type(op)} a{i} = {start};")
        else:
            size = math.prod(op.shape)
            self.put(f"for (L e = 0; e < {size}; e++) {self.buffer(i)}[e] = {start};")

    def _member(self, i: int, group: set[int], whole: bool) -> None:
        """Write one operation of a loop."""
        op = self.low.ops[i]
        args = []
        if op.name != "gather":
            args = [
                self.element(
                    v,
                    index_of(v),
                    op.chain,
                    v.op in group and self.low.ops[v.op].name != "reduce",
                )
                for v in op.args
            ]
        if op.name == "reduce":
            how, own = op.how
            strides = contiguous(op.shape)
            wide = tuple(0 if d in own else s for d, s in enumerate(strides))
            place = entry(op.args[0].shape, wide)
            target = f"a{i}" if whole else f"{self.buffer(i)}[{place}]"
            self.put(f"{target} = {JOINS[how].format(target, args[0])};")
            return
        found = self._gathered(op) if op.name == "gather" else op.how[0].format(*args)
        self.put(f"const {self.type(op)} v{i} = {found};")
        if i in self.plan.stored:
            self.put(f"{self.buffer(i)}[{entry(op.shape, contiguous(op.shape))}] = v{i};")

    def _gathered(self, op: Op) -> str:
        x, where = op.args
        size, stride = op.how
        place = self.element(where, index_of(where), False)
        return self.element(x, f"{index_of(x)} + {stride} * at({place}, {size})", op.chain)

    def _dot(self, i: int, op: Op) -> None:
        """Write a product, some columns side by side."""
        a, b = op.args
        full = a.shape
        shape, k = full[:-1], full[-1]
        kind = self.type(op)
        tiled = [d for d, n in enumerate(shape) if n > 1 and 0 in (a.strides[d], b.strides[d])]
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
                self.put(f"for (L i{d} = 0; i{d} < {n}; i{d}++) {{")
                depth += 1
        parts = [(1, 0, 1)]
        if tile is not None:
            n = shape[tile]
            cut = n - n % TILE
            parts = [p for p in ((TILE, 0, cut), (n - cut, cut, n)) if p[1] < p[2]]
        for width, start, end in parts:
            if tile is not None:
                self.put(f"for (L i{tile} = {start}; i{tile} < {end}; i{tile} += {width}) {{")
            for w in range(width):
                zero = "B(0)" if op.chain else "0"
                self.put(f"{kind} a{w} = {zero};")
            self.put(f"for (L i{len(shape)} = 0; i{len(shape)} < {k}; i{len(shape)}++) {{")
            for w in range(width):
                x, y = (self._factor(v, _place(v, names, tile, w), op.chain) for v in (a, b))
                self.put(f"a{w} += {x} * {y};")
            self.put("}")
            for w in range(width):
                out = Value(i, shape, contiguous(shape))
                self.put(f"{self.buffer(i)}[{_place(out, names, tile, w)}] = a{w};")
            if tile is not None:
                self.put("}")
        self.put("}" * depth)

    def _vector(self, value: Value) -> bool:
        return value.op >= 0 and self.low.ops[value.op].chain

    def _factor(self, value: Value, index: str, chain: bool) -> str:
        if chain and value.op >= 0 and not self._vector(value):
            return f"{self.buffer(value.op)}[{index}]"  # the compiler spreads it over the chains
        return self.element(value, index, chain)

    def _assemble(self, i: int, op: Op) -> None:
        writes = op.how
        where = op.args[len(writes)] if len(op.args) > len(writes) else None
        for value, (strides, offset, special) in zip(op.args, writes, strict=False):
            for _ in self.nest(value.shape):
                place = f"{offset} + {entry(value.shape, strides)}"
                add = ""
                if special is not None:
                    size, stride, accumulate = special
                    assert where is not None
                    index = self.element(where, index_of(where), False)
                    place += f" + {stride} * at({index}, {size})"
                    add = "+" if accumulate else ""
                what = self.element(value, index_of(value), op.chain)
                self.put(f"{self.buffer(i)}[{place}] {add}= {what};")

    def _cholesky(self, i: int, op: Op) -> None:
        self._matrices(i, op, "cholesky({n}, {a}, {out});")

    def _eigh(self, i: int, op: Op) -> None:
        self._matrices(i, op, "eigh({n}, {a}, {out} + {n} * {n}, {out});")

    def _matrices(self, i: int, op: Op, call: str) -> None:
        """Call a function of a matrix for each of them; the matrices lie contiguous."""
        (x,) = op.args
        n = x.shape[-1]
        strides = contiguous(op.shape)
        for _ in self.nest(x.shape[:-2]):
            a = f"{self.buffer(x.op)} + {entry(x.shape[:-2], x.strides[:-2])}"
            out = f"{self.buffer(i)} + {entry(x.shape[:-2], strides[:-2])}"
            self.put(call.format(n=n, a=a, out=out))

    def _solve(self, i: int, op: Op) -> None:
        b, a = op.args
        upper, unit = op.how
        n, columns = op.shape[-2:]
        strides = contiguous(op.shape)
        for _ in self.nest(op.shape):
            what = self.element(b, index_of(b), op.chain)
            self.put(f"{self.buffer(i)}[{entry(op.shape, strides)}] = {what};")
        if a.op < 0:
            raise Unsupported("a matrix of one number")
        for _ in self.nest(op.shape[:-2]):
            matrix = f"{self.buffer(a.op)} + {a.offset} + {entry(a.shape[:-2], a.strides[:-2])}"
            out = f"{self.buffer(i)} + {entry(op.shape[:-2], strides[:-2])}"
            s0, s1 = a.strides[-2:]
            flags = f"{int(upper)}, {int(unit)}"
            self.put(f"solve({n}, {columns}, {matrix}, {s0}, {s1}, {out}, {flags});")

    def _scan(self, i: int, op: Op) -> None:
        (x,), (own,) = op.args, op.how
        n = x.shape[own]
        rest = without(x.shape, own)
        strides = contiguous(op.shape)
        moved = Value(x.op, rest, without(x.strides, own), x.offset)
        for _ in self.nest(rest):
            self.put(f"{self.type(op)} a{i} = {'B(0)' if op.chain else '0'};")
            self.put(f"for (L e = 0; e < {n}; e++) {{")
            index = f"{index_of(moved)} + e * {x.strides[own]}"
            self.put(f"a{i} = a{i} + {self.element(x, index, op.chain)};")
            place = f"{entry(rest, without(strides, own))} + e * {strides[own]}"
            self.put(f"{self.buffer(i)}[{place}] = a{i};\n}}")


def _literal(what: Any) -> str:
    if isinstance(what, bool):
        return str(int(what))
    if isinstance(what, float) and not math.isfinite(what):
        if math.isnan(what):
            return "NAN"
        return "INFINITY" if what > 0 else "(-INFINITY)"
    return f"({what!r})"


def entry(shape: Sizes, strides: Sizes) -> str:
    """Write the place of an entry in loops over the axes of more than one entry."""
    strides = tuple(s for s, n in zip(strides, shape, strict=True) if n != 1)
    parts = [f"i{d} * {s}" if s != 1 else f"i{d}" for d, s in enumerate(strides) if s]
    return " + ".join(parts) or "0"


def index_of(value: Value) -> str:
    """Write the place in its buffer of an entry of a view."""
    place = entry(value.shape, value.strides)
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
