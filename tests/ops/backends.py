"""Sequences served through a whole attention backend, and what each backend needs to run here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

from asurge.ops.attention import (
    AttentionBackend,
    AttentionShape,
    GpuAttention,
    Heads,
    Rows,
    TpuAttention,
    Window,
    XlaAttention,
    up_to_last,
)
from asurge.ops.attention.native import NativeAttention
from asurge.ops.packed import LIVE_ROWS
from tests.ops.reference import Span, reference

Array = npt.NDArray[Any]
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 4e-3}


def gpu(shape: AttentionShape) -> AttentionBackend:
    """The kernel in interpret mode."""
    return GpuAttention(shape, interpret=True)


def tpu(shape: AttentionShape) -> AttentionBackend:
    """Around a stand-in for the kernel, which interpret mode does not know how to run."""
    reason = TpuAttention.unable(shape)
    if reason is not None:
        pytest.skip(reason)
    return TpuAttention(shape, kernel=ragged_attention)


def native(shape: AttentionShape) -> AttentionBackend:
    reason = NativeAttention.unable(shape)
    if reason is not None:
        pytest.skip(reason)
    return NativeAttention(shape)


BACKENDS: dict[str, Callable[[AttentionShape], AttentionBackend]] = {
    "xla": XlaAttention,
    "native": native,
    "gpu": gpu,
    "tpu": tpu,
}


def ragged_attention(
    q: jax.Array,
    pages: jax.Array,
    kv_lens: jax.Array,
    table: jax.Array,
    bounds: jax.Array,
    num_seqs: jax.Array,
    *,
    sm_scale: float,
    sliding_window: int | None,
    **_: int,
) -> jax.Array:
    """The TPU kernel's computation in plain JAX that compiles; NaN for tokens of no sequence."""
    token = jnp.arange(q.shape[0])
    row = jnp.minimum(jnp.searchsorted(bounds, token, side="right") - 1, table.shape[0] - 1)
    position = (kv_lens[row] - bounds[row + 1] + token)[:, None]
    context = jnp.arange(table.shape[1] * pages.shape[1])[None, :]
    seen = (context <= position) & (context > position - (sliding_window or context.size))
    both = pages[table].reshape(table.shape[0], context.size, *pages.shape[2:])[row]
    group = q.shape[1] // (pages.shape[2] // 2)
    k, v = (jnp.repeat(jnp.where(seen[..., None, None], both[:, :, at::2], 0), group, axis=2) for at in range(2))
    scores = jnp.where(seen[:, None], jnp.einsum("thd,tchd->thc", q, k) * sm_scale, -jnp.inf)
    out = jnp.einsum("thc,tchd->thd", jax.nn.softmax(scores, axis=-1), v)
    return jnp.where((token < bounds[num_seqs[0]])[:, None, None], out, jnp.nan)


class Served:
    """Random sequences whose keys and values a backend writes itself, step by step, over shuffled pages full of NaN.

    With more than one level, every other one gets the same with values of the opposite sign, and must give the opposite.
    """

    def __init__(
        self,
        backend: AttentionBackend,
        shape: AttentionShape,
        lengths: Sequence[int],
        *,
        window: Window | None = None,
        levels: int = 1,
        seed: int = 0,
    ) -> None:
        self.shape, self.window, self.levels = shape, window, levels
        rng = np.random.default_rng(seed)
        heads = shape.num_heads + 2 * shape.num_kv_heads
        self.qkv = [rng.normal(size=(n, heads, shape.head_dim)).astype(shape.dtype) for n in lengths]
        used = [-(-n // shape.page_size) for n in lengths]
        shuffled = 1 + rng.permutation(sum(used) + 1)
        self.table = np.zeros((len(lengths), max(used) + 1), np.int32)
        for row, count in enumerate(used):
            self.table[row, :count], shuffled = shuffled[:count], shuffled[count:]
        count = sum(used) + 2
        self.pages = jax.tree.map(garbage, backend.allocate(count, levels))
        assert sum(x.nbytes for x in jax.tree.leaves(self.pages)) == backend.page_bytes * count * levels
        self._attend = jax.jit(self._step, static_argnames=("decode", "prefill", "width"))
        self._backend = backend

    def step(self, decode: Sequence[Span], prefill: Sequence[Span] = (), width: int = 0) -> None:
        """Run one step and compare its real outputs with the reference; a length of 0 is a row of padding."""
        spans = [*decode, *prefill]
        widths = [1] * len(decode) + [width] * len(prefill)
        qkv = np.full((sum(widths), *self.qkv[0].shape[1:]), 7, self.shape.dtype)
        first = np.cumsum([0, *widths[:-1]])
        table = np.zeros((len(spans), self.table.shape[1]), np.int32)
        for at, row, (sequence, start, length) in zip(first, table, spans, strict=True):
            qkv[at : at + length] = self.qkv[sequence][start : start + length]
            row[:] = self.table[sequence] if length else 0
        _, starts, lengths = np.asarray(spans, np.int32).T
        outs, self.pages = self._attend(
            self.pages, qkv, starts, lengths, table, decode=len(decode), prefill=len(prefill), width=width
        )
        found, *others = (np.asarray(out).astype(np.float64) for out in outs)
        assert np.isfinite(found).all(), "garbage leaked"
        for level, other in enumerate(others, 1):
            np.testing.assert_array_equal(other, -found if level % 2 else found)
        for at, span in zip(first, spans, strict=True):
            error = f"{span} of {spans}"
            np.testing.assert_allclose(
                found[at : at + span[2]], self.expected(span), atol=TOLERANCE[self.shape.dtype.name], err_msg=error
            )

    def expected(self, span: Span) -> Array:
        sequence, start, length = span
        heads, kv_heads = self.shape.num_heads, self.shape.num_kv_heads
        q, k, v = np.split(self.qkv[sequence], (heads, heads + kv_heads), axis=1)
        if self.shape.int8_pages:
            k, v = through_int8(k), through_int8(v)
        return reference(q, k, v, self.shape.scale, self.window, self.shape.score_softcap)[start : start + length]

    def _step(
        self,
        pages: Any,
        qkv: jax.Array,
        start: jax.Array,
        length: jax.Array,
        table: jax.Array,
        *,
        decode: int,
        prefill: int,
        width: int,
    ) -> Any:
        shape = self.shape
        upright = jnp.ones((qkv.shape[0], 1, shape.head_dim // 2), jnp.float32)
        heads = Heads(qkv, shape.num_heads, shape.num_kv_heads, upright, jnp.zeros_like(upright))
        rows = Rows(decode, prefill, width, start, length, table)
        values = jnp.arange(qkv.shape[1])[:, None] >= shape.num_heads + shape.num_kv_heads
        opposite = dataclasses.replace(heads, qkv=jnp.where(values, -qkv, qkv))
        outs = []
        for level in range(self.levels):
            each = opposite if level % 2 else heads
            out, pages = self._backend.attend(each, pages, rows, self.window, level)
            outs.append(where_promised(out, rows))
        return outs, pages


def where_promised(out: jax.Array, rows: Rows) -> jax.Array:
    """Output of the tokens that a backend that skips padding must compute; zeros for the rest, which may be anything."""
    beside = up_to_last(rows.real, LIVE_ROWS) > 0
    return jnp.where(jnp.repeat(beside, LIVE_ROWS)[: rows.tokens, None, None], out, 0)


def through_int8(x: Array) -> Array:
    """``x [tokens, heads, head_dim]`` after quantisation to int8 and back."""
    wide = x.astype(np.float32)  # a halfway value goes where it goes in the backends
    scale = np.abs(wide).max(axis=-1, keepdims=True) / np.float32(127)
    return np.round(wide / scale) * scale


def garbage(empty: jax.Array) -> jax.Array:
    """All bits set: NaN, also of what is stored as integers."""
    return jnp.full_like(empty, jnp.nan) if jnp.issubdtype(empty.dtype, jnp.floating) else ~jnp.zeros_like(empty)
