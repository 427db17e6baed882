#!/usr/bin/env bash
# jax 0.10.2, ml_dtypes 0.6.0.
# The same bytes as int4 are half as many numbers for NumPy as for JAX: a view(ml_dtypes.int4) has one number a byte, the low nibble, and
# drops the high one; lax.bitcast_convert_type makes a new axis of two, low nibble first. nbytes of a JAX int4 array is one byte a number too,
# so it tells nothing about packing. Unpack with shifts, or bitcast in JAX.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 ml_dtypes==0.6.0
cd "$work" && JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

packed = np.array([0x21, 0x43], np.uint8)
viewed = packed.view(ml_dtypes.int4)
cast = jax.lax.bitcast_convert_type(jnp.asarray(packed), jnp.int4)
print("jax", jax.__version__, "ml_dtypes", ml_dtypes.__version__)
print("bytes 0x21 0x43; NumPy's view:", viewed.tolist(), " JAX's bitcast:", cast.tolist(), " nbytes of the latter:", cast.nbytes)
back = viewed.astype(np.int8).tolist()
sys.exit(not (back == [1, 3] and cast.astype(jnp.int8).tolist() == [[1, 2], [3, 4]] and cast.nbytes == 4))
PYTHON
