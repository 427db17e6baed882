"""Worker threads that keep their places until their work ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio import CapacityLimiter, get_cancelled_exc_class, to_thread

from asurge.containment import contained

T = TypeVar("T")


async def run_in_thread(work: Callable[[], T], limiter: CapacityLimiter) -> T:
    """Do some work in a worker thread. A caller that is cancelled waits until it has ended, as everywhere in anyio.

    asyncio's own cancellation (`asyncio.wait_for`, ``task.cancel()``) would end the wait at once, and give up the place in the
    limiter while the thread goes on: so what waits is a task in a group, which only anyio cancels.
    """
    done: list[T] = []
    failed: list[BaseException] = []

    async def do() -> None:
        try:
            done.append(await to_thread.run_sync(work, limiter=limiter))
        except get_cancelled_exc_class():
            raise
        except BaseException as error:  # panics of libraries in Rust are no Exceptions
            failed.append(contained(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(do)
    if failed:
        raise failed.pop()
    return done[0]
