#!/usr/bin/env bash
# jax 0.10.2 on CPU.
# device_put of a NumPy array whose memory is aligned to 64 bytes shares that memory, with may_alias=False too: writing to the
# NumPy array afterwards changes a JAX array, which should be immutable. An array that is not aligned is copied, so the same program
# is right or wrong by luck of the allocator. jnp.asarray copies, with copy=False too. Hand over a copy, or never write again.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 numpy==2.4.0
cd "$work" && JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import numpy as np


def aligned(offset: int) -> np.ndarray:
    """1,024 floats at an address that is a multiple of 64, and ``offset`` bytes."""
    room = np.zeros(4096 + 128, np.uint8)
    begin = -room.ctypes.data % 64 + offset
    return room[begin : begin + 4096].view(np.float32)


def changes(make, offset: int) -> bool:
    source = aligned(offset)
    array = make(source).block_until_ready()
    source[:] = 7.0
    return bool(np.asarray(array)[0] == 7.0)


ways = {
    "device_put": jax.device_put,
    "device_put, may_alias=False": lambda x: jax.device_put(x, may_alias=False),
    "jnp.asarray": jnp.asarray,
    "jnp.asarray, copy=False": lambda x: jnp.asarray(x, copy=False),
}
print("jax", jax.__version__)
seen = {}
for name, make in ways.items():
    seen[name] = (changes(make, 0), changes(make, 4))
    print(f"{name:30s} changes with its source: aligned {seen[name][0]}, not aligned {seen[name][1]}")
expected = {"device_put": (True, False), "device_put, may_alias=False": (True, False),
            "jnp.asarray": (False, False), "jnp.asarray, copy=False": (False, False)}
sys.exit(seen != expected)
PYTHON
