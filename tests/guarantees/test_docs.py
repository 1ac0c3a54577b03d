"""Every Python block of the README and the docs runs, in order, in an empty folder.

CI runs them. Tutorials take minutes and are run whenever the site is built, which CI does too; here
under `-m slow`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ozaki

ROOT = Path(__file__).parents[2]
PAGES = [
    p
    for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "```python" in p.read_text()
]


def is_long(page: Path) -> bool:
    return page.parent.name == "tutorials"


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, id=p.name, marks=[pytest.mark.slow] * is_long(p)) for p in PAGES],
)
@pytest.mark.thorough
def test_the_code_on_the_page_runs(page, tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    # the suite has the other cores, and no window is to be opened
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#]+\.md)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} → {target}"


def test_the_readme_opens_with_two_lines():
    block = re.search(r"```\w*\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert block.splitlines() == [
        "pip install -c constraints.txt . && python -m ozaki demo",
        'pip install -c constraints.txt ".[test]" && pytest',
    ]


def test_one_version_everywhere():
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None and cited[1] == ozaki.__version__
    assert f"\n## {ozaki.__version__}" in (ROOT / "CHANGELOG.md").read_text()
