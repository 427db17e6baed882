"""Attention in float64, and random sequences in pages to compare it over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from asurge.ops.attention import Window
from asurge.ops.attention.xla import allocate_pages, paged_attention, write_pages

Array = npt.NDArray[np.float64]
Span = tuple[int, int, int]
"""A device row: sequence, start, length."""
attend = jax.jit(paged_attention, static_argnames=("scale", "window", "softcap", "block_tokens"))
write = jax.jit(write_pages, donate_argnames="pages")


@dataclasses.dataclass(frozen=True)
class Layout:
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 8
    page_size: int = 4
    columns: int = 8
    dtype: str = "float32"

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5


class Paged:
    """Random sequences in shuffled pages. All else is NaN: unused pages, the null page and the rest of last pages."""

    def __init__(self, lengths: Sequence[int], layout: Layout | None = None, seed: int = 0) -> None:
        self.layout = layout = layout or Layout()
        rng = np.random.default_rng(seed)
        self.q, self.k, self.v = (
            [rng.normal(size=(n, heads, layout.head_dim)).astype(layout.dtype) for n in lengths]
            for heads in (layout.heads, layout.kv_heads, layout.kv_heads)
        )
        size = layout.page_size
        used = [-(-n // size) for n in lengths]
        shuffled = 1 + rng.permutation(sum(used) + 2)
        self.table = np.zeros((len(lengths), layout.columns), np.int32)
        for row, count in enumerate(used):
            self.table[row, :count], shuffled = shuffled[:count], shuffled[count:]
        ids = np.concatenate([self.table[row, np.arange(n) // size] for row, n in enumerate(lengths)])
        offsets = np.concatenate([np.arange(n, dtype=np.int32) % size for n in lengths])
        self.keys, self.values = (
            write(self._garbage(sum(used) + 3), np.concatenate(new), ids, offsets) for new in (self.k, self.v)
        )

    def _garbage(self, pages: int) -> jax.Array:
        layout = self.layout
        empty = allocate_pages(pages, layout.kv_heads, layout.page_size, layout.head_dim, jnp.dtype(self.layout.dtype))
        return jnp.full_like(empty, jnp.nan if empty.dtype == jnp.float32 else 0xFFFF)

    def attend(
        self, kernel: Callable[..., jax.Array], spans: Sequence[Span], queries: int, **options: Any
    ) -> list[Array]:
        """Each row's real outputs. Padding queries are checked to be finite."""
        q = np.zeros((len(spans), queries, self.layout.heads, self.layout.head_dim), self.layout.dtype)
        for row, (sequence, start, length) in enumerate(spans):
            q[row, :length] = self.q[sequence][start : start + length]
        sequences, starts, lengths = np.asarray(spans, np.int32).T
        table = self.table[sequences]
        out = kernel(q, self.keys, self.values, table, starts, lengths, scale=self.layout.scale, **options)
        found = np.asarray(out).astype(np.float64)
        assert np.isfinite(found).all(), "garbage leaked"
        return [found[row, :length] for row, (_, _, length) in enumerate(spans)]

    def expected(self, span: Span, window: Window | None = None, softcap: float | None = None) -> Array:
        sequence, start, length = span
        whole = reference(self.q[sequence], self.k[sequence], self.v[sequence], self.layout.scale, window, softcap)
        return whole[start : start + length]


def reference(
    q: npt.ArrayLike,
    k: npt.ArrayLike,
    v: npt.ArrayLike,
    scale: float,
    window: Window | None,
    softcap: float | None = None,
) -> Array:
    """Causal attention of one sequence, in float64."""
    q, k, v = (np.asarray(x).astype(np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
    at = np.arange(len(q))
    back, same = at[:, None] - at[None, :], np.ones((len(q), len(q)), bool)
    if window is not None:
        same = at[:, None] // window.size == at[None, :] // window.size if window.chunked else back < window.size
    seen = (back >= 0) & same
    scores = np.einsum("qhd,khd->hqk", q, k) * scale
    scores = np.where(seen, scores if softcap is None else softcap * np.tanh(scores / softcap), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v)


def check(
    paged: Paged,
    spans: Sequence[Span],
    queries: int,
    *,
    kernel: Callable[..., jax.Array] = attend,
    atol: float = 3e-6,
    **options: Any,
) -> None:
    """Rows as a kernel gives them, beside the reference."""
    window, softcap = options.get("window"), options.get("softcap")
    for span, out in zip(spans, paged.attend(kernel, spans, queries, **options), strict=True):
        expected = paged.expected(span, window, softcap)
        np.testing.assert_allclose(out, expected, atol=atol, err_msg=f"{span} with {options}")
