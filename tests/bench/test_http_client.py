"""The HTTP client against a small server that behaves, or does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from asurge.bench.http_client import HttpClient
from asurge.bench.measure import measure
from asurge.bench.records import Record
from asurge.bench.workloads import Workload
from asurge.errors import BenchmarkError

WORKLOAD = Workload(name="test", requests=3, input_len=4, output_len=6)
Answer = Callable[[web.StreamResponse, dict[str, Any]], Awaitable[None]]


class DisconnectError(Exception):
    """An answer raises it to have the connection cut."""


def chunk(text: str, *, finish: str | None = None, usage: int | None = None, **more: Any) -> dict[str, Any]:
    used = {} if usage is None else {"usage": {"completion_tokens": usage, "prompt_tokens": 4}}
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}], **used, **more}


async def send(response: web.StreamResponse, *events: dict[str, Any] | str) -> None:
    for event in events:
        data = event if isinstance(event, str) else json.dumps(event)
        await response.write(f"data: {data}\n\n".encode())


async def one_token_a_chunk(response: web.StreamResponse, body: dict[str, Any]) -> None:
    for _ in range(body["max_tokens"]):
        await send(response, chunk("x"))
    await send(response, chunk("", finish="length"), "[DONE]")


@asynccontextmanager
async def server(answer: Answer, *, key: str | None = None) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """Serves on a free port; gives its address and the bodies it was sent."""
    bodies: list[dict[str, Any]] = []

    def refused(request: web.Request) -> bool:
        return key is not None and request.headers.get("Authorization") != f"Bearer {key}"

    async def models(request: web.Request) -> web.Response:
        if refused(request):
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        return web.json_response({"data": [{"id": "small"}, {"id": "large"}]})

    async def completions(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        if bodies[-1]["max_tokens"] > 100:
            return web.json_response({"error": {"message": "max_tokens is\ntoo large"}}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            await answer(response, bodies[-1])
        except DisconnectError:
            assert request.transport is not None
            request.transport.abort()
        return response

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/completions", completions)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}", bodies
    finally:
        await runner.cleanup()


async def complete(answer: Answer, output_len: int = 6) -> Record:
    record = Record(4)
    async with server(answer) as (url, _), HttpClient(url) as client:
        await client.complete([1, 2, 3, 4], output_len, record)
    return record


async def test_a_work_over_http() -> None:
    async with (
        server(one_token_a_chunk, key="secret") as (url, bodies),
        HttpClient(f"{url}/v1/", "large", api_key="secret") as client,
    ):
        measured = await measure(client, WORKLOAD, vocab_size=50)
    assert measured.metrics.completed == 3
    assert measured.metrics.output_tokens == 18
    assert measured.metrics.short == 0
    assert [body["model"] for body in bodies] == ["large"] * 3
    assert bodies[0]["ignore_eos"] is True
    assert bodies[0]["temperature"] == 0.0
    assert sorted(body["prompt"] for body in bodies) == sorted(WORKLOAD.prompts(50)[0])


async def test_without_a_name_the_first_model_is_used() -> None:
    async with server(one_token_a_chunk) as (url, _), HttpClient(url) as client:
        assert client.model == "small"


async def test_a_running_count_in_each_chunk_is_believed() -> None:
    async def answer(response: web.StreamResponse, body: dict[str, Any]) -> None:
        await send(
            response, chunk("a", usage=2), chunk("", usage=2), chunk("b", usage=5), chunk("c", finish="length", usage=6)
        )
        await send(response, {"choices": [], "usage": {"completion_tokens": 6}}, "[DONE]")  # fmt: skip

    assert [tokens for _, tokens in (await complete(answer)).deliveries] == [2, 3, 1]


async def test_a_count_at_the_end_corrects_the_chunks() -> None:
    async def answer(response: web.StreamResponse, body: dict[str, Any]) -> None:
        await send(response, chunk("a"), chunk("b"), chunk("c", finish="length"))
        cached = {"prompt_tokens_details": {"cached_tokens": 3}}
        await send(response, {"choices": [], "usage": {"completion_tokens": 6, **cached}}, "[DONE]")

    record = await complete(answer)
    assert [tokens for _, tokens in record.deliveries] == [1, 3, 2]
    assert record.cached_tokens == 3


async def test_an_error_in_the_stream() -> None:
    async def answer(response: web.StreamResponse, body: dict[str, Any]) -> None:
        await send(response, chunk("a"), {"error": {"message": "out of pages"}}, "[DONE]")

    with pytest.raises(BenchmarkError, match="out of pages"):
        await complete(answer)


async def test_a_stream_that_ends_early() -> None:
    async def answer(response: web.StreamResponse, body: dict[str, Any]) -> None:
        await send(response, chunk("a"), chunk("b"))

    with pytest.raises(BenchmarkError, match="closed the stream after 2 tokens"):
        await complete(answer)


async def test_a_connection_that_breaks() -> None:
    async def answer(response: web.StreamResponse, body: dict[str, Any]) -> None:
        await send(response, chunk("a"))
        await asyncio.sleep(0.01)  # so that the chunk is on its way
        raise DisconnectError

    with pytest.raises(BenchmarkError, match="stream broke after 1 tokens"):
        await complete(answer)


async def test_what_is_not_json() -> None:
    async def answer(response: web.StreamResponse, body: dict[str, Any]) -> None:
        await send(response, "<html>")

    with pytest.raises(BenchmarkError, match="stream broke after 0 tokens"):
        await complete(answer)


async def test_a_refused_request_shows_the_servers_words() -> None:
    with pytest.raises(BenchmarkError, match=r"answers 400 .*max_tokens is.*too large"):
        await complete(one_token_a_chunk, output_len=101)


async def test_a_wrong_key() -> None:
    async with server(one_token_a_chunk, key="secret") as (url, _):
        with pytest.raises(BenchmarkError, match=r"401 .*--api-key"):
            await HttpClient(url, api_key="guess").__aenter__()


async def test_a_model_that_is_not_served() -> None:
    async with server(one_token_a_chunk) as (url, _):
        with pytest.raises(BenchmarkError, match=r"'huge' but small, large"):
            await HttpClient(url, "huge").__aenter__()


async def test_no_server() -> None:
    async with server(one_token_a_chunk) as (url, _):
        pass  # its port is free again
    with pytest.raises(BenchmarkError, match=r"no server answers at .*--base-url"):
        await HttpClient(url).__aenter__()


async def test_a_client_that_is_not_connected() -> None:
    with pytest.raises(BenchmarkError, match="async with"):
        await HttpClient("http://127.0.0.1:1").complete([1], 1, Record(1))
