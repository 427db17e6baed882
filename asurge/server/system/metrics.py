"""Metrics of the server: for Prometheus, as key figures, and for the dashboard."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web
from anyio import to_thread

import asurge
from asurge.server.exchange import KEY
from asurge.server.http.body import reply
from asurge.server.state import STATE, Served, ServerState

_PERCENTILES = (("ttft_p50_s", "ttft_s", 50), ("ttft_p99_s", "ttft_s", 99), ("itl_p50_s", "itl_s", 50), ("itl_p99_s", "itl_s", 99), ("e2el_p50_s", "e2el_s", 50), ("e2el_p99_s", "e2el_s", 99))  # fmt: skip

_COUNTED = {
    "requests": "Requests admitted",
    "prompt_tokens": "Prompt tokens",
    "completion_tokens": "Generated tokens",
    "refused": "Requests refused by the rate limits of their key",
}


async def metrics(request: web.Request) -> web.Response:
    """Return metrics in Prometheus' text format; with ``?format=json``, key figures as JSON.

    Usage is that of the calling key, and the total.
    """
    return await figures_reply(request, request.app[STATE].keys.usage([request[KEY]]))


async def figures_reply(request: web.Request, usage: Mapping[str, Mapping[str, Any]]) -> web.Response:
    """Answer with all metrics and the usage of some keys, in the format of the request."""
    state = request.app[STATE]
    total = dataclasses.asdict(state.keys.total)
    if request.query.get("format") == "json":
        body = {"models": _figures(state), "api_key_usage": usage, "api_usage": total, "disconnects": state.disconnects}
        return reply(orjson.dumps(body))
    text = b"" if state.metrics is None else await to_thread.run_sync(state.metrics.exposition)
    if (lag_s := state.lag.recent.percentile(99)) is not None:
        text += b"# HELP asurge_event_loop_lag_seconds How late the event loop runs what is due, 99th percentile.\n"
        text += b"# TYPE asurge_event_loop_lag_seconds gauge\nasurge_event_loop_lag_seconds %r\n" % lag_s
    text += _exposition(usage, {**{f"api_{kind}": count for kind, count in total.items()}, "client_disconnects": state.disconnects})  # fmt: skip
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def _exposition(usage: Mapping[str, Mapping[str, Any]], totals: Mapping[str, int]) -> bytes:
    """Usage of keys by name, and counters of the whole server, in Prometheus' text format."""
    lines = []
    for kind, counted in _COUNTED.items():
        lines.append(f"# HELP asurge_api_key_{kind}_total {counted}, by API key.")
        lines.append(f"# TYPE asurge_api_key_{kind}_total counter")
        for name, one in usage.items():
            label = str(one["label"]).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
            lines.append(f'asurge_api_key_{kind}_total{{key="{name}",label="{label}"}} {one[kind]}')
    for kind, count in totals.items():
        counted = _COUNTED.get(kind.removeprefix("api_"), "Clients that disconnected before their answer")
        lines += [f"# HELP asurge_{kind}_total {counted}, of all keys.", f"# TYPE asurge_{kind}_total counter"]
        lines.append(f"asurge_{kind}_total {count}")
    return ("\n".join(lines) + "\n").encode()


async def dashboard_data(request: web.Request) -> web.Response:
    """Return the metrics that the dashboard shows."""
    state = request.app[STATE]
    body = {
        "time": time.time(),
        "uptime_s": time.time() - state.started_s,
        "version": asurge.__version__,
        "models": _figures(state),
    }
    return reply(orjson.dumps(body))


def _figures(state: ServerState) -> dict[str, dict[str, float | None]]:
    return {name: _figures_of(state, served) for name, served in state.models.items()}


def _figures_of(state: ServerState, served: Served) -> dict[str, float | None]:
    if not served.engine.is_running or served.figures is None:
        return {}
    now, figures = served.engine.statistics(), served.figures
    found: dict[str, float | None] = dict(served.engine.get_metrics_summary())
    for name, of, percent in _PERCENTILES:
        found[name] = getattr(figures, of).percentile(percent)
    queries = now.prefix_cache_queries
    prompt_rate, generation_rate = served.rates.seen(time.monotonic(), now.prompt_tokens, now.generated_tokens)
    return found | {
        "prompt_tokens_per_second": prompt_rate,
        "generation_tokens_per_second": generation_rate,
        "kv_usage": 1 - now.pages_available / max(now.pages_total, 1),
        "prefix_cache_hit_rate": now.prefix_cache_hits / queries if queries else None,
        "preemptions": now.preemptions,
        "prompt_tokens": now.prompt_tokens,
        "generation_tokens": now.generated_tokens,
        "loop_lag_p99_s": state.lag.recent.percentile(99),
    }
