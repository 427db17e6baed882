"""Weights in bf16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp

from asurge.models.formats.interface import Parts, RawSource, WeightFormat
from asurge.models.formats.tiles import pack_tiles
from asurge.ops.packed import BF16_DEPTH, Choice, Surroundings, packed_argmax, packed_linear, take_rows


class Bfloat16Format:
    """Tiles of bf16, as the numbers are."""

    name = "bfloat16"
    depth = BF16_DEPTH
    looks_up = True

    @property
    def head(self) -> WeightFormat:
        return self

    def pack(self, weights: Sequence[jax.Array | RawSource], *, gated: bool, free: bool = True) -> Parts:
        tiles, _ = pack_tiles(weights, jnp.dtype(jnp.bfloat16), gated=gated, free=free)
        return {"tiles": tiles}

    def linear(self, x: jax.Array, parts: Parts, **surroundings: Unpack[Surroundings]) -> jax.Array:
        return packed_linear(x, parts["tiles"], **surroundings)

    def argmax(self, x: jax.Array, parts: Parts, *, candidates: int, **choice: Unpack[Choice]) -> jax.Array:
        return packed_argmax(x, parts["tiles"], candidates=candidates, **choice)

    def take(self, parts: Parts, tokens: jax.Array, depth: int) -> jax.Array:
        return take_rows(parts["tiles"], tokens)

    def read_bytes(self, columns: int, depth: int, item_bytes: int) -> int:
        return columns * depth * item_bytes


BFLOAT16 = Bfloat16Format()
