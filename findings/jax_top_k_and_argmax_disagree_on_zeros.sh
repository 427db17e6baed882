#!/usr/bin/env bash
# jax 0.10.2 on CPU.
# lax.top_k and jnp.argmax order floats differently. top_k has a total order: 0.0 above -0.0, NaN above everything, NaN with the sign bit
# below everything. argmax takes -0.0 and 0.0 for equal (the first wins), and the first NaN of either sign. So greedy decoding by
# top_k(x, 1) and by argmax choose different tokens where the best logits are zeros of both signs. Use one of them throughout, or make all zeros 0.0 first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2
cd "$work" && JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp

ROWS = {
    "zeros of both signs": [-1.0, -0.0, 0.0, -2.0],
    "the same, zeros made 0.0": [-1.0, -0.0, 0.0, -2.0],
    "NaN with its sign bit": [1.0, -jnp.nan, 3.0, 2.0],
    "NaN without": [1.0, jnp.nan, 3.0, 2.0],
}
print("jax", jax.__version__)
seen = {}
for name, row in ROWS.items():
    logits = jnp.array(row)
    if "made" in name:
        logits = jnp.where(logits == 0, 0.0, logits)
    seen[name] = (int(jax.lax.top_k(logits, 1)[1][0]), int(jnp.argmax(logits)))
    print(f"{name:26s} top_k chooses {seen[name][0]}, argmax {seen[name][1]}")
expected = dict(zip(ROWS, [(2, 1), (1, 1), (2, 1), (1, 1)], strict=True))
sys.exit(seen != expected)
PYTHON
