#!/usr/bin/env bash
# jax 0.10.2 on CPU.
# What donation does depends on who else looks. While a NumPy view of a donated array lives (np.asarray on CPU is one), the array is copied and
# not donated, without a word: an update "in place" of a cache costs a copy of it each time. The other way round, x[:], x.reshape of its own shape,
# jnp.asarray(x) and device_put(x) are no copies: donating x deletes them too. Drop views before a donating call; copy with x.copy().
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

step = jax.jit(lambda cache: cache + 1, donate_argnums=0)


def donated(hold) -> bool:
    """Whether a donated array is gone while what ``hold`` made of it is kept."""
    cache = jnp.zeros(1024).block_until_ready()
    held = hold(cache)
    step(cache).block_until_ready()
    del held
    return cache.is_deleted()


def goes_too(make) -> bool:
    cache = jnp.zeros(1024).block_until_ready()
    other = make(cache)
    step(cache).block_until_ready()
    return other.is_deleted()


print("jax", jax.__version__)
views = {"nothing": donated(lambda x: None), "np.asarray": donated(np.asarray), "np.array": donated(np.array)}
ways = {"x[:]": lambda x: x[:], "x.reshape": lambda x: x.reshape(1024), "jnp.asarray": jnp.asarray, "device_put": jax.device_put, "x.copy": lambda x: x.copy()}
gone = {name: goes_too(make) for name, make in ways.items()}
print("donated while this of it is held:", views)
print("deleted with the array that was donated:", gone)
as_seen = views == {"nothing": True, "np.asarray": False, "np.array": True}
sys.exit(not (as_seen and gone == {"x[:]": True, "x.reshape": True, "jnp.asarray": True, "device_put": True, "x.copy": False}))
PYTHON
