"""This module lets annotations state the shapes of tensors.

``Float[Tensor, "*batch dim"]`` reads as "a floating-point tensor with any batch dimensions and a
last one called dim". The test extra brings jaxtyping, and the tests check every annotated call;
without it the same annotation is plain ``Tensor`` and costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
else:
    try:
        from jaxtyping import Bool, Float
    except ImportError:

        class _Unchecked:
            """The stand-in without jaxtyping: ``Float[Tensor, "…"]`` is the array type alone."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = _Unchecked

__all__ = ["Bool", "Float"]
