"""Where a law lives: its density in unconstrained coordinates integrates to one, or is refused."""

import math
from typing import ClassVar

import pyro.distributions as pd
import pytest
import torch
import torch.distributions as td
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.distributions import constraints
from torch.distributions.transforms import (
    AbsTransform,
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    PowerTransform,
    SigmoidTransform,
    SoftplusTransform,
    TanhTransform,
)

from ozaki.scores.bijections import PositiveDefiniteTransform, WrapTransform, law_transform
from ozaki.scores.density import DistributionScore
from ozaki.scores.supports import NoBijection, ends_of, support_of

F64 = torch.float64
# where the laws below have less than 1e-6 of their mass outside, and the trapezoid's error is less
GRID = torch.linspace(-60, 60, 240_001, dtype=F64)


def t(*values):
    return torch.tensor(values if len(values) > 1 else values[0], dtype=F64)


def mass(law):
    """∫ p(T(u)) |T'(u)| du, by the trapezoid."""
    score = DistributionScore(law)
    values = score.log_prob(GRID.unsqueeze(-1).to(score.dtype)).exp().nan_to_num()
    return float(torch.trapezoid(values.to(F64), GRID))


numbers = st.floats(0.3, 3.0).map(lambda v: round(v, 2))
bases = st.one_of(
    st.builds(lambda a: td.Exponential(t(a)), numbers),
    st.builds(lambda a, b: td.Uniform(t(-a), t(b)), numbers, numbers),
    st.builds(lambda a, b: td.Normal(t(a), t(b)), numbers, numbers),
    st.builds(lambda a, b: td.Beta(t(1 + a), t(1 + b)), numbers, numbers),
    st.builds(lambda a, b: td.Gamma(t(1 + a), t(b)), numbers, numbers),
    st.builds(lambda a: td.HalfNormal(t(a)), numbers),
    st.builds(lambda a: td.Pareto(t(a), t(4.0)), numbers),
)
signed = st.builds(lambda a, s: a * s, numbers, st.sampled_from([-1, 1]))
parts = st.one_of(
    st.builds(lambda a, b: AffineTransform(t(a), t(b)), signed, signed),
    st.just(ExpTransform()),
    st.just(SigmoidTransform()),
    st.just(TanhTransform()),
    st.just(SoftplusTransform()),
    st.builds(lambda a: PowerTransform(t(a)), st.sampled_from([0.5, 2.0, -1.0])),
    st.just(ExpTransform().inv),
    st.builds(
        lambda a, b: ComposeTransform([AffineTransform(t(a), t(b)), ExpTransform()]), *[signed] * 2
    ),
)


def settled(x):
    """Whether the draws are such as the grid and the dtype resolve."""
    # what the grid of u and the dtype hold
    return bool(x.isfinite().all()) and float(x.abs().max()) < 1e6


@settings(max_examples=60, deadline=None)
@given(base=bases, transforms=st.lists(parts, min_size=1, max_size=3))
def test_a_transformed_law_lives_where_its_transforms_lead(base, transforms):
    """Torch's own `support` of such a law is the codomain of the last transform alone."""
    law = td.TransformedDistribution(base, transforms)
    torch.manual_seed(0)
    try:
        support = support_of(law)
    except NoBijection:
        # a transform that is not defined on all that it is given: torch's draws say so
        with pytest.raises(ValueError, match="a bijection leads to"):
            DistributionScore(law)
        return
    x = law.sample((2000,))
    assume(settled(x) and float(x.std()) > 1e-3)
    inside = support.check(x)
    ends = ends_of(support)
    # rounding of the transform at an end
    edge = (x - ends.lower).abs().minimum((x - ends.upper).abs()) < 1e-9 * (1 + x.abs())
    assert bool((inside | edge).all())
    u = law_transform(law).inv(x)
    assume(float(u.abs().max()) < 25 and float(u.std()) > 0.02)  # what the grid resolves
    # 2,000 draws leave at most 1% beyond, of laws with heavy tails; a support that is not the law's
    # leaves tenths, or a density that grows
    assert mass(law) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("law", "lower", "upper"),
    [
        (
            td.TransformedDistribution(td.Exponential(t(1.0)), [AffineTransform(5.0, 1.0)]),
            5,
            math.inf,
        ),
        (
            td.TransformedDistribution(td.Exponential(t(1.0)), [AffineTransform(5.0, -1.0)]),
            -math.inf,
            5,
        ),
        (td.TransformedDistribution(td.Uniform(t(0.0), t(1.0)), [AffineTransform(3.0, 2.0)]), 3, 5),
        (td.TransformedDistribution(td.Exponential(t(1.0)), [SigmoidTransform()]), 0.5, 1),
        (td.TransformedDistribution(td.Uniform(t(1.0), t(2.0)), [PowerTransform(t(-1.0))]), 0.5, 1),
        (
            td.TransformedDistribution(td.Normal(t(0.0), t(1.0)), [AffineTransform(5.0, 1.0)]),
            -math.inf,
            math.inf,
        ),
        (td.LogNormal(t(0.0), t(1.0)), 0, math.inf),
        (td.Gumbel(t(0.0), t(1.0)), -math.inf, math.inf),
        (pd.GeneralizedPareto(*torch.tensor([0.0, 1.0, 0.2])), 0, math.inf),
        (
            td.MixtureSameFamily(td.Categorical(t(0.5, 0.5)), td.Uniform(t(0.0, 0.0), t(1.0, 1.0))),
            0,
            1,
        ),
        (
            pd.TransformedDistribution(pd.Exponential(t(1.0, 1.0)), [AffineTransform(5.0, 1.0)])
            .to_event(1)
            .mask(True),
            5,
            math.inf,
        ),
    ],
)
def test_bounds(law, lower, upper):
    ends = ends_of(support_of(law))
    assert float(ends.lower.max()) == pytest.approx(lower) and float(
        ends.upper.min()
    ) == pytest.approx(upper)
    law_transform(law)
    if not law.event_shape:
        # of the quadrature, and of the tails beyond its grid
        assert mass(law) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (
            td.TransformedDistribution(td.Normal(0.0, 1.0), [AbsTransform()]),
            "several points to one.*Folded",
        ),
        (
            td.TransformedDistribution(td.Normal(0.0, 1.0), [PowerTransform(2.0)]),
            r"defined on \(0, ∞\)",
        ),
        (
            td.TransformedDistribution(td.Normal(0.0, 1.0), [ExpTransform().inv]),
            "inverse of ExpTransform",
        ),
        (pd.ProjectedNormal(torch.ones(3)), "ProjectedNormalReparam"),
    ],
)
def test_a_law_that_no_bijection_leads_to_is_refused_with_a_remedy(law, message):
    with pytest.raises(ValueError, match=message):
        DistributionScore(law)


class Wrong(td.Normal):
    """A law on the line that says that it is positive."""

    support = constraints.positive


class Narrow(td.Exponential):
    """A positive law that says that it is on the line, and checks what it is given."""

    support = constraints.real

    def log_prob(self, value):
        if self._validate_args and not bool((value >= 0).all()):
            raise ValueError("value must be positive")
        return super().log_prob(value)


@pytest.mark.parametrize(
    ("law", "message"),
    [(Wrong(0.0, 1.0), "draws values outside"), (Narrow(1.0), "has no density at -2")],
)
def test_a_support_that_is_not_the_laws_is_refused(law, message):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=message):
        DistributionScore(law.expand((20,)) if isinstance(law, Wrong) else law)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 1000))
def test_positive_definite_matrices(n, seed):
    """The Jacobian is that of the lower triangle, by autograd."""
    torch.manual_seed(seed)
    transform = PositiveDefiniteTransform()
    u = torch.randn(n * (n + 1) // 2, dtype=F64)
    x = transform(u)
    assert bool(constraints.positive_definite.check(x))
    # float64, a root and back; as are the others of this file
    assert torch.allclose(transform.inv(x), u, atol=1e-9)
    rows, columns = torch.tril_indices(n, n)
    jacobian = torch.autograd.functional.jacobian(lambda v: transform(v)[rows, columns], u)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    assert float(transform.log_abs_det_jacobian(u, x)) == pytest.approx(float(expected))


def test_angles():
    """A law of period 2π is walked on the line and drawn on the circle."""
    law = td.VonMises(t(3.0), t(1.0))
    transform = law_transform(law)
    assert isinstance(transform, WrapTransform)
    u = torch.linspace(-20, 20, 999, dtype=F64)
    x = transform(u)
    assert bool(((x >= -math.pi) & (x < math.pi)).all())
    # float64: what 20 loses when 2π is taken off
    assert torch.allclose(law.log_prob(x), law.log_prob(u), atol=1e-9)
    assert torch.allclose(x.sin(), u.sin(), atol=1e-9) and torch.allclose(transform.inv(x), x)
    for other in (td.Normal(t(0.0), t(1.0)), td.Normal(t(0.0), t(1e6)), td.Cauchy(t(0.0), t(1e-3))):
        assert not isinstance(law_transform(other), WrapTransform)


class Flow(td.Transform):
    """Of those that can undo only what they have just done."""

    domain = codomain = constraints.real
    bijective = True

    def _call(self, x):
        return x + torch.tanh(x)

    def _inverse(self, y):
        raise KeyError("not in the cache")

    def log_abs_det_jacobian(self, x, y):
        return torch.log1p(1 - torch.tanh(x).square())


class Nowhere(pd.TorchDistribution):
    """Does not say where it lives."""

    arg_constraints: ClassVar = {}

    def sample(self, sample_shape=()):
        return torch.randn(sample_shape)


class HalfSaid(Nowhere):
    """Draws on both sides, and says that it lives on one."""

    support = constraints.positive

    def log_prob(self, value):
        return -value.square() / 2


@pytest.mark.parametrize(
    ("law", "message"),
    [
        (td.TransformedDistribution(td.Normal(0.0, 1.0), [Flow()]), "cannot be inverted"),
        (Nowhere(), "does not say where it lives"),
        (HalfSaid(), "draws values outside"),
        (
            pd.GeneralizedPareto(torch.zeros(2), torch.ones(2), torch.tensor([-0.2, 0.2])),
            "some of its entries end",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_law_that_cannot_be_walked_on_is_refused_in_words(law, message):
    with pytest.raises(NoBijection, match=message):
        law_transform(law)
