"""What is deprecated works, and warns where it is called."""

import re
import subprocess
import sys
import warnings
from importlib import import_module

import numpy as np
import pytest
import torch

from ozaki import laws
from ozaki.foundation.deprecation import attribute_renamed, deprecated, renamed
from ozaki.linalg import Diagonal


@deprecated("new", "2.0")
def old(x: int) -> int:
    return x + 1


@renamed("noise", "sigma", "2.0")
def train(data: int, *, sigma: float = 0.5) -> tuple[int, float]:
    return data, sigma


def warned(call):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = call()
    assert all(w.category is DeprecationWarning for w in told)
    return result, [str(w.message) for w in told]


def test_a_name_that_goes_works_and_says_what_to_use():
    message = "old is deprecated and will be removed in ozaki 2.0; use new"
    assert warned(lambda: old(1)) == (2, [message])
    assert old.__name__ == "old"


def test_an_argument_that_was_renamed_is_taken_under_both_names():
    message = "noise= of train is deprecated and will be removed in ozaki 2.0; use sigma="
    assert warned(lambda: train(3, noise=0.1)) == ((3, 0.1), [message])
    assert warned(lambda: train(3, sigma=0.1)) == ((3, 0.1), [])
    assert warned(lambda: train(3)) == ((3, 0.5), [])
    with pytest.raises(TypeError, match="given noise= and sigma=, which are one; leave out noise="):
        train(3, noise=0.1, sigma=0.2)


def test_an_attribute_that_was_renamed_is_taken_under_both_names():
    class Base:
        colour = "none"

        def __init_subclass__(cls):
            attribute_renamed(cls, "_colour", "colour", "2.0")

    message = "_colour of Leaf is deprecated and will be removed in ozaki 2.0; use colour"
    leaf, told = warned(lambda: type("Leaf", (Base,), {"_colour": "green"}))
    assert (leaf.colour, told) == ("green", [message])
    leaf, told = warned(lambda: type("Leaf", (Base,), {"_colour": "green", "colour": "red"}))
    assert (leaf.colour, told) == ("red", [message])
    assert warned(lambda: type("Leaf", (Base,), {}))[1] == []


CALLER = """
from abc import ABC
from ozaki.foundation.deprecation import attribute_renamed, deprecated, renamed
@deprecated("new", "2.0")
def old(): pass
@renamed("noise", "sigma", "2.0")
def train(sigma): pass
class Plain:
    def __init_subclass__(cls): attribute_renamed(cls, "_colour", "colour", "2.0")
class Abstract(ABC):
    def __init_subclass__(cls): attribute_renamed(cls, "_colour", "colour", "2.0")
old()
train(noise=1)
class Leaf(Plain): _colour = 1
class Root(Abstract): _colour = 1
"""


def test_the_line_to_change_is_named():
    done = subprocess.run([sys.executable, "-c", CALLER], capture_output=True, text=True)
    lines = [line.split(" ")[0] for line in done.stderr.splitlines() if "Deprecation" in line]
    assert lines == [f"<string>:{line}:" for line in (12, 13, 14, 15)], done.stderr


def test_modules_that_moved_still_give_their_names():
    """Each old path warns, says where the name is now, and gives the very thing."""
    for old, name, new in (
        ("ozaki.scores.training", "DSMTrainer", "ozaki.scores.learned.trainer"),
        ("ozaki.scores.estimator", "ScoreEstimator", "ozaki.scores.learned.estimator"),
        ("ozaki.scores.networks", "ScoreNetwork", "ozaki.scores.learned.preconditioned"),
        ("ozaki.scores.networks", "ResidualMLP", "ozaki.scores.learned.mlp"),
        ("ozaki.scores.distribution", "ScoreDistribution", "ozaki.scores.pyro_models.site"),
    ):
        with pytest.warns(DeprecationWarning, match=re.escape(f"{old} is deprecated")) as told:
            found = getattr(import_module(old), name)
        assert found is getattr(import_module(new), name)
        assert new in str(told[0].message)
    with pytest.raises(AttributeError, match="no attribute 'Absent'"):
        import_module("ozaki.scores.training").Absent  # noqa: B018


def test_roots_of_operators_have_their_old_names():
    operator = Diagonal(torch.tensor([4.0, 9.0]))
    with pytest.warns(DeprecationWarning, match="use sqrt_matmul"):
        assert torch.equal(operator.colour(torch.ones(2)), torch.tensor([2.0, 3.0]))
    with pytest.warns(DeprecationWarning, match="use clamp_eigenvalues"):
        assert operator.raised(5.0).diagonal().tolist() == [5.0, 9.0]


def test_the_test_of_two_sets_has_its_old_name():
    one, other = {"x": np.arange(50.0)[None] % 7}, {"x": np.arange(50.0)[None] % 5}
    with pytest.warns(DeprecationWarning, match="use ozaki.laws.two_sample_test"):
        found = laws.difference(one, other, independent=(True, True))
    assert found == laws.two_sample_test(one, other, independent=(True, True))
