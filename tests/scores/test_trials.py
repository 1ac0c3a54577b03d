"""What is tried of a user's function: a curvature that is missing, memory, chance.

The truth is known by construction: each function stands here with a gradient that autograd can
differentiate and, word for word the same, with one that it cannot.
"""

import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.function import once_differentiable

from ozaki import MCMC, ScoreDistribution, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.scores import DenoiserScore, LogDensityScore
from ozaki.scores.pyro_models.model import PyroModelScore
from ozaki.scores.trials import untrue_curvature
from tests.kit.contracts import moments_match
from tests.scores.pyro_models.test_site import KNOWN, Bare

F32, F64 = torch.float32, torch.float64
WORDS = "must have derivatives that give a curvature .* ScoreLangevinKernel"


class Bridge(torch.autograd.Function):
    """−Σ a x²/2 − b x⁴/4, whose gradient is made elsewhere and saved: to autograd a constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, a, b):
        return -(a * x**2 / 2 + b * x**4 / 4).sum(), -(a * x + b * x**3)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, g, _):
        return g * ctx.saved_tensors[0], None, None


class Lone(Bridge):
    """The same that cannot be batched."""

    generate_vmap_rule = False


class Once(torch.autograd.Function):
    """The square of x, differentiable once."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]


class Half(torch.autograd.Function):
    """−‖x‖²/2 with the right gradient, and half of the right curvature."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return -0.5 * (x**2).sum()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return -g * (x + x.detach()) / 2


def bridged(x, a=1.0, b=0.0):
    like = torch.ones_like(x)
    return Bridge.apply(x, a * like, b * like)[0]


def frozen_weights(x):
    with torch.no_grad():
        weights = torch.softmax(x, -1)
    return -(weights * x**2).sum()


UNTRUE = {
    "saved": bridged,
    "saved, beside a prior": lambda x: bridged(x, 0, 1) - 0.5 * (x**2).sum(),
    "saved, a small part": lambda x: 0.05 * bridged(x) - 0.5 * (x**2).sum(),
    "saved, beside a stiff one": lambda x: bridged(x[1:]) - 0.5e8 * x[0] ** 2,
    "saved, and flat": lambda x: bridged(x, 1e-8),
    "once": lambda x: -Once.apply(x).sum(),
    "half": Half.apply,
    "no_grad": frozen_weights,
    "detached": lambda x: -0.5 * ((x * x.detach()) ** 2).sum(),
}


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", UNTRUE)
def test_a_curvature_that_is_not_how_the_gradient_changes_is_refused(name, dtype):
    score = LogDensityScore(UNTRUE[name], (3,), dtype=dtype)
    x = torch.ones(2, 3, dtype=dtype)
    assert score.expand(x).gradient.isfinite().all()
    for kind in ("dense", "diagonal"):
        with pytest.raises(ValueError, match=f"log_density {WORDS}"):
            score.expand(x, kind)


def test_the_two_numbers_are_named():
    score = LogDensityScore(lambda x: bridged(x) - 3 * x[0] ** 2, (1,), dtype=F64)
    with pytest.raises(ValueError) as error:
        score.expand(torch.ones(1, dtype=F64), "dense")
    words = re.search(r"is (-?[\d.]+) by autograd .* by (-?[\d.]+);", str(error.value))
    said, true = map(float, words.groups())
    assert true / said == pytest.approx(7 / 6, rel=1e-4)  # −7 in truth, −6 by autograd


KINKS = torch.randn(10_000, 5, generator=torch.Generator().manual_seed(0))
WHERE = torch.randn(10_000, generator=torch.Generator().manual_seed(1))


def relu(dtype):
    torch.manual_seed(0)
    layers = (torch.nn.Linear(5, 200), torch.nn.ReLU(), torch.nn.Linear(200, 200), torch.nn.ReLU())
    return torch.nn.Sequential(*layers, torch.nn.Linear(200, 1)).to(dtype)


RELU = {dtype: relu(dtype) for dtype in (F32, F64)}
TIMES = torch.linspace(0, 1, 60)


def gaussian_process(x):
    distance = ((TIMES[:, None] - TIMES) ** 2).to(x)
    kernel = x[1].exp() * torch.exp(-distance / x[0].exp()) + 1e-3 * torch.eye(60).to(x)
    law = torch.distributions.MultivariateNormal(torch.zeros(60).to(x), kernel, validate_args=False)
    return law.log_prob(torch.sin(9 * TIMES).to(x))


TRUE = {
    "Laplace": lambda x: -x.abs().sum(),
    "kinks that lie dense": lambda x: -(WHERE.to(x) - KINKS.to(x) @ x).abs().sum(),
    "and a prior": lambda x: -(WHERE.to(x) - x[0]).abs().sum() - (x**2).sum(),
    "Huber": lambda x: -torch.nn.functional.huber_loss(KINKS.to(x) @ x, WHERE.to(x)),
    "maximum": lambda x: -x.abs().max() - (x**2).max(),
    "pieces": lambda x: torch.where(x > 0, -(x**2), -(x.abs() ** 1.5)).sum(),
    "a ReLU network": lambda x: RELU[x.dtype](x).sum() - 0.1 * (x**2).sum(),
    "its square": lambda x: -RELU[x.dtype](x).square().sum(),
    "linear": lambda x: x.sum(),
    "nearly linear": lambda x: 1e4 * x.sum() - 1e-3 * (x**2).sum(),
    "stiff": lambda x: -0.5e8 * x[0] ** 2 - 0.5 * (x[1:] ** 2).sum(),
    "flat": lambda x: -0.5e-8 * (x**2).sum(),
    "digits lost to a constant": lambda x: -((x + 1e4) - 1e4).square().sum() - (x**2).sum(),
    "nearly all of them": lambda x: -((x + 1e5) - 1e5).square().sum() - (x**2).sum(),
    "a large constant": lambda x: 1e6 - (x**2).sum(),
    "Cauchy": lambda x: -torch.log1p(x**2).sum(),
    "a narrow Student": lambda x: -2 * torch.log1p((1e2 * x) ** 2).sum(),
    "modes": lambda x: torch.logaddexp(-((x - 3) ** 2).sum(), -9 * ((x + 3) ** 2).sum()),
    "funnel": lambda x: -0.5 * (x[1:] ** 2 * torch.exp(-x[0])).sum() - 2 * x[0] - x[0] ** 2,
    "a process": gaussian_process,
    "cast": lambda x: -(x.float() ** 2).sum().to(x.dtype) - 0.1 * (x**4).sum(),
    "waves": lambda x: torch.cos(300 * x).sum() - (x**2).sum(),
    "steep": lambda x: torch.nn.functional.logsigmoid(1e3 * x).sum() - (x**2).sum(),
    "rising steeply": lambda x: x.sum() - torch.exp(20 * x).sum(),
    "straight through": lambda x: -((x + (torch.round(1e3 * x) / 1e3 - x).detach()) ** 2).sum(),
}


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", TRUE)
def test_what_autograd_gets_right_or_rounding_hides_is_taken(name, dtype):
    score = LogDensityScore(TRUE[name], (5,), dtype=dtype)
    score.expand(torch.full((5,), 0.3, dtype=dtype), "dense")


@settings(max_examples=12, derandomize=True, deadline=None)
@given(
    st.integers(1, 6),
    st.floats(-100, 100),
    st.floats(-3, 3),
    st.sampled_from([F32, F64]),
    st.sampled_from([0.0, 20.0]),  # in spreads: single precision has fewer digits left there
)
def test_of_any_scale_and_size(dim, power, quartic, dtype, shift):
    """X = c + s u, log p = −a u²/2 − b u⁴/4 with s up to 1e±100 in double precision."""
    shift = shift if dtype is F64 else shift / 10
    scale = 10 ** (power if dtype is F64 else power / 10)
    generator = torch.Generator().manual_seed(dim)
    start = scale * (shift + torch.randn(50, dim, generator=generator, dtype=dtype))

    def sound(x):
        u = x / scale - shift
        return -(u**2 / 2 + 10**quartic * u**4 / 4).sum()

    score = LogDensityScore(sound, (dim,), start=start)
    score.expand(start[:2], "diagonal")
    missing = LogDensityScore(
        lambda x: bridged(x / scale - shift, 1.0, 10**quartic), (dim,), start=start
    )
    with pytest.raises(ValueError, match=WORDS):
        missing.expand(start[:2], "diagonal")


def test_one_that_is_nan_is_named_by_the_kernel():
    """Equal eigenvalues: torch's second derivative is NaN there, and s1 is not."""

    def degenerate(x):
        return -torch.linalg.eigvalsh(torch.eye(3).to(x) * (x @ x)).sum()

    score = LogDensityScore(degenerate, (3,))
    for options in ({}, {"curvature": "diagonal"}, {"step_size": 0.1}):
        with pytest.raises(ValueError, match="curvature must be finite"):
            MCMC(ScoreOzakiKernel(score, **options), 10, 20, disable_progbar=True).run()


def test_a_kernel_that_reads_curvature_refuses_and_the_other_walks_right():
    score = LogDensityScore(lambda x: bridged(x, 2.0), (2,), dtype=F64)  # N(0, ½ I)
    options = {"num_chains": 80, "seed": 0, "disable_progbar": True}
    for kernel in (
        ScoreOzakiKernel(score),
        ScoreOzakiKernel(score, curvature="diagonal", frozen=True),
        ScoreOzakiKernel(LogDensityScore(lambda x: -(x**2).sum(), (2,), dtype=F64), score=score),
    ):
        with pytest.raises(ValueError, match=WORDS):
            MCMC(kernel, 10, 20, **options).run()
    mcmc = MCMC(ScoreLangevinKernel(score), 60, 100, **options)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    moments_match(draws, torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64) / 2)


@pytest.mark.parametrize("function", [Bridge, Lone])
def test_in_a_model_the_prior_s_curvature_is_not_taken_for_all_of_it(function):
    one, none = torch.ones(2, dtype=F64), torch.zeros(2, dtype=F64)

    def model():
        x = pyro.sample("x", dist.Normal(none, one).to_event(1))
        pyro.factor("elsewhere", function.apply(x, one, none)[0])

    score = PyroModelScore(model, vectorize="auto" if function is Bridge else False)
    x = torch.ones(2, 2, dtype=F64)
    torch.testing.assert_close(score.expand(x).gradient, -2 * x)
    with pytest.raises(ValueError, match=f"model {WORDS}"):
        score.expand(x, "dense")
    if function is Lone:
        return
    mcmc = MCMC(ScoreLangevinKernel(model), 60, 100, num_chains=80, seed=0, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    moments_match(draws, none, torch.eye(2, dtype=F64) / 2)


@pytest.mark.parametrize("sound", [True, False])
def test_a_learned_s2_need_not_be_the_jacobian_of_s1(sound):
    """Only the rest of the model is tried."""
    prior = Bare(KNOWN, "diagonal")  # of a law whose components are correlated
    y = torch.ones(prior.dim, dtype=F64)

    def model():
        x = pyro.sample("x", ScoreDistribution(prior))
        if sound:
            pyro.factor("likelihood", -((x - y) ** 2).sum() / 2)
        else:
            pyro.factor("likelihood", bridged(x - y))

    score = PyroModelScore(model)
    x = torch.zeros(2, prior.dim, dtype=F64)
    if sound:
        score.expand(x, "dense")
        return
    with pytest.raises(ValueError, match=f"model {WORDS}"):
        score.expand(x, "dense")


def test_what_is_asymmetric_is_refused_where_its_changes_cannot_be_resolved():
    """A gradient rough on every scale, beside a second derivative that is none of any function."""
    matrix = torch.tensor([[1.0, 2.0], [-2.0, 1.0]], dtype=F64)
    generator = torch.Generator().manual_seed(0)

    def rough(x):
        return -x + torch.randn(x.shape, generator=generator, dtype=F64)

    near = torch.randn(20, 2, generator=generator, dtype=F64)
    assert untrue_curvature(rough, lambda x, v: v @ matrix, near) is not None
    assert untrue_curvature(rough, lambda x, v: v @ (matrix + matrix.mT), near) is None


# -- denoisers --------------------------------------------------------------------------------


class Still(torch.autograd.Function):
    """tanh, whose derivative is lost."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return 0 * g


@pytest.mark.parametrize(
    "denoiser",
    [
        lambda x, sigma: Still.apply(x),
        lambda x, sigma: 0.5 * x + 0.1 * x.tanh().detach(),
        lambda x, sigma: (0.5 * x).detach(),
        lambda x, sigma: torch.softmax(-(x[:, :1] ** 2) * torch.arange(3), -1).detach() * x,
    ],
)
def test_a_denoiser_whose_jacobian_autograd_does_not_see(denoiser):
    score = DenoiserScore(denoiser, 0.5, (3,))
    with pytest.raises(ValueError, match=f"denoiser {WORDS}"):
        score.expand(torch.ones(2, 3), "diagonal")


def test_it_is_walked_on_by_s1_alone():
    """D(x) = x/5 at σ = ½ is N(0, σ²/(1 − 1/5) I)."""
    score = DenoiserScore(lambda x, sigma: (x / 5).detach(), 0.5, (2,), dtype=F64)
    mcmc = MCMC(ScoreLangevinKernel(score), 60, 100, num_chains=80, seed=0, disable_progbar=True)
    mcmc.run()
    truth = 0.25 / 0.8 * torch.eye(2, dtype=F64)
    moments_match(mcmc.get_samples(group_by_chain=True)["x"], torch.zeros(2, dtype=F64), truth)
    with pytest.raises(ValueError, match=WORDS):
        MCMC(ScoreOzakiKernel(score), 10, 20, disable_progbar=True).run()


@pytest.mark.parametrize(
    "denoiser",
    [
        lambda x, sigma: x @ torch.tensor([[0.5, 0.3, 0.0], [0.0, 0.5, 0.3], [0.0, 0.0, 0.5]]),
        lambda x, sigma: x.sign() * torch.relu(x.abs() - 0.1),
        lambda x, sigma: x.sort(-1).values,
        lambda x, sigma: x.clamp(-1, 1),
        lambda x, sigma: torch.zeros_like(x),
        lambda x, sigma: torch.round(255 * x) / 255,
    ],
)
def test_denoisers_with_kinks_or_an_asymmetric_jacobian_are_taken(denoiser):
    DenoiserScore(denoiser, 0.5, (3,)).expand(torch.full((2, 3), 0.3), "dense")


# -- memory, chance, neighbours ---------------------------------------------------------------


class Scheduler:
    """A step that advances."""

    steps = 1000

    def __call__(self, x, sigma):
        self.steps -= 1
        return x * (self.steps / 2000)


class WarmStart:
    """An iteration that begins where the last one ended."""

    last = 0.0

    def __call__(self, x, sigma):
        z = torch.zeros_like(x) + self.last
        for _ in range(3):
            z = z - 0.3 * (z - x + sigma**2 * z)
        self.last = z.detach().mean()
        return z


class Settling:
    """The same that has converged for the last point: only another one in between shows it."""

    last = None

    def __call__(self, x, sigma):
        before, self.last = self.last, x.detach().clone()
        far = before is not None and (before.shape != x.shape or not torch.equal(before, x))
        return x * (0.51 if far else 0.5)


def module(layer):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), layer, torch.nn.Linear(8, 3))


def called(net):
    return lambda x, sigma: net(x)


CHANGING = {
    "step": Scheduler(),
    "warm start": WarmStart(),
    "settling": Settling(),
    "dropout": called(module(torch.nn.Dropout(0.2))),
    "batch norm": called(module(torch.nn.BatchNorm1d(8))),
    "noise": lambda x, sigma: x / 2 + 0.1 * torch.randn_like(x),
    "numpy's noise": lambda x, sigma: x / 2 + np.random.default_rng().normal(),
    "neighbours": lambda x, sigma: (x - x.mean(0)) / 2,
}


@pytest.mark.parametrize("name", CHANGING)
def test_a_denoiser_that_remembers_draws_or_looks_around_is_refused(name):
    with pytest.raises(ValueError, match=r"denoiser must .*each .*by itself, but .* eval mode"):
        DenoiserScore(CHANGING[name], 0.5, (3,))


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.2), torch.nn.BatchNorm1d(8)])
def test_in_eval_mode_it_is_taken(layer):
    DenoiserScore(called(module(layer).eval()), 0.5, (3,)).expand(torch.ones(3), "dense")


class Counting:
    """A density that remembers how often it was called."""

    calls = 0

    def __call__(self, x):
        self.calls += 1
        return -(x**2).sum() * (1 + 0.01 * self.calls)


class Noisy(torch.distributions.Normal):
    """A distribution whose log density is random."""

    def log_prob(self, value):
        return super().log_prob(value) + np.random.default_rng().normal()


def test_a_density_that_remembers_or_draws_is_refused():
    for density in (Counting(), lambda x: -(x**2).sum() + np.random.default_rng().normal()):
        with pytest.raises(ValueError, match="log_density must be a function of the point alone"):
            LogDensityScore(density, (2,))


def test_a_model_that_remembers_other_points_is_refused():
    last = [None]

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        before, last[0] = last[0], x.detach().clone()
        far = before is not None and not torch.equal(before, last[0])
        pyro.factor("memory", -(x**2) * (1.01 if far else 1.0))

    with pytest.raises(ValueError, match="function of its latent sites, but two evaluations"):
        PyroModelScore(model)


class Doubled(torch.autograd.Function):
    """The square of x, but twice it where it is batched."""

    @staticmethod
    def forward(x):
        return (x**2).sum()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.saved_tensors[0]

    @staticmethod
    def vmap(info, in_dims, x):
        return 2 * (x**2).sum(-1), 0


def test_a_wrong_vmap_rule_is_noticed():
    with pytest.raises(ValueError, match=r"the same batched by .* and alone"):
        LogDensityScore(lambda x: -Doubled.apply(x), (2,))
