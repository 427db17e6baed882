"""Clients that stop midway: in the head of a request, in its body, in reading its answer."""

from __future__ import annotations

import json
import socket
from functools import partial
from typing import Any

import anyio
import pytest
from aiohttp.test_utils import make_mocked_request

from asurge import Engine
from asurge.errors import ConfigError
from asurge.server import ApiServer, ServerConfig, make_app
from asurge.server.api_server import _bound
from asurge.server.http import disconnect
from asurge.server.http.progress import Progress
from asurge.server.state import STATE
from tests.idle import settle
from tests.server.clients import LONG, TEXT, connect, free_port, head, port_of, post
from tests.server.conftest import Running


@pytest.mark.parametrize("sent", [b"", b"POST /v1/completions HTTP/1.1\r\nHo"])
async def test_a_head_that_never_comes(demo: Engine, sent: bytes) -> None:
    server = ApiServer(demo, port=free_port(), idle_timeout_s=0.2)
    listening = anyio.Event()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(server.serve, signals=False, tell=lambda _: listening.set()))
            await listening.wait()
            reader, writer = await connect(f"http://127.0.0.1:{server.config.port}")
            writer.write(sent)
            assert await reader.read() == b""
            writer.close()
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("path", [TEXT, "/v1/messages", "/tokenize"])
async def test_a_body_that_never_comes(demo: Engine, running: Running, path: str) -> None:
    app = make_app(demo, body_timeout_s=0.1)
    url = await running.start(app, lingering_time=0.05)
    reader, writer = await connect(url)
    writer.write(head(path, 100) + b'{"prompt": ')
    with anyio.fail_after(5):
        told = await reader.read()  # to the end: the connection is closed
    assert told.startswith(b"HTTP/1.1 408 ")
    body = json.loads(told.split(b"\r\n\r\n", 1)[1])["error"]
    assert "body_timeout_s" in body["message"]
    assert body.get("code", "body_timeout") == "body_timeout"
    assert app[STATE].active == 0
    writer.close()


def stalled(url: str, body: dict[str, Any]) -> socket.socket:
    """A client that asks, and reads nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.connect(("127.0.0.1", port_of(url)))
    sock.sendall(post(TEXT, body))
    return sock


@pytest.mark.parametrize("cancels", [True, False])
async def test_a_reader_that_stalls_is_ended(
    demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch, cancels: bool
) -> None:
    monkeypatch.setattr(disconnect, "_WATCH_S", 0.02)
    app = make_app(demo, write_timeout_s=0.1)
    url = await running.start(app)
    before = demo.get_metrics_summary()["total_completed"]
    told = {"include_usage": True, "continuous_usage_stats": True}  # so that it is more than the client's kernel takes
    sock = stalled(url, {**LONG, "n": 16, "stream_options": told})
    with anyio.fail_after(20):
        while not app[STATE].disconnects:
            await anyio.sleep(0.01)
    await settle(demo, left_by_clients=True)
    assert demo.get_metrics_summary()["total_completed"] == before
    assert app[STATE].active == 0
    sock.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux gives up what nobody takes")
def test_what_is_not_streamed_is_the_kernels_to_give_up() -> None:
    with _bound("127.0.0.1", 0, 2.5) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 2500


class Transport:
    """One that keeps what it is given until the test takes it."""

    held = 0

    def get_write_buffer_size(self) -> int:
        return self.held

    def get_extra_info(self, name: str) -> None:
        return None

    def is_closing(self) -> bool:
        return False


def test_a_slow_reader_is_none_that_stalls() -> None:
    now, transport = 0.0, Transport()
    request = make_mocked_request("POST", "/", transport=transport)
    writer = request.writer
    progress = Progress(request, lambda: now)
    writer.output_size = 100
    assert progress.stalled_s() is None  # all is taken
    writer.output_size, transport.held = 1100, 1000
    assert progress.stalled_s() == 0.0
    for _ in range(10):  # a byte at a time, while more is written
        now += 50.0
        writer.output_size, transport.held = writer.output_size + 10, transport.held + 9
        assert progress.stalled_s() == 0.0
    now += 50.0
    writer.output_size, transport.held = writer.output_size + 10, transport.held + 10
    assert progress.stalled_s() == 50.0
    transport.held = 0
    assert progress.stalled_s() is None


@pytest.mark.parametrize("name", ["idle_timeout_s", "body_timeout_s", "write_timeout_s"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        ServerConfig(**{name: 0})
