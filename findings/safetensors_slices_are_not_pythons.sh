#!/usr/bin/env bash
# safetensors 0.8.0, numpy 2.4.6.
# A slice of get_slice() takes Python's notation and not its meaning: an end beyond the shape, which Python cuts to it, raises SafetensorError,
# and so the last shard of a dimension that does not divide evenly; a negative start raises OverflowError, though a negative index works; an end
# before the start raises SystemError where Python gives nothing. Compute the bounds with slice.indices(size) first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

rows = np.arange(12.0).reshape(3, 4)
save_file({"x": rows}, "x.safetensors")
cases = {"[-1]": -1, "[::2]": slice(None, None, 2), "[1:1]": slice(1, 1), "[2:4]": slice(2, 4), "[-2:]": slice(-2, None), "[2:1]": slice(2, 1)}
expected = {"[-1]": "as Python", "[::2]": "as Python", "[1:1]": "as Python", "[2:4]": "SafetensorError", "[-2:]": "OverflowError", "[2:1]": "SystemError"}
print("safetensors", version("safetensors"), "shape", rows.shape)
seen = {}
with safe_open("x.safetensors", "np") as file:
    part = file.get_slice("x")
    for name, index in cases.items():
        try:
            seen[name] = "as Python" if np.array_equal(part[index], rows[index]) else "other rows"
        except Exception as error:
            seen[name] = type(error).__name__
        print(f"{name:6s} {seen[name]:16s} (Python has shape {rows[index].shape})")
sys.exit(seen != expected)
PYTHON
