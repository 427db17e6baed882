"""Each example does what it says."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from aiohttp.test_utils import TestClient, TestServer

from asurge import Engine
from examples import mount_aiohttp, mount_fastapi
from tests.conftest import TINY
from tests.idle import settle

EXAMPLES = Path(__file__).parent.parent / "examples"
QUESTION = {"q": "What does os.path.join do?"}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("streaming.py", "pathname components"),
        ("batch.py", "Return the number of items in a container."),
        ("chat.py", "current working directory"),
        ("structured.py", "as an object: {'module': "),
        ("openai_client.py", "current working directory"),
    ],
)
def test_scripts(name: str, shown: str) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


async def test_a_route_in_aiohttp_streams_refuses_and_aborts(demo: Engine) -> None:
    app = mount_aiohttp.application(demo)
    async with TestClient(TestServer(app, handler_cancellation=True)) as client:
        body = await (await client.get("/ask", params=QUESTION)).text()
        assert body.count("data: ") > 3
        assert body.endswith("data: [DONE]\n\n")
        refused = await client.get("/ask")
        assert refused.status == 400
        assert "prompt is empty" in await refused.text()

        response = await client.get("/ask", params={"q": "#"})
        await response.content.readany()
        response.close()
        await settle(demo, left_by_clients=True)

        assert "/llm/" in await (await client.get("/")).text()
        asked = {"messages": [{"role": "user", "content": QUESTION["q"]}], "temperature": 0}
        answer = await (await client.post("/llm/v1/chat/completions", json=asked)).json()
        assert "pathname components" in answer["choices"][0]["message"]["content"]
    assert demo.is_running  # it is not the application's


async def test_an_engine_lives_with_its_aiohttp_application(tiny_folder: Path) -> None:
    engine = Engine(str(tiny_folder), name="tiny", **TINY)
    async with TestClient(TestServer(mount_aiohttp.application(engine), handler_cancellation=True)) as client:
        seen = {(await client.get("/ask", params={"q": "a"})).status}
        while (await client.get("/llm/readiness")).status != 200:
            await asyncio.sleep(0.02)
        assert seen == {503}
        assert (await client.get("/ask", params={"q": "a"})).status == 200
    assert engine.state == "stopped"


@asynccontextmanager
async def uvicorn_serving(app: Any) -> AsyncIterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, ws="none", log_level="error"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done()
        await asyncio.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    await task


async def test_a_route_in_fastapi_streams_refuses_and_aborts(tiny_folder: Path) -> None:
    engine = Engine(str(tiny_folder), **TINY)
    async with uvicorn_serving(mount_fastapi.application(engine)) as url, aiohttp.ClientSession(url) as client:
        async with client.get("/ask", params={"q": "a"}) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            assert (await response.text()).endswith("data: [DONE]\n\n")
        async with client.get("/ask", params={"q": ""}) as refused:
            assert (refused.status, (await refused.json())["param"]) == (400, "prompt")
        async with client.get("/ask", params={"q": "a"}) as response:
            await response.content.readany()
            response.close()
        await settle(engine, left_by_clients=True)
        assert engine.get_metrics_summary()["total_completed"] == 1
    assert engine.state == "stopped"


def test_a_server_with_keys() -> None:
    command = [sys.executable, EXAMPLES / "serve_with_keys.py", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            key = process.stdout.readline().removeprefix("key: ").strip()
            assert process.stdout.readline().startswith("curl")
            [url] = re.findall(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
            assert process.stdout.readline() == "ready\n"
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                urllib.request.urlopen(f"{url}/v1/models")
            refused.value.close()
            asked = json.dumps({"prompt": "a", "max_tokens": 2}).encode()
            headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/completions", asked, headers)) as answer:
                assert json.load(answer)["usage"]["completion_tokens"] == 2
            process.send_signal(signal.SIGTERM)
            assert "notebook: 1 requests, 2 tokens" in process.stdout.read()
            assert process.wait(30) == 0
        finally:
            process.kill()
