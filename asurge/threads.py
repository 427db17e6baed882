"""Work that goes on to its end, however the caller that waits for it is cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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
