#!/usr/bin/env bash
# safetensors 0.8.0, numpy 2.4.6, ml_dtypes 0.6.0.
# safetensors.numpy saves an array of ml_dtypes.float8_e4m3fn and cannot load the file again: AttributeError, numpy has no float8_e4m3fn, for
# the whole file, with ml_dtypes imported too. bfloat16 of the same package goes both ways. Store the bytes as
# uint8 and their dtype in the metadata, or read such a file by its header: the offsets in it are enough.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6 ml_dtypes==0.6.0
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

print("safetensors", version("safetensors"), "numpy", np.__version__, "ml_dtypes", ml_dtypes.__version__)
seen = {}
for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
    values = np.array([1.0, -2.0], dtype)
    save_file({"x": values}, "x.safetensors")
    try:
        seen[dtype.__name__] = bool(np.array_equal(load_file("x.safetensors")["x"].astype(np.float32), values.astype(np.float32)))
    except AttributeError as error:
        seen[dtype.__name__] = f"AttributeError: {error}"
    print(f"{dtype.__name__:16s} saved; loaded as it was: {seen[dtype.__name__]}")
float8 = [str(seen[name]).startswith("AttributeError") for name in ("float8_e4m3fn", "float8_e5m2")]
sys.exit(not (seen["bfloat16"] is True and all(float8)))
PYTHON
