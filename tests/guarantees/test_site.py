"""The site that `mkdocs build` made, as a browser shows it: whole, silent, and fit for a phone.

Skipped where no site was built. The screenshots go to the folder that the environment names in
OZAKI_SCREENSHOTS.
"""

import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.kit.browser import CHROMIUM, WIDTHS, browse, framed, luminance, probed

BUILT = Path(__file__).parents[2] / "build" / "site"
pytestmark = pytest.mark.skipif(
    not (BUILT / "index.html").exists(), reason="no site in build/site: mkdocs build makes one"
)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
PAGES = ("index.html", "tutorials/5-denoising.html", "api/ozaki.html", "results.html")
TUTORIALS = 8


class Links(HTMLParser):
    """Where a page's links and pictures lead, and what it has anchors for."""

    def __init__(self, text: str):
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.bare: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.targets += [v for k in ("href", "src") if (v := given.get(k))]
        self.anchors |= {v for k in ("id", "name") if (v := given.get(k))}
        if tag == "img" and not given.get("alt"):
            self.bare.append(given.get("src") or "")


@pytest.fixture(scope="module")
def links():
    return {p: Links(p.read_text(encoding="utf-8")) for p in sorted(BUILT.rglob("*.html"))}


def test_links_lead_somewhere_and_nothing_is_asked_of_another_host(links):
    assert len(links) > 25
    for page, found in links.items():
        if page.name == "404.html":
            continue
        for target in found.targets:
            parts = urlsplit(target)
            if parts.scheme:
                # the maker's line in the footer; a link, not a request
                assert target == "https://squidfunk.github.io/mkdocs-material/", f"{page}: {target}"
                continue
            file = page if not parts.path else (page.parent / unquote(parts.path)).resolve()
            file = file / "index.html" if file.is_dir() else file
            assert file.exists(), f"{page}: {target}"
            anchor = unquote(parts.fragment)
            if anchor and file in links:
                assert anchor in links[file].anchors, f"{page}: {target}"


def test_every_picture_is_told_in_words(links):
    assert {str(p): found.bare for p, found in links.items() if found.bare} == {}


def test_tutorials_show_what_they_said_and_drew():
    pages = sorted((BUILT / "tutorials").glob("*.html"))
    assert len(pages) == TUTORIALS
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert 'class="outputs highlight' in text, f"{page.name} shows no output"
        assert "Traceback" not in text
        assert "# alt:" not in text
    assert sum("<img" in page.read_text(encoding="utf-8") for page in pages) >= 5


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The site where pages may be written beside its own."""
    return Path(shutil.copytree(BUILT, tmp_path_factory.mktemp("site") / "site"))


@in_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_at_both_widths(copy, name, dark):
    for width in WIDTHS:
        found = probed(copy / name, width, dark)
        assert found["inner"] == width
        assert found["scrolled"] <= width, "the page is wider than the window"
        assert all(drawn for _, drawn in found["images"])
        assert found["headings"].count(1) == 1
        grounds = {luminance(pair.split("|")[1]) for pair in found["colours"]}
        # of a scale from black, 0, to white, 1
        assert (max(grounds) < 0.9) == dark, "the scheme was not followed"


@in_browser
@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_nothing_on_the_console(copy, name):
    said = browse(copy / name, "--dump-dom").stderr
    # search needs a server: from a file the browser forbids its worker
    loud = [line for line in said.splitlines() if "CONSOLE" in line and "Worker" not in line]
    assert loud == []


@in_browser
def test_screenshots_are_kept(copy, tmp_path):
    folder = Path(os.environ.get("OZAKI_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        stem = re.sub(r"\W", "-", name.removesuffix(".html"))
        for width in WIDTHS:
            file = folder / f"site-{stem}-{width}.png"
            browse(framed(copy / name, width), f"--screenshot={file}", width=max(width, 500))
            assert file.stat().st_size > 20_000
