"""``GET /openapi.json``: the document of the API, made from its types."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import orjson
from aiohttp import web

import asurge
from asurge.server.http.body import reply
from asurge.server.routes import ROUTES, Route
from asurge.server.schema.models import Error

_REFUSALS = {400: "Refused", 401: "No valid key", 404: "Not found", 408: "Its body took too long", 413: "Too large", 429: "Limit reached", 503: "Not available", 504: "Its deadline passed"}  # fmt: skip


async def openapi(request: web.Request) -> web.Response:
    """The OpenAPI document."""
    return reply(_encoded())


OPENAPI = Route("GET", "/openapi.json", openapi, open=True)


@functools.cache
def _encoded() -> bytes:
    return orjson.dumps(document((*ROUTES, OPENAPI)))


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """OpenAPI 3.1 of some routes."""
    types = [Error, *(kind for route in routes for kind in (route.body, route.answer) if isinstance(kind, type))]
    _, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r"\{(\w+):[^}]+\}", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, re.findall(r"\{(\w+)\}", path))
    keys = {"bearer": {"type": "http", "scheme": "bearer"}, "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "asurge", "version": asurge.__version__, "description": "LLM inference over HTTP."},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": keys},
        "security": [{"bearer": []}, {"header": []}, {}],
    }


def _operation(route: Route, parameters: Sequence[str]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if isinstance(route.answer, str):
        content[route.answer] = {"schema": {}}
    else:
        content["application/json"] = {"schema": _reference(route.answer)}
    if route.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses = {"200": {"description": "The answer", "content": content}}
    for status, text in _REFUSALS.items():
        responses[str(status)] = {"description": text, "content": {"application/json": {"schema": _reference(Error)}}}
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": inspect.getdoc(route.handler) or "",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
        ],
        "responses": responses,
    }
    if route.body is not None:
        content = {"application/json": {"schema": _reference(route.body)}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.open:
        operation["security"] = []
    return operation


def _reference(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
