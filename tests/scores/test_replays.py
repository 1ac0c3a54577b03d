"""Evaluations by recordings are those of the density, to the bit, whatever changes meanwhile."""

import copy
import pickle
import subprocess
import sys
import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from ozaki import MCMC, ScoreDistribution, ScoreOzakiKernel
from ozaki.scores import GaussianMixtureScore, LogDensityScore, replays
from ozaki.scores.density import DistributionScore
from ozaki.scores.pyro_models.model import PyroModelScore
from ozaki.scores.replays import AGAIN, CHECKS, FIRST, KEPT

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SD = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
X = torch.linspace(-2.0, 2.0, 8)
TRUSTED = FIRST + CHECKS + 3  # evaluations after which a recording is in use


def schools():
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * z, SD), obs=Y)


def groups():
    with pyro.plate("groups", 3):
        a = pyro.sample("a", dist.StudentT(4.0, 0.0, 1.0))
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    part = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    with pyro.plate("data", 8):
        pyro.sample("y", dist.Poisson((a[part] * share[part]).exp()), obs=Y.abs().round())


def process():
    size = pyro.sample("size", dist.LogNormal(0.0, 1.0))
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    near = torch.exp(-((X[:, None] - X) ** 2) / (2 * length**2))
    covariance = size**2 * near + 0.1 * torch.eye(8)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(8), covariance), obs=Y / 10)


def correlated():
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    law = dist.MultivariateNormal(torch.zeros(3), scale_tril=factor)
    pyro.sample("x", law)


def learned():
    means = torch.tensor([[-1.0, 0.0], [1.0, 1.0]])
    law = GaussianMixtureScore(means, torch.eye(2).expand(2, 2, 2), torch.ones(2) / 2)
    x = pyro.sample("x", ScoreDistribution(law))
    pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=torch.tensor([0.2, -0.4]))


def joined():
    mixing = dist.Categorical(torch.tensor([0.3, 0.7]))
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    law = dist.MixtureSameFamily(mixing, dist.Normal(x, torch.ones(2)))
    pyro.sample("y", law.expand([8]).to_event(1), obs=Y / 10)


MODELS = (schools, groups, process, correlated, learned, joined)


def points(score, seed: int, n: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, score.dim, generator=generator).to(score.dtype)


def assert_same(a, b):
    for one, other in zip(tensors(a), tensors(b), strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
        assert not one.requires_grad and not one.is_inference()


def tensors(found):
    parts = [found.gradient, found.log_density]
    return [*parts, *(found.curvature.tensors if found.curvature is not None else ())]


def used(score) -> int:
    """How many recordings are trusted."""
    return sum(s._checked >= CHECKS and s._replay is not None for s in shapes(score))


def shapes(score):
    return list(score._replays._shapes.values())


def warm(score, curvature=None, n: int = 4):
    for seed in range(TRUSTED):
        score.expand(points(score, seed, n), curvature)


@pytest.mark.parametrize("curvature", [None, "dense", "diagonal"])
@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_a_recording_gives_the_bits_of_the_model(model, curvature):
    plain = PyroModelScore(model)
    score = plain.settled()
    warm(score, curvature)
    assert used(score) == 1
    for seed in range(100, 105):
        x = points(score, seed)
        assert_same(score.expand(x, curvature), plain.expand(x, curvature))


@pytest.mark.parametrize(
    "plain",
    [
        LogDensityScore(lambda x: -0.5 * (x**2).sum() - (x[0] * x[1]).cosh().log(), (3,)),
        DistributionScore(dist.Gamma(torch.tensor([2.0, 3.0]), 1.0)),
    ],
    ids=["formula", "distribution"],
)
@pytest.mark.parametrize("curvature", [None, "dense", "diagonal"])
def test_a_recording_gives_the_bits_of_a_formula(plain, curvature):
    score = plain.settled()
    warm(score, curvature)
    assert used(score) == 1
    for seed in range(100, 105):
        x = points(score, seed)
        assert_same(score.expand(x, curvature), plain.expand(x, curvature))


@pytest.mark.parametrize("model", [schools, process, learned], ids=lambda m: m.__name__)
def test_a_run_makes_the_same_draws_with_recordings_and_without(model, monkeypatch):
    def draws():
        mcmc = MCMC(ScoreOzakiKernel(model), num_samples=60, warmup_steps=60, num_chains=3, seed=1)
        mcmc.run()
        return mcmc.get_samples()

    made, record = [], replays.record
    monkeypatch.setattr(replays, "record", lambda *a: made.append(1) or record(*a))
    found = draws()
    assert made
    monkeypatch.setattr(replays, "FIRST", 10**9)
    made.clear()
    for name, value in draws().items():
        assert torch.equal(value, found[name])
    assert not made


def test_what_changes_in_place_is_seen_at_once():
    net, data = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), torch.zeros(3)

    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(net(x), 1.0).expand([3]).to_event(1), obs=data)

    score = PyroModelScore(model).settled()
    warm(score)
    assert used(score) == 1
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    for seed in range(3):
        before = score.expand(points(score, 0)).gradient
        optimiser.zero_grad()
        net(torch.ones(1, 2)).sum().backward()
        optimiser.step()
        data.add_(1.0)
        x = points(score, seed)
        assert_same(score.expand(x), PyroModelScore(model).expand(x))
        assert not torch.equal(score.expand(points(score, 0)).gradient, before)
    net.load_state_dict({k: torch.zeros_like(v) for k, v in net.state_dict().items()})
    assert_same(score.expand(x), PyroModelScore(model).expand(x))
    assert used(score) == 1


class Scaled:
    """A model with a number, which may be replaced."""

    def __init__(self):
        self.scale = 1.0

    def __call__(self):
        pyro.sample("x", dist.Normal(torch.zeros(2), self.scale).to_event(1))


def test_a_number_that_is_replaced_during_a_run_is_an_error_before_long():
    model = Scaled()
    score = PyroModelScore(model).settled()
    warm(score)
    model.scale = 2.0
    with pytest.raises(ValueError, match="model must stay the same while chains walk on it"):
        for _ in range(AGAIN):
            score.expand(points(score, 0))
    # from there on it is the model as it is
    assert_same(score.expand(points(score, 1)), PyroModelScore(model).expand(points(score, 1)))


def test_a_number_that_is_replaced_between_runs_is_seen():
    model = Scaled()
    plain = PyroModelScore(model)
    kernel = ScoreOzakiKernel(plain)
    widths = []
    for model.scale in (1.0, 10.0):
        mcmc = MCMC(kernel, num_samples=300, warmup_steps=100, num_chains=4, seed=0)
        mcmc.run()
        widths.append(float(mcmc.get_samples()["x"].std()))
    # four chains of 300 draws: a standard deviation is known to a tenth by far
    assert widths[0] == pytest.approx(1.0, rel=0.2) and widths[1] == pytest.approx(10.0, rel=0.2)
    first = plain.settled()
    warm(first)
    model.scale = 3.0
    first.resettle()
    x = points(plain, 3)
    assert_same(first.expand(x), PyroModelScore(model).expand(x))
    assert_same(plain.settled().expand(x), PyroModelScore(model).expand(x))


def test_a_score_outside_of_runs_is_never_recorded():
    model = Scaled()
    score = PyroModelScore(model)
    formula = LogDensityScore(lambda x: -0.5 * (x / model.scale).square().sum(), (2,))
    for each in (score, formula):
        for seed in range(3 * FIRST):
            model.scale = 1.0 + seed
            x = points(each, seed)
            assert torch.allclose(each.expand(x).gradient, -x / model.scale**2)


def test_a_model_that_mends_a_matrix_is_as_it_was():
    """It tries a matrix, and another where that fails: its operations depend on values."""
    sound = torch.tensor([[3.0, 0.1], [2.0, 0.2]])

    def formula(x):
        matrix = torch.stack([torch.stack([x[0], x[1]]), torch.stack([x[1], x[0] + 1])])
        try:
            factor = torch.linalg.cholesky(matrix)
        except torch.linalg.LinAlgError:
            factor = torch.linalg.cholesky(matrix @ matrix.mT + torch.eye(2))
        return factor.diagonal().log().sum() - x.square().sum()

    plain = LogDensityScore(formula, (2,), start=sound)
    score = plain.settled()
    for k in range(TRUSTED):
        score.expand(sound + 0.01 * k)
    assert used(score) == 1
    for x in (-sound, sound, torch.stack([sound[0], -sound[1]])):
        assert_same(score.expand(x), plain.expand(x))


def test_a_matrix_that_fails_in_one_chain_is_that_chains_alone():
    def formula(x):
        return -0.5 * x.square().sum() + torch.linalg.cholesky(torch.diag(x + 1)).sum()

    plain = LogDensityScore(formula, (2,), start=lambda n, generator: torch.ones(n, 2))
    score = plain.settled()
    for k in range(TRUSTED):
        score.expand(torch.full((3, 2), 1.0 + 0.1 * k))
    assert used(score) == 1
    x = torch.tensor([[1.0, 1.0], [-2.0, 1.0], [0.5, 0.2]])
    assert_same(score.expand(x), plain.expand(x))
    assert score.expand(x).log_density.isnan().tolist() == [False, True, False]


def test_modes_of_torch_change_nothing():
    plain = PyroModelScore(process)
    score = plain.settled()
    warm(score)
    x = points(score, 50)
    expected = plain.expand(x)
    with torch.inference_mode():
        inside = points(score, 50)
        assert_same(score.expand(inside), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(score.expand(x), expected)
    with torch.no_grad():
        assert_same(score.expand(x), expected)
    assert_same(score.expand(x.T.contiguous().T), expected)


def test_the_default_dtype_is_that_of_the_moment():
    plain = LogDensityScore(lambda x: -(x.double() * torch.tensor(1 / 3)).square().sum(), (2,))
    score = plain.settled()
    warm(score)
    x = points(score, 3)
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(score.expand(x), plain.expand(x))
    finally:
        torch.set_default_dtype(torch.float32)


def test_rare_shapes_are_not_recorded_and_few_are_kept(monkeypatch):
    made, record = [], replays.record
    monkeypatch.setattr(replays, "record", lambda *a: made.append(1) or record(*a))
    score = LogDensityScore(lambda x: -0.5 * x.square().sum(), (2,)).settled()
    for n in range(1, 4 * KEPT):
        for seed in range(FIRST - 1):
            score.expand(points(score, seed, n))
    assert not made and len(shapes(score)) == KEPT
    score.expand(points(score, 9, n))
    assert len(made) == 1


def test_a_copy_makes_its_own():
    score = LogDensityScore(torch.nn.LogSigmoid(), ()).settled()
    warm(score)
    assert used(score) == 1
    for other in (copy.deepcopy(score), pickle.loads(pickle.dumps(score))):
        assert not shapes(other)
        x = points(score, 0)
        assert_same(other.expand(x), score.expand(x))
    model = PyroModelScore(schools).settled()
    warm(model)
    again = pickle.loads(pickle.dumps(model))
    assert_same(again.expand(points(model, 0)), model.expand(points(model, 0)))


def test_threads_share_a_score():
    def formula(x):
        near = torch.exp(-((X[:, None] - X) ** 2) * x[0].exp()) + x[1].exp() * torch.eye(8)
        return dist.MultivariateNormal(torch.zeros(8), near).log_prob(Y / 10)

    plain = LogDensityScore(formula, (2,))  # Pyro's models take turns
    score = plain.settled()
    expected = [plain.expand(points(plain, seed)) for seed in range(5)]
    failed = []

    def work():
        try:
            for k in range(3 * TRUSTED):
                assert_same(score.expand(points(score, k % 5)), expected[k % 5])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and used(score) == 1


A_RUN = """
import sys, pyro, pyro.distributions as dist, ozaki, torch
def model():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=torch.ones(2))
kernel = ozaki.ScoreOzakiKernel(model, compile=COMPILE)
ozaki.MCMC(kernel, num_samples=40, warmup_steps=40, num_chains=2).run()
print([m for m in ("torch._dynamo", "torch._inductor", "torch.onnx") if m in sys.modules])
"""


@pytest.mark.thorough
def test_a_first_run_imports_no_compiler(tmp_path, monkeypatch):
    """Torch's compiler takes seconds to import, and runs that compile nothing have no use for it.

    Among them is a compiled run whose loops are on the disk.
    """
    monkeypatch.setenv("OZAKI_CACHE", str(tmp_path))
    told = []
    for compiled in ("False", "True", "True"):
        code = A_RUN.replace("COMPILE", compiled)
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        told.append(done.stdout.strip().splitlines()[-1])
    assert told[0] == told[2] == "[]"
