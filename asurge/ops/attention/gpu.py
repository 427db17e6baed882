"""Attention over pages on GPUs, by our own Pallas kernel; XLA rotates, writes pages and combines what was split."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from asurge.ops.attention.interface import AttentionShape, Heads, LevelPages, Rows, SeparateLevels, Window
from asurge.ops.attention.xla import page_slots

if TYPE_CHECKING:
    from asurge.ops.attention.gpu_kernel import Tuning

_DTYPES = ("bfloat16", "float16", "float32")
_HEAD_DIMS = (16, 32, 64, 128, 256)
_LEAST_CAPABILITY = 8.0
"""Ampere: the first with bfloat16 in tensor cores."""


class GpuAttention(SeparateLevels):
    """`asurge.ops.attention.AttentionBackend` on NVIDIA GPUs.

    Pages are ``[pages, kv_heads, page_size, head_dim]`` in the model's dtype: what a program reads of a page is contiguous.

    Args:
        decode, prefill: how the kernel is laid out; None: as `asurge.ops.attention.gpu_kernel.Tuning` has it.
        interpret: run the kernel as plain JAX operations, for tests without a GPU.
    """

    kernels = "pallas"
    platforms = frozenset({"gpu"})
    skips_padding = True

    def __init__(
        self,
        shape: AttentionShape,
        *,
        decode: Tuning | None = None,
        prefill: Tuning | None = None,
        interpret: bool = False,
    ) -> None:
        self._shape, self._decode, self._prefill, self._interpret = shape, decode, prefill, interpret

    @staticmethod
    def unable(shape: AttentionShape) -> str | None:
        """Why this backend cannot serve a shape on the first device, or None."""
        if shape.score_softcap is not None:
            return f"scores are soft-capped by {shape.score_softcap:g}"
        if shape.dtype.name not in _DTYPES:
            return f"dtype={shape.dtype.name} is none of {', '.join(_DTYPES)}"
        if shape.int8_pages:
            return "pages are int8"
        if shape.head_dim not in _HEAD_DIMS:
            return f"head_dim={shape.head_dim} is none of {', '.join(map(str, _HEAD_DIMS))}"
        if importlib.util.find_spec("jax.experimental.pallas.triton") is None:
            return f"jax {jax.__version__} has no Pallas for Triton any more"
        return _unable_device(jax.devices()[0])

    @property
    def page_bytes(self) -> int:
        shape = self._shape
        return 2 * shape.num_kv_heads * shape.page_size * shape.head_dim * shape.dtype.itemsize

    def allocate_level(self, num_pages: int) -> LevelPages:
        shape = self._shape
        one = (num_pages, shape.num_kv_heads, shape.page_size, shape.head_dim)
        return jnp.zeros(one, shape.dtype), jnp.zeros(one, shape.dtype)

    def attend_level(
        self, heads: Heads, pages: LevelPages, rows: Rows, window: Window | None
    ) -> tuple[jax.Array, LevelPages]:
        from asurge.ops.attention.gpu_kernel import Tuning, paged_attention

        q, k, v = heads.split()
        page_ids, offsets = page_slots(rows, self._shape.page_size)
        keys, values = (_write(old, new, page_ids, offsets) for old, new in zip(pages, (k, v), strict=True))
        tunings = (self._decode or default_decode(self._shape), self._prefill or Tuning())
        parts = [
            paged_attention(
                queries,
                keys,
                values,
                table,
                start,
                length,
                scale=self._shape.scale,
                window=window,
                tuning=tuning,
                interpret=self._interpret,
            )
            for (queries, table, start, length), tuning in zip(rows.split(q), tunings, strict=False)
        ]
        return jnp.concatenate([part.reshape(-1, *q.shape[1:]) for part in parts]), (keys, values)


def default_decode(shape: AttentionShape) -> Tuning:
    """The layout for decode: as few lanes as there are query heads to a KV head."""
    from asurge.ops.attention.gpu_kernel import Tuning

    return dataclasses.replace(Tuning(), lanes=1, block_tokens=128 if shape.head_dim <= 128 else 64)


def _unable_device(device: jax.Device) -> str | None:
    if device.platform != "gpu":  # tests interpret the kernel
        return None
    capability = str(device.compute_capability)
    try:
        enough = float(capability) >= _LEAST_CAPABILITY
    except ValueError:
        return f"{device.device_kind} is no NVIDIA GPU"
    return None if enough else f"{device.device_kind} has compute capability {capability}, below {_LEAST_CAPABILITY}"


def _write(pages: jax.Array, new: jax.Array, page_ids: jax.Array, offsets: jax.Array) -> jax.Array:
    """Put ``new [tokens, kv_heads, head_dim]`` at ``page_ids, offsets [tokens]``.

    Through a view with one axis before head_dim: XLA:GPU brings the axes that a scatter indexes to the front, and with
    more than one it would transpose all pages for it.
    """
    _, kv_heads, page_size, head_dim = pages.shape
    slots = (page_ids[:, None] * kv_heads + jnp.arange(kv_heads, dtype=jnp.int32)) * page_size + offsets[:, None]
    written = pages.reshape(-1, head_dim).at[slots.reshape(-1)].set(new.reshape(-1, head_dim), mode="promise_in_bounds")
    return written.reshape(pages.shape)
