"""What changes with the latent sites of a model: supports, shapes, observations, and their data."""

import math
import threading

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer.autoguide import (
    init_to_feasible,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from pyro.infer.reparam import (
    LocScaleReparam,
    ProjectedNormalReparam,
    SplitReparam,
    TransformReparam,
)
from torch import tensor as t
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform

from ozaki import MCMC, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.kernels.target import RunContext
from ozaki.scores import GaussianScore, LogDensityScore
from ozaki.scores.pyro_models.model import PyroModelScore, unconstrain
from tests.kit.tolerances import MCSE


def mean_by_quadrature(score, site):
    """Of a model with one latent site: E[x] over a grid of u."""
    u = torch.linspace(-40, 40, 40001).unsqueeze(-1)
    log_p = score.log_prob(u).double().nan_to_num(-math.inf)
    weight = (log_p - log_p.max()).exp()
    return float((weight * score.constrain(u)[site].double().reshape(-1)).sum() / weight.sum())


# -- supports --------------------------------------------------------------------------------------


def test_the_support_of_a_transformed_law_is_not_that_of_its_last_transform():
    """5 + an exponential, seen at 4 ± 1: by quadrature the mean is 5.373, and none lies below 5."""

    def model(y):
        law = dist.TransformedDistribution(dist.Exponential(1.0), [AffineTransform(5.0, 1.0)])
        pyro.sample("y", dist.Normal(pyro.sample("x", law), 1.0), obs=y)

    score = PyroModelScore(model, (t(4.0),))
    x = torch.linspace(5, 20, 100001, dtype=torch.float64)
    density = (-x - (x - 4) ** 2 / 2).exp()
    expected = float((x * density).sum() / density.sum())
    assert expected == pytest.approx(5.373, abs=1e-3)  # half of the last digit given is 5e-4
    # float32, over the quadrature's 40,001 points; so are those below
    assert mean_by_quadrature(score, "x") == pytest.approx(expected, abs=1e-3)


BOUNDS = {
    "-s": lambda s, z: -s,
    "s": lambda s, z: s,
    "1 / s": lambda s, z: 1 / s,
    "9 z": lambda s, z: 9.0 * z,
    "z (z - 1) (z - 2)": lambda s, z: z * (z - 1.0) * (z - 2.0),  # 6 at 3 alone, 0 else
    "s > 3": lambda s, z: torch.where(s > 3, 7.0, 0.0),
    "s + z": lambda s, z: s + z,
}
FIXED = {"0": lambda s, z: 0.0, "s - s": lambda s, z: s - s}


def with_bounds(lower, width, law):
    """A site whose support is (lower, lower + 1 + width), or begins or ends there."""

    def model():
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        z = pyro.sample("z", dist.Categorical(t([0.9, 0.1 - 2e-6, 1e-6, 1e-6])))
        low = torch.as_tensor(lower(s, z))
        if law == "uniform":
            pyro.sample("x", dist.Uniform(low, low + 1.0 + torch.as_tensor(width(s, z)).abs()))
        elif law == "shifted":
            # a scale does not move it
            scale = 1.0 + torch.as_tensor(width(s, z)).abs()
            shift = AffineTransform(low, scale)
            pyro.sample("x", dist.TransformedDistribution(dist.Exponential(1.0), [shift]))
        else:
            pyro.sample("x", dist.Pareto(1.0 + low.abs(), 2.0))

    return model


@settings(max_examples=25, deadline=None)
@given(
    lower=st.sampled_from([*BOUNDS, *FIXED]),
    width=st.sampled_from([*BOUNDS, *FIXED]),
    law=st.sampled_from(["uniform", "shifted", "pareto"]),
)
def test_a_support_that_other_sites_move_is_refused(lower, width, law):
    both = BOUNDS | FIXED
    model = with_bounds(both[lower], both[width], law)
    moves = lower in BOUNDS or (law == "uniform" and width in BOUNDS)
    if moves:
        with pytest.raises(ValueError, match="'x' must have a fixed support"):
            PyroModelScore(model)
    else:
        PyroModelScore(model)


def rare_pair(u):
    z, w = (pyro.sample(name, dist.Categorical(torch.ones(50))) for name in "zw")
    return (z == 37) & (w == 11)


def rare_with_a_latent(u):
    return (pyro.sample("z", dist.Categorical(torch.ones(10))) == 7) & (u > 1.5)


def corner(u):
    return (u > 1) & (pyro.sample("v", dist.Normal(0.0, 1.0)) < -1)


@pytest.mark.parametrize("moved", [rare_pair, rare_with_a_latent, corner])
def test_a_support_that_moves_in_few_combinations_is_refused(moved):
    def model():
        where = moved(pyro.sample("u", dist.Normal(0.0, 1.0)))
        pyro.sample("x", dist.Uniform(t(0.0), 1.0 + where))

    with pytest.raises(ValueError, match="'x' must have a fixed support"):
        PyroModelScore(model)


@pytest.mark.parametrize(
    "law",
    [
        dist.VonMises3D(torch.tensor([1.0, 0.0, 0.0])),
        dist.ImproperUniform(constraints.nonnegative_integer, (), ()),
    ],
)
def test_a_law_without_draws_or_a_bijection_is_refused_by_name(law):
    with pytest.raises(ValueError, match="latent site 'x' must"):
        PyroModelScore(lambda: pyro.sample("x", law))


def test_a_scale_and_a_location_of_a_law_on_the_line_move_nothing():
    def model():
        mu, s = pyro.sample("mu", dist.Normal(0.0, 1.0)), pyro.sample("s", dist.Exponential(1.0))
        law = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [AffineTransform(mu, s)])
        pyro.sample("x", law)

    assert PyroModelScore(model).dim == 3


def shifted_data(low):
    def model(y):
        pyro.sample("y", dist.Pareto(low(), 3.0).expand([3]).to_event(1), obs=y)

    return model


def test_data_outside_of_a_support_that_moves_have_no_density():
    """Torch gives Pareto's data below its scale a density that even grows with it."""
    y = t([2.0, 3.0, 4.0])
    model = shifted_data(lambda: pyro.sample("s", dist.LogNormal(0.0, 1.0)))
    with pytest.raises(ValueError, match=r"'y' must have no density outside.*Pareto"):
        PyroModelScore(model, (y,))
    # the remedy; p(s | y) ∝ s⁹ on (0, 2), whose mean is 20/11
    score = PyroModelScore(shifted_data(lambda: pyro.sample("s", dist.Uniform(0.0, 2.0))), (y,))
    # of the quadrature, as above
    assert mean_by_quadrature(score, "s") == pytest.approx(20 / 11, abs=1e-3)


# -- what a law cannot be --------------------------------------------------------------------------


def test_one_event_of_discrete_entries_is_told_as_such():
    def model(plate):
        pyro.sample("x", dist.Normal(0.0, 1.0))
        if plate:
            with pyro.plate("entries", 3):
                pyro.sample("z", dist.Bernoulli(0.5))
        else:
            pyro.sample("z", dist.Bernoulli(0.5).expand([3]).to_event(1))

    with pytest.raises(ValueError, match=r"'z'.*pyro.plate.*to_event.*2\^3 = 8 values"):
        PyroModelScore(model, (False,))
    assert PyroModelScore(model, (True,)).enumerated == ("z",)


def direction():
    pyro.sample("x", dist.ProjectedNormal(t([1.0, 1.0, 1.0])))


def test_a_law_without_a_bijection_is_refused_with_the_reparametriser_that_does():
    with pytest.raises(ValueError, match=r"'x'.*infer\.reparam\.ProjectedNormalReparam"):
        PyroModelScore(direction)
    score = PyroModelScore(poutine.reparam(direction, {"x": ProjectedNormalReparam()}))
    found = score.deterministic(torch.randn(5, score.dim))["x"]
    assert found.shape == (5, 3) and torch.allclose(found.norm(dim=-1), torch.ones(5))


def test_wishart():
    """By importance sampling from the law itself: its density in u is that of its draws."""
    law = dist.Wishart(
        t(5.0, dtype=torch.float64), t([[1.0, 0.3], [0.3, 2.0]], dtype=torch.float64)
    )
    score = PyroModelScore(lambda: pyro.sample("x", law))
    assert score.dim == 3
    torch.manual_seed(0)
    x = law.sample((20000,))
    u = unconstrain(lambda: pyro.sample("x", law), {"x": x})
    # E_p[q/p] = 1 for the normal q of their moments, narrowed so that the ratio is bounded
    normal = dist.MultivariateNormal(u.mean(0), 0.5 * u.T.cov())
    ratio = (normal.log_prob(u) - score.log_prob(u)).exp()
    assert float(ratio.mean()) == pytest.approx(1, abs=MCSE * float(ratio.std()) / math.sqrt(20000))


# -- what is left in the trace ---------------------------------------------------------------------


def schools(y, s):
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("obs", dist.Normal(theta, s), obs=y)


Y, S = t([28.0, 8.0, -3.0]), t([15.0, 10.0, 16.0])


def split():
    x = pyro.sample("theta", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    pyro.sample("obs", dist.Normal(x.sum(), 1.0), obs=t(1.0))


def transformed():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    law = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [AffineTransform(mu, 2.0)])
    pyro.sample("obs", dist.Normal(pyro.sample("theta", law), 1.0), obs=t(1.0))


@pytest.mark.parametrize(
    ("model", "args", "reparametriser"),
    [
        (schools, (Y, S), LocScaleReparam(0.0)),
        (schools, (Y, S), LocScaleReparam(0.5)),
        (split, (), SplitReparam([2, 2], -1)),
        (transformed, (), TransformReparam()),
    ],
)
def test_a_reparametrised_site_is_no_data_and_comes_back(model, args, reparametriser):
    changed = poutine.reparam(model, {"theta": reparametriser})
    score = PyroModelScore(changed, args)
    assert list(score.observed) == ["obs"] and "theta" not in score.names
    u = torch.randn(3, score.dim)
    assert score.deterministic(u)["theta"].shape[0] == 3


def test_a_decentred_site_comes_back_by_its_formula_and_is_not_in_the_likelihood():
    score_of = poutine.reparam(schools, {"theta": LocScaleReparam(0.0)})
    kernel = ScoreLangevinKernel(score_of, step_size=0.01)
    mcmc = MCMC(kernel, 10, 0, num_chains=2, seed=0, disable_progbar=True)
    mcmc.run(Y, S)
    idata = mcmc.to_inference_data()
    x = {name: mcmc.get_samples()[name] for name in ("mu", "tau", "theta_decentered", "theta")}
    decentred = x["mu"].unsqueeze(-1) + x["tau"].unsqueeze(-1) * x["theta_decentered"]
    assert torch.allclose(x["theta"], decentred, atol=1e-4)  # float32's policy
    assert list(idata["observed_data"].data_vars) == ["obs"]
    assert list(idata["log_likelihood"].data_vars) == ["obs"]


def test_residuals_that_are_observed_have_a_likelihood_and_are_no_data():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("residual", dist.Normal(0.0, 1.0).expand([2]).to_event(1), obs=y - mu)

    kernel = ScoreLangevinKernel(model, step_size=0.1)
    mcmc = MCMC(kernel, 10, 0, num_chains=2, seed=0, disable_progbar=True)
    mcmc.run(t([1.0, 2.0]))
    with pytest.warns(UserWarning, match=r"\['residual'\] change with the latent sites"):
        idata = mcmc.to_inference_data()
    assert "residual" in idata["log_likelihood"].data_vars
    assert "observed_data" not in idata


def test_a_deterministic_site_that_changes_its_shape_is_left_out():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.deterministic("r", torch.arange(3.0)[torch.arange(3.0) < mu])
        pyro.deterministic("double", 2 * mu)

    score = PyroModelScore(model, vectorize=False)
    with pytest.warns(UserWarning, match=r"\['r'\] change their shape with the latent sites"):
        assert set(score.deterministic(torch.zeros(2, 1))) == {"double"}


def test_a_bound_that_rounding_alone_moves_is_fixed():
    def model():
        s = pyro.sample("s", dist.Uniform(0.0, 1.0))
        pyro.sample("x", dist.Uniform(s + 0.1 - s, torch.tensor(1.0)))

    assert PyroModelScore(model).dim == 2


# -- starts ----------------------------------------------------------------------------------------


def test_improper_laws_begin_uniform():
    """With a likelihood N(3, 1) each, truncated to the positive: the mean is 3 + φ(3)/Φ(3)."""

    def model():
        x = pyro.sample("x", dist.ImproperUniform(constraints.positive, (), (1,)))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=t([3.0]))

    score = PyroModelScore(model)
    assert bool((score.start(50, torch.Generator().manual_seed(0)).abs() <= 2).all())
    z = dist.Normal(0.0, 1.0)
    expected = 3 + float(z.log_prob(t(3.0)).exp() / z.cdf(t(3.0)))
    # of the quadrature, as above
    assert mean_by_quadrature(score, "x") == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("strategy", "lies"),
    [
        (init_to_uniform(radius=0.1), lambda u: bool((u.abs() <= 0.1).all())),
        (init_to_feasible, lambda u: bool((u == 0).all())),
        # a median of 1,001 draws: 1.25/√1,001 = 0.04 deviations of one draw; the largest of 20
        (init_to_median(num_samples=1001), lambda u: bool((u - 1.02).abs().max() < 0.3)),
        (init_to_value(values={"x": t(math.e)}), lambda u: torch.allclose(u, torch.ones(()))),
        (init_to_sample, lambda u: len(u.unique()) == 20),
    ],
)
def test_chains_begin_by_pyros_strategies(strategy, lies):
    """Of an exponential of mean 4, with median 4 log 2: u = log x = log 4 + log log 2 = 1.02."""
    model = lambda: pyro.sample("x", dist.Exponential(0.25))  # noqa: E731
    kernel = ScoreOzakiKernel(model, init_strategy=strategy)
    kernel.begin(kernel.bind(), 0, RunContext(20, torch.Generator().manual_seed(0)))
    begin = kernel.initial_params["x"]
    assert begin.shape == (20,) and lies(begin)


@pytest.mark.parametrize(
    "strategy", [init_to_uniform, init_to_feasible, init_to_value(values={"w": t(0.5)})]
)
def test_strategies_are_asked_of_continuous_sites_alone(strategy):
    def model():
        z = pyro.sample("z", dist.Bernoulli(pyro.sample("w", dist.Beta(2.0, 2.0))))
        pyro.sample("y", dist.Normal(z, 1.0), obs=t(0.3))

    assert PyroModelScore(model, init_strategy=strategy).start(3).isfinite().all()


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (init_to_value(values={"mu": torch.zeros(3)}), "init_strategy.*'mu'.*but gave"),
        (init_to_value(values={}, fallback=None), "init_strategy.*No init strategy specified"),
    ],
)
def test_a_strategy_that_gives_no_start_is_refused(strategy, message):
    def model():
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    score = PyroModelScore(model, init_strategy=strategy)
    with pytest.raises(ValueError, match=message):
        score.start(2)


@pytest.mark.parametrize(
    ("model", "strategy", "message"),
    [
        (GaussianScore([0.0], [[1.0]]), init_to_sample, "init_strategy must be left out"),
        (schools, "uniform", "init_strategy must be one of Pyro's"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_strategy_is_for_models(model, strategy, message):
    with pytest.raises(ValueError, match=message):
        ScoreOzakiKernel(model, init_strategy=strategy)


@pytest.mark.usefixtures("unchecked")
def test_one_start_for_all_chains():
    def begin(initial):
        kernel = ScoreLangevinKernel(GaussianScore([0.0, 0.0], torch.eye(2)), step_size=1e-6)
        mcmc = MCMC(kernel, 1, 0, initial, num_chains=4, seed=0, disable_progbar=True)
        mcmc.run()
        return mcmc.get_samples(group_by_chain=True)["x"][:, 0]

    one = begin({"x": [1.0, 2.0]})
    assert torch.equal(one, begin({"x": t([1.0, 2.0]).expand(4, 2)}))
    # one step of size 1e-6 has noise of 0.001: ten of it
    assert torch.allclose(one, t([1.0, 2.0]).expand(4, 2), atol=0.01)


# -- data that are no tensors ----------------------------------------------------------------------


def regression(x, y):
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)


X = np.random.default_rng(0).normal(size=(5, 2))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X, X[:, 0]),
        (torch.as_tensor(X, dtype=torch.float32), X[:, 0]),
        (X.astype(np.float32), X.astype(np.float32)[:, 0]),
        (pd.DataFrame(X), pd.DataFrame(X)[0]),
        (X[::-1][::-1], X[:, 0][::-1][::-1]),  # negative strides
    ],
)
def test_arrays_and_frames_as_data(x, y):
    found = PyroModelScore(regression, (x, y))
    tensors = [torch.as_tensor(v, dtype=torch.float32) for v in (X, X[:, 0].copy())]
    expected = PyroModelScore(regression, tuple(tensors))
    u = torch.randn(4, 2)
    # float32: sums of few terms, and second, their derivatives
    assert torch.allclose(found.log_prob(u), expected.log_prob(u), rtol=1e-5)
    # float32's policy, of a derivative
    assert torch.allclose(found.expand(u).gradient, expected.expand(u).gradient, rtol=1e-4)
    assert all(v.dtype == torch.float32 for v in found.observed.values())


@pytest.mark.parametrize("value", [3.0, 3, np.float64(3.0), np.array(3.0)])
def test_a_number_as_observation(value):
    def model(y):
        pyro.sample("y", dist.Normal(pyro.sample("b", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    score = PyroModelScore(model, (value,))
    assert torch.allclose(score.expand(torch.zeros(1, 1)).gradient, t([[3.0]]))


@pytest.mark.parametrize(
    "y",
    [
        np.array([True, False, True]),
        np.array([1, 0, 1]),
        np.array([1, 0, 1], np.uint16),
        [True, False, True],
        t([1, 0, 1]),
        t([True, False, True]),
    ],
)
def test_flags_and_counts_as_observations(y):
    """U = logit p: p³ (1 − p)² with Beta(1, 1) and the Jacobian, at 1/2."""

    def model(y):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("y", dist.Bernoulli(p).expand([3]).to_event(1), obs=y)
        pyro.sample("c", dist.Categorical(torch.ones(3)), obs=np.array(2))

    log_p = PyroModelScore(model, (y,)).log_prob(torch.zeros(1))
    # float32: some roundings of 5
    assert torch.allclose(log_p, t(5 * math.log(0.5) - math.log(3.0)), atol=1e-5)


def test_a_model_that_computes_in_numpy_keeps_its_arrays():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(float(np.mean(y)), 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([2]).to_event(1), obs=torch.from_numpy(y))

    assert PyroModelScore(model, (np.array([1.0, 2.0]),)).dim == 1


# -- threads ---------------------------------------------------------------------------------------


def in_threads(model, args=(), steps=30):
    """Draws of seeds 0 and 1, twice each at once, and of seed 0 alone."""

    def walk(seed):
        kernel = ScoreLangevinKernel(model, step_size=0.1)
        mcmc = MCMC(kernel, steps, 10, seed=seed, num_chains=2, disable_progbar=True)
        mcmc.run(*args)
        mcmc.to_inference_data()  # which asks the model as well
        return mcmc.get_samples()

    found = {}

    def work(i):
        try:
            found[i] = walk(i % 2)
        except Exception as error:
            found[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found, walk(0)


@pytest.mark.parametrize(
    ("model", "args"),
    [
        (GaussianScore([0.0, 0.0], torch.eye(2)), ()),
        (LogDensityScore(lambda x: dist.Normal(0.0, 1.0).log_prob(x).sum(), (2,)), ()),
        (dist.Gamma(2.0, 3.0), ()),
        (schools, (Y, S)),  # takes turns
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_runs_in_several_threads_draw_what_they_draw_alone(model, args):
    checks, state = dist.is_validation_enabled(), torch.get_rng_state()
    found, alone = in_threads(model, args)
    for i, samples in found.items():
        assert not isinstance(samples, Exception), samples
        for name, value in samples.items():
            assert torch.equal(value, found[i % 2][name])
            assert torch.equal(value, alone[name]) == (i % 2 == 0)
    # nothing is left behind
    assert dist.is_validation_enabled() == checks
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="support"):
        torch.distributions.Gamma(2.0, 3.0).log_prob(t(-1.0))
