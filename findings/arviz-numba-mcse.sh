#!/usr/bin/env bash
# arviz 0.23.4, numba 0.65.1, numpy 2.4.6
#
# Where numba is installed, arviz.mcse of one array gives an array of one entry for method="mean",
# and raises TypeError for method="sd": it makes a number of such an array, which NumPy 2.4 no
# longer does. With numba switched off both are numbers.
#
# Seen on 2026-11-28 (Python 3.11):
#   numba on: mean (1,), sd TypeError
#   numba off: mean (), sd ()
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet arviz==0.23.4 numba==0.65.1 numpy==2.4.6

"$folder/venv/bin/python" - <<'PY'
import arviz as az
import numpy as np

draws = np.random.default_rng(0).normal(size=(4, 100))


def answer(method):
    try:
        return str(np.shape(az.mcse(draws, method=method)))
    except TypeError:
        return "TypeError"


seen = {}
for name, switch in (("on", az.Numba.enable_numba), ("off", az.Numba.disable_numba)):
    switch()
    seen[name] = answer("mean"), answer("sd")
    print(f"numba {name}: mean {seen[name][0]}, sd {seen[name][1]}")
assert seen == {"on": ("(1,)", "TypeError"), "off": ("()", "()")}
PY
