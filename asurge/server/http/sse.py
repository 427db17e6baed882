"""Server-sent events."""

from __future__ import annotations

import math

import anyio
from aiohttp import web

from asurge.server.config import ServerConfig
from asurge.server.errors import failure_of
from asurge.server.http.progress import Progress

_EVENT_STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # fmt: skip

SENT = web.RequestKey("asurge.sent", bool)
"""Whether a stream was sent to its end: a client that hangs up then is served, not lost."""


class EventStream:
    """Server-sent events."""

    def __init__(self, request: web.Request, config: ServerConfig) -> None:
        self._request, self._config, self._progress = request, config, Progress(request)
        self.response = web.StreamResponse(headers=_EVENT_STREAM)
        self._sent_s = math.inf

    async def open(self) -> None:
        await self.response.prepare(self._request)
        self._sent_s = anyio.current_time()

    async def send(self, events: bytes) -> None:
        """Send events as they are."""
        self._sent_s = anyio.current_time()
        await self.response.write(events)

    async def close(self) -> None:
        """End the stream: nothing is sent after that, however long a slow reader takes to get it."""
        self._sent_s = math.inf
        await self.response.write_eof()
        self._request[SENT] = True

    async def tend(self) -> None:
        """Send a comment if nothing has been sent for long; to be called now and then.

        Raises:
            ConnectionResetError: the reader has taken nothing for too long.
        """
        stalled_s = self._progress.stalled_s()
        if stalled_s is not None and stalled_s >= self._config.write_timeout_s:
            raise ConnectionResetError("the reader takes nothing")
        # A reader that has something to take needs no comment, and the sender would wait for it.
        if stalled_s is None and anyio.current_time() - self._sent_s >= self._config.keep_alive_s:
            await self.send(b": keep-alive\n\n")


def openai_failure(error: BaseException) -> bytes:
    """An error as the last event of a stream."""
    return b"data: " + failure_of(error).openai() + b"\n\n"
