"""Imports run one way through the packages, and each foreign library has one home."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ozaki

ROOT = Path(ozaki.__file__).parent
FILES = sorted(p for p in ROOT.rglob("*.py"))
# a package imports from those before it, and from itself; of one row neither imports the other
ORDER = (
    ("foundation",),
    ("io", "linalg"),
    ("datasets", "scores"),
    ("kernels", "diagnostics"),
    ("laws", "report"),
    ("denoising",),
    ("sampling",),
    ("cli",),
)
RANK = {package: rank for rank, row in enumerate(ORDER) for package in row}
HOMES = {
    "lightning": {"scores/learned/training_run.py"},
    "arviz": {f"diagnostics/{name}.py" for name in ("arviz_data", "figures", "netcdf")},
    "typer": {f"cli/{p.name}" for p in (ROOT / "cli").glob("*.py")},
    "jinja2": {"report/page.py"},
    "zarr": {"sampling/zarr_store.py"},
    "diffusers": {"scores/learned/unet.py"},
    "PIL": {"io/png.py"},
    "torch.distributed": {"kernels/processes.py"},
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def package(path: Path) -> str:
    """The first folder that a file is in, or its own name where it is in none."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def file_of(module: str) -> Path | None:
    """The file of a module of ozaki's, a package's being its face."""
    path = ROOT.parent.joinpath(*module.split("."))
    for found in (path.with_suffix(".py"), path / "__init__.py"):
        if found.exists():
            return found
    return None


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """(module, name taken from it), or (module, None)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("lazy", "moved"):
            given = [a.value for a in node.args if isinstance(a, ast.Constant)]
            yield from ((module, None) for module in given)


def resolve(module: str, taken: str | None) -> Path | None:
    """The file that defines a name, through the faces of packages that pass it on."""
    if taken is not None and (inner := file_of(f"{module}.{taken}")) is not None:
        return inner
    path = file_of(module)
    if path is None or path.name != "__init__.py" or taken is None:
        return path
    for inner, passed in imports(path):
        if passed == taken and inner != module:
            return resolve(inner, taken)
    return path


def inner_imports(path: Path) -> Iterator[Path]:
    for module, taken in imports(path):
        found = resolve(module, taken) if module.split(".")[0] == "ozaki" else None
        if found is not None and found != path:
            yield found


INNER = [f for f in FILES if f.parent != ROOT or f.name not in ("__init__.py", "__main__.py")]


def test_every_package_has_its_place():
    assert {package(path) for path in INNER} == set(RANK)


@pytest.mark.parametrize("path", INNER, ids=name)
def test_imports_run_downward(path):
    here = package(path)
    for other in inner_imports(path):
        there = package(other)
        assert there == here or RANK[there] < RANK[here], f"{name(path)} imports {name(other)}"


def test_no_file_imports_itself_by_way_of_others():
    graph = {path: set(inner_imports(path)) for path in FILES}
    list(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_a_name_is_followed_through_a_face():
    """Without that, a face would let any import through."""
    assert name(resolve("ozaki.diagnostics", "stein_test")) == "diagnostics/stein.py"
    assert name(resolve("ozaki", "MCMC")) == "sampling/mcmc.py"
    assert name(resolve("ozaki.kernels", "proposals")) == "kernels/proposals.py"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_each_foreign_library_has_one_home(path):
    for library, homes in HOMES.items():
        used = any(f"{m}.{n}".startswith(library) for m, n in imports(path))
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


def test_the_first_import_ends_a_command_that_is_stopped():
    """Ctrl-C while the others load tells nobody anything but a traceback."""
    first = next(m for m, _ in imports(ROOT / "__init__.py") if m.startswith("ozaki"))
    assert first == "ozaki.foundation"
    assert not list(imports(ROOT / "foundation" / "__init__.py"))
