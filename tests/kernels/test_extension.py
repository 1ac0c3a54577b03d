"""A kernel of a user's own: its proposal, its target acceptance, and the steps that may beat it."""

import warnings

import pytest
import torch

from ozaki import MCMC, ScoreOzakiKernel
from ozaki.kernels import proposals
from ozaki.kernels.proposals import GaussianStep
from ozaki.kernels.score_kernel import ScoreKernel
from ozaki.kernels.target import RunContext
from ozaki.kernels.warmup import LANGEVIN, Candidate
from ozaki.linalg import Diagonal
from ozaki.scores import GaussianScore
from tests.kit.contracts import moments_match

GAUSS = GaussianScore(
    torch.tensor([3.0, -1.0, 0.0], dtype=torch.float64),
    torch.tensor([[1.0, 0.8, 0.0], [0.8, 4.0, 0.0], [0.0, 0.0, 0.01]], dtype=torch.float64),
)


def random_walk(x, expansion, step_size):
    return GaussianStep(x, Diagonal(step_size * torch.ones_like(x)))


def timid(x, expansion, step_size):
    return random_walk(x, expansion, step_size / 100)


def preconditioned(x, expansion, step_size):
    """Langevin's step in units of the local width."""
    width = 1 / expansion.curvature.diagonal().abs().clamp_min(1e-3)
    return GaussianStep(x + step_size / 2 * width * expansion.gradient, Diagonal(step_size * width))


class RandomWalkKernel(ScoreKernel):
    proposal = staticmethod(random_walk)
    target_acceptance = {"exact": 0.234, "line_integral": 0.234, "none": 0.9}  # noqa: RUF012

    def __init__(self, model, **options):
        super().__init__(model, curvature=None, **options)


class Timid(RandomWalkKernel):
    """Beside it stands a step that moves less."""

    candidates = (Candidate(timid),)


class Bold(RandomWalkKernel):
    """Beside it stand a step that moves less and one that moves further."""

    candidates = (Candidate(timid), LANGEVIN)


class Preconditioned(ScoreKernel):
    """Reads the curvature; beside it stands a step that does not move."""

    proposal = staticmethod(preconditioned)
    target_acceptance = {"exact": 0.574, "line_integral": 0.574, "none": 0.9}  # noqa: RUF012
    candidates = (Candidate(timid),)

    def __init__(self, model, **options):
        super().__init__(model, curvature="diagonal", **options)


def run(kernel, num_samples=2000, warmup_steps=300):
    mcmc = MCMC(
        kernel,
        num_samples=num_samples,
        warmup_steps=warmup_steps,
        num_chains=8,
        seed=0,
        disable_progbar=True,
    )
    mcmc.run()
    return mcmc


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("kernel", "walked"),
    [
        (RandomWalkKernel, random_walk),
        (Timid, random_walk),
        (Bold, proposals.langevin),
        (Preconditioned, preconditioned),
    ],
)
def test_the_candidate_that_moves_furthest_is_walked_and_has_the_right_moments(kernel, walked):
    mcmc = run(kernel(GAUSS))
    x = mcmc.get_samples(group_by_chain=True)["x"]
    moments_match(x, GAUSS.mean, GAUSS.covariance)
    proposal = mcmc.to_inference_data()["posterior"].attrs["proposal"]
    assert proposal.split(",")[0] == walked.__name__
    own = kernel.proposal.__name__
    beaten = "" if walked is kernel.proposal else f", which warm-up saw move further than {own}"
    assert proposal == walked.__name__ + beaten


@pytest.mark.parametrize(("trajectory", "sought"), [(0.0, LANGEVIN.target), ("auto", 0.8)])
def test_a_candidate_that_wins_brings_the_acceptance_that_it_seeks(trajectory, sought):
    kernel = Bold(GAUSS, trajectory=trajectory)
    kernel.begin(kernel.bind(), 300, RunContext(8, torch.Generator().manual_seed(0)))
    kernel.place(kernel.initial_params)
    warmup = kernel.engine.warmup
    assert warmup.tracks[warmup.chosen.track].target == 0.234
    while kernel.engine.warming_up:
        kernel.walk(300)
    assert warmup.tracks[warmup.chosen.track].target == sought
    assert kernel.engine.spec.proposal is proposals.langevin


def test_steps_of_ones_own_share_no_momentum():
    kernel = Bold(GAUSS)
    kernel.begin(kernel.bind(), 300, RunContext(8, torch.Generator().manual_seed(0)))
    kernel.place(kernel.initial_params)
    walked = [
        (t.spec.proposal, t.spec.momentum, t.times[-1] > 0) for t in kernel.engine.warmup.tracks
    ]
    assert walked[:2] == [(random_walk, False, False), (timid, False, False)]
    assert set(walked[2:]) == {(proposals.langevin, True, True)}
    # asked for trajectories, only what can share one is left
    kernel = Bold(GAUSS, trajectory=1.0)
    kernel.begin(kernel.bind(), 300, RunContext(8, torch.Generator().manual_seed(0)))
    kernel.place(kernel.initial_params)
    assert {t.spec.proposal for t in kernel.engine.warmup.tracks} == {proposals.langevin}
    for one in (Timid, RandomWalkKernel):
        with pytest.raises(ValueError, match="trajectory must be 'auto' or 0"):
            run(one(GAUSS, trajectory=1.0), 10, 30)


def test_a_user_may_say_which_candidates_the_settings_leave():
    class Choosy(Bold):
        def competing(self, frozen):
            return self.candidates[:1]

    mcmc = run(Choosy(GAUSS), num_samples=10)
    assert mcmc.to_inference_data()["posterior"].attrs["proposal"] == "random_walk"


def test_a_given_curvature_is_not_left():
    """Of what Ozaki's kernel declares, all compete by default alone."""
    law = GaussianScore(torch.zeros(2), torch.eye(2))
    assert ScoreOzakiKernel(law).competing(frozen=False) == ScoreOzakiKernel.candidates
    assert ScoreOzakiKernel(law).competing(frozen=True) == ScoreOzakiKernel.candidates
    assert ScoreOzakiKernel(law, curvature="diagonal").competing(frozen=False) == ()
    for frozen in (ScoreOzakiKernel(law, frozen=True), ScoreOzakiKernel(law, curvature="dense")):
        names = [c.proposal.__name__ for c in frozen.competing(frozen=True)]
        assert names == ["ornstein_uhlenbeck"]


def test_the_names_of_before_are_taken_for_one_version():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")

        class Old(ScoreKernel):
            _proposal = staticmethod(random_walk)
            _acceptance = RandomWalkKernel.target_acceptance

            def __init__(self, model, **options):
                super().__init__(model, curvature=None, **options)

        class Older(ScoreOzakiKernel):
            _proposal = staticmethod(preconditioned)

    names = (("Old", "_proposal", "proposal"), ("Old", "_acceptance", "target_acceptance"))
    assert [str(w.message) for w in told] == [
        f"{old} of {cls} is deprecated and will be removed in ozaki 0.3; use {new}"
        for cls, old, new in (*names, ("Older", "_proposal", "proposal"))
    ]
    assert all(w.category is DeprecationWarning for w in told)
    # what was written without candidates has none
    assert Older.candidates == () and Older.proposal is preconditioned
    draws = [run(kernel(GAUSS), 20, 100).get_samples()["x"] for kernel in (Old, RandomWalkKernel)]
    assert torch.equal(*draws)
