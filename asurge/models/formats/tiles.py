"""Weights as tiles of bf16 or int8, those of all layers together (`asurge.ops.packed`)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from asurge.models.formats.interface import RawSource
from asurge.ops.native.huge_pages import zeros
from asurge.ops.packed import pack, pack_into

_ALIGNMENT = 64


def pack_tiles(
    weights: Sequence[jax.Array | RawSource], dtype: jnp.dtype, *, gated: bool, free: bool
) -> tuple[jax.Array, jax.Array | None]:
    """``[layers, ...]`` and, in int8, scales ``[layers, columns]``, from each layer's ``[columns, depth]``."""
    first = jax.eval_shape(pack, jax.ShapeDtypeStruct(weights[0].shape, dtype))
    stack, scales = zeros((len(weights), *first.shape), first.dtype), []
    host = room_for(weights[0].shape, jnp.dtype(jnp.bfloat16))
    for layer, weight in enumerate(weights):
        if not isinstance(weight, jax.Array):
            weight.read_into(host)
        plain = weight if isinstance(weight, jax.Array) else host
        stack, scale = _put(stack, plain, np.int32(layer), gated=gated)
        scales.append(scale)
        stack.block_until_ready()  # what it was made of may go, or change
        if free and isinstance(weight, jax.Array):
            weight.delete()
    return stack, stacked(scales) if dtype == jnp.int8 else None


_put = jax.jit(pack_into, static_argnames="gated", donate_argnums=0)


def stacked(small: Sequence[jax.Array]) -> jax.Array:
    """Stack arrays on the host: nothing is compiled."""
    return jnp.asarray(np.stack([np.asarray(one) for one in small]))


def room_for(shape: tuple[int, ...], dtype: jnp.dtype) -> np.ndarray:
    """Memory that JAX on CPU takes as it is, without a copy. It is there when it is written to."""
    size = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % _ALIGNMENT
    return room[begin : begin + size].view(dtype).reshape(shape)
