"""Each example does what it says."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from asurge import Engine
from examples.web_handler import ENGINE, ask

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("streaming.py", "pathname components"),
        ("batch.py", "Return the number of items in a container."),
        ("chat.py", "current working directory"),
        ("structured.py", "as an object: {'module': "),
    ],
)
def test_scripts(name: str, shown: str) -> None:
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


async def test_the_web_handler_streams_refuses_and_aborts(demo: Engine) -> None:
    app = web.Application()
    app[ENGINE] = demo
    app.router.add_get("/ask", ask)
    async with TestClient(TestServer(app, handler_cancellation=True)) as client:
        response = await client.get("/ask", params={"q": "What does os.path.join do?"})
        body = (await response.read()).decode()
        assert body.count("data: ") > 3
        assert body.endswith("data: [DONE]\n\n")

        refused = await client.get("/ask")
        assert refused.status == 400
        assert "prompt is empty" in await refused.text()

        response = await client.get("/ask", params={"q": "#"})
        await response.content.readany()
        response.close()
        async with asyncio.timeout(30):
            while demo.num_running_requests or demo.statistics().in_flight_steps:
                await asyncio.sleep(0.001)
