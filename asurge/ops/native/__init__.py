"""Kernels of our own for x86-64 processors with AMX (Sapphire Rapids and later), called through XLA's FFI.

XLA:CPU reaches a fifth of the memory bandwidth in attention over pages and a quarter of the arithmetic in bf16 products
(`docs/performance.md` has the figures). Everything here has a counterpart in plain JAX, which serves all other processors.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

import jax

LIBRARY = Path(__file__).parent / "libasurge_kernels.so"
TARGETS = ("asurge_linear", "asurge_attention")


@functools.cache
def unavailable() -> str | None:
    """Why the kernels cannot be used in this process, or None. The first call loads and registers them."""
    if jax.default_backend() != "cpu":
        return f"they are for CPUs, and JAX runs on {jax.default_backend()}"
    if not LIBRARY.is_file():
        return "this installation was built without them (they need Linux on x86-64 and a C++ compiler)"
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return f"{LIBRARY.name} does not load ({error})"
    if not library.asurge_tiles_available():
        return "this processor, or its kernel, has no AMX"
    for target in TARGETS:
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    library.asurge_set_threads(len(os.sched_getaffinity(0)))
    return None
