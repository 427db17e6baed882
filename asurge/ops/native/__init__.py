"""CPU kernels for x86-64 processors with AMX, AVX-512 or AVX2, called through XLA's FFI.

AMX: Sapphire Rapids and later; AVX-512 including bf16 and VBMI: Zen 4 and later; AVX2: Haswell, Zen and later.

XLA:CPU reaches a fifth of the memory bandwidth in attention over pages and a quarter of the arithmetic in bf16 products
(`docs/performance.md` has the figures). Everything here has a counterpart in plain JAX, which serves all other processors.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from asurge.processors import ProcessorProbe

FOLDER = Path(__file__).parent
LIBRARIES = tuple(FOLDER / f"libasurge_kernels_{kind}.so" for kind in ("amx", "avx512", "avx2"))
"""The best first."""

TARGETS = (
    "asurge_linear",
    "asurge_grouped_linear",
    "asurge_grouped_rows",
    "asurge_attention",
    "asurge_sample",
    "asurge_pack",
    "asurge_zeros",
)


def number(value: int | jax.Array) -> jax.Array | np.int32:
    """An operand of 32 bits, as kernels take it, whatever an application has made JAX's default."""
    return value.astype(jnp.int32) if isinstance(value, jax.Array) else np.int32(value)


def given(array: jax.Array | None, dtype: jnp.dtype) -> jax.Array | npt.NDArray[Any]:
    """An operand, empty where it is left out. From numpy: tracing an operation for each took a fifth of a warm start."""
    return np.zeros((0,), dtype) if array is None else array


@functools.cache
def unavailable() -> str | None:
    """Why the kernels cannot be used in this process, or None. The first call loads and registers them."""
    if jax.default_backend() != "cpu":
        return f"they are for CPUs, and JAX runs on {jax.default_backend()}"
    if not any(library.is_file() for library in LIBRARIES):
        return "this installation was built without them (they need Linux on x86-64 and a C++ compiler)"
    try:
        library = loaded()
    except OSError as error:
        return str(error)
    if library is None:
        return "this processor, or its operating system, does not have AVX2"
    for target in TARGETS:
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    library.asurge_set_threads(_threads or ProcessorProbe().look().count)
    return None


_threads = 0  # as many as there are processors


def set_threads(count: int) -> None:
    """Have the kernels use this many threads from now on. There is one team for the process; no thread of it ends."""
    global _threads
    _threads = count  # also for a team that is still to be made: it must not be larger first
    if unavailable() is None and (library := loaded()) is not None:
        library.asurge_set_threads(count)


def set_quota(processors: float | None) -> None:
    """Keep the process within a quota of processor time: who calls kernels sleeps off what was used beyond it.

    Args:
        processors: whose time the process may use; None: no limit.
    """
    if unavailable() is None and (library := loaded()) is not None:
        library.asurge_set_quota(ctypes.c_double(processors or 0.0))


def set_loop_threads(ids: Collection[int]) -> None:
    """Set which threads run event loops: kernels yield to them for as long as they compute, if they are eight at most.

    Args:
        ids: native thread identifiers (`threading.get_native_id`).
    """
    if unavailable() is None and (library := loaded()) is not None:
        library.asurge_set_loop_threads((ctypes.c_int * len(ids))(*ids), len(ids))


def set_niceness(niceness: int) -> bool:
    """Set how nice the kernels' own threads are to others (``nice(1)``): their callers' threads belong to the process.

    Returns:
        Whether it could be done: only a privileged process makes them less nice than they are.
    """
    library = loaded() if unavailable() is None else None
    return library is not None and bool(library.asurge_set_niceness(niceness))


def loaded() -> ctypes.CDLL | None:
    """The best library that this processor can run; None if it can run none.

    Raises:
        OSError: one does not load.
    """
    for path in LIBRARIES:
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise OSError(f"{path.name} does not load ({error})") from error
        if library.asurge_available():
            return library
    return None


class PoolStatistics(ctypes.Structure):
    """Counters of the kernels' thread pool since its start.

    Attributes:
        limit / active: threads there may be, the caller included, and those that take part at present.
        regions: parallel regions; a step has some hundred.
        pieces / helped_pieces: pieces of work, and those done by others than the caller.
        region_ns / waited_ns: time in regions, and what of it callers waited for others.
        rescues / swaps: how often a thread that the system had put aside in the middle of a piece was given another processor: one
            that helped, and one that had called.
        pushes: how often a thread that waited behind its caller was sent to another processor.
        quota_sleep_ns: time that callers slept to stay within a quota of processor time (`set_quota`).
    """

    _fields_ = (
        ("limit", ctypes.c_int32),
        ("active", ctypes.c_int32),
        ("regions", ctypes.c_int64),
        ("pieces", ctypes.c_int64),
        ("helped_pieces", ctypes.c_int64),
        ("region_ns", ctypes.c_int64),
        ("waited_ns", ctypes.c_int64),
        ("rescues", ctypes.c_int64),
        ("swaps", ctypes.c_int64),
        ("pushes", ctypes.c_int64),
        ("quota_sleep_ns", ctypes.c_int64),
    )


def pool_statistics() -> PoolStatistics | None:
    """Return the counters of the kernels' thread pool so far; None without kernels."""
    library = loaded() if unavailable() is None else None
    if library is None:
        return None
    library.asurge_pool_statistics.restype = PoolStatistics
    found: PoolStatistics = library.asurge_pool_statistics()
    return found
