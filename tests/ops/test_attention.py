"""Attention over pages against a dense float64 reference."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asurge.ops.attention import Window, dense_attention
from asurge.ops.attention import xla as attention
from asurge.ops.attention.xla import allocate_pages, page_bytes, paged_attention, write_pages
from tests.ops.reference import Layout, Paged, Span, attend, check, write


@pytest.mark.parametrize("window", [None, Window(1), Window(5), Window(1, chunked=True), Window(8, chunked=True)])
@pytest.mark.parametrize("block_tokens", [4, 8, 256])
def test_decode_over_ragged_lengths_and_page_boundaries(block_tokens: int, window: Window | None) -> None:
    lengths = [1, 3, 4, 5, 8, 17, 32]
    spans = [(row, n - 1, 1) for row, n in enumerate(lengths)]
    check(Paged(lengths), spans, 1, block_tokens=block_tokens, window=window)


@pytest.mark.parametrize("window", [None, Window(3), Window(9), Window(3, chunked=True), Window(12, chunked=True)])
@pytest.mark.parametrize("block_tokens", [8, 256])
def test_prefill_in_chunks_equals_the_whole(block_tokens: int, window: Window | None) -> None:
    """Chunks of any cut, several of one sequence among the rows of one call, and rows of padding."""
    spans = [(0, 0, 8), (0, 8, 8), (1, 0, 5), (0, 16, 8), (1, 5, 6), (0, 24, 5), (1, 0, 0)]
    check(Paged([29, 11]), spans, 8, block_tokens=block_tokens, window=window)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1), (8, 2)])
def test_grouped_query_attention(heads: int, kv_heads: int) -> None:
    paged = Paged([21, 6], Layout(heads, kv_heads))
    check(paged, [(0, 20, 1), (1, 5, 1)], 1, block_tokens=8)
    check(paged, [(0, 5, 16), (1, 0, 6)], 16, block_tokens=8)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    kv_heads=st.sampled_from([1, 3]),
    group=st.sampled_from([1, 2]),
    page_size=st.sampled_from([1, 2, 8]),
    window=st.sampled_from([None, Window(4), Window(4, chunked=True), Window(7, chunked=True)]),
    queries=st.sampled_from([1, 3, 16]),
    block_tokens=st.sampled_from([1, 8, 24]),
    rows=st.lists(st.tuples(st.integers(1, 24), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=4),
)
def test_any_shape(
    kv_heads: int,
    group: int,
    page_size: int,
    window: Window | None,
    queries: int,
    block_tokens: int,
    rows: list[tuple[int, float, float]],
) -> None:
    paged = Paged([n for n, _, _ in rows], Layout(kv_heads * group, kv_heads, 4, page_size, -(-24 // page_size)))
    spans = []
    for row, (n, where, share) in enumerate(rows):
        start = int(where * (n - 1))
        spans.append((row, start, round(share * min(queries, n - start))))
    check(paged, spans, queries, window=window, block_tokens=block_tokens)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_bf16_pages_err_by_their_rounding_only(dtype: str) -> None:
    paged = Paged([13, 30], Layout(dtype=dtype))
    assert paged.keys.dtype == jnp.uint16
    assert paged.keys.nbytes == paged.keys.shape[0] * page_bytes(2, 4, 8, jnp.dtype(dtype))
    check(paged, [(0, 12, 1), (1, 29, 1)], 1, block_tokens=8, atol=2e-2)
    check(paged, [(0, 0, 13), (1, 14, 16)], 16, block_tokens=8, atol=2e-2)


def test_blocks_shrink_to_the_cache_of_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    paged, spans = Paged([32, 19]), [(0, 31, 1), (1, 18, 1)]
    monkeypatch.setattr(attention, "BLOCK_BYTES", 1)
    shrunk = jax.make_jaxpr(lambda: _call(paged, spans))()
    monkeypatch.undo()
    whole = jax.make_jaxpr(lambda: _call(paged, spans))()
    assert "while" in str(shrunk)
    assert "while" not in str(whole)


def _call(paged: Paged, spans: Sequence[Span]) -> jax.Array:
    sequences, starts, lengths = np.asarray(spans, np.int32).T
    q = jnp.zeros((len(spans), 1, paged.layout.heads, paged.layout.head_dim))
    return paged_attention(
        q, paged.keys, paged.values, jnp.asarray(paged.table[sequences]), jnp.asarray(starts), jnp.asarray(lengths),
        scale=paged.layout.scale,
    )  # fmt: skip


@pytest.mark.parametrize("window", [None, Window(2), Window(2, chunked=True)])
@pytest.mark.parametrize("block_tokens", [4, 256])
def test_a_row_without_queries_gives_zeros(block_tokens: int, window: Window | None) -> None:
    paged = Paged([9])
    out = attend(
        np.ones((2, 1, 6, 8), np.float32), paged.keys, paged.values, np.zeros((2, 8), np.int32),
        np.asarray([0, 7], np.int32), np.zeros(2, np.int32),
        scale=paged.layout.scale, block_tokens=block_tokens, window=window,
    )  # fmt: skip
    assert not np.asarray(out).any()


def test_pages_behind_the_window_are_not_read() -> None:
    paged = Paged([30])
    paged.table[0, :5] = 0  # tokens 0 to 19; the window of query 24 begins at 20
    check(paged, [(0, 24, 1), (0, 25, 1)], 1, window=Window(5))
    check(paged, [(0, 24, 6)], 8, window=Window(5))
    check(paged, [(0, 24, 1), (0, 29, 1)], 1, window=Window(10, chunked=True))  # the chunk of query 24 begins at 20
    check(paged, [(0, 22, 8)], 8, window=Window(10, chunked=True))


def test_writing_touches_only_its_tokens() -> None:
    pages = jnp.arange(3 * 2 * 4 * 8, dtype=jnp.float32).reshape(3, 2, 4, 8)
    before = np.asarray(pages)
    new = np.full((2, 2, 8), -1, np.float32)
    after = np.asarray(write_pages(pages, jnp.asarray(new), jnp.asarray([2, 0]), jnp.asarray([1, 3])))
    changed = (after != before).any(axis=-1)
    assert np.argwhere(changed).tolist() == [[0, 0, 3], [0, 1, 3], [2, 0, 1], [2, 1, 1]]
    assert (after[changed] == -1).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_writing_to_donated_pages_copies_nothing(dtype: str) -> None:
    """A scatter that converts or copies its pages costs milliseconds a layer at real sizes."""
    pages = allocate_pages(1024, 2, 16, 16, jnp.dtype(dtype))
    ids = jnp.zeros(4, jnp.int32)
    compiled = write.lower(pages, jnp.zeros((4, 2, 16), dtype), ids, ids).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == pages.nbytes
    assert memory.temp_size_in_bytes < pages.nbytes // 8


@pytest.mark.parametrize("window", [None, Window(3), Window(3, chunked=True)])
def test_the_dense_form_agrees(window: Window | None) -> None:
    paged = Paged([7])
    out = dense_attention(
        *(jnp.asarray(x[0]) for x in (paged.q, paged.k, paged.v)), scale=paged.layout.scale, window=window
    )
    np.testing.assert_allclose(np.asarray(out), paged.expected((0, 0, 7), window), atol=2e-6)


@pytest.mark.parametrize("softcap", [0.5, 3.0])
def test_soft_capped_scores(softcap: float) -> None:
    paged = Paged([29, 11])
    check(paged, [(0, 8, 8), (1, 4, 7)], 8, window=Window(9), softcap=softcap)
    out = dense_attention(
        *(jnp.asarray(x[0]) for x in (paged.q, paged.k, paged.v)),
        scale=paged.layout.scale,
        window=Window(9),
        softcap=softcap,
    )
    np.testing.assert_allclose(np.asarray(out), paged.expected((0, 0, 29), Window(9), softcap), atol=2e-6)
    assert np.abs(np.asarray(out) - paged.expected((0, 0, 29), Window(9))).max() > 1e-3
