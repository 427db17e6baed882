#!/usr/bin/env bash
# jax 0.10.2, numpy 2.4.6.
# jnp.cumsum and jnp.sum disagree about small integers: sum of 300 uint8 ones is 300, the last element of cumsum is 44, since cumsum keeps the
# dtype (for bool it widens). NumPy widens in both. Positions computed as the cumsum of a mask are thus right for a bool mask and wrap at 256
# (128 for int8) for the same mask as bytes. Pass dtype=jnp.int32.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 numpy==2.4.6
cd "$work" && JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__, "numpy", np.__version__)
seen = {}
for dtype in ("bool", "uint8", "int8"):
    mask = np.ones(300, dtype)
    on_device = jnp.asarray(mask)
    seen[dtype] = tuple(int(x) for x in (jnp.sum(on_device), jnp.cumsum(on_device)[-1], np.sum(mask), np.cumsum(mask)[-1]))
    print(f"300 ones of {dtype:5s} jnp.sum {seen[dtype][0]}, jnp.cumsum {seen[dtype][1]}, np.sum {seen[dtype][2]}, np.cumsum {seen[dtype][3]}")
wide = int(jnp.cumsum(jnp.ones(300, jnp.uint8), dtype=jnp.int32)[-1])
print("jnp.cumsum with dtype=int32:", wide)
sys.exit(not (seen == {"bool": (300,) * 4, "uint8": (300, 44, 300, 300), "int8": (300, 44, 300, 300)} and wide == 300))
PYTHON
