"""Operations of a graph and the C++ that they become."""

from collections.abc import Callable
from typing import Any

FUNCTIONS = (
    *("exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sin", "cos", "tan", "asin"),
    *("acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc"),
    *("lgamma", "floor", "ceil", "round", "trunc"),
)
POINTS = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "neg": "(-{0})",
    "abs": "abs_({0})",
    "sqrt": "sqrt_({0})",
    "rsqrt": "(one({0}) / sqrt_({0}))",
    "reciprocal": "(one({0}) / {0})",
    "where": "sel({0}, {1}, {2})",
    "maximum": "max_({0}, {1})",
    "minimum": "min_({0}, {1})",
    "relu": "max_({0}, zero({0}))",
    "sigmoid": "(one({0}) / (one({0}) + exp_(-{0})))",
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "gt": "({0} > {1})",
    "ge": "({0} >= {1})",
    "bitwise_and": "and_({0}, {1})",
    "bitwise_or": "or_({0}, {1})",
    "bitwise_xor": "xor_({0}, {1})",
    "bitwise_not": "not_({0})",
    "logical_and": "and_({0}, {1})",
    "logical_or": "or_({0}, {1})",
    "logical_xor": "xor_({0}, {1})",
    "logical_not": "not_({0})",
    "isnan": "({0} != {0})",
    "isinf": "(abs_({0}) == inf({0}))",
    "sign": "(asfloat({0} > zero({0})) - asfloat({0} < zero({0})))",
    **{name: name + "_({0})" for name in FUNCTIONS},
    "atan2": "atan2_({0}, {1})",
    "pow": "pow_({0}, {1})",
    "fmod": "fmod_({0}, {1})",
    "remainder": "remainder_({0}, {1})",
}
LOGICAL = set(
    [
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "bitwise_not",
        "logical_and",
        "logical_or",
        "logical_xor",
        "logical_not",
        "isnan",
        "isinf",
    ]
)
REDUCTIONS = {
    "sum": "sum",
    "mean": "sum",
    "amax": "max",
    "amin": "min",
    "any": "any",
    "all": "all",
    "prod": "prod",
}
SHOWN = ("view", "reshape", "_unsafe_view", "alias", "clone", "expand")
KEPT = ("sigmoid", "mean", "addmm")  # not taken apart


FILLS: dict[str, Callable[[list[Any]], Any]] = {
    "full": lambda a: a[1],
    "full_like": lambda a: a[1],
    "scalar_tensor": lambda a: a[0],
    "zeros": lambda a: 0,
    "ones": lambda a: 1,
    "zeros_like": lambda a: 0,
    "ones_like": lambda a: 1,
    "empty": lambda a: 0,
    "empty_like": lambda a: 0,
    "empty_permuted": lambda a: 0,
    "new_zeros": lambda a: 0,
    "new_ones": lambda a: 1,
    "new_full": lambda a: a[2],
    "empty_strided": lambda a: 0,
}
