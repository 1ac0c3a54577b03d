"""The command line: what it writes, and what it refuses before any work is done."""

import subprocess
import sys
from pathlib import Path

import arviz as az
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import ozaki
from ozaki.cli import app
from ozaki.cli import demo as demonstration
from ozaki.scores.learned.estimator import ScoreEstimator


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


@pytest.mark.thorough
def test_force_replaces_the_demo_and_leaves_the_rest(demo, monkeypatch):
    out, _ = demo
    monkeypatch.setitem(demonstration.QUICK, "max_steps", 20)
    monkeypatch.setitem(demonstration.QUICK, "num_samples", 50)
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


@pytest.mark.thorough
def test_python_dash_m_says_its_version_and_its_commands():
    said = subprocess.run(
        [sys.executable, "-m", "ozaki", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"ozaki {ozaki.__version__}\n"
    assert "demo" in run("--help").output
    assert run("no-such-command").exit_code == 2


def test_train_learns_a_table_and_says_what_is_wrong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = torch.randn(120, 2, generator=torch.Generator().manual_seed(0)).tolist()
    lines = ["height,weight", *(f"{a:.4f},{b:.4f}" for a, b in rows)]
    Path("t.csv").write_text("\n".join(lines))
    small = ["--max-steps", "20", "--width", "8", "--batch-size", "16"]

    def train(*arguments):
        return run("train", *arguments, *small)

    done = train("t.csv", "--out", "e", "--sigma", "0.1:1", "--checkpoint", "c", "--logger", "csv")
    assert done.exit_code == 0, done.output
    assert ScoreEstimator.load("e").sigma == (0.1, 1.0)
    logged = next(Path("ozaki-logs").rglob("metrics.csv")).read_text()
    assert "held_out/residual_vr" in logged and "held_out/calibration" in logged
    again = train("t.csv", "--out", "e2", "--sigma", "0.1:1", "--checkpoint", "c", "--resume")
    assert again.exit_code == 0, again.output
    Path("bad.csv").write_text("a,b\n1,2\n3,\n")
    np.savez("two.npz", a=np.zeros((5, 2)), b=np.zeros(3))
    for arguments, message in [
        (("t.csv", "--out", "e"), "exists, and nothing in it was changed; add --force"),
        (("none.csv", "--out", "n"), "none.csv does not exist"),
        (("bad.csv", "--out", "n"), r"line 3, column 2 (b): '' is not a number"),
        (("two.npz", "--out", "n"), "must hold one array, but held"),
        (("t.csv", "--out", "n", "--sigma", "1:0.1"), "swap the two"),
        (("t.csv", "--out", "n", "--sigma", "wide"), "sigma must be one of 'auto'"),
        (("t.csv", "--out", "n", "--objective", "ism"), "objective must be one of"),
        (("t.csv", "--out", "n", "--checkpoint", "c"), "holds the state of a run"),
    ]:
        refused = train(*arguments)
        assert refused.exit_code == 2, arguments
        assert message in refused.output, refused.output
        assert not Path("n").exists()
