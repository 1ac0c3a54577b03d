"""The words of `models` in PyTensor, so that nutpie walks on the density that the others walk on.

`density` writes a posterior as a graph of one flat unconstrained vector, with the transforms that
Pyro and NumPyro take and up to a constant; `compiled` hands it to nutpie as a PyMC model, which
numba compiles. PyMC and nutpie are optional.
"""

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from nutpie import compile_pymc_model
from scipy.special import gammaln

from benchmarks.problem import Problem


class Law:
    """A law: `free` takes an unconstrained value to one in the support and the log Jacobian."""

    def free(self, u):
        return u, 0.0

    def log(self, x):
        raise NotImplementedError

    def to_event(self, n):
        return self


class Positive(Law):
    def free(self, u):
        return pt.exp(u), u


class Normal(Law):
    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale

    def log(self, x):
        return -(((x - self.loc) / self.scale) ** 2) / 2 - pt.log(self.scale)


class StudentT(Law):
    def __init__(self, df, loc, scale):
        self.df, self.loc, self.scale = df, loc, scale

    def log(self, x):
        df, z = self.df, (x - self.loc) / self.scale
        constant = pt.gammaln((df + 1) / 2) - pt.gammaln(df / 2) - pt.log(df) / 2
        return constant - (df + 1) / 2 * pt.log1p(z**2 / df) - pt.log(self.scale)


class HalfNormal(Positive):
    def __init__(self, scale):
        self.scale = scale

    def log(self, x):
        return -((x / self.scale) ** 2) / 2


class HalfCauchy(Positive):
    def __init__(self, scale):
        self.scale = scale

    def log(self, x):
        return -pt.log1p((x / self.scale) ** 2)


class Exponential(Positive):
    def __init__(self, rate):
        self.rate = rate

    def log(self, x):
        return pt.log(self.rate) - self.rate * x


class LogNormal(Positive):
    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale

    def log(self, x):
        return -(((pt.log(x) - self.loc) / self.scale) ** 2) / 2 - pt.log(x)


class Gamma(Positive):
    def __init__(self, concentration, rate):
        self.concentration, self.rate = concentration, rate

    def log(self, x):
        return (self.concentration - 1) * pt.log(x) - self.rate * x


class Beta(Law):
    def __init__(self, a, b):
        self.a, self.b = a, b

    def free(self, u):
        return pt.sigmoid(u), -pt.softplus(u) - pt.softplus(-u)

    def log(self, x):
        return (self.a - 1) * pt.log(x) + (self.b - 1) * pt.log1p(-x)


class LKJCholesky(Law):
    """Of two by two: the correlation is tanh u."""

    def __init__(self, dim, concentration):
        if dim != 2:
            raise NotImplementedError(f"LKJCholesky of dimension {dim}")
        self.power = 2 * concentration - 2

    def free(self, u):
        r = pt.tanh(u[0])
        rest = 1 - r**2
        factor = pt.stack((pt.stack((1.0, 0.0)), pt.stack((r, rest**0.5))))
        return factor, pt.log(rest)

    def log(self, x):
        return self.power * pt.log(x[1, 1])


class Bernoulli(Law):
    def __init__(self, logits):
        self.logits = logits

    def log(self, x):
        return x * self.logits - pt.softplus(self.logits)


class Poisson(Law):
    def __init__(self, rate):
        self.rate = rate

    def log(self, x):
        return x * pt.log(self.rate) - self.rate


class NegativeBinomial(Law):
    def __init__(self, total_count, logits):
        self.total, self.logits = total_count, logits

    def log(self, x):
        whole = pt.gammaln(self.total + x) - pt.gammaln(self.total) - gammaln(x + 1)
        return whole - self.total * pt.softplus(self.logits) - x * pt.softplus(-self.logits)


class MultivariateNormal(Law):
    def __init__(self, loc, covariance):
        self.loc, self.covariance = loc, covariance

    def log(self, x):
        factor = pt.linalg.cholesky(self.covariance)
        z = pt.linalg.solve_triangular(factor, x - self.loc, lower=True)
        return -(z**2).sum() / 2 - pt.log(pt.diag(factor)).sum()


class Categorical(Law):
    def __init__(self, probs):
        self.probs = probs


class MixtureSameFamily(Law):
    def __init__(self, weights, parts):
        self.weights, self.parts = weights, parts

    def log(self, x):
        inside = pt.log(self.weights.probs) + self.parts.log(x[:, None])
        return pt.logaddexp(inside[:, 0], inside[:, 1])


class Density:
    """What stands for pyro: sites read their values off a flat vector and add up."""

    def __init__(self, problem: Problem, point: Any):
        sizes = [math.prod(shape) for shape in problem.shapes.values()]
        ends = np.cumsum([0, *sizes])
        self.values = {
            site: point[start] if shape == () else point[start:end].reshape(tuple(shape))
            for (site, shape), start, end in zip(
                problem.shapes.items(), ends[:-1], ends[1:], strict=True
            )
        }
        self.total: Any = 0.0

    def sample(self, site, law, obs=None):
        if obs is not None:
            self.total += law.log(obs).sum()
            return obs
        free = self.values[site]
        value, jacobian = law.free(free)
        self.total += pt.sum(law.log(value)) + pt.sum(jacobian)
        return value

    def plate(self, name, size):
        return nullcontext()


class Laws:
    """What stands for pyro.distributions."""

    Normal, StudentT, HalfNormal, HalfCauchy = Normal, StudentT, HalfNormal, HalfCauchy
    Exponential, LogNormal, Gamma, Beta = Exponential, LogNormal, Gamma, Beta
    Bernoulli, Poisson, Categorical = Bernoulli, Poisson, Categorical
    NegativeBinomial = NegativeBinomial
    MultivariateNormal, LKJCholesky = MultivariateNormal, LKJCholesky
    MixtureSameFamily = MixtureSameFamily


def path(step: Any, state: Any, count: int) -> Any:
    """What `models.path` is, by PyTensor's scan."""
    return pytensor.scan(step, outputs_info=[state], n_steps=count, return_updates=False)


TENSORS = SimpleNamespace(**vars(pt), path=path)  # what stands for torch


def density(problem: Problem, point: Any) -> Any:
    """The log density at a flat vector, (D,), up to a constant."""
    words = Density(problem, point)
    problem.posterior.model(words, Laws, TENSORS, *problem.data)
    return words.total


def compiled(problem: Problem) -> Any:
    """For `nutpie.sample`; draws are "u".

    Raises:
        RuntimeError: the density differs from NumPyro's by more than a constant.
    """
    with pm.Model() as model:
        # not a flat variable with a potential: a scan would find its random generator behind it
        pm.CustomDist(
            "u",
            np.zeros(problem.dim),
            logp=lambda u, _: density(problem, u),
            support_point=lambda rv, size, zeros: zeros,
            signature="(d)->(d)",
        )
    log_density = model.compile_logp(mode="FAST_COMPILE")
    points = problem.starts(5, 0)
    values = np.array([float(problem.log_density(u)) for u in points])
    apart = np.array([float(log_density({"u": u})) for u in points]) - values
    if np.ptp(apart) > 1e-8 + 1e-9 * abs(values).max():  # a factorisation rounds
        raise RuntimeError(f"{problem.name}: PyTensor's density differs by {apart}")
    return compile_pymc_model(model, backend="numba")
