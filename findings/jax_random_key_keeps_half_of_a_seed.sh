#!/usr/bin/env bash
# jax 0.10.2 with its default of 32 bits.
# jax.random.key keeps the low 32 bits of a seed, silently: 5, 2**32 + 5 and -(2**32) + 5 are one key, and so are -1 and 2**32 - 1.
# fold_in, which takes the same kind of number, raises beyond 32 bits. A service that takes seeds of 64 bits gives equal samples to seeds that
# differ in their upper half. Fold both halves in.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2
cd "$work" && JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PYTHON'
import sys

import jax


def data(key) -> list:
    return jax.random.key_data(key).tolist()


print("jax", jax.__version__)
seeds = [5, 2**32 + 5, -(2**32) + 5, -1, 2**32 - 1]
keys = {seed: data(jax.random.key(seed)) for seed in seeds}
for seed, key in keys.items():
    print(f"key({seed}) holds {key}")
try:
    folded = data(jax.random.fold_in(jax.random.key(0), 2**32 + 5))
except OverflowError as error:
    folded = "raises"
    print("fold_in:", error)
halves = [data(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), seed & 0xFFFFFFFF), seed >> 32 & 0xFFFFFFFF)) for seed in seeds[:2]]
print("both halves folded in:", halves)
same = keys[5] == keys[2**32 + 5] == keys[-(2**32) + 5] and keys[-1] == keys[2**32 - 1]
sys.exit(not (same and folded == "raises" and halves[0] != halves[1]))
PYTHON
