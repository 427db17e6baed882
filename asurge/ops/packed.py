"""Matrix products over weights packed for the tile registers of a CPU; see `asurge.ops.native`.

Packed weights are ``[columns / 16, depth / 32, 16, 16, 2]`` in bf16 and ``[columns / 16, depth / 64, 16, 16, 4]`` in int8:
one KiB after another in the order a product reads them. Those of many layers lie one behind the other in one array, and a kernel is
told the number of one: what a call of a compiled program costs grows with its arrays, and one program serves all layers. bf16 is stored as bit patterns in uint16: XLA:CPU widens a whole
bf16 table to float32 before it looks anything up.
"""

from __future__ import annotations

from typing import Any, TypedDict, Unpack, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from asurge.ops import native
from asurge.ops.norm import Activation

COLUMNS = 16
LIVE_ROWS = 16
BF16_DEPTH, INT8_DEPTH = 32, 64


def pack(weight: jax.Array) -> jax.Array:
    """``[columns, depth]`` in bf16 or int8 -> packed; columns are padded with zeros to a multiple of 16."""
    group = 4 if weight.dtype == jnp.int8 else 2
    weight = jnp.pad(weight, ((0, -weight.shape[0] % COLUMNS), (0, 0)))
    columns, depth = weight.shape
    tiles = weight.reshape(columns // COLUMNS, COLUMNS, depth // (16 * group), 16, group).transpose(0, 2, 3, 1, 4)
    return tiles if weight.dtype == jnp.int8 else lax.bitcast_convert_type(tiles, jnp.uint16)


def pack_into(
    stack: jax.Array, weight: jax.Array, layer: int | jax.Array = 0, *, gated: bool = False
) -> tuple[jax.Array, jax.Array | None]:
    """A layer's weight into its place among others, by a kernel, in place where ``stack`` is donated.

    Args:
        stack: ``[layers, ...]``, each as `pack` makes it; in int8, the weight is quantised (`asurge.ops.linear.quantize_int8`).
        weight: bf16 ``[columns, depth]``.
        layer: which.
        gated: as with `interleave`.

    Returns:
        The stack, and with int8 the scales of this layer's columns, padded as they are.
    """
    int8 = stack.dtype == jnp.int8
    made = (stack, jax.ShapeDtypeStruct((stack.shape[1] * COLUMNS if int8 else 0,), jnp.float32))
    call = jax.ffi.ffi_call("asurge_pack", made, input_output_aliases={0: 0})
    stack, scale = call(stack, weight, native.number(layer), gated=gated)
    return stack, scale if int8 else None


def interleave(gate_up: jax.Array) -> jax.Array:
    """``[2 * inner, ...]``, gate first -> blocks of 16 rows, gate and up in turn."""
    inner = gate_up.shape[0] // 2
    blocks = gate_up.reshape(2, inner // COLUMNS, COLUMNS, *gate_up.shape[1:])
    return jnp.swapaxes(blocks, 0, 1).reshape(gate_up.shape)


def take_rows(table: jax.Array, rows: jax.Array) -> jax.Array:
    """Look up embeddings: ``rows [tokens]`` of a matrix, in its dtype.

    A bf16 matrix may be given as bit patterns, or packed, as is a table that is also a head.
    """
    if table.dtype != jnp.uint16:
        return table[rows]
    packed = table.ndim > 2
    taken = table.reshape(table.shape[-5:])[rows // COLUMNS, :, :, rows % COLUMNS] if packed else table[rows]
    return lax.bitcast_convert_type(taken.reshape(rows.shape[0], -1), jnp.bfloat16)


def bit_patterns(table: jax.Array) -> jax.Array:
    """A bf16 matrix for `take_rows` inside a loop, where XLA:CPU would widen all of it at each dispatch."""
    return lax.bitcast_convert_type(table, jnp.uint16)


class Surroundings(TypedDict, total=False):
    """Operations that a kernel fuses before and after a product.

    Attributes:
        norm: bf16 ``[depth]``; x is RMS-normalised first.
        epsilon: of that normalisation.
        bias: bf16 ``[columns]``.
        residual: bf16 ``[rows, columns]``, added to a bf16 result.
        live: int32 ``[rows / 16]``, rounded up: how many of each 16 rows matter, the first ones; what comes out for the others is
            undefined.
        gated: columns are `interleave`\\ d; the result is ``activation(gate) * up``.
        activation: of the gate.
        dtype: bf16, or float32 without residual and gate.
        layer: int32, of weight, scale, norm and bias, where they are ``[layers, ...]``.
        row_layers: int32 ``[rows / 16]``, rounded up: the layer by which each 16 rows are multiplied, as mixtures of experts have it;
            without ``layer``, norm and bias.
    """

    norm: jax.Array | None
    epsilon: float
    bias: jax.Array | None
    residual: jax.Array | None
    live: jax.Array | None
    gated: bool
    activation: Activation
    dtype: jnp.dtype
    layer: int | jax.Array
    row_layers: jax.Array | None


class Choice(TypedDict, total=False):
    """Options of a kernel that finds the largest product of each row.

    Attributes:
        norm, epsilon, live: as in `Surroundings`.
        allowed: uint32 ``[rows, candidates / 32]``, rounded up: only columns whose bits are set compete (see
            `asurge.ops.logits.allow`). If none are, the result is 0.
    """

    norm: jax.Array | None
    epsilon: float
    live: jax.Array | None
    allowed: jax.Array | None


def packed_linear(
    x: jax.Array, weight: jax.Array, scale: jax.Array | None = None, **surroundings: Unpack[Surroundings]
) -> jax.Array:
    """``residual + act(rms_norm(x) @ weight.T + bias)`` in one pass, rounded to bf16 where plain JAX rounds.

    Args:
        x: bf16 ``[rows, depth]``.
        weight: packed, bf16 or int8. With int8, rows of x are quantised as they come (symmetric, by their largest).
        scale: float32 ``[columns]`` of an int8 weight.

    Returns:
        ``[rows, columns]``, or half the columns where gated.
    """
    columns = weight.shape[-5] * COLUMNS
    return call_linear("asurge_linear", columns, x, *_operands(weight, scale), **surroundings)


def packed_argmax(
    x: jax.Array, weight: jax.Array, scale: jax.Array | None = None, *, candidates: int, **choice: Unpack[Choice]
) -> jax.Array:
    """Argmax of each row of the `packed_linear` with these arguments, the first of ``candidates`` columns with the largest value.

    The products themselves are never stored: at 64 rows of 49152 columns that saves 12 MB of fresh memory a step.
    """
    return call_argmax("asurge_linear", x, *_operands(weight, scale), candidates=candidates, **choice)


Operand = jax.Array | npt.NDArray[Any]


def _operands(weight: jax.Array, scale: jax.Array | None) -> tuple[jax.Array, Operand]:
    return weight if weight.ndim == 6 else weight[None], native.given(scale, jnp.float32)


def call_linear(
    target: str, columns: int, x: jax.Array, weight: jax.Array, beside: Operand, **surroundings: Unpack[Surroundings]
) -> jax.Array:
    """Call a kernel that multiplies.

    Args:
        target: of XLA's FFI.
        beside: what lies beside the weight in its format.
    """
    given = surroundings
    gated = given.get("gated", False)
    dtype = given.get("dtype", jnp.dtype(jnp.bfloat16))
    out = jax.ShapeDtypeStruct((x.shape[0], columns // (2 if gated else 1)), dtype)
    return _call(target, out, x, weight, beside, given, None, 0)


def call_argmax(
    target: str, x: jax.Array, weight: jax.Array, beside: Operand, *, candidates: int, **choice: Unpack[Choice]
) -> jax.Array:
    """Call a kernel that finds the largest product of each row; see `call_linear`."""
    out = jax.ShapeDtypeStruct((x.shape[0],), jnp.int32)
    allowed = choice.pop("allowed", None)
    return _call(target, out, x, weight, beside, cast(Surroundings, choice), allowed, candidates)


def _call(
    target: str,
    out: jax.ShapeDtypeStruct,
    x: jax.Array,
    weight: jax.Array,
    beside: Operand,
    given: Surroundings,
    allowed: jax.Array | None,
    candidates: int,
) -> jax.Array:
    result: jax.Array = jax.ffi.ffi_call(target, out)(
        x,
        weight,
        beside,
        native.given(given.get("norm"), jnp.bfloat16),
        native.given(given.get("bias"), jnp.bfloat16),
        native.given(given.get("residual"), jnp.bfloat16),
        native.given(given.get("live"), jnp.int32),
        native.given(allowed, jnp.uint32),
        native.given(given.get("row_layers"), jnp.int32),
        native.number(given.get("layer", 0)),
        epsilon=np.float32(given.get("epsilon", 0.0)),
        gated=given.get("gated", False),
        gelu=given.get("activation") == "gelu_tanh",
        candidates=np.int32(candidates),
    )
    return result
