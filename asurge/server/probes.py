"""What the server tells of itself: models, tokens, health, figures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import orjson
from aiohttp import web
from anyio import to_thread

import asurge
from asurge.server.attending import threaded
from asurge.server.conversation import all_tokens, allowed_kwargs, conversation_tokens
from asurge.server.errors import ApiError
from asurge.server.exchange import KEY, read, reply
from asurge.server.schema.chat import Message, Tool
from asurge.server.schema.models import (
    CountTokensRequest,
    CountTokensResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    Model,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
)
from asurge.server.state import STATE, Served, ServerState

_PERCENTILES = (("ttft_p50_s", "ttft_s", 50), ("ttft_p99_s", "ttft_s", 99), ("itl_p50_s", "itl_s", 50), ("itl_p99_s", "itl_s", 99), ("e2el_p50_s", "e2el_s", 50), ("e2el_p99_s", "e2el_s", 99))  # fmt: skip


# ── models ──────────────────────────────────────────────────────────────────────────────────────


async def models(request: web.Request) -> web.Response:
    """All models, and their aliases."""
    state = request.app[STATE]
    return reply(ModelList(data=[_model(state, name) for name in (*state.models, *state.aliases)]))


async def model(request: web.Request) -> web.Response:
    """One model."""
    state, name = request.app[STATE], request.match_info["model"]
    if name not in state.models and name not in state.aliases:
        raise ApiError(f"the model {name[:100]!r} does not exist", status=404, code="model_not_found", param="model")
    return reply(_model(state, name))


def _model(state: ServerState, name: str) -> Model:
    served = state.models[state.aliases.get(name, name)]
    length = served.engine.max_model_len if served.engine.is_running else None
    root = served.name if name in state.aliases else name
    return Model(id=name, created=served.created, max_model_len=length, root=root)


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────


async def tokenize(request: web.Request) -> web.Response:
    """A text or a conversation, as tokens."""
    asked = await read(request, TokenizeRequest)
    served = request.app[STATE].find(asked.model)
    tokens = _tokens(
        served,
        asked.prompt,
        asked.messages,
        asked.tools,
        special=asked.add_special_tokens,
        template_kwargs=allowed_kwargs(asked.chat_template_kwargs, request.app[STATE].config),
    )

    def answer() -> bytes:
        ids, decode = tokens(), served.engine.tokenizer.decode
        strings = [decode([one], skip_special_tokens=False) for one in ids] if asked.return_token_strs else None
        return msgspec.json.encode(
            TokenizeResponse(count=len(ids), max_model_len=served.engine.max_model_len, tokens=ids, token_strs=strings)
        )

    return reply(await threaded(request, answer))


async def detokenize(request: web.Request) -> web.Response:
    """Token ids, as text."""
    asked = await read(request, DetokenizeRequest)
    tokenizer = request.app[STATE].find(asked.model).engine.tokenizer

    def answer() -> bytes:
        tokens = asked.tokens
        if tokens and not (min(tokens) >= 0 and max(tokens) < tokenizer.vocab_size):
            wrong = next(token for token in tokens if not 0 <= token < tokenizer.vocab_size)
            raise ApiError(
                f"tokens holds the token id {wrong}: ids must be in [0, {tokenizer.vocab_size})", param="tokens"
            )
        return msgspec.json.encode(DetokenizeResponse(prompt=tokenizer.decode(tokens, skip_special_tokens=False)))

    return reply(await threaded(request, answer))


async def count_tokens(request: web.Request) -> web.Response:
    """How many tokens a text or a conversation has."""
    asked = await read(request, CountTokensRequest)
    served = request.app[STATE].find(asked.model)
    text = asked.text if asked.text is not None else asked.prompt
    tokens = await threaded(request, _tokens(served, text, asked.messages, asked.tools, special=True))
    return reply(CountTokensResponse(count=len(tokens), max_model_len=served.engine.max_model_len))


async def tokenizer_info(request: web.Request) -> web.Response:
    """What the tokenizer is."""
    served = request.app[STATE].find(request.query.get("model"))
    tokenizer = served.engine.tokenizer
    info: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "eos_token_ids": sorted(tokenizer.eos_token_ids),
        "chat_template": tokenizer.chat_template,
        "max_model_len": served.engine.max_model_len,
    }
    return reply(orjson.dumps(info))


def _tokens(
    served: Served,
    text: str | None,
    messages: list[Message] | None,
    tools: list[Tool] | None,
    *,
    special: bool,
    template_kwargs: dict[str, Any] | None = None,
) -> Callable[[], list[int]]:
    """What makes tokens of a text or a conversation, in a thread.

    Raises:
        ApiError: both are given, or none.
    """
    if (text is None) == (messages is None):
        raise ApiError("give either a text or messages", param="prompt")

    def tokens() -> list[int]:
        if text is not None:
            return all_tokens(served, text, "prompt", special=special)
        return conversation_tokens(served, messages or (), tools, template_kwargs)

    return tokens


# ── health ──────────────────────────────────────────────────────────────────────────────────────


async def liveness(request: web.Request) -> web.Response:
    """200 while the process serves HTTP."""
    return _told("alive", 200)


async def readiness(request: web.Request) -> web.Response:
    """200 while every model takes requests; 503 while one loads, has failed, or the server stops."""
    return _told("ready", 200) if request.app[STATE].is_ready else _told("not ready", 503)


async def health(request: web.Request) -> web.Response:
    """200 unless a model has failed or could not start. A server that is busy is healthy."""
    return _told("healthy", 200) if request.app[STATE].is_healthy else _told("failed", 503)


def _told(status: str, code: int) -> web.Response:
    return web.Response(body=orjson.dumps({"status": status}), content_type="application/json", status=code)


async def version(request: web.Request) -> web.Response:
    """Of asurge."""
    return reply(orjson.dumps({"version": asurge.__version__}))


async def load(request: web.Request) -> web.Response:
    """Requests under way."""
    return reply(orjson.dumps({"server_load": request.app[STATE].active}))


# ── figures ─────────────────────────────────────────────────────────────────────────────────────


async def metrics(request: web.Request) -> web.Response:
    """Prometheus' text format; with ``?format=json``, key figures as JSON. Of usage, that of the key that asks, and the
    total."""
    return await told_figures(request, request.app[STATE].keys.usage([request[KEY]]))


async def told_figures(request: web.Request, usage: Mapping[str, Mapping[str, Any]]) -> web.Response:
    """All figures, with the usage of some keys, in the form that a request asks for."""
    state = request.app[STATE]
    total = dataclasses.asdict(state.keys.total)
    if request.query.get("format") == "json":
        body = {"models": _figures(state), "api_key_usage": usage, "api_usage": total, "disconnects": state.disconnects}
        return reply(orjson.dumps(body))
    text = b"" if state.metrics is None else await to_thread.run_sync(state.metrics.exposition)
    text += _exposition(usage, {**{f"api_{kind}": count for kind, count in total.items()}, "client_disconnects": state.disconnects})  # fmt: skip
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


def _exposition(usage: Mapping[str, Mapping[str, Any]], totals: Mapping[str, int]) -> bytes:
    """What keys were used for, by name, and counters of the whole server, in Prometheus' text format."""
    lines = []
    for kind in ("requests", "prompt_tokens", "completion_tokens", "refused"):
        lines.append(f"# TYPE asurge_api_key_{kind}_total counter")
        for name, one in usage.items():
            label = str(one["label"]).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
            lines.append(f'asurge_api_key_{kind}_total{{key="{name}",label="{label}"}} {one[kind]}')
    for kind, count in totals.items():
        lines += [f"# TYPE asurge_{kind}_total counter", f"asurge_{kind}_total {count}"]
    return ("\n".join(lines) + "\n").encode()


async def dashboard_data(request: web.Request) -> web.Response:
    """What the dashboard shows."""
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
