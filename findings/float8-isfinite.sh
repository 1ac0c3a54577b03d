#!/usr/bin/env bash
# torch 2.13.0
#
# torch.isfinite works on float8_e5m2 and is not implemented for float8_e4m3fn, although isnan
# works on both, and float8_e4m3fn, which has no infinity, needs nothing more.
#
# Seen on 2026-11-27 (Python 3.11, CPU):
#   float8_e5m2: isnan yes, isfinite yes
#   float8_e4m3fn: isnan yes, isfinite NotImplementedError
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0

"$folder/venv/bin/python" - <<'PY'
import torch


def answer(test, values):
    try:
        test(values)
        return "yes"
    except NotImplementedError:
        return "NotImplementedError"


seen = {}
for dtype in (torch.float8_e5m2, torch.float8_e4m3fn):
    values = torch.tensor([1.0, 2.0]).to(dtype)
    name = str(dtype).removeprefix("torch.")
    seen[name] = answer(torch.isnan, values), answer(torch.isfinite, values)
    print(f"{name}: isnan {seen[name][0]}, isfinite {seen[name][1]}")
assert seen["float8_e5m2"] == ("yes", "yes")
assert seen["float8_e4m3fn"] == ("yes", "NotImplementedError")
PY
