"""Work for a client, done while it is connected."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from aiohttp import web
from anyio import CapacityLimiter, to_thread

R = TypeVar("R")

_WATCH_S = 1.0


async def threaded(request: web.Request, work: Callable[[], R], limiter: CapacityLimiter | None = None) -> R:
    """Do some work in a worker thread, as `while_connected` does.

    Args:
        limiter: whose places it may take; None: anyio's, of which there are 40.
    """
    return await while_connected(request, lambda: to_thread.run_sync(work, limiter=limiter))


async def while_connected(
    request: web.Request, work: Callable[[], Awaitable[R]], tend: Callable[[], Awaitable[None]] | None = None
) -> R:
    """Do some work while the client is connected.

    aiohttp's cancellation ends the wait for worker threads at once, which gives up their places in limits while they
    still run; anyio's waits for them. So the work is a task in a group.

    Args:
        tend: called now and then; ends the work if it raises.

    Raises:
        ConnectionResetError: the client is gone, and the work was cancelled.
    """
    found: list[R] = []

    async def do(scope: anyio.CancelScope) -> None:
        found.append(await work())
        scope.cancel()

    async def watch(scope: anyio.CancelScope) -> None:
        # aiohttp cancels handlers of lost connections only where the application's runner was told to.
        while True:
            await anyio.sleep(_WATCH_S)
            if request.transport is None or request.transport.is_closing():
                scope.cancel()
                return
            if tend is not None:
                await tend()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch, tasks.cancel_scope)
            tasks.start_soon(do, tasks.cancel_scope)
    except ExceptionGroup as group:
        raise only(group) from None
    if not found:
        raise ConnectionResetError("the client is gone")
    return found[0]


def only(group: ExceptionGroup[Exception]) -> Exception:
    """The one error of a group of one."""
    error = group.exceptions[0]
    return only(error) if isinstance(error, ExceptionGroup) else error
