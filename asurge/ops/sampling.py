"""Drawing the next token of every row, exactly, without sorting or drawing noise over the whole vocabulary.

A full sort of 32 x 49152 takes 150 ms on two cores, noise for all of it 27 ms; the two-stage forms here take one to
three. Which path serves a row depends on that row alone, and its noise on its seed and position alone, so a
request draws the same tokens in any company.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 128
CANDIDATES = 64
_LOWEST = -1e30
_BISECTIONS = 40


def sample(
    logits: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    seed: jax.Array,
    position: jax.Array,
    *,
    vocab_size: int,
) -> jax.Array:
    """One token id per row, int32 ``[rows]``.

    Temperature first, then top-k, then top-p over what top-k left (transformers' order).

    Args:
        logits: float32 ``[rows, columns]``; columns from ``vocab_size`` on are padding and never drawn.
        temperature: ``[rows]``; 0 is greedy.
        top_k: int32 ``[rows]``; 0 keeps all.
        top_p: ``[rows]``; 1 keeps all.
        seed: uint32 ``[rows]``.
        position: int32 ``[rows]``, of the token drawn.
        vocab_size: real columns.
    """
    blocks = _blocked(logits, vocab_size)
    greedy = _argmax(blocks)

    def draw() -> jax.Array:
        heat = jnp.where(temperature > 0, temperature, 1.0)
        scaled = jnp.where(blocks > _LOWEST, jnp.maximum(blocks / heat[:, None, None], _LOWEST), blocks)
        return jnp.where(temperature > 0, _draw(scaled, top_k, top_p, _keys(seed, position)), greedy)

    drawn: jax.Array = lax.cond(jnp.any(temperature > 0), draw, lambda: greedy)
    return drawn


def _blocked(logits: jax.Array, vocab_size: int) -> jax.Array:
    """``[rows, blocks, BLOCK]`` with padding at the lowest value; NaN counts as lowest, so it is never drawn."""
    rows = logits.shape[0]
    real = logits[:, :vocab_size]
    real = jnp.where(jnp.isnan(real), _LOWEST, jnp.clip(real, _LOWEST, -_LOWEST))
    padded = jnp.pad(real, ((0, 0), (0, -vocab_size % BLOCK)), constant_values=2 * _LOWEST)
    return padded.reshape(rows, -1, BLOCK)


def _argmax(blocks: jax.Array) -> jax.Array:
    """Two-level argmax, lowest index first: 0.4 ms where `jnp.argmax` takes 2.7 (32 x 49152)."""
    block = jnp.argmax(blocks.max(axis=-1), axis=-1)
    inside = jnp.argmax(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
    return (block * BLOCK + inside).astype(jnp.int32)


def _keys(seed: jax.Array, position: jax.Array) -> jax.Array:
    root = jax.random.key(0)
    return jax.vmap(lambda one, at: jax.random.fold_in(jax.random.fold_in(root, one), at))(seed, position)


def _draw(blocks: jax.Array, top_k: jax.Array, top_p: jax.Array, keys: jax.Array) -> jax.Array:
    """A random token per row from temperature-scaled logits ``[rows, blocks, BLOCK]``."""
    columns = blocks.shape[1] * BLOCK
    values, ids = _top(blocks, min(CANDIDATES, columns))
    size = values.shape[1]
    total = jax.nn.logsumexp(jax.nn.logsumexp(blocks, axis=-1), axis=-1)
    rank = jnp.arange(size)[None, :]
    short = (top_k > 0) & (top_k <= size)
    kept = jnp.where(short[:, None], rank < top_k[:, None], True)
    # With a short top-k the candidates are all there is; otherwise top-p looks at the whole distribution.
    mass = jnp.where(short, jax.nn.logsumexp(jnp.where(kept, values, _LOWEST), axis=-1), total)
    probability = jnp.where(kept, jnp.exp(values - mass[:, None]), 0.0)
    before = jnp.cumsum(probability, axis=-1) - probability
    kept &= (before < top_p[:, None]) | (rank == 0)
    covered = short | ((top_k == 0) & (probability.sum(axis=-1) >= top_p) & (top_p < 1)) | (size == columns)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (size,)))(keys)
    choice = jnp.argmax(jnp.where(kept, values + noise, 2 * _LOWEST), axis=-1)
    narrow = jnp.take_along_axis(ids, choice[:, None], axis=1)[:, 0]
    wide = lax.cond(jnp.any(~covered), lambda: _draw_wide(blocks, top_k, top_p, keys), lambda: narrow)
    return jnp.where(covered, narrow, wide).astype(jnp.int32)


def _top(blocks: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The ``count`` largest values and their ids, in order: the largest lie in the blocks with the largest maxima."""
    rows, number, _ = blocks.shape
    if number <= count:
        values, ids = lax.top_k(blocks.reshape(rows, -1), count)
        return values, ids.astype(jnp.int32)
    _, chosen = lax.top_k(blocks.max(axis=-1), count)
    chosen = jnp.sort(chosen, axis=-1)  # ties must fall to the lowest id, as in one stage
    pool = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(rows, -1)
    values, at = lax.top_k(pool, count)
    block = jnp.take_along_axis(chosen, at // BLOCK, axis=1)
    return values, (block * BLOCK + at % BLOCK).astype(jnp.int32)


def _draw_wide(blocks: jax.Array, top_k: jax.Array, top_p: jax.Array, keys: jax.Array) -> jax.Array:
    """Any top-k and top-p: find the logit they cut at by bisection, then sample hierarchically above it."""
    columns = blocks.shape[1] * BLOCK
    high = blocks.max(axis=(1, 2))
    low = jnp.maximum(jnp.where(blocks > _LOWEST, blocks, high[:, None, None]).min(axis=(1, 2)), high - 1e4)
    wanted = jnp.where(top_k > 0, top_k, columns)

    def enough_tokens(cut: jax.Array) -> jax.Array:
        return (blocks >= cut[:, None, None]).sum(axis=(1, 2)) >= wanted

    k_cut = jnp.where(top_k > 0, _bisect(enough_tokens, low, high), low)
    weights = jnp.where(blocks >= k_cut[:, None, None], jnp.exp(blocks - high[:, None, None]), 0.0)
    goal = top_p * weights.sum(axis=(1, 2))

    def enough_mass(cut: jax.Array) -> jax.Array:
        return jnp.where(blocks >= cut[:, None, None], weights, 0.0).sum(axis=(1, 2)) >= goal

    cut = jnp.where(top_p < 1, jnp.maximum(_bisect(enough_mass, k_cut, high), k_cut), k_cut)
    free = (top_k == 0) & (top_p >= 1)
    kept = jnp.where((blocks >= cut[:, None, None]) | free[:, None, None], blocks, 2 * _LOWEST)
    return _hierarchical(kept, keys)


def _bisect(enough: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array) -> jax.Array:
    """The highest cut per row at which ``enough`` still holds, given that it holds at ``low``."""

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        below, above = bounds
        middle = 0.5 * (below + above)
        holds = enough(middle)
        return jnp.where(holds, middle, below), jnp.where(holds, above, middle)

    below, above = lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    return jnp.where(enough(above), above, below)


def _hierarchical(blocks: jax.Array, keys: jax.Array) -> jax.Array:
    """Exact sampling in two draws: a block by its total weight, then a token inside it (Gumbel-max twice)."""
    totals = jax.nn.logsumexp(blocks, axis=-1)
    number = totals.shape[1]

    def noise(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = jax.random.split(key)
        return jax.random.gumbel(first, (number,)), jax.random.gumbel(second, (BLOCK,))

    over, within = jax.vmap(noise)(keys)
    block = jnp.argmax(totals + over, axis=-1)
    chosen = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return (block * BLOCK + jnp.argmax(chosen + within, axis=-1)).astype(jnp.int32)
