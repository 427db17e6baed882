"""The attention kernel touches no memory but its own, whatever a step holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asurge.ops.attention import AttentionShape, Heads, NativeAttention, Pages, Rows
from tests.kernels import needs_kernels

pytestmark = needs_kernels

SHAPE = AttentionShape(4, 2, 32, 32, jnp.dtype(jnp.bfloat16))
BACKEND = NativeAttention(SHAPE)
Step = tuple[Heads, Rows]


def step(start: list[int], length: list[int], table: list[list[int]], decode: int) -> Step:
    """Decode rows, then prefill rows of 8."""
    rows = Rows(decode, len(start) - decode, 8, *(jnp.asarray(part, jnp.int32) for part in (start, length, table)))
    rng = np.random.default_rng(0)
    qkv = jnp.asarray(rng.normal(size=(rows.tokens, 8, 32)), jnp.bfloat16)
    angle = jnp.asarray(rng.normal(size=(rows.tokens, 1, 16)), jnp.float32)
    return Heads(qkv, 4, 2, jnp.cos(angle), jnp.sin(angle)), rows


def attend(heads: Heads, rows: Rows, pages: int = 8) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Attend in the kernel; return its output, and keys and values of the pages."""

    def run() -> tuple[jax.Array, Pages]:
        return BACKEND.attend(heads, BACKEND.allocate(pages), rows, None)

    out, (written,) = jax.jit(run)()
    return out.astype(jnp.float32), tuple(part[0] for part in written)


def test_rows_without_tokens_write_nothing() -> None:
    _, pages = attend(*step([0, 40, 3, 0], [0, 0, 0, 0], [[0, 0]] * 4, 3))
    assert not any(np.asarray(part).any() for part in pages)


def test_padding_in_a_tile_with_tokens_is_zero() -> None:
    """The next product reads 16 tokens at a time. What is beside none is left as it was in memory."""
    heads, rows = step([0, 40, 30, 0, 0], [0, 1, 5, 0, 0], [[0, 0], [2, 3], [4, 5], [6, 7], [0, 1]], 2)
    out, _ = attend(heads, rows)
    filled = np.asarray(out[:16]).any(axis=(1, 2))
    assert rows.tokens == 26
    assert filled.nonzero()[0].tolist() == [1, 2, 3, 4, 5, 6]


def test_only_the_pages_of_real_tokens_are_written() -> None:
    _, (keys, values) = attend(*step([0, 40, 30, 0], [1, 0, 5, 0], [[1, 0], [2, 3], [4, 5], [6, 7]], 2))
    for part in (keys, values):
        assert np.asarray(part).any(axis=(1, 2, 3)).nonzero()[0].tolist() == [1, 4, 5]


def test_positions_past_the_page_table_map_to_its_last_page() -> None:
    """The scheduler plans none. If it did, another row's table, or what lies behind all of them, would be taken for
    pages, and written."""
    _, (keys, values) = attend(*step([64, 0], [1, 0], [[1, 2], [6, 7]], 1))
    for part in (keys, values):
        assert np.asarray(part).any(axis=(1, 2, 3)).nonzero()[0].tolist() == [2]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda heads, rows: (replace(heads, cos=heads.cos[1:]), rows),
        lambda heads, rows: (replace(heads, sin=heads.sin[..., 1:]), rows),
        lambda heads, rows: (
            replace(heads, q_norm=jnp.ones(16, jnp.bfloat16), k_norm=jnp.ones(32, jnp.bfloat16)),
            rows,
        ),
        lambda heads, rows: (replace(heads, k_norm=jnp.ones(32, jnp.bfloat16)), rows),
        lambda heads, rows: (heads, replace(rows, length=rows.length[1:])),
        lambda heads, rows: (heads, replace(rows, page_table=rows.page_table[1:])),
    ],
    ids=["cos", "sin", "q_norm", "k_norm alone", "length", "page_table"],
)
def test_operands_of_the_wrong_size_are_refused(spoil: Callable[[Heads, Rows], Step]) -> None:
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        attend(*spoil(*step([0, 40, 3, 0], [1, 1, 8, 0], [[1, 0], [2, 3], [4, 0], [0, 0]], 2)))
