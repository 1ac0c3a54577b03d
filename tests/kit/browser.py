"""Pages as Chromium shows them, headless: what they say of themselves, and pictures of them."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
WIDTHS = (390, 1280)
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
    """A page in a browser that is let go at once; its console is in `stderr`."""
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


def probed(page: Path, width: int, dark: bool) -> dict:
    """What the page says of itself at a width and under a colour scheme."""
    text = page.read_text(encoding="utf-8").replace("</head>", PROBE, 1)
    text = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    copy = page.with_name(f"probed-{page.name}")
    copy.write_text(text, encoding="utf-8")
    scheme = ("--force-dark-mode",) if dark else ()
    seen = browse(framed(copy, width), *scheme, "--dump-dom").stdout
    told = re.search(r"<title>(.*?)</title>", seen, re.DOTALL)
    assert told is not None, seen
    return json.loads(html.unescape(told[1]))


def framed(page: Path, width: int) -> Path:
    """A page that shows another as a window of this width would."""
    frame = page.with_name(f"{width}-{page.name}")
    frame.write_text(FRAME.format(name=page.name, width=width), encoding="utf-8")
    return frame


def luminance(colour: str) -> float:
    """WCAG's relative luminance of "rgb(…)"."""
    parts = [int(float(c)) / 255 for c in re.findall(r"[\d.]+", colour)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
