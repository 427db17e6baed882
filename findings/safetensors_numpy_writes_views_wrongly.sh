#!/usr/bin/env bash
# safetensors 0.8.0, numpy 2.4.6.
# safetensors.numpy.save_file writes an array that is not contiguous as its memory lies, under the shape of the view: a transposed matrix
# comes back with its numbers elsewhere, and of every second column others are read than were saved. Nothing is raised.
# Pass numpy.ascontiguousarray of every tensor, above all of transposed weights.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from safetensors.numpy import load_file, save_file

base = np.arange(6, dtype=np.float32).reshape(2, 3)
views = {"itself": base, "transposed": base.T, "every second column": base[:, ::2], "transposed, made contiguous": np.ascontiguousarray(base.T)}
print("safetensors", version("safetensors"), "numpy", np.__version__)
equal = {}
for name, view in views.items():
    save_file({"x": view}, "x.safetensors")
    loaded = load_file("x.safetensors")["x"]
    equal[name] = bool(np.array_equal(loaded, view))
    print(f"{name:28s} saved {view.tolist()}, loaded {loaded.tolist()}")
sys.exit(list(equal.values()) != [True, False, False, True])
PYTHON
