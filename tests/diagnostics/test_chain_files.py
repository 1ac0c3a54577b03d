"""Draws that others wrote: what is read, what is left out, and what is refused by its cause."""

import gzip
import json
import shutil
import zipfile

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ozaki import MCMC, ScoreOzakiKernel, diagnostics
from ozaki.cli import app
from ozaki.diagnostics.arviz_data import gathered
from ozaki.diagnostics.chain_files import load, notes
from ozaki.io import stan
from ozaki.scores import GaussianScore

pytestmark = pytest.mark.usefixtures("unchecked", "undrawn")

HEAD = """# stan_version_major = 2
# model = m_model
# method = sample (Default)
#   sample
#     num_samples = {draws}
#     num_warmup = {warmup}
#     save_warmup = {saved}
#     thin = {thin}
#     algorithm = {algorithm}
# id = {id}
# random
#   seed = 12345
lp__,accept_stat__,stepsize__,treedepth__,n_leapfrog__,divergent__,energy__,mu,b.1.1,b.2.1,b.1.2,b.2.2
"""
ADAPTED = """# Adaptation terminated
# Step size = 0.7
# Diagonal elements of inverse mass matrix:
# 0.52, 1, 1, 1, 1
"""
ELAPSED = "# \n#  Elapsed Time: 0.01 seconds (Warm-up)\n# \n"


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def stan_text(values, chain=1, warmup=None, thin=1, marked=True, algorithm="hmc (Default)", **told):
    """A chain as CmdStan writes it, (draws, 12); `warmup` its saved draws of warm-up."""
    saved = [] if warmup is None else list(warmup)
    head = {"draws": len(values) * thin, "warmup": 100, "saved": int(warmup is not None)}
    if warmup is not None:
        head["warmup"] = len(saved) * thin
    rows = [",".join(f"{v:.17g}" for v in row) + "\n" for row in [*saved, *values]]
    head |= {"thin": thin, "id": chain, "algorithm": algorithm} | told
    first, rest = rows[: len(saved)], rows[len(saved) :]
    adapted = ADAPTED if marked else ""
    return HEAD.format(**head) + "".join(first) + adapted + "".join(rest) + ELAPSED


def stan_values(draws=200, seed=0):
    values = normal(draws, 12, seed=seed)
    values[:, 5] = 0
    values[:, 1] = 0.9
    return values


@pytest.fixture
def stan_chains(tmp_path):
    values = [stan_values(seed=i) for i in range(4)]
    folder = tmp_path / "run"
    folder.mkdir()
    for i, v in enumerate(values):
        (folder / f"m_{i + 1}.csv").write_text(stan_text(v, i + 1))
    return folder, np.stack(values)


def plain(draws=400, **more):
    idata = diagnostics.inference_data(
        {"x": normal(4, draws, 2), "y": normal(4, draws, seed=1)},
        {"diverging": np.zeros((4, draws), bool), "lp": normal(4, draws, seed=2)},
    )
    for name, (group, dims, values) in more.items():
        idata[group][name] = xr.DataArray(values, dims=dims)
    return idata


def ozaki(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def report(path, tmp_path, *more):
    return ozaki("report", path, *more, "--out", tmp_path / "r.html", "--force")


# what is left out ---------------------------------------------------------------------------------

OTHER = {
    "text": (("chain", "draw"), np.full((4, 400), "a text", object)),
    "letters": (("chain", "draw"), np.full((4, 400), "ab")),
    "a number a chain": (("chain",), np.arange(4.0)),
    "one number": ((), np.array(3.0)),
    "no chains": (("draw",), np.arange(400.0)),
    "other dimensions": (("divergence",), np.arange(3.0)),
    "days": (("chain", "draw"), np.full((4, 400), np.datetime64("2026-01-01", "ns"))),
    "complex": (("chain", "draw"), np.full((4, 400), 1 + 2j)),
}


@pytest.mark.parametrize("group", ["posterior", "sample_stats"])
@pytest.mark.parametrize("what", OTHER)
def test_what_is_no_draw_is_left_out_and_told(what, group, tmp_path):
    dims, values = OTHER[what]
    idata, alone = plain(other=(group, dims, values)), plain()
    judged = diagnostics.verdict(idata)
    assert judged.trusted and judged.problems == diagnostics.verdict(alone).problems
    assert any("other of " + group in note for note in judged.notes)
    assert list(diagnostics.summary(idata).index) == ["x[0]", "x[1]", "y"]
    assert len(diagnostics.left_out(idata)) == 1 and diagnostics.left_out(alone) == []
    if what == "complex":  # which files of HDF5 hold in a way of their own
        return
    path = diagnostics.save(idata, tmp_path / "d.nc")
    done = report(path, tmp_path)
    assert done.exit_code == 0 and f"other of {group} (d" in done.stderr, done.output
    assert f"other of {group}" in (tmp_path / "r.html").read_text(encoding="utf-8")
    diagnostics.save(alone, tmp_path / "alone.nc")
    done = ozaki("compare", path, tmp_path / "alone.nc")
    assert done.exit_code == 0 and f"other of {group}" in done.stderr, done.output


def test_a_posterior_of_such_alone_is_refused(tmp_path):
    idata = plain(other=("posterior", ("chain",), np.arange(4.0)))
    del idata["posterior"]["x"], idata["posterior"]["y"]
    path = diagnostics.save(idata, tmp_path / "d.nc")
    done = report(path, tmp_path)
    assert done.exit_code == 2 and "but held only other of posterior (dimensions" in done.output


def test_statistics_of_other_draws_are_left_out(tmp_path):
    """Half of them would be taken for those of all."""
    idata = plain()
    stats = diagnostics.dataset(idata["sample_stats"]).isel(draw=slice(200))
    halved = gathered({"posterior": diagnostics.dataset(idata["posterior"]), "sample_stats": stats})
    done = report(diagnostics.save(halved, tmp_path / "d.nc"), tmp_path)
    assert done.exit_code == 1 and "4 chains of 200 draws, unlike the posterior" in done.stderr


# without statistics, and without draws ------------------------------------------------------------


def test_draws_without_statistics_are_shown_and_not_trusted(tmp_path):
    """As ArviZ leaves a file whose statistics could not be written."""
    idata = plain()
    idata["sample_stats"].attrs["what"] = object()
    with pytest.raises(TypeError):
        idata.to_netcdf(str(tmp_path / "left.nc"), engine="h5netcdf")
    bare = diagnostics.save(diagnostics.inference_data({"x": normal(4, 400)}), tmp_path / "bare.nc")
    for path in (tmp_path / "left.nc", bare):
        if not path.exists():  # ArviZ 1 leaves nothing
            continue
        done = report(path, tmp_path)
        assert done.exit_code == 1, done.output
        assert "Do not trust these draws: no statistics of the sampler are there" in done.output
    assert diagnostics.verdict(load(bare)).trusted  # in Python one says what one wants
    assert not diagnostics.verdict(load(bare), need_stats=True).trusted
    diagnostics.save(plain(), tmp_path / "with.nc")  # the remedy
    assert report(tmp_path / "with.nc", tmp_path).exit_code == 0


def test_a_file_without_any_group_is_told_by_its_cause(tmp_path):
    h5py.File(tmp_path / "left.nc", "w").close()
    done = report(tmp_path / "left.nc", tmp_path)
    assert done.exit_code == 2 and "where writing it raised an error, write it again" in done.output
    (tmp_path / "three.nc").write_bytes(b"CDF\x01" + bytes(60))
    done = report(tmp_path / "three.nc", tmp_path)
    assert (
        done.exit_code == 2
        and "is NetCDF-3, the classic format, which has no groups" in done.output
    )


def unwritten(written, fill=np.nan, chains=slice(None), stats=True):
    """Draws of which those from `written` on are as files fill what nobody wrote."""
    idata = plain()
    for group in ("posterior", "sample_stats"):
        for array in idata[group].data_vars.values():
            if array.dtype.kind == "f":
                array.values[chains, written:] = fill
    parts = ("posterior", "sample_stats") if stats else ("posterior",)
    return gathered({name: diagnostics.dataset(idata[name]) for name in parts})


@pytest.mark.parametrize("stats", [True, False])
@pytest.mark.parametrize("fill", [np.nan, 9.969209968386869e36])
def test_draws_that_were_never_written_are_told_by_their_cause(fill, stats, tmp_path):
    idata = unwritten(150, fill, stats=stats)
    path = diagnostics.save(idata, tmp_path / "d.nc")
    done = report(path, tmp_path)
    assert done.exit_code == 2, done.output
    assert "the draws from 150 on of its 400 are empty in chain 0" in done.output
    kept = idata.isel(draw=slice(150))  # the remedy
    assert load(diagnostics.save(kept, tmp_path / "k.nc"))["posterior"].sizes["draw"] == 150
    none = diagnostics.save(unwritten(0, fill, stats=stats), tmp_path / "none.nc")
    done = report(none, tmp_path)
    assert done.exit_code == 2 and "holds no draws: in chain 0 all of them are empty" in done.output
    if stats:
        one = diagnostics.save(unwritten(150, fill, slice(2, 3)), tmp_path / "one.nc")
        assert "from 150 on of its 400 are empty in chain 2" in report(one, tmp_path).output


def test_a_chain_that_left_the_finite_numbers_is_not_taken_for_that(tmp_path):
    x, diverging = normal(4, 400, 2), np.zeros((4, 400), bool)
    x[2, 143:], diverging[2, 143:] = np.nan, True
    lp = normal(4, 400)
    lp[2, 143:] = np.nan
    for stats in ({"diverging": diverging, "lp": lp}, {"lp": normal(4, 400)}, None):
        path = diagnostics.save(diagnostics.inference_data({"x": x}, stats), tmp_path / "d.nc")
        done = report(path, tmp_path)
        assert done.exit_code == 1 and "chain 2" in done.output, done.output


def test_no_draws_at_all_are_told(tmp_path):
    data = xr.Dataset({"x": (("chain", "draw"), np.zeros((4, 0)))})
    done = report(diagnostics.save(gathered({"posterior": data}), tmp_path / "d.nc"), tmp_path)
    assert done.exit_code == 2 and "holds no draws yet" in done.output
    with pytest.raises(ValueError, match="a data set of draws must have dimensions chain and draw"):
        diagnostics.inference_data(data)


# dimensions by their names ------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.permutations(["chain", "draw", "a", "b"]), st.integers(0, 2))
def test_chains_and_draws_are_found_by_name(order, extra):
    dims = [d for d in order if d in ("chain", "draw", *"ab"[:extra])]
    values = normal(4, 50, *(2, 3)[:extra])
    array = xr.DataArray(values, dims=("chain", "draw", *"ab"[:extra])).transpose(*dims)
    found = diagnostics.inference_data({"x": array}, {"lp": array})
    want = values if extra < 2 or dims.index("a") < dims.index("b") else values.swapaxes(2, 3)
    np.testing.assert_array_equal(found["posterior"]["x"], want)
    assert found["posterior"].sizes["chain"] == 4 and found["sample_stats"].sizes["draw"] == 50
    whole = diagnostics.inference_data(xr.Dataset({"x": array}))  # which is not read
    plainly = diagnostics.inference_data({"x": want})
    assert diagnostics.summary(whole).equals(diagnostics.summary(plainly))


def test_files_whose_dimensions_stand_in_another_order(tmp_path):
    idata = plain()
    turned = {
        name: diagnostics.dataset(idata[name]).transpose(..., "draw", "chain")
        for name in ("posterior", "sample_stats")
    }
    path = diagnostics.save(gathered(turned), tmp_path / "d.nc")
    assert diagnostics.verdict(load(path)) == diagnostics.verdict(idata)
    np.savetxt(tmp_path / "rows.csv", normal(9, 3), delimiter=",", header="a,b,c", comments="")
    assert report(path, tmp_path, "--data", tmp_path / "rows.csv").exit_code == 0


def test_arrays_whose_dimensions_have_other_names():
    values = normal(4, 50)
    by_place = diagnostics.inference_data({"x": xr.DataArray(values)})  # dim_0, dim_1: nobody's
    assert by_place["posterior"].sizes["chain"] == 4
    for dims in (("draw", "walker"), ("chain", "dim_1"), ("a", "b")):
        with pytest.raises(ValueError, match=r"x must have dimensions chain and draw, but had"):
            diagnostics.inference_data({"x": xr.DataArray(values, dims=dims)})
    with pytest.raises(ValueError, match="must be a dict of site"):
        diagnostics.dataset(values)
    with pytest.raises(ValueError, match=r"such as idata\['posterior'\]"):
        diagnostics.inference_data(plain())
    assert diagnostics.inference_data(plain()["posterior"])["posterior"].sizes["draw"] == 400
    stacked = diagnostics.dataset(plain()["posterior"]).stack(sample=("chain", "draw"))
    with pytest.raises(ValueError, match=r"give \.unstack\('sample'\)"):
        diagnostics.inference_data(stacked)
    assert diagnostics.inference_data(stacked.unstack("sample"))["posterior"].sizes["chain"] == 4


# Stan's CSV ---------------------------------------------------------------------------------------


def test_stans_chains_are_read_by_name_and_index(stan_chains, tmp_path):
    folder, values = stan_chains
    for given_paths in ([folder], sorted(folder.iterdir())):
        idata = load(*given_paths)
        np.testing.assert_array_equal(idata["posterior"]["mu"], values[..., 7])
        # b.1.1, b.2.1, b.1.2, b.2.2: the first index runs first
        b = values[..., 8:].reshape(4, 200, 2, 2).swapaxes(2, 3)
        np.testing.assert_array_equal(idata["posterior"]["b"], b)
        stats = idata["sample_stats"]
        assert stats["diverging"].dtype == bool and not stats["diverging"].any()
        np.testing.assert_array_equal(stats["lp"], values[..., 0])
        np.testing.assert_array_equal(stats["acceptance_rate"], values[..., 1])
    done = report(folder, tmp_path)
    assert done.exit_code == 0 and "4 chains agree" in done.output
    diagnostics.save(idata, tmp_path / "same.nc")
    done = ozaki("compare", folder, tmp_path / "same.nc", "--json")
    # two copies of one set: 0.01 is `compare`'s own level
    assert done.exit_code == 0 and json.loads(done.stdout)["sets"][1]["p_value"] > 0.01
    assert "by order" not in done.stderr


def test_divergences_of_stan_are_seen(tmp_path):
    values = stan_values()
    values[7, 5] = 1
    (tmp_path / "a.csv").write_text(stan_text(values))
    done = report(tmp_path / "a.csv", tmp_path)
    assert done.exit_code == 1 and "diverged first at draw 7" in done.output


@pytest.mark.parametrize("marked", [True, False])
def test_saved_draws_of_warmup_are_left_out(marked, tmp_path):
    values, warmup = stan_values(100), stan_values(30, seed=9) + 50
    path = tmp_path / "a.csv.gz"
    text = stan_text(values, warmup=warmup, thin=2, marked=marked)
    path.write_bytes(gzip.compress(text.encode()))
    idata = load(path)
    np.testing.assert_array_equal(idata["posterior"]["mu"][0], values[:, 7])
    assert notes(idata) == ["30 saved draws of warm-up a chain are left out"]


def test_parameters_that_are_fixed_accept_nothing(tmp_path):
    text = stan_text(stan_values(), algorithm="fixed_param", marked=False)
    text = text.replace("stepsize__,treedepth__,n_leapfrog__,divergent__,energy__", "a,b,c,d,e")
    (tmp_path / "a.csv").write_text(text)
    assert list(load(tmp_path / "a.csv")["sample_stats"].data_vars) == ["lp"]


SPOILED = {
    "line 22, has 3 entries where 12 columns are named": (lambda t: cut(t, 22, 3), ()),
    "line 217, is the last and ends without a line break": (
        lambda t: t.split("# \n#  Elapsed")[0][:-1],
        (),
    ),
    "must hold the 200 draws that its head announces, but held 199": (
        lambda t: "".join(t.splitlines(True)[:-4]),
        (),
    ),
    "line 20, column 8 (mu): 'gone' is not a number": (lambda t: word(t, 20, 7, "gone"), ()),
    "line 20, column 8 (mu): '1_0' is not a number": (lambda t: word(t, 20, 7, "1_0"), ()),
    "its method was optimize, which makes no chains": (
        lambda t: t.replace("method = sample (Default)", "method = optimize"),
        (),
    ),
    "holds no draws yet": (lambda t: "".join(t.splitlines(True)[:13]), ()),
    "names a column 'mu' more than once": (lambda t: t.replace("b.1.1", "mu"), ()),
    "say that they are one chain": (lambda t: t, ({"chain": 1},)),
    "other.csv must hold as many draws as": (lambda t: t, ({"chain": 2, "draws": 100},)),
    "they differ in ['b.1.1', 'c.1.1']": (lambda t: t, ({"chain": 2, "rename": "c.1.1"},)),
}


def cut(text, number, entries):
    rows = text.splitlines(True)
    rows[number - 1] = ",".join(rows[number - 1].split(",")[:entries])
    return "".join(rows[:number])


def word(text, number, column, new):
    rows = text.splitlines(True)
    cells = rows[number - 1].split(",")
    cells[column] = new
    rows[number - 1] = ",".join(cells)
    return "".join(rows)


@pytest.mark.parametrize("message", SPOILED)
def test_what_is_wrong_with_stans_files_is_one_sentence_with_its_line(message, tmp_path):
    spoil, others = SPOILED[message]
    (tmp_path / "a.csv").write_text(spoil(stan_text(stan_values())))
    paths = [tmp_path / "a.csv"]
    for other in others:
        text = stan_text(stan_values(other.get("draws", 200), seed=1), other["chain"])
        paths.append(tmp_path / "other.csv")
        paths[-1].write_text(text.replace("b.1.1", other.get("rename", "b.1.1")))
    done = report(paths[0], tmp_path, *paths[1:])
    assert done.exit_code == 2 and message in done.output, done.output
    assert "Traceback" not in done.output and done.output.strip().count("\n") == 0


def test_a_table_of_rows_is_no_file_of_chains(tmp_path):
    (tmp_path / "rows.csv").write_text("km/h,draw\n" + "1.5,2\n2.5,4\n3.5,5\n" * 3)
    done = report(tmp_path / "rows.csv", tmp_path)
    assert done.exit_code == 2 and "rows.csv is no file of draws by chain" in done.output
    done = report(tmp_path, tmp_path)
    assert done.exit_code == 2 and "holds neither a Zarr store nor Stan's CSV files" in done.output
    done = ozaki("compare", tmp_path / "rows.csv", tmp_path / "rows.csv")  # of any names
    assert done.exit_code == 0 and "km/h" in done.output, done.output
    path = diagnostics.save(plain(), tmp_path / "d.nc")
    done = report(path, tmp_path, path)
    assert done.exit_code == 2 and "only chains in Stan's CSV are several files" in done.output


def test_entries_that_are_missing_leave_the_rest_under_their_own_names():
    columns = {name: normal(1, 9) for name in ("a.1", "a.3", "b.0", "c", "c.1", "d.2", "d.1")}
    found, said = stan.arrays(columns, stan._split_csv)
    assert set(found) == {"a.1", "a.3", "b.0", "c", "c.1", "d"} and len(said) == 3
    np.testing.assert_array_equal(found["d"][..., 0], columns["d.1"])


# JSON ---------------------------------------------------------------------------------------------


def json_chains(draws=300):
    chains = []
    for i in range(4):
        whole = np.random.default_rng(i).integers(0, 9, draws).tolist()
        chains.append({"mu": normal(draws, seed=i).tolist(), "k[2]": [1] * draws, "k[1]": whole})
    return chains


def as_json(folder, chains, suffix):
    path, text = folder / f"draws.{suffix}", json.dumps(chains).encode()
    if suffix.endswith("zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("draws.json", text)
    else:
        path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    return path


@pytest.mark.parametrize("suffix", ["json", "json.gz", "json.zip", "zip"])
def test_chains_in_json_are_read(suffix, tmp_path):
    chains = json_chains()
    path = as_json(tmp_path, chains, suffix)
    idata = load(path)
    np.testing.assert_array_equal(idata["posterior"]["mu"], [c["mu"] for c in chains])
    np.testing.assert_array_equal(idata["posterior"]["k"][0, :, 0], chains[0]["k[1]"])
    assert idata["posterior"]["k"].dtype.kind == "i"
    done = report(path, tmp_path)
    assert done.exit_code == 1 and "no statistics of the sampler" in done.output, done.output
    done = ozaki("compare", path, path)
    assert done.exit_code == 0 and "as of one law" in done.output


BAD_JSON = {
    "must hold a list of chains, each a dict": lambda c: {"mu": [1.0]},
    "chain 1, 'mu', must have 300 draws like the names before, but had 299": (
        lambda c: c[1]["mu"].pop() and c
    ),
    "chain 2, 'mu', must be numbers, but draw 5 was null": lambda c: put(c, None),
    "chain 2, 'mu', must be numbers, but draw 5 was true": lambda c: put(c, True),
    "chain 2, 'mu', must be numbers, but draw 5 was [1.0]": lambda c: put(c, [1.0]),
    "NaN is no number of JSON": lambda c: put(c, float("nan")),
    "chain 3 must have the names of chain 0, but they differ in ['mu']": (
        lambda c: [*c[:3], {k: v for k, v in c[3].items() if k != "mu"}]
    ),
}


def put(chains, value):
    chains[2]["mu"][5] = value
    return chains


@pytest.mark.parametrize("message", BAD_JSON)
def test_what_is_wrong_with_json_is_one_sentence(message, tmp_path):
    done = report(as_json(tmp_path, BAD_JSON[message](json_chains()), "json"), tmp_path)
    assert done.exit_code == 2 and message in done.output, done.output
    assert done.output.strip().count("\n") == 0


@pytest.mark.parametrize("suffix", ["json", "json.gz", "json.zip"])
def test_json_that_was_cut_is_one_sentence(suffix, tmp_path):
    path = as_json(tmp_path, json_chains(), suffix)
    path.write_bytes(path.read_bytes()[:-200])
    done = report(path, tmp_path)
    assert done.exit_code == 2 and "is not" in done.output and "draws.json" in done.output
    assert "Traceback" not in done.output and done.output.strip().count("\n") == 0


# Zarr ---------------------------------------------------------------------------------------------


def zarr_store(folder, idata, version=3):
    tree = idata if hasattr(idata, "children") else idata.to_datatree()
    tree.to_zarr(folder, zarr_format=version, consolidated=version == 2)
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("version", [2, 3])
def test_zarr_stores_of_arviz_are_read(version, packed, tmp_path):
    text = ("sample_stats", ("chain",), np.array(list("abcd"), object))
    idata = plain(message=text, count=("posterior", ("chain", "draw"), np.zeros((4, 400), int)))
    path = zarr_store(tmp_path / "d.zarr", idata, version)
    if packed:
        path = shutil.make_archive(str(tmp_path / "e.zarr"), "zip", tmp_path, "d.zarr")
    read = load(path)
    for group in ("posterior", "sample_stats"):
        for name in set(idata[group].data_vars) - {"message"}:
            np.testing.assert_array_equal(read[group][name], idata[group][name])
            assert read[group][name].dtype == idata[group][name].dtype
    done = report(path, tmp_path)
    assert done.exit_code == 0 and "message of sample_stats" in done.stderr, done.output
    assert ozaki("compare", path, path).exit_code == 0


def test_a_run_that_goes_to_disk_is_read_while_it_goes_on(tmp_path):
    kernel = ScoreOzakiKernel(GaussianScore(torch.zeros(2), torch.eye(2)), step_size=0.5)
    store = tmp_path / "d.zarr"
    options = {"warmup_steps": 10, "num_chains": 2, "seed": 0, "disable_progbar": True}
    mcmc = MCMC(kernel, num_samples=60, store=store, **options)
    mcmc.run()
    idata, kept = load(store), mcmc.to_inference_data()
    np.testing.assert_array_equal(idata["posterior"]["x"], kept["posterior"]["x"])
    assert notes(idata) == [] and idata["posterior"].attrs == {}
    told = json.loads((store / "zarr.json").read_text())
    told["attributes"]["draws"] = 40
    (store / "zarr.json").write_text(json.dumps(told))
    idata = load(store)
    assert idata["posterior"].sizes["draw"] == 40 == idata["sample_stats"].sizes["draw"]
    assert notes(idata) == [
        "of the 60 draws a chain of this run 40 are there: it was stopped, or goes on"
    ]
    told["attributes"]["draws"] = 0
    (store / "zarr.json").write_text(json.dumps(told))
    done = report(store, tmp_path)
    assert done.exit_code == 2 and "holds no draws yet" in done.output


def test_a_store_that_is_spoiled_is_one_sentence(tmp_path):
    def pickled(store):
        path = store / "posterior/x/zarr.json"
        found = json.loads(path.read_text())
        found["codecs"] = [{"name": "numcodecs.pickle", "configuration": {"protocol": 5}}]
        path.write_text(json.dumps(found))

    def longer(store):
        path = store / "posterior/x/zarr.json"
        found = json.loads(path.read_text())
        found["shape"][1] = 10**9
        path.write_text(json.dumps(found))

    spoiled = {
        "is packed by ['pickle'], which is not read here": pickled,
        "must not unpack to more than 20 times": longer,
        "is neither a file nor a folder": lambda s: (s / "posterior/x/c/9").symlink_to("/dev/zero"),
        "must hold a group 'posterior'": lambda s: shutil.rmtree(s / "posterior"),
        "x/zarr.json is not JSON": lambda s: (s / "posterior/x/zarr.json").write_text("{"),
    }
    for i, (message, spoil) in enumerate(spoiled.items()):
        store = zarr_store(tmp_path / f"{i}.zarr", plain())
        spoil(store)
        done = report(store, tmp_path)
        assert done.exit_code == 2 and message in done.output, done.output
        assert done.output.strip().count("\n") == 0 and "Traceback" not in done.output


@pytest.mark.parametrize("how", ["by chain", "text"])
def test_divergences_that_are_not_by_draw_are_unknown(how, tmp_path):
    """Left out and forgotten they would be none."""
    idata = plain()
    flags = ("chain", [0, 3, 0, 0])
    stats = diagnostics.dataset(idata["sample_stats"])
    if how == "text":
        flags = (("chain", "draw"), np.full(tuple(stats.sizes[d] for d in ("chain", "draw")), "no"))
    stats = stats.drop_vars("diverging", errors="ignore").assign(diverging=flags)
    whole = gathered({"posterior": diagnostics.dataset(idata["posterior"]), "sample_stats": stats})
    done = report(diagnostics.save(whole, tmp_path / "d.nc"), tmp_path)
    assert done.exit_code == 1 and "divergences are unknown: diverging of" in done.output


def test_json_of_arviz_is_told_how_to_convert(tmp_path):
    path = tmp_path / "arviz.json"
    path.write_text('{"posterior": {"x": [[1.0, 2.0]]}}')
    done = report(path, tmp_path)
    assert done.exit_code == 2 and "az.from_json(" in done.output
