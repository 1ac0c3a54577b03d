"""The report as a browser shows it: whole, silent, within the window, readable; Chromium, headless.

The screenshots go to the folder that the environment names in OZAKI_SCREENSHOTS.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ozaki import diagnostics
from ozaki.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH to open it with")

WIDTHS = (390, 1280)
SITES = 10
MOST = 5_000_000  # bytes
# what the page says of itself once it is laid out
PROBE = """<script>addEventListener("load", () => {
const style = (e, what) => getComputedStyle(e)[what];
const ground = e => {
  for (; e; e = e.parentElement) {
    const c = style(e, "backgroundColor");
    if (!/, 0\\)$/.test(c)) return c;
  } };
const texts = [...document.querySelectorAll("h1,h2,h3,p,li,td,th,figcaption,span")];
parent.postMessage(JSON.stringify({
  inner: innerWidth, scrolled: document.documentElement.scrollWidth,
  images: [...document.images].map(i => [i.alt, i.complete && i.naturalWidth > 0]),
  headings: [...document.querySelectorAll("h1,h2,h3")].map(h => +h.tagName[1]),
  headers: [...document.querySelectorAll("th")].map(h => h.scope),
  colours: [...new Set(texts.map(e => style(e, "color") + "|" + ground(e)))],
}), "*"); });</script></head>"""
# a window has a least width, and a frame has none
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><title>waiting</title>
<style>body {{ margin: 0 }} iframe {{ border: 0; display: block }}</style>
<script>addEventListener("message", e => {{ document.title = e.data; }});</script>
<iframe src="{name}" width="{width}" height="2400"></iframe>"""


def browse(page: Path, *flags: str, width: int = 1280) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", "--log-level=0", f"--window-size={width},2400"),
            *flags,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The report of chains that agree, and of chains made to fail."""
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    names = [f"site_{i}" for i in range(SITES - 1)]
    good = {name: rng.normal(size=(4, 1000)) for name in names}
    good["a_site_with_a_name_that_is_as_long_as_names_of_sites_become"] = rng.normal(
        size=(4, 1000, 2)
    )
    bad = {
        name: draws + 5 * np.arange(4)[:, None]
        for name, draws in good.items()
        if "long" not in name
    }
    stats = {"diverging": rng.random((4, 1000)) < 0.2}
    laws = {"good": (good, None), "bad": (bad, stats)}
    for name, (draws, figures) in laws.items():
        idata = diagnostics.inference_data(draws, figures, attrs={"kernel": "K" * 80})
        write_report(folder / f"{name}.html", idata, title=f"Chains that are {name}")
    return folder


def probed(page: Path, width: int, dark: bool) -> dict:
    """What the page says of itself at a width and under a colour scheme."""
    text = page.read_text(encoding="utf-8").replace("</head>", PROBE, 1)
    text = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    copy = page.with_name(f"probed-{page.name}")
    copy.write_text(text, encoding="utf-8")
    scheme = ("--force-dark-mode",) if dark else ()
    seen = browse(framed(copy, width), *scheme, "--dump-dom").stdout
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", seen, re.DOTALL)[1]))


def framed(page: Path, width: int) -> Path:
    frame = page.with_name(f"{width}-{page.name}")
    frame.write_text(FRAME.format(name=page.name, width=width), encoding="utf-8")
    return frame


def luminance(colour: str) -> float:
    """WCAG's relative luminance of "rgb(…)"."""
    parts = [int(float(c)) / 255 for c in re.findall(r"[\d.]+", colour)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["good", "bad"])
def test_it_is_whole_and_readable(pages, name, dark):
    seen = {width: probed(pages / f"{name}.html", width, dark) for width in WIDTHS}
    for width, found in seen.items():
        assert found["inner"] == width
        assert found["scrolled"] <= width, "the page is wider than the window"
        assert len(found["images"]) >= 5
        assert all(alt and drawn for alt, drawn in found["images"])
        assert all(found["headers"]), "a table's header without its scope"
        steps = np.diff([0, *found["headings"]])
        assert found["headings"].count(1) == 1 and steps.max() == 1
        for pair in found["colours"]:
            ink, ground = sorted(map(luminance, pair.split("|")))
            assert (ground + 0.05) / (ink + 0.05) >= 4.5, pair
    grounds = {pair.split("|")[1] for pair in seen[390]["colours"]}
    assert (max(map(luminance, grounds)) < 0.2) == dark, "the scheme was not followed"


@pytest.mark.parametrize("name", ["good", "bad"])
def test_it_says_nothing_on_the_console_and_asks_for_nothing(pages, name):
    page = pages / f"{name}.html"
    assert page.stat().st_size < MOST
    done = browse(page, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    assert not re.findall(r"""(?:src|href)=["'](?!data:)[^"']*""", done.stdout)
    warned = 'class="verdict bad"' in done.stdout and "Problem:" in done.stdout
    assert warned == (name == "bad")


def test_the_console_would_be_heard(pages):
    page = pages / "loud.html"
    page.write_text("<title>x</title><script>console.error('heard')</script>")
    assert "heard" in browse(page, "--dump-dom").stderr


def test_screenshots_are_kept(pages, tmp_path):
    folder = Path(os.environ.get("OZAKI_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    for width in WIDTHS:
        for scheme, flags in {"light": (), "dark": ("--force-dark-mode",)}.items():
            file = folder / f"report-{width}-{scheme}.png"
            name = "good" if scheme == "light" else "bad"
            page = framed(pages / f"{name}.html", width)
            browse(page, *flags, f"--screenshot={file}", width=max(width, 500))
            assert file.stat().st_size > 20_000
