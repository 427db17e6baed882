"""The CPU kernel of `asurge.ops.sampling`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from asurge.ops.sampling import SamplingInputs


def sample(logits: jax.Array, inputs: SamplingInputs, *, vocab_size: int, live: jax.Array | None = None) -> jax.Array:
    """Sample as `asurge.ops.sampling.sample` does, the same tokens from the same seeds.

    They differ where two are so close that the order of a sum decides. Rows that are not ``live`` get token 0.
    """
    rows = logits.shape[0]
    sampled: jax.Array = jax.ffi.ffi_call("asurge_sample", jax.ShapeDtypeStruct((rows,), jnp.int32))(
        logits,
        inputs.temperature.astype(jnp.float32),
        inputs.top_k.astype(jnp.int32),
        inputs.top_p.astype(jnp.float32),
        inputs.min_p.astype(jnp.float32),
        inputs.seed.astype(jnp.uint32),
        inputs.position.astype(jnp.int32),
        np.ones(rows, bool) if live is None else live,
        vocab_size=np.int32(vocab_size),
    )
    return sampled
