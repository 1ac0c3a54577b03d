"""Pyro models as scores: batched against looped, and both against sums written by hand."""

import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from pyro.nn import PyroModule, PyroSample
from torch.distributions import biject_to

from ozaki.scores.batching import Batching
from ozaki.scores.differentiation import expand_looped
from ozaki.scores.pyro_models.layout import Sites, check_initial_params
from ozaki.scores.pyro_models.model import PyroModelScore, unconstrain
from tests.kit.tolerances import rounding

CLOSE = rounding(torch.float64)


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


EFFECTS, ERRORS = [28.0, 8, -3, 7, -1, 1, 18, 12], [15.0, 10, 16, 11, 9, 11, 10, 18]
PLANE = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = (PLANE[:, 0] > 0).double()
COUNTS = torch.tensor([0, 1, 1, 2, 2, 2])
OBS = t(0.5, -1.0, 2.0, 1.5)


def eight_schools():
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, t(*ERRORS)), obs=t(*EFFECTS))


def logistic_regression():
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 20):
        pyro.sample("y", dist.Bernoulli(logits=PLANE @ w + b), obs=LABELS)


def correlations():
    chol = pyro.sample("chol", dist.LKJCholesky(3, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(3)).to_event(1))
    with pyro.plate("data", 20):
        law = dist.MultivariateNormal(torch.zeros(3), scale_tril=scale.unsqueeze(-1) * chol)
        pyro.sample("y", law, obs=PLANE)


def dirichlet_categorical():
    p = pyro.sample("p", dist.Dirichlet(t(1, 2, 3)))
    with pyro.plate("data", 6):
        pyro.sample("k", dist.Categorical(p), obs=COUNTS)


def beta_bernoulli():
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", 20):
        pyro.sample("y", dist.Bernoulli(p), obs=LABELS)


def normal_gamma():
    precision = pyro.sample("precision", dist.Gamma(2.0, 3.0))
    mean = pyro.sample("mean", dist.Normal(1.0, (2 * precision).rsqrt()))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(mean, precision.rsqrt()), obs=OBS)


def mixture():
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(t(-1, 1), 2.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", 4):
        parts = dist.Normal(loc, scale)
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=OBS)


def handlers():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("penalty", -x.cosh())
    with poutine.scale(scale=3.0), poutine.mask(mask=torch.tensor([True, False, True, True])):
        pyro.sample("y", dist.Normal(x, 1.0).expand([4]), obs=OBS)


def nested_plates():
    top = pyro.sample("top", dist.Normal(0.0, 1.0))
    with pyro.plate("outer", 2, dim=-2):
        a = pyro.sample("a", dist.StudentT(4.0, top, 1.0))
        with pyro.plate("inner", 3, dim=-1):
            b = pyro.sample("b", dist.Gamma(2.0, a.exp()))
            pyro.sample("y", dist.Poisson(b), obs=torch.tensor([[1, 2, 0], [3, 0, 1.0]]))


def latent_mixture():
    law = dist.MixtureSameFamily(dist.Categorical(t(0.3, 0.7)), dist.Gamma(t(2, 9), 2.0))
    x = pyro.sample("x", law)
    pyro.sample("y", dist.Normal(x, 1.0), obs=t(2)[0])


class Network(PyroModule):
    def __init__(self):
        super().__init__()
        self.layer = PyroModule[torch.nn.Linear](3, 1)
        self.layer.weight = PyroSample(dist.Normal(t(0)[0], 1.0).expand([1, 3]).to_event(2))
        self.layer.bias = PyroSample(dist.Normal(t(0)[0], 1.0).expand([1]).to_event(1))

    def forward(self):
        mean = self.layer(PLANE).squeeze(-1).tanh()
        with pyro.plate("data", 20):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=LABELS)


def points(score, n=3):
    return score.start(n, torch.Generator().manual_seed(7))


MODELS = {
    f.__name__: f
    for f in (
        eight_schools,
        logistic_regression,
        correlations,
        dirichlet_categorical,
        beta_bernoulli,
        normal_gamma,
        mixture,
        handlers,
        nested_plates,
        latent_mixture,
    )
} | {"network": Network()}


@pytest.mark.parametrize("name", list(MODELS))
def test_batched_equals_looped(name):
    batched = PyroModelScore(MODELS[name], vectorize=True)  # raises where it cannot
    looped = PyroModelScore(MODELS[name], vectorize=False)
    x = points(batched)
    for kind in ("dense", "diagonal"):
        a, b = batched.expand(x, kind), looped.expand(x, kind)
        torch.testing.assert_close(a.log_density, b.log_density, **CLOSE)
        torch.testing.assert_close(a.gradient, b.gradient, **CLOSE)
        torch.testing.assert_close(a.curvature.dense(), b.curvature.dense(), **CLOSE)
    assert a.gradient.dtype == batched.dtype == torch.float64
    assert not (a.gradient.requires_grad or a.log_density.requires_grad)
    grid = x.expand(2, 3, -1)
    assert batched.expand(grid).log_density.shape == looped.expand(grid).log_density.shape == (2, 3)
    assert batched.expand(x[0]).log_density.shape == ()


def hand_eight_schools(u):
    mu, tau = u["mu"], u["tau"].exp()
    value = dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfCauchy(5.0).log_prob(tau)
    value = value + dist.Normal(0.0, 1.0).log_prob(u["eta"]).sum()
    likelihood = dist.Normal(mu + tau * u["eta"], t(*ERRORS)).log_prob(t(*EFFECTS))
    return value + likelihood.sum() + u["tau"]


def hand_normal_gamma(u):
    precision = u["precision"].exp()
    value = dist.Gamma(2.0, 3.0).log_prob(precision) + u["precision"]
    value = value + dist.Normal(1.0, (2 * precision).rsqrt()).log_prob(u["mean"])
    return value + dist.Normal(u["mean"], precision.rsqrt()).log_prob(OBS).sum()


def hand_beta_bernoulli(u):
    p = u["p"].sigmoid()
    heads = LABELS.sum()
    value = dist.Beta(2.0, 3.0).log_prob(p) + p.log() + (1 - p).log()
    return value + heads * p.log() + (20 - heads) * (1 - p).log()


def hand_dirichlet_categorical(u):
    simplex = biject_to(dist.constraints.simplex)
    p = simplex(u["p"])
    value = dist.Dirichlet(t(1, 2, 3)).log_prob(p) + simplex.log_abs_det_jacobian(u["p"], p)
    return value + p.log()[COUNTS].sum()


def hand_handlers(u):
    residual = dist.Normal(u["x"], 1.0).log_prob(OBS)
    return dist.Normal(0.0, 1.0).log_prob(u["x"]) - u["x"].cosh() + 3 * residual[[0, 2, 3]].sum()


@pytest.mark.parametrize(
    "hand",
    [
        hand_eight_schools,
        hand_normal_gamma,
        hand_beta_bernoulli,
        hand_dirichlet_categorical,
        hand_handlers,
    ],
)
def test_the_log_density_is_the_sum_written_by_hand(hand):
    score = PyroModelScore(MODELS[hand.__name__.removeprefix("hand_")])
    x = points(score)

    def flat(p):
        return hand(score.unflatten(p))

    exact, mine = expand_looped(flat, x, "dense"), score.expand(x, "dense")
    torch.testing.assert_close(mine.log_density, exact.log_density, **CLOSE)
    torch.testing.assert_close(mine.gradient, exact.gradient, **CLOSE)
    torch.testing.assert_close(mine.curvature.dense(), exact.curvature.dense(), **CLOSE)


def test_conventions_are_those_of_initialize_model():
    score = PyroModelScore(correlations)
    _, potential, transforms, _ = initialize_model(correlations)
    params = score.unflatten(points(score)[0])
    assert score.transforms.keys() == transforms.keys()
    for name, u in params.items():
        torch.testing.assert_close(score.transforms[name].inv(u), transforms[name].inv(u))
    torch.testing.assert_close(score.expand(score.flatten(params)).log_density, -potential(params))


def test_arguments_reach_the_model_and_observed_values_are_kept():
    def model(y, *, scale):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", x * 0)
        pyro.sample("y", dist.Normal(x, scale), obs=y)

    score = PyroModelScore(model, (t(1.5)[0],), {"scale": 2.0})
    torch.testing.assert_close(score.expand(t(0.5)).gradient, t(-0.5 + 1 / 4))
    assert list(score.observed) == ["y"] and float(score.observed["y"]) == 1.5


# -- models that cannot be batched ------------------------------------------------------------


def enumerated():
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.deterministic("shift", z * loc)
        pyro.sample("y", dist.Normal(z * loc, 1.0), obs=OBS)
    pyro.deterministic("odds", p / (1 - p))


def hand_enumerated(u):
    p = u["p"].sigmoid()
    one = p.log() + dist.Normal(u["loc"], 1.0).log_prob(OBS)
    zero = (1 - p).log() + dist.Normal(0.0, 1.0).log_prob(OBS)
    value = dist.Normal(0.0, 2.0).log_prob(u["loc"]) + p.log() + (1 - p).log()
    return value + torch.logaddexp(one, zero).sum()


def branching():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    loc = x if x > 0 else 2 * x
    pyro.sample("y", dist.Normal(loc, 1.0), obs=t(1)[0])


def hand_branching(u):
    loc = torch.where(u["x"] > 0, u["x"], 2 * u["x"])
    normal = dist.Normal(0.0, 1.0)
    return normal.log_prob(u["x"]) + normal.log_prob(1 - loc)


def multinomial():
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    pyro.sample("n", dist.Multinomial(6, p), obs=t(1, 2, 3))


def hand_multinomial(u):
    simplex = biject_to(dist.constraints.simplex)
    p = simplex(u["p"])
    value = dist.Dirichlet(torch.ones(3)).log_prob(p)
    value = value + simplex.log_abs_det_jacobian(u["p"], p)
    return value + dist.Multinomial(6, p).log_prob(t(1, 2, 3))


def idle_randomness():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.deterministic("copy", x + 0 * torch.randn(()))


def hand_idle_randomness(u):
    return dist.Normal(0.0, 1.0).log_prob(u["x"])


@pytest.mark.parametrize(
    ("model", "hand", "cause"),
    [
        (enumerated, hand_enumerated, r"discrete sites \['z'\] are summed out"),
        (branching, hand_branching, "data-dependent control flow"),
        (multinomial, hand_multinomial, "under torch.func.vmap it raises"),
        (idle_randomness, hand_idle_randomness, "random"),
    ],
)
def test_what_cannot_be_batched_is_looped_with_one_warning(model, hand, cause):
    score = PyroModelScore(model)
    with pytest.warns(UserWarning, match=cause) as caught:
        x = points(score)
        mine = score.expand(x, "dense")
        diagonal = score.expand(x, "diagonal")
    assert len([w for w in caught if "vectorised" in str(w.message)]) == 1
    exact = expand_looped(lambda p: hand(score.unflatten(p)), x, "dense")
    torch.testing.assert_close(mine.log_density, exact.log_density, **CLOSE)
    torch.testing.assert_close(mine.gradient, exact.gradient, **CLOSE)
    torch.testing.assert_close(mine.curvature.dense(), exact.curvature.dense(), **CLOSE)
    torch.testing.assert_close(
        diagonal.curvature.diagonal(), exact.curvature.dense().diagonal(dim1=1, dim2=2), **CLOSE
    )
    with pytest.raises(ValueError, match="vectorize=True, but the model cannot be"):
        PyroModelScore(model, vectorize=True).expand(x)


def test_the_warning_of_summed_out_sites_names_what_is_batched():
    def summed_out():
        x = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Bernoulli(t(0.3)[0]))
            pyro.sample("y", dist.Normal(z * x, 1.0), obs=OBS)

    def by_mixture():
        x = pyro.sample("loc", dist.Normal(0.0, 2.0))
        parts = dist.Normal(torch.stack([0 * x, x]), 1.0)
        with pyro.plate("data", 4):
            mixture = dist.MixtureSameFamily(dist.Categorical(t(0.7, 0.3)), parts)
            pyro.sample("y", mixture, obs=OBS)

    score, batched = PyroModelScore(summed_out), PyroModelScore(by_mixture, vectorize=True)
    x = points(batched)
    with pytest.warns(UserWarning, match=r"slower; .*dist.MixtureSameFamily.* is batched"):
        found = score.expand(x)
    torch.testing.assert_close(found.log_density, batched.expand(x).log_density, **CLOSE)
    with pytest.warns(UserWarning, match=r"one by one, which is slower$"):
        PyroModelScore(branching).expand(t(0.5))


class _Wrong(torch.autograd.Function):
    """Doubles its argument, but not under vmap."""

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return 2 * g

    @staticmethod
    def vmap(info, in_dims, x):
        return 3 * x, in_dims[0]


def test_silently_wrong_batches_are_noticed():
    batching = Batching(lambda p: -(_Wrong.apply(p) ** 2).sum(), torch.ones(3, 2))
    x = torch.ones(4, 2)
    with pytest.warns(UserWarning, match="gives other values than point by point"):
        e = batching.expand(x, "dense")
    torch.testing.assert_close(e.log_density, torch.full((4,), -8.0))
    torch.testing.assert_close(e.curvature.diagonal(), torch.full((4, 2), -8.0))


def test_vectorize_false_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = PyroModelScore(branching, vectorize=False)
        score.expand(points(score), "dense")


# -- refusals ---------------------------------------------------------------------------------


def no_latents():
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=t(1)[0])


def only_discrete():
    pyro.sample("z", dist.Bernoulli(0.5))


def countable():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("n", dist.Poisson(3.0))


def subsampled():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4, subsample_size=2) as i:
        pyro.sample("y", dist.Normal(x, 1.0), obs=OBS[i])


def random_density():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x + torch.randn(()), 1.0), obs=t(1)[0])


def moving_support():
    x = pyro.sample("x", dist.Uniform(0.0, 1.0))
    pyro.sample("z", dist.Uniform(0.0, x))


def loose_plate():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(z, 1.0), obs=OBS)  # outside its plate


def no_bijection():
    pyro.sample("w", dist.ProjectedNormal(torch.ones(3)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (no_latents, "must have a continuous latent site.*had none"),
        (only_discrete, r"only the discrete \['z'\]"),
        (countable, "latent site 'n' must be continuous.*Poisson is discrete"),
        (subsampled, "plate 'data' must not be subsampled.*2 of 4"),
        (random_density, "function of its latent sites"),
        (no_bijection, "latent site 'w' must have a support that a bijection leads to"),
        (loose_plate, "site 'y' must have its batch dimensions in plates"),
        (moving_support, "latent site 'z' must have a fixed support"),
    ],
)
def test_models_without_a_density_to_walk_on_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        PyroModelScore(model)


def test_other_arguments_are_refused():
    score = PyroModelScore(normal_gamma)
    with pytest.raises(ValueError, match="curvature='low_rank'"):
        score.expand(torch.zeros(2), "low_rank")
    with pytest.raises(ValueError, match="x must have shape"):
        score.expand(torch.zeros(3))
    with pytest.raises(ValueError, match=r"named \['nu'\]"):
        PyroModelScore(normal_gamma, transforms={"nu": score.transforms["mean"]})
    with pytest.raises(ValueError, match="vectorize must be one of"):
        PyroModelScore(normal_gamma, vectorize="vmap")


def nowhere():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("f", (-1 - x**2).log())


def test_a_density_finite_nowhere_says_so():
    with pytest.raises(
        ValueError, match=r"cannot find valid initial params: after 100 tries.*Unit"
    ):
        PyroModelScore(nowhere).start(2)


# -- starting points --------------------------------------------------------------------------


def half_plane():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("f", x.log())


def test_starts_are_uniform_finite_and_follow_the_generator_alone():
    state = torch.get_rng_state()
    score = PyroModelScore(half_plane)
    one, two = (score.start(50, torch.Generator().manual_seed(1)) for _ in range(2))
    score.expand(one, "dense")
    assert torch.equal(one, two) and bool(((one > 0) & (one < 2)).all())
    assert torch.equal(state, torch.get_rng_state())


def test_initial_params_are_where_chains_begin():
    given = {"precision": t(0.5)[0], "mean": t(3.0)[0]}
    score = PyroModelScore(normal_gamma, initial_params=given)
    torch.testing.assert_close(score.start(2), t(3.0, 0.5).expand(2, 2))


def test_transforms_may_be_given():
    softplus = torch.distributions.transforms.SoftplusTransform().inv
    score = PyroModelScore(normal_gamma, transforms={"precision": softplus})
    x = points(score)
    u = score.unflatten(x)
    precision = torch.nn.functional.softplus(u["precision"])
    torch.testing.assert_close(score.constrain(x)["precision"], precision)
    v = score.flatten({"precision": precision.log(), "mean": u["mean"]})
    jacobian = u["precision"].sigmoid().log() - precision.log()
    expected = PyroModelScore(normal_gamma).expand(v).log_density + jacobian
    torch.testing.assert_close(score.expand(x).log_density, expected, **CLOSE)
    assert score.transforms["precision"] is softplus


# -- layout -----------------------------------------------------------------------------------


def test_flat_points_are_the_sites_in_sorted_order():
    score = PyroModelScore(correlations)
    assert score.names == ("chol", "scale") and score.dim == 6
    assert score.shapes == {"chol": (3,), "scale": (3,)}
    x = torch.arange(24.0).reshape(2, 2, 6)
    parts = score.unflatten(x)
    torch.testing.assert_close(parts["scale"], x[..., 3:])
    torch.testing.assert_close(score.flatten(parts), x)


def test_sites_of_any_shape_come_back():
    sites = Sites({"b": (2, 3), "a": (), "c": (1,)})
    assert sites.names == ("a", "b", "c") and sites.dim == 8
    for batch in ((), (4,), (4, 5)):
        x = torch.randn(*batch, 8)
        params = sites.unflatten(x)
        assert params["b"].shape == (*batch, 2, 3) and params["a"].shape == batch
        assert torch.equal(sites.flatten(params), x)
    with pytest.raises(ValueError, match=r"lacked \['a', 'c'\]"):
        sites.flatten({"b": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match=r"params\['b'\] must have shape \(4, 2, 3\)"):
        sites.flatten({"a": torch.zeros(4), "b": torch.zeros(4, 3, 2), "c": torch.zeros(4, 1)})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"a": torch.zeros(4)}, r"lacked \['b'\]"),
        ({"a": torch.zeros(4), "b": torch.zeros(4, 2), "z": OBS}, r"had \['z'\] besides"),
        ({"a": torch.zeros(4), "b": torch.zeros(2)}, r"\['b'\] must have shape \(4, 2\) \(4 chai"),
        ({"a": torch.zeros(4), "b": torch.full((4, 2), torch.nan)}, r"\['b'\] must be finite"),
        ({"a": torch.zeros(4).long(), "b": torch.zeros(4, 2)}, r"\['a'\] must be floating-point"),
    ],
)
def test_bad_initial_params_are_named(params, message):
    with pytest.raises(ValueError, match="initial_params.*" + message):
        check_initial_params(params, Sites({"a": (), "b": (2,)}), (4,))


def test_mixed_dtypes_are_promoted():
    def model():
        pyro.sample("a", dist.Normal(torch.zeros(2, dtype=torch.float32), 1.0).to_event(1))
        pyro.sample("b", dist.Normal(t(0)[0], 1.0))

    score = PyroModelScore(model)
    e = score.expand(points(score), "dense")
    assert score.dtype == e.gradient.dtype == e.log_density.dtype == torch.float64


# -- deterministic sites, unconstrain, pickling -----------------------------------------------


def test_deterministic_sites_are_given_at_any_batch():
    score = PyroModelScore(eight_schools)
    x = points(score, 6).reshape(2, 3, -1)
    values = score.constrain(x)
    theta = values["mu"].unsqueeze(-1) + values["tau"].unsqueeze(-1) * values["eta"]
    torch.testing.assert_close(score.deterministic(x)["theta"], theta)
    looped = PyroModelScore(eight_schools, vectorize=False)
    torch.testing.assert_close(looped.deterministic(x)["theta"], theta)
    assert PyroModelScore(beta_bernoulli).deterministic(x[..., :1]) == {}


def test_deterministic_sites_of_summed_out_ones_are_left_out():
    score = PyroModelScore(enumerated)
    x = torch.zeros(3, 2)
    with pytest.warns(UserWarning, match=r"\['shift'\] depend on the discrete sites \['z'\]"):
        found = score.deterministic(x)
    assert list(found) == ["odds"]
    torch.testing.assert_close(found["odds"], torch.ones(3))


def summaries_of_summed_out():
    """By shape alone they look like any others."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Bernoulli(1e-4))
        pyro.sample("y", dist.Normal(mu + z, 1.0), obs=OBS)
    pyro.deterministic("share", z.mean())
    pyro.deterministic("spread", (z - z.mean()).square().sum() + (z.mean() > 0.5))
    pyro.deterministic("edges", (z * (1 - z.roll(1, -1))).sum())  # 0 where all are equal
    pyro.deterministic("twice", 2 * mu)


def test_what_reduces_over_a_summed_out_site_is_left_out_too():
    score = PyroModelScore(summaries_of_summed_out)
    with pytest.warns(
        UserWarning, match=r"\['share', 'spread', 'edges'\] depend on the discrete sites"
    ):
        found = score.deterministic(torch.ones(3, 1))
    assert list(found) == ["twice"]
    torch.testing.assert_close(found["twice"], torch.full((3,), 2.0))


def discrete_without_a_plate():
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.5)))
    pyro.sample("y", dist.Normal(mu + 10 * z, 1.0), obs=torch.tensor([1.0, 9.0]))


def data_without_a_plate():
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(mu + 10 * z, 1.0), obs=torch.tensor([1.0, 9.0]))


@pytest.mark.parametrize(
    ("model", "site"), [(discrete_without_a_plate, "z"), (data_without_a_plate, "y")]
)
def test_dimensions_that_no_plate_claims_are_refused_beside_summed_out_sites(model, site):
    """As many as the discrete site has values, they would be taken for those."""
    with pytest.raises(
        ValueError, match=rf"site '{site}' must have its batch dimensions in plates"
    ):
        PyroModelScore(model)


def test_unconstrain_inverts_constrain():
    score = PyroModelScore(correlations)
    x = points(score, 6).reshape(2, 3, -1)
    torch.testing.assert_close(unconstrain(correlations, score.constrain(x)), x, **CLOSE)
    with pytest.raises(ValueError, match=r"differed in \['scale'\]"):
        unconstrain(correlations, {"chol": score.constrain(x)["chol"]})
    with pytest.raises(
        ValueError, match=r"samples\['p'\] must be finite and in the support.*1 of its 2"
    ):
        unconstrain(beta_bernoulli, {"p": t(0.5, 1.5)})


def test_a_pickled_score_is_made_anew():
    score = PyroModelScore(normal_gamma, initial_params={"precision": t(0)[0], "mean": t(1)[0]})
    x = points(score)
    twin = pickle.loads(pickle.dumps(score))
    assert torch.equal(twin.expand(x).gradient, score.expand(x).gradient)
    assert torch.equal(twin.start(1), score.start(1))


@pytest.mark.parametrize("name", list(MODELS))
def test_nothing_is_printed_or_warned_for_a_sound_model(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = torch.get_rng_state()
        score = PyroModelScore(MODELS[name])
        score.expand(points(score), "dense")
        score.deterministic(points(score))
    assert torch.equal(state, torch.get_rng_state())
