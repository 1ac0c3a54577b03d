"""`compiled_loop` makes machine code of a traced step, and a loop of any number of steps of it.

A graph whose operations are known becomes one C++ function, in which a block of chains takes all
its steps in the nearest memory; it is kept on disk. Any other graph goes to torch's compiler.
"""

import logging
from collections.abc import Callable

from torch import Tensor
from torch.fx import GraphModule

from ozaki.kernels.loops import native, scan
from ozaki.kernels.loops.values import Unsupported

log = logging.getLogger(__name__)


def compiled_loop(
    step: GraphModule, carry: list[Tensor], noise: list[Tensor], rest: list[Tensor]
) -> Callable[..., list[Tensor]]:
    """Compile the loop of a step.

    Tensors of `carry` and `noise` whose first axis is as long as that of the first carried tensor
    are taken to have an entry for each chain. Chains must not look at each other; a mean or a sum
    over them can be kept.

    Args:
        step: (*carry, *noise of one step, *rest) → [*carry, *what the step keeps], contiguous.
        carry: what a step hands to the next.
        noise: with a first axis of steps, of any length.
        rest: the same in all steps.

    Returns:
        A function of (*carry, *noise, *rest), noise of any number of steps, that gives [*carry,
        *kept], what is kept with a first axis of steps. It takes `rows`, for each step the row
        in which it is kept, −1 for none; rows are 0 to the largest of them.

    Raises:
        OSError: the folder of compiled code that was asked for cannot be used.
        Exception: whatever torch's compiler raises where there is no compiler.
    """
    try:
        return native.loop(step, carry, noise, rest)
    except Unsupported as why:
        log.info("torch's compiler takes a loop: %s", why)
        return scan.loop(step, carry, noise, rest)


__all__ = ["compiled_loop"]
