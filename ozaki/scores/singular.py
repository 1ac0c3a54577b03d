"""`singular_is_nan` makes torch return NaN for a matrix that cannot be factorised.

`torch.linalg.cholesky`, `inv` and `solve` raise where a matrix is not positive definite or is
singular. Over a batch, one such matrix makes them raise for all. A density that uses them would so
stop every chain where one chain proposes such a point. Inside `singular_is_nan` that chain has the
density NaN, which a kernel refuses and counts as a divergence. An error that depends on a value
could not be compiled either.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # pyright: ignore


def _marked(found: Tensor, info: Tensor) -> Tensor:
    failed = (info != 0).reshape(info.shape + (1,) * (found.ndim - info.ndim))
    return torch.where(failed, torch.nan, found)


def _cholesky(input: Tensor, upper: bool = False, *, out: Any = None) -> Tensor:
    return _marked(*torch.linalg.cholesky_ex(input, upper=upper))


def _inv(input: Tensor, *, out: Any = None) -> Tensor:
    return _marked(*torch.linalg.inv_ex(input))


def _solve(A: Tensor, B: Tensor, *, left: bool = True, out: Any = None) -> Tensor:
    # not solve_ex, whose gradient is a solve that raises
    factors, pivots, info = torch.linalg.lu_factor_ex(A)
    vector = B.ndim == 1 or (B.ndim == A.ndim - 1 and B.shape == A.shape[:-1])
    found = torch.linalg.lu_solve(factors, pivots, B.unsqueeze(-1) if vector else B, left=left)
    return _marked(found.squeeze(-1) if vector else found, info)


_LENIENT: dict[Any, Callable[..., Tensor]] = {
    torch.linalg.cholesky: _cholesky,
    torch.cholesky: _cholesky,
    Tensor.cholesky: _cholesky,
    torch.linalg.inv: _inv,
    torch.inverse: _inv,
    Tensor.inverse: _inv,
    torch.linalg.solve: _solve,
}


class singular_is_nan(TorchFunctionMode):
    """While it lasts, factorising a matrix that has no factor gives NaN instead of an error."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Torch calls this in place of each of its functions."""
        kwargs = kwargs or {}
        if func in _LENIENT and kwargs.get("out") is None:
            func = _LENIENT[func]
        return func(*args, **kwargs)
