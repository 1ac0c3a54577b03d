"""An outside denoiser as a score: Tweedie's formula backwards."""

import pytest
import torch
from torch import nn

from ozaki import MCMC, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.scores import DenoiserScore, GaussianMixtureScore, GaussianScore
from tests.kit.contracts import moments_match

F64 = torch.float64
MEANS = torch.tensor([[-1.0, 0.0, 0.5], [1.0, 0.5, 0.0]], dtype=F64)
COVARIANCES = torch.stack(
    [torch.eye(3, dtype=F64), torch.diag(torch.tensor([0.3, 1.0, 2.0], dtype=F64))]
)
MIXTURE = GaussianMixtureScore(MEANS, COVARIANCES, torch.tensor([0.3, 0.7], dtype=F64))
SIGMA = 0.4


def posterior_mean(x, sigma):
    """E[x | x̃] of the mixture, component by component."""
    noisy = COVARIANCES + sigma**2 * torch.eye(3, dtype=F64)
    parts = torch.distributions.MultivariateNormal(MEANS, noisy, validate_args=False)
    weights = torch.softmax(
        parts.log_prob(x.unsqueeze(-2)) + torch.log(torch.tensor([0.3, 0.7], dtype=F64)), -1
    )
    gain = COVARIANCES @ torch.linalg.inv(noisy)
    means = MEANS + torch.einsum("kij,nkj->nki", gain, x.unsqueeze(-2) - MEANS)
    return (weights.unsqueeze(-1) * means).sum(-2)


def test_score_and_curvature_are_those_of_the_smoothed_law():
    score = DenoiserScore(posterior_mean, SIGMA, (3,), dtype=F64)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    truth = MIXTURE.smooth(SIGMA)
    for kind in (None, "dense", "diagonal"):
        found, wanted = score.expand(x, kind), truth.expand(x, kind)
        torch.testing.assert_close(found.gradient, wanted.gradient)
        assert found.log_density is None
        if kind is not None:
            torch.testing.assert_close(found.curvature.dense(), wanted.curvature.dense())


def test_chains_of_a_denoiser():
    """N(0, C) smoothed by σ; both kernels."""
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=F64)
    gain = covariance @ torch.linalg.inv(covariance + SIGMA**2 * torch.eye(2, dtype=F64))
    score = DenoiserScore(lambda x, sigma: x @ gain, SIGMA, (2,), dtype=F64)
    truth = covariance + SIGMA**2 * torch.eye(2, dtype=F64)
    for kernel in (ScoreOzakiKernel, ScoreLangevinKernel):
        mcmc = MCMC(
            kernel(score),
            num_samples=60,
            warmup_steps=100,
            num_chains=80,
            seed=1,
            disable_progbar=True,
        )
        mcmc.run()
        draws = mcmc.get_samples(group_by_chain=True)["x"]
        moments_match(draws, torch.zeros(2), truth)


def test_an_image_denoiser_sees_images():
    """A module on (n, 1, 4, 4); flat points outside."""

    class Shrink(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(1, 1, 3, padding=1, bias=False)

        def forward(self, x, sigma):
            assert x.shape[1:] == (1, 4, 4)
            return x + sigma**2 * self.convolution(x)

    net = Shrink()
    score = DenoiserScore(net, 0.3, (1, 4, 4))
    x = torch.randn(6, 16)
    found = score.expand(x, "dense")
    images = x.reshape(6, 1, 4, 4)
    torch.testing.assert_close(
        # float32's policy, stricter in atol; so are the others here
        found.gradient,
        net.convolution(images).reshape(6, 16).detach(),
        rtol=1e-4,
        atol=1e-5,
    )
    kernel = net.convolution.weight.detach()[0, 0]
    basis = torch.eye(16).reshape(16, 1, 4, 4)
    matrix = torch.nn.functional.conv2d(basis, kernel[None, None], padding=1).reshape(16, 16)
    torch.testing.assert_close(
        found.curvature.dense()[0], (matrix + matrix.mT) / 2, rtol=1e-4, atol=1e-5
    )


def test_chains_begin_at_noisy_points_where_clean_ones_are_given():
    clean = MIXTURE.start(4000, torch.Generator().manual_seed(0))
    score = DenoiserScore(posterior_mean, SIGMA, (3,), start=clean)
    assert score.dtype == F64
    start = score.start(4000, torch.Generator().manual_seed(1))
    excess = start.var(0) - clean.var(0)
    # σ² within five standard errors: 2σ √(variance/n), the cross term, and √(2/n) σ²
    torch.testing.assert_close(excess, torch.full((3,), SIGMA**2, dtype=F64), rtol=0.3, atol=0.02)
    again = score.start(4000, torch.Generator().manual_seed(1))
    assert torch.equal(start, again)


def test_a_normal_in_the_docstring_form():
    score = DenoiserScore(lambda x, sigma: x / (1 + sigma**2), 0.5, (3,), dtype=F64)
    truth = GaussianScore(torch.zeros(3, dtype=F64), 1.25 * torch.eye(3, dtype=F64))
    x = torch.randn(4, 3, dtype=F64)
    torch.testing.assert_close(score.expand(x).gradient, truth.expand(x).gradient)


BAD = {
    "denoiser must be callable": {"denoiser": 3},
    "sigma must be a finite number above 0": {"sigma": 0.0},
    "event_shape must be a sequence": {"event_shape": 3},
    "must return points of the shape it was given, .2, 3., but returned .2, 2.": {
        "denoiser": lambda x, sigma: x[:, :2]
    },
    "must return points of the shape .*, but returned float": {"denoiser": lambda x, sigma: 1.0},
    "must return finite values": {"denoiser": lambda x, sigma: x / 0},
    "could not be called with points of shape .2, 3. and sigma 0.4: it raised TypeError": {
        "denoiser": lambda x: x
    },
    "start must have shape": {"start": torch.zeros(5, 2)},
    "must return points of the dtype .* but returned torch.float32 .* end it with .to.x.": {
        "denoiser": lambda x, sigma: x.float()
    },
    "must leave the points it is given as they are": {"denoiser": lambda x, sigma: x.mul_(0.5)},
}


def gradient_inside(x, sigma):
    """Tweedie's formula by a gradient that torch.func cannot go through."""
    with torch.enable_grad():
        z = x.detach().requires_grad_()
        return x + sigma**2 * torch.autograd.grad(-0.5 * (z**2).sum(), z)[0]


def backward_inside(x, sigma):
    with torch.enable_grad():
        z = x.detach().clone().requires_grad_()
        (-0.5 * (z**2).sum()).backward()
    return x + sigma**2 * z.grad


@pytest.mark.parametrize(
    "denoiser",
    [
        gradient_inside,
        backward_inside,
        lambda x, sigma: torch.from_numpy(x.detach().numpy() / 2),
        lambda x, sigma: x / (1 + x.abs().max().item() * 0),
        lambda x, sigma: x / 2 if x.sum() > -1e9 else x / 3,
    ],
)
def test_what_torch_func_cannot_differentiate_is_refused_when_made(denoiser):
    with pytest.raises(ValueError, match=r"could not be differentiated by torch.func .*func.grad"):
        DenoiserScore(denoiser, SIGMA, (3,), dtype=F64)


def test_the_gradient_that_is_recommended_works():
    def by_func(x, sigma):
        return x + sigma**2 * torch.func.grad(lambda z: -0.5 * (z**2).sum())(x)

    score = DenoiserScore(by_func, SIGMA, (3,), dtype=F64)  # s1 = −x
    found = score.expand(torch.ones(2, 3, dtype=F64), "dense")
    torch.testing.assert_close(found.gradient, -torch.ones(2, 3, dtype=F64))
    torch.testing.assert_close(found.curvature.dense(), -torch.eye(3, dtype=F64).expand(2, 3, 3))


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    arguments = {"denoiser": posterior_mean, "sigma": SIGMA, "event_shape": (3,), "dtype": F64}
    with pytest.raises(ValueError, match=message):
        DenoiserScore(**(arguments | BAD[message]))
