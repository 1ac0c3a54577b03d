"""`ozaki sample`, `report` and `compare`, configuration files, and how every command ends."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from ozaki import diagnostics, laws
from ozaki.cli import app, train
from ozaki.cli import application as shared
from ozaki.io.tables import named_table, table
from ozaki.laws import two_sample_test
from ozaki.scores.learned.trainer import DSMTrainer
from tests.kit.tolerances import MCSE

pytestmark = pytest.mark.usefixtures("unchecked", "undrawn")

MODEL = """
import pyro, pyro.distributions as dist

def line(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("obs", dist.Normal(slope * x, 1.0), obs=y)

def mean(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
"""
FEW = ("--num-samples", "300", "--warmup-steps", "300")
FEWER = ("--num-samples", "100", "--warmup-steps", "100")


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An estimator of one σ and one of a range, tables, and models."""
    folder = tmp_path_factory.mktemp("commands")
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    rows = pd.DataFrame({"x": x, "y": 2 * x + rng.normal(size=300)})
    rows.to_csv(folder / "rows.csv", index=False)
    rows[["y"]].to_csv(folder / "y.csv.gz", index=False)
    rows.assign(y=rows.y + 1).to_parquet(folder / "shifted.parquet")
    (folder / "models.py").write_text(MODEL)
    small = {"max_steps": 60, "width": 16, "seed": 0, "progress": False}
    data = torch.tensor(rows.to_numpy())
    DSMTrainer(sigma=0.5, **small).fit(data).save(folder / "one")
    DSMTrainer(sigma=(0.3, 1.0), **small).fit(data).save(folder / "range")
    return folder


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which sample adds the model's folder


@pytest.fixture(scope="module")
def drawn(folder):
    """Chains on a model of known posterior, as the command made them."""
    out = folder / "drawn"
    source = f"{folder / 'models.py'}:line"
    return out, run("sample", source, "--data", folder / "rows.csv", "--out", out, *FEW, "--json")


def test_a_model_is_sampled_with_the_columns_of_its_arguments(drawn):
    _, done = drawn
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["trusted"] and {Path(p).name for p in told["written"]} == {
        "draws.nc",
        "report.html",
    }
    rows = named_table("rows.csv")
    x, y = rows.values.unbind(1)
    precision = 1 / 25 + float(x @ x)  # of the conjugate posterior
    slope = told["summary"]["slope"]
    error = abs(slope["mean"] - float(x @ y) / precision)
    assert error < MCSE * slope["mcse_mean"] and slope["ess_bulk"] > 100
    assert slope["sd"] == pytest.approx(precision**-0.5, rel=MCSE / (2 * slope["ess_bulk"]) ** 0.5)


def test_a_model_of_one_argument_has_the_whole_table(folder):
    done = run("sample", "models.py:mean", "--data", "y.csv.gz", "--out", "whole", *FEW, "--json")
    assert done.exit_code == 0, done.output
    mu = json.loads(done.stdout)["summary"]["mu"]
    exact = float(table("y.csv.gz").sum()) / (300 + 1 / 25)
    assert abs(mu["mean"] - exact) < MCSE * mu["mcse_mean"]


SCRIPT = """
from __future__ import annotations

from dataclasses import dataclass

import pyro, pyro.distributions as dist
from helper_of_{name} import SCALE

@dataclass
class Prior:
    scale: float

def model(y, *args, **kw):
    from late_helper_of_{name} import NOISE
    assert not args and not kw
    mu = pyro.sample("mu", dist.Normal(0.0, Prior(SCALE).scale))
    with pyro.plate("rows", len(y)):
        pyro.sample("obs", dist.Normal(mu, NOISE), obs=y)

def line(x, y, *args, **kw):
    model(y - x)
"""


@pytest.mark.parametrize("function", ["model", "line"])
@pytest.mark.parametrize("name", ["own", "json"])
def test_a_model_s_file_is_run_as_python_runs_it(name, function, folder, tmp_path, monkeypatch):
    """Whatever it is called, with what stands beside it, and from another working folder."""
    beside, modules = tmp_path / "models", dict(sys.modules)
    beside.mkdir()
    (beside / f"{name}.py").write_text(SCRIPT.format(name=name))
    (beside / f"helper_of_{name}.py").write_text("SCALE = 5.0")
    (beside / f"late_helper_of_{name}.py").write_text("NOISE = 1.0")
    data = "y.csv.gz" if function == "model" else "rows.csv"
    monkeypatch.chdir(tmp_path)
    source = f"models/{name}.py:{function}"
    done = run("sample", source, "--data", folder / data, "--out", tmp_path / "out", *FEWER)
    assert done.exit_code in (0, 1), done.output
    assert sys.modules["json"] is json and modules.items() <= sys.modules.items()
    for added in (f"helper_of_{name}", f"late_helper_of_{name}"):
        monkeypatch.delitem(sys.modules, added)


def test_a_warm_up_may_end_by_itself(tmp_path):
    few = ("--num-samples", "20", "--warmup-steps")
    given = ("sample", "models.py:line", "--data", "rows.csv", "--out")
    done = run(*given, tmp_path / "out", *few, "auto")
    assert done.exit_code in (0, 1), done.output
    told = diagnostics.load(tmp_path / "out" / "draws.nc")["posterior"].attrs
    assert 550 <= told["warmup_steps"] <= 2000
    done = run(*given, tmp_path / "other", *few, "soon")
    assert done.exit_code == 2 and "'soon' is neither a whole number" in done.output
    done = run(*given, tmp_path / "other", *few, "-3")
    assert done.exit_code == 2 and "warmup_steps" in done.output


def test_an_estimator_is_sampled_and_of_a_range_at_a_sigma():
    done = run("sample", "range", "--sigma", "0.5", "--out", "learned", *FEWER)
    assert done.exit_code in (0, 1), done.output  # what a minute's training is worth is its affair
    assert "written: learned/draws.nc, learned/report.html" in done.output
    again = run("sample", "range", "--sigma", "0.5", "--out", "learned", *FEWER)
    assert again.exit_code == 2 and "add --force" in again.output
    more = run("sample", "one", "--out", "learned", "--force", "--kernel", "langevin", *FEWER)
    assert more.exit_code in (0, 1), more.output


def test_report_judges_draws_and_its_status_tells(drawn, tmp_path):
    out, _ = drawn
    done = run("report", out / "draws.nc", "--out", tmp_path / "r.html", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["trusted"]
    assert "<html" in (tmp_path / "r.html").read_text(encoding="utf-8")
    rng = np.random.default_rng(0)
    apart = rng.normal(size=(4, 100)) + 9 * np.arange(4)[:, None]
    diagnostics.save(diagnostics.inference_data({"x": apart}), tmp_path / "apart.nc")
    done = run("report", tmp_path / "apart.nc", "--out", tmp_path / "apart.html")
    assert done.exit_code == 1 and "Do not trust" in done.output
    assert (tmp_path / "apart.html").exists()


def test_compare_tells_one_law_from_two(drawn, tmp_path):
    done = run("compare", "rows.csv", "shifted.parquet", "--json")
    assert done.exit_code == 0, done.output
    _, other = json.loads(done.stdout)["sets"]
    # the column is the same: 0 but for float64's rounding
    assert abs(other["in_errors"]["x"]) < 1e-6 and other["in_errors"]["y"] > 5
    assert other["p_value"] < 0.01  # the command's own level
    rng = np.random.default_rng(1)
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(400, 3)))
    done = run("compare", tmp_path / "a.npy", tmp_path / "b.npy")
    assert done.exit_code == 0 and "as of one law" in done.output
    ranked = run("compare", "one", "--data", "rows.csv", "--json")
    names = [c["name"] for c in json.loads(ranked.stdout)["candidates"]]
    assert sorted(names) == ["autodiff", "constant", "head"]


def test_rows_of_a_table_are_independent_in_any_order():
    rng = np.random.default_rng(0)
    x, y = np.sort(rng.normal(size=1000)), np.sort(1 + rng.normal(size=1000))
    sorted_, mixed = (
        [laws.columns({"x": f(v)[None]}, independent=True)["x"] for v in (x, y)]
        for f in (np.asarray, rng.permutation)
    )
    assert laws.in_errors(*sorted_) == pytest.approx(laws.in_errors(*mixed))
    assert laws.in_errors(*sorted_) == pytest.approx(
        # the errors are estimated, by 1,000 values each: 5 √(1/2,000) = 0.11 at most
        (y.mean() - x.mean()) / (2 / 1000) ** 0.5,
        rel=0.1,
    )


@pytest.mark.parametrize("scale", [1e-170, 1.0, 1e200])
def test_laws_are_told_apart_at_any_scale(scale):
    rng = np.random.default_rng(0)
    one, other = ({"x": scale * (m + rng.normal(size=(1, 99)))} for m in (0.0, 3.0))
    assert two_sample_test(one, other, independent=(True, True)).p_value == 0.001


def test_energy_distance_is_that_of_its_definition_and_p_values_are_even():
    rng = np.random.default_rng(0)
    p = []
    for seed in range(40):
        one, other = ({"x": rng.normal(size=(1, 40))} for _ in range(2))
        p.append(two_sample_test(one, other, seed, independent=(True, True)).p_value)
    # of a uniform law: 5 standard errors of a mean of 40
    assert abs(np.mean(p) - 0.5) < 5 / np.sqrt(12 * 40)
    x, y = rng.normal(size=60), 1 + rng.normal(size=50)
    found = two_sample_test({"x": x[None]}, {"x": y[None]}, independent=(True, True))
    scale = np.concatenate([x, y]).std()

    def apart(a, b):
        return np.abs(a[:, None] - b).sum() / scale

    expected = 2 * apart(x, y) / 3000 - apart(x, x) / (60 * 59) - apart(y, y) / (50 * 49)
    # float64: the same sums, in another order
    assert found.energy_distance == pytest.approx(expected, rel=1e-9)


def test_a_configuration_file_gives_options_and_the_command_line_wins(tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        f'[train]\nout = "{tmp_path}/e"\nsigma = [0.2, 0.6]\nmax-steps = 5\nwidth = 8\njson = true'
    )
    done = run("train", "rows.csv", "--config", config, "--width", "4")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["metrics"]["steps"] == 5
    written = json.loads((tmp_path / "e" / "estimator.json").read_text())
    assert "0.2" in json.dumps(written) and '"width": 4' in json.dumps(written)


CONFIGS = {
    "[train]\nmax-stps = 5": "no option 'max-stps'; did you mean max-steps?",
    "[sample]\nseed = 1": "must hold a table [train], but held ['sample']",
    "[train]\nmax-steps = 'many'": "Invalid value for '--max-steps'",
    "[train": "is not a TOML file",
    "[train]\nmax_steps = true": "max_steps must be a value other than true or false, but was true",
    "[train]\nwidth = 4.5": "Invalid value for '--width'",
    "[train]\nobjective = ['dsm']": "objective must be one value, but was a list",
    "[train]\nforce = [true]": "force must be one value, but was a list",
    "[train]\nsigma = [0.2, true]": "sigma must be a number, or [low, high], but was [0.2, True]",
    "[train]\nsigma = true": "sigma must be a value other than true or false, but was true",
}


@pytest.mark.parametrize("text", CONFIGS)
def test_what_a_configuration_file_cannot_say(text, tmp_path):
    (tmp_path / "c.toml").write_text(text)
    done = run("train", "rows.csv", "--out", tmp_path / "e", "--config", tmp_path / "c.toml")
    assert done.exit_code == 2
    said = " ".join(done.output.replace("│", " ").split())
    assert CONFIGS[text] in said, said


def test_a_configuration_file_gives_several_values(tmp_path):
    (tmp_path / "c.toml").write_text('[compare]\nsources = ["rows.csv", "shifted.parquet"]')
    done = run("compare", "--config", tmp_path / "c.toml", "--json")
    assert done.exit_code == 0, done.output
    assert [s["source"] for s in json.loads(done.stdout)["sets"]] == ["rows.csv", "shifted.parquet"]
    (tmp_path / "c.toml").write_text('[compare]\nsources = "rows.csv"\ndata = "rows.csv"')
    done = run("compare", "--config", tmp_path / "c.toml")  # a folder named alone
    assert done.exit_code == 2 and "rows.csv" in done.output, done.output
    for value in ("[true, 'rows.csv']", "true", "[['rows.csv']]"):
        (tmp_path / "c.toml").write_text(f"[compare]\nsources = {value}")
        done = run("compare", "--config", tmp_path / "c.toml")
        assert done.exit_code == 2 and "sources must be" in done.output, done.output


MISUSE = [
    (("sample", "nowhere"), "nowhere"),
    (("sample", "range"), "--sigma must be given for an estimator of a range, 0.3 to 1"),
    (("sample", "range", "--sigma", 9), "sigma must lie in the range of training"),
    (("sample", "one", "--kernel", "hmc"), "--kernel must be one of 'ozaki', 'langevin'"),
    (("sample", "one", "--data", "rows.csv"), "SOURCE was an estimator; leave it out"),
    (("sample", "models.py:line", "--sigma", 1), "SOURCE was a model; leave it out"),
    (("sample", "none.py:line"), "none.py does not exist"),
    (("sample", "models.py"), "but was models.py; give models.py:NAME, the function"),
    (("sample", "models.py", "--data", "rows.csv"), "but was models.py; give models.py:NAME"),
    (("sample", "models:line", "--data", "rows.csv"), "but was models:line; give models.py:line"),
    (("sample", "bare.py:bare", "--data", "rows.csv"), "bare.py:bare has no arguments; leave it"),
    (
        ("sample", "models.py:lines"),
        "must define the function 'lines', but defined ['line', 'mean']",
    ),
    (("sample", "broken.py:f"), "broken.py could not be run: ZeroDivisionError"),
    (("sample", "models.py:line", "--data", "y.csv.gz"), "but had ['y']; name them in the first"),
    (("sample", "models.py:line"), "argument(s) x, y: give --data FILE, a table with columns of"),
    (("sample", "models.py:mean"), "argument(s) y: give --data FILE, a table that it is called"),
    (
        ("sample", "one", "--num-samples", 0),
        "num_samples must be a whole number of at least 1, but was 0",
    ),
    (("sample", "one", "--step-size", -1), "step_size must be"),
    (("report", "rows.csv"), "rows.csv is no file of draws by chain"),
    (("report", "nowhere.nc"), "nowhere.nc does not exist"),
    (("compare", "rows.csv"), "at least two sets of draws are needed"),
    (("compare", "rows.csv", "y.csv.gz"), "must have the 2 columns of rows.csv"),
    (("compare", "rows.csv", "hole.csv"), "hole.csv, line 3, column 2 (y): '' is not a number"),
    (("train", "hole.parquet"), "column 'y', row 2: a value is missing; remove or impute it"),
    (("train", "words.parquet"), "column 'y', must be numbers"),
    (("train", "broken.parquet"), "broken.parquet is not a whole .parquet file"),
    (("train", "labels-idx1-ubyte"), "labels are no table of numbers"),
    (("train", "flags.parquet"), "column(s) ['y'] were not (dtype bool); if these are"),
    (("compare", "rows.csv", "flags.parquet"), "column(s) ['y'] were not (dtype bool)"),
    (("train", "rows.csv", "--sigma", "0.5", "--header", "--max-steps", 0), "max_steps must be"),
    (("train", "shifted.parquet", "--header"), "header=True (--header) is of a .csv, but there"),
    (("sample", "one", "--no-header"), "header=False (--no-header) is of a .csv, but there was no"),
    (("compare", "shifted.parquet", "shifted.parquet", "--header"), "is of a .csv, but there was"),
    (("report", "nowhere.nc", "--data", "shifted.parquet", "--header"), "is of a .csv, but there"),
    (("denoise", "x.npy", "--estimator", "one", "--header"), "is of a .csv, but there was x.npy"),
    (("sample", "models.py:mean", "--data", "huge.csv"), "column 1 (y) of --data must fit"),
    (("sample", "models.py:mean", "--data", "late.csv"), "column 1 (y) of --data must be resolved"),
    (("sample", "models.py:line", "--data", "clock.csv"), "column 2 (x) of --data must be resolv"),
    (("sample", "models.py:line", "--data", "clock.csv"), "subtract an offset, such as the mean"),
    (("train", "rows.xls"), "must be a .csv, .parquet, .npy, .npz or IDX file, but its suffix was"),
]


@pytest.fixture(scope="module")
def mistakes(folder):
    (folder / "broken.py").write_text("1 / 0")
    (folder / "bare.py").write_text("def bare():\n    pass\n")
    (folder / "hole.csv").write_text("x,y\n1,2\n3,\n")
    pd.DataFrame({"x": [1.0, 2.0], "y": [1.0, np.nan]}).to_parquet(folder / "hole.parquet")
    pd.DataFrame({"x": [1.0, 2.0], "y": ["a", "b"]}).to_parquet(folder / "words.parquet")
    pd.DataFrame({"x": [1.0, 2.0], "y": [True, False]}).to_parquet(folder / "flags.parquet")
    (folder / "huge.csv").write_text("y\n1\n1e300\n")
    (folder / "broken.parquet").write_bytes(b"PAR1 nonsense")
    (folder / "labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 7]))
    (folder / "rows.xls").write_text("1,2")
    (folder / "late.csv").write_text("y\n" + "".join(f"{1.7e9 + 10 * i}\n" for i in range(10)))
    clock = "".join(f"{1.7e9 + i},{1.7e9 + 10 * i},{i}\n" for i in range(10))
    (folder / "clock.csv").write_text("t,x,y\n" + clock)


@pytest.mark.parametrize(("arguments", "message"), MISUSE, ids=lambda v: str(v)[:40])
def test_misuse_ends_in_a_sentence(arguments, message, mistakes, tmp_path):
    out = () if arguments[0] == "compare" else ("--out", tmp_path / "out")
    done = run(*arguments, *out)
    assert done.exit_code == 2, done.output
    assert message in done.output, done.output
    assert "Traceback" not in done.output and not (tmp_path / "out").exists()


BUGS = """
import warnings
import pyro, pyro.distributions as dist, torch
import {helper}

class Two(ValueError):
    def __init__(self, a, b):
        super().__init__(f"{{a}} and {{b}}")

def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    {line}
    with pyro.plate("rows", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)
"""
RAISED = {
    "raise RuntimeError('my own bug')": "RuntimeError: my own bug",
    "raise ValueError('my own bug')": "ValueError: my own bug",
    "raise Two(1, 2)": "Two: 1 and 2",  # which Pyro cannot make again
    "torch.ones(3) @ torch.ones(4, 4)": "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    "assert len(y) == 3": "AssertionError",
    "{}['a']": "KeyError: 'a'",
    "nothing": "NameError: name 'nothing' is not defined",
    "raise SystemExit('bye')": "SystemExit: bye",
}


def bugs(folder: Path, name: str, line: str) -> Path:
    """A file with a model of one line, and beside it a helper of the same name."""
    (folder / f"helper_{name}.py").write_text("def fail(y):\n    return y.nothing\n")
    path = folder / f"{name}.py"
    path.write_text(BUGS.format(helper=f"helper_{name}", line=line))
    return path


@pytest.mark.parametrize("line", RAISED)
def test_what_a_model_raises_is_told_with_its_line(line, folder, tmp_path, monkeypatch):
    name = f"bugs_{list(RAISED).index(line)}"
    path = bugs(tmp_path, name, line)
    monkeypatch.chdir(tmp_path)
    done = run("sample", f"{name}.py:model", "--data", folder / "y.csv.gz", "--out", "out")
    assert done.exit_code == 2 and not Path("out").exists()
    number = path.read_text().splitlines().index(f"    {line}") + 1
    said = done.output.strip()
    assert said.startswith(f"ozaki: {name}.py, line {number}: {RAISED[line]}"), said
    assert len(said.splitlines()) == 1


def test_what_a_file_beside_a_model_raises_is_told_with_both_lines(folder, tmp_path):
    path = bugs(tmp_path, "beside", "helper_beside.fail(y)")
    done = run("sample", f"{path}:model", "--data", folder / "y.csv.gz", "--out", tmp_path / "out")
    said = f"helper_beside.py, line 2, called from {path}, line 12: AttributeError: 'Tensor' "
    assert done.exit_code == 2 and said in done.output, done.output


def test_what_a_model_warns_of_is_told_once_with_its_line(folder, tmp_path):
    path = bugs(tmp_path, "warns", "warnings.warn('look here')")
    data = ("--data", folder / "y.csv.gz")
    done = run("sample", f"{path}:model", *data, "--out", tmp_path / "out", *FEWER)
    assert done.exit_code in (0, 1), done.output
    assert done.output.count(f"ozaki: {path}, line 12: UserWarning: look here\n") == 1


LOADED = {
    "def model(:\n    pass\n": "SyntaxError: invalid syntax ({}, line 1); mend it",
    "\nimport nothing_there\n": "ModuleNotFoundError: No module named 'nothing_there' ({}, line 2)",
    "import sys\nsys.exit(3)\n": "SystemExit: 3 ({}, line 2)",
    "def f():\n    1 / 0\n\nf()\n": "ZeroDivisionError: division by zero ({}, line 2)",
    "import argparse\nargparse.ArgumentParser().parse_args(['x'])\n": "SystemExit: 2 ({}, line 2)",
}


@pytest.mark.parametrize("text", LOADED)
def test_a_file_that_cannot_be_run_is_told_with_its_line(text, tmp_path):
    path = tmp_path / "m.py"
    path.write_text(text)
    done = run("sample", f"{path}:model", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert f"{path} could not be run: {LOADED[text].format(path)}" in done.output, done.output


def test_suffixes_of_what_commands_read_may_be_in_capitals(drawn, folder, tmp_path):
    (tmp_path / "ROWS.CSV").write_bytes((folder / "rows.csv").read_bytes())
    (tmp_path / "DRAWS.NC").write_bytes((drawn[0] / "draws.nc").read_bytes())
    (tmp_path / "MODELS.PY").write_text(MODEL)
    done = run("compare", tmp_path / "ROWS.CSV", "rows.csv")
    assert done.exit_code == 0 and "as of one law" in done.output, done.output
    done = run("compare", tmp_path / "DRAWS.NC", drawn[0] / "draws.nc")
    assert done.exit_code == 0, done.output
    data = ("--data", tmp_path / "ROWS.CSV")
    done = run("sample", f"{tmp_path}/MODELS.PY:line", *data, "--out", tmp_path / "out", *FEWER)
    assert done.exit_code in (0, 1), done.output


@pytest.mark.thorough
def test_every_command_tells_of_a_header_of_numbers_and_takes_a_flag(drawn, folder, tmp_path):
    rng = np.random.default_rng(3)
    years = tmp_path / "years.csv"
    pd.DataFrame(rng.normal(size=(60, 2))).to_csv(years, index=False)  # the names are 0 and 1
    one = tmp_path / "one.csv"
    pd.DataFrame(rng.normal(size=(60, 1))).to_csv(one, index=False)
    small = ("--max-steps", 5, "--width", 4)
    commands = {
        "train": ("train", years, *small),
        "compare": ("compare", years, "rows.csv"),
        "ranked": ("compare", "one", "--data", years),
        "denoise": ("denoise", years, "--estimator", "one", "--clean", years),
        "sample": ("sample", "models.py:mean", "--data", one, *FEWER),
        "report": ("report", drawn[0] / "draws.nc", "--data", one),
    }
    for name, command in commands.items():
        for flag in ((), ("--header",), ("--no-header",)):
            out = (
                () if command[0] == "compare" else ("--out", tmp_path / f"{name}{len(flag)}{flag}")
            )
            given = command
            if flag == ("--header",) and name == "compare":
                given = ("compare", years, "shifted.parquet")  # of which one is a .csv
            if flag == ("--no-header",) and name == "compare":
                given = ("compare", years, years)
            done = run(*given, *flag, *out)
            assert done.exit_code in (0, 1), done.output
            told = "no header found, 61 rows; header=True (--header)"
            assert (told in done.stderr) == (not flag), (name, flag, done.output)
        if name == "denoise":
            assert np.load(tmp_path / f"{name}1('--header',)" / "denoised.npz")["mean"].shape == (
                60,
                2,
            )


def test_a_configuration_file_says_whether_there_is_a_header(tmp_path):
    (tmp_path / "y.csv").write_text("1,2\n" + "3.5,4\n1,2\n" * 37)
    for value, held in (("true", 7), ("false", 8)):  # a tenth of 74 or 75 rows
        (tmp_path / "c.toml").write_text(
            f'[train]\nheader = {value}\nmax-steps = 3\nwidth = 4\nout = "{tmp_path}/{value}"'
        )
        done = run("train", tmp_path / "y.csv", "--config", tmp_path / "c.toml", "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["metrics"]["held_out_rows"] == held


def test_whatever_is_raised_ends_in_a_sentence(monkeypatch, tmp_path):
    def fit(*_, **__):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nand much more")

    monkeypatch.setattr(train.DSMTrainer, "fit", fit)
    done = run("train", "rows.csv", "--out", tmp_path / "e")
    assert done.exit_code == 2 and "much more" not in done.output
    assert "RuntimeError: mat1 and mat2 shapes cannot be multiplied (set OZAKI_DEBUG" in done.output
    monkeypatch.setenv(shared.DEBUG, "1")
    assert isinstance(run("train", "rows.csv", "--out", tmp_path / "e").exception, RuntimeError)

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.DSMTrainer, "fit", stopped)
    done = run("train", "rows.csv", "--out", tmp_path / "e")
    assert done.exit_code == 130 and "nothing more was written" in done.output


OVERWRITING = [
    (("report", "kept.nc"), "kept.nc"),
    (("report", "kept.nc", "--data", "kept.csv"), "kept.csv"),
    (("report", "kept.nc"), "../{}/kept.nc"),
    (("train", "kept.csv"), "kept.csv"),
    (("train", "pngs"), "pngs"),
    (("denoise", "kept.csv", "--estimator", "one"), "kept.csv"),
    (("denoise", "kept.csv", "--estimator", "one"), "one"),
    (("denoise", "kept.csv", "--estimator", "one", "--clean", "rows.csv"), "rows.csv"),
    (("denoise", "sheets/contact-sheet.png", "--estimator", "one"), "sheets"),
    (("sample", "models.py:mean", "--data", "y.csv.gz"), "models.py"),
    (("sample", "models.py:mean", "--data", "y.csv.gz"), "y.csv.gz"),
    (("sample", "one"), "one"),
]


@pytest.mark.parametrize(("arguments", "out"), OVERWRITING, ids=lambda v: str(v)[:40])
def test_what_is_read_is_never_written_over(arguments, out, folder):
    draws = np.random.default_rng(0).normal(size=(2, 20))
    (folder / "kept.nc").unlink(missing_ok=True)
    diagnostics.save(diagnostics.inference_data({"x": draws}), folder / "kept.nc")
    (folder / "kept.csv").write_text("x\n1.5\n2.5\n")
    for name in ("pngs/a.png", "sheets/contact-sheet.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"of which there is one copy")
    out = folder / out.format(folder.name)

    def held():
        inside = [out] if out.is_file() else sorted(p for p in out.iterdir() if p.is_file())
        return {p: p.read_bytes() for p in inside}

    before = held()
    for force in ((), ("--force",)):
        done = run(*arguments, "--out", out, *force)
        assert done.exit_code == 2 and "is read by this command" in done.output, done.output
        assert "choose another --out" in done.output and held() == before


def test_a_small_summary_is_printed_with_its_digits(tmp_path):
    draws = 4e-4 + 1e-4 * np.random.default_rng(0).normal(size=(4, 500))
    found = diagnostics.inference_data({"x": draws, "fixed": np.zeros((4, 500))})
    diagnostics.save(found, tmp_path / "small.nc")
    done = run("report", tmp_path / "small.nc", "--out", tmp_path / "r.html")
    lines = [line.split() for line in done.output.splitlines()]
    printed = dict(
        next(
            zip(lines[i], lines[i + 1][1:], strict=True)
            for i in range(len(lines))
            if "ess_bulk" in lines[i]
        )
    )
    exact = diagnostics.summary(found).loc["x"]
    for name in ("mean", "sd", "mcse_mean"):
        # three digits are printed at least
        assert float(printed[name]) == pytest.approx(exact[name], rel=1e-3)
    assert printed["ess_bulk"] == f"{exact['ess_bulk']:.0f}"
    assert printed["r_hat"] == f"{exact['r_hat']:.3f}"


@pytest.mark.parametrize("name", ["demo", "train", "sample", "denoise", "report", "compare"])
def test_help_has_an_example(name):
    done = run(name, "--help")
    assert done.exit_code == 0 and f"For example: ozaki {name} " in " ".join(done.output.split())


def test_an_index_that_pandas_wrote_is_no_column(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}, index=[5, 7])
    for path in (tmp_path / "i.csv", tmp_path / "i.csv.gz"):
        frame.to_csv(path)
        with pytest.raises(ValueError, match=r"i\.csv.*, line 1, column 1, has no name.*index=Fal"):
            named_table(path)
        frame.to_csv(path, index=False)
        assert named_table(path).columns == ["a", "b"]
    (tmp_path / "gap.csv").write_text("a, ,c\n1,2,3\n")
    with pytest.raises(ValueError, match="column 2, has no name"):
        table(tmp_path / "gap.csv")
    for index in (pd.RangeIndex(2), pd.RangeIndex(4, 8, 2), pd.Index([5, 7])):
        frame.set_axis(index).to_parquet(tmp_path / "i.parquet")
        assert named_table(tmp_path / "i.parquet").columns == ["a", "b"]
    pairs = pd.MultiIndex.from_tuples([(1, 2), (3, 4)])
    for index in (["x", "y"], [0.5, 1.5], pd.Index([5, 7], name="id"), pairs):
        frame.set_axis(index).to_parquet(tmp_path / "i.parquet")
        with pytest.raises(ValueError, match=r"i\.parquet has an index.*index=False.*reset_index"):
            named_table(tmp_path / "i.parquet")
        frame.set_axis(index).to_parquet(tmp_path / "i.parquet", index=False)
        assert named_table(tmp_path / "i.parquet").columns == ["a", "b"]
    # as programs that do not know pandas' metadata write it again
    frame["__index_level_0__"] = [5, 7]
    frame.reset_index(drop=True).to_parquet(tmp_path / "i.parquet")
    with pytest.raises(ValueError, match="'__index_level_0__', is the index of a pandas frame"):
        table(tmp_path / "i.parquet")


def test_idx_images_and_named_columns(tmp_path):
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in images.shape)
    (tmp_path / "some-idx3-ubyte").write_bytes(header + images.tobytes())
    read = table(tmp_path / "some-idx3-ubyte")
    assert read.shape == (2, 1, 3, 4) and read.dtype == torch.float32
    assert torch.equal(read[:, 0], torch.from_numpy(images) / 255)
    assert named_table("shifted.parquet").columns == ["x", "y"]
    assert torch.equal(table("rows.csv") + torch.tensor([0.0, 1.0]), table("shifted.parquet"))
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n")
    with pytest.raises(ValueError, match="names a column 'a' more than once"):
        table(tmp_path / "twice.csv")


CSVS = {
    '"a","b"\n"1",100.9,3.6\n': r"line 2, has 3 entries, but the first line names 2 columns; .*R",
    "a,b\n1,5,2,5\n": r"line 2, has 4 entries, but the first line names 2.*decimal point",
    "a,b\n1\n": r"line 2, has 1 entries, but the first line names 2 columns",
    "month,b\n2020_01,1\n": r"line 2, column 1 \(month\): '2020_01' is not a number",
    "1,2\n3,1_000.5\n": r"line 2, column 2: '1_000.5' is not a number",
}


@pytest.mark.parametrize("text", CSVS)
def test_a_csv_whose_numbers_would_be_misread_is_refused(text, tmp_path):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"x\.csv, {CSVS[text]}"):
        table(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("first_1,2_b\n1,2\n")  # which are names
    assert named_table(tmp_path / "x.csv").columns == ["first_1", "2_b"]


def test_columns_of_a_model_are_cast_where_nothing_is_lost(folder, tmp_path):
    """An intercept, a column that no argument names, and what float32 tells apart."""
    rows = "".join(f"0.1,{i % 3},{1.7e9 + i}\n" for i in range(30))
    (tmp_path / "x.csv").write_text("x,y,time\n" + rows)
    data = ("--data", tmp_path / "x.csv")
    done = run("sample", "models.py:line", *data, "--out", tmp_path / "out", *FEWER)
    assert done.exit_code in (0, 1), done.output
    torch.set_default_dtype(torch.float64)
    try:
        late = ("--data", folder / "clock.csv")
        done = run("sample", "models.py:line", *late, "--out", tmp_path / "late", *FEWER)
    finally:
        torch.set_default_dtype(torch.float32)
    assert done.exit_code in (0, 1), done.output
