"""Draws of tokens by the CPU kernel; `asurge.ops.sampling` says what they are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def sample(
    logits: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    min_p: jax.Array,
    seed: jax.Array,
    position: jax.Array,
    *,
    vocab_size: int,
    live: jax.Array | None = None,
) -> jax.Array:
    """`asurge.ops.sampling.sample`: the same tokens from the same seeds, but where two are so close that the order of a sum decides.
    Rows that are not ``live`` draw 0."""
    rows = logits.shape[0]
    drawn: jax.Array = jax.ffi.ffi_call("asurge_sample", jax.ShapeDtypeStruct((rows,), jnp.int32))(
        logits,
        temperature.astype(jnp.float32),
        top_k.astype(jnp.int32),
        top_p.astype(jnp.float32),
        min_p.astype(jnp.float32),
        seed.astype(jnp.uint32),
        position.astype(jnp.int32),
        np.ones(rows, bool) if live is None else live,
        vocab_size=np.int32(vocab_size),
    )
    return drawn
