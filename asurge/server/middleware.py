"""Around every request: its id, its key, its errors, its line in the log."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time

from aiohttp import hdrs, web

from asurge.errors import AsurgeError
from asurge.server.errors import ApiError, Failure, failure_of
from asurge.server.exchange import KEY, RELAXED, REQUEST_ID
from asurge.server.http.sse import SENT
from asurge.server.keys import ApiKey, Meter
from asurge.server.state import STATE, ServerState

_log = logging.getLogger("asurge.server")
_access = logging.getLogger("asurge.access")
_ID_CHARACTERS = 128
ADMIN = "admin."
"""Prefix of the names of the admin's routes."""

CLIENT_GONE = 499
"""In the log, nginx's status for clients that left before their answer."""

_CORS_HEADERS = "Authorization, Content-Type, X-API-Key, X-Request-Id"
OPEN = web.AppKey("asurge.open", frozenset[str])
"""Names of the routes that need no key."""

METERED = web.AppKey("asurge.metered", dict[str, Meter])
"""What counts against a key's limits, by the names of routes."""


@web.middleware
async def around(request: web.Request, handler: web.Handler) -> web.StreamResponse:  # type: ignore[name-defined]
    """Handle request ids, keys, errors and the access log in one middleware: each further one would be a coroutine per request."""
    given, began_s = request.headers.get("X-Request-Id", ""), time.monotonic()
    request_id = (
        given if 0 < len(given) <= _ID_CHARACTERS and given.isprintable() and given.isascii() else secrets.token_hex(8)
    )
    request[REQUEST_ID] = request_id
    state = request.app[STATE]
    try:
        response = await _admitted(request, handler, state)
    except (web.HTTPException, AsurgeError) as error:
        response = _refused(request, _http(error) if isinstance(error, web.HTTPException) else failure_of(error))
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    except ConnectionError:
        _cut(request)
        response = web.Response(status=CLIENT_GONE)  # nobody gets it; an exception would be logged as a failure
    except asyncio.CancelledError:
        _log_access(request, 200 if request.get(SENT, False) else CLIENT_GONE, began_s)
        raise
    except Exception as error:
        _log.exception("request %s failed", request_id)
        response = _refused(request, failure_of(error))
    if not response.prepared and request.writer.output_size:
        # A stream has begun: cut off, it shows that it failed, which a second answer within it would not.
        _cut(request)
    if not response.prepared:
        _identify(request, response)
        _allow_origin(request, response, state)
    _log_access(request, response.status, began_s)
    return response


async def headers(request: web.Request, response: web.StreamResponse) -> None:
    """Set the headers of streams, which leave before the middleware sees them (`on_response_prepare`)."""
    if REQUEST_ID in request and "X-Request-Id" not in response.headers:
        _identify(request, response)
        _allow_origin(request, response, request.app[STATE])


def _identify(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Request-Id"] = request[REQUEST_ID]
    if RELAXED in request:
        response.headers["X-Asurge-Relaxed"] = request[RELAXED]
    if _is_anthropic(request):  # whose clients look there
        response.headers["Request-Id"] = request[REQUEST_ID]


async def _admitted(request: web.Request, handler: web.Handler, state: ServerState) -> web.StreamResponse:  # type: ignore[name-defined]
    if request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
        return web.Response(status=204)
    # Decided on the matched route, never on the path's spelling.
    name = request.match_info.route.name or ""
    key = _key(request, state)
    guarded = name not in request.app[OPEN] and not name.startswith(ADMIN)  # the admin's routes have a key of their own
    if key is None and state.config.require_api_key and guarded:
        raise ApiError(
            "a valid API key is needed: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
            status=401,
            kind="authentication_error",
            code="invalid_api_key",
        )
    request[KEY] = key or state.keys.anonymous
    if (meter := request.app[METERED].get(name)) is not None:
        request[KEY].admit(costs_tokens=meter == "tokens")
    response: web.StreamResponse = await handler(request)
    return response


def _key(request: web.Request, state: ServerState) -> ApiKey | None:
    """The known key that a request carries."""
    given = request.headers.get("X-API-Key")
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if given is None and scheme.lower() == "bearer":
        given = token.strip()
    if given is None and state.config.allow_query_key:
        given = request.query.get("api_key")
    return None if not given else state.keys.find(given)


def _http(error: web.HTTPException) -> Failure:
    """aiohttp's own refusals, in our shape."""
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return Failure("the body is too large", 413, "invalid_request_error", "body_too_large")
    if error.status == 404:
        return Failure("no such route", 404, "invalid_request_error", "not_found")
    if error.status == 405:
        return Failure("this route has no such method", 405, "invalid_request_error", "method_not_allowed")
    return Failure(error.reason[:200], error.status, "invalid_request_error" if error.status < 500 else "server_error")


def _refused(request: web.Request, failure: Failure) -> web.Response:
    body = failure.anthropic(request[REQUEST_ID]) if _is_anthropic(request) else failure.openai()
    return web.Response(body=body, status=failure.status, content_type="application/json", headers=failure.headers)


def _is_anthropic(request: web.Request) -> bool:
    return (request.match_info.route.name or "").startswith("asurge.v1.messages")


def _cut(request: web.Request) -> None:
    """End the connection as it stands."""
    if request.transport is not None:
        request.transport.abort()


def _allow_origin(request: web.Request, response: web.StreamResponse, state: ServerState) -> None:
    origin, allowed = request.headers.get(hdrs.ORIGIN), state.config.cors_origins
    if origin is None or not allowed or ("*" not in allowed and origin not in allowed):
        return
    response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = "*" if "*" in allowed else origin
    response.headers[hdrs.VARY] = hdrs.ORIGIN
    response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "X-Request-Id, Request-Id, Retry-After, X-Asurge-Relaxed"
    if request.method == hdrs.METH_OPTIONS:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = "GET, POST, DELETE, OPTIONS"
        # Those that the page asks for: clients send many of their own, such as ``x-stainless-os``.
        wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, _CORS_HEADERS)
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
        response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = "600"


def _log_access(request: web.Request, status: int, began_s: float) -> None:
    """Log the path as it was sent, so that it is one line, and without its query, which may hold a key."""
    quiet = request.match_info.route.name in request.app[OPEN]  # probes ask every second
    if _access.isEnabledFor(logging.INFO) and not quiet:
        name = request[KEY].name if KEY in request else "-"
        took_ms = (time.monotonic() - began_s) * 1e3
        _access.info("%s %s %s %s %.0f ms %s %s", request.remote, request.method, request.rel_url.raw_path, status, took_ms, name, request[REQUEST_ID])  # fmt: skip
