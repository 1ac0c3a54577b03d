#!/usr/bin/env bash
# torch 2.13.0, pyro-ppl 1.9.2
#
# TransformedDistribution.support is the codomain of the last transform and forgets the base law.
# An exponential law moved to start at 5 says that its support is the whole real line. With
# validation on, log_prob raises below 5; with it off, as in Pyro's MCMC by default, the density
# there is finite and grows. NUTS trusts the support and nearly all its draws lie where the law
# has no mass.
#
# Seen on 2026-11-27 (Python 3.11, CPU):
#   support: Real()
#   log_prob(4.0), validation off: 1.0
#   share of draws below 5: 1.00
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


def late():
    return dist.TransformedDistribution(dist.Exponential(1.0), [dist.transforms.AffineTransform(5.0, 1.0)])


def model():
    x = pyro.sample("x", late())
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(4.0))


with pyro.validation_enabled(True):
    support = late().support
    try:
        late().log_prob(torch.tensor(4.0))
        raised = False
    except ValueError:
        raised = True
with pyro.validation_enabled(False):
    outside = late().log_prob(torch.tensor(4.0)).item()

pyro.set_rng_seed(0)
mcmc = MCMC(NUTS(model, max_tree_depth=5), num_samples=200, warmup_steps=100, disable_progbar=True)
mcmc.run()
below = (mcmc.get_samples()["x"] < 5).float().mean().item()

print(f"support: {support}")
print(f"log_prob(4.0), validation off: {outside}")
print(f"share of draws below 5: {below:.2f}")
assert str(support) == "Real()" and raised
assert outside == 1.0
assert below > 0.8
PY
