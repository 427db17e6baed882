"""Attention over pages on TPUs, by the ragged kernel that ships with JAX; XLA rotates and writes pages."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp

from asurge.ops.attention.interface import AttentionShape, Heads, LevelPages, Rows, SeparateLevels, Window
from asurge.ops.attention.xla import page_slots

_KERNEL = "jax.experimental.pallas.ops.tpu.ragged_paged_attention"
_LANES = 128
"""Heads are padded to a multiple of what a vector register holds in its last axis."""

_DTYPES = ("bfloat16", "float32")

_BLOCK_BYTES = 2 << 20
"""Keys and values copied at a time. The kernel's own choice for 8 KV heads of 128 and pages of 64 does not fit the 16 MiB of
vector memory that the compiler grants it on v5e."""

_BLOCK_QUERIES = 32

Kernel = Callable[..., jax.Array]
"""`jax.experimental.pallas.ops.tpu.ragged_paged_attention.ragged_paged_attention`."""


class TpuAttention(SeparateLevels):
    """`asurge.ops.attention.AttentionBackend` on TPUs.

    One array of pages per layer, ``[pages, page_size, 2 * kv_heads, lanes]``: key and value heads in turn, as the kernel
    wants them. Within a sequence the kernel guards against NaN past its end only, not in what causality or a window hides.

    Args:
        kernel: another one with the same signature, for tests without a TPU.
    """

    kernels = "pallas"
    platforms = frozenset({"tpu"})
    skips_padding = True

    def __init__(self, shape: AttentionShape, *, kernel: Kernel | None = None) -> None:
        self._shape, self._kernel = shape, kernel
        self._lanes = -(-shape.head_dim // _LANES) * _LANES

    @staticmethod
    def unable(shape: AttentionShape) -> str | None:
        """Why this backend cannot serve a shape, or None."""
        if shape.chunked:
            return "layers attend within chunks, and the kernel knows sliding windows only"
        if shape.int8_pages:
            return "pages are int8"
        if shape.dtype.name not in _DTYPES:
            return f"dtype={shape.dtype.name} is none of {', '.join(_DTYPES)}"
        packed = 4 // shape.dtype.itemsize
        words, rest = divmod(2 * shape.num_kv_heads, packed)
        if rest or not (words in (1, 2, 4) or words % 8 == 0):
            return f"num_kv_heads={shape.num_kv_heads} does not fill a TPU's tiles"
        if _spec(_KERNEL) is None:
            return f"jax {jax.__version__} has no {_KERNEL} any more"
        return None

    @property
    def page_bytes(self) -> int:
        shape = self._shape
        return 2 * shape.num_kv_heads * shape.page_size * self._lanes * shape.dtype.itemsize

    def allocate_level(self, num_pages: int) -> LevelPages:
        shape = self._shape
        return (jnp.zeros((num_pages, shape.page_size, 2 * shape.num_kv_heads, self._lanes), shape.dtype),)

    def attend_level(
        self, heads: Heads, pages: LevelPages, rows: Rows, window: Window | None
    ) -> tuple[jax.Array, LevelPages]:
        shape = self._shape
        q, k, v = (self._widen(x) for x in heads.split())
        both = jnp.stack((k, v), axis=2).reshape(k.shape[0], -1, self._lanes)
        page_ids, offsets = page_slots(rows, shape.page_size)
        written = pages[0].at[page_ids, offsets].set(both, mode="promise_in_bounds")
        taken, kv_lens, bounds = ragged(rows)
        kernel = self._kernel or _shipped()
        out = kernel(
            q if rows.prefill == 0 else q[_inverse(taken, rows.tokens)],
            written,
            kv_lens,
            rows.page_table,
            bounds,
            jnp.full((1,), rows.start.shape[0], jnp.int32),
            sm_scale=shape.scale,
            sliding_window=None if window is None else window.size,
            soft_cap=shape.score_softcap,
            num_kv_pages_per_block=min(max(1, _BLOCK_BYTES // self.page_bytes), rows.page_table.shape[1]),
            num_queries_per_block=_BLOCK_QUERIES,
        )
        out = out if rows.prefill == 0 else out[jnp.minimum(taken, rows.tokens - 1)]
        # The kernel does not touch what belongs to no sequence, and padding rows have read the null page.
        out = jnp.where(rows.real[:, None, None], out[..., : shape.head_dim], jnp.zeros((), out.dtype))
        return out, (written,)

    def _widen(self, x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, self._lanes - x.shape[-1])))


def ragged(rows: Rows) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A step's rows as the ragged kernel takes them: without gaps between them, and none of them empty.

    A padding row becomes a sequence of one token whose context is the first slot of its first page, the null page: the kernel
    would not wait for a copy that it started for an empty one.

    Returns:
        int32 ``[tokens]``, where a token goes (``rows.tokens`` or beyond: nowhere); int32 ``[rows]``, the context including the
        new tokens; int32 ``[rows + 1]``, where a row's tokens begin.
    """
    lengths = jnp.maximum(rows.length, 1)
    bounds = jnp.concatenate((jnp.zeros((1,), jnp.int32), jnp.cumsum(lengths, dtype=jnp.int32)))
    kv_lens = jnp.where(rows.length > 0, rows.start + rows.length, 1)

    def target(part: slice, at: jax.Array) -> jax.Array:
        return jnp.where(at < lengths[part, None], bounds[:-1][part, None] + at, rows.tokens)

    return rows.by_token(target), kv_lens, bounds


def _inverse(taken: jax.Array, tokens: int) -> jax.Array:
    """Find, for each place, the token that goes there; places without one take any."""
    return jnp.zeros((tokens,), jnp.int32).at[taken].set(jnp.arange(tokens, dtype=jnp.int32), mode="drop")


def _shipped() -> Kernel:
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    return ragged_paged_attention


def _spec(module: str) -> object | None:
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
