"""The attention kernel over shapes that fill its tiles in every way."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asurge.ops.attention import AttentionShape, NativeAttention, Window
from tests.kernels import needs_kernels
from tests.ops.backends import Served

pytestmark = needs_kernels


def served(
    heads: int, kv_heads: int, head_dim: int, page_size: int, lengths: list[int], window: Window | None, int8: bool
) -> Served:
    shape = AttentionShape(heads, kv_heads, head_dim, page_size, jnp.dtype(jnp.bfloat16), int8_pages=int8)
    return Served(NativeAttention(shape), shape, lengths, window=window)


@settings(max_examples=16, deadline=None, derandomize=True)
@given(
    group=st.sampled_from([1, 2, 3, 7, 15, 16, 17, 32, 33, 48]),
    kv_heads=st.integers(1, 2),
    head_dim=st.sampled_from([32, 64, 96, 160, 256]),
    page_size=st.sampled_from([32, 64, 96, 160]),
    window=st.sampled_from(
        [None, Window(1), Window(33), Window(300), Window(40, chunked=True), Window(1, chunked=True)]
    ),
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=2),
    int8=st.booleans(),
)
@example(group=16, kv_heads=2, head_dim=32, page_size=96, window=None, lengths=[33, 32], int8=False)
@example(group=33, kv_heads=1, head_dim=96, page_size=32, window=Window(33), lengths=[40, 1], int8=False)
@example(group=3, kv_heads=2, head_dim=256, page_size=32, window=None, lengths=[40, 33], int8=True)
@example(group=33, kv_heads=1, head_dim=96, page_size=160, window=Window(33), lengths=[40, 1], int8=True)
def test_any_shape(
    group: int, kv_heads: int, head_dim: int, page_size: int, window: Window | None, lengths: list[int], int8: bool
) -> None:
    """Prefill chunks that end anywhere, then token by token; rows of padding beside them."""
    width = 24
    sequences = served(group * kv_heads, kv_heads, head_dim, page_size, [n + 2 for n in lengths], window, int8)
    for at in range(0, max(lengths), width):
        spans = [(row, at, max(min(width, n - at), 0)) for row, n in enumerate(lengths)]
        sequences.step([(0, 0, 0)], spans, width)
    for more in range(2):
        sequences.step([(1, lengths[1] + more, 1), (0, 0, 0), (0, lengths[0] + more, 1)])


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("window", [None, Window(270), Window(300, chunked=True)])
def test_contexts_of_several_spans(window: Window | None, int8: bool) -> None:
    sequences = served(6, 2, 64, 96, [700, 520], window, int8)
    for at in range(0, 600, 200):
        sequences.step([(0, 0, 0)], [(0, at, 200), (1, min(at, 400), 100 if at == 400 else min(200, 400 - at))], 200)
    sequences.step([(1, 500, 1), (0, 600, 1), (0, 0, 0)])
    sequences.step([(1, 501, 1), (0, 0, 0), (0, 601, 1)])
