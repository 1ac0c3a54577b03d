"""The samplers that `posteriors` compares: ozaki's, Pyro's, NumPyro's, BlackJAX's and nutpie's.

Each is a function of a `Problem` and a `Size` that gives a function of a seed and starting points.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyro

from benchmarks.common import now
from benchmarks.problem import Problem, jax
from ozaki import MCMC, ScoreOzakiKernel
from ozaki.scores.pyro_models.model import PyroModelScore

if jax is not None:
    import blackjax
    import numpyro
    import optax
    from blackjax.adaptation.base import get_filter_adapt_info_fn
    from blackjax.mcmc import adjusted_mclmc_dynamic as mams

    LOW_RANK = blackjax.window_adaptation_low_rank
try:
    import nutpie

    from benchmarks import words
except ImportError:
    nutpie = None

FEW = 4  # draws beside a warm-up, from which `extend` goes on


class Size(NamedTuple):
    chains: int
    warmup: int = 500
    draws: int = 500


class Run(NamedTuple):
    """Unconstrained draws, (chains, draws, D), and what they cost, in seconds and gradients.

    `gradients` are those of sampling, over all chains; `setup` is for looking at the model.
    """

    draws: np.ndarray
    warmup: float
    sampling: float
    gradients: int
    setup: float = 0.0
    compile: float = 0.0
    proposal: str = ""


Runner = Callable[[int, np.ndarray], Run]


def ozaki(problem: Problem, size: Size, **options: Any) -> Runner:
    """A gradient a step and chain; curvature is not counted.

    The kernel is given the model as a score, as it would make it itself in each run, so that what
    is compiled outlives a run.
    """
    began = time.perf_counter()
    score = PyroModelScore(problem.model, problem.arguments)
    setup = time.perf_counter() - began
    kernel = ScoreOzakiKernel(score, **options)

    def once(seed: int, starts: np.ndarray, warmup: int = size.warmup) -> Run:
        mcmc = MCMC(
            kernel,
            num_samples=FEW,
            warmup_steps=warmup,
            initial_params={"x": starts},
            num_chains=size.chains,
            disable_progbar=True,
            seed=seed,
        )
        began = now()
        mcmc.run()
        ran = now()
        mcmc.extend(size.draws)
        sampling = now() - ran
        warm = max(ran - began - sampling * FEW / size.draws, 0.0)
        draws = mcmc.get_samples(group_by_chain=True)["x"][:, FEW:].cpu().numpy()
        proposal = mcmc.to_inference_data(log_likelihood=False).posterior.attrs["proposal"]
        return Run(draws, warm, sampling, size.chains * size.draws, setup, proposal=proposal)

    if "compile" not in options:
        once(0, problem.starts(size.chains, 0), 20)  # what Python does only once
        return once
    compiling: list[float] = []

    def run(seed: int, starts: np.ndarray) -> Run:
        # twice in every repeat: warm-up may choose a step that it never chose before
        times = [time.perf_counter()]
        for _ in range(2):
            found = once(seed, starts)
            times.append(time.perf_counter())
        first, second = np.diff(times).tolist()
        compiling.append(max(first - second, 0.0))
        return found._replace(compile=compiling[0])

    return run


def pyro_nuts(problem: Problem, size: Size) -> Runner:
    """One chain; every call of the potential is one gradient."""

    def run(seed: int, starts: np.ndarray) -> Run:
        calls, marks = [0], {}

        def potential(params):
            calls[0] += 1
            return problem.potential(params)

        def mark(kernel, params, stage, i):
            marks[stage] = time.perf_counter(), calls[0]

        pyro.set_rng_seed(seed)
        mcmc = pyro.infer.MCMC(
            pyro.infer.NUTS(potential_fn=potential),
            size.draws,
            size.warmup,
            initial_params=problem.split(starts[0]),
            hook_fn=mark,
            disable_progbar=True,
        )
        began = time.perf_counter()
        mcmc.run()
        (warm, before), (end, after) = marks["Warmup"], marks["Sample"]
        draws = problem.join(mcmc.get_samples(group_by_chain=True))
        return Run(draws, warm - began, end - warm, after - before)

    return run


def _compiled(warm: Any, draw: Any, problem: Problem, size: Size) -> Runner:
    """Compile (key, points) → state, and (key, state) → draws and leapfrog steps."""
    key = jax.random.key(0)
    began = time.perf_counter()
    lowered = jax.jit(warm).lower(key, problem.starts(size.chains, 0))
    warm, draw = lowered.compile(), jax.jit(draw).lower(key, lowered.out_info).compile()
    seconds = time.perf_counter() - began

    def run(seed: int, starts: np.ndarray) -> Run:
        keys = jax.random.split(jax.random.key(seed))
        began = time.perf_counter()
        state = jax.block_until_ready(warm(keys[0], starts))
        warmed = time.perf_counter()
        draws, steps = jax.block_until_ready(draw(keys[1], state))
        ended = time.perf_counter()
        return Run(np.asarray(draws), warmed - began, ended - warmed, int(steps), compile=seconds)

    return run


def numpyro_nuts(problem: Problem, size: Size, **options: Any) -> Runner:
    kernel = numpyro.infer.NUTS(potential_fn=lambda u: -problem.log_density(u), **options)
    chains = partial(
        numpyro.infer.MCMC,
        kernel,
        num_warmup=size.warmup,
        num_samples=size.draws,
        num_chains=size.chains,
        chain_method="vectorized",
        progress_bar=False,
    )

    def warm(key, starts):
        mcmc = chains()
        mcmc.warmup(key, init_params=starts)
        return mcmc.post_warmup_state

    def draw(key, state):
        mcmc = chains()
        mcmc.post_warmup_state = state
        mcmc.run(key, extra_fields=("num_steps",))
        return mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields()["num_steps"].sum()

    return _compiled(warm, draw, problem, size)


def _scan(step: Any, key: Any, state: Any, size: Size) -> tuple[Any, Any]:
    """BlackJAX's chains, whose step is (keys, state) → state and what happened, as a loop."""

    def body(state, key):
        state, info = step(jax.random.split(key, size.chains), state)
        return state, (state.position, info.num_integration_steps)

    _, (draws, steps) = jax.lax.scan(body, state, jax.random.split(key, size.draws))
    return draws.swapaxes(0, 1), steps.sum()


def blackjax_nuts(problem: Problem, size: Size, adaptation: Any = None) -> Runner:
    """Each chain adapts by itself, by `blackjax.window_adaptation` unless another is given."""
    density = problem.log_density

    def warm(key, starts):
        if adaptation is None:
            options = {"adaptation_info_fn": get_filter_adapt_info_fn()}
            windows = blackjax.window_adaptation(blackjax.nuts, density, **options)
        else:
            windows = adaptation(blackjax.nuts, density)
        keys = jax.random.split(key, size.chains)
        return jax.vmap(lambda k, u: windows.run(k, u, size.warmup)[0])(keys, starts)

    def draw(key, warmed):
        def step(key, state, parameters):
            return blackjax.nuts(density, **parameters).step(key, state)

        return _scan(lambda k, s: jax.vmap(step)(k, s, warmed.parameters), key, warmed.state, size)

    return _compiled(warm, draw, problem, size)


def blackjax_chees(problem: Problem, size: Size) -> Runner:
    """With the diagonal metric: without it far starts and unequal scales defeat it."""
    density, functions = problem.log_density, {}

    def warm(key, starts):
        adaptation = blackjax.chees_adaptation(
            density,
            size.chains,
            mass_matrix_estimation="diagonal",
            adaptation_info_fn=get_filter_adapt_info_fn(),
        )
        (state, parameters), _ = adaptation.run(
            key, starts, 0.1, optax.adam(0.02), size.warmup, max_sampling_steps=size.draws
        )
        functions.update({k: v for k, v in parameters.items() if callable(v)})
        return state, {k: v for k, v in parameters.items() if k not in functions}

    def draw(key, warmed):
        state, parameters = warmed
        step = blackjax.dynamic_hmc(density, **parameters, **functions).step
        return _scan(jax.vmap(step), key, state, size)

    return _compiled(warm, draw, problem, size)


def blackjax_mams(problem: Problem, size: Size, length: float = 2.0) -> Runner:
    """Adjusted MCLMC as BlackJAX's book has it; each chain adapts by itself.

    Warm-up is three parts: a step size, the variances, and a step size again; `length` is the mean
    number of steps of a trajectory, whose default is BlackJAX's.
    """
    density = problem.log_density
    kernel = mams.build_kernel(mams.make_random_trajectory_length_fn(True))

    def warm(key, starts):
        def one(key, start):
            first, key = jax.random.split(key)
            return blackjax.adjusted_mclmc_find_L_and_step_size(
                kernel,
                density,
                size.warmup,
                mams.init(start, density, first),
                key,
                target=0.9,
                frac_tune1=1 / 3,
                frac_tune2=1 / 3,
                target_num_integration_steps=length,
            )[:2]

        return jax.vmap(one)(jax.random.split(key, size.chains), starts)

    def draw(key, warmed):
        def step(key, state, found):
            options = {"inverse_mass_matrix": found.inverse_mass_matrix}
            options["integration_steps_params"] = (found.L / found.step_size,)
            return kernel(key, state, density, found.step_size, **options)

        return _scan(lambda k, s: jax.vmap(step)(k, s, warmed[1]), key, warmed[0], size)

    return _compiled(warm, draw, problem, size)


def nutpie_nuts(problem: Problem, size: Size, **options: Any) -> Runner:
    """One chain after another on one thread; its time is shared out by gradients."""
    began = time.perf_counter()
    model = words.compiled(problem)
    seconds = time.perf_counter() - began

    def run(seed: int, starts: np.ndarray) -> Run:
        each = iter(starts)
        began = time.perf_counter()
        found = nutpie.sample(
            replace(model, initial_point_func=lambda _: next(each)),
            draws=size.draws,
            tune=size.warmup,
            chains=size.chains,
            cores=1,
            seed=seed,
            progress_bar=False,
            **options,
        )
        whole = time.perf_counter() - began
        before = int(found["warmup_sample_stats"]["n_steps"].sum())
        after = int(found["sample_stats"]["n_steps"].sum())
        warm = whole * before / (before + after)
        draws = found["posterior"]["u"].values
        return Run(draws, warm, whole - warm, after, compile=seconds)

    return run


OURS: dict[str, Any] = {
    "ozaki": ozaki,
    "ozaki, compiled": partial(ozaki, compile=True),
    "ozaki, single steps, compiled": partial(ozaki, trajectory=0, compile=True),
}
PYRO = "Pyro NUTS"
SAMPLERS = OURS | {PYRO: pyro_nuts}
if jax is not None:
    SAMPLERS |= {
        "NumPyro NUTS": numpyro_nuts,
        "NumPyro NUTS, dense": partial(numpyro_nuts, dense_mass=True),
        "BlackJAX NUTS": blackjax_nuts,
        "BlackJAX NUTS, low rank": partial(blackjax_nuts, adaptation=LOW_RANK),
        "BlackJAX ChEES": blackjax_chees,
        "BlackJAX MAMS": blackjax_mams,
        "BlackJAX MAMS, 8 steps": partial(blackjax_mams, length=8.0),
    }
    if nutpie is not None:
        SAMPLERS |= {
            "nutpie": nutpie_nuts,
            "nutpie, low rank": partial(nutpie_nuts, low_rank_modified_mass_matrix=True),
        }
