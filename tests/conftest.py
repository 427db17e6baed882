"""Engines that tests share. Each compiles a handful of small steps once per session."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asurge import Engine
from asurge.runner import use_persistent_cache
from tests.checkpoints import write_tiny

# Tests run what they compile a few times: with these, XLA compiles 2.4 times faster, and what it makes is slower. CI runs the
# suite's slow part without them.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")

use_persistent_cache(None)  # for programs that tests compile themselves, too

TINY: dict[str, Any] = dict(
    dtype="float32", max_model_len=128, max_num_seqs=4, max_num_batched_tokens=32, page_size=8, silent_mode=True
)
"""Settings under which a step compiles in a second."""

PAGE_BYTES = 2 * 2 * 2 * 8 * 8 * 4
"""Bytes of a page of the tiny model: layers, keys and values, heads, page, head size, float32."""


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer checkpoint in float32, with a byte-level tokenizer and a chat template."""
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
async def tiny(tiny_folder: Path) -> AsyncIterator[Engine]:
    """A started engine over the tiny checkpoint. Its text is noise, but always the same noise."""
    async with Engine(str(tiny_folder), **TINY) as engine:
        yield engine


@pytest.fixture(scope="session")
async def demo() -> AsyncIterator[Engine]:
    """A started engine over the shipped demo model, with its default settings but for its size."""
    async with Engine("demo", max_num_seqs=32, silent_mode=True) as engine:
        yield engine
