#!/usr/bin/env bash
# jax 0.10.2, ml_dtypes 0.7.0, torch 2.13.0.
# A number beyond the range of float8_e4m3fn becomes its largest number, 448, when torch casts it (infinity too), and NaN when JAX or ml_dtypes do
# (from 465 on; what rounds to 448 is kept). A checkpoint that one of them quantised without clipping works in that one alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 ml_dtypes==0.7.0 torch==2.13.0
cd "$work" && JAX_PLATFORMS=cpu "$work/env/bin/python" -W ignore - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch

NUMBERS = [447.0, 460.0, 470.0, 1e4, float("inf")]
casts = {
    "jax": lambda x: float(jnp.float32(x).astype(jnp.float8_e4m3fn)),
    "ml_dtypes": lambda x: float(np.float32(x).astype(ml_dtypes.float8_e4m3fn)),
    "torch": lambda x: float(torch.tensor(x).to(torch.float8_e4m3fn)),
}
print("jax", jax.__version__, "ml_dtypes", ml_dtypes.__version__, "torch", torch.__version__)
seen = {}
for name, cast in casts.items():
    seen[name] = [cast(number) for number in NUMBERS]
    print(f"{name:10s}", dict(zip(NUMBERS, seen[name], strict=True)))
nan_from = {name: [np.isnan(value) for value in values] for name, values in seen.items()}
print("NaN:", nan_from)
same = nan_from["jax"] == nan_from["ml_dtypes"] == [False, False, True, True, True]
sys.exit(not (same and not any(nan_from["torch"][:4]) and seen["torch"][3] == 448.0))
PYTHON
