"""Fresh memory for the CPU kernels: pages are zeros, whatever their size; on huge pages where the system has them."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asurge.ops.attention import AttentionShape, NativeAttention
from tests.kernels import needs_kernels

pytestmark = needs_kernels

HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PAGE_BYTES = 2 * 32 * 32 * 2
MIB = 1 << 20


def allocate(num_pages: int, *, int8: bool = False) -> tuple[jax.Array, ...]:
    shape = AttentionShape(4, 2, 32, 32, jnp.dtype(jnp.bfloat16), int8_pages=int8)
    (pages,) = NativeAttention(shape).allocate(num_pages)
    return pages


def wishes(address: int) -> str:
    """The advice given to the system about the memory at an address, in the letters of ``VmFlags`` (proc(5))."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if (bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)) is not None:
            here = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif here and line.startswith("VmFlags:"):
            return line
    raise LookupError(f"nothing is mapped at {address:#x}")


@pytest.mark.parametrize("num_pages", [1, 511, 512, 1024, 1537, 4096 + 3])
@pytest.mark.parametrize("int8", [False, True], ids=["bf16", "int8"])
def test_new_pages_are_zeros(num_pages: int, int8: bool) -> None:
    for turn in range(2):  # the second may lie where something else has been
        for part in allocate(num_pages, int8=int8):
            assert not np.asarray(part).any()
            assert part.shape[:2] == (1, num_pages)
            if turn == 0:
                (part + 1).block_until_ready()


@pytest.mark.skipif(not HUGE.is_file(), reason="this system has no transparent huge pages")
def test_large_allocations_use_huge_pages() -> None:
    for part in allocate(64 * MIB // PAGE_BYTES):
        begin = part.unsafe_buffer_pointer()
        assert "hg" in wishes(begin + 32 * MIB).split()
