"""Connections: clients that leave, streams that break, what is sent and what is logged."""

from __future__ import annotations

import json
import threading
from functools import partial
from types import SimpleNamespace
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp.test_utils import make_mocked_request

from asurge import Engine
from asurge.errors import RequestFailedError
from asurge.server import ApiServer, ServerConfig, make_app
from asurge.server.http import disconnect
from asurge.server.http.sse import EventStream
from tests.idle import settle
from tests.server.clients import CHAT, LONG, TEXT, connect, free_port, post
from tests.server.conftest import Running
from tests.server.scripted import Scripted


async def test_nothing_is_sent_behind_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a slow reader takes to have the end: a comment behind it would be read as the next answer."""
    transport = SimpleNamespace(get_write_buffer_size=lambda: 0, get_extra_info=lambda _: None)
    request = make_mocked_request("POST", "/", transport=transport, writer=SimpleNamespace(output_size=0))
    events, sent, gone = EventStream(request, ServerConfig(keep_alive_s=1e-9)), list[bytes](), anyio.Event()

    async def write(data: bytes) -> None:
        sent.append(data)

    monkeypatch.setattr(events, "response", SimpleNamespace(write=write, write_eof=gone.wait))
    await events.send(b"data: 1\n\n")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(events.close)
        await anyio.wait_all_tasks_blocked()
        await events.tend()
        gone.set()
    assert sent == [b"data: 1\n\n"]


async def test_a_stream_that_cannot_tell_of_its_failure_is_cut(
    demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second answer within the first, and nobody waits for the end of it."""

    monkeypatch.setattr(demo, "stream", lambda *_, **__: Scripted("one", RequestFailedError("x")))
    monkeypatch.setattr("asurge.server.exchange.EventStream.send", _failing(2))
    url = await running.start(make_app(demo))
    async with aiohttp.ClientSession(url) as http:
        with anyio.fail_after(5), pytest.raises(aiohttp.ClientPayloadError):
            async with http.post(TEXT, json={"prompt": "a", "stream": True}) as response:
                await response.read()


def _failing(at: int) -> Any:
    send, count = EventStream.send, 0

    async def sent(stream: EventStream, events: bytes) -> None:
        nonlocal count
        count += 1
        if count >= at:
            raise ValueError("cannot be said")
        await send(stream, events)

    return sent


@pytest.mark.parametrize("cancels", [True, False])
async def test_clients_that_leave_are_counted_and_charged(
    demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cancels: bool
) -> None:
    """Quietly: one line in the log of accesses, no traceback."""
    monkeypatch.setattr(disconnect, "_WATCH_S", 0.02)
    server = ApiServer(demo)
    url = await running.start(server.app, handler_cancellation=cancels)
    with caplog.at_level("INFO", "asurge.access"):
        reader, writer = await connect(url)
        writer.write(post(TEXT, LONG))
        await reader.readuntil(b"data: ")
        writer.transport.abort()
        await settle(demo, left_by_clients=True)
        with anyio.fail_after(5):
            while server.state.active:
                await anyio.sleep(0.01)
    await running.stop()
    assert server.state.disconnects == 1
    used = server.keys.anonymous.usage
    assert used.prompt_tokens > 0
    assert used.completion_tokens > 0
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert " 499 " in caplog.text


async def test_threads_are_limited_whoever_leaves(demo: Engine, running: Running) -> None:
    """A place among the threads is free again when its work has ended, not when its client has gone."""
    url = await running.start(make_app(demo))
    assert demo._life.admission is not None
    most, begun, go = int(demo._life.admission.inputs._threads.total_tokens), 0, threading.Event()

    def wait(*_: Any, **__: Any) -> str:
        nonlocal begun
        begun += 1
        go.wait(10)
        return "hello"

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("asurge.engine.prompts.render_chat", wait)
        asked = post(CHAT, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})
        for _ in range(2 * most):
            _, writer = await connect(url)
            writer.write(asked)
            await anyio.sleep(0.05)
            writer.transport.abort()
        await anyio.sleep(0.05)
        counted = begun
        go.set()
        await settle(demo, left_by_clients=True)
    assert counted == most


async def test_logs_have_one_line_for_a_request(
    demo: Engine, running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    url = await running.start(make_app(demo))
    with caplog.at_level("INFO", "asurge.access"):
        reader, writer = await connect(url)
        writer.write(b"GET /nope%0aINFO:%20forged%1b[31m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()
    (record,) = caplog.records
    assert record.getMessage().isprintable()


@pytest.mark.parametrize("sent", [b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-secret\x01\r\n\r\n", b"GET /v1/models?api_key=sk-secret HTTP/9\r\n\r\n", b"GET /sk-secret HTTP/1.1\r\nX-Key: " + b"sk-secret" * 2_000 + b"\r\n\r\n"])  # fmt: skip
async def test_heads_that_cannot_be_read_are_not_quoted(
    demo: Engine, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    server = ApiServer(demo, port=free_port())
    listening = anyio.Event()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(server.serve, signals=False, tell=lambda _: listening.set()))
            await listening.wait()
            with caplog.at_level("DEBUG"):
                reader, writer = await connect(f"http://127.0.0.1:{server.config.port}")
                writer.write(sent)
                told = await reader.read()  # to the end: the connection is closed
            writer.close()
            tasks.cancel_scope.cancel()
    top, body = told.split(b"\r\n\r\n", 1)
    assert top.split(b" ")[1] == b"400"
    assert json.loads(body)["error"]["code"] == "invalid_http"
    (record,) = (one for one in caplog.records if one.name in ("asurge.server", "aiohttp.server"))
    assert "127.0.0.1" in record.getMessage()
    assert "secret" not in caplog.text
    assert b"secret" not in told
