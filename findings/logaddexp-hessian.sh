#!/usr/bin/env bash
# torch 2.13.0
#
# The float32 Hessian of logaddexp is NaN once its arguments are more than about 88.7 apart (exp
# of the difference overflows); its value and gradient stay right, and logsumexp of the same two
# numbers has the right Hessian.
#
# Seen on 2026-11-27 (Python 3.11, CPU):
#   gradient of logaddexp at (0, 100): [0.0, 1.0]
#   Hessian of logaddexp at (0, 100): [[nan, nan], [-0.0, 0.0]]
#   Hessian of logsumexp at (0, 100): [[0.0, 0.0], [0.0, 0.0]]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0

"$folder/venv/bin/python" - <<'PY'
import torch
from torch.func import grad, hessian


def pair(x):
    return torch.logaddexp(x[0], x[1])


def stacked(x):
    return torch.logsumexp(x, 0)


x = torch.tensor([0.0, 100.0])
slope, first, second = grad(pair)(x), hessian(pair)(x), hessian(stacked)(x).round(decimals=6).abs()
print(f"gradient of logaddexp at (0, 100): {slope.round(decimals=6).tolist()}")
print(f"Hessian of logaddexp at (0, 100): {first.round(decimals=6).tolist()}")
print(f"Hessian of logsumexp at (0, 100): {second.tolist()}")
assert slope.isfinite().all()
assert first.isnan().any()
assert second.isfinite().all()
assert hessian(pair)(x.double()).isfinite().all() and hessian(pair)(torch.tensor([0.0, 80.0])).isfinite().all()
PY
