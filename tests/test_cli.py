"""The command line: what it writes, and what it refuses before any work is done."""

import subprocess
import sys

import arviz as az
import pytest
import torch
from typer.testing import CliRunner

import ozaki
from ozaki.cli import app
from ozaki.scores.estimator import ScoreEstimator


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, run("demo", "--quick", "--out", str(out))


def test_the_demo_writes_a_report_draws_and_an_estimator(demo):
    out, result = demo
    assert result.exit_code == 0, result.output
    assert {p.name for p in out.iterdir()} == {"report.html", "draws.nc", "estimator"}
    assert "r_hat" in result.output and str(out / "report.html") in result.output
    assert "Samples over the data" in (out / "report.html").read_text(encoding="utf-8")
    draws = az.from_netcdf(out / "draws.nc")
    assert draws["posterior"]["x"].shape[::2] == (4, 2)
    estimator = ScoreEstimator.load(out / "estimator")
    assert torch.isfinite(estimator.expand(torch.tensor([[4.0, 80.0]])).gradient).all()


def test_a_second_demo_refuses_and_changes_nothing(demo):
    out, _ = demo
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    result = run("demo", "--quick", "--out", str(out))
    assert result.exit_code == 2
    assert str(out) in result.output and "--force" in result.output
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == before


def test_force_replaces_the_demo_and_leaves_the_rest(demo):
    out, _ = demo
    (out / "notes.txt").write_text("mine")
    before = (out / "report.html").stat().st_mtime_ns
    result = run("demo", "--quick", "--force", "--seed", "1", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert (out / "report.html").stat().st_mtime_ns > before
    assert (out / "notes.txt").read_text() == "mine"


def test_an_out_that_cannot_be_a_folder_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    for out, message in ((file, "is a file"), (tmp_path / "no" / "where", "could not be made")):
        result = run("demo", "--out", str(out))
        assert result.exit_code == 2 and message in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_python_dash_m_says_its_version_and_its_commands():
    said = subprocess.run(
        [sys.executable, "-m", "ozaki", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"ozaki {ozaki.__version__}\n"
    assert "demo" in run("--help").output
    assert run("no-such-command").exit_code == 2
