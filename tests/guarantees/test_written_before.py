"""What version 0.1 wrote is read, and a training that it began goes on.

The files in tests/data/0.1 were written by that version; `expected.json` holds what it gave itself.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ozaki import (
    MCMC,
    DSMTrainer,
    ScoreEstimator,
    ScoreLangevinKernel,
    ScoreOzakiKernel,
    datasets,
    diagnostics,
)
from ozaki.scores import GaussianScore

DATA = Path(__file__).parents[1] / "data" / "0.1"
EXPECTED = json.loads((DATA / "expected.json").read_text())
SMALL = {"max_steps": 20, "batch_size": 16, "width": 8, "depth": 1, "seed": 1, "progress": False}
RUN = {"num_samples": 20, "warmup_steps": 40, "num_chains": 2, "seed": 3, "disable_progbar": True}
# float32, on a machine that may sum in another order; chains amplify what they begin with
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def rows() -> torch.Tensor:
    return torch.as_tensor(np.asarray(datasets.old_faithful()), dtype=torch.float32)


def law() -> GaussianScore:
    return GaussianScore([1.0, -1.0], [[1.0, 0.5], [0.5, 2.0]])


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A copy, which may be written to."""
    return Path(shutil.copytree(DATA, tmp_path / "before"))


@pytest.mark.parametrize(("name", "sigma"), [("estimator", None), ("estimator-low-rank", 0.5)])
def test_estimators_are_loaded(before, name, sigma):
    estimator = ScoreEstimator.load(before / name)
    score = estimator if sigma is None else estimator.at(sigma)
    found = score.expand(rows()[:3], score.default_curvature)
    assert_close(found.gradient, torch.tensor(EXPECTED[name]["gradient"]), **CLOSE)
    assert_close(found.curvature.dense(), torch.tensor(EXPECTED[name]["curvature"]), **CLOSE)


def test_a_training_that_was_stopped_goes_on(before):
    more = {"sigma": 0.3, "checkpoint_every": 10, **SMALL}
    estimator = DSMTrainer(checkpoint=before / "training", **more).fit(rows(), resume=True)
    found = estimator.expand(rows()[:3]).gradient
    assert_close(found, torch.tensor(EXPECTED["training"]["gradient"]), **CLOSE)
    with pytest.raises(ValueError, match="max_steps"):
        other = {**more, "max_steps": 21, "checkpoint": before / "training"}
        DSMTrainer(**other).fit(rows(), resume=True)


@pytest.mark.parametrize(
    ("name", "kernel"), [("run", ScoreOzakiKernel), ("run-langevin", ScoreLangevinKernel)]
)
def test_a_run_that_was_stopped_is_refused_and_left_as_it_is(before, name, kernel):
    """Its warm-up knew no trajectories; that version can still end it."""
    files = {path: path.read_bytes() for path in (before / name).iterdir()}
    mcmc = MCMC(kernel(law()), **RUN, checkpoint=before / name, checkpoint_every=7)
    with pytest.raises(ValueError, match=r"of version 0\.1.*end it with that version"):
        mcmc.run()
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.parametrize("name", ["draws.nc", "draws.zarr"])
def test_draws_are_read_and_judged(before, name):
    idata = diagnostics.load(before / name)
    # the digits that the expected values were written with
    assert np.allclose(np.asarray(idata["posterior"]["x"]), EXPECTED["draws"], rtol=1e-6)
    assert not diagnostics.verdict(idata).trusted  # twenty draws a chain
