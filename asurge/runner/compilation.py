"""Ahead-of-time compilation of the lattice, in parallel, through JAX's persistent cache."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

import jax
from jax.stages import Compiled, Lowered
from tqdm import tqdm

from asurge.errors import CompilationError

K = TypeVar("K", bound=Hashable)
_STACK_BYTES = 64 << 20  # LLVM recurses deeply on unrolled models


COMPILED = "/jax/core/compile/backend_compile_duration"
"""JAX's name for the event of a compilation."""


class CompilationCounter:
    """Counts what XLA compiles in this process, from its first use on."""

    def __init__(self) -> None:
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: str | int) -> None:
        self.count += event == COMPILED


@functools.cache
def compilation_counter() -> CompilationCounter:
    """The one counter of this process."""
    return CompilationCounter()


def use_persistent_cache(directory: str | None) -> None:
    """Keep compiled steps in ``directory`` (None: the user's cache folder; "": nowhere).

    A cache the application has already chosen is left alone. Everything is kept: a step that compiles in
    half a second is still start-up time.
    """
    if directory == "" or jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", directory or str(Path(home) / "asurge" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def compile_all(programs: Mapping[K, Callable[[], Lowered]], *, threads: int, silent: bool) -> dict[K, Compiled]:
    """Lower one after another (tracing holds the interpreter) and compile in a pool of ``threads``.

    Raises:
        CompilationError: a program does not compile; the cause is chained.
    """
    compiled: dict[K, Compiled] = {}
    previous = threading.stack_size(_STACK_BYTES)
    try:
        pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="asurge-compile")
        with pool, tqdm(total=len(programs), desc="Compiling", unit="step", disable=silent, leave=False) as bar:
            waiting = {pool.submit(lower().compile): shape for shape, lower in programs.items()}
            for future in as_completed(waiting):
                shape = waiting[future]
                try:
                    compiled[shape] = future.result()
                except Exception as error:
                    raise CompilationError(f"{shape} does not compile: {error}") from error
                bar.update()
    finally:
        threading.stack_size(previous)
    return compiled
