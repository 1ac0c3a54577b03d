"""The report as a browser shows it: whole, silent, within the window, readable; Chromium, headless.

The screenshots go to the folder that the environment names in OZAKI_SCREENSHOTS.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest

from ozaki import diagnostics
from ozaki.report import write_report
from tests.kit.browser import CHROMIUM, WIDTHS, browse, framed, luminance, probed

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH to open it with")

SITES = 10
MOST = 5_000_000  # bytes


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
            # WCAG 2 asks for 4.5 of small text (AA)
            assert (ground + 0.05) / (ink + 0.05) >= 4.5, pair
    grounds = {pair.split("|")[1] for pair in seen[390]["colours"]}
    # of a scale from black, 0, to white, 1
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


@pytest.mark.thorough
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
