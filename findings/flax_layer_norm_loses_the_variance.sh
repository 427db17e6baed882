#!/usr/bin/env bash
# flax 0.12.8 (jax 0.10.2) on CPU.
# nnx.LayerNorm computes the variance as E[x*x] - E[x]*E[x] unless use_fast_variance=False. In float32 four numbers about 1000 that are 0.1 apart
# come out a hundred times too large, since the difference is lost to rounding and epsilon alone is left; nothing warns. Hidden states of language
# models have such offsets. Pass use_fast_variance=False where results are compared with torch's.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet flax==0.12.8 jax==0.10.2
cd "$work" && JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import jax.numpy as jnp
import numpy as np
from flax import nnx

x = np.array([[1000.0, 1000.1, 1000.2, 1000.3]], np.float32)
exact = x.astype(np.float64)
exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-6)
fast, slow = (np.asarray(nnx.LayerNorm(4, use_fast_variance=way, rngs=nnx.Rngs(0))(jnp.asarray(x))) for way in (True, False))
default = np.asarray(nnx.LayerNorm(4, rngs=nnx.Rngs(0))(jnp.asarray(x)))
print("flax", version("flax"))
for name, out in (("exact", exact), ("default", default), ("use_fast_variance=False", slow)):
    print(f"{name:24s} {np.round(out[0], 4).tolist()}")
sys.exit(not (np.array_equal(default, fast) and np.abs(default).max() > 10 * np.abs(exact).max() and np.abs(slow - exact).max() < 1e-2))
PYTHON
