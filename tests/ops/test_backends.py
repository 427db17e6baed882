"""Contract of every attention backend, whatever its pages look like. GPU kernels are interpreted here."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from asurge.ops.attention import AttentionShape, Window, XlaAttention
from asurge.ops.kernels import choose_attention
from tests.ops.backends import BACKENDS, Served

ACCELERATORS = ("gpu", "tpu")
"""Their kernels are interpreted here, which takes long."""

everywhere = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ACCELERATORS else []) for name in BACKENDS]
)


def shape_for(
    name: str,
    heads: int = 8,
    kv_heads: int = 2,
    head_dim: int = 64,
    *,
    page_size: int = 32,
    dtype: str | None = None,
    chunked: bool = False,
    int8_pages: bool = False,
    softcap: float | None = None,
) -> AttentionShape:
    dtype = dtype or ("bfloat16" if name == "native" else "float32")
    return AttentionShape(
        heads, kv_heads, head_dim, page_size, jnp.dtype(dtype), chunked=chunked, int8_pages=int8_pages, score_softcap=softcap
    )  # fmt: skip


@everywhere
@pytest.mark.parametrize("window", [None, Window(40), Window(24, chunked=True), Window(64, chunked=True)])
def test_sequences_in_chunks_then_token_by_token(name: str, window: Window | None) -> None:
    """Chunks and decode rows together, chunks cut anywhere, chunks over two rows, ends on page boundaries, padding."""
    shape = shape_for(name, chunked=window is not None and window.chunked)
    served = Served(BACKENDS[name](shape), shape, [70, 33, 66, 1], window=window)
    served.step([(0, 0, 0), (3, 0, 1)], [(0, 0, 16), (0, 16, 16), (1, 0, 11), (0, 0, 0)], 16)
    served.step([(0, 0, 0), (0, 0, 0)], [(0, 32, 16), (0, 48, 9), (1, 11, 16), (2, 0, 16)], 16)
    served.step([(0, 57, 1), (0, 0, 0)], [(1, 27, 5), (2, 16, 16), (2, 32, 16), (2, 48, 16)], 16)
    for token in range(2):
        served.step([(0, 58 + token, 1), (0, 0, 0), (2, 64 + token, 1), (1, 32, 1 - token)])


@everywhere
@pytest.mark.parametrize("int8_pages", [False, True], ids=["", "int8"])
def test_levels_of_a_page_are_independent(name: str, int8_pages: bool) -> None:
    if int8_pages and name not in ("xla", "native"):
        pytest.skip("its pages are never in 8 bits")
    shape = shape_for(name, int8_pages=int8_pages)
    served = Served(BACKENDS[name](shape), shape, [70, 33], levels=2)
    served.step([(0, 0, 0)], [(0, 0, 40), (1, 0, 33)], 40)
    served.step([(0, 0, 0)], [(0, 40, 29), (0, 0, 0)], 40)
    served.step([(0, 69, 1)])


@everywhere
def test_rows_read_keys_written_in_the_same_step(name: str) -> None:
    """A row that fills its page with a single token, and a chunk behind that page, whoever comes to be computed first; and
    rows of a single token of the same prompt."""
    shape = shape_for(name)
    served = Served(BACKENDS[name](shape), shape, [3 * shape.page_size] * 2)
    last = shape.page_size - 1
    served.step([(0, 0, 0)], [(0, 0, last), (1, 0, last)], shape.page_size)
    served.step([(0, last, 1), (1, last, 1)], [(0, last + 1, 9), (1, last + 1, 2)], shape.page_size)
    ones = [
        (sequence, begun + at, 1) for at in reversed(range(8)) for sequence, begun in enumerate((last + 10, last + 3))
    ]
    served.step([(0, 0, 0)], ones, 1)


@everywhere
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 64), (6, 2, 128), (8, 2, 64), (8, 1, 128)])
def test_grouped_query_attention(name: str, heads: int, kv_heads: int, head_dim: int) -> None:
    shape = shape_for(name, heads, kv_heads, head_dim)
    served = Served(BACKENDS[name](shape), shape, [37, 20])
    served.step([(0, 0, 0)], [(0, 0, 32), (1, 0, 19)], 32)
    served.step([(1, 19, 1)], [(0, 32, 5), (0, 0, 0)], 32)


@pytest.mark.parametrize("name", ["xla", "native"])
@pytest.mark.parametrize("window", [None, Window(40), Window(24, chunked=True)])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 64), (6, 2, 96), (8, 1, 32)])
def test_int8_pages_err_by_their_quantisation_only(
    name: str, window: Window | None, heads: int, kv_heads: int, head_dim: int
) -> None:
    """Prompts of several spans, cut anywhere, and tokens behind them."""
    shape = shape_for(name, heads, kv_heads, head_dim, int8_pages=True)
    served = Served(BACKENDS[name](shape), shape, [330, 33, 66, 1], window=window)
    served.step([(0, 0, 0), (3, 0, 1)], [(0, 0, 160), (0, 160, 160), (1, 0, 11), (0, 0, 0)], 160)
    served.step([(0, 320, 1), (0, 0, 0)], [(1, 11, 21), (2, 0, 64)], 64)
    for token in range(2):
        served.step([(0, 321 + token, 1), (0, 0, 0), (2, 64 + token, 1), (1, 32, 1 - token)])


@pytest.mark.parametrize("name", ["xla", "native"])
@pytest.mark.parametrize("int8_pages", [False, True], ids=["", "int8"])
@pytest.mark.parametrize("softcap", [0.3, 2.0])
def test_soft_capped_scores(name: str, int8_pages: bool, softcap: float) -> None:
    shape = shape_for(name, int8_pages=int8_pages, softcap=softcap)
    served = Served(BACKENDS[name](shape), shape, [300, 20], window=Window(280))
    served.step([(0, 0, 0)], [(0, 0, 299), (1, 0, 19)], 299)
    served.step([(0, 299, 1), (1, 19, 1)])


@pytest.mark.parametrize("platform", ACCELERATORS)
def test_kernels_without_int8_pages_fall_back_to_xla(platform: str) -> None:
    backend, reason = choose_attention(shape_for("xla", int8_pages=True), "auto", platform)
    assert isinstance(backend, XlaAttention)
    assert reason == "pages are int8"


def test_kernels_without_chunked_attention_fall_back_to_xla() -> None:
    backend, reason = choose_attention(shape_for("native", chunked=True), "auto", "tpu")
    assert isinstance(backend, XlaAttention)
    assert reason is not None
    assert "within chunks" in reason


@pytest.mark.parametrize(("name", "dtype"), [("xla", "bfloat16"), ("gpu", "bfloat16"), ("gpu", "float16")])
def test_bf16_errs_by_its_rounding_only(name: str, dtype: str) -> None:
    shape = shape_for(name, dtype=dtype)
    served = Served(BACKENDS[name](shape), shape, [37, 20])
    served.step([(0, 0, 0)], [(0, 0, 32), (1, 0, 19)], 32)
    served.step([(1, 19, 1)], [(0, 32, 5), (0, 0, 0)], 32)


@pytest.mark.parametrize("name", ["xla", "gpu", "tpu"])
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    group=st.sampled_from([1, 3, 5]),
    page_size=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([None, Window(1), Window(7), Window(1, chunked=True), Window(7, chunked=True)]),
    width=st.sampled_from([1, 8]),
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=2),
    cut=st.integers(1, 8),
)
def test_any_shape(
    name: str, group: int, page_size: int, window: Window | None, width: int, lengths: list[int], cut: int
) -> None:
    assume(name != "tpu" or window is None or not window.chunked)
    shape = shape_for(name, 2 * group, 2, 16, page_size=page_size)
    served = Served(BACKENDS[name](shape), shape, lengths, window=window)
    cut, done = min(cut, width), [0, 0]
    while any(at < n for at, n in zip(done, lengths, strict=True)):
        spans = [(row, at, min(cut, n - at)) for row, (at, n) in enumerate(zip(done, lengths, strict=True))]
        served.step([(0, 0, 0)], spans, width)
        done = [at + span[2] for at, span in zip(done, spans, strict=True)]
