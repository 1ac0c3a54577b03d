"""Data flows one way: imports run to lower floors, and each foreign library has one home."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ozaki

ROOT = Path(ozaki.__file__).parent
FILES = sorted(p for p in ROOT.rglob("*.py"))
HOMES = {
    "lightning": {"scores/training.py"},
    "arviz": {"container.py", "diagnostics.py"},
    "typer": {f"commands/{p.name}" for p in (ROOT / "commands").glob("*.py")},
    "jinja2": {"report.py"},
    "zarr": {"streaming.py"},
    "diffusers": {"scores/unet.py"},
    "PIL": {"images.py"},
    "torch.distributed": {"kernels/ranks.py"},
}
# the ground: what every file may use
GROUND = {"shapes.py", "validation.py", "lazy.py"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def floor(path: Path) -> float | None:
    found = re.search(
        r"\(floor (\d+(?:\.\d)?)", ast.get_docstring(ast.parse(path.read_text())) or ""
    )
    return float(found[1]) if found else None


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy":
            yield ast.literal_eval(node.args[0])


def module_file(module: str) -> Path | None:
    path = ROOT.parent.joinpath(*module.split("."))
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else None


INNER = [f for f in FILES if f.name not in ("__init__.py", "__main__.py")]


@pytest.mark.parametrize("path", INNER, ids=name)
def test_imports_run_downward(path):
    here = floor(path)
    assert here is not None, "the docstring's first paragraph ends with its floor"
    for module in imports(path):
        other = module_file(module) if module.startswith("ozaki.") else None
        if other is not None and name(other) not in GROUND:
            assert floor(other) < here, f"{name(path)} ({here}) imports {module} ({floor(other)})"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_each_foreign_library_has_one_home(path):
    for library, homes in HOMES.items():
        used = any(m.startswith(library) for m in imports(path))
        assert not used or name(path) in homes, library


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_stand_at_the_top(path):
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                assert not isinstance(node, (ast.Import, ast.ImportFrom)), function.name


def test_importing_ozaki_waits_for_nothing_heavy():
    """What a run does not need is imported when it is first used: pyro alone takes its second."""
    heavy = (
        "scipy.stats scipy.optimize arviz matplotlib.pyplot xarray lightning_fabric zarr diffusers"
    )
    code = f"import sys, ozaki; print([m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
