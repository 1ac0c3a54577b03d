"""The page holds everything it shows, says what is wrong first, and harms nobody."""

from html.parser import HTMLParser

import matplotlib.figure
import numpy as np
import pytest
import torch

from ozaki.diagnostics import SteinTest, inference_data
from ozaki.diagnostics.calibration import calibrate
from ozaki.report import page as report
from ozaki.report import plots

VOID = {"meta", "img", "br", "link", "input", "hr"}
FIGURES = 5  # densities, trace, ranks, autocorrelation, ESS growth


class Page(HTMLParser):
    """What a page holds, and whether its tags are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def draws(chains: int = 4, count: int = 300, dim: int = 2) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(chains, count, dim))


def written(tmp_path, x, stats=None, site="x", **options) -> tuple[str, Page]:
    path = tmp_path / "report.html"
    report.write_report(path, inference_data({site: x}, stats), title="A run", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_is_whole_and_loads_nothing(tmp_path):
    text, page = written(
        tmp_path,
        draws(),
        {"diverging": np.zeros((4, 300), bool)},
        data=torch.randn(50, 2),
        data_columns=["minutes", "wait"],
        law="a normal law",
        estimator_metrics={"dsm": -0.5, "calibration": [1.0, 1.1], "own": "figure"},
        stein=SteinTest(0.001, 0.4, 300),
        run_info={"kernel": "ScoreOzakiKernel", "seed": 3},
    )
    assert len(page.images) == FIGURES + 1
    for image in page.images:
        assert (image["src"] or "").startswith("data:image/png;base64,")
        assert len(image["alt"] or "") > 20
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        assert not {"href", "srcset", "onload", "onerror"} & set(attributes)
    for outward in ("http:", "https:", "url(", "@import"):
        assert outward not in text
    assert dict(page.tags[0][1]) == {"lang": "en"}
    assert next(t for t, _ in page.tags if t in ("h1", "h2")) == "h1"
    assert len(text) < 5e6  # 5 MB, which any mail takes
    for expected in ("4 chains agree", "a normal law", "x[1]", "ScoreOzakiKernel", "torch", "own"):
        assert expected in page.text
    # the verdict stands before the table and the figures
    assert text.index('class="headline"') < text.index("<table") < text.index("<figure")


def test_a_chain_made_to_fail_is_told_first(tmp_path):
    x, diverging = draws(), np.zeros((4, 300), bool)
    x[2, 143:] = np.nan
    diverging[2, 143:181] = True
    text, page = written(tmp_path, x, {"diverging": diverging})
    assert 'class="verdict bad"' in text
    assert "Do not trust these draws: chain 2 left the finite numbers at draw 143" in page.text
    assert "chain 2 diverged first at draw 143; 38 divergences in all" in page.text
    assert "smaller step_size" in page.text
    assert len(page.images) == FIGURES + 1


def test_names_are_escaped(tmp_path):
    text, page = written(
        tmp_path,
        draws(),
        site="<script>alert(1)</script>",
        law="<b>law</b>",
        run_info={"<i>": "<script>"},
        estimator_metrics={"<u>": "<script>"},
    )
    assert "<script" not in text and "<b>" not in text
    assert all("<script>" not in (image["src"] or "") for image in page.images)
    assert "<script>alert(1)<.script>[0]" in page.text


def test_of_many_chains_some_have_lines_and_the_page_says_so(tmp_path, monkeypatch):
    drawn = []
    encode = plots.encode
    monkeypatch.setattr(plots, "encode", lambda f: (drawn.append(f), encode(f))[1])
    _, page = written(tmp_path, draws(1500, 12))
    assert "A line each for 40 of 1,500 chains, evenly spaced" in page.text
    assert sum("40 of 1,500 chains" in (image["alt"] or "") for image in page.images) == 4
    (trace,) = (f for f in drawn if f.axes[-1].get_xlabel() == "draw")
    assert [len(axes.lines) for axes in trace.axes] == [plots.CHAINS, plots.CHAINS]
    first, last = (trace.axes[0].lines[i].get_ydata() for i in (0, -1))
    np.testing.assert_allclose(first, draws(1500, 12)[0, :, 0])
    np.testing.assert_allclose(last, draws(1500, 12)[-1, :, 0])


def test_many_components_are_cut_short_and_the_page_says_so(tmp_path):
    _, page = written(tmp_path, draws(count=60, dim=70))
    assert "The 50 components with the smallest ESS, of 70" in page.text
    assert "The first 8 components of 70" in page.text
    assert len(page.images) == FIGURES


@pytest.mark.parametrize(
    "x",
    [draws(1), draws(12, 40), draws(count=1), np.ones((4, 50, 2)), np.full((4, 50, 2), np.nan)],
    ids=["one chain", "twelve chains", "one draw", "constant", "nothing finite"],
)
def test_odd_draws_still_make_a_page(tmp_path, x):
    _, page = written(tmp_path, x, data=np.zeros((7, 2)))
    assert len(page.images) == FIGURES + 1


def test_settings_kept_with_the_draws_are_shown(tmp_path):
    idata = inference_data({"x": draws()}, attrs={"kernel": "ScoreLangevinKernel"})
    judged = report.write_report(tmp_path / "r.html", idata, title="t")
    assert judged.trusted
    assert "ScoreLangevinKernel" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_report_replaces_the_last_and_nothing_else(tmp_path):
    idata = inference_data({"x": draws(count=20)})
    with pytest.raises(IsADirectoryError, match="is a folder"):
        report.write_report(tmp_path, idata, title="t")
    with pytest.raises(FileNotFoundError, match="absent"):
        report.write_report(tmp_path / "absent" / "r.html", idata, title="t")
    path = tmp_path / "r.html"
    path.write_text("the last report")
    report.write_report(path, idata, title="t")
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]


def test_a_report_that_fails_leaves_the_last_one(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("the last report")

    def fail(file, page):
        file.write_text(page[:100])
        raise OSError("disk full")

    monkeypatch.setattr(report, "_write", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_report(path, inference_data({"x": draws(count=20)}), title="t")
    assert path.read_text() == "the last report" and list(tmp_path.iterdir()) == [path]


def test_figures_are_drawn_from_the_draws():
    x = {"x": draws(dim=1)[..., 0], "y": draws(dim=2)[..., 1]}
    for draw in (plots.trace, plots.rank, plots.autocorrelation, plots.ess_growth, plots.marginals):
        assert isinstance(draw(x), matplotlib.figure.Figure)
    lines = plots.trace(x).axes[0].get_lines()
    np.testing.assert_array_equal(lines[2].get_ydata(), x["x"][2])
    over = plots.samples_over_data(x, np.zeros((5, 2)), ["a", "b"]).axes[0]
    assert (over.get_xlabel(), over.get_ylabel()) == ("a", "b")
    assert [len(c.get_offsets()) for c in over.collections] == [1200, 5]
    with pytest.raises(ValueError, match="must be two"):
        plots.samples_over_data({"x": x["x"]}, None)
    with pytest.raises(ValueError, match="data must have shape"):
        plots.samples_over_data(x, np.zeros((5, 3)))


def test_ranks_of_equal_values_are_shared_by_all_chains():
    coins = np.random.default_rng(0).integers(0, 2, (4, 400)).astype(float)
    figure = plots.rank({"coin": coins})
    heights = [
        patch.get_data().values for patch in figure.axes[0].patches if hasattr(patch, "get_data")
    ]
    assert len(heights) == 4
    assert max(np.abs(h - 1).max() for h in heights) < 1  # by chain they would be 4 and 0


@pytest.mark.parametrize("scale", [1e-14, 1.0, 1e30])
def test_densities_are_drawn_at_any_scale(scale):
    x = scale * draws()[..., 0]
    figure = plots.marginals({"x": x})
    (first, *_) = [p for p in figure.axes[0].patches if hasattr(p, "get_data")]
    held, edges, _ = first.get_data()
    assert (held > 0).sum() > 20
    np.testing.assert_allclose([edges[0], edges[-1]], [x.min(), x.max()])


def test_dollars_in_a_name_are_dollars(tmp_path):
    written(tmp_path, draws(), site=r"price in $ and $_bad{")


def test_pictures_are_by_chain_whatever_the_order_of_dimensions(monkeypatch, unchecked):
    shown = []
    monkeypatch.setattr(report, "_sheet", lambda heading, few, places: shown.append(few))
    idata = inference_data({"x": draws(2, 20, 64).reshape(2, 20, 8, 8)})
    report._pictures(idata, None)
    idata["posterior"]["x"] = idata["posterior"]["x"].transpose("draw", "chain", ...)
    report._pictures(idata, None)
    np.testing.assert_array_equal(*shown)


def test_the_autocorrelation_drawn_is_that_of_its_definition():
    row = draws(dim=1)[0, :, 0]
    drawn = plots.autocorrelation({"x": row[None]}, lags=10).axes[0].get_lines()[1].get_ydata()
    c = row - row.mean()
    expected = [float(c[: len(c) - k] @ c[k:]) / float(c @ c) for k in range(10)]
    # float64: sums of 1,000 products over their size
    np.testing.assert_allclose(drawn, expected, atol=1e-12)


@pytest.mark.parametrize(
    "shape",
    [(5, 7), *(pytest.param(s, marks=pytest.mark.thorough) for s in [(1, 5, 7), (3, 4, 4)])],
    ids=str,
)
def test_images_and_the_calibration_are_shown(tmp_path, shape):
    seen = []

    def denoised(images):
        seen.append(images)
        return images / 2

    x = np.random.default_rng(1).random((6, 30, *shape))
    error = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    found = calibrate(error, torch.ones(50, 4), torch.ones(4), error[:, :2])
    _, page = written(tmp_path, x, site="<x>", denoised=denoised, calibration=found)
    assert len(page.images) == FIGURES + 3
    alts = [image["alt"] for image in page.images]
    assert alts[0] == "Draws of <x>: a row for each of 4 chains, 8 draws in order."
    assert "without their noise: another law" in alts[1] and "predicted variance" in alts[-1]
    assert f"predicted variance is {found.ratio:.2f}" in page.text
    places = [0, 4, 8, 12, 16, 20, 24, 29]
    assert len(seen) == 1 and np.array_equal(seen[0], x[:4, places])


@pytest.mark.parametrize("x", [np.zeros((4, 30, 3, 9)), np.zeros((4, 30, 2, 5, 5)), draws(dim=5)])
def test_what_is_no_image_is_not_shown_as_one(tmp_path, x):
    _, page = written(tmp_path, x)
    assert len(page.images) == FIGURES
