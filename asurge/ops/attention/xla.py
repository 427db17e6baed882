"""Attention over pages in plain XLA: runs everywhere, and is the fallback of a backend without a kernel.

Keys and values live in one array each per layer, ``[pages, kv_heads, page_size, head_dim]``: head-major pages read
2 to 4 times faster on CPU than token-major ones. 16-bit floats are stored as their bit patterns, because jax 0.10
converts a whole bf16 cache to float32 at each scatter (2 to 4.6 ms per 8 MB) and leaves integers alone. In 8 bits, two
more arrays ``[pages, kv_heads, page_size]`` hold the scales of keys and of values, float32.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from asurge.ops.attention.interface import AttentionShape, Heads, LevelPages, Rows, SeparateLevels, Window
from asurge.ops.linear import quantize_int8
from asurge.ops.norm import soft_cap

BLOCK_TOKENS = 256
"""The most context tokens of each row gathered at a time."""

BLOCK_BYTES = 3 << 20
"""Keys gathered at a time, all rows together: beyond what a core caches, decode takes up to twice as long
(32 rows of 8 KV heads x 128, 512 tokens each: 20 ms with blocks of 4 MiB, a page a row, 38 with 16 MiB)."""

KEYS_LEFT_ROWS = 8
"""Up to this many query rows per KV head, keys are the left operand: up to 1.3x faster there, 1.3x slower at 256."""

_MASKED = -1e30

_Carry = tuple[jax.Array, jax.Array, jax.Array]
"""State of the online softmax: largest score, sum of weights, weighted sum of values."""


def storage_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which pages of a model dtype are stored."""
    return jnp.dtype(jnp.uint16) if jnp.dtype(dtype).itemsize == 2 else jnp.dtype(dtype)


def page_bytes(kv_heads: int, page_size: int, head_dim: int, dtype: jnp.dtype) -> int:
    """Bytes of one page of keys (or of values) in one layer."""
    return kv_heads * page_size * head_dim * storage_dtype(dtype).itemsize


def allocate_pages(num_pages: int, kv_heads: int, page_size: int, head_dim: int, dtype: jnp.dtype) -> jax.Array:
    """Zeroed pages of one layer's keys or values."""
    return jnp.zeros((num_pages, kv_heads, page_size, head_dim), storage_dtype(dtype))


def write_pages(pages: jax.Array, new: jax.Array, page_ids: jax.Array, offsets: jax.Array) -> jax.Array:
    """Put ``new [tokens, kv_heads, ...]`` at ``page_ids, offsets [tokens]``."""
    if pages.dtype != new.dtype:
        new = lax.bitcast_convert_type(new, pages.dtype)
    return pages.at[page_ids, :, offsets].set(new)


class XlaAttention(SeparateLevels):
    """`asurge.ops.attention.AttentionBackend` in plain XLA."""

    kernels = "xla"
    platforms = frozenset({"cpu", "gpu", "tpu"})
    skips_padding = False

    @staticmethod
    def unable(shape: AttentionShape) -> str | None:
        """Nothing: it serves every shape."""

    def __init__(self, shape: AttentionShape) -> None:
        self._shape = shape
        self._stored = jnp.dtype(jnp.int8) if shape.int8_pages else shape.dtype

    @property
    def page_bytes(self) -> int:
        shape = self._shape
        scales = shape.num_kv_heads * shape.page_size * 4 if shape.int8_pages else 0
        return 2 * (scales + page_bytes(shape.num_kv_heads, shape.page_size, shape.head_dim, self._stored))

    def allocate_level(self, num_pages: int) -> LevelPages:
        shape = self._shape
        one = (num_pages, shape.num_kv_heads, shape.page_size, shape.head_dim, self._stored)
        if not shape.int8_pages:
            return allocate_pages(*one), allocate_pages(*one)
        scales = (jnp.zeros(one[:3], jnp.float32), jnp.zeros(one[:3], jnp.float32))
        return allocate_pages(*one), allocate_pages(*one), *scales

    def attend_level(
        self, heads: Heads, pages: LevelPages, rows: Rows, window: Window | None
    ) -> tuple[jax.Array, LevelPages]:
        q, k, v = heads.split()
        shape = self._shape
        new: tuple[jax.Array, ...] = (k, v)
        if shape.int8_pages:
            (k, k_scale), (v, v_scale) = quantize_int8(k), quantize_int8(v)
            new = (k, v, k_scale, v_scale)
        page_ids, offsets = page_slots(rows, shape.page_size)
        written = tuple(write_pages(old, each, page_ids, offsets) for old, each in zip(pages, new, strict=True))
        keys, values, *scales = written
        key_scales, value_scales = scales or (None, None)
        parts = [
            paged_attention(
                queries,
                keys,
                values,
                table,
                start,
                length,
                key_scales=key_scales,
                value_scales=value_scales,
                scale=shape.scale,
                window=window,
                softcap=shape.score_softcap,
            )
            for queries, table, start, length in rows.split(q)
        ]
        return jnp.concatenate([part.reshape(-1, *q.shape[1:]) for part in parts]), written


def page_slots(rows: Rows, page_size: int) -> tuple[jax.Array, jax.Array]:
    """Page ids and offsets to which each token's key and value are written, int32 ``[tokens]``; page 0 for padding."""

    def page(part: slice, at: jax.Array) -> jax.Array:
        columns = jnp.clip((rows.start[part, None] + at) // page_size, 0, rows.page_table.shape[1] - 1)
        pages = jnp.take_along_axis(rows.page_table[part], columns, axis=1)
        return jnp.where(at < rows.length[part, None], pages, 0)

    return rows.by_token(page), rows.positions % page_size


def paged_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    page_table: jax.Array,
    start: jax.Array,
    length: jax.Array,
    *,
    scale: float,
    key_scales: jax.Array | None = None,
    value_scales: jax.Array | None = None,
    window: Window | None = None,
    softcap: float | None = None,
    block_tokens: int = BLOCK_TOKENS,
) -> jax.Array:
    """Causal attention of rows of queries over each row's pages.

    Online softmax (Milakov and Gimelshein, 2018) over blocks of pages, in a loop as long as the longest row needs:
    one executable serves every context length. Nothing in a page that the row's queries do not see, NaN included, reaches the
    result.

    Args:
        q: ``[rows, queries, heads, head_dim]``; query i of row r is at position ``start[r] + i``, and only the
            first ``length[r]`` are real. Their keys and values are already written.
        keys, values: ``[pages, kv_heads, page_size, head_dim]``.
        page_table: int32 ``[rows, columns]``.
        start, length: int32 ``[rows]``.
        scale: on the scores.
        key_scales, value_scales: ``[pages, kv_heads, page_size]`` of pages that are int8.
        window: of the layer; None: a query sees all before it.
        softcap: on scaled scores (`asurge.ops.norm.soft_cap`).
        block_tokens: the most context tokens of each row gathered at a time.

    Returns:
        ``[rows, queries, heads, head_dim]`` in q's dtype; finite everywhere, zeros where a row has no query.
    """
    rows, queries, heads, head_dim = q.shape
    _, kv_heads, page_size, _ = keys.shape
    columns = page_table.shape[1]
    row_bytes = page_bytes(kv_heads, page_size, head_dim, q.dtype)
    per_block = min(columns, _pages_per_block(block_tokens // page_size, rows * row_bytes))
    blocks = math.ceil(columns / per_block)
    span = per_block * page_size
    table = jnp.pad(page_table, ((0, 0), (0, blocks * per_block - columns)))
    grouped = q.reshape(rows, queries, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(rows, kv_heads, -1, head_dim)
    positions = start[:, None] + jnp.arange(queries, dtype=jnp.int32)[None, :]
    # A row sees [begins, ends); padding rows see nothing and must not lengthen the loop.
    ends = jnp.where(length > 0, start + length, 0)
    begins = jnp.zeros_like(start) if window is None else window.begin(start)

    def attend(index: jax.Array | int, carry: _Carry) -> _Carry:
        best, total, mixed = carry
        ids = lax.dynamic_slice_in_dim(table, index * per_block, per_block, axis=1)
        at = index * span + jnp.arange(span, dtype=jnp.int32)[None, :]
        real = (at >= begins[:, None]) & (at < ends[:, None])
        seen = real[:, None, :] & (at[:, None, :] <= positions[:, :, None])
        if window is not None:
            seen &= at[:, None, :] >= window.begin(positions)[:, :, None]
        seen = jnp.tile(seen[:, None], (1, 1, heads // kv_heads, 1))
        scores = _scores(grouped, _gather(keys, ids, q.dtype)) * _gather_scales(key_scales, ids, real)
        scores = jnp.where(seen, soft_cap(scores * scale, softcap), _MASKED)
        new_best = jnp.maximum(best, scores.max(axis=-1, keepdims=True))
        shrink = jnp.exp(best - new_best)
        weights = jnp.where(seen, jnp.exp(scores - new_best), 0.0)
        # Pages hold leftovers of other sequences, even NaN, and zero times NaN must not reach the sum.
        block = jnp.where(real[:, None, :, None], _gather(values, ids, q.dtype), jnp.zeros((), q.dtype))
        shares = (weights * _gather_scales(value_scales, ids, real)).astype(q.dtype)
        update = jnp.einsum("rhqk,rhkd->rhqd", shares, block, preferred_element_type=jnp.float32)
        return new_best, total * shrink + weights.sum(axis=-1, keepdims=True), mixed * shrink + update

    carry = _nothing_seen(grouped.shape)
    if blocks == 1:
        carry = attend(0, carry)
    else:
        first = jnp.min(jnp.where(length > 0, begins, columns * page_size)) // span
        carry = lax.fori_loop(first, (jnp.max(ends) + span - 1) // span, attend, carry)
    _, total, mixed = carry
    out = jnp.where(total > 0, mixed / jnp.where(total > 0, total, 1.0), 0.0)
    return out.reshape(rows, kv_heads, -1, queries, head_dim).transpose(0, 3, 1, 2, 4).reshape(q.shape).astype(q.dtype)


def _nothing_seen(shape: tuple[int, ...]) -> _Carry:
    ones = jnp.zeros((*shape[:-1], 1), jnp.float32)
    return ones + _MASKED, ones, jnp.zeros(shape, jnp.float32)


def _pages_per_block(most: int, column_bytes: int) -> int:
    """Page columns to gather at a time: where bytes decide, a power of two, which divides most page tables."""
    affordable = max(1, BLOCK_BYTES // column_bytes)
    return max(1, min(most, 1 << affordable.bit_length() - 1))


def _gather(pages: jax.Array, ids: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """``ids [rows, columns]`` -> ``[rows, kv_heads, columns * page_size, head_dim]`` in the model's dtype.

    Picks whole heads of pages, which leaves nothing to transpose; clipping instead of filling saves a pass.
    """
    _, kv_heads, page_size, head_dim = pages.shape
    heads = ids[:, None, :] * kv_heads + jnp.arange(kv_heads, dtype=jnp.int32)[None, :, None]
    picked = pages.reshape(-1, page_size * head_dim).at[heads].get(mode="clip")
    picked = picked.reshape(ids.shape[0], kv_heads, -1, head_dim)
    if picked.dtype == jnp.int8:
        return picked.astype(dtype)
    return picked if picked.dtype == dtype else lax.bitcast_convert_type(picked, dtype)


def _gather_scales(scales: jax.Array | None, ids: jax.Array, real: jax.Array) -> jax.Array | float:
    """``ids [rows, columns]`` -> ``[rows, kv_heads, 1, columns * page_size]``, as `_gather` orders tokens; 0 where a token is
    not ``real [rows, columns * page_size]``, whose scale may be anything. 1 where pages have no scales."""
    if scales is None:
        return 1.0
    picked = scales.at[ids].get(mode="clip").transpose(0, 2, 1, 3)
    return jnp.where(real[:, None, None, :], picked.reshape(ids.shape[0], scales.shape[1], 1, -1), 0.0)


def _scores(q: jax.Array, k: jax.Array) -> jax.Array:
    """``q [rows, kv_heads, queries, head_dim]``, ``k [..., tokens, head_dim]`` -> ``[..., queries, tokens]``."""
    if q.shape[2] > KEYS_LEFT_ROWS:
        return jnp.einsum("rhqd,rhkd->rhqk", q, k, preferred_element_type=jnp.float32)
    scores = jnp.einsum("rhkd,rhqd->rhkq", k, q, preferred_element_type=jnp.float32)
    # Without the barrier XLA folds the transpose back into the other form.
    barred: jax.Array = lax.optimization_barrier(scores)
    return barred.transpose(0, 1, 3, 2)
