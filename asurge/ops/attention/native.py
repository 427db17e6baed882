"""Attention over pages by our own CPU kernel: from projection to mixed values in one pass, tiles read in memory order."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from asurge.ops import native
from asurge.ops.attention.interface import AttentionShape, Heads, Pages, Rows, Window
from asurge.ops.attention.xla import storage_dtype
from asurge.ops.native.huge_pages import zeros

_TILE = 32
_SCALE_BYTES = 4
_MAX_HEAD_DIM = 256


class NativeAttention:
    """`asurge.ops.attention.AttentionBackend` on x86-64 CPUs with AVX2, AVX-512 or AMX.

    Flash attention (Dao et al., 2022) over ragged rows, in products of tiles. Pages are
    ``[levels, pages, kv_heads, page_size, head_dim]``, but hold keys as ``[page_size / 16, head_dim / 32, 16, 16 tokens, 2]`` and
    values as ``[page_size / 32, head_dim / 16, 16, 16 dims, 2]``, so that a tile is one contiguous KiB. In 8 bits they are bytes,
    plus four for each token of a head: its scale (``native/kv_pages.h``).
    """

    kernels = "native"
    platforms = frozenset({"cpu"})
    skips_padding = True
    shares_arrays = True

    def __init__(self, shape: AttentionShape) -> None:
        self._shape = shape
        last = shape.head_dim + _SCALE_BYTES if shape.int8_pages else shape.head_dim
        self._page = (shape.num_kv_heads, shape.page_size, last)
        self._stored = jnp.dtype(jnp.uint8) if shape.int8_pages else storage_dtype(shape.dtype)

    @staticmethod
    def unable(shape: AttentionShape) -> str | None:
        """Why this backend cannot serve a shape, or None."""
        if shape.dtype != jnp.bfloat16:
            return f"dtype={shape.dtype.name} is not bfloat16"
        if shape.head_dim % _TILE or shape.head_dim > _MAX_HEAD_DIM:
            return f"head_dim={shape.head_dim} is not a multiple of {_TILE} up to {_MAX_HEAD_DIM}"
        if shape.page_size % _TILE:
            return f"page_size={shape.page_size} is not a multiple of {_TILE}"
        return native.unavailable()

    @property
    def page_bytes(self) -> int:
        return 2 * math.prod(self._page) * self._stored.itemsize

    def allocate(self, num_pages: int, levels: int = 1) -> Pages:
        shape = (levels, num_pages, *self._page)
        return ((zeros(shape, self._stored), zeros(shape, self._stored)),)

    def attend(
        self, heads: Heads, pages: Pages, rows: Rows, window: Window | None, level: int | jax.Array = 0
    ) -> tuple[jax.Array, Pages]:
        shape, (tokens, _, head_dim) = self._shape, heads.qkv.shape
        none = np.zeros((0,), jnp.bfloat16)
        if heads.q_norm is not None and heads.q_norm.dtype != jnp.bfloat16:
            heads = heads.normalised()  # the kernel rounds before it multiplies by the norm's weights
        ((keys, values),) = pages
        call = jax.ffi.ffi_call(
            "asurge_attention",
            (
                jax.ShapeDtypeStruct((tokens, shape.num_heads, head_dim), jnp.bfloat16),
                jax.ShapeDtypeStruct(keys.shape, keys.dtype),
                jax.ShapeDtypeStruct(values.shape, values.dtype),
            ),
            input_output_aliases={9: 1, 10: 2},
        )
        out, keys, values = call(
            heads.qkv,
            heads.cos,
            heads.sin,
            none if heads.q_norm is None else heads.q_norm,
            none if heads.k_norm is None else heads.k_norm,
            rows.start,
            rows.length,
            rows.first,
            rows.page_table,
            keys,
            values,
            native.number(level),
            epsilon=np.float32(heads.epsilon),
            scale=np.float32(shape.scale),
            softcap=np.float32(shape.score_softcap or 0.0),
            decode=np.int32(rows.decode),
            window=np.int32(0 if window is None else window.size),
            chunked=np.bool_(window is not None and window.chunked),
        )
        return out, ((keys, values),)
