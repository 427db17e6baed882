"""A server over the demo model, and the clients that people use."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from asurge import Engine
from asurge.server import make_app
from tests.server.browser import axe, browser, pages, tab

__all__ = ["axe", "browser", "pages", "tab"]

Start = Callable[..., Awaitable[str]]


class Running:
    """Applications on ports of their own, until the end of the test."""

    def __init__(self) -> None:
        self._runners: list[web.AppRunner] = []

    async def start(self, app: web.Application, kind: type[web.AppRunner] = web.AppRunner, **settings: Any) -> str:
        defaults = dict(handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        runner = kind(app, **(defaults | settings))
        self._runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def stop(self) -> None:
        for runner in self._runners:
            await runner.cleanup()
        self._runners.clear()


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    found = Running()
    yield found
    await found.stop()


@pytest.fixture(scope="session")
async def url(demo: Engine) -> AsyncIterator[str]:
    """Where the demo model is served, as ``demo`` and as ``gpt-4o-mini``."""
    found = Running()
    yield await found.start(make_app(demo, aliases={"gpt-4o-mini": "demo"}))
    await found.stop()


@pytest.fixture(scope="session")
async def client(url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="session")
async def http(url: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(url) as session:
        yield session
