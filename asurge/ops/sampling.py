"""Drawing the next token of every row, exactly, without sorting or drawing noise over the whole vocabulary.

A full sort of 32 x 49152 takes 150 ms on two cores, noise for all of it 27 ms; the two-stage forms here take one to
six. A cut by top-k or top-p beyond the candidates costs some 25 passes over a row, and is made in few rows if few need
it. Which path serves a row depends on that row alone, and its noise on its seed and position alone, so a request
draws the same tokens in any company.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 128
CANDIDATES = 64
_LOWEST = -1e30
_PADDING = 2 * _LOWEST
_FLOOR = -104.0
"""The exponential of anything lower is 0 in float32, so a cut there keeps whatever can be drawn."""
_FEW = 8
"""Cuts are looked for in an eighth of the rows if no more need one: few distributions outgrow the candidates."""


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

    Temperature first, then top-k, then top-p over what top-k left (transformers' order). Of equal logits greedy
    takes the first, top-k up to `CANDIDATES` keeps the first; a larger cut keeps all that equal its last.

    Args:
        logits: float32 ``[rows, columns]``; columns from ``vocab_size`` on are padding and never drawn. NaN and
            -inf are never drawn either, unless a row has nothing else.
        temperature: ``[rows]``; 0 is greedy.
        top_k: int32 ``[rows]``; 0 or less keeps all.
        top_p: ``[rows]``; 1 keeps all.
        seed: uint32 ``[rows]``.
        position: int32 ``[rows]``, of the token drawn.
        vocab_size: real columns.
    """
    greedy, peak = _argmax(_blocked(logits, vocab_size))

    def draw() -> jax.Array:
        blocks = _blocked(logits, vocab_size)
        heat = jnp.where(temperature > 0, temperature, 1.0)[:, None, None]
        scaled = jnp.maximum((blocks - peak[:, None, None]) / heat, _LOWEST)
        scaled = jnp.where(blocks > _LOWEST, scaled, blocks)
        k = jnp.where(top_k < vocab_size, jnp.maximum(top_k, 0), 0)
        drawn = _draw(scaled, k, top_p, _keys(seed, position), temperature > 0)
        return jnp.where(temperature > 0, drawn, greedy)

    drawn: jax.Array = lax.cond(jnp.any(temperature > 0), draw, lambda: greedy)
    return drawn


def argmax(logits: jax.Array, vocab_size: int) -> jax.Array:
    """The greedy draw of `sample`, int32 ``[rows]``."""
    return _argmax(_blocked(logits, vocab_size))[0]


def _blocked(logits: jax.Array, vocab_size: int) -> jax.Array:
    """``[rows, blocks, BLOCK]``, finite: NaN counts as lowest, and padding lies below that."""
    rows = logits.shape[0]
    real = logits[:, :vocab_size]
    real = jnp.where(jnp.isnan(real), _LOWEST, jnp.clip(real, _LOWEST, -_LOWEST))
    padded = jnp.pad(real, ((0, 0), (0, -vocab_size % BLOCK)), constant_values=_PADDING)
    return padded.reshape(rows, -1, BLOCK)


def _argmax(blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two-level argmax, lowest index first, and the maximum: 0.4 ms where `jnp.argmax` takes 2.7 (32 x 49152)."""
    peaks = blocks.max(axis=-1)
    block = jnp.argmax(peaks, axis=-1)
    inside = jnp.argmax(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
    return (block * BLOCK + inside).astype(jnp.int32), peaks.max(axis=-1)


def _keys(seed: jax.Array, position: jax.Array) -> jax.Array:
    root = jax.random.key(0, impl="threefry2x32")
    return jax.vmap(lambda one, at: jax.random.fold_in(jax.random.fold_in(root, one), at))(seed, position)


def _draw(blocks: jax.Array, top_k: jax.Array, top_p: jax.Array, keys: jax.Array, wanted: jax.Array) -> jax.Array:
    """A random token per row from temperature-scaled logits ``[rows, blocks, BLOCK]`` whose maxima are 0.

    Rows that are not ``wanted`` get any token, and ask for no work of their own.
    """
    values, ids = _top(blocks, CANDIDATES)
    sums = jnp.exp(blocks).sum(axis=-1)
    rank = jnp.arange(CANDIDATES)[None, :]
    # With a short top-k the candidates are all there is; otherwise top-p looks at the whole distribution.
    short = (top_k > 0) & (top_k <= CANDIDATES)
    kept = ~short[:, None] | (rank < top_k[:, None])
    weights = jnp.where(kept, jnp.exp(values), 0.0)
    listed = weights.sum(axis=-1)
    nucleus = top_p * jnp.where(short, listed, sums.sum(axis=-1))
    before = jnp.cumsum(weights, axis=-1) - weights
    kept &= (top_p[:, None] >= 1) | (before < nucleus[:, None]) | (rank == 0)
    covered = short | ((top_k == 0) & (top_p < 1) & (listed >= nucleus))
    noise = jax.vmap(lambda key: jax.random.gumbel(key, (CANDIDATES,)))(keys)
    choice = jnp.argmax(jnp.where(kept, values + noise, _PADDING), axis=-1)
    narrow = jnp.take_along_axis(ids, choice[:, None], axis=1)[:, 0]

    def wide() -> jax.Array:
        beyond = wanted & ~covered
        k, p = jnp.where(beyond, top_k, 0), jnp.where(beyond, top_p, 1.0)
        cut, weights = _cut(blocks, sums, values[:, -1], k, p)
        return jnp.where(covered, narrow, _hierarchical(blocks, cut, weights, keys))

    drawn: jax.Array = lax.cond(jnp.any(wanted & ~covered), wide, lambda: narrow)
    return drawn


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


def _cut(
    blocks: jax.Array, sums: jax.Array, last: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The logit, per row, from which on tokens are kept, and the weights that leaves to the blocks.

    ``sums [rows, blocks]`` are their weights before, ``last [rows]`` the logit of the last candidate. ``top_k`` is
    0 or beyond the candidates.
    """
    rows = blocks.shape[0]
    few = -(-rows // _FEW)
    cutting = (top_k > 0) | (top_p < 1)

    def everywhere() -> jax.Array:
        return _search(blocks, last, top_k, top_p)

    def in_few() -> jax.Array:
        _, at = lax.top_k(cutting.astype(jnp.int32), few)
        found = _search(blocks[at], last[at], top_k[at], top_p[at])
        return jnp.full(rows, _FLOOR, jnp.float32).at[at].set(found)

    def weigh() -> tuple[jax.Array, jax.Array]:
        cut = lax.cond(cutting.sum() <= few, in_few, everywhere)
        return cut, jnp.where(blocks >= cut[:, None, None], jnp.exp(blocks), 0.0).sum(axis=-1)

    found: tuple[jax.Array, jax.Array] = lax.cond(
        jnp.any(cutting), weigh, lambda: (jnp.full(rows, _FLOOR, jnp.float32), sums)
    )
    return found


def _search(blocks: jax.Array, last: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """The cuts of `_cut`, by bisection."""
    floor = jnp.full(last.shape, _FLOOR, jnp.float32)

    def by_count() -> jax.Array:
        def excess(cut: jax.Array) -> jax.Array:
            return (blocks >= cut[:, None, None]).sum(axis=(1, 2), dtype=jnp.int32) - top_k

        return _bisect(excess, jnp.where(top_k > 0, jnp.maximum(last, floor), floor), floor)

    cut = lax.cond(jnp.any(top_k > 0), by_count, lambda: floor)

    def by_mass() -> jax.Array:
        weights = jnp.where(blocks >= cut[:, None, None], jnp.exp(blocks), 0.0)
        goal = top_p * weights.sum(axis=(1, 2))

        def excess(cut: jax.Array) -> jax.Array:
            return jnp.where(blocks >= cut[:, None, None], weights, 0.0).sum(axis=(1, 2)) - goal

        # A nucleus of the whole distribution is only looked for here if it is wider than the candidates.
        high = jnp.where(top_k > 0, 0.0, jnp.maximum(last, floor))
        return _bisect(excess, jnp.where(top_p < 1, high, cut), cut)

    lowest: jax.Array = lax.cond(jnp.any(top_p < 1), by_mass, lambda: cut)
    return lowest


def _bisect(excess: Callable[[jax.Array], jax.Array], high: jax.Array, low: jax.Array) -> jax.Array:
    """The highest cut per row, between ``high`` and ``low`` (at most 0), at which ``excess`` is not negative.

    ``low`` where it is negative everywhere. Halves bit patterns, which order like the floats, so the answer is exact,
    in at most 31 passes. A row whose excess is zero is done: no token lies between that cut and the answer.
    """

    def unresolved(depths: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(depths[0] < depths[1])

    def halve(depths: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        shallow, deep = depths
        middle = shallow + (deep - shallow) // 2
        over = excess(-lax.bitcast_convert_type(middle, jnp.float32))
        active = shallow < deep
        deep = jnp.where(active & (over >= 0), middle, deep)
        return jnp.where(active, jnp.where(over == 0, middle, jnp.where(over < 0, middle + 1, shallow)), shallow), deep

    shallow, deep = (lax.bitcast_convert_type(jnp.abs(cut), jnp.int32) for cut in (high, low))
    _, deep = lax.while_loop(unresolved, halve, (shallow, deep))
    return -lax.bitcast_convert_type(deep, jnp.float32)


def _hierarchical(blocks: jax.Array, cut: jax.Array, weights: jax.Array, keys: jax.Array) -> jax.Array:
    """Exact sampling from ``cut`` on in two draws: a block by its weight, then a token inside it (Gumbel-max twice)."""

    def noise(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second = jax.random.split(key)
        return jax.random.gumbel(first, (weights.shape[1],)), jax.random.gumbel(second, (BLOCK,))

    over, within = jax.vmap(noise)(keys)
    block = jnp.argmax(jnp.log(weights) + over, axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    inside = jnp.where(inside >= cut[:, None], inside, _PADDING)
    return (block * BLOCK + jnp.argmax(inside + within, axis=-1)).astype(jnp.int32)
