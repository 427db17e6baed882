"""Weights of 2 to 8 bits with scales for groups of them, as GGUF files have them; rows of x come in 8 bits."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np

from asurge.models.formats.interface import Parts, RawSource, WeightFormat
from asurge.models.formats.tiles import room_for
from asurge.ops.grouped import (
    BLOCK_BYTES,
    GROUP,
    MatrixType,
    RawMatrix,
    fits_strips,
    grouped_argmax,
    grouped_linear,
    pack_parts,
    packed_bytes,
    quantize_rows,
    take_grouped_rows,
)
from asurge.ops.packed import Choice, Surroundings


class GroupedFormat:
    """Strips of codes as they are stored; layers, and parts of a layer's weight, may be of different types."""

    name = "grouped"
    depth = GROUP
    looks_up = True

    @property
    def head(self) -> WeightFormat:
        return self

    def holds(self, weight: jax.Array | RawSource) -> bool:
        """Whether a weight is stored in types that it takes."""
        types = None if isinstance(weight, jax.Array) else weight.raw_types()
        return types is not None and all(map(fits_strips, types))

    def pack(self, weights: Sequence[jax.Array | RawSource], *, gated: bool, free: bool = True) -> Parts:
        room = _huge_pages(sum(packed_bytes(self._types(weight)) for weight in weights))
        tables, at = [], 0
        for weight, matrices in zip(weights, self._matrices(weights), strict=True):
            table, at = pack_parts(matrices, room, at, gated=gated)
            tables.append(table)
            if free and isinstance(weight, jax.Array):
                weight.delete()
        return {"codes": jax.device_put(room), "strips": jnp.asarray(np.stack(tables))}

    def _types(self, weight: jax.Array | RawSource) -> list[MatrixType]:
        types = None if isinstance(weight, jax.Array) else weight.raw_types()
        assert types is not None, "it was asked whether it holds these"
        return types

    def _matrices(self, weights: Sequence[jax.Array | RawSource]) -> Iterator[list[RawMatrix]]:
        """Each weight's, read as it is packed."""
        for weight in weights:
            assert not isinstance(weight, jax.Array)
            yield weight.raw()
            weight.note_read()

    def linear(self, x: jax.Array, parts: Parts, **surroundings: Unpack[Surroundings]) -> jax.Array:
        return grouped_linear(x, parts["codes"], parts["strips"], **surroundings)

    def argmax(self, x: jax.Array, parts: Parts, *, candidates: int, **choice: Unpack[Choice]) -> jax.Array:
        return grouped_argmax(x, parts["codes"], parts["strips"], candidates=candidates, **choice)

    def take(self, parts: Parts, tokens: jax.Array, depth: int) -> jax.Array:
        return take_grouped_rows(parts["codes"], parts["strips"], tokens, depth)

    def read_bytes(self, columns: int, depth: int, item_bytes: int) -> int:
        """Bytes that a product reads of weights in about 5 bits.

        `asurge.ops.grouped.packed_bytes` counts them for weights of certain types.
        """
        return columns * depth * 5 // 8


class QuantizedFormat(GroupedFormat):
    """The same of weights that are floating-point numbers in their checkpoint.

    Args:
        matrix_type: what they become.
        head: the format of the head; None: this one.
    """

    def __init__(self, name: str, matrix_type: str, head: WeightFormat | None = None) -> None:
        self.name, self._type, self._head = name, matrix_type, head

    @property
    def head(self) -> WeightFormat:
        return self if self._head is None else self._head

    def read_bytes(self, columns: int, depth: int, item_bytes: int) -> int:
        return columns * depth // GROUP * BLOCK_BYTES[self._type]

    def _types(self, weight: jax.Array | RawSource) -> list[MatrixType]:
        columns, depth = weight.shape
        return [MatrixType(self._type, columns, depth)]

    def _matrices(self, weights: Sequence[jax.Array | RawSource]) -> Iterator[list[RawMatrix]]:
        host = room_for(weights[0].shape, jnp.dtype(jnp.bfloat16))
        for weight in weights:
            if not isinstance(weight, jax.Array):
                weight.read_into(host)
            plain = np.asarray(weight) if isinstance(weight, jax.Array) else host
            yield [quantize_rows(np.ascontiguousarray(plain), self._type)]


GROUPED = GroupedFormat()
INT4 = QuantizedFormat("int4", "Q4_1", QuantizedFormat("int8 in groups", "Q8_0"))
"""Four bits with a scale and a minimum for each 32; the head, and an embedding that is also the head, in eight."""


def _huge_pages(size: int) -> np.ndarray:
    """Memory that JAX on CPU takes as it is. It is there when it is written to: near the thread that does."""
    memory = mmap.mmap(-1, max(size, 1))
    with suppress(OSError):  # a system without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, size)
