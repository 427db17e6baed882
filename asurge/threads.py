"""Work that goes on to its end, however the caller that waits for it is cancelled."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import anyio
from anyio import CapacityLimiter, get_cancelled_exc_class, to_thread

from asurge.containment import contained

T = TypeVar("T")


async def run_in_thread(work: Callable[[], T], limiter: CapacityLimiter) -> T:
    """Run a function in a worker thread, which keeps its place in the limiter until it has ended.

    A caller that is cancelled waits until then, as everywhere in anyio; the work may look at `anyio.from_thread.check_cancelled`.
    """
    return await run_to_end(lambda: to_thread.run_sync(work, limiter=limiter))


async def run_to_end(work: Callable[[], Awaitable[T]]) -> T:
    """Await work that only anyio can cancel, and that anyio cannot cancel either where it is shielded.

    asyncio's own cancellation (`asyncio.wait_for`, ``task.cancel()``) would end the wait at once, whatever shields it, while
    the work goes on: so what waits is a task in a group, which only anyio cancels.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    async def do() -> None:
        try:
            done.append(await work())
        except get_cancelled_exc_class():
            raise
        except BaseException as error:  # panics of libraries in Rust are no Exceptions
            failed.append(contained(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(do)
    if failed:
        raise failed.pop()
    return done[0]


class _Pauses:
    """Counts those for whom Python's garbage collector is paused."""

    def __init__(self) -> None:
        self._lock, self._count, self._was_enabled = threading.Lock(), 0, False

    def begin(self) -> None:
        with self._lock:
            if self._count == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._count += 1

    def end(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0 and self._was_enabled:
                gc.enable()


_pauses = _Pauses()


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector in the whole process.

    For work of about a second, in a thread, that makes many objects and drops them again: a full collection that these set off
    looks at all objects of the process, for 0.1 s and more in which no thread runs, also not the event loop's.
    """
    _pauses.begin()
    try:
        yield
    finally:
        _pauses.end()
