"""Logits options of requests: penalties, bias, processors and logprobs, on float32 ``[rows, vocab]``.

Each works row by row, and leaves rows whose parameter is neutral exactly as they are.

Each works row by row, and leaves rows whose parameter is neutral exactly as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from asurge.ops.sampling import bisect, blocked, top
from asurge.plan import MASK_BITS

LogitsProcessor = Callable[[jax.Array, jax.Array], jax.Array]
"""A user's own shaping: a pure JAX function of one row's logits, float32 ``[vocab]``, and of a scalar, float32, that the
request gives; it returns the logits to sample from."""

IN_PROMPT = 1 << 15
"""Set where a token occurs in the prompt; the bits below count how often it was generated."""

_MOST = 3e38
_LEAST_MASS = 1e-30
"""Less might be 0 in float32, which no token at all reaches."""


def count(seen: jax.Array, slot: jax.Array, token: jax.Array) -> jax.Array:
    """``seen [slots, vocab]`` (uint16) with one more of ``token [rows]`` in each ``slot [rows]``.

    A count that reaches `IN_PROMPT` starts again at 0: looking first would copy all of ``seen``.
    """
    return seen.at[slot, token].add(jnp.ones_like(token, seen.dtype))


def penalize(
    logits: jax.Array, seen: jax.Array, repetition: jax.Array, frequency: jax.Array, presence: jax.Array
) -> jax.Array:
    """Logits of tokens that occurred before, made less likely.

    ``repetition [rows]`` divides positive logits of tokens in prompt and answer and multiplies negative ones (CTRL; Keskar et
    al., 2019). ``frequency`` is subtracted for each time a token was generated, ``presence`` once (OpenAI).

    Args:
        seen: uint16 ``[rows, vocab]``, see `IN_PROMPT`.
    """
    times = (seen & (IN_PROMPT - 1)).astype(jnp.float32)
    factor = jnp.where(seen > 0, repetition[:, None], 1.0)
    logits = jnp.where(logits > 0, logits / factor, logits * factor)
    return logits - frequency[:, None] * times - presence[:, None] * (times > 0)


def add_bias(logits: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
    """``values [rows, n]`` added at ``ids [rows, n]``; ids beyond the vocabulary are padding."""
    rows = jnp.arange(logits.shape[0])[:, None]
    return logits.at[rows, ids].add(values, mode="drop")


def allow(logits: jax.Array, words: jax.Array) -> jax.Array:
    """Logits of the allowed tokens, -inf elsewhere; token t is bit t % 32 of ``words [rows, vocab / 32]`` (uint32)."""
    bits = (words[:, :, None] >> jnp.arange(MASK_BITS, dtype=jnp.uint32)) & 1
    return jnp.where(bits.reshape(words.shape[0], -1)[:, : logits.shape[1]] > 0, logits, -jnp.inf)


def typical(logits: jax.Array, temperature: jax.Array, mass: jax.Array) -> jax.Array:
    """Keep the tokens whose surprise is closest to the expected one, up to a probability ``mass [rows]``; -inf elsewhere.

    Locally typical sampling (Meister et al., 2022). Tokens that tie for the last place are all kept. Rows of mass 1
    or temperature 0 keep all.
    """
    cutting = (mass < 1) & (temperature > 0)
    heat = jnp.where(temperature > 0, temperature, 1.0)[:, None]
    finite = jnp.clip(jnp.nan_to_num(logits), -1e30, 1e30)
    # Finite also after a division by next to nothing: a NaN would be closest to nothing, and leave no token.
    scaled = jnp.maximum((finite - finite.max(axis=-1, keepdims=True)) / heat, -1e30)
    surprise = -jax.nn.log_softmax(scaled, axis=-1)
    likely = jnp.exp(-surprise)
    closeness = -jnp.abs(surprise - (likely * surprise).sum(axis=-1, keepdims=True))
    goal = jnp.where(cutting, jnp.maximum(mass, _LEAST_MASS), 0.0)

    def excess(cut: jax.Array) -> jax.Array:
        return jnp.where(closeness >= cut[:, None], likely, 0.0).sum(axis=-1) - goal

    rows = jnp.zeros(logits.shape[0], jnp.float32)
    cut = bisect(excess, rows, rows - _MOST)
    return jnp.where((closeness >= cut[:, None]) | ~cutting[:, None], logits, -jnp.inf)


class Logprobs(NamedTuple):
    """Natural logarithms of probabilities.

    Attributes:
        chosen: float32 ``[rows]``, of a given token.
        rank: int32 ``[rows]``, of that token among all; 1 is the likeliest.
        ids: int32 ``[rows, n]``, the likeliest tokens in order.
        values: float32 ``[rows, n]``, theirs.
    """

    chosen: jax.Array
    rank: jax.Array
    ids: jax.Array
    values: jax.Array


def logprobs(logits: jax.Array, tokens: jax.Array, number: int) -> Logprobs:
    """Logprobs of ``tokens [rows]`` and of the ``number`` likeliest, at most `asurge.ops.sampling.CANDIDATES`."""
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)
    rank = (logits > chosen).sum(axis=-1, dtype=jnp.int32) + 1
    likeliest = min(number, logits.shape[1])
    values, ids = top(blocked(logits, logits.shape[1]), likeliest)
    pad = ((0, 0), (0, number - likeliest))
    values = jnp.pad(values - normalizer[:, None], pad, constant_values=-jnp.inf)
    return Logprobs(chosen[:, 0] - normalizer, rank, jnp.pad(ids, pad), values)


def record(seen: jax.Array, slot: jax.Array, tokens: jax.Array, prompt: jax.Array, fresh: jax.Array) -> jax.Array:
    """Return ``seen`` with ``tokens [n]`` entered for one slot, the first ``prompt`` of them as prompt.

    Ids beyond the vocabulary are padding. ``fresh`` forgets what the slot held.
    """
    row = jnp.where(fresh, jnp.zeros_like(seen[0]), seen[slot])
    is_prompt = jnp.arange(tokens.shape[0]) < prompt
    vocab = seen.shape[1]
    flags = jnp.zeros_like(row).at[jnp.where(is_prompt, tokens, vocab)].set(IN_PROMPT, mode="drop")
    times = jnp.zeros_like(row).at[jnp.where(is_prompt, vocab, tokens)].add(1, mode="drop")
    generated = jnp.minimum((row & (IN_PROMPT - 1)) + times, IN_PROMPT - 1)
    return lax.dynamic_update_index_in_dim(seen, (row & IN_PROMPT) | flags | generated, slot, axis=0)
