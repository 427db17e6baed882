"""Health endpoints: whether the server is alive, how busy it is, and which version it has."""

from __future__ import annotations

import orjson
from aiohttp import web

import asurge
from asurge.server.http.body import reply
from asurge.server.state import STATE


async def liveness(request: web.Request) -> web.Response:
    """Answer 200 while the process serves HTTP."""
    return _status_reply("alive", 200)


async def readiness(request: web.Request) -> web.Response:
    """Answer 200 while every model takes requests; 503 while one loads, has failed, or the server stops."""
    return _status_reply("ready", 200) if request.app[STATE].is_ready else _status_reply("not ready", 503)


async def health(request: web.Request) -> web.Response:
    """Answer 200 unless a model has failed or could not start. A server that is busy is healthy."""
    return _status_reply("healthy", 200) if request.app[STATE].is_healthy else _status_reply("failed", 503)


def _status_reply(status: str, code: int) -> web.Response:
    return web.Response(body=orjson.dumps({"status": status}), content_type="application/json", status=code)


async def version(request: web.Request) -> web.Response:
    """Return asurge's version."""
    return reply(orjson.dumps({"version": asurge.__version__}))


async def load(request: web.Request) -> web.Response:
    """Count the requests under way."""
    return reply(orjson.dumps({"server_load": request.app[STATE].active}))
