"""Elementwise pieces of a transformer layer, computed in float32."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Activation = Literal["silu", "gelu_tanh"]


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square normalisation over the last axis; ``weight [size]``. Keeps the dtype of ``x``.

    A float32 weight multiplies before rounding (as in Gemma), any other one after it (as in Llama).
    """
    wide = x.astype(jnp.float32)
    normal = wide * lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    if weight.dtype == jnp.float32:
        return (normal * weight).astype(x.dtype)
    return normal.astype(x.dtype) * weight


def gate(gate_up: jax.Array, activation: Activation) -> jax.Array:
    """SwiGLU or GeGLU (Shazeer, 2020): ``[tokens, 2 * inner]``, gate first -> ``[tokens, inner]``."""
    left, up = jnp.split(gate_up.astype(jnp.float32), 2, axis=-1)
    opened = jax.nn.silu(left) if activation == "silu" else jax.nn.gelu(left, approximate=True)
    return (opened * up).astype(gate_up.dtype)


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """``cap * tanh(x / cap)``: values that approach the cap and never pass it (Gemma 2); None leaves them alone."""
    return x if cap is None else cap * jnp.tanh(x / cap)
