"""These guards protect state that belongs to the process: checks, random numbers, Pyro.

Torch and Pyro keep some state once for all threads. Each part of it has one guard here. So runs of
scores may go on in several threads at once, and runs of Pyro models take turns.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine

_GENERATORS = threading.RLock()
_CHECKS = threading.Lock()
_PYRO = threading.RLock()
_inside = 0  # how many calls are inside `unchecked`, in all threads
_held: AbstractContextManager[Any] | None = None


@contextmanager
def unchecked() -> Iterator[None]:
    """Let no distribution check its arguments or values while any thread is inside.

    torch.func.vmap allows no branch on values, and the switch is one for the process: it is turned
    by the first thread that enters, and turned back by the last that leaves.
    """
    global _inside, _held
    with _CHECKS:
        if _inside == 0:
            _held = pyro.validation_enabled(False)
            _held.__enter__()
        _inside += 1
    try:
        yield
    finally:
        with _CHECKS:
            _inside -= 1
            if _inside == 0 and _held is not None:
                _held.__exit__(None, None, None)
                _held = None


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed torch's global generators for a while; afterwards they are as they were.

    One thread at a time: another would find the generators seeded, or put them back as they were
    in here.
    """
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with _GENERATORS, torch.random.fork_rng(devices=list(gpus)):
        torch.default_generator.manual_seed(seed)
        if gpus:
            torch.cuda.manual_seed_all(seed)
        yield


def seed_from(generator: torch.Generator | None) -> int:
    """Draw a seed from `generator`, or from the global one as it is outside of `isolated_rng`."""
    if generator is not None:
        return int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with _GENERATORS:
        return int(torch.randint(2**62, ()))


@contextmanager
def pyro_turn() -> Iterator[None]:
    """Hold Pyro's stack of handlers, which all threads share, with no outside handler active.

    Another thread that asks for the stack waits.
    """
    with _PYRO, poutine.block():
        yield
