#!/usr/bin/env bash
# torch 2.13.0, pyro-ppl 1.9.2, arviz 0.23.4
#
# Pyro's LocScaleReparam leaves the site it replaces in the trace as an observed, masked Delta of
# a latent value. ArviZ takes every observed site for data: from_pyro puts the parameter theta
# into observed_data and log_likelihood, beside the true data y.
#
# Seen on 2026-11-27 (Python 3.11, CPU):
#   theta in the trace: observed True, MaskedDistribution
#   observed_data: ['theta', 'y']
#   log_likelihood: ['theta', 'y']
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet pyro-ppl==1.9.2
"$folder/venv/bin/pip" install --quiet arviz==0.23.4

"$folder/venv/bin/python" - <<'PY'
import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import LocScaleReparam

warnings.simplefilter("ignore")
import arviz as az


@pyro.poutine.reparam(config={"theta": LocScaleReparam(0.0)})
def model():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("J", 3):
        theta = pyro.sample("theta", dist.Normal(mu, 2.0))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=torch.tensor([1.0, 2.0, 3.0]))


pyro.set_rng_seed(0)
site = pyro.poutine.trace(model).get_trace().nodes["theta"]
mcmc = MCMC(NUTS(model, max_tree_depth=5), num_samples=50, warmup_steps=50, disable_progbar=True)
mcmc.run()
found = az.from_pyro(mcmc, log_likelihood=True)
observed, likelihood = sorted(found.observed_data.data_vars), sorted(found.log_likelihood.data_vars)
print(f"theta in the trace: observed {site['is_observed']}, {type(site['fn']).__name__}")
print(f"observed_data: {observed}")
print(f"log_likelihood: {likelihood}")
assert site["is_observed"]
assert observed == ["theta", "y"]
assert likelihood == ["theta", "y"]
PY
