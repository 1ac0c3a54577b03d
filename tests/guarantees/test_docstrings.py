"""Every public name has the docstring that its page of the API is made of.

Names are those of `__all__`, with the methods and properties that their classes have from ozaki.
What is asked: a summary of one sentence, every argument under `Args:`, `Returns:`, `Raises:` for
each error that the body or what it calls raises, an example that shows a result, a source.
"""

import ast
import doctest
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

MODULES = ("ozaki", "ozaki.scores", "ozaki.linalg", "ozaki.diagnostics", "ozaki.datasets")
SECTION = re.compile(r"^(Args|Returns|Raises|Attributes|Example|Source|Reference):", re.MULTILINE)

# what they compute stands in a paper, or what they read is someone's
SOURCED = {
    *("ozaki.DSMTrainer", "ozaki.Posterior", "ozaki.ScoreDistribution", "ozaki.ScoreEstimator"),
    *("ozaki.ScoreLangevinKernel", "ozaki.ScoreOzakiKernel", "ozaki.anneal", "ozaki.denoise"),
    *("ozaki.scores.DenoiserScore", "ozaki.scores.GaussianScore", "ozaki.scores.compare"),
    *("ozaki.scores.GaussianMixtureScore", "ozaki.scores.LogisticMixtureScore"),
    *("ozaki.scores.DistributionScore", "ozaki.scores.posterior_moments"),
    *("ozaki.diagnostics.kernel_stein_discrepancy", "ozaki.diagnostics.stein_test"),
    *("ozaki.diagnostics.sampler_test", "ozaki.diagnostics.effective_sample_size"),
    *("ozaki.diagnostics.step_bias", "ozaki.diagnostics.summary", "ozaki.diagnostics.verdict"),
    *("ozaki.datasets.cifar10_subset", "ozaki.datasets.mnist", "ozaki.datasets.old_faithful"),
}
# called by MCMC and by Pyro, not by who has a kernel
INNER = {"ScoreKernel"}
# errors that no caller can bring about
UNREACHED = {
    ("old_faithful", "ValueError"),  # a file of the package itself
    ("save", "FileExistsError"),  # it overwrites, and has refused a folder before
}


class Name(NamedTuple):
    """A public name as its source has it."""

    label: str
    node: Any  # of the syntax tree; None for a module
    inherited: tuple[Any, ...]  # nodes of the same name in the bases, whose sections count
    module: ModuleType
    owner: type | None

    @property
    def own(self) -> str:
        if self.node is None:
            return inspect.cleandoc(self.module.__doc__ or "")
        if isinstance(self.node, ast.Constant):
            return inspect.cleandoc(self.node.value)
        return ast.get_docstring(self.node) or ""

    def section(self, *headers: str) -> str:
        """What stands under a header, here or in the class that defined the method first."""
        docs = [self.own, *(ast.get_docstring(node) or "" for node in self.inherited)]
        return "\n".join(sections(doc).get(h, "") for doc in docs for h in headers)


def sections(doc: str) -> dict[str, str]:
    parts = SECTION.split(doc)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(Path(sys.modules[module].__file__).read_text(encoding="utf-8"))


def child(node: Any, name: str) -> Any:
    return next((n for n in node.body if getattr(n, "name", None) == name), None)


def node_of(found: Any) -> Any:
    """Where a function or class of ozaki is defined; None of anything else."""
    module, name = getattr(found, "__module__", None) or "", getattr(found, "__qualname__", "")
    if not module.startswith("ozaki") or module not in sys.modules or "<" in name:
        return None
    node: Any = tree(module)
    for part in name.split("."):
        node = node and child(node, part)
    return node


def constant(module: str, name: str) -> Any:
    """The string under an assignment."""
    body = tree(module).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            return after.value if told else ast.Constant("")
    raise AssertionError(f"{name} is not assigned in {module}")


def ancestry(cls: type) -> list[type]:
    return [c for c in cls.__mro__ if c.__module__.startswith("ozaki")]


def names() -> Iterator[Name]:
    seen = set()
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            found, label = getattr(sys.modules[module], name), f"{module}.{name}"
            if isinstance(found, ModuleType):
                yield Name(label, None, (), found, None)
            elif node_of(found) is None:
                yield Name(label, constant(module, name), (), sys.modules[module], None)
            else:
                owner = found if isinstance(found, type) else None
                yield Name(label, node_of(found), (), sys.modules[found.__module__], owner)
                for cls in ancestry(found) if owner else ():
                    if cls not in seen and cls.__name__ not in INNER:
                        seen.add(cls)
                        yield from members(cls)


def members(cls: type) -> Iterator[Name]:
    for node in node_of(cls).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            bases = (child(node_of(c), node.name) for c in ancestry(cls)[1:])
            inherited = tuple(b for b in bases if b is not None)
            label = f"{cls.__module__}.{cls.__name__}.{node.name}"
            yield Name(label, node, inherited, sys.modules[cls.__module__], cls)


def function(name: Name) -> Any:
    """What is called: of a class its constructor."""
    return child(name.node, "__init__") if isinstance(name.node, ast.ClassDef) else name.node


def is_property(node: Any) -> bool:
    return any("property" in ast.unparse(d) for d in node.decorator_list)


def summary(name: Name) -> Iterator[str]:
    told = name.own.partition("\n\n")[0]
    sentences = re.search(r"[.!?:] +[A-Z]\w* ", told)
    if "\n" in told or not told.endswith(".") or len(told.split()) < 2 or sentences:
        yield f"it must begin with one sentence on one line, but began {told!r}"


def arguments(name: Name) -> Iterator[str]:
    node, under = name.node, "Args"
    if function(name) is None:  # fields of a tuple, or what a kind of score must set
        under = "Attributes"
        fields = (n.target.id for n in node.body if isinstance(n, ast.AnnAssign))
        asked = [field for field in fields if field[0] != "_"]
    else:
        a = function(name).args
        given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        asked = [g.arg for g in given if g.arg not in ("self", "cls") and g.arg[0] != "_"]
    # one a line: two of them are none to mkdocstrings
    told = re.findall(r"^ {4}\*{0,2}(\w+): ", name.section(under), re.MULTILINE)
    if missing := [a for a in asked if a not in told]:
        yield f"{missing} must stand under {under}:"


def returned(name: Name) -> Iterator[str]:
    node = name.node
    if isinstance(node, ast.ClassDef) or is_property(node):
        return
    if ast.unparse(node.returns) != "None" and not name.section("Returns").strip():
        yield "what it returns must stand under Returns:"


def errors(name: Name) -> Iterator[str]:
    short = ".".join(name.label.split(".")[-2:] if name.owner else name.label.split(".")[-1:])
    told = re.findall(r"\w*Error\b", name.section("Raises"))
    for error in sorted(set(raised(function(name), name))):
        if error not in told and (short, error) not in UNREACHED:
            yield f"{error} must stand under Raises:"


def raised(node: Any, name: Name, deep: bool = True) -> Iterator[str]:
    """The errors in a body, and in those of ozaki's functions that it calls."""
    for part in ast.walk(node):
        if isinstance(part, ast.Raise) and isinstance(part.exc, ast.Call):
            error = ast.unparse(part.exc.func)
            yield error if error.endswith("Error") else "ValueError"  # made by a function
        if deep and isinstance(part, ast.Call) and (called := resolved(part.func, name)):
            yield from raised(*called, deep=False)


def resolved(func: Any, name: Name) -> tuple[Any, Name] | None:
    """The function that is called, if it is one of ozaki's."""
    if isinstance(func, ast.Name):
        found = vars(name.module).get(func.id)
    elif isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
        if func.value.id in ("self", "cls"):
            nodes = (child(node_of(c), func.attr) for c in ancestry(name.owner))
            node = next((n for n in nodes if n is not None), None)
            return None if node is None else (node, name)
        found = vars(name.module).get(func.value.id)
        found = vars(found).get(func.attr) if isinstance(found, ModuleType) else None
    else:
        return None
    node = node_of(found)
    if not isinstance(node, ast.FunctionDef):
        return None
    return node, name._replace(module=sys.modules[found.__module__])


def example(name: Name) -> Iterator[str]:
    shown = doctest.DocTestParser().get_examples(sections(name.own).get("Example", ""))
    if name.label in TOP and not any(each.want for each in shown):
        yield "a doctest that shows a result must stand under Example:"


def source(name: Name) -> Iterator[str]:
    if name.label in SOURCED and not {"Source", "Reference"} & sections(name.own).keys():
        yield "what it computes must have its Source: or Reference:"


NAMES = {name.label: name for name in names()}
TOP = {f"{module}.{name}" for module in MODULES for name in importlib.import_module(module).__all__}


@pytest.mark.parametrize("label", NAMES)
def test_the_docstring_is_whole(label):
    name = NAMES[label]
    checks = [summary]
    if isinstance(name.node, (ast.FunctionDef, ast.ClassDef)):
        checks += [returned, example, source]
        checks += [arguments, errors] if function(name) else [arguments]
    faults = [fault for check in checks for fault in check(name)]
    assert not faults, f"{label}: {'; '.join(faults)}"


def test_the_names_that_are_asked_for_a_source_exist():
    assert SOURCED <= TOP
