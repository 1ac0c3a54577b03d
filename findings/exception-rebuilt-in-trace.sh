#!/usr/bin/env bash
# torch 2.13.0, pyro-ppl 1.9.2
#
# When a model raises a ValueError or RuntimeError, Pyro's trace builds a new exception of the
# same class from one string, to add the shapes of the sites. A class that takes more than one
# argument cannot be built so: a JSONDecodeError, which is a ValueError, arrives as a TypeError
# about missing arguments, and "except ValueError" does not catch it.
#
# Seen on 2026-11-27 (Python 3.11, CPU):
#   outside a trace: JSONDecodeError
#   inside a trace: TypeError: JSONDecodeError.__init__() missing 2 required positional arguments: 'doc' and 'pos'
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet pyro-ppl==1.9.2

"$folder/venv/bin/python" - <<'PY'
import json

import pyro
import pyro.distributions as dist


def model():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    json.loads("not JSON")


try:
    model()
except ValueError as error:
    bare = type(error).__name__
try:
    pyro.poutine.trace(model).get_trace()
    traced = None
except Exception as error:
    traced = error
print(f"outside a trace: {bare}")
print(f"inside a trace: {type(traced).__name__}: {traced}")
assert bare == "JSONDecodeError"
assert type(traced) is TypeError
assert "missing 2 required positional arguments" in str(traced)
PY
