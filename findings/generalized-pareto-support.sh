#!/usr/bin/env bash
# torch 2.13.0
#
# GeneralizedPareto gives its support as an interval that ends at infinity, where laws such as
# Pareto use a half-line. biject_to then scales a sigmoid by an infinite width, so that every real
# number is sent to infinity.
#
# Seen on 2026-11-27 (Python 3.11, CPU):
#   support: Interval(lower_bound=1.0, upper_bound=inf)
#   biject_to(support)([-1, 0, 1]): [inf, inf, inf]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0

"$folder/venv/bin/python" - <<'PY'
import torch
from torch.distributions import GeneralizedPareto, biject_to

law = GeneralizedPareto(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(0.3))
mapped = biject_to(law.support)(torch.tensor([-1.0, 0.0, 1.0])).tolist()
print(f"support: {law.support}")
print(f"biject_to(support)([-1, 0, 1]): {mapped}")
assert str(law.support) == "Interval(lower_bound=1.0, upper_bound=inf)"
assert mapped == [float("inf")] * 3
PY
