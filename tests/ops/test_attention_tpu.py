"""The TPU backend's own part, what it stands on, and the kernel itself as far as interpret mode goes."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asurge.ops.attention import AttentionShape, Rows, TpuAttention
from asurge.ops.attention.tpu import ragged
from asurge.ops.kernels import choose_attention
from tests.ops.backends import Served, ragged_attention

SHAPE = AttentionShape(4, 2, 128, 16, jnp.dtype(jnp.float32))


def rows(decode: int, prefill: int, width: int, start: list[int], length: list[int]) -> Rows:
    table = jnp.zeros((len(start), 4), jnp.int32)
    return Rows(decode, prefill, width, jnp.asarray(start, jnp.int32), jnp.asarray(length, jnp.int32), table)


def test_rows_become_ragged_sequences() -> None:
    """None is empty, none has gaps, and padding goes nowhere but for one token of an empty row."""
    to, kv_lens, bounds = ragged(rows(3, 2, 4, [9, 0, 5, 0, 8], [1, 0, 1, 0, 3]))
    assert bounds.tolist() == [0, 1, 2, 3, 4, 7]
    assert kv_lens.tolist() == [10, 1, 6, 1, 11]
    assert to.tolist() == [0, 1, 2, 3, 11, 11, 11, 4, 5, 6, 11]


def test_the_stand_in_is_what_ships_with_jax() -> None:
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ref_ragged_paged_attention

    for options in ({"sm_scale": 0.1, "sliding_window": None}, {"sm_scale": 0.2, "sliding_window": 6}):
        operands = example()
        expected = ref_ragged_paged_attention(*operands, **options)
        found = ragged_attention(*operands, **options)
        np.testing.assert_allclose(found[: len(expected)], expected, atol=1e-5)
        assert np.isnan(found[len(expected) :]).all()


def example() -> tuple[jax.Array, ...]:
    """Four sequences in 12 of 16 tokens."""
    rng = np.random.default_rng(0)
    q, pages = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((16, 4, 128), (9, 16, 4, 128)))
    table = jnp.asarray([[1, 2, 0], [3, 0, 0], [4, 0, 0], [5, 8, 6]], jnp.int32)
    kv_lens, bounds, count = [20, 5, 1, 33], [0, 1, 6, 7, 12], [4]
    return q, pages, jnp.asarray(kv_lens, jnp.int32), table, jnp.asarray(bounds, jnp.int32), jnp.asarray(count)


class _Whole:
    """Stands for a reshaped reference, which JAX's interpreter of TPU kernels does not know."""

    def __init__(self, ref: Any) -> None:
        self._ref, self.dtype = ref, ref.dtype

    def reshape(self, *shape: int) -> _Whole:
        self._shape = shape
        return self

    def __getitem__(self, index: Any) -> jax.Array:
        return self._ref[...].reshape(self._shape)[index]


def test_the_kernel_itself_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages, copies and metadata through the shipped kernel, with the two operations replaced that interpret mode lacks."""
    from jax.experimental.pallas import tpu as pltpu

    kernel = importlib.import_module("jax.experimental.pallas.ops.tpu.ragged_paged_attention.kernel")
    wait = kernel.MultiPageAsyncCopyDescriptor.wait
    monkeypatch.setattr(kernel.MultiPageAsyncCopyDescriptor, "wait", lambda self: _Whole(wait(self)))

    def store(ref: Any, value: jax.Array, *, mask: jax.Array) -> None:
        ref[...] = jnp.where(mask, value, ref[...])

    monkeypatch.setattr(kernel.pltpu, "store", store)
    served = Served(TpuAttention(SHAPE, kernel=kernel.ragged_paged_attention.__wrapped__), SHAPE, [37, 20])
    with pltpu.force_tpu_interpret_mode():
        served.step([(0, 0, 0), (1, 0, 1)], [(0, 0, 16), (0, 16, 16)], 16)
        served.step([(0, 0, 0), (0, 0, 0)], [(1, 1, 16), (0, 32, 5)], 16)


def test_heads_are_filled_up_to_the_lanes() -> None:
    narrow = TpuAttention(AttentionShape(8, 2, 64, 16, jnp.dtype(jnp.bfloat16)))
    assert [page.shape for page in narrow.allocate(3)[0]] == [(3, 16, 4, 128)]
    assert narrow.page_bytes == 16 * 4 * 128 * 2


@pytest.mark.parametrize(
    ("dtype", "kv_heads", "reason"),
    [("bfloat16", 8, None), ("bfloat16", 1, None), ("bfloat16", 3, "num_kv_heads=3"), ("float16", 8, "dtype=float16")],
)
def test_unsupported_shapes_are_declined(dtype: str, kv_heads: int, reason: str | None) -> None:
    found = TpuAttention.unable(AttentionShape(24, kv_heads, 128, 64, jnp.dtype(dtype)))
    assert found is None if reason is None else found is not None and found.startswith(reason)


def test_tpus_use_the_kernel() -> None:
    assert isinstance(choose_attention(SHAPE, "auto", "tpu")[0], TpuAttention)
    assert isinstance(choose_attention(SHAPE, "pallas", "tpu")[0], TpuAttention)
