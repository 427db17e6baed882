"""Weights of 2 to 8 bits whose scales belong to groups of 16 or 32 numbers, as GGUF files have them, for the CPU kernels.

Codes are multiplied as they are, with rows of x quantised to 8 bits (a scale for each 16 numbers): nothing is widened. Strips of
16 columns lie in one array of bytes, in the order in which products read them (`asurge/ops/native/grouped.h`), and a table says
where each begins and what its type is: layers, and parts of one layer's weight, may differ.
"""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from asurge.ops import native
from asurge.ops.norm import Activation
from asurge.ops.packed import COLUMNS

GROUP = 32
"""The depth of a weight is a multiple of this."""

LINE = 64
"""Strips begin at multiples of this many bytes."""

TYPES = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4",
)  # fmt: skip
"""The types of GGUF tensors that the kernels multiply; a table of strips has their indices."""


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


def unpackable(matrix_type: str, columns: int, depth: int) -> str | None:
    """Why a matrix cannot be put into strips, or None."""
    if matrix_type not in TYPES:
        return f"weights are stored as {matrix_type}"
    if columns % COLUMNS or depth % GROUP:
        return f"a weight of [{columns}, {depth}] is not a multiple of [{COLUMNS}, {GROUP}]"
    return None


def strip_bytes(matrix_type: str, depth: int) -> int:
    """Bytes of one strip; those of a whole number of lines."""
    library = _library()
    return int(library.asurge_grouped_strip_bytes(TYPES.index(matrix_type), depth))


def packed_bytes(parts: Sequence[RawMatrix]) -> int:
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
    rows = np.empty((columns, depth // GROUP * {"Q4_1": 20, "Q8_0": 34}[matrix_type]), np.uint8)
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
    x: jax.Array,
    weight: jax.Array,
    strips: jax.Array,
    *,
    norm: jax.Array | None = None,
    epsilon: float = 0.0,
    bias: jax.Array | None = None,
    residual: jax.Array | None = None,
    live: jax.Array | None = None,
    gated: bool = False,
    activation: Activation = "silu",
    dtype: jnp.dtype = jnp.bfloat16,
    layer: int | jax.Array = 0,
    row_layers: jax.Array | None = None,
) -> jax.Array:
    """`asurge.ops.packed.packed_linear` with grouped weights.

    Args:
        weight: uint8 ``[bytes]``, of all layers.
        strips: int32 ``[layers, columns / 16, 2]``: where each begins, in lines, and its type.
    """
    columns = strips.shape[1] * COLUMNS // (2 if gated else 1)
    out = jax.ShapeDtypeStruct((x.shape[0], columns), dtype)
    gelu = activation == "gelu_tanh"
    return _call(
        out,
        x,
        weight,
        strips,
        norm,
        epsilon,
        bias,
        residual,
        live,
        None,
        gated=gated,
        gelu=gelu,
        layer=layer,
        row_layers=row_layers,
    )


def grouped_argmax(
    x: jax.Array,
    weight: jax.Array,
    strips: jax.Array,
    *,
    norm: jax.Array | None = None,
    epsilon: float = 0.0,
    live: jax.Array | None = None,
    allowed: jax.Array | None = None,
    candidates: int,
) -> jax.Array:
    """`asurge.ops.packed.packed_argmax` with grouped weights."""
    out = jax.ShapeDtypeStruct((x.shape[0],), jnp.int32)
    return _call(out, x, weight, strips, norm, epsilon, None, None, live, allowed, candidates=candidates)


def take_grouped_rows(weight: jax.Array, strips: jax.Array, rows: jax.Array, depth: int) -> jax.Array:
    """Rows of a table that is packed, as an embedding looks them up: bf16 ``[tokens, depth]``."""
    out = jax.ShapeDtypeStruct((rows.shape[0], depth), jnp.bfloat16)
    taken: jax.Array = jax.ffi.ffi_call("asurge_grouped_rows", out)(weight, strips, rows.astype(jnp.int32))
    return taken


def _call(
    out: jax.ShapeDtypeStruct,
    x: jax.Array,
    weight: jax.Array,
    strips: jax.Array,
    norm: jax.Array | None,
    epsilon: float,
    bias: jax.Array | None,
    residual: jax.Array | None,
    live: jax.Array | None,
    allowed: jax.Array | None,
    *,
    gated: bool = False,
    gelu: bool = False,
    candidates: int = 0,
    layer: int | jax.Array = 0,
    row_layers: jax.Array | None = None,
) -> jax.Array:
    result: jax.Array = jax.ffi.ffi_call("asurge_grouped_linear", out)(
        x,
        weight,
        strips,
        native.given(norm, jnp.bfloat16),
        native.given(bias, jnp.bfloat16),
        native.given(residual, jnp.bfloat16),
        native.given(live, jnp.int32),
        native.given(allowed, jnp.uint32),
        native.given(row_layers, jnp.int32),
        native.number(layer),
        epsilon=np.float32(epsilon),
        gated=gated,
        gelu=gelu,
        candidates=np.int32(candidates),
    )
    return result


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
