"""`make_app`: the aiohttp application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import hdrs, web

from asurge.engine import Engine
from asurge.errors import ConfigError
from asurge.server import middleware
from asurge.server.config import ServerConfig
from asurge.server.keys import KeyRing
from asurge.server.lifespan import drain, lifespan
from asurge.server.openai.response_store import STORE, ResponseStore
from asurge.server.openapi import OPENAPI
from asurge.server.routes import ROUTES
from asurge.server.state import STATE, ServerState
from asurge.server.system import admin


def make_app(
    engine: Engine | Mapping[str, Engine],
    config: ServerConfig | None = None,
    *,
    aliases: Mapping[str, str] | None = None,
    keys: KeyRing | None = None,
    **settings: Any,
) -> web.Application:
    """An application that serves engines, to be run alone or mounted (``app.add_subapp("/llm", make_app(engine))``).

    Engines that have not been started are started and stopped with the application, which answers meanwhile; engines
    that are already running are left to their owners.

    Args:
        engine: one, or several by the names they are served under.
        aliases: further names, with the names they stand for.
        keys: who may call; see `ServerConfig.require_api_key`.
        settings: those of `ServerConfig`, if ``config`` is not given.

    Raises:
        ConfigError: a setting is wrong.
    """
    if config is not None and settings:
        raise ConfigError(f"give either config or {', '.join(settings)}: config has all settings")
    config = config or ServerConfig(**settings)
    engines = {engine.name: engine} if isinstance(engine, Engine) else dict(engine)
    ring = (
        keys
        if keys is not None
        else KeyRing(requests_per_minute=config.requests_per_minute, tokens_per_minute=config.tokens_per_minute)
    )
    app = web.Application(middlewares=[middleware.around], client_max_size=config.max_body_bytes)
    app[STATE] = ServerState(engines, aliases or {}, ring, config)
    app[STORE] = ResponseStore(config.stored_responses)
    routes = (*ROUTES, OPENAPI)
    for route in routes:
        resource = app.router.add_resource(route.path, name=route.name)
        for method in (hdrs.METH_GET, hdrs.METH_HEAD) if route.method == hdrs.METH_GET else (route.method,):
            resource.add_route(method, route.handler)
    app[middleware.OPEN] = frozenset(route.name for route in routes if route.open)
    app[middleware.METERED] = {route.name: route.metered for route in routes if route.metered is not None}
    if config.admin_key is not None:
        admin.add_to(app)
    app.on_response_prepare.append(middleware.headers)
    app.on_shutdown.append(drain)
    app.cleanup_ctx.append(lifespan)
    return app
