"""Closed forms that the code must meet, each written a second way and without ozaki's help."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor
from torch.func import grad, hessian, vmap


def derivatives(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (n, D) and Hessian (n, D, D) of a scalar function at each row of x, by autodiff."""
    return vmap(grad(f))(x), vmap(hessian(f))(x)


def gaussian_mixture_log_density(x: Tensor, means, covariances, weights) -> Tensor:
    """Log Σ w N(x; μ, Σ) by torch's own distributions."""
    parts = torch.distributions.MultivariateNormal(means, covariances, validate_args=False)
    mixture = torch.distributions.Categorical(weights, validate_args=False)
    return torch.distributions.MixtureSameFamily(mixture, parts, validate_args=False).log_prob(x)


def affine_map(proposal, score, step_size: float, curvature) -> tuple[Tensor, Tensor, Tensor]:
    """(M, b, C) of a step on a Gaussian: y | x ~ N(M x + b, C)."""
    points = torch.cat([torch.zeros(1, score.dim), torch.eye(score.dim)]).to(score.dtype)
    step = proposal(
        points, score.expand(points, curvature), torch.tensor(step_size, dtype=score.dtype)
    )
    b = step.mean[0]
    covariance = step.covariance.dense()
    # on a Gaussian the covariance is the same from every point
    torch.testing.assert_close(covariance[0], covariance[-1])
    return (step.mean[1:] - b).mT, b, covariance[0]


def stationary_covariance(m: Tensor, c: Tensor) -> Tensor:
    """V = M V Mᵀ + C: the law an unadjusted linear chain settles in."""
    assert np.abs(np.linalg.eigvals(m.numpy())).max() < 1, "the chain has no stationary law"
    return torch.from_numpy(solve_discrete_lyapunov(m.numpy(), c.numpy()))
