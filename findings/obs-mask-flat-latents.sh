#!/usr/bin/env bash
# torch 2.13.0, pyro-ppl 1.9.2
#
# With obs_mask, Pyro makes a latent site y_unobserved that has an entry for every row, not for
# the missing rows alone. Where data are there, the entry is masked out of the density, so it is
# flat and improper: draws of NUTS walk far away in it, and every trajectory is as long as it may
# be. The entry of the missing row is sound.
#
# Seen on 2026-11-27 (Python 3.11, CPU):
#   entries of y_unobserved: 3, rows missing: 1
#   largest |draw|, rows with data: 997
#   largest |draw|, missing row: 4.0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet pyro-ppl==1.9.2

"$folder/venv/bin/python" - <<'PY'
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

data, there = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([True, True, False])


def model():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", 3):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=data, obs_mask=there)


pyro.set_rng_seed(0)
mcmc = MCMC(NUTS(model, max_tree_depth=4), num_samples=200, warmup_steps=100, disable_progbar=True)
mcmc.run()
draws = mcmc.get_samples()["y_unobserved"]
flat, sound = draws[:, there].abs().max().item(), draws[:, ~there].abs().max().item()
print(f"entries of y_unobserved: {draws.shape[1]}, rows missing: {(~there).sum().item()}")
print(f"largest |draw|, rows with data: {flat:.0f}")
print(f"largest |draw|, missing row: {sound:.1f}")
assert draws.shape == (200, 3)
assert flat > 100 and sound < 10
PY
