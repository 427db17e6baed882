"""Attention over pages against the dense float32 reference."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from asurge.ops.attention import allocate_pages, dense_attention, paged_attention, write_pages

PAGE, KV_HEADS, HEADS, DIM = 4, 2, 6, 8
SCALE = DIM**-0.5


class Paged:
    """Sequences of random tokens, written to shuffled pages among garbage."""

    def __init__(self, lengths: list[int], *, dtype: str = "float32", columns: int = 8, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.q, self.k, self.v = (
            [jnp.asarray(rng.normal(size=(n, heads, DIM)), dtype) for n in lengths]
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        count = len(lengths) * columns + 1
        garbage = jnp.full_like(allocate_pages(count, KV_HEADS, PAGE, DIM, jnp.dtype(dtype)), jnp.nan if dtype == "float32" else 0xFFFF)  # fmt: skip
        self.table = jnp.asarray(rng.permutation(np.arange(1, count)).reshape(len(lengths), columns), jnp.int32)
        self.keys, self.values = garbage, garbage
        for row, n in enumerate(lengths):
            at = np.arange(n)
            pages = self.table[row, at // PAGE]
            self.keys = write_pages(self.keys, self.k[row], pages, at % PAGE)
            self.values = write_pages(self.values, self.v[row], pages, at % PAGE)

    def attend(self, spans: list[tuple[int, int, int]], queries: int, **options: int | None) -> list[np.ndarray]:
        """``(sequence, start, length)`` per row -> each row's real outputs."""
        q = np.zeros((len(spans), queries, HEADS, DIM), np.float32)
        for row, (sequence, start, length) in enumerate(spans):
            q[row, :length] = self.q[sequence][start : start + length]
        out = paged_attention(
            jnp.asarray(q, self.q[0].dtype),
            self.keys,
            self.values,
            self.table[jnp.asarray([sequence for sequence, _, _ in spans])],
            jnp.asarray([start for _, start, _ in spans], jnp.int32),
            jnp.asarray([length for _, _, length in spans], jnp.int32),
            scale=SCALE,
            **options,  # type: ignore[arg-type]
        )
        assert np.isfinite(np.asarray(out, np.float32)).all(), "garbage leaked"
        return [np.asarray(out[row, :length], np.float32) for row, (_, _, length) in enumerate(spans)]

    def expected(self, sequence: int, start: int, length: int, window: int | None = None) -> np.ndarray:
        end = start + length
        whole = dense_attention(
            self.q[sequence][:end], self.k[sequence][:end], self.v[sequence][:end], scale=SCALE, window=window
        )
        return np.asarray(whole[start:end], np.float32)


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("block_tokens", [4, 8, 256])
def test_decode_over_ragged_lengths_and_page_boundaries(block_tokens: int, window: int | None) -> None:
    lengths = [1, 3, 4, 5, 8, 17, 32]
    paged = Paged(lengths)
    spans = [(row, n - 1, 1) for row, n in enumerate(lengths)]
    for span, out in zip(spans, paged.attend(spans, 1, block_tokens=block_tokens, window=window), strict=True):
        np.testing.assert_allclose(out, paged.expected(*span, window), atol=2e-6)


@pytest.mark.parametrize("window", [None, 3, 9])
@pytest.mark.parametrize("block_tokens", [8, 256])
def test_prefill_in_chunks_equals_the_whole(block_tokens: int, window: int | None) -> None:
    """Chunks of any cut, several of one sequence among the rows of one call, and rows of padding."""
    paged = Paged([29, 11])
    spans = [(0, 0, 8), (0, 8, 8), (1, 0, 5), (0, 16, 8), (1, 5, 6), (0, 24, 5), (1, 0, 0)]
    for span, out in zip(spans, paged.attend(spans, 8, block_tokens=block_tokens, window=window), strict=True):
        np.testing.assert_allclose(out, paged.expected(*span, window), atol=2e-6)


def test_sixteen_bit_pages_lose_only_their_own_precision() -> None:
    paged = Paged([13, 30], dtype="bfloat16")
    assert paged.keys.dtype == jnp.uint16
    spans = [(0, 12, 1), (1, 29, 1)]
    for span, out in zip(spans, paged.attend(spans, 1), strict=True):
        np.testing.assert_allclose(out, paged.expected(*span), atol=2e-2)


def test_a_row_without_queries_gives_zeros() -> None:
    paged = Paged([9])
    out = paged_attention(
        jnp.ones((1, 1, HEADS, DIM)), paged.keys, paged.values, paged.table, jnp.zeros(1, jnp.int32),
        jnp.zeros(1, jnp.int32), scale=SCALE, block_tokens=4,
    )  # fmt: skip
    assert not np.asarray(out).any()
