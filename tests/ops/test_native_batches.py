"""Sequences that begin with the same pages are attended to together, and nobody can tell."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asurge.ops.attention import AttentionShape, Heads, NativeAttention, Rows
from tests.kernels import needs_kernels
from tests.ops.backends import where_promised

pytestmark = needs_kernels

PAGE = 96  # spans of the kernel end within pages
ROWS, PREFILL, COLUMNS = 14, 2, 18
Attend = Callable[[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]], npt.NDArray[np.float32]]


SHAPES = [(6, 2, 32), (3, 3, 96), (7, 1, 64), (16, 1, 32), (34, 2, 32), (6, 2, 64, "int8"), (16, 1, 32, "int8")]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def attend(request: pytest.FixtureRequest) -> Attend:
    """``(start, length, table) -> [tokens, heads, head_dim]``, over pages that hold random contexts already."""
    num_heads, kv_heads, head_dim, *int8 = request.param
    dtype = jnp.dtype(jnp.bfloat16)
    shape = AttentionShape(num_heads, kv_heads, head_dim, PAGE, dtype, int8_pages=bool(int8))
    backend = NativeAttention(shape)
    rng = np.random.default_rng(0)
    tokens = ROWS - PREFILL + PREFILL * 8

    def filled(part: jax.Array) -> jax.Array:
        if int8:
            codes = rng.integers(0, 256, (*part.shape[:-2], PAGE * head_dim), np.uint8)
            scales = rng.uniform(0.005, 0.02, (*part.shape[:-2], PAGE)).astype(np.float32)
            return jnp.asarray(np.concatenate((codes, scales.view(np.uint8)), axis=-1).reshape(part.shape))
        values = jnp.asarray(rng.normal(size=part.shape), jnp.bfloat16)
        return values if part.dtype == values.dtype else jax.lax.bitcast_convert_type(values, part.dtype)

    pages = jax.tree.map(filled, backend.allocate(ROWS * COLUMNS))
    qkv = jnp.asarray(rng.normal(size=(tokens, num_heads + 2 * kv_heads, head_dim)), jnp.bfloat16)
    angle = jnp.asarray(rng.normal(size=(tokens, 1, head_dim // 2)), jnp.float32)
    heads = Heads(qkv, num_heads, kv_heads, jnp.cos(angle), jnp.sin(angle))

    @jax.jit
    def run(start: jax.Array, length: jax.Array, table: jax.Array) -> jax.Array:
        rows = Rows(ROWS - PREFILL, PREFILL, 8, start, length, table)
        return where_promised(backend.attend(heads, pages, rows, None)[0], rows)

    return lambda start, length, table: np.asarray(run(start, length, table).astype(jnp.float32))


def tables(shared: list[tuple[int, int]], start: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Each row begins with so many pages of a row before it, of those that are full, and has the others for itself."""
    table = np.arange(ROWS * COLUMNS, dtype=np.int32).reshape(ROWS, COLUMNS)
    for row, (before, pages) in enumerate(shared):
        other = before % (row + 1)
        full = min(pages, start[other] // PAGE, start[row] // PAGE)
        table[row, :full] = table[other, :full]
    return table


def check(
    attend: Attend, table: npt.NDArray[np.int32], start: npt.NDArray[np.int32], alive: npt.NDArray[np.int32]
) -> None:
    length = np.where(alive > 0, np.where(np.arange(ROWS) < ROWS - PREFILL, 1, 5), 0).astype(np.int32)
    together = attend(start, length, table)
    assert np.isfinite(together).all()
    first = np.concatenate([np.arange(ROWS - PREFILL), ROWS - PREFILL + 8 * np.arange(PREFILL)])
    for row in np.flatnonzero(length):
        own = slice(first[row], first[row] + length[row])
        alone = attend(start, np.where(np.arange(ROWS) == row, length, 0).astype(np.int32), table)
        np.testing.assert_array_equal(together[own], alone[own], err_msg=f"row {row}")


@settings(max_examples=40, deadline=None)
@given(
    shared=st.lists(st.tuples(st.integers(0, ROWS), st.integers(0, COLUMNS - 1)), min_size=ROWS, max_size=ROWS),
    beyond=st.lists(st.integers(0, 2 * PAGE), min_size=ROWS, max_size=ROWS),
    alive=st.lists(st.sampled_from([0, 1, 1, 1]), min_size=ROWS, max_size=ROWS),
)
def test_results_do_not_depend_on_the_batch(
    attend: Attend, shared: list[tuple[int, int]], beyond: list[int], alive: list[int]
) -> None:
    pages = np.array([pages for _, pages in shared])
    start = np.minimum(pages * PAGE + np.array(beyond), COLUMNS * PAGE - 8).astype(np.int32)
    check(attend, tables(shared, start), start, np.array(alive, np.int32))


@pytest.mark.parametrize("pages", [3, 4, 7, 8, 16])
def test_all_sequences_share_a_prefix(attend: Attend, pages: int) -> None:
    start = (pages * PAGE + 5 * np.arange(ROWS)).astype(np.int32)
    check(attend, tables([(0, pages)] * ROWS, start), start, np.ones(ROWS, np.int32))


def test_a_shared_prefix_is_read_from_shared_pages(attend: Attend) -> None:
    """A row's own page in the place of a shared one makes a difference: the beginning is compared page by page."""
    start = np.full(ROWS, 9 * PAGE, np.int32)
    length = (np.arange(ROWS) < 3).astype(np.int32)
    same, other = tables([(0, 9)] * ROWS, start), tables([(0, 9)] * ROWS, start)
    other[1, 2] = 11 * COLUMNS + 2
    before, after = attend(start, length, same), attend(start, length, other)
    np.testing.assert_array_equal(before[[0, 2]], after[[0, 2]])
    assert (before[1] != after[1]).any()
