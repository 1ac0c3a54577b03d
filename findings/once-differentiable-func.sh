#!/usr/bin/env bash
# torch 2.13.0
#
# An autograd Function whose backward is marked once_differentiable, used under torch.func with
# generate_vmap_rule, has a second derivative of 0, without an error. torch.autograd refuses the
# same second derivative. Without the mark, torch.func gives the right one.
#
# Seen on 2026-11-27 (Python 3.11, CPU):
#   second derivative of x**3 at 2: torch.func 0.0, torch.autograd RuntimeError, unmarked 12.0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0

"$folder/venv/bin/python" - <<'PY'
import torch
from torch.autograd.function import once_differentiable
from torch.func import grad


def cube(mark):
    class Cube(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])

        @staticmethod
        @mark
        def backward(ctx, upstream):
            return upstream * 3 * ctx.saved_tensors[0] ** 2

    return Cube.apply


marked, unmarked = cube(once_differentiable), cube(lambda f: f)
x = torch.tensor(2.0)
transformed, right = grad(grad(marked))(x).item(), grad(grad(unmarked))(x).item()
y = x.clone().requires_grad_()
(slope,) = torch.autograd.grad(marked(y), y, create_graph=True)
try:
    classic = torch.autograd.grad(slope, y)[0].item()
except RuntimeError:
    classic = "RuntimeError"
print(f"second derivative of x**3 at 2: torch.func {transformed}, torch.autograd {classic}, unmarked {right}")
assert (transformed, classic, right) == (0.0, "RuntimeError", 12.0)
PY
