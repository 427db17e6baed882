"""Weights of 2 to 8 bits with scales for groups of them, as GGUF files have them; rows of x come in 8 bits."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from asurge.models.formats.interface import Parts, RawSource
from asurge.ops.grouped import (
    GROUP,
    RawMatrix,
    grouped_argmax,
    grouped_linear,
    pack_parts,
    packed_bytes,
    take_grouped_rows,
    unpackable,
)


class GroupedFormat:
    """Strips of codes as they are stored; layers, and parts of a layer's weight, may be of different types."""

    name = "grouped"
    depth = GROUP
    looks_up = True

    def holds(self, weight: jax.Array | RawSource) -> bool:
        """Whether a weight is stored in types that it takes."""
        matrices = None if isinstance(weight, jax.Array) else weight.raw()
        return matrices is not None and all(unpackable(one.type, one.columns, one.depth) is None for one in matrices)

    def pack(self, weights: Sequence[jax.Array | RawSource], *, gated: bool, free: bool = True) -> Parts:
        room = _huge_pages(sum(packed_bytes(_raw(weight)) for weight in weights))
        tables, at = [], 0
        for weight in weights:
            table, at = pack_parts(_raw(weight), room, at, gated=gated)
            tables.append(table)
            if not isinstance(weight, jax.Array):
                weight.note_read()
        return {"codes": jax.device_put(room), "strips": jnp.asarray(np.stack(tables))}

    def linear(self, x: jax.Array, parts: Parts, **surroundings: Any) -> jax.Array:
        return grouped_linear(x, parts["codes"], parts["strips"], **surroundings)

    def argmax(self, x: jax.Array, parts: Parts, **choice: Any) -> jax.Array:
        return grouped_argmax(x, parts["codes"], parts["strips"], **choice)

    def take(self, parts: Parts, tokens: jax.Array, depth: int) -> jax.Array:
        return take_grouped_rows(parts["codes"], parts["strips"], tokens, depth)

    def read_bytes(self, columns: int, depth: int, item_bytes: int) -> int:
        """Of weights in about 5 bits; `asurge.ops.grouped.packed_bytes` says how many they are of certain types."""
        return columns * depth * 5 // 8


GROUPED = GroupedFormat()


def _raw(weight: jax.Array | RawSource) -> list[RawMatrix]:
    matrices = None if isinstance(weight, jax.Array) else weight.raw()
    assert matrices is not None, "it was asked whether it holds these"
    return matrices


def _huge_pages(size: int) -> np.ndarray:
    """Memory that JAX on CPU takes as it is. It is there when it is written to: near the thread that does."""
    memory = mmap.mmap(-1, max(size, 1))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, size)
