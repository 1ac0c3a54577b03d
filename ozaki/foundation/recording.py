"""`record` notes the tensor operations of a function, so that they can be done again without it.

A function of tensors may spend most of its time in Python: Pyro's handlers, torch.func. What it
does to the tensors is a list of operations. `record` calls it once and writes them down, and a
`Recording` does them again on other points, with the same bits. Tensors that the function finds
elsewhere, such as data and weights, are read where they are: what changes in them is seen.

`torch.fx.experimental.proxy_tensor.make_fx` does the same and more, but its first call imports
torch's compiler, for seconds.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
CLONE: Any = torch.ops.aten.clone.default
LIFT: Any = torch.ops.aten.lift_fresh.default
FILLING = {
    getattr(torch.ops.aten, name).default
    for name in ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
}
SMALL = 2**16  # most entries of a constant that is kept rather than made anew
_HERE = threading.local()

Form = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Shape, strides and dtype."""


class Slot(NamedTuple):
    """The place of a tensor among the operations."""

    number: int


class Step(NamedTuple):
    """One operation.

    Attributes:
        op: a torch operator.
        args, kwargs: what it is called with, slots in place of tensors.
        out: the slots of its results, in their order; None for those that are no new tensors.
        several: whether its results come in a tuple.
        expected: what it must return, or the shapes of that; None where it may return anything.
        pure: whether it changes nothing, so that it may be left out, or done once for two.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: tuple[Slot | None, ...] = ()
    several: bool = False
    expected: Any = None
    pure: bool = True

    @property
    def reads(self) -> Iterator[Slot]:
        """The slots that it is called with."""
        return (v for v in leaves((self.args, self.kwargs)) if isinstance(v, Slot))


class Recorder(TorchDispatchMode):
    """The mode in which torch hands over each of its operations.

    Args:
        inputs: the arguments of the function that is recorded.
        written_out: operation → a function that does it by others, or returns NotImplemented.

    Attributes:
        inputs: the slots of the arguments.
        steps: the operations so far.
        held: slot → a tensor that was found elsewhere, or made of Python's numbers.
        fresh: which of these were made of numbers.
        filled: slot → a tensor filled with one number, of which only the shape came from others.
        changed: the memories that an operation writes to.
        objection: why the operations cannot be done again, in words; None where they can.
    """

    def __init__(
        self, *inputs: Tensor, written_out: Mapping[Any, Callable[..., Any]] = MappingProxyType({})
    ):
        super().__init__()
        self.steps: list[Step] = []
        self.held: dict[Slot, Tensor] = {}
        self.fresh: set[Slot] = set()
        self.filled: dict[Slot, Tensor] = {}
        self.changed: set[int] = set()
        self.objection: str | None = None
        self._slots: Any = WeakTensorKeyDictionary()
        self._memory: list[int] = []  # of each slot
        self._forms: list[Form] = []  # likewise
        self._written_out = written_out
        self.inputs = [self._new(tensor, None) for tensor in inputs]
        self._moving = set(self.inputs)  # those that depend on the inputs

    def __enter__(self) -> "Recorder":
        _HERE.depth = getattr(_HERE, "depth", 0) + 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _HERE.depth -= 1
        super().__exit__(*error)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch asks it, and would import its compiler to keep it away from this mode."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Torch calls this in place of each of its operations."""
        kwargs = kwargs or {}
        if self.objection is not None:
            return func(*args, **kwargs)
        if func is LIFT:
            self._fresh(args[0])
            func = CLONE  # else two evaluations would share what they write to
        given = [t for t in leaves((args, kwargs)) if isinstance(t, Tensor)]
        if any(map(_wrapped, given)):
            with self:  # torch.func does it, to the tensor within
                return func(*args, **kwargs)
        if func in self._written_out:
            with self:
                found = self._written_out[func](*args, **kwargs)
            if found is not NotImplemented:
                return found
        for tensor in given:
            self._slot(tensor)
        found = func(*args, **kwargs)
        if any(map(_wrapped, leaves(found))):
            with self:  # what `.data` does comes from above torch.func: once more, to see below
                return func(*args, **kwargs)
        self._note(func, args, kwargs, given, found)
        return found

    def slot(self, tensor: Any) -> Slot:
        """The place of a result."""
        return self._slot(tensor)

    def volatile(self, slot: Slot) -> bool:
        """Whether what is in a slot is written to."""
        return self.memory(slot) in self.changed

    def memory(self, slot: Slot) -> int:
        """A number for the memory in which lies what is in a slot."""
        return self._memory[slot.number]

    def moves(self, slot: Slot) -> bool:
        """Whether what is in a slot depends on the inputs."""
        return slot in self._moving

    def form(self, slot: Slot) -> Form:
        """Shape, strides and dtype of what is in a slot."""
        return self._forms[slot.number]

    def _note(self, func: Any, args: Any, kwargs: Any, given: list[Tensor], found: Any) -> None:
        """Write down an operation that has been done."""
        slots = [self._slot(t) for t in given]
        moves = func not in FILLING and any(s in self._moving for s in slots)
        written = [self._slot(t) for t in _written(func, args, kwargs)]
        results = list(found) if isinstance(found, (list, tuple)) else [found]
        tensors = [t for t in results if isinstance(t, Tensor)]
        expected = None
        if _sized_by_values(func, given):
            expected = tuple(t.shape for t in tensors)
        elif not tensors and found is not None:
            expected = found
            if moves:
                self.objection = f"what is done depends on the values that {func} finds"
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.objection = f"{func} draws random numbers"
        before = {self.memory(s) for s in (*self.inputs, *self.held)}
        if any(self.memory(s) in before for s in written):
            self.objection = f"{func} writes to a tensor that was there before"
        self.changed.update(self.memory(s) for s in written)
        same = None if written or len(tensors) != 1 else _same(tensors[0], given)
        if same is not None and expected is None:
            self._slots[tensors[0]] = self._slot(same)
            return
        args, kwargs = mapped(
            lambda v: self._slot(v) if isinstance(v, Tensor) else v, (args, kwargs)
        )
        out = tuple(
            self._made(t, given, written) if isinstance(t, Tensor) else None for t in results
        )
        if func in FILLING and out[0] is not None and tensors[0].numel() <= SMALL:
            self.filled[out[0]] = tensors[0]
        if moves:
            self._moving.update(written, (s for s in out if s is not None))
        several, pure = found is not results[0], not written and expected is None and bool(tensors)
        self.steps.append(Step(func, args, kwargs, out, several, expected, pure))

    def _made(self, tensor: Tensor, given: list[Tensor], written: list[Slot]) -> Slot | None:
        """Return the slot of a result; None for one of the arguments, written to."""
        found = self._slots.get(tensor)
        if found is None:
            return self._new(tensor, given)
        return None if found in written else found

    def _slot(self, tensor: Tensor) -> Slot:
        found = self._slots.get(tensor)
        if found is None:
            found = self._new(tensor, None)
            self.held[found] = tensor
        return found

    def _fresh(self, tensor: Tensor) -> None:
        if tensor not in self._slots:
            self.fresh.add(self._slot(tensor))

    def _new(self, tensor: Tensor, given: list[Tensor] | None) -> Slot:
        """Give a tensor the next slot; it may be a view of those `given`, or of any held."""
        slot, where = Slot(len(self._memory)), _where(tensor)
        memory = slot.number
        if where is None:
            self.objection = f"it computes with a {type(tensor).__name__}, {tensor.layout}"
        else:
            others = self.held.items() if given is None else ((self._slot(t), t) for t in given)
            for other, of in others:
                if _where(of) == where:
                    memory = self._memory[other.number]
        self._memory.append(memory)
        self._forms.append((tensor.shape, tensor.stride() if where else (), tensor.dtype))
        self._slots[tensor] = slot
        return slot


def recording() -> bool:
    """Say whether operations are being recorded in this thread."""
    return getattr(_HERE, "depth", 0) > 0


def mapped(f: Callable[[Any], Any], values: Any) -> Any:
    """Return what `f` makes of each value in tuples, lists and dicts; slots are values."""
    kind = type(values)
    if kind is tuple or kind is list:
        return kind([mapped(f, v) for v in values])
    if kind is dict:
        return {name: mapped(f, v) for name, v in values.items()}
    return f(values)


def leaves(values: Any) -> list[Any]:
    """List the values in tuples, lists and dicts; slots are values."""
    found: list[Any] = []
    mapped(found.append, values)
    return found


def _sized_by_values(func: Any, given: Sequence[Tensor]) -> bool:
    """Say whether the shapes of results depend on values."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    # an index has the tag, but it is so of masks alone
    masked = any(t.dtype in (torch.bool, torch.uint8) for t in given[1:])
    return masked or func is not torch.ops.aten.index.Tensor


def _where(tensor: Tensor) -> int | None:
    """Return the address of a tensor's memory; None of a tensor that is not a plain one."""
    if type(tensor) not in PLAIN or tensor.layout != torch.strided:
        return None
    return tensor.untyped_storage()._cdata


def _wrapped(tensor: Any) -> bool:
    """Say whether it is a tensor of torch.func's, around another."""
    if type(tensor) not in PLAIN or tensor.layout != torch.strided:
        return False
    try:
        tensor.untyped_storage()
    except NotImplementedError:
        return True
    return False


def _same(tensor: Tensor, given: Sequence[Tensor]) -> Tensor | None:
    """Return the one of `given` that is the same view of the same memory, if any."""

    def view(t: Tensor) -> tuple[Any, ...]:
        where = _where(t), t.storage_offset()
        return *where, t.shape, t.stride(), t.dtype, t.is_conj(), t.is_neg()

    if None in map(_where, (tensor, *given)):
        return None
    return next((t for t in given if view(t) == view(tensor)), None)


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """List the arguments that an operation writes to."""
    if not func._schema.is_mutable:
        return []
    found: list[Any] = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[i] if i < len(args) else kwargs.get(argument.name))
    return [t for t in leaves(found) if isinstance(t, Tensor)]
