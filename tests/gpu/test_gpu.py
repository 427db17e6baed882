"""Tests that need a GPU: the kernel as it is compiled, and an engine on it."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from asurge import Engine, SamplingParams
from asurge.ops.attention import AttentionShape, GpuAttention
from tests.checkpoints import write_tiny
from tests.conftest import TINY
from tests.ops.backends import TOLERANCE, Served

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX sees no GPU")


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 64), (6, 2, 128), (32, 8, 64), (8, 1, 128)])
@pytest.mark.parametrize("dtype", sorted(TOLERANCE))
def test_the_compiled_kernel(dtype: str, heads: int, kv_heads: int, head_dim: int, window: int | None) -> None:
    shape = AttentionShape(heads, kv_heads, head_dim, 64, jnp.dtype(dtype))
    served = Served(GpuAttention(shape), shape, [700, 65, 33], window=window)
    for begin in range(0, 640, 128):
        served.step([(0, 0, 0)], [(0, begin, 64), (0, begin + 64, 64)], 64)
    served.step([(2, 0, 1)], [(1, 0, 64), (0, 640, 59)], 64)
    served.step([(0, 699, 1), (1, 64, 1), (2, 1, 1), (0, 0, 0)])


async def test_an_engine_gives_the_same_text_with_and_without_the_kernel(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path, head_dim=16)
    before = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        texts = [await text_of(str(folder), kernels) for kernels in ("pallas", "xla")]
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    assert texts[0] == texts[1]


async def text_of(model: str, kernels: str) -> str:
    settings = {**TINY, "kernels": kernels}
    async with Engine(model, **settings) as engine:
        params = SamplingParams(max_tokens=40, temperature=0.0)
        [output] = await engine.generate("The quick brown fox", params, use_tqdm=False)
        return output.accumulated_text
