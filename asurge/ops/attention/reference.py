"""Dense attention: the reference for every backend, and the attention of a plain forward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from asurge.ops.attention.interface import Window
from asurge.ops.norm import soft_cap


def dense_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    window: Window | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """The reference: one sequence, everything at once, in float32.

    ``q [tokens, heads, head_dim]``, ``k, v [tokens, kv_heads, head_dim]`` -> shape and dtype of ``q``.
    """
    tokens, heads, _ = q.shape
    group = heads // k.shape[1]
    wide_k, wide_v = (jnp.repeat(x.astype(jnp.float32), group, axis=1) for x in (k, v))
    scores = soft_cap(jnp.einsum("qhd,khd->hqk", q.astype(jnp.float32), wide_k) * scale, softcap)
    position = jnp.arange(tokens, dtype=jnp.int32)
    begin = jnp.zeros_like(position) if window is None else window.begin(position)
    seen = (position[None, :] <= position[:, None]) & (position[None, :] >= begin[:, None])
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("hqk,khd->qhd", weights, wide_v).astype(q.dtype)
