#!/usr/bin/env bash
# jax 0.10.2 on CPU.
# A cast to float4_e2m1fn has no way to say "not a number": NaN becomes -0, infinity and all that is too large become 6, silently; a cast
# of the same values to float8_e4m3fn gives NaN for each. So a layer that went wrong before quantisation to FP4 looks sound after it.
# Check isfinite before quantising.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2
cd "$work" && JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np

values = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 1000.0])
print("jax", jax.__version__)
four, eight = (np.asarray(values.astype(dtype).astype(jnp.float32)) for dtype in (jnp.float4_e2m1fn, jnp.float8_e4m3fn))
print("values          ", values)
print("float4_e2m1fn   ", four)
print("float8_e4m3fn   ", eight)
sys.exit(not (four.tolist() == [0.0, 6.0, -6.0, 6.0] and np.signbit(four[0]) and np.isnan(eight).all()))
PYTHON
