"""What a caller has switched on in torch does not change what is computed."""

from contextlib import contextmanager, nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC as PyroMCMC

import ozaki
from ozaki import MCMC, DSMTrainer, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.foundation.torch_modes import ordinary, recordable
from ozaki.scores import DenoiserScore, DistributionScore, LogDensityScore
from ozaki.scores.pyro_models.model import PyroModelScore

DATA = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
WEIGHTS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
QUIET = {"seed": 0, "disable_progbar": True}


@contextmanager
def switched_off():
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(before)


MODES = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "set_grad_enabled": switched_off,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def model(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    scale = pyro.sample("scale", dist.HalfCauchy(5.0))
    pyro.deterministic("double", 2 * loc)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


def summed_out(y):
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("y", dist.Normal(20 * z * p, 5.0), obs=y)


def formula(x):
    return -0.5 * (WEIGHTS @ x).square().sum()


def walked(kernel, *args, **options):
    mcmc = MCMC(kernel, 4, 10, **QUIET, **options)
    mcmc.run(*args)
    return mcmc


def run_extended():
    mcmc = walked(ScoreOzakiKernel(model), DATA + 0)
    mcmc.extend(4)
    mcmc.to_inference_data()
    return mcmc.get_samples()


def begun_elsewhere():
    start = {"loc": torch.zeros(4), "scale": torch.ones(4)}
    return walked(ScoreLangevinKernel(model), DATA + 0, initial_params=start).get_samples()


def stock():
    pyro.set_rng_seed(0)
    mcmc = PyroMCMC(ScoreOzakiKernel(model), 5, 10, disable_progbar=True)
    mcmc.run(DATA + 0)
    return mcmc.get_samples()


def made_and_expanded():
    at = torch.ones(2, 3)
    scores = [
        LogDensityScore(formula, (3,)),
        DistributionScore(dist.MultivariateNormal(torch.zeros(3), 2 * torch.eye(3))),
        DenoiserScore(lambda x, sigma: x @ (WEIGHTS.mT @ WEIGHTS) / 9, 0.5, (3,)),
    ]
    found = [score.expand(at, kind) for score in scores for kind in ("dense", "diagonal")]
    return {i: torch.cat([e.gradient, e.curvature.diagonal()]) for i, e in enumerate(found)}


def denoised():
    score = DenoiserScore(lambda x, sigma: x @ (WEIGHTS.mT @ WEIGHTS) / 9, 0.5, (3,))
    posterior = ozaki.denoise(score, torch.ones(3))
    return {"mean": posterior.mean, "variance": posterior.variance}


def trained():
    estimator = DSMTrainer(sigma=0.5, max_steps=2, seed=0).fit(WEIGHTS.repeat(20, 1) + 0)
    return walked(ScoreOzakiKernel(estimator)).get_samples()


def looped():
    return walked(ScoreLangevinKernel(summed_out), DATA + 0).get_samples()


WORK = {
    f.__name__: f
    for f in (
        run_extended,
        begun_elsewhere,
        stock,
        made_and_expanded,
        denoised,
        trained,
        looped,
    )
}


@pytest.mark.filterwarnings("ignore:the model cannot be vectorised")
@pytest.mark.parametrize("name", WORK)
def test_the_same_numbers_under_every_mode(name):
    wanted = WORK[name]()
    for mode, switched in MODES.items():
        if (name, mode) == ("trained", "autocast"):
            continue  # training in few digits is what was asked for
        with switched():
            found = WORK[name]()
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=0)  # the very same


def test_the_caller_s_modes_are_left_as_they_were():
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        walked(ScoreLangevinKernel(model), DATA + 0)
        assert torch.is_inference_mode_enabled() and torch.is_autocast_enabled("cpu")
        with ordinary():
            assert not torch.is_inference_mode_enabled() and not torch.is_autocast_enabled("cpu")
    with torch.no_grad(), ordinary():
        assert not torch.is_grad_enabled()


def test_a_tensor_of_inference_mode_that_a_function_holds_is_named():
    with torch.inference_mode():
        held = WEIGHTS + 0

    def holding(x):
        return -0.5 * (held @ x).square().sum()

    def looping():
        p = pyro.sample("p", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.factor("held", holding(p))

    for mode in (nullcontext, torch.inference_mode):
        with mode():
            with pytest.raises(ValueError, match=r"not hold tensors made under .*inference_mode"):
                LogDensityScore(holding, (3,))
            with pytest.raises(ValueError, match=r"not hold tensors made under .*inference_mode"):
                PyroModelScore(looping)
    held = held.clone()  # the remedy
    LogDensityScore(holding, (3,)).expand(torch.ones(3), "dense")


def test_copies_are_made_of_what_inference_mode_made_alone():
    with torch.inference_mode():
        inside = torch.ones(2)
    copied = recordable({"a": [inside, WEIGHTS], "b": "word"})
    assert not copied["a"][0].is_inference() and copied["a"][1] is WEIGHTS
    assert torch.equal(copied["a"][0], inside) and copied["b"] == "word"


def test_a_run_is_read_in_inference_mode(tmp_path):
    mcmc = walked(ScoreOzakiKernel(model), DATA)
    expected = mcmc.to_inference_data(posterior_predictive=True, prior=3)
    with torch.inference_mode():
        again = walked(ScoreOzakiKernel(model), DATA)
        found = again.to_inference_data(posterior_predictive=True, prior=3)
        again.report(tmp_path / "report.html")
    assert found.posterior.equals(expected.posterior)
    assert found.log_likelihood.equals(expected.log_likelihood)
