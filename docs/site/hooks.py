"""What the site has besides the pages in docs/: tutorials' output, results, API.

Tutorials are run, each in a process and an empty folder of its own; a page whose code fails fails
the build. What they said is kept in build/tutorials under a hash of their code and of ozaki's, so
that the next build is quick.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from griffe import DocstringSectionKind
from griffe._internal.docstrings import google
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

# one example is an example too: it would be rendered as a quotation
google._section_kind["example"] = DocstringSectionKind.examples

ROOT = Path(__file__).parents[2]
DOCS, KEPT = ROOT / "docs", ROOT / "build" / "tutorials"
FIGURES = ROOT / "benchmarks" / "figures"
BLOCK = re.compile(r"```python\n(.*?)```\n", re.DOTALL)
ALT = re.compile(r"^# alt: (.*)$", re.MULTILINE)
ROWS, COLUMNS = 12, 9  # of a table of results
# of "Estimating High Order Gradients of the Data Distribution by Denoising", NeurIPS 2021
PAPER = json.loads(Path(__file__).with_name("paper.json").read_text(encoding="utf-8"))
API = {
    "ozaki": ("ozaki", "The public face"),
    "scores": ("ozaki.scores", "Scores"),
    "linalg": ("ozaki.linalg", "Symmetric operators"),
    "diagnostics": ("ozaki.diagnostics", "Diagnostics"),
    "data": ("ozaki.datasets", "Data"),
}
_outputs: dict[str, list[dict[str, Any]]] = {}


def on_files(files: Any, config: Any) -> Any:
    """Add what is generated."""
    pages = sorted((DOCS / "tutorials").glob("*.md"))
    kept = [folder_of(page) for page in pages]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for page, folder, found in zip(pages, kept, pool.map(run, pages, kept), strict=True):
            _outputs[page.stem] = found
            for name in {name for block in found for name in block["pictures"]}:
                add(files, config, f"tutorials/{page.stem}/{name}", folder / name)
    for figure in FIGURES.glob("*.svg"):
        add(files, config, f"figures/{figure.name}", figure)
    for name, (module, title) in API.items():
        add(files, config, f"api/{name}.md", api(module, title))
    add(files, config, "results.md", results())
    for name in ("CONTRIBUTING", "CHANGELOG"):
        add(files, config, f"{name.lower()}.md", (ROOT / f"{name}.md").read_text())
    return files


def add(files: Any, config: Any, uri: str, content: Any) -> None:
    """A page or a picture that does not lie in docs/."""
    how = {"abs_src_path": str(content)} if isinstance(content, Path) else {"content": content}
    files.append(File.generated(config, uri, **how))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Outputs under their code; links that lead out of docs/ to where their targets are here."""
    here = page.file.src_uri
    up = "../" * here.count("/")
    markdown = re.sub(r"\]\((?:\.\./)+benchmarks/figures/", f"]({up}figures/", markdown)
    markdown = re.sub(r"\]\((?:\.\./)*(CONTRIBUTING|CHANGELOG)\.md\)", _top(up), markdown)
    markdown = re.sub(r"\]\(docs/", f"]({up}", markdown)
    found = _outputs.get(Path(here).stem) if here.startswith("tutorials/") else None
    return markdown if found is None else with_outputs(markdown, found, Path(here).stem)


def _top(up: str) -> Any:
    return lambda match: f"]({up}{match[1].lower()}.md)"


def with_outputs(markdown: str, found: list[dict[str, Any]], stem: str) -> str:
    """The page, what each block printed and drew standing after it."""
    blocks = iter(found)

    def shown(match: re.Match[str]) -> str:
        block = next(blocks)
        code = ALT.sub("", match[1]).replace("\n\n\n", "\n\n")
        parts = [f"```python\n{code.strip()}\n```\n"]
        if block["said"].strip():
            parts.append(f"```{{ .text .outputs }}\n{block['said'].rstrip()}\n```\n")
        told = ALT.findall(match[1])
        for i, name in enumerate(block["pictures"]):
            parts.append(f"![{told[i] if i < len(told) else name}]({stem}/{name})\n")
        return "\n".join(parts)

    return BLOCK.sub(shown, markdown)


def folder_of(page: Path) -> Path:
    """Where what the page said is kept: named after its code, ozaki's, and the runner's."""
    digest = hashlib.sha256(page.read_bytes())
    for source in (*sorted((ROOT / "ozaki").rglob("*.py")), Path(__file__).with_name("runner.py")):
        digest.update(source.read_bytes())
    return KEPT / f"{page.stem}-{digest.hexdigest()[:16]}"


def run(page: Path, kept: Path) -> list[dict[str, Any]]:
    """What each block printed and drew; the folder `kept` holds it afterwards."""
    if not (kept / "found.json").exists():
        blocks = json.dumps(BLOCK.findall(page.read_text(encoding="utf-8")))
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as notes:
            source, target = Path(notes) / "blocks.json", Path(notes) / "found.json"
            source.write_text(blocks)
            command = [sys.executable, str(Path(__file__).with_name("runner.py"))]
            done = subprocess.run(
                [*command, str(source), str(target)],
                cwd=work,
                env=env,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise PluginError(f"{page.name} does not run:\n{done.stderr[-3000:]}")
            for old in KEPT.glob(f"{page.stem}-*"):
                shutil.rmtree(old)
            kept.mkdir(parents=True)
            for picture in Path(work).iterdir():
                if picture.suffix in (".svg", ".png"):
                    shutil.copy(picture, kept)
            shutil.copy(target, kept / "found.json")
    return json.loads((kept / "found.json").read_text())


def api(module: str, title: str) -> str:
    """Every public name of a module."""
    folder = ROOT.joinpath(*module.split("."))
    modules = {path.stem for path in folder.glob("*")}  # which have pages of their own
    names = [name for name in public(module) if name not in modules]
    lines = [f"# {title}", "", f"What `{module}` offers.", ""]
    return "\n".join(lines + [f"::: {module}.{name}\n" for name in names])


def public(module: str) -> list[str]:
    """`__all__`, read from the source."""
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [n for n in ast.literal_eval(node.value) if not n.startswith("_")]
    raise PluginError(f"{source} has no __all__")


def results() -> str:
    """Bars, rows and figures of every benchmark whose JSON is kept."""
    lines = [
        "# Results",
        "",
        "What was measured, from the JSON that each benchmark wrote: what was asked of it, where"
        " that is a number, the first rows, and the figures of the paper where it has some."
        " [Benchmarks](benchmarks.md) tells what they mean.",
        "",
    ]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        told = json.loads(path.read_text())
        module = ROOT / "benchmarks" / f"{told['benchmark'].removesuffix('-gpu')}.py"
        doc = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or path.stem
        machine = told["machine"]
        lines += [f"## {path.stem}", "", doc.split("\n\n")[0], ""]
        if path.stem in PAPER:
            lines += [f"In the paper: {PAPER[path.stem]}", ""]
        lines += [
            f"`python -m benchmarks.{module.stem}`, seed {told['seed']}; {machine['processor']}, "
            f"{machine['cores']} cores, torch {machine['torch']}, {machine['date']}.",
            "",
        ]
        if told["bars"]:
            lines += ["| what | asked | measured |", "|---|---|---|"]
            lines += [
                f"| {cell(b['bar'])} | {cell(b['asked'])} | {cell(b['measured'])} |"
                for b in told["bars"]
            ]
            lines.append("")
        for rows in kinds(told["rows"]):
            names = list(scalars(rows[0]))[:COLUMNS]
            lines += [f"| {' | '.join(map(cell, names))} |", "|" + "---|" * len(names)]
            lines += [f"| {' | '.join(cell(r[k]) for k in names)} |" for r in rows[:ROWS]]
            if len(rows) > ROWS:
                lines += ["", f"and {len(rows) - ROWS} rows more in the JSON."]
            lines.append("")
        if (FIGURES / f"{path.stem}.svg").exists():
            lines += [f"![{path.stem}](figures/{path.stem}.svg)", ""]
    return "\n".join(lines)


def scalars(row: dict[str, Any]) -> dict[str, Any]:
    """What of a row a table can show."""
    return {k: v for k, v in row.items() if not isinstance(v, (list, dict))}


def kinds(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows with the columns of one another together: a table each."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(scalars(row)), []).append(row)
    return list(found.values())


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
