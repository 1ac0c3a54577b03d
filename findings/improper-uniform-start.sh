#!/usr/bin/env bash
# torch 2.13.0, pyro-ppl 1.9.2
#
# ImproperUniform is there for HMC, but NUTS cannot start on it even when told where to start. The
# kernel first counts the plates by a plain run of the model, which draws from every law, and this
# law has no draws, so init_to_value does not help by itself. Nor does the count given as
# max_plate_nesting: the default strategy, init_to_uniform, draws from the law for the shape of
# the site. The model runs when both are given.
#
# Seen on 2026-11-27 (Python 3.11, CPU):
#   default: NotImplementedError
#   init_to_value: NotImplementedError
#   max_plate_nesting: NotImplementedError
#   both: 50 draws
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
from pyro.infer.autoguide.initialization import init_to_value


def model():
    m = pyro.sample("m", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("y", dist.Normal(m, 1.0), obs=torch.tensor(0.0))


def run(**options):
    pyro.set_rng_seed(0)
    kernel = NUTS(model, max_tree_depth=5, **options)
    mcmc = MCMC(kernel, num_samples=50, warmup_steps=50, disable_progbar=True)
    try:
        mcmc.run()
    except NotImplementedError:
        return "NotImplementedError"
    return f"{len(mcmc.get_samples()['m'])} draws"


start, nesting = {"init_strategy": init_to_value(values={"m": torch.tensor(0.0)})}, {"max_plate_nesting": 0}
seen = {
    "default": run(),
    "init_to_value": run(**start),
    "max_plate_nesting": run(**nesting),
    "both": run(**start, **nesting),
}
for options, outcome in seen.items():
    print(f"{options}: {outcome}")
assert list(seen.values()) == ["NotImplementedError"] * 3 + ["50 draws"]
PY
