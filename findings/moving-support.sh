#!/usr/bin/env bash
# torch 2.13.0, pyro-ppl 1.9.2
#
# Pyro's NUTS takes the support of a site from one run of the model. Where the bounds of a site
# are set by another latent site, the map to the real line keeps the bounds of that first run.
# Here s is pinned near 10 by data and x is uniform on (-s, s), so x | data is close to Normal(5,
# 3) cut to (-10, 10), of mean 4.69. The draws of x stay within the bounds of the first s, with no
# word about it.
#
# Seen on 2026-11-27 (Python 3.11, CPU):
#   s: 10.00, largest |x|: 1.69, mean of x: 0.24, exact mean of x: 4.69
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


def model():
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    x = pyro.sample("x", dist.Uniform(-s, s))
    pyro.sample("o", dist.Normal(s, 0.05), obs=torch.tensor(10.0))
    pyro.sample("y", dist.Normal(x, 3.0), obs=torch.tensor(5.0))


pyro.set_rng_seed(0)
mcmc = MCMC(NUTS(model, max_tree_depth=6), num_samples=200, warmup_steps=200, disable_progbar=True)
mcmc.run()
draws = mcmc.get_samples()
s, x = draws["s"].mean().item(), draws["x"]

grid = torch.linspace(-10, 10, 20001, dtype=torch.float64)
weight = torch.exp(-0.5 * ((grid - 5) / 3) ** 2)
exact = ((weight * grid).sum() / weight.sum()).item()
print(f"s: {s:.2f}, largest |x|: {x.abs().max().item():.2f}, mean of x: {x.mean().item():.2f}, exact mean of x: {exact:.2f}")
assert abs(s - 10) < 0.1 and abs(exact - 4.687) < 0.01
assert x.abs().max() < 5
assert x.mean() < 3
PY
