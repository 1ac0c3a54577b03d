"""`loop` makes a loop of a step by a C++ function of our own, from the disk where it is kept."""

import ctypes
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ozaki.foundation.lazy import lazy
from ozaki.kernels import code_cache
from ozaki.kernels.loops.values import Unsupported

# taken only where a loop is compiled
lowering = lazy("ozaki.kernels.loops.lowering")
sources = lazy("ozaki.kernels.loops.source")

FLAGS = [
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
]
RANGE = 32  # least blocks of chains that a thread takes
RANGES = 8  # most ranges of blocks; how sums are rounded must not depend on the threads
DTYPES = {str(d): d for d in (torch.float32, torch.float64, torch.bool, torch.int64)}


def loop(
    step: GraphModule, carry: list[Tensor], noise: list[Tensor], rest: list[Tensor]
) -> Callable[..., list[Tensor]]:
    """Do as `compiled_loop` does.

    Raises:
        Unsupported: the graph holds something that no C++ is written for, or there is no compiler.
    """
    tensors = [*carry, *noise, *rest]
    if sys.platform == "win32" or any(t.device.type != "cpu" or t.numel() == 0 for t in tensors):
        raise Unsupported("not a processor that is known")
    kinds = [(tuple(t.shape), t.dtype) for t in (*carry, *(p[0] for p in noise), *rest)]
    compiler = code_cache.compiler()
    if compiler is None:
        raise Unsupported("no compiler")
    key = code_cache.key(step.code, kinds, len(carry), FLAGS, _own(), compiler)
    found = code_cache.load(key)
    if found is None:
        text, notes = _written(step, carry, noise, rest)
        found = code_cache.store(key, text, notes, [compiler, *FLAGS], _libraries())
    library, notes = found
    if "unsupported" in notes:
        raise Unsupported(notes["unsupported"])
    return _Loop(ctypes.CDLL(str(library)), notes, tensors, len(carry), len(noise))


def _written(
    step: GraphModule, carry: list[Tensor], noise: list[Tensor], rest: list[Tensor]
) -> tuple[str | None, dict[str, Any]]:
    """Write the C++ function, and note what it gives; None where none can be written."""
    chains = carry[0].shape[0]
    try:
        graph = lowering.plain_graph(step, [*carry, *(p[0] for p in noise), *rest])
        low = lowering.lower(graph, len(carry), len(noise), chains)
        body = sources.source(low, len(carry), len(noise), chains)
    except Unsupported as why:
        return None, {"unsupported": str(why)}
    kept = lowering.results(graph)[len(carry) :]
    width = _width(low.dtype)
    notes = {
        "kept": [[list(t.shape), str(t.dtype)] for t in kept],
        "sums": [factor is not None for factor in low.sums],
        "blocks": -(-chains // width),
    }
    letter = "f" if low.dtype == torch.float32 else "d"
    lines = [
        f"#define OZAKI_T {'float' if letter == 'f' else 'double'}",
        f"#define OZAKI_W {width}",
        f"#define OZAKI_KIND {letter}{width}",
    ]
    if _has_sleef(letter, width):
        lines.append("#define OZAKI_SLEEF")
    return "\n".join([*lines, _prelude(), body]), notes


def _width(dtype: torch.dtype) -> int:
    """Return how many numbers a vector register holds."""
    wide = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return (32 if wide else 16) // dtype.itemsize


def _prelude() -> str:
    return resources.files("ozaki.kernels.loops").joinpath("prelude.h").read_text()


@cache
def _own() -> str:
    """Return the text that decides what is written."""
    files = sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".py", ".h"))
    return "".join(p.read_text() for p in files)


def _torch_library() -> Path:
    """Return torch's library, which has exp and log of vectors."""
    name = "libtorch_cpu.dylib" if sys.platform == "darwin" else "libtorch_cpu.so"
    return Path(torch.__file__).parent / "lib" / name


def _libraries() -> list[str]:
    library = _torch_library()
    if not library.exists():
        return []
    found = [f"-L{library.parent}", "-ltorch_cpu"]
    return found if sys.platform == "darwin" else [*found, "-Wl,--allow-shlib-undefined"]


def _has_sleef(letter: str, width: int) -> bool:
    try:
        library = ctypes.CDLL(str(_torch_library()))
    except OSError:
        return False
    return all(hasattr(library, f"Sleef_{f}{letter}{width}_u10") for f in ("exp", "log", "tanh"))


class _Loop:
    """A compiled function, and what has to be known to call it."""

    def __init__(
        self, library: Any, notes: dict[str, Any], like: list[Tensor], carry: int, noise: int
    ):
        self._function, self._counts = library.ozaki_loop, (carry, noise)
        self._function.restype = None
        self._kinds = [(t.shape, t.dtype) for t in like]
        self._kept = [(shape, DTYPES[dtype]) for shape, dtype in notes["kept"]]
        self._sums, self._blocks = notes["sums"], notes["blocks"]
        count = min(RANGES, max(1, self._blocks // RANGE))
        cuts = [self._blocks * i // count for i in range(count + 1)]
        self._ranges = list(pairwise(cuts))

    def __call__(self, *tensors: Tensor, rows: Tensor | None = None) -> list[Tensor]:
        carry, noise = self._counts
        inputs = [t.contiguous() for t in tensors]
        steps = len(inputs[carry])
        for i, (t, (shape, dtype)) in enumerate(zip(inputs, self._kinds, strict=True)):
            wanted = (steps, *shape[1:]) if carry <= i < carry + noise else tuple(shape)
            if tuple(t.shape) != wanted or t.dtype != dtype:
                raise ValueError(
                    f"argument {i} of a compiled loop must be {wanted}, {dtype}, but is "
                    f"{tuple(t.shape)}, {t.dtype}"
                )
        count = steps
        if rows is not None:
            rows = rows.to(torch.int64).contiguous()
            count = int(rows.max()) + 1 if len(rows) else 0
        moved = [torch.empty_like(t) for t in inputs[:carry]]
        kept: list[Tensor] = []
        for (shape, dtype), summed in zip(self._kept, self._sums, strict=True):
            sizes = [len(self._ranges), count, *shape] if summed else [count, *shape]
            kept.append((torch.zeros if summed else torch.empty)(sizes, dtype=dtype))
        self._run(inputs, moved, kept, rows, steps)
        return [
            *moved,
            *(t.sum(0) if s else t for t, s in zip(kept, self._sums, strict=True)),
        ]

    def _run(
        self,
        inputs: list[Tensor],
        moved: list[Tensor],
        kept: list[Tensor],
        rows: Tensor | None,
        steps: int,
    ) -> None:
        given = _pointers(inputs)
        order = None if rows is None else ctypes.c_void_p(rows.data_ptr())

        def part(i: int) -> None:
            own = [t[i] if s else t for t, s in zip(kept, self._sums, strict=True)]
            first, last = self._ranges[i]
            self._function(
                given,
                _pointers([*moved, *own]),
                order,
                ctypes.c_int64(steps),
                ctypes.c_int64(first),
                ctypes.c_int64(last),
            )

        threads = min(torch.get_num_threads(), len(self._ranges))
        if threads == 1:
            for i in range(len(self._ranges)):
                part(i)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, range(len(self._ranges))))


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
