"""Attention over pages as one Pallas kernel in the Triton dialect; `asurge.ops.attention.gpu` uses it.

Imports Pallas, which takes a third of a second: import this module where a kernel is wanted, not before.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from asurge.ops.attention.interface import Window

_MASKED = -1e30
_LEAST_LANES = 16
"""Rows of the smallest product in tensor cores."""

Ref = Any  # Pallas has no public name for a kernel's arguments


@dataclasses.dataclass(frozen=True, slots=True)
class Tuning:
    """Launch parameters of the kernel on the device; results do not depend on them, but for rounding.

    All are powers of two but ``programs``.

    Attributes:
        lanes: the least queries times query heads of a KV head that one program computes; decode takes as few as it can.
        block_tokens: context tokens read at a time.
        warps, stages: of a program, and of its loop's pipeline.
        programs: a call is split over the context until it has this many.
        most_splits: but into at most this many parts.
    """

    lanes: int = 64
    block_tokens: int = 64
    warps: int = 4
    stages: int = 3
    programs: int = 512
    most_splits: int = 64


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    """What the kernel knows when it is compiled."""

    width: int
    heads: int
    group: int
    head_dim: int
    page_size: int
    lanes: int
    queries: int
    """Attention of a row, in one program."""
    block_tokens: int
    splits: int
    window: Window | None
    scale: float

    @property
    def tiles(self) -> int:
        """Programs over the queries of a row."""
        return -(-self.width // self.queries)


def paged_attention(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    page_table: jax.Array,
    start: jax.Array,
    length: jax.Array,
    *,
    scale: float,
    window: Window | None,
    tuning: Tuning,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention of rows of queries over each row's pages.

    FlashAttention-2 (Dao, 2023) with the query heads that share a KV head packed into one tile, so that each key is read
    once for all of them. Where rows are few, the context is split over programs whose results XLA combines (Flash-Decoding;
    Dao et al., 2023). Slots that no query of a tile sees are never loaded.

    Args:
        q: ``[rows, width, heads, head_dim]``; query i of row r is at position ``start[r] + i``, and only the first
            ``length[r]`` are real. Their keys and values are already written.
        keys, values: ``[pages, kv_heads, page_size, head_dim]`` in the dtype of q.
        page_table: int32 ``[rows, columns]``.
        start, length: int32 ``[rows]``.
        scale: on the scores.
        window: of the layer; None: a query sees all before it.
        tuning: of this call.
        interpret: run as plain JAX operations, on any device.

    Returns:
        ``[rows, width, heads, head_dim]`` in q's dtype; finite everywhere, zeros where a row has no query.
    """
    rows, _, heads, head_dim = q.shape
    kv_heads = keys.shape[1]
    plan = _plan(q.shape, keys.shape, page_table.shape[1], scale, window, tuning)
    partial_shape = (plan.splits, rows, heads)
    if plan.splits == 1:
        out_shape = [jax.ShapeDtypeStruct(q.shape, q.dtype)]
    else:
        out_shape = [
            jax.ShapeDtypeStruct((*partial_shape, head_dim), jnp.float32),
            jax.ShapeDtypeStruct(partial_shape, jnp.float32),
            jax.ShapeDtypeStruct(partial_shape, jnp.float32),
        ]
    operands = (start, length, page_table, q, keys, values)
    call = pl.pallas_call(
        partial(_kernel, plan=plan),
        grid=(plan.tiles * plan.splits, kv_heads, rows),
        in_specs=[_whole(x) for x in operands],
        out_specs=[_whole(x) for x in out_shape],
        out_shape=out_shape,
        compiler_params=triton.CompilerParams(num_warps=tuning.warps, num_stages=tuning.stages),
        interpret=interpret,
        name="asurge_decode" if plan.width == 1 else "asurge_prefill",
    )
    found = call(*operands)
    return found[0] if plan.splits == 1 else _combine(*found)[:, None].astype(q.dtype)


def _plan(
    q: tuple[int, ...], pages: tuple[int, ...], columns: int, scale: float, window: Window | None, tuning: Tuning
) -> _Plan:
    rows, width, heads, head_dim = q
    _, kv_heads, page_size, _ = pages
    group = heads // kv_heads
    lanes = max(_LEAST_LANES, pl.next_power_of_2(group), min(tuning.lanes, pl.next_power_of_2(width * group)))
    block_tokens = max(_LEAST_LANES, min(tuning.block_tokens, pl.next_power_of_2(columns * page_size)))
    splits = 1
    if width == 1:
        most = min(tuning.most_splits, -(-columns * page_size // block_tokens))
        splits = max(1, min(most, tuning.programs // (rows * kv_heads)))
    return _Plan(
        width, heads, group, head_dim, page_size, lanes, min(lanes // group, width), block_tokens, splits, window, scale
    )


def _whole(array: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """The whole of an operand: programs find their parts themselves."""
    return pl.BlockSpec(array.shape, lambda *_: (0,) * len(array.shape))


def _kernel(
    start_ref: Ref,
    length_ref: Ref,
    table_ref: Ref,
    q_ref: Ref,
    keys_ref: Ref,
    values_ref: Ref,
    out_ref: Ref,
    *stats: Ref,
    plan: _Plan,
) -> None:
    """One tile: some queries of a row, all query heads of a KV head, and the split's part of the context."""
    tile, kv_head, row = (pl.program_id(axis) for axis in range(3))
    tile, split = lax.div(tile, plan.splits), lax.rem(tile, plan.splits)
    start, length = start_ref[row], length_ref[row]
    lane = jnp.arange(plan.lanes, dtype=jnp.int32)
    first_query = tile * plan.queries
    query = first_query + lax.div(lane, plan.group)
    head = kv_head * plan.group + lax.rem(lane, plan.group)
    used = (lane < plan.queries * plan.group) & (query < plan.width)
    head = jnp.where(used, head, plan.heads)  # no unused lane shares a place with a used one
    dim = jnp.arange(plan.head_dim, dtype=jnp.int32)

    # The tile's real queries see [begin, end). Without any, end is 0 and nothing is read.
    end = jnp.where(first_query < length, start + jnp.minimum(first_query + plan.queries, length), 0)
    begin = jnp.int32(0) if plan.window is None else plan.window.begin(start + first_query)
    low, high = lax.div(begin, plan.block_tokens), lax.div(end + plan.block_tokens - 1, plan.block_tokens)
    if plan.splits > 1:
        each = lax.div(jnp.maximum(high - low, 0) + plan.splits - 1, plan.splits)
        low += split * each
        high = jnp.minimum(high, low + each)

    at = (row, query[:, None], head[:, None], dim[None, :])
    q = triton.load(q_ref.at[at], mask=used[:, None], other=0.0)
    best = jnp.full((plan.lanes,), _MASKED, jnp.float32)
    total = jnp.zeros((plan.lanes,), jnp.float32)
    mixed = jnp.zeros((plan.lanes, plan.head_dim), jnp.float32)
    attend = partial(
        _attend, q, start + query, (begin, end), (table_ref, keys_ref, values_ref), (row, kv_head, dim), plan
    )
    best, total, mixed = lax.fori_loop(low, high, attend, (best, total, mixed))

    if plan.splits == 1:
        mixed = mixed / jnp.where(total > 0, total, 1.0)[:, None]
        triton.store(out_ref.at[at], mixed.astype(out_ref.dtype), mask=used[:, None])
        return
    best_ref, total_ref = stats
    triton.store(out_ref.at[split, row, head[:, None], dim[None, :]], mixed, mask=used[:, None])
    triton.store(best_ref.at[split, row, head], best, mask=used)
    triton.store(total_ref.at[split, row, head], total, mask=used)


_Carry = tuple[jax.Array, jax.Array, jax.Array]
"""State of the online softmax: largest score (in base 2), sum of weights, weighted sum of values."""


def _attend(
    q: jax.Array,
    position: jax.Array,
    bounds: tuple[jax.Array, jax.Array],
    refs: tuple[Ref, Ref, Ref],
    place: tuple[jax.Array, jax.Array, jax.Array],
    plan: _Plan,
    block: jax.Array,
    carry: _Carry,
) -> _Carry:
    """Take in one block of context tokens."""
    best, total, mixed = carry
    (begin, end), (table_ref, keys_ref, values_ref), (row, kv_head, dim) = bounds, refs, place
    token = block * plan.block_tokens + jnp.arange(plan.block_tokens, dtype=jnp.int32)
    real = (token >= begin) & (token < end)
    page = triton.load(table_ref.at[row, lax.div(token, plan.page_size)], mask=real, other=0)
    at = (page[:, None], kv_head, lax.rem(token, plan.page_size)[:, None], dim[None, :])
    # Masked loads: pages hold leftovers of other sequences, even NaN, and zero times NaN must not reach the sum.
    k = triton.load(keys_ref.at[at], mask=real[:, None], other=0.0)
    scores = _dot(q, k, 1) * (plan.scale * math.log2(math.e))
    seen = real[None, :] & (token[None, :] <= position[:, None])
    if plan.window is not None:
        seen &= token[None, :] >= plan.window.begin(position)[:, None]
    scores = jnp.where(seen, scores, _MASKED)
    new_best = jnp.maximum(best, scores.max(axis=1))
    shrink = jnp.exp2(best - new_best)
    weights = jnp.where(seen, jnp.exp2(scores - new_best[:, None]), 0.0)
    v = triton.load(values_ref.at[at], mask=real[:, None], other=0.0)
    update = _dot(weights.astype(v.dtype), v, 0)
    return new_best, total * shrink + weights.sum(axis=1), mixed * shrink[:, None] + update


def _dot(a: jax.Array, b: jax.Array, contract: int) -> jax.Array:
    """A product in float32, exact for float32 operands, which tensor cores would round to 10 bits."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    numbers = (((1,), (contract,)), ((), ()))
    return lax.dot_general(a, b, numbers, precision=precision, preferred_element_type=jnp.float32)


def _combine(mixed: jax.Array, best: jax.Array, total: jax.Array) -> jax.Array:
    """``[splits, rows, heads, head_dim]`` and ``[splits, rows, heads]`` twice -> ``[rows, heads, head_dim]``."""
    share = jnp.exp2(best - best.max(axis=0))
    whole = (share * total).sum(axis=0)[..., None]
    return (share[..., None] * mixed).sum(axis=0) / jnp.where(whole > 0, whole, 1.0)
