"""The web pages: a chat and a dashboard. Plain files, which load nothing from elsewhere."""

from __future__ import annotations

from importlib.resources import files

from aiohttp import web

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
_FOLDER = files("asurge.server") / "web_ui"


async def chat(request: web.Request) -> web.Response:
    """Serve the chat page."""
    return _file("index.html")


async def dashboard(request: web.Request) -> web.Response:
    """Serve the dashboard page."""
    return _file("dashboard.html")


async def asset(request: web.Request) -> web.Response:
    """Serve a script, a style sheet or an image of the pages."""
    name = request.match_info["name"]
    if name not in _ASSETS:
        raise web.HTTPNotFound
    return _file(name)


_ASSETS = (
    frozenset(one.name for one in _FOLDER.iterdir() if not one.name.endswith(".html"))
    if _FOLDER.is_dir()
    else frozenset()
)


def _file(name: str) -> web.Response:
    kind = _TYPES[name.rsplit(".", 1)[-1]]
    return web.Response(body=(_FOLDER / name).read_bytes(), content_type=kind, charset="utf-8", headers=_HEADERS)
