"""The GPU kernel in interpret mode, and who it is for."""

from __future__ import annotations

import logging
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asurge.config import Kernels
from asurge.errors import ConfigError
from asurge.ops import kernels as kernel_choice
from asurge.ops.attention import AttentionShape, GpuAttention, Window, XlaAttention, gpu
from asurge.ops.attention.gpu_kernel import Tuning, paged_attention
from asurge.ops.kernels import choose_attention
from tests.ops import reference
from tests.ops.reference import Layout, Paged

SHAPE = AttentionShape(8, 2, 64, 64, jnp.dtype(jnp.bfloat16))

attend = partial(jax.jit(paged_attention, static_argnames=("scale", "window", "tuning", "interpret")), interpret=True)
check = partial(reference.check, kernel=attend)
LAYOUT = Layout(head_dim=16, columns=24)


@pytest.mark.parametrize("window", [None, Window(1), Window(21), Window(16, chunked=True), Window(23, chunked=True)])
@pytest.mark.parametrize("programs", [1, 24, 4096])
@pytest.mark.slow
def test_decode_split_over_the_context(programs: int, window: Window | None) -> None:
    """The context in one part, two, and as many as there are blocks; sequences end before, on and behind a block's boundary."""
    lengths = [1, 16, 17, 64, 96, 33]
    spans = [(row, n - 1, 1) for row, n in enumerate(lengths)]
    check(Paged(lengths, LAYOUT), spans, 1, window=window, tuning=Tuning(lanes=1, block_tokens=16, programs=programs))


@pytest.mark.parametrize("window", [None, Window(5), Window(40), Window(5, chunked=True), Window(40, chunked=True)])
@pytest.mark.parametrize(("lanes", "block_tokens"), [(16, 16), (64, 32), (256, 128)])
@pytest.mark.slow
def test_prefill_in_tiles(lanes: int, block_tokens: int, window: Window | None) -> None:
    """A tile holds part of a row, or more than all of it; three heads a group never fill one."""
    spans = [(0, 0, 32), (0, 32, 32), (0, 64, 25), (1, 3, 8), (1, 0, 0)]
    check(Paged([89, 11], LAYOUT), spans, 32, window=window, tuning=Tuning(lanes=lanes, block_tokens=block_tokens))


@pytest.mark.parametrize("queries", [1, 8])
def test_a_row_without_queries_gives_zeros(queries: int) -> None:
    paged = Paged([9], LAYOUT)
    out = attend(
        np.ones((2, queries, 6, 16), np.float32), paged.keys, paged.values, np.zeros((2, 24), np.int32),
        np.asarray([0, 7], np.int32), np.zeros(2, np.int32),
        scale=1.0, window=Window(3), tuning=Tuning(),
    )  # fmt: skip
    assert not np.asarray(out).any()


def test_pages_behind_the_window_are_not_read() -> None:
    paged = Paged([90], LAYOUT)
    paged.table[0, :20] = 0  # tokens 0 to 79; the window of query 84 begins at 80
    for window in (Window(5), Window(20, chunked=True)):
        check(paged, [(0, 84, 1), (0, 85, 1)], 1, window=window, tuning=Tuning(block_tokens=16))
        check(paged, [(0, 84, 6)], 8, window=window, tuning=Tuning(block_tokens=32))


def test_heads_beyond_a_tile_of_their_own() -> None:
    """Multi-query attention with more query heads than the smallest tile has lanes."""
    check(Paged([40], Layout(24, 1, 16, 8)), [(0, 39, 1)], 1, window=None, tuning=Tuning(lanes=1))
    check(Paged([40], Layout(24, 1, 16, 8)), [(0, 30, 10)], 16, window=None, tuning=Tuning(lanes=16))


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (AttentionShape(8, 2, 64, 64, jnp.dtype(jnp.int8)), "dtype=int8"),
        (AttentionShape(8, 2, 96, 64, jnp.dtype(jnp.bfloat16)), "head_dim=96"),
        (SHAPE, None),
    ],
)
def test_unsupported_shapes_are_declined(shape: AttentionShape, reason: str | None) -> None:
    found = GpuAttention.unable(shape)
    assert found is None if reason is None else found is not None and found.startswith(reason)


@pytest.mark.parametrize(
    ("capability", "reason"), [("9.0", None), ("12.1", None), ("7.5", "below 8.0"), ("gfx942", "no NVIDIA GPU")]
)
def test_devices_that_the_kernel_supports(capability: str, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(platform="gpu", compute_capability=capability, device_kind="A card")
    monkeypatch.setattr(gpu.jax, "devices", lambda: [device])
    found = GpuAttention.unable(SHAPE)
    assert found is None if reason is None else found is not None and reason in found


def test_each_platform_selects_its_backend(caplog: pytest.LogCaptureFixture) -> None:
    kernel_choice._warn.cache_clear()
    odd = AttentionShape(8, 2, 96, 64, jnp.dtype(jnp.bfloat16))
    with caplog.at_level(logging.WARNING, "asurge"):
        assert isinstance(choose_attention(SHAPE, "auto", "gpu")[0], GpuAttention)
        assert isinstance(choose_attention(SHAPE, "pallas", "gpu")[0], GpuAttention)
        assert isinstance(choose_attention(SHAPE, "xla", "gpu")[0], XlaAttention)
        assert not caplog.records
        for _ in range(2):
            backend, reason = choose_attention(odd, "auto", "gpu")
            assert isinstance(backend, XlaAttention)
            assert reason is not None
            assert reason.startswith("head_dim=96")
        assert choose_attention(SHAPE, "auto", "abacus")[1] == "there is no kernel for abacus"
    assert len(caplog.records) == 2, "a reason is told once"


@pytest.mark.parametrize(
    ("kernels", "platform", "reason"),
    [
        ("pallas", "cpu", "not for cpu"),
        ("native", "gpu", "not for gpu"),
        ("pallas", "abacus", "no kernel for abacus"),
    ],
)
def test_kernels_selected_by_name(kernels: Kernels, platform: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        choose_attention(SHAPE, kernels, platform)
