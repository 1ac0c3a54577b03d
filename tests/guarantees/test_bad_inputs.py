"""What a hostile or hurried user passes: each meets an error that names it, before work is lost."""

import functools
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

from ozaki import MCMC, ScoreOzakiKernel
from ozaki.diagnostics import netcdf
from ozaki.foundation import validation
from ozaki.linalg import Dense
from ozaki.scores import GaussianScore
from ozaki.scores.learned import estimator_folder
from ozaki.scores.learned.standardisation import collect, standardisation

GAUSS = GaussianScore([1.0, -1.0], [[1.0, 0.3], [0.3, 2.0]])
FEW = {"num_samples": 8, "warmup_steps": 8, "disable_progbar": True}
Y = torch.tensor([1.0, 2.0])
MISSING = torch.tensor([1.0, float("nan")])
FLIPPED = dist.transforms.CorrCholeskyTransform()


class Row(NamedTuple):
    """A call, and the error that it must meet."""

    build: Callable[[], Any]
    message: str
    error: type[Exception] = ValueError


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    pyro.deterministic("positive", mu > 0)
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def walk(kernel=None, *args, **options) -> MCMC:
    mcmc = MCMC(kernel or ScoreOzakiKernel(GAUSS), **{**FEW, **options})
    mcmc.run(*args)
    return mcmc


def of_model(*args, **options) -> MCMC:
    return walk(ScoreOzakiKernel(model), *args, **options)


def never(*_):
    raise AssertionError("a step was walked")


def frame(**columns) -> pd.DataFrame:
    return pd.DataFrame(columns)


def rows(mean: float = 0.0, sd: float = 1.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Two columns, the first at `mean` with `sd`, made in float64 and then converted."""
    z = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale, offset = (torch.tensor(v, dtype=torch.float64) for v in ([sd, 1.0], [mean, 0.0]))
    return (z * scale + offset).to(dtype)


def coded(code: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """`rows` of which three say by a code that they are missing."""
    data = rows(dtype=dtype)
    data[[3, 50, 77], 1] = code
    return data


def fit(data: Any, kind: str | None = "columns", dtype: torch.dtype | None = None):
    """What `DSMTrainer.fit` does with data before it trains."""
    return standardisation(collect(data), kind, dtype)


DATA = {
    "spread of 1e300": Row(
        lambda: fit(rows(sd=1e300)), r"standard deviation from 1e-18 to 1e\+18.*\[0\] was inf"
    ),
    "spread of 1e30": Row(
        lambda: fit(rows(sd=1e30)), r"1e-18 to 1e\+18.*\[0\] was 1\.0\de\+30; change the units"
    ),
    "a code for missing values": Row(
        lambda: fit(coded(1.6e30)),
        r"3 of the 200 entries of column 1 were 1\.6e\+30 and the others at most [\d.]+ in size, "
        "which looks like a code for a missing value; remove or impute them",
    ),
    "a code below 0": Row(
        lambda: fit(coded(-3.4e38, torch.float32)), r"3 of .* column 1 were -3\.4e\+38 and .*code"
    ),
    "the largest float64 for a code": Row(
        lambda: fit(coded(float(np.finfo(float).max)), "scalar"),
        r"3 of the 400 entries of them were 1\.79769e\+308 .* code for a missing value",
    ),
    "spread of 1e-300": Row(lambda: fit(rows(sd=1e-300)), r"1e-18 to .*column\(s\) \[0\] was 0"),
    "spread of 1e-30, together": Row(
        lambda: fit(1e-30 * rows(), None), r"1e-18 to .*all entries was [\d.]+e-3[01]; change"
    ),
    "offset that rounds": Row(
        lambda: fit(rows(1e9, 1e2, torch.float32)),
        r"resolved by torch\.float32, but near 1e\+09 .* every 1\.2e\+02.*column\(s\) \[0\].*"
        "subtract an offset in float64",
    ),
    "offset that rounds, together": Row(
        lambda: fit(rows().float() + 1e6, "scalar"), "resolved by torch.float32.* all entries"
    ),
    "offset that rounds to a constant": Row(
        lambda: fit(rows(1e9, 1e-3, torch.float32)),
        r"column\(s\) \[0\] were constant; drop them.*; if they should vary, subtract an offset",
    ),
    "offset for walking in float32": Row(
        lambda: fit(rows(1e9), dtype=torch.float32), "resolved by torch.float32.*precision='64-tr"
    ),
    "constant column": Row(
        lambda: fit(rows(sd=0.0)), r"vary in every column.*\[0\] were constant; drop .* or None$"
    ),
    "one row left": Row(
        lambda: standardisation(rows()[:1], "columns"), "at least 2 rows to train on, but 1 was"
    ),
    "rows within one row": Row(
        lambda: fit(rows()[None]), r"but had 1, of shape \(200, 2\).*pass data\[0\]"
    ),
    "whole column": Row(
        lambda: fit(frame(age=[1, 2], weight=[1.0, 2.0])),
        r"floating-point, but column\(s\) \['age'\].*int64.*data\.astype\('float32'\)",
    ),
    "flags": Row(lambda: fit(frame(a=[True, False], b=[1.0, 2.0])), r"\['a'\] were not.*bool"),
    "nullable whole column": Row(
        lambda: fit(frame(a=[1, 2], b=[1.0, 2.0]).astype({"a": "Int64"})), r"\['a'\].*Int64"
    ),
    "columns of one name": Row(
        lambda: fit(pd.DataFrame([[1, 2.0], [2, 3.0]], columns=["a", "a"])), r"\['a'\].*int64"
    ),
    "category": Row(
        lambda: fit(frame(a=pd.Categorical([1.0, 2.0]), b=[1.0, 2.0])), r"\['a'\].*category.*encode"
    ),
    "dates": Row(lambda: fit(frame(a=pd.to_datetime(["2020", "2021"]))), r"numeric.*\['a'\]"),
    "missing": Row(
        lambda: fit(frame(a=[1.0, None], b=[1.0, 2.0]).astype("Float64")),
        "no missing values, but 1 of its 4 entries were missing",
    ),
    "whole tensor": Row(lambda: fit(torch.ones(3, 2).long()), r"int64.*example data\.float\(\)"),
    "bytes": Row(lambda: fit(np.ones((3, 2), np.uint8)), r"bytes of images by data / 255"),
    "whole array": Row(lambda: fit(np.ones((3, 2), int)), r"data\.astype\('float32'\)"),
    "whole list": Row(lambda: fit([[1, 2], [3, 4]]), r"torch\.tensor\(data, dtype=torch\.float32"),
    "complex": Row(lambda: fit(torch.ones(3, 2) * 1j), "must be real.*columns of their own"),
    "sparse": Row(lambda: fit(torch.eye(3).to_sparse()), r"dense.*data\.to_dense\(\)"),
    "nested": Row(
        lambda: fit(
            torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
        ),
        "of one shape",
    ),
    "ragged": Row(lambda: fit([[1.0, 2.0], [3.0]]), "but was a list that makes no array"),
    "recorded tensors": Row(
        lambda: fit([torch.ones(2, requires_grad=True)] * 3), "but was a list that makes no array"
    ),
    "path": Row(lambda: fit("data.csv"), "an array or a frame, but was 'data.csv'; read it"),
    "nothing": Row(lambda: fit(None), "an array or a frame, but was None"),
    "dict": Row(lambda: fit({"a": [1.0]}), "an array or a frame, but was a dict"),
    "array of dates": Row(
        lambda: fit(np.array([["2020-01-01"]], dtype="M8[D]")),
        "numeric, but its dtype was datetime",
    ),
    "long double": Row(
        lambda: fit(np.ones((3, 2), np.longdouble)), "a dtype that torch has.*astype"
    ),
}

NUMBERS = {
    "two numbers": Row(lambda: validation.positive("h", torch.ones(2)), "h must be a number"),
    "too long a number": Row(lambda: validation.positive("h", 10**400), "h must be a number"),
    "array for a choice": Row(
        lambda: ScoreOzakiKernel(GAUSS, metropolis=np.ones(2)),  # pyright: ignore
        "metropolis must be one of",
    ),
    "seed of 2**70": Row(lambda: MCMC(ScoreOzakiKernel(GAUSS), seed=2**70), r"to 2\*\*63 - 1.*but"),
    "seed below 0": Row(lambda: MCMC(ScoreOzakiKernel(GAUSS), seed=-1), "seed must be a whole"),
    "seed of text": Row(
        lambda: validation.seed("seed", "7"), "seed must be a whole .* but was '7'"
    ),
    "seed of truth": Row(lambda: validation.seed("seed", True), "seed must be a whole"),
    "seed of a half": Row(lambda: validation.seed("seed", 0.5), "seed must be a whole"),
}

RUNS = {
    "save_params unknown": Row(
        lambda: of_model(Y, save_params=["nu"], hook_fn=never),
        r"save_params must name sites among \['mu', 'positive'\], but named \['nu'\]",
    ),
    "save_params of a score": Row(
        lambda: walk(save_params=["mu"], hook_fn=never), r"among \['x'\], but named \['mu'\]"
    ),
    "save_params as text": Row(lambda: walk(save_params="x"), "a list of site names.*was 'x'"),
    "save_params empty": Row(lambda: walk(save_params=[]), r"or None for all, but was \[\]"),
    "hook_fn": Row(lambda: walk(hook_fn=3), "hook_fn must be callable, but was 3"),
    "transforms as a list": Row(lambda: walk(transforms=["x"]), "transforms must be a dict"),
    "transforms of functions": Row(
        lambda: walk(transforms={"x": torch.exp}), r"transforms\['x'\] must be a torch Transform"
    ),
    "transforms of classes": Row(
        lambda: walk(transforms={"x": dist.transforms.ExpTransform}), "the class ExpTransform"
    ),
    "transforms that do not fit": Row(
        lambda: walk(transforms={"x": FLIPPED}, hook_fn=never),
        r"transforms\['x'\] must take draws of shape \(2,\)",
    ),
    "kernel class": Row(lambda: MCMC(ScoreOzakiKernel), "was the class ScoreOzakiKernel"),
    "initial_params of a tensor": Row(
        lambda: walk(initial_params=torch.zeros(2), num_chains=1), "must be a dict of site"
    ),
    "initial_params of text": Row(
        lambda: walk(initial_params={"x": "origin"}, num_chains=1),
        r"initial_params\['x'\] must be a tensor.*but was 'origin'",
    ),
    "initial_params of whole numbers": Row(
        lambda: walk(initial_params={"x": torch.zeros(2).long()}, num_chains=1),
        r"initial_params\['x'\]\.float\(\)",
    ),
    "initial_params with a chain too many": Row(
        lambda: walk(initial_params={"x": torch.zeros(1, 2)}, num_chains=1),
        r"must have shape \(2,\).*but had \(1, 2\)",
    ),
    "initial_params where nothing is finite": Row(
        lambda: walk(initial_params={"x": torch.full((2,), 1e30)}, num_chains=1),
        r"initial_params must lie where .* in chain\(s\) \[0\] they do not",
    ),
    "observed NaN": Row(lambda: of_model(MISSING), r"observed site\(s\) \['y'\] hold NaN"),
    "observed NaN, with initial_params": Row(
        lambda: of_model(MISSING, initial_params={"mu": torch.zeros(4)}),
        r"initial_params must lie .*observed site\(s\) \['y'\] hold NaN",
    ),
    "arguments of the model": Row(of_model, r"arguments of the model, \(y\), but.*'y'", TypeError),
    "log density as a model": Row(
        lambda: walk(ScoreOzakiKernel(lambda x: -x.square().sum())),
        "if it is a log density .* LogDensityScore",
        TypeError,
    ),
    "step_size beyond the dtype": Row(
        lambda: walk(ScoreOzakiKernel(GAUSS, step_size=1e300)), r"at most 3\.4e\+38"
    ),
    "num_samples beyond memory": Row(
        lambda: walk(num_samples=10**15), "num_samples × num_chains must fit in memory"
    ),
    "num_samples beyond sizes": Row(
        lambda: walk(num_samples=10**30), "num_samples × num_chains must fit in memory"
    ),
    "summary of one draw": Row(
        lambda: walk(num_samples=1).summary(), r"at least 4 for summary\(\).*1 draw a chain"
    ),
    "diagnostics of one draw": Row(
        lambda: walk(num_samples=1).diagnostics(), r"at least 4 for diagnostics\(\)"
    ),
    "prob of summary": Row(lambda: walk().summary(2.0), "prob must lie between 0 and 1"),
    "draws below 0": Row(lambda: walk().get_samples(-1), "num_samples must be a whole"),
    "half a draw": Row(lambda: walk().get_samples(0.5), "num_samples must be a whole"),
    "grouped by text": Row(lambda: walk().get_samples(None, "no"), "group_by_chain must be True"),
    "frozen as text": Row(
        lambda: ScoreOzakiKernel(GAUSS, frozen="yes"),
        "frozen must be True, False or 'auto', but was 'yes'",
    ),
    "site as a number": Row(
        lambda: ScoreOzakiKernel(GAUSS, site=3), "site must be a name, but was 3"
    ),
    "checkpoint as a number": Row(
        lambda: walk(checkpoint=3), "checkpoint must be the path of a folder or None, but was 3"
    ),
    "checkpoints never": Row(
        lambda: walk(checkpoint_every=0), "checkpoint_every must be a whole number"
    ),
    "extended by none": Row(lambda: walk().extend(0), "num_samples must be a whole number"),
    "predictive as a number": Row(
        lambda: walk().to_inference_data(prior=-1), "prior must be a whole number"
    ),
    "site named chain": Row(
        lambda: walk(ScoreOzakiKernel(GAUSS, site="chain")).to_inference_data(),
        r"names must not be those of dimensions.*\['chain'\]",
    ),
    "report without a path": Row(lambda: walk().report(None), "path must name a file"),
}

BEFORE = ("get_samples", "diagnostics", "summary", "to_inference_data", "report")


@pytest.mark.parametrize("row", [*DATA.values(), *NUMBERS.values()], ids=[*DATA, *NUMBERS])
def test_data_and_numbers_that_cannot_be_used_are_named(row: Row, unchecked):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "data have .* rows only")
        with pytest.raises(row.error, match=row.message):
            row.build()


@pytest.mark.parametrize("row", RUNS.values(), ids=RUNS)
def test_runs_that_cannot_be_are_named(row: Row, unchecked):
    with pytest.raises(row.error, match=row.message):
        row.build()


@pytest.mark.parametrize("method", BEFORE)
def test_before_a_run_there_is_nothing_to_read(method: str, tmp_path: Path):
    mcmc = MCMC(ScoreOzakiKernel(GAUSS))
    arguments = [tmp_path / "r.html"] if method == "report" else []
    with pytest.raises(RuntimeError, match=r"call run\(\) first"):
        getattr(mcmc, method)(*arguments)


# what must not be refused ------------------------------------------------------------------------


def test_a_large_offset_that_the_dtype_resolves_is_taken_off_in_full():
    units, centre, spread = standardisation(rows(1e9, 1e-3), "columns")
    u = units.forward(rows(1e9, 1e-3), torch.float32)
    # 1e9 is resolved to 1e-7 in float64, a ten-thousandth of the deviation
    torch.testing.assert_close(u.std(0), torch.ones(2), rtol=1e-3, atol=0)
    assert (centre, spread) == (0.0, 1.0)
    assert units.mean.dtype == units.scale.dtype == torch.float64


def test_statistics_of_single_precision_data_are_those_of_double():
    data = rows(1e4, 1.0, torch.float32)
    units, _, _ = standardisation(data, "columns")
    # float64: the same statistics, in another order
    torch.testing.assert_close(units.scale, data.double().std(0), rtol=1e-12, atol=0)


def test_nullable_columns_without_missing_values_are_taken_as_they_are():
    data = frame(a=[1.0, 2.0], b=[3.0, 4.0])
    for dtypes, expected in (
        ({"a": "Float64", "b": "Float64"}, torch.float64),
        ({"a": "Float32", "b": "Float32"}, torch.float32),
        ({"a": "Float32", "b": "float64"}, torch.float64),
    ):
        found = validation.floating("data", data.astype(dtypes))
        assert found.dtype == expected
        torch.testing.assert_close(found.double(), torch.tensor([[1.0, 3.0], [2.0, 4.0]]).double())
    column = validation.floating("data", data["a"].astype("Float64"))
    assert column.shape == (2,)


@pytest.mark.filterwarnings("error")
def test_memory_that_torch_cannot_take_is_copied():
    data = np.arange(6.0).reshape(3, 2)
    frozen = data.copy()
    frozen.flags.writeable = False
    for array in (frozen, data[::-1][::-1], data.astype(">f8"), np.asfortranarray(data)):
        torch.testing.assert_close(validation.floating("data", array), torch.from_numpy(data))
    torch.testing.assert_close(
        validation.floating("data", data[::-1]), torch.from_numpy(data[::-1].copy())
    )
    assert validation.floating("h", np.float64(0.5)).shape == ()


@pytest.mark.parametrize("code", [-999.0, 1e10])
def test_numbers_that_may_be_measurements_are_taken_for_them(code):
    """What -999 stands for only a person knows."""
    assert float(fit(coded(code))[0].mean[1]) == pytest.approx(float(coded(code)[:, 1].mean()))


def test_few_rows_are_taken_with_a_warning():
    for count in (2, 49):
        with pytest.warns(UserWarning, match=rf"data have {count} rows only"):
            collect(rows()[:count])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collect(rows()[:50])


def test_a_warm_up_too_short_to_adapt_in_is_warned_of_once():
    with pytest.warns(UserWarning, match="warmup_steps is 3: too few") as caught:
        walk(warmup_steps=3)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        walk(ScoreOzakiKernel(GAUSS, step_size=0.1), warmup_steps=3)


@pytest.mark.parametrize("chains", [1, 2])
def test_initial_params_may_be_arrays_and_lists(chains: int, unchecked):
    for origin in (np.zeros(2, np.float32), [0.0, 0.0]):
        start = {"x": origin if chains == 1 else [origin, origin]}
        draws = walk(initial_params=start, num_chains=chains).get_samples(group_by_chain=True)
        assert draws["x"].shape == (chains, 8, 2)


def test_a_wrapper_may_take_other_arguments_than_its_model():
    @functools.wraps(model)
    def bound():
        return model(Y)

    assert set(walk(ScoreOzakiKernel(bound)).get_samples()) == {"mu", "positive"}


def test_the_largest_seed_walks():
    assert walk(seed=2**63 - 1).get_samples()["x"].shape == (32, 2)


def test_flags_among_the_sites_have_a_share_for_a_mean(capsys):
    mcmc = of_model(Y)
    assert mcmc.get_samples()["positive"].dtype == torch.bool
    mcmc.summary()
    printed = capsys.readouterr().out
    assert re.search(r"positive +[01]\.\d\d", printed) and "Number of divergences: 0" in printed
    assert set(mcmc.diagnostics()) == {"mu", "positive", "divergences", "acceptance rate"}


# the archive -------------------------------------------------------------------------------------


def saved(folder: Path) -> Path:
    return estimator_folder.write(folder, {"a": 1.5}, {"w": torch.arange(3.0)}, overwrite=False)


def test_an_archive_comes_back(tmp_path: Path):
    settings, tensors = estimator_folder.read(saved(tmp_path / "e"))
    assert settings["a"] == 1.5 and settings["version"] == 2
    torch.testing.assert_close(tensors["w"], torch.arange(3.0))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("place", [0, 20, -1])
def test_a_flipped_bit_in_the_weights_is_seen(tmp_path: Path, place: int):
    folder = saved(tmp_path / "e")
    flip(folder / estimator_folder.WEIGHTS, place)
    with pytest.raises(ValueError, match="is truncated, damaged or another estimator's") as caught:
        estimator_folder.read(folder)
    assert str(folder / estimator_folder.WEIGHTS) in str(caught.value)


def test_an_archive_without_a_digest_is_refused(tmp_path: Path):
    folder = saved(tmp_path / "e")
    path = folder / estimator_folder.SETTINGS
    path.write_text(path.read_text().replace(estimator_folder.DIGEST, "other"))
    with pytest.raises(ValueError, match="has None"):
        estimator_folder.read(folder)
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(ValueError, match="must be of version 2, but was 1"):
        estimator_folder.read(folder)


@pytest.mark.parametrize(
    ("settings", "tensors", "message"),
    [
        ({"metrics": {"dsm": float("nan")}}, {}, "metrics must be finite numbers"),
        ({"metrics": torch.ones(1)}, {}, "metrics must be finite numbers"),
        ({}, {"w": torch.tensor([float("inf")])}, "w must be finite to be saved"),
    ],
)
def test_what_could_not_be_read_is_not_written(tmp_path: Path, settings, tensors, message):
    with pytest.raises(ValueError, match=message):
        estimator_folder.write(tmp_path / "e", settings, tensors, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_is_named(tmp_path: Path, unchecked):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"notes\.txt is a file"):
        estimator_folder.read(file)
    with pytest.raises(ValueError, match="folder must be a path, but was a int"):
        estimator_folder.read(3)  # pyright: ignore
    (saved(tmp_path / "e") / estimator_folder.WEIGHTS).unlink()
    (tmp_path / "e" / estimator_folder.WEIGHTS).mkdir()
    with pytest.raises(FileNotFoundError, match=estimator_folder.WEIGHTS):
        estimator_folder.read(tmp_path / "e")


def test_a_path_of_draws_must_be_one(unchecked):
    with pytest.raises(ValueError, match="path must name a file, but was 3"):
        netcdf.existing_folder(3)  # pyright: ignore


@pytest.mark.parametrize("after", [1, 12, 20, 30])
@pytest.mark.parametrize("extra", [False, True])
def test_a_model_whose_sites_change_between_calls_is_named(after, extra):
    """Wherever it changes: while it is looked at, tried, or walked on."""
    calls = []

    def shifting():
        calls.append(None)
        grown = len(calls) > after
        pyro.sample("z", dist.Normal(torch.zeros(3 if grown and not extra else 2), 1.0).to_event(1))
        if grown and extra:
            pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'w'" if extra else "'z'"):
        walk(ScoreOzakiKernel(shifting))


class HalfBroken(GaussianScore):
    """Without a curvature where x1 > 0."""

    def expand(self, x, curvature=None):
        at = super().expand(x, curvature)
        if curvature is None:
            return at
        found = torch.where(x[..., :1, None] > 0, torch.nan, at.curvature.dense())
        return at._replace(curvature=Dense(found))


@pytest.mark.usefixtures("unchecked")
def test_a_curvature_that_is_not_finite_is_named_and_can_be_frozen():
    broken = HalfBroken([0.0, 0.0], [[1.0, 0.3], [0.3, 2.0]])
    start = {"x": torch.tensor([[-1.0, 0.0], [1.0, 0.0]])}
    options = {"num_chains": 2, "initial_params": start, "warmup_steps": 500}
    with pytest.raises(ValueError, match=r"the curvature must be finite .* chains \[1\]"):
        walk(ScoreOzakiKernel(broken, curvature="dense"), **options)
    mcmc = walk(ScoreOzakiKernel(broken, frozen=True), num_samples=500, seed=0, **options)
    # 5 standard errors of a share of 625 independent draws, of the 1,000
    assert abs(float((mcmc.get_samples()["x"][:, 0] > 0).float().mean()) - 0.5) < 0.1


NAMES = {
    "chain": "names must not be those of dimensions",
    "draw": "names must not be those of dimensions",
    "x_dim_0": "names must not be those of dimensions",
    "x[0]": "is a site and an entry of another",
    "": "names must be fit for a file",
    "/": "names must be fit for a file",
    "a.b": "names must differ with '.' for '/'",
    "z": "z must be numbers, but its dtype was complex",
}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_names_and_values_that_no_file_holds_are_refused_before_the_walk(
    name, stored, tmp_path, monkeypatch
):
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("a/b", dist.Normal(0.0, 1.0))
        value = torch.complex(x, x) if name == "z" else x.sum()
        pyro.deterministic(name, value)

    def walked(*_):
        raise AssertionError("the chains were walked")

    monkeypatch.setattr("ozaki.sampling.loop.SamplingLoop.run", walked)
    store = tmp_path / "store" if stored else None
    mcmc = MCMC(ScoreOzakiKernel(model), num_samples=4, num_chains=2, store=store)
    with pytest.raises(ValueError, match=re.escape(NAMES[name])):
        mcmc.run()
    assert list(tmp_path.iterdir()) == []
