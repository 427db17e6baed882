"""Weights of 2 to 8 bits whose scales belong to groups of 16 or 32 numbers, as GGUF files have them, for the CPU kernels.

Codes are multiplied as they are, with rows of x quantised to 8 bits (a scale for each 16 numbers): nothing is widened. Strips of
16 columns lie in one array of bytes, in the order in which products read them (`asurge/ops/native/grouped.h`), and a table says
where each begins and what its type is: layers, and parts of one layer's weight, may differ.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from asurge.ops import native
from asurge.ops.packed import COLUMNS, Choice, Surroundings, call_argmax, call_linear

GROUP = 32
"""The depth of a weight is a multiple of this."""

BLOCK_BYTES = {"Q4_1": 20, "Q8_0": 34}
"""Bytes of a `GROUP` in the types that `quantize_rows` makes."""

LINE = 64
"""Strips begin at multiples of this many bytes."""

TYPES = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4",
)  # fmt: skip
"""The types of GGUF tensors that the kernels multiply; a table of strips has their indices."""


class MatrixType(NamedTuple):
    """A matrix that is not read yet: one of `TYPES`, or another name, its columns, and the numbers in each."""

    type: str
    columns: int
    depth: int


@dataclasses.dataclass(frozen=True, slots=True)
class RawMatrix:
    """A matrix as a GGUF file has it.

    Attributes:
        type: one of `TYPES`.
        rows: uint8 ``[columns, row_bytes]``, contiguous; mapped or in memory.
        depth: numbers in a row.
        order: int32 ``[columns]``: which row is each column's; None: as they are.
    """

    type: str
    rows: npt.NDArray[np.uint8]
    depth: int
    order: npt.NDArray[np.int32] | None = None

    @property
    def columns(self) -> int:
        """Its rows are columns of the product."""
        return len(self.rows)

    def halves(self) -> list[RawMatrix]:
        """Gate and up of a matrix that holds both, one below the other."""
        middle = self.columns // 2
        return [dataclasses.replace(self, rows=rows) for rows in (self.rows[:middle], self.rows[middle:])]


def fits_strips(matrix: MatrixType) -> bool:
    """Whether a matrix can be put into strips."""
    return matrix.type in TYPES and matrix.columns % COLUMNS == 0 and matrix.depth % GROUP == 0


def strip_bytes(matrix_type: str, depth: int) -> int:
    """Bytes of one strip; those of a whole number of lines."""
    library = _library()
    return int(library.asurge_grouped_strip_bytes(TYPES.index(matrix_type), depth))


def packed_bytes(parts: Sequence[MatrixType | RawMatrix]) -> int:
    """Bytes of some matrices' strips."""
    return sum(-(-part.columns // COLUMNS) * strip_bytes(part.type, part.depth) for part in parts)


def pack_parts(
    parts: Sequence[RawMatrix], out: npt.NDArray[np.uint8], at: int, *, gated: bool = False
) -> tuple[npt.NDArray[np.int32], int]:
    """Put a layer's weight, matrices one below the other, into strips from byte ``at`` of ``out`` on.

    Args:
        gated: there are gate and up, as two matrices or in one; their strips lie in turns.

    Returns:
        The table ``[strips, 2]`` of the strips, and the byte after the last one.
    """
    if gated and len(parts) == 1:
        parts = parts[0].halves()
    sizes = [strip_bytes(part.type, part.depth) for part in parts]
    tables = []
    for index, (part, size) in enumerate(zip(parts, sizes, strict=True)):
        strips = -(-part.columns // COLUMNS)
        begin, stride = (at + sum(sizes[:index]), sum(sizes)) if gated else (at, size)
        order = np.full(strips * COLUMNS, -1, np.int32)
        order[: part.columns] = np.arange(part.columns) if part.order is None else part.order
        _pack(part, order, out[begin:], stride)
        lines = begin // LINE + np.arange(strips, dtype=np.int64) * (stride // LINE)
        types = np.full(strips, TYPES.index(part.type), np.int32)
        tables.append(np.stack((lines.astype(np.uint32).view(np.int32), types), 1))
        at = at if gated else at + strips * size
    if not gated:
        return np.concatenate(tables), at
    return np.stack(tables, 1).reshape(-1, 2), at + len(tables[0]) * sum(sizes)


def quantize_rows(weight: npt.NDArray[Any], matrix_type: str) -> RawMatrix:
    """Quantise weights in bf16, ``[columns, depth]``, to Q4_1 or Q8_0.

    Q4_1 takes the scale and minimum with the least squared error for the codes they give, Q8_0 the scale of the largest.
    """
    columns, depth = weight.shape
    if depth % GROUP or weight.dtype != jnp.bfloat16 or not weight.flags.c_contiguous:
        raise ValueError(
            f"weights of {weight.dtype} {list(weight.shape)} cannot be quantised: bf16, by groups of {GROUP}"
        )
    rows = np.empty((columns, depth // GROUP * BLOCK_BYTES[matrix_type]), np.uint8)
    pointer = ctypes.c_void_p
    _library().asurge_grouped_quantize(
        ctypes.c_int32(TYPES.index(matrix_type)),
        pointer(weight.ctypes.data),
        ctypes.c_int32(columns),
        ctypes.c_int32(depth),
        pointer(rows.ctypes.data),
    )
    return RawMatrix(matrix_type, rows, depth)


def grouped_linear(
    x: jax.Array, weight: jax.Array, strips: jax.Array, **surroundings: Unpack[Surroundings]
) -> jax.Array:
    """`asurge.ops.packed.packed_linear` with grouped weights.

    Args:
        weight: uint8 ``[bytes]``, of all layers.
        strips: int32 ``[layers, columns / 16, 2]``: where each begins, in lines, and its type.
    """
    return call_linear("asurge_grouped_linear", strips.shape[1] * COLUMNS, x, weight, strips, **surroundings)


def grouped_argmax(
    x: jax.Array, weight: jax.Array, strips: jax.Array, *, candidates: int, **choice: Unpack[Choice]
) -> jax.Array:
    """`asurge.ops.packed.packed_argmax` with grouped weights."""
    return call_argmax("asurge_grouped_linear", x, weight, strips, candidates=candidates, **choice)


def take_grouped_rows(weight: jax.Array, strips: jax.Array, rows: jax.Array, depth: int) -> jax.Array:
    """Rows of a table that is packed, as an embedding looks them up: bf16 ``[tokens, depth]``."""
    out = jax.ShapeDtypeStruct((rows.shape[0], depth), jnp.bfloat16)
    taken: jax.Array = jax.ffi.ffi_call("asurge_grouped_rows", out)(weight, strips, rows.astype(jnp.int32))
    return taken


def _pack(part: RawMatrix, order: npt.NDArray[np.int32], out: npt.NDArray[np.uint8], stride: int) -> None:
    rows = np.ascontiguousarray(part.rows)
    pointer = ctypes.c_void_p
    _library().asurge_grouped_pack(
        ctypes.c_int32(TYPES.index(part.type)),
        pointer(rows.ctypes.data),
        ctypes.c_int64(rows.shape[1]),
        pointer(order.ctypes.data),
        ctypes.c_int32(len(order)),
        ctypes.c_int32(part.depth),
        pointer(out.ctypes.data),
        ctypes.c_int64(stride),
    )


def _library() -> ctypes.CDLL:
    library = native.loaded() if native.unavailable() is None else None
    assert library is not None, "the kernels were chosen"
    library.asurge_grouped_strip_bytes.restype = ctypes.c_int64
    return library
