"""Elementwise pieces of a transformer layer, computed in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square normalisation over the last axis; ``weight [size]``. Keeps the dtype of ``x``."""
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * weight


def silu_gate(gate_up: jax.Array) -> jax.Array:
    """SwiGLU: ``[tokens, 2 * inner]``, gate first -> ``[tokens, inner]``."""
    gate, up = jnp.split(gate_up.astype(jnp.float32), 2, axis=-1)
    return (jax.nn.silu(gate) * up).astype(gate_up.dtype)
