"""Random laws for property-based tests, all in float64."""

import torch
from hypothesis import strategies as st

from ozaki.linalg import Dense, Diagonal, LowRank
from ozaki.scores.analytic import GaussianMixtureScore, GaussianScore, LogisticMixtureScore

seeds = st.integers(0, 2**31 - 1)
dims = st.integers(1, 6)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spd(g: torch.Generator, *shape: int, condition: float = 100.0) -> torch.Tensor:
    """Symmetric positive definite matrices (*shape, D, D); shape ends in D."""
    d = shape[-1]
    q, _ = torch.linalg.qr(torch.randn(*shape, d, generator=g, dtype=torch.float64))
    log = torch.rand(*shape, generator=g, dtype=torch.float64) - 0.5
    values = torch.exp(log * torch.log(torch.tensor(condition)))
    matrix = (q * values.unsqueeze(-2)) @ q.mT
    return (matrix + matrix.mT) / 2


@st.composite
def gaussians(draw):
    g, d = generator(draw(seeds)), draw(dims)
    mean = torch.randn(d, generator=g, dtype=torch.float64) * 3
    return GaussianScore(mean, spd(g, d))


@st.composite
def mixtures(draw):
    g, d, k = generator(draw(seeds)), draw(dims), draw(st.integers(1, 4))
    means = torch.randn(k, d, generator=g, dtype=torch.float64) * 2
    w = torch.rand(k, generator=g, dtype=torch.float64) + 0.2
    return GaussianMixtureScore(means, spd(g, k, d), w / w.sum())


@st.composite
def logistics(draw):
    g, d, k = generator(draw(seeds)), draw(dims), draw(st.integers(1, 4))
    locations = torch.randn(k, d, generator=g, dtype=torch.float64) * 2
    scales = torch.rand(k, d, generator=g, dtype=torch.float64) + 0.2
    w = torch.rand(k, generator=g, dtype=torch.float64) + 0.2
    return LogisticMixtureScore(locations, scales, w / w.sum())


@st.composite
def operators(draw, batch=(3,), constant=False):
    """A symmetric operator of any kind, with or without batch dimensions."""
    g, d = generator(draw(seeds)), draw(dims)
    shape = draw(st.sampled_from([(), batch]))

    def randn(*s):
        return torch.randn(*s, generator=g, dtype=torch.float64)

    kind = draw(st.sampled_from(["diagonal", "low_rank", "dense"]))
    if kind == "diagonal":
        return Diagonal(randn(*shape, d))
    if kind == "dense":
        m = randn(*shape, d, d)
        return Dense(m + m.mT)
    r = draw(st.integers(1, d))
    values = randn(*shape, 1).expand(*shape, d) if constant else randn(*shape, d)
    signs = torch.where(randn(*shape, r) < 0, -1.0, 1.0).to(torch.float64)
    return LowRank(values, randn(*shape, d, r), signs)
