"""``/admin``: for those who run the server, behind a key of its own; without that key, the routes do not exist."""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Any

import msgspec
import orjson
from aiohttp import web

from asurge.errors import ConfigError, EngineStateError, ModelLoadError
from asurge.observe import profile
from asurge.server.errors import ApiError
from asurge.server.http.body import read, reply
from asurge.server.middleware import ADMIN
from asurge.server.state import STATE
from asurge.server.system.metrics import figures_reply


class NewKey(msgspec.Struct, kw_only=True):
    """A key to make."""

    label: str = ""


class WeightsRequest(msgspec.Struct, kw_only=True):
    """Weights to switch to."""

    checkpoint: str
    model: str | None = None
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 60.0


class ProfileRequest(msgspec.Struct, kw_only=True):
    """Steps to trace."""

    model: str | None = None
    num_batches: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    timeout_s: Annotated[float, msgspec.Meta(gt=0, le=600)] = 60.0


def add_to(app: web.Application) -> None:
    """Add the routes."""
    for method, path, handler in (
        ("POST", "/admin/pause", _pause),
        ("POST", "/admin/resume", _resume),
        ("POST", "/admin/drain", _drain),
        ("POST", "/admin/weights", _weights),
        ("POST", "/admin/profile", _profile),
        ("GET", "/admin/metrics", _metrics),
        ("GET", "/admin/keys", _keys),
        ("POST", "/admin/keys", _new_key),
        ("DELETE", "/admin/keys/{name}", _revoke),
    ):
        app.router.add_route(method, path, _guarded(handler), name=f"{ADMIN}{path.split('/')[2]}.{method.lower()}")


def _guarded(handler: Any) -> Any:
    async def guarded(request: web.Request) -> web.StreamResponse:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        wanted = request.app[STATE].config.admin_key or ""
        given = token.strip() if scheme.lower() == "bearer" else ""
        if not hmac.compare_digest(
            *(hashlib.sha256(one.encode("utf-8", "replace")).digest() for one in (given, wanted))
        ):
            raise ApiError("the admin key is needed", status=401, kind="authentication_error", code="invalid_api_key")
        try:
            response: web.StreamResponse = await handler(request)
        except (ConfigError, ModelLoadError, EngineStateError) as error:  # reported in full to those who run the server
            raise ApiError(str(error), status=409 if isinstance(error, EngineStateError) else 400) from error
        return response

    return guarded


async def _pause(request: web.Request) -> web.Response:
    """Refuse requests until resumed; those under way go on."""
    request.app[STATE].pause(True)
    return reply(orjson.dumps({"paused": True, "active": request.app[STATE].active}))


async def _resume(request: web.Request) -> web.Response:
    """Take requests again."""
    state = request.app[STATE]
    state.pause(False)
    return reply(orjson.dumps({"paused": state.is_paused, "active": state.active}))  # weights may be changing


async def _drain(request: web.Request) -> web.Response:
    """Take no more requests and wait for those under way."""
    finished = await request.app[STATE].drain()
    return reply(orjson.dumps({"drained": finished, "active": request.app[STATE].active}))


async def _weights(request: web.Request) -> web.Response:
    """Switch to the weights of another checkpoint of the same shape. Waits until the requests under way have ended;
    those that arrive meanwhile are refused."""
    body, state = await read(request, WeightsRequest), request.app[STATE]
    served = state.find(body.model)
    with state.held():
        if not await state.idle(body.timeout_s):
            raise ApiError("requests under way took too long", status=409, code="busy")
        await served.engine.update_model_weights(body.checkpoint)
    return reply(orjson.dumps({"model": served.name, "checkpoint": body.checkpoint}))


async def _profile(request: web.Request) -> web.Response:
    """Trace the next steps of a model, with JAX's profiler, into the server's own folder for it."""
    body, state = await read(request, ProfileRequest), request.app[STATE]
    served, folder = state.find(body.model), state.config.profile_dir
    if folder is None:
        raise ApiError("the server was started without profile_dir", param="profile_dir")
    steps = await profile(served.engine, folder, num_batches=body.num_batches, timeout_s=body.timeout_s)
    return reply(orjson.dumps({"steps": steps, "directory": str(folder)}))


async def _metrics(request: web.Request) -> web.StreamResponse:
    """Return ``/metrics`` with the usage of all keys."""
    return await figures_reply(request, request.app[STATE].keys.usage())


async def _keys(request: web.Request) -> web.Response:
    """List all keys by name, with their usage; never the keys themselves."""
    return reply(orjson.dumps(request.app[STATE].keys.usage()))


async def _new_key(request: web.Request) -> web.Response:
    """Make a key. It is shown once, here."""
    body = await read(request, NewKey)
    return reply(orjson.dumps({"key": request.app[STATE].keys.generate(body.label), "label": body.label}))


async def _revoke(request: web.Request) -> web.Response:
    """Forget a key."""
    if not request.app[STATE].keys.revoke(request.match_info["name"]):
        raise ApiError("there is no such key", status=404, code="not_found")
    return reply(b'{"revoked":true}')
