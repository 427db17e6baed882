"""Connection handling of aiohttp, with our replies to unreadable heads and our own decompression.

aiohttp quotes heads that cannot be read, though they may hold keys, in its log, with a traceback, and in its answer. Compressed
bodies: `asurge.server.http.encodings`.
"""

from __future__ import annotations

import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from asurge.server.errors import Failure

_log = logging.getLogger("asurge.server")


class ConnectionRunner(web.AppRunner):
    """An `aiohttp` runner with a `ConnectionHandler` for each connection."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            **made._kwargs,
        )


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return ConnectionHandler(self, loop=self._loop, auto_decompress=False, **self._kwargs)


class ConnectionHandler(web.RequestHandler):
    """Handler of one connection, whose errors quote nothing of the request."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        _log.warning("a request from %s cannot be read: %s", request.remote, type(exc).__name__)
        failure = Failure("the request is not valid HTTP", status, "invalid_request_error", "invalid_http")
        response = web.Response(body=failure.openai(), status=status, content_type="application/json")
        response.force_close()
        return response
