#!/usr/bin/env bash
# jax 0.10.2 on CPU.
# In jax.nn.dot_product_attention a query that may see nothing gets the mean of all values, masked ones too: neither zeros nor NaN. With
# key_value_seq_lengths=0 that is the mean of the padding, whatever it holds. And is_causal counts from the first key: a decode step of one
# query over a cache of n keys sees key 0 alone, not all n. Zero such rows, and give a decode step lengths or a mask instead of is_causal.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2
cd "$work" && JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp

query = jnp.ones((1, 1, 1, 2))
key = jnp.arange(6.0).reshape(1, 3, 1, 2)
value = jnp.array([[1.0, 0.0], [2.0, 0.0], [9.0, 3.0]]).reshape(1, 3, 1, 2)
attend = jax.nn.dot_product_attention
seen = {
    "all masked": attend(query, key, value, mask=jnp.zeros((1, 1, 1, 3), bool)),
    "no keys by length": attend(query, key, value, key_value_seq_lengths=jnp.array([0])),
    "one query, is_causal": attend(query, key, value, is_causal=True),
}
print("jax", jax.__version__, "values", value[0, :, 0].tolist())
for name, out in seen.items():
    print(f"{name:22s} {out.ravel().tolist()}")
mean, first = value[0, :, 0].mean(0), value[0, 0, 0]
sys.exit(not all(jnp.allclose(out.ravel(), expected, atol=1e-6) for out, expected in zip(seen.values(), [mean, mean, first], strict=True)))
PYTHON
