"""The Pyro face: what stock MCMC, StreamingMCMC and ozaki.MCMC ask of a kernel."""

import json
import pickle
import signal
import threading
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC as StockMCMC
from pyro.infer import NUTS, Predictive
from pyro.infer.mcmc import StreamingMCMC
from torch.testing import assert_close

from ozaki import MCMC, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.scores import DenoiserScore, GaussianScore, LogDensityScore
from tests.kernels.test_transition import ScoreOnly
from tests.kit.registry import KERNELS
from tests.kit.tolerances import rounding

GAUSS = GaussianScore([1.0, -1.0], [[1.0, 0.3], [0.3, 2.0]])
FEW = {"num_samples": 20, "warmup_steps": 20, "disable_progbar": True}


def model(y):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("j", 3):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    pyro.deterministic("double", 2 * mu)
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu.sum(), scale), obs=y)


Y = torch.tensor([1.0, 2.0, 0.5, 1.4])


@pytest.mark.parametrize("row", KERNELS, ids=repr)
@pytest.mark.parametrize("face", [StockMCMC, MCMC])
def test_each_kernel_runs_on_score_model_and_distribution(row, face):
    chains = 1 if face is StockMCMC else 3
    for source, args, shapes in (
        (GAUSS, (), {"x": (2,)}),
        (model, (Y,), {"scale": (), "mu": (3,)}),
        (dist.Gamma(2.0, torch.ones(2)), (), {"x": (2,)}),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mcmc = face(row.build(source), num_chains=chains, **FEW)
            mcmc.run(*args)
        draws = mcmc.get_samples(group_by_chain=True)
        for name, shape in shapes.items():
            assert draws[name].shape == (chains, 20, *shape)
            assert bool(torch.isfinite(draws[name]).all())
        if source is not GAUSS:  # brought back from unconstrained coordinates
            assert bool((draws["x" if "x" in draws else "scale"] > 0).all())
        assert set(mcmc.diagnostics()["divergences"]) == {f"chain {c}" for c in range(chains)}
        mcmc.summary()


def test_two_stock_chains_are_told_apart():
    kernel = ScoreOzakiKernel(GAUSS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "num_chains=2 is more than")
        mcmc = StockMCMC(kernel, num_chains=2, **FEW)
        mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    assert draws.shape == (2, 20, 2)
    assert not bool((draws[0, 0] == draws[1, 0]).any())


def test_a_kernel_survives_pickling_and_a_spawned_worker():
    kernel = pickle.loads(pickle.dumps(ScoreOzakiKernel(GAUSS, step_size=1.0)))
    kernel.setup(0)
    params = kernel.initial_params
    assert_close(kernel.sample(params)["x"].shape, torch.Size([2]))
    # a kernel in flight pickles too: the chain stays behind
    again = pickle.loads(pickle.dumps(kernel))
    again.setup(0)
    again.sample(again.initial_params)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "args"), [(GAUSS, ()), (model, (Y,))])
def test_stock_chains_in_spawned_workers(source, args, monkeypatch):
    # Pyro keeps one core free, so on two it would walk the chains in turn
    monkeypatch.setattr("pyro.infer.mcmc.api.mp.cpu_count", lambda: 4)
    mcmc = StockMCMC(ScoreOzakiKernel(source), num_chains=2, mp_context="spawn", **FEW)
    mcmc.run(*args)
    for draws in mcmc.get_samples(group_by_chain=True).values():
        assert draws.shape[:2] == (2, 20)
        assert not bool((draws[0, 0] == draws[1, 0]).any())


@pytest.mark.parametrize("face", [StockMCMC, MCMC])
def test_initial_params_are_where_the_chain_begins(face):
    chains = 1 if face is StockMCMC else 2
    start = torch.tensor([5.0, 7.0]) if chains == 1 else torch.tensor([[5.0, 7.0], [-5.0, 0.0]])
    seen = []
    mcmc = face(
        ScoreLangevinKernel(GAUSS, step_size=1e-12),
        num_samples=2,
        warmup_steps=0,
        num_chains=chains,
        initial_params={"x": start},
        hook_fn=lambda kernel, params, stage, i: seen.append((stage, i, params["x"].clone())),
        disable_progbar=True,
    )
    mcmc.run()
    assert [s[:2] for s in seen] == [("Sample", 0), ("Sample", 1)]
    # the step size is 1e-12: steps of 1e-6, a hundredth of this
    assert_close(seen[0][2], start, atol=1e-4, rtol=0)
    mcmc.run()  # and again from there, not from where the last run ended
    assert_close(seen[2][2], start, atol=1e-4, rtol=0)


@pytest.mark.parametrize("face", [StockMCMC, MCMC])
def test_a_hook_that_writes_in_place_moves_the_chain_and_no_draw(face):
    chains = 1 if face is StockMCMC else 2
    places = []

    def hook(kernel, params, stage, i):
        places.append(params["x"].clone())
        params["x"].add_(100.0)

    kernel = ScoreLangevinKernel(GAUSS, step_size=1e-12, metropolis="none")
    options = {"num_samples": 3, "warmup_steps": 0, "num_chains": chains, "disable_progbar": True}
    mcmc = face(kernel, hook_fn=hook, **options)
    mcmc.run()
    # steps of 1e-6, and float32's rounding of 200, 1e-5
    assert_close(places[2] - places[0], torch.full_like(places[0], 200.0), atol=1e-3, rtol=0)
    draws = mcmc.get_samples(group_by_chain=True)["x"]
    if face is MCMC:  # Pyro's own keeps what the hook has made of them
        assert_close(draws, torch.stack(places, 1), atol=1e-3, rtol=0)  # as above


def test_means_without_noise_are_in_the_units_of_the_draws():
    score = DenoiserScore(lambda x, sigma: x / (1 + sigma**2), 0.5, (1, 4, 5))
    tenths = torch.distributions.AffineTransform(-10.0, 0.1)  # u = x / 10 − 10
    kernel = ScoreLangevinKernel(score)
    mcmc = MCMC(kernel, 20, 20, transforms={"x": tenths}, seed=0, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples(group_by_chain=True)["x"]
    want = 10 * ((x / 10 - 10) / 1.25 + 10)
    assert_close(mcmc.denoised(group_by_chain=True)["x"], want)
    assert_close(torch.as_tensor(mcmc.result.cleaned(x.numpy())), want)


class Asking(GaussianScore):
    """A score whose own tensors ask for gradients, as a module's do."""

    def __init__(self):
        super().__init__(torch.zeros(2, requires_grad=True), torch.eye(2))


def bounded():
    return dist.Uniform(torch.zeros(2), torch.ones(2, requires_grad=True))


@pytest.mark.parametrize("kernel", [ScoreOzakiKernel, ScoreLangevinKernel])
@pytest.mark.parametrize("source", [Asking, bounded])
def test_tensors_that_ask_for_gradients_leave_no_graph(source, kernel, tmp_path):
    mcmc = MCMC(kernel(source()), 30, 30, num_chains=2, seed=0, disable_progbar=True)
    mcmc.run()
    assert not mcmc.get_samples()["x"].requires_grad
    assert not mcmc.result.draws.position.requires_grad
    assert mcmc.report(tmp_path / "report.html")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"x": torch.zeros(3)}, r"initial_params\['x'\] must have shape \(4, 2\)"),
        ({"z": torch.zeros(4, 2)}, r"lacked \['x'\] and had \['z'\]"),
        ({"x": torch.full((4, 2), float("nan"))}, "must be finite"),
        ([1.0], "initial_params must be a dict"),
    ],
)
def test_initial_params_that_do_not_fit_are_named(params, message, unchecked):
    mcmc = MCMC(ScoreOzakiKernel(GAUSS), initial_params=params, **FEW)
    with pytest.raises(ValueError, match=message):
        mcmc.run()


def test_stock_arguments_transforms_save_params_and_streaming():
    transform = dist.transforms.ExpTransform().inv
    stock = StockMCMC(ScoreOzakiKernel(GAUSS), transforms={"x": transform}, **FEW)
    stock.run()
    assert bool((stock.get_samples()["x"] > 0).all())
    own = MCMC(ScoreOzakiKernel(GAUSS), transforms={"x": transform}, **FEW)
    own.run()
    assert bool((own.get_samples()["x"] > 0).all())
    for face in (StockMCMC, MCMC):
        mcmc = face(ScoreOzakiKernel(model), num_chains=1, save_params=["mu"], **FEW)
        mcmc.run(Y)
        assert set(mcmc.get_samples()) == {"mu"}
    with pytest.raises(ValueError, match=r"save_params must name sites among .* named \['nu'\]"):
        MCMC(ScoreOzakiKernel(model), save_params=["nu"], **FEW).run(Y)
    streaming = StreamingMCMC(
        ScoreOzakiKernel(GAUSS), num_samples=50, warmup_steps=50, disable_progbar=True
    )
    streaming.run()
    (found,) = streaming.get_statistics().values()
    assert list(found["mean"].shape) == [2]


def test_logging_goes_through_json_at_every_step():
    kernel = ScoreOzakiKernel(GAUSS)
    MCMC(kernel, hook_fn=lambda k, *_: json.dumps(k.logging()), **FEW).run()


def test_what_pyro_reads_of_a_kernel():
    assert ScoreOzakiKernel(GAUSS).model is None
    assert ScoreOzakiKernel(model).model is model
    kernel = ScoreOzakiKernel(model)
    assert not hasattr(kernel, "save_params")
    kernel.setup(0, Y)
    kernel.cleanup()
    kernel.cleanup()
    assert set(kernel.transforms) == {"scale", "mu"}


def test_deterministic_sites_and_predictive():
    mcmc = MCMC(ScoreOzakiKernel(model), **FEW)
    mcmc.run(Y)
    draws = mcmc.get_samples(group_by_chain=True)
    assert_close(draws["double"], 2 * draws["mu"])
    latents = {name: draws[name].flatten(0, 1) for name in ("mu", "scale")}
    predicted = Predictive(model, latents, return_sites=["double"])(Y)
    assert_close(predicted["double"].reshape(80, 3), draws["double"].flatten(0, 1))


def test_the_same_seed_walks_the_same_chains():
    def run(seed, burn=0):
        torch.rand(burn)
        mcmc = MCMC(ScoreOzakiKernel(model), seed=seed, **FEW)
        mcmc.run(Y)
        return mcmc.get_samples()["mu"]

    first = run(3)
    state = torch.get_rng_state()
    assert_close(run(3, burn=0), first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)  # a seeded run leaves the global one alone
    assert not torch.equal(run(4), first)
    pyro.set_rng_seed(9)
    a = run(None)
    pyro.set_rng_seed(9)
    assert torch.equal(run(None), a)


def test_thinning_keeps_every_kth_draw():
    options = {"num_chains": 2, "warmup_steps": 10, "seed": 1, "disable_progbar": True}
    full = MCMC(ScoreOzakiKernel(GAUSS), num_samples=30, **options)
    thin = MCMC(ScoreOzakiKernel(GAUSS), num_samples=10, thinning=3, **options)
    full.run()
    thin.run()
    a, b = (m.get_samples(group_by_chain=True)["x"] for m in (full, thin))
    assert_close(b, a[:, 2::3], rtol=0, atol=0)


@pytest.fixture
def ctrl_c():
    """Python's own answer to the signal, which a process in the background may have to ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_keeps_the_draws_made_so_far():
    def interrupt(kernel, params, stage, i):
        if stage == "Sample" and i == 7:
            signal.raise_signal(signal.SIGINT)  # to this thread, at once

    assert threading.current_thread() is threading.main_thread()
    mcmc = MCMC(ScoreOzakiKernel(GAUSS), hook_fn=interrupt, **FEW)
    with pytest.warns(UserWarning, match=r"interrupted: 7 of 20 draws"):
        mcmc.run()
    assert mcmc.get_samples(group_by_chain=True)["x"].shape == (4, 7, 2)
    assert mcmc.to_inference_data().posterior.sizes["draw"] == 7

    def early(kernel, params, stage, i):
        signal.raise_signal(signal.SIGINT)  # to this thread, at once

    with pytest.raises(KeyboardInterrupt):
        MCMC(ScoreOzakiKernel(GAUSS), hook_fn=early, **FEW).run()


def test_a_chain_that_blows_up_is_reported_with_the_draw_it_began_at():
    steep = GaussianScore([0.0], [[1e-2]])
    start = {"x": torch.tensor([[0.0], [0.0]])}
    for face in (MCMC, StockMCMC):
        chains = 2 if face is MCMC else 1
        mcmc = face(
            ScoreLangevinKernel(steep, step_size=1.0, metropolis="none"),
            num_samples=300,
            warmup_steps=0,
            num_chains=chains,
            initial_params=start if chains == 2 else {"x": start["x"][0]},
            disable_progbar=True,
        )
        mcmc.run()
        draws = mcmc.get_samples(group_by_chain=True)["x"]
        assert bool(torch.isfinite(draws).all())
        for chain in range(chains):
            found = mcmc.diagnostics()["divergences"][f"chain {chain}"]
            first = int((draws[chain].abs() > 10).nonzero()[0, 0])
            # the log ratio falls below −1000 within a few steps of leaving
            assert abs(found[0] - first) <= 3
            assert len(found) > 250


def test_lp_is_the_models_density():
    mcmc = MCMC(ScoreOzakiKernel(GAUSS), **FEW)
    mcmc.run()
    stats = mcmc.to_inference_data().sample_stats
    want = GAUSS.expand(mcmc.get_samples(group_by_chain=True)["x"]).log_density
    assert_close(torch.from_numpy(stats["lp"].values).float(), want, **rounding(torch.float32))
    for name in ("diverging", "acceptance_rate", "step_size", "modified_curvature"):
        assert stats[name].shape == (4, 20)


def test_positive_curvature_is_counted():
    # ½N(±3, 1): curvature is positive between the modes
    two = LogDensityScore(
        lambda x: torch.logaddexp(-((x - 3) ** 2) / 2, -((x + 3) ** 2) / 2).sum(), (1,)
    )
    start = {"x": torch.zeros(8, 1)}
    mcmc = MCMC(
        ScoreOzakiKernel(two, step_size=0.01),
        num_samples=1,
        warmup_steps=0,
        num_chains=8,
        initial_params=start,
        disable_progbar=True,
    )
    mcmc.run()
    assert bool((mcmc.to_inference_data().sample_stats["modified_curvature"] == 1).all())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ScoreOzakiKernel(3), "model must be a score, a distribution or a Pyro model"),
        (lambda: ScoreOzakiKernel(GAUSS, step_size=0.0), "step_size must be a finite number above"),
        (lambda: ScoreOzakiKernel(GAUSS, step_size=float("nan")), "step_size must be a finite"),
        (lambda: ScoreOzakiKernel(GAUSS, curvature="full"), "curvature must be one of"),
        (lambda: ScoreOzakiKernel(GAUSS, metropolis="yes"), "metropolis must be one of"),
        (lambda: ScoreOzakiKernel(GAUSS, score=model), "score must be a Score"),
        (lambda: MCMC(NUTS(model)), "kernel must be one of ozaki's, but was NUTS"),
        (lambda: MCMC(ScoreOzakiKernel(GAUSS), num_samples=0), "num_samples must be a whole"),
        (lambda: MCMC(ScoreOzakiKernel(GAUSS), num_chains=-1), "num_chains must be a whole"),
        (lambda: MCMC(ScoreOzakiKernel(GAUSS), thinning=0), "thinning must be a whole"),
        (lambda: MCMC(ScoreOzakiKernel(GAUSS), warmup_steps=0).run(), "step_size must be given"),
        (lambda: MCMC(ScoreOzakiKernel(GAUSS)).run(Y), "without arguments for a GaussianScore"),
        (
            lambda: MCMC(ScoreOzakiKernel(GAUSS, curvature="low_rank")).run(),
            "curvature='low_rank' is not something GaussianScore can give",
        ),
        (
            lambda: MCMC(ScoreOzakiKernel(ScoreOnly(GAUSS), metropolis="exact")).run(),
            "metropolis='exact' needs a log density",
        ),
        (
            lambda: MCMC(ScoreOzakiKernel(ScoreOnly(GAUSS), score=GAUSS)).run(),
            "metropolis must be 'exact' where score= is given",
        ),
    ],
)
def test_bad_input_is_named(build, message, unchecked):
    with pytest.raises(ValueError, match=message):
        build()


def test_before_a_run_there_is_nothing_to_report():
    mcmc = MCMC(ScoreOzakiKernel(GAUSS))
    for call in (mcmc.to_inference_data, mcmc.summary, lambda: mcmc.report("x.html")):
        with pytest.raises(RuntimeError, match=r"call run\(\) first"):
            call()


def test_a_transform_that_would_change_the_law_is_refused():
    transform = dist.transforms.SoftplusTransform().inv
    for source, name in ((dist.HalfNormal(torch.ones(1)), "x"), (GAUSS, "z")):
        mcmc = MCMC(ScoreOzakiKernel(source), transforms={name: transform}, **FEW)
        with pytest.raises(ValueError, match="transforms must name sites of a bare score"):
            mcmc.run()


def test_a_callers_move_is_followed_however_small():
    tiny = GaussianScore(torch.zeros(1).double(), torch.full((1, 1), 1e-14).double())
    kernel = ScoreOzakiKernel(tiny, step_size=1e-22)
    kernel.setup(0)
    params = kernel.sample(kernel.initial_params)
    moved = kernel.sample({"x": params["x"] + 5e-7})
    # a step of size 1e-22 has noise of 1e-11, a fifty-thousandth of the move
    assert float(moved["x"] - params["x"]) == pytest.approx(5e-7, rel=1e-2)


@pytest.mark.parametrize(
    ("dim", "options", "kinds"),
    [
        (10, {}, {None}),
        (100, {}, {None}),
        (10, {"frozen": True}, {None}),
        (11, {"trajectory": 0}, {None}),  # beyond 10 dimensions it does not compete
        (11, {"frozen": False}, {"dense", None}),
        (11, {"curvature": "diagonal"}, {"diagonal"}),
        (11, {"metropolis": "none"}, {"dense", None}),
        (11, {"step_size": 0.1}, {"dense"}),
    ],
)
def test_a_dense_hessian_is_read_in_warmup_alone_where_nothing_asks_for_it(dim, options, kinds):
    read = []

    class Counted(GaussianScore):
        def expand(self, x, curvature=None):
            read.append(curvature)
            return super().expand(x, curvature)

    score = Counted(torch.zeros(dim), torch.eye(dim) + 0.5)
    few = {**FEW, "warmup_steps": 60}
    mcmc = MCMC(ScoreOzakiKernel(score, **options), num_chains=4, seed=0, **few)
    mcmc.run()
    assert set(read[-20:]) <= kinds  # of the draws
    assert bool(mcmc.get_samples()["x"].isfinite().all())
