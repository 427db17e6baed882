"""Background tasks of the server: engines that start and stop with the application, and the loop's lag."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import anyio
from aiohttp import web

from asurge.errors import AsurgeError
from asurge.server.state import STATE, Served, ServerState

_log = logging.getLogger("asurge.server")
_LOOK_S, _FAREWELL_S = 0.05, 2.0
_DEATH_LOOK_S = 0.2


async def lifespan(app: web.Application) -> AsyncIterator[None]:
    """A cleanup context of aiohttp: the application answers while its models load."""
    state = app[STATE]
    # aiohttp may start an application in one task and clean it up in another, which forbids a task group here.
    beside = asyncio.get_running_loop().create_task(_beside(state), name="asurge.server")
    yield
    beside.cancel()
    await asyncio.wait([beside])
    if state.metrics is not None:
        state.metrics.close()
    for served in state.models.values():
        if served.owned:
            await served.engine.terminate()


async def _beside(state: ServerState) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(state.lag.run)
        tasks.start_soon(_report_deaths, state)
        async with anyio.create_task_group() as starting:
            for served in state.models.values():
                starting.start_soon(_start, served, state)
        state.settled.set()


async def _start(served: Served, state: ServerState) -> None:
    """A model that cannot start leaves the others alone; readiness and requests report it."""
    try:
        served.owned = served.engine.state == "new"
        if served.owned:
            await served.engine.initiate()
        while served.engine.state == "starting":  # noqa: ASYNC110 - by its owner, and nothing signals the end of that
            await anyio.sleep(_LOOK_S)
        state.opened(served)
    except AsurgeError as error:
        served.error = error
        _log.error("the model %s could not be started: %s", served.name, error)
    except Exception as error:
        served.error = error
        _log.exception("the model %s could not be started", served.name)


async def _report_deaths(state: ServerState) -> None:
    """Log each engine that fails, once, and set `ServerState.engine_died`."""
    reported = set[str]()
    while True:
        for served in state.models.values():
            if (failure := served.engine.failure) is not None and served.name not in reported:
                reported.add(served.name)
                _log.critical("the engine of the model %s has failed and serves no more: %s", served.name, failure)
                state.engine_died.set()
        await anyio.sleep(_DEATH_LOOK_S)


async def drain(app: web.Application) -> None:
    """Take no more requests, let those under way finish, and abort what takes too long (`on_shutdown`)."""
    state = app[STATE]
    if not await state.drain():
        _log.warning("%d requests took longer than drain_timeout_s and are aborted", state.active)
        state.abort()
        await state.idle(_FAREWELL_S)
