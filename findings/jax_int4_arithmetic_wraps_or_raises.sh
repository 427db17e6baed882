#!/usr/bin/env bash
# jax 0.10.2 on CPU, ml_dtypes 0.6.0.
# int4 is stored and shown as other integers are, and behaves otherwise. A cast from floats saturates, one from integers wraps; a product of
# int4 arrays is int4 and wraps (7 * 7 * 4 is 4), and asking for int32 with preferred_element_type raises; sum() raises, mean() does not.
# Widen to int8 before any arithmetic.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 ml_dtypes==0.6.0
cd "$work" && JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp


def tried(run) -> object:
    try:
        return run().tolist()
    except Exception as error:
        return type(error).__name__


a, b = jnp.full((1, 4), 7, jnp.int4), jnp.full((4, 1), 7, jnp.int4)
numbers = [100, -100, 8]
seen = {
    "cast from float32": tried(lambda: jnp.array(numbers, jnp.float32).astype(jnp.int4).astype(jnp.int32)),
    "cast from int32": tried(lambda: jnp.array(numbers).astype(jnp.int4).astype(jnp.int32)),
    "dot": tried(lambda: jnp.dot(a, b).astype(jnp.int32)),
    "dot into int32": tried(lambda: jnp.dot(a, b, preferred_element_type=jnp.int32)),
    "dot of int8 into int32": tried(lambda: jnp.dot(a.astype(jnp.int8), b.astype(jnp.int8), preferred_element_type=jnp.int32)),
    "sum": tried(lambda: a.sum()),
    "mean": tried(lambda: a.mean()),
}
print("jax", jax.__version__)
for name, value in seen.items():
    print(f"{name:24s} {value}")
expected = {"cast from float32": [7, -8, 7], "cast from int32": [4, -4, -8], "dot": [[4]], "dot into int32": "JaxRuntimeError",
            "dot of int8 into int32": [[196]], "sum": "ValueError", "mean": 7.0}
sys.exit(seen != expected)
PYTHON
