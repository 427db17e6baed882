"""Mixture of experts: each token goes to a few of many feed-forwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from asurge.ops.norm import Activation, gate

_OUTPUTS_LAST = lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[0]
)


def route(logits: jax.Array, per_token: int, *, normalize: bool, sigmoid: bool = False) -> tuple[jax.Array, jax.Array]:
    """Route tokens to experts: weights float32 and experts int32, ``[tokens, per_token]``.

    Args:
        logits: float32 ``[tokens, experts]``.
        normalize: the weights of a token's experts add up to 1; otherwise to what softmax over all gives them.
        sigmoid: weights are the sigmoid of logits instead.
    """
    if sigmoid:  # after the choice: sigmoids of large logits are equal
        best, experts = lax.top_k(logits, per_token)
        weights = jax.nn.sigmoid(best)
    else:
        weights, experts = lax.top_k(jax.nn.softmax(logits, axis=-1), per_token)
    if normalize:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return weights, experts.astype(jnp.int32)


def mix(
    x: jax.Array,
    weights: jax.Array,
    experts: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    activation: Activation,
    *,
    weigh_input: bool = False,
) -> jax.Array:
    """``x [tokens, hidden]`` through each token's experts, weighted: ``[tokens, hidden]`` in the dtype of ``x``.

    In the form that is fast on the platform (`benchmarks/experts.py`): XLA:CPU has no grouped product, and in its place
    multiplies every expert by all tokens; there, only experts that got a token do so.

    Args:
        weights, experts: of `route`.
        gate_up: ``[experts, 2 * inner, hidden]``, gate first.
        down: ``[experts, hidden, inner]``.
        weigh_input: weights scale what goes into an expert (Llama 4), not what comes out.
    """
    form = mix_looped if jax.default_backend() == "cpu" else mix_grouped
    return form(x, weights, experts, gate_up, down, activation, weigh_input=weigh_input)


def mix_grouped(
    x: jax.Array,
    weights: jax.Array,
    experts: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    activation: Activation,
    *,
    weigh_input: bool = False,
) -> jax.Array:
    """`mix` by grouped products: tokens are sorted by expert, and each expert multiplies those it got."""
    tokens, per_token = experts.shape
    order = jnp.argsort(experts.reshape(-1), stable=True)
    sizes = jnp.bincount(experts.reshape(-1), length=gate_up.shape[0]).astype(jnp.int32)
    rows, shares = x[order // per_token], weights.reshape(-1)[order][:, None]
    rows = (rows * shares).astype(x.dtype) if weigh_input else rows
    inner = gate(_grouped(rows, gate_up, sizes).astype(x.dtype), activation)
    came = _grouped(inner, down, sizes)
    came = came if weigh_input else came * shares
    return jnp.zeros((tokens, x.shape[1]), jnp.float32).at[order // per_token].add(came).astype(x.dtype)


def mix_looped(
    x: jax.Array,
    weights: jax.Array,
    experts: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
    activation: Activation,
    *,
    weigh_input: bool = False,
) -> jax.Array:
    """`mix` by a loop over the experts: one that got any token multiplies all tokens, the others read nothing."""
    rows, count = jnp.arange(x.shape[0])[:, None], gate_up.shape[0]
    shares = jnp.zeros((x.shape[0], count), jnp.float32).at[rows, experts].add(weights)

    def visit(index: jax.Array, total: jax.Array) -> jax.Array:
        share = shares[:, index, None]

        def add() -> jax.Array:
            # Without a bias, a token that is scaled to zero comes out as zero.
            rows = (x * share).astype(x.dtype) if weigh_input else x
            inner = gate(_product(rows, gate_up[index]).astype(x.dtype), activation)
            came = _product(inner, down[index])
            return total + (came if weigh_input else came * share)

        added: jax.Array = lax.cond(jnp.any(share > 0), add, lambda: total)
        return added

    mixed: jax.Array = lax.fori_loop(0, count, visit, jnp.zeros(x.shape, jnp.float32))
    return mixed.astype(x.dtype)


class PlacedTokens(NamedTuple):
    """Tokens in the order in which kernels multiply them: those of an expert together, from a multiple of 16 rows on.

    Attributes:
        rows: int32 ``[tokens, per_token]``, the row of each token at each of its experts; beyond the last where it has none.
        tokens: int32 ``[rows]``, the token of each row; any where there is none.
        live: int32 ``[rows / 16]``, how many of each 16 rows have one, the first ones.
        experts: int32 ``[rows / 16]``, whose rows they are.
    """

    rows: jax.Array
    tokens: jax.Array
    live: jax.Array
    experts: jax.Array


def place_tokens(experts: jax.Array, live: jax.Array | None, count: int, tile: int = 16) -> PlacedTokens:
    """Sort tokens by expert.

    Args:
        experts: int32 ``[tokens, per_token]``, of `route`.
        live: how many of each 16 tokens are real (`asurge.ops.packed.packed_linear`); the others go to no expert.
        count: of experts.
    """
    tokens, per_token = experts.shape
    if live is not None:
        real = (jnp.arange(tile) < live[:, None]).reshape(-1)[:tokens]
        experts = jnp.where(real[:, None], experts, count)
    flat = experts.reshape(-1)
    chosen = flat[:, None] == jnp.arange(count)
    sizes = chosen.sum(axis=0, dtype=jnp.int32)
    tiles = -(-sizes // tile)
    ends = jnp.cumsum(tiles)
    first = (ends - tiles) * tile
    before = jnp.cumsum(chosen, axis=0, dtype=jnp.int32) - 1
    number = tile * (tokens * per_token // tile + min(count, tokens * per_token))
    within = jnp.take_along_axis(before, jnp.minimum(flat, count - 1)[:, None], axis=1)[:, 0]
    rows = jnp.where(flat < count, first[jnp.minimum(flat, count - 1)] + within, number)
    owners = jnp.zeros(number, jnp.int32).at[rows].set(jnp.arange(len(flat), dtype=jnp.int32) // per_token, mode="drop")
    at = jnp.arange(number // tile, dtype=jnp.int32)
    whose = jnp.minimum((at[:, None] >= ends).sum(axis=1, dtype=jnp.int32), count - 1)
    left = sizes[whose] - (at * tile - first[whose])
    filled = jnp.where(at < ends[-1], jnp.clip(left, 0, tile), 0)
    return PlacedTokens(rows.reshape(experts.shape), owners, filled, whose)


def mix_placed(
    x: jax.Array,
    weights: jax.Array,
    placed: PlacedTokens,
    gate_up: Callable[[jax.Array], jax.Array],
    down: Callable[[jax.Array], jax.Array],
    *,
    weigh_input: bool = False,
) -> jax.Array:
    """`mix` by kernels that multiply each 16 rows by one expert's weights: only experts that got a token are read.

    Args:
        gate_up, down: products of ``[rows, ...]``, placed; the first one gates.
    """
    rows = x[placed.tokens]
    if weigh_input:
        share = jnp.zeros(len(rows), jnp.float32).at[placed.rows.reshape(-1)].set(weights.reshape(-1), mode="drop")
        rows = (rows * share[:, None]).astype(x.dtype)
    came = down(gate_up(rows)).at[placed.rows].get(mode="fill", fill_value=0)
    came = came.astype(jnp.float32) if weigh_input else came * weights[..., None]
    return came.sum(axis=1).astype(x.dtype)


def _grouped(x: jax.Array, weight: jax.Array, sizes: jax.Array) -> jax.Array:
    """``x [rows, in]`` by groups of rows times ``weight [groups, out, in]``, in float32."""
    product: jax.Array = lax.ragged_dot_general(x, weight, sizes, _OUTPUTS_LAST, preferred_element_type=jnp.float32)
    return product


def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """``x [rows, in]`` times ``weight [out, in]``, in float32."""
    return lax.dot_general(x, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
