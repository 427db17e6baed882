#!/usr/bin/env bash
# jax 0.10.2.
# jax.random.categorical adds Gumbel noise in the dtype of the logits. In bfloat16 the noise takes few values and has a largest one,
# so whatever lies more than about 9.3 below the best is never sampled, and among equally likely tokens those with low indices come
# too often, because noise that is equal goes to the first. Language models have their logits in bfloat16: widen to float32 first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2
cd "$work" && JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp

TOKENS, DRAWS = 4096, 4096
key = jax.random.key(0)
halves = {}
tails = {}
print("jax", jax.__version__)
for dtype in (jnp.bfloat16, jnp.float32):
    equal = jax.random.categorical(key, jnp.zeros((DRAWS, TOKENS), dtype), axis=-1)
    halves[dtype.__name__] = float((equal < TOKENS // 2).mean())
    # One token, and 4,095 that are 10 below it: together they have 16% of the probability.
    logits = jnp.full((DRAWS, TOKENS), -10.0, dtype).at[:, 0].set(0)
    tails[dtype.__name__] = float((jax.random.categorical(key, logits, axis=-1) > 0).mean())
    print(f"{dtype.__name__:9s} of equal tokens the first half has {halves[dtype.__name__]:.3f} (should be 0.500); "
          f"the tail has {tails[dtype.__name__]:.4f} (should be {4095 * 4.54e-5 / (1 + 4095 * 4.54e-5):.4f})")
right = abs(halves["float32"] - 0.5) < 0.03 and 0.12 < tails["float32"] < 0.2
surprising = halves["bfloat16"] > 0.6 and tails["bfloat16"] < 0.05
sys.exit(not (right and surprising))
PYTHON
