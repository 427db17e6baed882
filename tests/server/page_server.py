"""A server for the pages' tests: the static files under the real policy, and scripted answers instead of an engine."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

PAGES = Path(__file__).parents[2] / "asurge" / "server" / "web_ui"
POLICY = (
    "default-src 'self'; connect-src 'self'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
USAGE = {"prompt_tokens": 1024, "completion_tokens": 42, "prompt_tokens_details": {"cached_tokens": 512}}

MARKDOWN = """## A plan

Some **bold**, *slanted*, ~~struck~~ and `inline code`, a [link](https://example.org/a_b), and https://example.org/x.

1. First
2. Second
   - nested one
   - nested two

> A quote of *two*
> lines

| Name | Value |
|:-----|------:|
| a    | 1     |
| b \\| c | **2** |

```python
def join(*parts):
    return "/".join(parts)  # a rather long comment, so that this line has to scroll in a narrow window
```

The end.
"""

HOSTILE = """<img src=x onerror="window.broken = 1"> <script>window.broken = 1</script>

[click](javascript:window.broken=1) [data](data:text/html,hi) ![pixel](https://evil.example/pixel.png)

<a href="javascript:window.broken=1">raw</a> [x](https://a.example/"onmouseover="window.broken=1)

```html
<img src=x onerror="window.broken = 1">
```
"""

Event = dict[str, Any] | str | float
"""A delta, a line as it stands, or a pause in seconds."""


def words(text: str, pause: float = 0.0) -> list[Event]:
    """A text in pieces, as an engine sends it."""
    events: list[Event] = []
    for word in text.split(" "):
        events += [{"content": word if not events else " " + word}, pause]
    return events


def tool_part(index: int, arguments: str, **start: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": start.pop("name")} if "name" in start else {})
    return {"tool_calls": [{"index": index, "function": function} | start]}


SCRIPTS: dict[str, Callable[[], list[Event]]] = {
    "markdown": lambda: words(MARKDOWN),
    "hostile": lambda: words(HOSTILE),
    "slow": lambda: [": keep-alive", *words("one two three " * 200, 0.02)],
    "silent": lambda: [30.0],
    "think": lambda: [
        {"reasoning_content": "Let me "},
        0.1,
        {"reasoning_content": "think."},
        {"content": "Done."},
    ],
    "tool": lambda: [
        tool_part(0, "", id="call_a", name="get_weather"),
        tool_part(0, '{"city": '),
        0.05,
        tool_part(0, '"Rome"}'),
        tool_part(1, '{"zone": "CET"}', id="call_b", name="get_time"),
    ],
    "break": lambda: [{"content": "Half an ans"}, 'data: {"error": {"message": "The device is gone.", "code": 500}}'],
    "drop": lambda: [{"content": "Half"}, "close"],
    "long": lambda: words("A paragraph.\n\n" * 120, 0.004),
}
"""Answers by the first word of the last paragraph of the last message; any other message is repeated."""


class PageServer:
    """Serves the pages, remembers what they sent, and misbehaves on demand."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.disconnects = 0
        self.polls = 0
        self.models = ["demo", "qwen3-8b-instruct"]
        self.key: str | None = None
        self.down = False
        self.dashboard: Callable[[int], dict[str, Any]] = figures
        self.address = ""

    async def run(self) -> AsyncIterator[PageServer]:
        root = self._app()
        root.add_subapp("/under", self._app())
        runner = web.AppRunner(root, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.address = "http://{}:{}".format(*runner.addresses[0])
        yield self
        await runner.cleanup()

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/", self._file)
        app.router.add_get("/dashboard", self._file)
        app.router.add_get("/assets/{name}", self._file)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/dashboard/data", self._data)
        return app

    async def _file(self, request: web.Request) -> web.Response:
        names = {"": "index.html", "dashboard": "dashboard.html"}
        path = PAGES / names.get(name := request.path.rsplit("/", 1)[-1], name)
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return web.Response(body=path.read_bytes(), content_type=TYPES[path.suffix], charset="utf-8", headers=headers)

    def _refusal(self, request: web.Request) -> web.Response | None:
        self.keys.append(request.headers.get("Authorization"))
        if self.down:
            return web.json_response({"error": {"message": "Shutting down."}}, status=503)
        if self.key is not None and self.keys[-1] != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "Invalid API key."}}, status=401)
        return None

    async def _models(self, request: web.Request) -> web.Response:
        models = [{"id": name, "object": "model"} for name in self.models]
        return self._refusal(request) or web.json_response({"object": "list", "data": models})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        if refusal := self._refusal(request):
            return refusal
        last = body["messages"][-1]["content"]
        if last.startswith("refuse"):
            return web.json_response({"error": {"message": "max_tokens is too large."}}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        try:
            await self._send(
                response, SCRIPTS.get(last.split("\n\n")[-1].split()[0], lambda: words(f"You said: {last}"))()
            )
        except (asyncio.CancelledError, ConnectionError):
            self.disconnects += 1
            raise
        return response

    async def _send(self, response: web.StreamResponse, events: list[Event]) -> None:
        finish = "stop"
        for event in events:
            if event == "close":
                return
            if isinstance(event, float):
                await asyncio.sleep(event)
            elif isinstance(event, str):
                await response.write(f"{event}\n\n".encode())
            else:
                finish = "tool_calls" if "tool_calls" in event else finish
                await write(response, {"choices": [{"index": 0, "delta": event, "finish_reason": None}]})
        await write(response, {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        await write(response, {"choices": [], "usage": USAGE})
        await response.write(b"data: [DONE]\n\n")

    async def _data(self, request: web.Request) -> web.Response:
        self.polls += 1
        return self._refusal(request) or web.json_response(self.dashboard(self.polls))


async def write(response: web.StreamResponse, chunk: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(chunk)}\n\n".encode())


def figures(poll: int) -> dict[str, Any]:
    """What a busy server would report."""
    wave = (math.sin(poll / 9) + 1) / 2
    values = {
        "requests_per_second": 3 + wave,
        "average_ttft": 0.21,
        "average_throughput": 48.2,
        "generation_tokens_per_second": 900 + 400 * wave,
        "prompt_tokens_per_second": 2100 - 900 * wave,
        "ttft_p50_s": 0.12 + 0.05 * wave,
        "ttft_p99_s": 0.8 + 0.3 * wave,
        "itl_p50_s": 0.018,
        "itl_p99_s": 0.041 + 0.01 * wave,
        "e2el_p50_s": 3.2 + wave,
        "running_requests": 24 + round(8 * wave),
        "queue_size": round(6 * wave),
        "kv_usage": 0.5 + 0.3 * wave,
        "prefix_cache_hit_rate": 0.34 + 0.1 * wave,
        "loop_lag_p99_s": 0.0012 + 0.001 * wave,
        "total_completed": 12_345 + poll,
        "total_failed": 3,
        "total_tokens": 4_812_003 + 900 * poll,
        "compilations": 14,
        "preemptions": 2,
    }
    models = {"qwen3-8b-instruct": values, "demo": {name: None for name in values}}
    return {"time": 1.7e9 + poll, "uptime_s": 7300.0 + poll, "version": "0.1.0", "models": models}


async def eventually(condition: Callable[[], bool], within: float = 10.0) -> None:
    """Waits until something is so on the server."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.02)
