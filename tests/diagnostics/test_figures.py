"""Figures against ArviZ and closed forms; verdicts on draws whose fault is known."""

import re
import warnings

import arviz as az
import numpy as np
import pytest
import torch
import xarray as xr
from torch.func import grad, jacrev, vmap

import ozaki
from ozaki import diagnostics
from ozaki.diagnostics import (
    arviz_data,
    figures,
    inference_data,
    kernel_stein_discrepancy,
    netcdf,
    stein_test,
    verdict,
)
from ozaki.diagnostics.arviz_data import dataset
from ozaki.diagnostics.stein import stein_kernel
from ozaki.scores import GaussianScore
from tests.kit import contracts
from tests.kit.chains import ar1
from tests.kit.tolerances import MCSE, rounding


def iid(chains: int = 4, draws: int = 1000, dim: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(chains, draws, dim))


def autoregressive(rho: float, chains: int = 4, draws: int = 1000) -> np.ndarray:
    x = iid(chains, draws, 1)
    for t in range(1, draws):
        x[:, t] = rho * x[:, t - 1] + np.sqrt(1 - rho**2) * x[:, t]
    return x


# InferenceData ----------------------------------------------------------------------------------


def test_draws_come_back_from_netcdf_with_types_names_and_attributes(tmp_path):
    x, y = iid(), torch.randn(4, 1000)
    diverging = np.random.default_rng(1).random((4, 1000)) < 0.01
    idata = inference_data(
        {"x": x, "y": y},
        {"diverging": diverging, "modified_curvature": np.ones((4, 1000), np.int32)},
        {"obs": torch.arange(3.0)},
        attrs={"seed": 3, "adapted": True, "nothing": None, "scales": [1.0, 2.0]},
    )
    read = az.from_netcdf(diagnostics.save(idata, tmp_path / "draws.nc"))
    assert read["posterior"]["x"].dims == ("chain", "draw", "x_dim_0")
    np.testing.assert_array_equal(read["posterior"]["x"], x)
    np.testing.assert_array_equal(read["posterior"]["y"], y)
    assert read["sample_stats"]["diverging"].dtype == bool
    np.testing.assert_array_equal(read["sample_stats"]["diverging"], diverging)
    np.testing.assert_array_equal(read["observed_data"]["obs"], np.arange(3.0))
    attrs = read["posterior"].attrs
    assert (attrs["seed"], attrs["adapted"], attrs["nothing"]) == (3, "true", "null")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["draws.nc"]


def test_a_data_tree_serves_as_well(tmp_path):
    """What ArviZ 1.0 returns in place of InferenceData."""
    idata = inference_data({"x": iid()}, {"diverging": np.zeros((4, 1000), bool)})
    tree = xr.DataTree.from_dict({g: idata[g] for g in ("posterior", "sample_stats")})
    assert verdict(tree) == verdict(idata)
    assert diagnostics.save(tree, tmp_path / "draws.nc").is_file()


def test_arviz_from_1_on_gets_what_it_reads(monkeypatch, tmp_path):
    """Its InferenceData is a DataTree, and its tail ESS must be told the tails."""
    if contracts.ARVIZ < 1:
        before = az.ess

        def ess(x, *, method="bulk", prob=None):
            if method == "tail" and prob is None:
                raise TypeError("_ess_tail() missing 1 required positional argument: 'prob'")
            return before(x, method=method, prob=prob)

        monkeypatch.setattr(arviz_data, "version", lambda _: "1.3.0")
        # of what is imported when first used, which keeps what it was asked for
        arviz = arviz_data.az
        monkeypatch.setattr(arviz, "InferenceData", xr.DataTree)
        monkeypatch.setattr(
            netcdf.az, "from_netcdf", lambda p, engine: xr.open_datatree(p, engine=engine)
        )
        monkeypatch.setattr(figures.az, "ess", ess)
    idata = inference_data(
        {"x": iid(), "a/b": iid(dim=1)[..., 0]}, {"diverging": np.zeros((4, 1000), bool)}
    )
    assert isinstance(idata, xr.DataTree)
    assert diagnostics.groups(idata) == ["posterior", "sample_stats"]
    read = diagnostics.load(diagnostics.save(idata, tmp_path / "draws.nc"))
    assert isinstance(read, xr.DataTree) and verdict(read) == verdict(idata)
    assert list(diagnostics.summary(read).index) == ["x[0]", "x[1]", "a.b"]
    assert diagnostics.summary(read).notna().all(axis=None)


def test_netcdf_3_is_named_and_the_remedy_reads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    idata = inference_data({"x": iid()})
    dataset({"x": iid()}).to_netcdf("classic.nc", engine="scipy")
    with pytest.raises(ValueError, match=r"classic\.nc is NetCDF-3, .*write it anew") as told:
        diagnostics.load("classic.nc")
    eval(str(told.value).split("anew: ")[1], {"ozaki": ozaki, "xarray": xr})
    read = diagnostics.load("new.nc")
    assert np.array_equal(read["posterior"]["x"].values, idata["posterior"]["x"].values)


def test_a_slash_in_a_name_parts_no_groups(tmp_path):
    """Pyro's autonames have them; files of draws read them as folders."""
    idata = inference_data({"a/b": iid(dim=1), "a/c": iid(dim=1)[..., 0]})
    read = diagnostics.load(diagnostics.save(idata, tmp_path / "draws.nc"))
    assert sorted(read["posterior"].data_vars) == ["a.b", "a.c"]
    with pytest.raises(ValueError, match=r"'a/b' is 'a\.b' then, which is another site's"):
        inference_data({"a.b": iid(), "a/b": iid()})


def test_saving_refuses_a_folder_and_makes_none(tmp_path):
    idata = inference_data({"x": iid(draws=10)})
    with pytest.raises(IsADirectoryError, match="is a folder"):
        diagnostics.save(idata, tmp_path)
    with pytest.raises(FileNotFoundError, match="absent"):
        diagnostics.save(idata, tmp_path / "absent" / "draws.nc")


@pytest.mark.parametrize(
    ("posterior", "stats", "message"),
    [
        ({}, None, "posterior must hold"),
        ({"x": np.zeros(5)}, None, "x must have shape"),
        ({"x": np.zeros((4, 0))}, None, "x must have shape"),
        ({"x": np.zeros((4, 5)), "y": np.zeros((4, 6))}, None, "y must have 4 chains of 5"),
        ({"x": np.zeros((4, 5))}, {"lp": np.zeros((2, 5))}, "lp must have 4 chains of 5"),
        ({"x": np.full((4, 5), "a")}, None, "x must be numbers"),
    ],
)
def test_arrays_that_disagree_are_refused(posterior, stats, message):
    with pytest.raises(ValueError, match=message):
        inference_data(posterior, stats)


# summary ----------------------------------------------------------------------------------------


def test_the_summary_is_arvizs():
    idata = inference_data({"x": iid(), "y": iid(dim=1)[..., 0]})
    ours = diagnostics.summary(idata)
    theirs = az.summary(idata, round_to="none")
    assert list(ours.index) == list(theirs.index) == ["x[0]", "x[1]", "y"]
    for name in ("mean", "mcse_mean", "ess_bulk", "r_hat"):
        # the same formulas: float64, in another order
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-10)
    # of the 5% and 95% quantiles, as in the paper of ESS; from ArviZ 1.0 on others are the default
    tails = az.ess(idata["posterior"], method="tail", prob=(0.05, 0.95))
    # float64, as above
    np.testing.assert_allclose(ours["ess_tail"], [*tails["x"].values, tails["y"]], rtol=1e-10)


def test_matrices_are_named_by_row_and_column():
    names = diagnostics.components(inference_data({"m": np.zeros((2, 5, 2, 2))}))
    assert list(names) == ["m[0, 0]", "m[0, 1]", "m[1, 0]", "m[1, 1]"]


def test_one_chain_compares_its_halves():
    drifting = inference_data({"x": iid(1, 1000, 1) + np.linspace(0, 5, 1000)[:, None]})
    steady = inference_data({"x": iid(1, 1001, 1)})
    # its halves lie 2.5 deviations apart; of equal halves 1.02 is much
    assert diagnostics.summary(drifting)["r_hat"].iloc[0] > 1.5
    assert diagnostics.summary(steady)["r_hat"].iloc[0] < 1.02


@pytest.mark.parametrize(("rho", "expected"), [(0.0, 1), (0.9, 37)])
def test_thinning_leaves_little_correlation(rho, expected):
    """0.9³⁷ = 0.02."""
    # a whole number, from an autocorrelation estimated
    assert diagnostics.thinning(autoregressive(rho, draws=5000)) == pytest.approx(expected, rel=0.3)


# verdicts ---------------------------------------------------------------------------------------


def judge(x: np.ndarray, **stats: np.ndarray) -> diagnostics.Verdict:
    return verdict(inference_data({"x": x}, {"diverging": np.zeros(x.shape[:2], bool)} | stats))


def test_good_draws_are_trusted():
    good = judge(iid(), acceptance_rate=np.full((4, 1000), 0.8))
    assert good.trusted and good.problems == []
    assert good.headline.startswith("4 chains agree: R-hat 1.00")
    assert good.headline.endswith("no divergences")


def test_chains_that_disagree_are_not_trusted():
    x = iid()
    x[1] += 2
    bad = judge(x)
    assert not bad.trusted
    assert bad.headline.startswith("Do not trust these draws: the chains disagree: R-hat 1.")


def test_draws_that_are_not_finite_are_reported_with_their_beginning():
    x = iid()
    x[2, 143:] = np.nan
    bad = judge(x)
    assert not bad.trusted
    assert "chain 2 left the finite numbers at draw 143; 857 of its 1000" in bad.headline
    x[2, 143:] = np.inf
    assert not judge(x).trusted


def test_an_infinite_draw_is_named_by_component_chain_and_draw():
    """One of a component among others, or of the only one: not "no chain moved"."""
    for dim in (1, 3):
        for odd, word in ((np.inf, "inf"), (-np.inf, "-inf"), (np.nan, "NaN")):
            x = iid(dim=dim)
            x[1, 17, dim - 1] = odd
            bad = judge(x)
            assert not bad.trusted
            assert bad.problems[0].what == (
                "chain 1 left the finite numbers at draw 17; 1 of its 1000 draws are not finite: "
                f"x[{dim - 1}] is {word} there"
            )
            assert not any("moved" in p.what or "stood" in p.what for p in bad.problems)


def test_a_component_that_is_never_finite_is_told_once():
    """A deterministic site, say; chains that only it left have not left the finite numbers."""
    x = iid(dim=3)
    x[..., 1] = np.nan
    bad = judge(x)
    assert not bad.trusted and [p.what for p in bad.problems] == ["x[1] is not finite in any draw"]
    assert verdict(inference_data({"x": x[..., [0, 2]]})).trusted  # the remedy


def test_divergences_are_counted_in_all_and_the_worst_chain_is_named():
    diverging = np.zeros((4, 1000), bool)
    for chain, (first, count) in enumerate([(7, 19), (40, 2), (143, 226), (900, 1)]):
        diverging[chain, first : first + count] = True
    bad = judge(iid(), diverging=diverging)
    assert not bad.trusted
    assert bad.headline.endswith("248 divergences: do not trust the tails")
    assert [problem.what for problem in bad.problems] == [
        "chain 2 diverged first at draw 143; 248 divergences in all, in 4 of 4 chains, 226 of them "
        "in this one: do not trust the tails"
    ]
    diverging[[0, 1, 3]] = False
    what = judge(iid(), diverging=diverging).problems[0].what
    assert what == (
        "chain 2 diverged first at draw 143; 226 divergences in all: do not trust the tails"
    )


@pytest.mark.parametrize(
    ("begin", "message"), [(0, "chain 3 never moved"), (600, "stood still for 400 draws from")]
)
def test_a_stuck_chain_is_seen(begin, message):
    x = iid()
    x[3, begin:] = x[3, begin]
    bad = judge(x)
    assert not bad.trusted and message in bad.headline


def test_a_chain_that_had_not_arrived_is_told_and_a_slow_one_is_not():
    x, lp = iid(), 3 * iid(seed=1)[..., 0]
    late = lp.copy()
    late[1] -= 500 * np.exp(-np.arange(1000) / 200)
    told = judge(x, lp=late)
    assert not told.trusted
    assert "chain 1 had not arrived when warm-up ended" in told.headline
    assert "warmup_steps" in told.problems[0].remedy
    # all of them on their way, at a steady pace
    told = judge(x, lp=lp + 0.3 * np.arange(1000))
    assert "chains 0, 1, 2, 3 had not arrived" in told.problems[0].what
    # in modes of their own; a slow walk; down from the top of a mode; nothing known
    homes = (lp - [[0], [500], [0], [0]], 3 * autoregressive(0.99)[..., 0], -late, lp * np.nan)
    for at_home in homes:
        assert not any("arrived" in p.what for p in judge(x, lp=at_home).problems)
    assert judge(x).problems == []


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_a_discrete_value_may_stay_for_long(dtype):
    """Independent draws that are seldom 1 rest on 0 for hundreds of draws."""
    seldom = (np.random.default_rng(3).random((4, 2000)) < 0.01).astype(dtype)
    assert np.diff(np.flatnonzero(np.diff(seldom[0]))).max() > 200
    assert judge(seldom).trusted
    fixed = inference_data({"k": (10 * iid()[..., 0]).astype(int), "c": np.ones((4, 1000))})
    assert verdict(fixed).trusted
    seldom[2] = 1  # but one that never comes back is another matter
    assert not judge(seldom).trusted


def test_two_components_of_one_name_are_refused():
    """The one would be judged in place of the other."""
    idata = inference_data({"x": iid(), "x[0]": iid()[..., 0]})
    with pytest.raises(ValueError, match=r"names must differ, but 'x\[0\]'"):
        verdict(idata)


def test_empty_sites_are_saved_read_and_no_component(tmp_path):
    idata = inference_data({"x": iid(), "none": np.zeros((4, 1000, 0))})
    read = diagnostics.load(diagnostics.save(idata, tmp_path / "draws.nc"))
    assert verdict(read).trusted
    with pytest.raises(ValueError, match="all its sites are empty"):
        verdict(inference_data({"none": np.zeros((4, 1000, 0))}))


def test_chains_that_never_moved_are_seen():
    assert "no chain moved" in judge(np.ones((4, 100, 2))).headline


def test_what_is_constant_by_construction_is_no_fault():
    """Such as the first entry of the Cholesky factor of a correlation matrix."""
    x = np.concatenate([iid(), np.ones((4, 1000, 1))], -1)
    good = judge(x)
    assert good.trusted and good.problems == []
    assert any("x[2]" in note for note in good.notes)


def test_few_draws_are_told_and_very_few_are_not_trusted():
    rough = judge(iid(draws=80))
    assert rough.trusted and rough.headline.startswith("4 chains agree")
    assert any(p.what.startswith("few independent draws") for p in rough.problems)
    for rho in (0.93, 0.995):
        few = judge(autoregressive(rho))
        assert not few.trusted
        assert any(p.what.startswith("few independent draws") for p in few.problems)


def test_chains_that_have_not_quite_mixed_are_not_trusted_yet():
    """R-hat between 1.01 and 1.05, and nothing else that is fatal."""
    x = iid()
    x[1] += 0.3
    early = judge(x)
    rhat = diagnostics.summary(inference_data({"x": x}))["r_hat"]
    # 1.01 is the threshold that the library has, here and below
    assert 1.01 < rhat.max() < 1.05
    assert not early.trusted
    assert early.headline.startswith(
        f"Do not trust these draws yet: the chains have not quite mixed: R-hat {rhat.max():.3f}"
    )
    assert early.headline.endswith("; run longer")
    problem = early.problems[0]
    assert problem.fatal and problem.remedy.startswith("Run longer (warmup_steps and num_samples)")


def test_an_r_hat_that_chance_gives_is_noted_and_trusted():
    """Draws worth 500 in 20 components: R-hat is above 1.01 in some in nearly every run."""
    rng = np.random.default_rng(5)
    x = ar1(rng, 20, 4, 1000, worth=500).transpose(1, 2, 0)
    noted = judge(x)
    rhat = diagnostics.summary(inference_data({"x": x}))["r_hat"]
    assert rhat.max() > 1.01
    assert noted.trusted and noted.headline.startswith(f"4 chains agree: R-hat {rhat.max():.3f}")
    [problem] = [p for p in noted.problems if "chance" in p.what]
    assert not problem.fatal and problem.remedy.endswith(".")
    assert re.fullmatch(
        rf"R-hat {rhat.max():.3f} for {re.escape(rhat.idxmax())} is within what chance gives at "
        r"ESS \d+ in 20 components; about [\d,]+ more draws a chain would settle it",
        problem.what,
    )


def test_a_high_r_hat_of_very_few_draws_is_no_chance():
    """Worth less than 150, slow chains and chains that stay apart look alike."""
    x = ar1(np.random.default_rng(6), 1, 4, 1000, worth=110)[0]
    assert diagnostics.summary(inference_data({"x": x}))["r_hat"].iloc[0] > 1.01
    bad = judge(x)
    assert not bad.trusted and any(p.fatal and "R-hat" in p.what for p in bad.problems)


def test_verdicts_on_equal_chains_of_many_components_are_kept():
    """Whole verdicts: no other check cries wolf where R-hat's no longer does."""
    for seed in range(3):
        x = ar1(np.random.default_rng(seed), 100, 4, 1000, worth=400).transpose(1, 2, 0)
        assert judge(x).trusted


# angles ------------------------------------------------------------------------------------------


def turned(angles: np.ndarray) -> diagnostics.Verdict:
    """Of a circular site, in [−π, π)."""
    idata = inference_data({"a": np.mod(angles + np.pi, 2 * np.pi) - np.pi})
    idata["posterior"]["a"].attrs["circular"] = 1
    return verdict(idata)


def test_angles_are_judged_by_cosine_and_sine(tmp_path):
    about_pi = np.pi + 0.3 * iid(dim=1)[..., 0]
    good = turned(about_pi)
    assert good.trusted and good.problems == []
    idata = inference_data({"a": np.mod(about_pi + np.pi, 2 * np.pi) - np.pi})
    idata["posterior"]["a"].attrs["circular"] = 1
    found = diagnostics.summary(idata).loc["a"]
    plain = diagnostics.summary(inference_data({"a": about_pi})).loc["a"]
    # the circular mean of a wrapped normal is that of the normal
    assert np.cos(found["mean"] - np.pi) > np.cos(MCSE * found["mcse_mean"])
    # two estimates of one deviation, from the same 4,000 draws
    assert found["sd"] == pytest.approx(plain["sd"], rel=0.01)
    # it survives the file
    read = diagnostics.load(diagnostics.save(idata, tmp_path / "draws.nc"))
    assert diagnostics.summary(read).loc["a"].equals(found)
    # numbers that straddle ±π have a sd of π
    del idata["posterior"]["a"].attrs["circular"]
    assert diagnostics.summary(idata).loc["a", "sd"] > 2


def test_chains_of_angles_that_hardly_cross_the_cut_are_equal():
    """As numbers, one lies near π and the others near −π."""
    about_pi = np.pi + 0.3 * iid(dim=1)[..., 0] + 0.02 * np.array([[-1], [1], [-1], [1]])
    slow = np.pi + 0.3 * autoregressive(0.8)[..., 0]
    for angles in (about_pi, slow, np.random.default_rng(0).uniform(-np.pi, np.pi, (4, 1000))):
        assert turned(angles).trusted


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_a_chain_of_angles_that_is_off_is_told(spread):
    angles = np.pi + spread * iid(dim=1)[..., 0]
    angles[2] += 1.0
    bad = turned(angles)
    assert not bad.trusted and "for a" in bad.headline


def test_one_chain_cannot_agree_with_another():
    one = judge(iid(chains=1))
    assert one.trusted and "num_chains=4" in one.problems[0].remedy


def test_a_handful_of_draws_is_not_trusted():
    assert not judge(iid(draws=3)).trusted


def test_low_acceptance_calibration_and_a_failed_stein_test_are_warnings():
    rate = np.full((4, 1000), 0.8)
    rate[1] = 0.05
    idata = inference_data({"x": iid()}, {"acceptance_rate": rate})
    warned = verdict(
        idata,
        law="the prior",
        estimator_metrics={"calibration": [1.0, 0.5]},
        stein=diagnostics.SteinTest(0.3, 0.001, 500),
    )
    assert warned.trusted and warned.headline.endswith("3 warnings below")
    text = " ".join(problem.what for problem in warned.problems)
    assert "chain 1 accepted only 5%" in text
    assert "0.50 in dimension 1" in text
    assert "do not follow the score" in text
    assert "The chains draw from the prior." in warned.notes


def test_every_problem_says_what_to_do():
    x = iid()
    x[0] = np.nan
    x[1] = 5.0
    rate = np.zeros((4, 1000))
    bad = judge(x, acceptance_rate=rate, diverging=np.ones((4, 1000), bool))
    assert len(bad.problems) > 5
    assert all(problem.remedy.endswith(".") for problem in bad.problems)
    assert [p.fatal for p in bad.problems] == sorted((p.fatal for p in bad.problems), reverse=True)


# kernel Stein discrepancy -----------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 3])
def test_the_stein_kernel_is_that_of_its_definition(dim, generator):
    """Against automatic differentiation of the inverse multiquadric itself."""
    x = torch.randn(6, dim, dtype=torch.float64, generator=generator)
    s = torch.randn(6, dim, dtype=torch.float64, generator=generator)
    c = 0.7

    def k(a, b):
        return (c**2 + (a - b).square().sum()) ** -0.5

    def u(a, sa, b, sb):
        mixed = jacrev(grad(k, 1), 0)(a, b).trace()
        return sa @ sb * k(a, b) + sa @ grad(k, 1)(a, b) + sb @ grad(k, 0)(a, b) + mixed

    rows = vmap(vmap(u, (None, None, 0, 0)), (0, 0, None, None))
    torch.testing.assert_close(stein_kernel(x, s, c), rows(x, s, x, s), **rounding(torch.float64))


def test_whitening_is_a_change_of_coordinates(generator):
    x = torch.randn(50, 2, dtype=torch.float64, generator=generator)
    factor = torch.tensor([[2.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    one = torch.ones(2, dtype=torch.float64)
    plain = kernel_stein_discrepancy(x, -x, scale=one)
    y = x @ factor.mT
    gradient = -torch.linalg.solve(factor.mT, x.mT).mT
    torch.testing.assert_close(kernel_stein_discrepancy(y, gradient, scale=factor), plain)


def test_exact_draws_have_discrepancy_zero_and_wider_ones_have_not(generator):
    exact = torch.randn(800, 2, dtype=torch.float64, generator=generator)
    wide = 1.3 * exact
    fair = stein_test(exact, -exact, generator=generator)
    unfair = stein_test(wide, -wide, generator=generator)
    # one seed: not told at 5%, and told at 5 of the 1,001 ranks that replicates allow
    assert fair.p_value > 0.05
    assert unfair.p_value < 0.005
    # five times what the exact draws give by chance
    assert unfair.discrepancy > 5 * abs(fair.discrepancy)


def test_the_p_value_is_uniform_for_exact_draws(generator):
    """100 tests: those under 0.2 are Binomial(100, 0.2), sd 4."""
    draws = torch.randn(100, 100, 2, dtype=torch.float64, generator=generator)
    low = sum(stein_test(x, -x, replicates=200, generator=generator).p_value <= 0.2 for x in draws)
    assert abs(low - 20) < 4 * 4  # 4 standard deviations: stricter than the policy's 5


def test_the_v_statistic_falls_as_one_over_n(generator):
    def size(n):
        draws = torch.randn(40, n, 1, dtype=torch.float64, generator=generator)
        return torch.stack([kernel_stein_discrepancy(x, -x, statistic="V") for x in draws]).mean()

    # the mean of 40: guards against n^-½, whose ratio is 2, and n^-2, whose is 16
    assert float(size(100) / size(400)) == pytest.approx(4, rel=0.35)


def test_chains_are_thinned_before_they_are_tested():
    """Unthinned, the draws of a slow chain would be taken for a wrong law."""
    x = torch.tensor(autoregressive(0.95, draws=2000))
    score = GaussianScore(torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64))
    fair = diagnostics.sampler_test(score, x)
    # one seed: 0.01 is the level of the test, here and below
    assert fair is not None and fair.p_value > 0.01 and fair.points < 300
    unfair = diagnostics.sampler_test(score, 2 * x)
    assert unfair is not None and unfair.p_value < 0.01
    assert diagnostics.sampler_test(score, x[:1, :400]) is None
    x[0, 3] = torch.nan
    assert diagnostics.sampler_test(score, x) is None


def test_bad_arguments_of_the_discrepancy_are_named(generator):
    x = torch.randn(10, 2, generator=generator)
    with pytest.raises(ValueError, match="gradient must have shape"):
        kernel_stein_discrepancy(x, x[:5])
    with pytest.raises(ValueError, match="at least 2 draws"):
        kernel_stein_discrepancy(x[:1], x[:1])
    with pytest.raises(ValueError, match="gradient must be finite"):
        kernel_stein_discrepancy(x, x / 0)
    with pytest.raises(ValueError, match="statistic must be one of"):
        kernel_stein_discrepancy(x, x, statistic="W")
    with pytest.raises(ValueError, match="scale must have shape"):
        kernel_stein_discrepancy(x, x, scale=torch.ones(3))


def test_what_many_chains_have_in_common_is_told_once():
    diverging = np.zeros((40, 1000), bool)
    diverging[:30, 143] = True
    x = np.random.default_rng(0).normal(size=(40, 1000))
    x[12:, 200:500] = x[12:, 200:201]
    told = [problem.what for problem in judge(x, diverging=diverging).problems]
    assert sum("diverged" in what for what in told) == 1
    assert "30 divergences in all, in 30 of 40 chains" in told[0]
    assert sum("stood still" in what for what in told) == 5
    assert "24 more chains stood still" in told


def test_flags_of_divergence_that_are_missing_are_told():
    flags = np.zeros((4, 1000))
    flags[1, :2], flags[0, 3] = 1, np.nan
    found = verdict(inference_data({"x": iid()}, {"diverging": flags}))
    assert not found.trusted
    told = " ".join(p.what for p in found.problems)
    assert "2 divergences in all" in told and "1 flag of divergence is missing" in told


def test_one_draw_is_not_told_to_stand_still_and_swapped_dimensions_are_told():
    one = verdict(inference_data({"x": iid(draws=1)}))
    assert [p.what for p in one.problems] == ["1 draw a chain says nothing about agreement"]
    swapped = verdict(inference_data({"x": iid(chains=500, draws=4)}))
    assert "swap the first two dimensions" in swapped.problems[0].remedy


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ({"x": np.ma.masked_array(iid(), iid() > 2)}, "x must not be masked"),
        ({"x": torch.zeros(4, 9).to_sparse()}, r"x must be dense, .* give its .to_dense\(\)"),
        ({1: iid()}, "names of draws must be texts, but 1 was a int; give '1'"),
    ],
    ids=["masked", "sparse", "number"],
)
def test_draws_of_odd_kinds_are_refused_by_a_sentence(draws, message):
    with pytest.raises(ValueError, match=message):
        dataset(draws)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_draws_of_floats_that_numpy_has_not_are_taken(dtype):
    x = torch.ones(4, 9).to(dtype)
    assert inference_data({"x": x})["posterior"]["x"].dtype == np.float32


def test_figures_that_come_as_arrays_of_one_entry_are_numbers(monkeypatch):
    """As ArviZ gives them where numba is installed; NumPy 2.4 makes no number of them."""
    x = np.random.default_rng(0).normal(size=(4, 200))
    as_they_are = verdict(inference_data({"x": x}))
    asked = []

    def wrapped(of):
        def call(*args, **options):
            asked.append(of)
            return np.atleast_1d(of(*args, **options))

        return call

    for name in ("ess", "mcse", "rhat"):
        monkeypatch.setattr(figures.az, name, wrapped(getattr(az, name)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # of NumPy before 2.4
        found = verdict(inference_data({"x": x}))
    assert found == as_they_are and len(set(asked)) == 3
