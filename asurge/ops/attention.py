"""Attention over pages: the XLA form, used on CPU and as the reference everywhere.

Keys and values live in one array each per layer, ``[pages, kv_heads, page_size, head_dim]``: head-major pages read
2 to 4 times faster on CPU than token-major ones. 16-bit floats are stored as their bit patterns, because jax 0.10
converts a whole bf16 cache to float32 at each scatter (2 to 4.6 ms per 8 MB) and leaves integers alone.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

BLOCK_TOKENS = 256
"""Context tokens gathered at a time."""

_MASKED = -1e30


def storage_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """What pages of a model dtype are stored as."""
    return jnp.dtype(jnp.uint16) if jnp.dtype(dtype).itemsize == 2 else jnp.dtype(dtype)


def page_bytes(kv_heads: int, page_size: int, head_dim: int, dtype: jnp.dtype) -> int:
    """Bytes of one page of keys (or of values) in one layer."""
    return kv_heads * page_size * head_dim * storage_dtype(dtype).itemsize


def allocate_pages(num_pages: int, kv_heads: int, page_size: int, head_dim: int, dtype: jnp.dtype) -> jax.Array:
    """Zeroed pages of one layer's keys or values."""
    return jnp.zeros((num_pages, kv_heads, page_size, head_dim), storage_dtype(dtype))


def write_pages(pages: jax.Array, new: jax.Array, page_ids: jax.Array, offsets: jax.Array) -> jax.Array:
    """Put ``new [tokens, kv_heads, head_dim]`` at ``page_ids, offsets [tokens]``."""
    if pages.dtype != new.dtype:
        new = lax.bitcast_convert_type(new, pages.dtype)
    return pages.at[page_ids, :, offsets].set(new)


def paged_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    page_table: jax.Array,
    start: jax.Array,
    length: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    block_tokens: int = BLOCK_TOKENS,
) -> jax.Array:
    """Causal attention of rows of queries over each row's pages.

    Online softmax (Milakov and Gimelshein, 2018) over blocks of pages, in a loop as long as the longest row needs:
    one executable serves every context length.

    Args:
        q: ``[rows, queries, heads, head_dim]``; query i of row r is at position ``start[r] + i``, and only the
            first ``length[r]`` are real. Their keys and values are already written.
        keys, values: ``[pages, kv_heads, page_size, head_dim]``.
        page_table: int32 ``[rows, columns]``.
        start, length: int32 ``[rows]``.
        scale: on the scores.
        window: a query sees this many tokens back, itself included; None sees all.
        block_tokens: context tokens gathered at a time.

    Returns:
        ``[rows, queries, heads, head_dim]`` in q's dtype; zeros where a row has no query.
    """
    rows, queries, heads, head_dim = q.shape
    _, kv_heads, page_size, _ = keys.shape
    columns = page_table.shape[1]
    per_block = max(1, min(block_tokens // page_size, columns))
    blocks = math.ceil(columns / per_block)
    table = jnp.pad(page_table, ((0, 0), (0, blocks * per_block - columns)))
    grouped = q.reshape(rows, queries, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(rows, kv_heads, -1, head_dim)
    positions = start[:, None] + jnp.arange(queries, dtype=jnp.int32)[None, :]
    ends = jnp.where(length > 0, start + length, 0)

    def gather(pages: jax.Array, ids: jax.Array) -> jax.Array:
        block = pages[ids].transpose(0, 2, 1, 3, 4).reshape(rows, kv_heads, -1, head_dim)
        return block if block.dtype == q.dtype else lax.bitcast_convert_type(block, q.dtype)

    def attend(index: jax.Array | int, carry: _Carry) -> _Carry:
        best, total, mixed = carry
        ids = lax.dynamic_slice_in_dim(table, index * per_block, per_block, axis=1)
        at = index * per_block * page_size + jnp.arange(per_block * page_size, dtype=jnp.int32)
        seen = (at[None, None, :] <= positions[:, :, None]) & (at[None, None, :] < ends[:, None, None])
        if window is not None:
            seen &= at[None, None, :] > positions[:, :, None] - window
        seen = jnp.repeat(seen[:, None], heads // kv_heads, axis=1).reshape(rows, 1, -1, at.shape[0])
        scores = jnp.einsum("rhqd,rhkd->rhqk", grouped, gather(keys, ids), preferred_element_type=jnp.float32)
        scores = jnp.where(seen, scores * scale, _MASKED)
        new_best = jnp.maximum(best, scores.max(axis=-1, keepdims=True))
        shrink = jnp.exp(best - new_best)
        weights = jnp.where(seen, jnp.exp(scores - new_best), 0.0)
        # Pages hold leftovers of other sequences, even NaN: zero times NaN must not reach the sum.
        block = jnp.where((at[None, :] < ends[:, None])[:, None, :, None], gather(values, ids), 0)
        update = jnp.einsum("rhqk,rhkd->rhqd", weights.astype(q.dtype), block, preferred_element_type=jnp.float32)
        return new_best, total * shrink + weights.sum(axis=-1, keepdims=True), mixed * shrink + update

    shape = (rows, kv_heads, grouped.shape[2])
    carry: _Carry = (
        jnp.full((*shape, 1), _MASKED, jnp.float32),
        jnp.zeros((*shape, 1), jnp.float32),
        jnp.zeros((*shape, head_dim), jnp.float32),
    )
    if blocks == 1:
        carry = attend(0, carry)
    else:
        span = per_block * page_size
        first = jnp.int32(0)
        if window is not None:
            first = jnp.min(jnp.where(length > 0, jnp.maximum(start - window + 1, 0), columns * page_size)) // span
        carry = lax.fori_loop(first, (jnp.max(ends) + span - 1) // span, attend, carry)
    _, total, mixed = carry
    out = jnp.where(total > 0, mixed / jnp.where(total > 0, total, 1.0), 0.0)
    out = out.reshape(rows, kv_heads, -1, queries, head_dim).transpose(0, 3, 1, 2, 4)
    return out.reshape(q.shape).astype(q.dtype)


def dense_attention(q: jax.Array, k: jax.Array, v: jax.Array, *, scale: float, window: int | None = None) -> jax.Array:
    """The reference: one sequence, everything at once, in float32.

    ``q [tokens, heads, head_dim]``, ``k, v [tokens, kv_heads, head_dim]`` -> shape and dtype of ``q``.
    """
    tokens, heads, _ = q.shape
    group = heads // k.shape[1]
    wide_k, wide_v = (jnp.repeat(x.astype(jnp.float32), group, axis=1) for x in (k, v))
    scores = jnp.einsum("qhd,khd->hqk", q.astype(jnp.float32), wide_k) * scale
    back = jnp.arange(tokens)[:, None] - jnp.arange(tokens)[None, :]
    seen = (back >= 0) & (back < (tokens if window is None else window))
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("hqk,khd->qhd", weights, wide_v).astype(q.dtype)


_Carry = tuple[jax.Array, jax.Array, jax.Array]
