"""Weights in 8 bits, with a scale for each output channel; activations are quantised per token as they come (W8A8, dynamic)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp

from asurge.models.formats.interface import Parts, RawSource, WeightFormat
from asurge.models.formats.tiles import pack_tiles
from asurge.ops.packed import INT8_DEPTH, Choice, Surroundings, packed_argmax, packed_linear

SCALE_BYTES = 4


class Int8Format:
    """Tiles of int8, and float32 scales."""

    name = "int8"
    depth = INT8_DEPTH
    looks_up = False

    @property
    def head(self) -> WeightFormat:
        return self

    def pack(self, weights: Sequence[jax.Array | RawSource], *, gated: bool, free: bool = True) -> Parts:
        tiles, scale = pack_tiles(weights, jnp.dtype(jnp.int8), gated=gated, free=free)
        assert scale is not None
        return {"tiles": tiles, "scale": scale}

    def linear(self, x: jax.Array, parts: Parts, **surroundings: Unpack[Surroundings]) -> jax.Array:
        return packed_linear(x, parts["tiles"], parts["scale"], **surroundings)

    def argmax(self, x: jax.Array, parts: Parts, *, candidates: int, **choice: Unpack[Choice]) -> jax.Array:
        return packed_argmax(x, parts["tiles"], parts["scale"], candidates=candidates, **choice)

    def take(self, parts: Parts, tokens: jax.Array, depth: int) -> jax.Array:
        raise NotImplementedError("an embedding keeps its precision")

    def read_bytes(self, columns: int, depth: int, item_bytes: int) -> int:
        return columns * (depth + SCALE_BYTES)


INT8 = Int8Format()
