#!/usr/bin/env bash
# torch 2.13.0
#
# GeneralizedPareto.log_prob fails for float64 parameters and a float64 value, although the same
# law draws samples in float64, and in float32 log_prob works.
#
# Seen on 2026-11-27 (Python 3.11, CPU):
#   float32: -1.2988
#   float64: RuntimeError: Double did not match Float
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0

"$folder/venv/bin/python" - <<'PY'
import torch
from torch.distributions import GeneralizedPareto


def log_prob(dtype):
    law = GeneralizedPareto(*(torch.tensor(v, dtype=dtype) for v in (1.0, 2.0, 0.3)))
    assert law.sample().dtype == dtype
    try:
        return f"{law.log_prob(torch.tensor(2.0, dtype=dtype)).item():.4f}"
    except RuntimeError as error:
        return f"RuntimeError: {error}"


single, double = log_prob(torch.float32), log_prob(torch.float64)
print(f"float32: {single}")
print(f"float64: {double}")
assert single == "-1.2988"
assert "Double did not match Float" in double
PY
