"""Ahead-of-time compilation of the buckets, in parallel, through JAX's persistent cache."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import TypeVar

import jax
from jax.stages import Compiled, Lowered
from tqdm import tqdm

from asurge.errors import CompilationError

K = TypeVar("K", bound=Hashable)
_log = logging.getLogger("asurge")
_CACHE_BYTES = 64 << 20
"""Free space that a cache of compiled steps needs: a few times the steps of one model."""
_STACK_BYTES = 64 << 20  # LLVM recurses deeply on unrolled models
_STACK_SIZE = threading.Lock()


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
    half a second is still start-up time. A folder that cannot be written is not used, with a warning: JAX would warn of
    each step.
    """
    if directory == "" or jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = directory or str(Path(home) / "asurge" / "xla")
    if (why := _unwritable(folder)) is not None:
        _log.warning(
            "compiled steps are not kept: compilation_cache_dir=%r %s; give a folder that can be written, or '' to keep none",
            folder,
            why,
        )
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _unwritable(folder: str) -> str | None:
    """Why nothing can be written to a folder, which is made if need be; None if something can."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    return None if free >= _CACHE_BYTES else f"is on a full disk ({free >> 20} MiB free)"


def compile_all(
    programs: Mapping[K, Callable[[], Lowered]],
    check: Callable[[], None] = lambda: None,
    *,
    threads: int,
    silent: bool,
) -> dict[K, Compiled]:
    """Lower one after another (tracing holds the interpreter) and compile in a pool of ``threads``.

    Args:
        check: called before each is lowered and when one is compiled; ends this if it raises, once those that are being
            compiled are done.

    Raises:
        CompilationError: a program does not compile; the cause is chained.
    """
    compiled: dict[K, Compiled] = {}
    pool = ThreadPoolExecutor(threads, thread_name_prefix="asurge-compile")
    try:
        _start_threads(pool, threads)
        waiting: dict[Future[Compiled], K] = {}
        with tqdm(total=len(programs), desc="Compiling", unit="step", disable=silent or None, leave=False) as bar:
            for shape, lower in programs.items():
                check()
                waiting[pool.submit(lower().compile)] = shape
            for future in as_completed(waiting):
                check()
                shape = waiting[future]
                try:
                    compiled[shape] = future.result()
                except Exception as error:
                    raise CompilationError(f"{shape} does not compile: {error}") from error
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
    return compiled


def _start_threads(pool: ThreadPoolExecutor, count: int) -> None:
    """Start all threads of a pool with stacks of `_STACK_BYTES`. The size is a setting of the whole process, of which others'
    threads should see as little as possible: it holds while these are started, for one pool at a time."""
    started = threading.Barrier(count)
    with _STACK_SIZE:
        before = threading.stack_size(_STACK_BYTES)
        try:
            wait([pool.submit(started.wait) for _ in range(count)])
        except BaseException:
            started.abort()  # the system has no more threads, and those that there are wait for each other
            raise
        finally:
            threading.stack_size(before)


def begin_fetch(array: jax.Array) -> None:
    """Start the copy of an array to the host before anybody waits for it.

    On CPU it is there anyway, and starting a copy would take a tenth of a dispatch.
    """
    if jax.default_backend() != "cpu":
        array.copy_to_host_async()
