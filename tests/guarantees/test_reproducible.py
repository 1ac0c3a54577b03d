"""Same seed, machine and number of threads: the same bits, in a process of its own each time."""

import os
import subprocess
import sys

import pytest

CODE = """
import hashlib
import sys
import numpy as np, torch, pyro, pyro.distributions as dist
import ozaki
from ozaki import MCMC, DSMTrainer, ScoreDistribution, ScoreLangevinKernel, ScoreOzakiKernel
from ozaki.scores import GaussianMixtureScore

torch.rand(int(sys.argv[1]))  # the global state is another in each process, and is not used

def digest(name, *tensors):
    parts = b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)
    print(name, hashlib.sha256(parts).hexdigest())

few = {"num_samples": 30, "warmup_steps": 60, "seed": 2, "disable_progbar": True}
rows = ozaki.datasets.old_faithful()
sizes = {"max_steps": 60, "batch_size": 64, "width": 16, "seed": 1}
one = DSMTrainer(sigma=0.3, **sizes).fit(rows)
several = DSMTrainer(sigma=(0.1, 1.0), curvature="low_rank", rank=1, signed=False,
                     objective="likelihood", **sizes).fit(rows)
digest("training", *one.network.state_dict().values(), *several.network.state_dict().values())

def draws(kernel, *args):
    mcmc = MCMC(kernel, **few)
    mcmc.run(*args)
    return list(mcmc.get_samples(group_by_chain=True).values())

def model(y):
    x = pyro.sample("x", ScoreDistribution(one))
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    pyro.sample("y", dist.Normal(x[..., 1], scale), obs=y)

mixture = GaussianMixtureScore(torch.tensor([[0.0, 0.0], [3.0, 1.0]]), torch.eye(2).repeat(2, 1, 1),
                               torch.tensor([0.4, 0.6]))
digest("learned", *draws(ScoreOzakiKernel(one)))
digest("mixed", *draws(ScoreOzakiKernel(model), torch.tensor(70.0)))
digest("formula", *draws(ScoreLangevinKernel(mixture)))
clean = torch.as_tensor(np.asarray(rows), dtype=one.dtype)[:5]
posterior = ozaki.denoise(several, clean, sigma=0.5)
digest("denoised", posterior.mean, posterior.sample(3, torch.Generator().manual_seed(4)))
"""


@pytest.mark.thorough
def test_two_processes_find_the_same_bits(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, skipped],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for skipped in ("0", "7")
    ]
    (one, errors), (other, _) = (run.communicate(timeout=240) for run in runs)
    assert runs[0].returncode == 0, errors[-2000:]
    assert [line.split()[0] for line in one.splitlines()] == [
        "training",
        "learned",
        "mixed",
        "formula",
        "denoised",
    ]
    assert one == other
