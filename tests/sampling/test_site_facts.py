"""What is to be known of sites to judge their draws: angles, lost digits, flat directions."""

import math
import tempfile

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.reparam import LocScaleReparam
from torch import tensor as t

from ozaki import MCMC, ScoreOzakiKernel
from ozaki.diagnostics import inference_data, load, save, verdict
from ozaki.sampling.site_facts import site_facts
from ozaki.scores.pyro_models.model import PyroModelScore
from tests.kit.tolerances import MCSE


def target(law):
    kernel = ScoreOzakiKernel(law)
    kernel.setup(0)
    return kernel.target


@pytest.mark.parametrize("law", [dist.VonMises(t(3.0), t(1.0)), lambda: angle()])
@pytest.mark.usefixtures("unchecked")
def test_angles_are_drawn_on_the_circle_and_marked(law):
    mcmc = MCMC(ScoreOzakiKernel(law, step_size=3.0), 100, 0, seed=0, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples()["x"].double()
    assert bool(((x >= -math.pi) & (x < math.pi)).all())
    assert dict(mcmc.to_inference_data()["posterior"]["x"].attrs) == {"circular": 1}
    # VonMises(3, 1) straddles ±π: its mean direction is I₁(1)/I₀(1) = 0.4464 long. 400 draws of
    # such steps are worth 100 or more, whose coordinates have standard deviations below 0.75
    direction = complex(torch.complex(x.cos(), x.sin()).mean())
    assert abs(direction - 0.4464 * complex(math.cos(3), math.sin(3))) < MCSE * 0.75 / 10


def angle():
    pyro.sample("x", dist.VonMises(t(3.0), t(1.0)))


@pytest.mark.parametrize(
    ("law", "u", "lost"),
    [
        (dist.Beta(0.1, 0.1), 20.0, True),
        (dist.Beta(0.1, 0.1), -80.0, False),  # float32 has room near 0
        (dist.Beta(0.1, 0.1), 10.0, False),
        (dist.Uniform(100.0, 101.0), 14.0, True),
        (dist.Dirichlet(torch.ones(3)), 30.0, True),
        (dist.LKJCholesky(3, 1.0), 12.0, True),
        (dist.Pareto(5.0, 1.0), -20.0, True),
        (dist.LogNormal(0.0, 1.0), -80.0, False),
        (dist.Normal(0.0, 1.0), 1e6, False),
        (dist.Beta(torch.tensor(0.1, dtype=torch.float64), 0.1), 20.0, False),  # the remedy
    ],
)
def test_draws_that_the_dtype_does_not_hold_are_marked(law, u, lost):
    found = target(law)
    position = torch.zeros(2, 100, found.score.dim, dtype=found.score.dtype)
    position[1, 40:50] = u
    assert site_facts(found, position) == (
        {"x": {"saturated": pytest.approx(0.05)}} if lost else {}
    )


def test_half_of_beta_is_below_one_half_where_the_dtype_holds_it_and_marked_where_it_does_not():
    """By quadrature in u of what is walked on: 1 − ½ e^(−0.1 · 16.6) … of the mass is cut off."""
    u = torch.linspace(-300, 300, 60001, dtype=torch.float64)
    below = {}
    for dtype in (torch.float32, torch.float64):
        score = target(dist.Beta(torch.tensor(0.1, dtype=dtype), 0.1)).score
        p = score.log_prob(u.to(dtype).unsqueeze(-1)).double().exp()
        below[dtype] = float(p[u < 0].sum() / p.sum())
    # ½ / (1 − 0.095) = 0.55, where ½ e^(−1.66) = 0.095 is cut off
    assert below[torch.float32] > 0.54
    # half; quadrature leaves less than a hundredth
    assert below[torch.float64] == pytest.approx(0.5, abs=0.01)


def masked():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample(
            "y", dist.Normal(mu, 1.0), obs=t([1.0, 2.0, 3.0]), obs_mask=t([True, True, False])
        )


def improper():
    pyro.sample("x", dist.ImproperUniform(dist.constraints.positive, (), (2,)))
    pyro.sample("w", dist.ImproperUniform(dist.constraints.unit_interval, (), ()))  # proper
    pyro.sample("z", dist.Normal(0.0, 1.0))


def hinge():
    x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.factor("walls", -(x.abs() - 10).clamp_min(0.0))  # proper: flat near 0 alone


def test_directions_in_which_the_density_is_flat():
    found = PyroModelScore(masked).flat()
    assert {n: v.tolist() for n, v in found.items()} == {"y_unobserved": [True, True, False]}
    found = PyroModelScore(improper).flat()
    assert {n: v.tolist() for n, v in found.items()} == {"x": [True, True]}
    assert PyroModelScore(hinge).flat() == {}


def test_a_mask_of_the_models_own_is_told_from_a_prior_that_is_none():
    for model, site, own in ((masked, "y_unobserved", {"masked": [0, 1]}), (improper, "x", {})):
        found = target(model)
        facts = site_facts(found, torch.zeros(2, 10, found.score.dim))
        assert facts == {site: {"flat": [0, 1], **own}}


def judged(facts, chains=None):
    x = np.random.default_rng(0).normal(size=(4, 500, 3)) if chains is None else chains
    idata = inference_data({"x": x, "y": np.random.default_rng(1).normal(size=(4, 500))})
    idata["posterior"]["x"].attrs.update(facts)
    with tempfile.TemporaryDirectory() as folder:
        idata = load(save(idata, f"{folder}/draws.nc"))  # a file keeps what is known
    return verdict(idata)


def test_a_few_draws_that_are_not_held_are_told_and_many_are_not_trusted():
    few, many = judged({"saturated": 0.001}), judged({"saturated": 0.01})
    for found in (few, many):
        assert "x lie where its dtype does not hold them" in found.problems[0].what
        assert "float64" in found.problems[0].remedy
    assert few.trusted and not many.trusted


def test_flat_directions_are_named_and_not_taken_for_modes():
    """Random walks, whose chains never agree."""
    walks = np.random.default_rng(0).normal(size=(4, 500, 3))
    walks[..., 1] = walks[..., 1].cumsum(1) * 100
    assert "disagree" in judged({}, walks).headline
    found = judged({"flat": [1]}, walks)
    assert not found.trusted and "does not depend on x[1]" in found.headline
    assert not any("modes" in problem.remedy for problem in found.problems)
    found = judged({"flat": [1], "masked": [1]}, walks)
    assert found.trusted and "a mask takes the density from x[1]" in found.problems[0].what


@pytest.mark.usefixtures("unchecked")
def test_a_store_keeps_what_is_known_of_its_sites(tmp_path):
    store = tmp_path / "draws.zarr"
    kernel = ScoreOzakiKernel(dist.VonMises(t(3.0), t(1.0)), step_size=3.0)
    mcmc = MCMC(kernel, 20, 0, seed=0, disable_progbar=True, store=store)
    mcmc.run()
    for idata in (mcmc.to_inference_data(), load(store)):
        assert dict(idata["posterior"]["x"].attrs) == {"circular": 1}
    mcmc.extend(10)
    assert dict(load(store)["posterior"]["x"].attrs) == {"circular": 1}
    assert mcmc.get_samples()["x"].shape == (120,)


def hierarchy():
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    with pyro.plate("groups", 3):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=torch.zeros(3))


def neck():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(2), torch.exp(v / 2)).to_event(1))


REPARAMETRISED = pyro.poutine.reparam(hierarchy, config={"theta": LocScaleReparam(0.0)})


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (hierarchy, ["theta"]),
        (neck, ["x"]),
        (REPARAMETRISED, []),  # the remedy
        (lambda: pyro.sample("x", dist.Normal(0.0, 2.0)), []),
        # a scale that is drawn, of a law that is not on the whole line
        (lambda: pyro.sample("x", dist.LogNormal(0.0, pyro.sample("s", dist.HalfNormal(1.0)))), []),
    ],
)
def test_sites_whose_scale_is_itself_drawn_are_marked(model, named):
    found = target(model)
    facts = site_facts(found, torch.zeros(2, 10, found.score.dim))
    assert facts == {name: {"centred": 1} for name in named}


def test_the_line_that_reparametrises_is_said_where_chains_do_not_mix_and_only_there():
    assert not judged({"centred": 1}).problems
    walks = np.random.default_rng(0).normal(size=(4, 500, 3)).cumsum(1)
    found = judged({"centred": 1}, walks)
    assert not found.trusted
    remedies = [problem.remedy for problem in found.problems]
    assert any("reparam(model, config={'x': LocScaleReparam(0.0)})" in r for r in remedies)
    assert not any("LocScaleReparam" in problem.remedy for problem in judged({}, walks).problems)
