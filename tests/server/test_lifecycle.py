"""Loading, draining, disconnects, slow readers, failures: nothing is lost, nothing stays behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import aiohttp
import anyio
import anyio.lowlevel
import openai
import pytest
import trustme
from aiohttp import web
from anyio import to_thread

from asurge import Engine
from asurge.cli.main import main
from asurge.errors import ConfigError, EngineDeadError, RequestFailedError
from asurge.server import ApiServer, ServerConfig, api_server, make_app
from asurge.server.http import disconnect
from asurge.server.state import STATE
from tests.conftest import TINY
from tests.idle import settle
from tests.server.clients import LONG, TEXT, connect, free_port, post
from tests.server.conftest import Running
from tests.server.scripted import Scripted


def last_code(text: str) -> str:
    """Of the error that a stream ended with."""
    return str(json.loads(text.strip().split("\n\n")[-1][6:])["error"]["code"])


async def test_it_answers_while_models_load_and_then_serves(tiny_folder: Path, running: Running) -> None:
    engine = Engine(str(tiny_folder), name="tiny", **TINY)
    app = make_app(engine)
    url = await running.start(app)
    async with aiohttp.ClientSession(url) as http:
        seen = set()
        while not app[STATE].settled.is_set():
            for path in ("/liveness", "/readiness", "/health"):
                async with http.get(path) as response:
                    seen.add((path, response.status))
            async with http.post(TEXT, json={"prompt": "a"}) as response:
                if response.status == 503:
                    assert int(response.headers["Retry-After"]) > 0
                    seen.add(("loading", (await response.json())["error"]["code"]))
            await anyio.sleep(0.02)
        assert {("/liveness", 200), ("/readiness", 503), ("/health", 200), ("loading", "loading")} <= seen
        async with http.get("/readiness") as response:
            assert response.status == 200
        async with http.post(TEXT, json={"prompt": "a", "max_tokens": 2}) as response:
            assert response.status == 200
    await running.stop()
    assert engine.state == "stopped"


async def test_a_model_that_cannot_start_is_told_of(tmp_path: Path, running: Running) -> None:
    app = make_app(Engine(str(tmp_path / "nothing"), name="none"))
    url = await running.start(app)
    with anyio.fail_after(10):
        await app[STATE].settled.wait()
    async with aiohttp.ClientSession(url) as http:
        for path in ("/readiness", "/health"):
            async with http.get(path) as response:
                assert response.status == 503
        async with http.post(TEXT, json={"prompt": "a"}) as response:
            told = (await response.json())["error"]
            assert (response.status, told["code"]) == (503, "unavailable")
            assert str(tmp_path) not in told["message"]


async def test_engines_of_others_are_left_running(demo: Engine, running: Running) -> None:
    await running.start(make_app(demo))
    await running.stop()
    assert demo.is_running


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("cancels", [True, False])
async def test_a_client_that_leaves_ends_its_request(
    demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch, stream: bool, cancels: bool
) -> None:
    monkeypatch.setattr(disconnect, "_WATCH_S", 0.02)
    url = await running.start(make_app(demo), handler_cancellation=cancels)
    reader, writer = await connect(url)
    writer.write(post(TEXT, {**LONG, "stream": stream}))
    with anyio.fail_after(5):
        while not demo.num_running_requests:
            await anyio.sleep(0.005)
    if stream:
        await reader.read(100)
    writer.transport.abort()
    before = demo.get_metrics_summary()["total_completed"]
    await settle(demo, left_by_clients=True)
    assert demo.get_metrics_summary()["total_completed"] == before


async def test_a_storm_of_disconnects(demo: Engine, running: Running) -> None:
    url = await running.start(make_app(demo))

    async def leave(http: aiohttp.ClientSession, at: int) -> None:
        async with http.post(TEXT, json={**LONG, "stream": at % 3 > 0}) as response:
            for _ in range(at % 4):
                await response.content.readany()

    for _ in range(3):
        async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as http:
            with anyio.move_on_after(0.3):
                async with anyio.create_task_group() as tasks:
                    for at in range(60):
                        tasks.start_soon(leave, http, at)
        await settle(demo, left_by_clients=True)
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        assert (await client.completions.create(model="demo", prompt="a", max_tokens=1)).choices


async def test_a_slow_reader_holds_nobody_up(demo: Engine, running: Running) -> None:
    app = make_app(demo)
    url = await running.start(app)
    async with aiohttp.ClientSession(url, read_bufsize=256) as http, http.post(TEXT, json=LONG) as slow:
        await slow.content.readany()
        async with http.post(TEXT, json={"prompt": "a", "max_tokens": 20}) as response:
            assert response.status == 200
        with anyio.fail_after(20):
            text = (await slow.read()).decode()
    assert text.endswith("data: [DONE]\n\n")
    await settle(demo, left_by_clients=True)


async def test_a_server_that_drains_finishes_what_it_has(demo: Engine, running: Running) -> None:
    app = make_app(demo)
    url = await running.start(app)
    async with aiohttp.ClientSession(url) as http, http.post(TEXT, json={**LONG, "max_tokens": 200}) as response:
        await response.content.readany()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app[STATE].drain)
            await anyio.lowlevel.checkpoint()
            async with http.post(TEXT, json={"prompt": "a"}) as refused:
                assert refused.status == 503
            async with http.get("/readiness") as probe:
                assert probe.status == 503
            rest = (await response.read()).decode()
    assert rest.endswith("data: [DONE]\n\n")


async def test_what_takes_too_long_is_aborted_and_told(tiny_folder: Path, running: Running) -> None:
    engine = Engine(str(tiny_folder), name="tiny", **TINY)
    app = make_app(engine, drain_timeout_s=0.05)
    url = await running.start(app)
    await app[STATE].settled.wait()
    long = {**LONG, "max_tokens": 100, "min_tokens": 100, "n": 4}
    async with (
        aiohttp.ClientSession(url) as http,
        anyio.create_task_group() as tasks,
        http.post(TEXT, json=long) as response,
    ):
        await response.content.readany()
        tasks.start_soon(running.stop)
        rest = (await response.read()).decode()
    if "[DONE]" not in rest:
        assert last_code(rest) == "unavailable"


async def test_requests_to_others_engines_are_aborted_and_told_too(demo: Engine, running: Running) -> None:
    url = await running.start(make_app(demo, drain_timeout_s=0.05))
    async with (
        aiohttp.ClientSession(url) as http,
        anyio.create_task_group() as tasks,
        http.post(TEXT, json={**LONG, "n": 8}) as response,
    ):
        await response.content.readany()
        tasks.start_soon(running.stop)
        rest = (await response.read()).decode()
    assert last_code(rest) == "unavailable"
    await settle(demo, left_by_clients=True)


async def test_an_engine_that_the_host_starts_is_the_hosts(tiny_folder: Path, running: Running) -> None:
    """Made before it is started, started by the application it is mounted in."""
    engine, app = Engine(str(tiny_folder), name="tiny", **TINY), web.Application()

    async def own(app: web.Application) -> AsyncIterator[None]:
        async with engine:
            yield

    app.cleanup_ctx.append(own)
    app.add_subapp("/llm", make_app(engine))
    url = await running.start(app)
    async with (
        aiohttp.ClientSession(url) as http,
        http.post(f"/llm{TEXT}", json={"prompt": "a", "max_tokens": 1}) as answer,
    ):
        assert answer.status == 200
    await running.stop()
    assert engine.state == "stopped"


async def test_models_start_beside_each_other(tiny_folder: Path, running: Running) -> None:
    """In a fresh process, where both import what they need at the same time."""
    script = f"""
import anyio, asurge
from asurge.server import make_app
from asurge.server.state import STATE
from aiohttp import web
async def main():
    settings = {TINY!r}
    app = make_app({{name: asurge.Engine({str(tiny_folder)!r}, name=name, **settings) for name in "ab"}})
    runner = web.AppRunner(app)
    await runner.setup()
    await app[STATE].settled.wait()
    assert app[STATE].is_ready, [one.error for one in app[STATE].models.values()]
    await runner.cleanup()
anyio.run(main)
"""
    done = await to_thread.run_sync(
        lambda: subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    )
    assert done.returncode == 0, done.stderr


async def test_streams_tell_of_failures_and_not_of_success(
    demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await running.start(make_app(demo))
    for error, code in ((RequestFailedError("secret"), "request_failed"), (ValueError("secret"), "internal_error")):
        stream = Scripted("one", " two", error)
        monkeypatch.setattr(demo, "stream", lambda *_, stream=stream, **__: stream)
        async with (
            aiohttp.ClientSession(url) as http,
            http.post(TEXT, json={"prompt": "a", "stream": True}) as response,
        ):
            assert response.status == 200
            text = (await response.read()).decode()
        assert "one" in text
        assert "[DONE]" not in text
        assert "secret" not in text
        assert last_code(text) == code
        assert stream.closed
    monkeypatch.setattr(demo, "stream", lambda *_, **__: Scripted("one", RequestFailedError("x")))
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(openai.APIError, match="the request failed"):
            async for _ in await client.completions.create(model="demo", prompt="a", stream=True):
                pass


async def test_silent_streams_are_kept_alive(demo: Engine, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disconnect, "_WATCH_S", 0.01)
    monkeypatch.setattr(demo, "stream", lambda *_, **__: Scripted("one", 0.2, "two"))
    url = await running.start(make_app(demo, keep_alive_s=0.05))
    async with aiohttp.ClientSession(url) as http, http.post(TEXT, json={"prompt": "a", "stream": True}) as response:
        text = (await response.read()).decode()
    assert 1 <= text.count(": keep-alive\n\n") <= 4
    assert text.endswith("data: [DONE]\n\n")


async def test_mounted_in_an_application(demo: Engine, running: Running) -> None:
    app = web.Application()
    app.router.add_get("/", _hello)
    app.add_subapp("/llm", make_app(demo))
    url = await running.start(app)
    async with openai.AsyncOpenAI(base_url=f"{url}/llm/v1", api_key="none") as client:
        answer = await client.completions.create(model="demo", prompt="a", max_tokens=1)
        assert answer.choices
    async with aiohttp.ClientSession(url) as http, http.get("/") as response:
        assert await response.text() == "mine"


async def _hello(request: web.Request) -> web.Response:
    return web.Response(text="mine")


async def test_several_models(demo: Engine, tiny: Engine, running: Running) -> None:
    url = await running.start(make_app({"a": demo, "b": tiny}, aliases={"c": "b"}))
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
        listed = [model.id async for model in await client.models.list()]
        texts = {name: (await client.completions.create(model=name, prompt="a", max_tokens=8, temperature=0)).choices[0].text for name in "abc"}  # fmt: skip
        assert (await client.models.retrieve("c")).id == "c"
    assert listed == ["a", "b", "c"]
    assert texts["b"] == texts["c"] != texts["a"]
    for wrong in ({"d": "x"}, {"a": "b"}):
        with pytest.raises(ConfigError, match="alias"):
            make_app({"a": demo, "b": tiny}, aliases=wrong)


async def test_a_server_whose_engine_has_failed_answers_what_is_open_and_stops(tiny_folder: Path) -> None:
    engine = Engine(str(tiny_folder), name="tiny", **TINY)
    server = ApiServer(engine, port=free_port())
    url, ready = f"http://127.0.0.1:{server.config.port}", anyio.Event()
    text = ""

    async def read() -> None:
        nonlocal text
        await ready.wait()
        async with aiohttp.ClientSession(url) as http, http.post(TEXT, json=LONG) as response:
            await response.content.readany()
            assert engine._life.pipeline is not None
            engine._life.pipeline.fail(RuntimeError("the device is lost"))
            text = (await response.read()).decode()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            with pytest.raises(EngineDeadError, match="the device is lost"):
                await server.serve(signals=False, on_ready=ready.set)
    assert last_code(text) == "unavailable"
    assert engine.state == "stopped"


async def test_a_server_may_be_kept_although_its_engine_has_failed(
    tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(str(tiny_folder), name="tiny", **TINY)
    server = ApiServer(engine, port=free_port(), keep_alive_on_engine_death=True)
    url, ready = f"http://127.0.0.1:{server.config.port}", anyio.Event()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(server.serve, signals=False, on_ready=ready.set))
            await ready.wait()
            assert engine._life.pipeline is not None
            engine._life.pipeline.fail(RuntimeError("the device is lost"))
            await server.state.engine_died.wait()
            async with aiohttp.ClientSession(url) as http:
                async with http.get("/health") as response:
                    assert response.status == 503
                async with http.post(TEXT, json={"prompt": "a"}) as response:
                    assert response.status == 503
            tasks.cancel_scope.cancel()
    reports = [one for one in caplog.records if "the device is lost" in one.getMessage()]
    assert [one.levelname for one in reports] == ["CRITICAL"]


def test_the_command_ends_with_an_error_when_its_engine_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fire(server: ApiServer, **_: object) -> None:
        raise EngineDeadError("the engine failed")

    monkeypatch.setattr(ApiServer, "fire", fire)
    assert main(["serve", "demo", "--port", "0"]) > 0
    assert "the engine failed" in capsys.readouterr().err


def _serve(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "asurge.cli.main", "serve", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


def certified(folder: Path) -> tuple[Path, Path, ssl.SSLContext]:
    """A fresh certificate of the loopback address, its key, and who trusts it."""
    authority, trust = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(trust)
    made = authority.issue_cert("127.0.0.1")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    return certificate, key, trust


async def test_a_renewed_certificate_is_read_again(
    demo: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_server, "_RELOAD_S", 0.02)
    certificate, key, trust = certified(tmp_path)
    server = ApiServer(demo, port=free_port(), certificate=certificate, certificate_key=key)
    url = f"https://127.0.0.1:{server.config.port}"

    async def trusted_by(context: ssl.SSLContext) -> bool:
        async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(ssl=context)) as http:
            try:
                async with http.get("/liveness") as response:
                    return response.status == 200
            except aiohttp.ClientConnectorCertificateError:
                return False

    listening = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(server.serve, signals=False, tell=lambda _: listening.set()))
        await listening.wait()
        assert await trusted_by(trust)
        *_, newly = certified(tmp_path)
        with anyio.fail_after(5):
            while not await trusted_by(newly):
                await anyio.sleep(0.02)
        assert not await trusted_by(trust)
        tasks.cancel_scope.cancel()


async def test_the_command_serves_until_it_is_told_to_stop(tiny_folder: Path, tmp_path: Path) -> None:
    """With TLS and keys; SIGTERM lets a stream finish, and the status is 0."""
    certificate, key, trust = certified(tmp_path)
    keys = tmp_path / "keys"
    keys.write_text("# keys\nsk-from-the-file label of it\n")
    port = free_port()
    settings = [f"{name}={json.dumps(value)}" for name, value in TINY.items() if name != "silent_mode"]
    process = _serve(f"tiny={tiny_folder}", "--port", str(port), "--certificate", str(certificate), "--certificate-key", str(key), "--api-key-file", str(keys), "--set", *settings, ASURGE_API_KEYS="sk-from-the-environment")  # fmt: skip
    connector = aiohttp.TCPConnector(ssl=trust)
    try:
        async with aiohttp.ClientSession(f"https://127.0.0.1:{port}", connector=connector) as http:
            with anyio.fail_after(90):
                while True:
                    try:
                        async with http.get("/readiness") as response:
                            if response.status == 200:
                                break
                    except aiohttp.ClientError:
                        pass
                    assert process.poll() is None, process.stderr and process.stderr.read()
                    await anyio.sleep(0.1)
            async with http.get("/v1/models") as response:
                assert response.status == 401
            headers = {"Authorization": "Bearer sk-from-the-file"}
            async with http.post(TEXT, json={**LONG, "max_tokens": 60}, headers=headers) as response:
                await response.content.readany()
                process.send_signal(signal.SIGTERM)
                assert (await response.read()).endswith(b"data: [DONE]\n\n")
        _, told = await to_thread.run_sync(lambda: process.communicate(timeout=20))
        assert process.returncode == 0
        assert "asurge: ready" in told
        assert re.search(r"POST /v1/completions 200 \d+ ms key-\w+", told)
        assert "sk-from" not in told
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--certificate", "/nowhere.pem", "--certificate-key", "/nowhere.key"], "certificate="),
        (["--api-key-file", "/nowhere"], "api_key_file="),
        (["--api-key", "short"], "API key"),
        (["--port", "99999"], "port=99999"),
        (["a=demo", "a=demo"], "two models"),
        (["demo", "--model", "/nowhere"], "model='/nowhere'"),
        (["demo", "--set", "model=/nowhere"], "model='/nowhere'"),
        (["a=demo", "b=demo", "--served-model-name", "b"], "'b'"),
        (["--tool-call-parser", "nope"], "tool_format='nope'"),
        (["/nowhere/at/all", "--port", "0"], "/nowhere/at/all"),
    ],
)
def test_the_command_tells_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--served-model-name", "demo", "--served-model-name", "gpt"], ["demo", "gpt"]),
        (["--model", "demo"], ["demo"]),
        (["a=demo", "--served-model-name", "a"], ["a"]),
    ],
)
def test_the_command_names_its_models(arguments: list[str], names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    served = list[str]()
    monkeypatch.setattr(ApiServer, "fire", lambda self, **_: served.extend((*self.state.models, *self.state.aliases)))
    assert main(["serve", *arguments]) == 0
    assert served == names


async def test_readiness_is_told_once(demo: Engine) -> None:
    told: list[str] = []
    server = ApiServer(demo, port=free_port())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(server.serve, signals=False, tell=told.append, on_ready=lambda: told.append("…")))
        while "ready" not in told:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert told[1:] == ["…", "ready"]


async def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = ApiServer(Engine("demo"), port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="cannot be used"):
            await server.serve()


async def test_embeddings_that_take_too_long_are_aborted_and_told(demo: Engine, running: Running) -> None:
    app = make_app(demo, drain_timeout_s=0.05)
    url = await running.start(app, shutdown_timeout=60.0)
    async with aiohttp.ClientSession(url) as http, anyio.create_task_group() as tasks:

        async def stop_once_it_computes() -> None:
            while not demo.num_running_requests:
                await anyio.sleep(0.005)
            await running.stop()

        tasks.start_soon(stop_once_it_computes)
        async with http.post("/v1/embeddings", json={"input": ["a b c " * 300] * 256}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "unavailable")
    await settle(demo, left_by_clients=True)


async def test_an_empty_host_is_not_every_host(demo: Engine) -> None:
    """As of a variable that is not set: without keys, anybody could come."""
    with pytest.raises(ConfigError, match="names no address"):
        await ApiServer({"demo": demo}).serve("", 0, signals=False)


def test_settings_do_not_show_the_admin_key() -> None:
    assert "secret" not in repr(ServerConfig(admin_key="secret-of-the-admin"))


async def test_a_folders_name_is_its_models_and_its_path_works_too(tiny_folder: Path, running: Running) -> None:
    engine = Engine(str(tiny_folder), **TINY)
    assert engine.name == tiny_folder.name
    assert Engine(str(tiny_folder), name="mine").name == "mine"
    assert Engine("demo").name == "demo"
    url = await running.start(make_app(engine))
    async with aiohttp.ClientSession(url) as http:
        while (await http.get("/readiness")).status != 200:
            await anyio.sleep(0.01)
        for name in (tiny_folder.name, str(tiny_folder)):  # answers name the model as their request did
            async with http.post("/v1/completions", json={"model": name, "prompt": "a", "max_tokens": 1}) as answer:
                assert answer.status == 200
                assert (await answer.json())["model"] == name
        for path in ("/v1/models", "/metrics", "/dashboard/data"):
            async with http.get(path) as answer:
                assert str(tiny_folder.parent) not in await answer.text()
