"""A thousand streams at once against a server: ``python -m benchmarks.http_load [--model demo] [--streams 1000] [--rounds 4]``.

Starts `asurge serve`, opens all streams together, reads each to its mark of success, and does it again. Reports tokens per
second, lost streams, the server's resident memory after each round, and its event loop's lag: memory that grows with rounds, or
one stream that does not end well, is a fault. ``--leave 0.5`` has that share of clients leave midway, ``--slow 0.1`` has that
share read at a trickle.
"""

from __future__ import annotations

import argparse
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import aiohttp
import anyio
import orjson
import psutil
from rich.console import Console

_READY_S = 300.0


async def read_stream(http: aiohttp.ClientSession, body: dict[str, Any], found: Counter[str], behaviour: str) -> None:
    """Read one stream, and note how it ended."""
    try:
        async with http.post("/v1/completions", json=body) as response:
            if response.status != 200:
                found[f"status {response.status}"] += 1
                return
            last = b""
            async for line in response.content:
                if line.startswith(b"data: "):
                    last = line
                    found["events"] += 1
                if behaviour == "leaves" and random.random() < 0.2:
                    found["left"] += 1
                    return
                if behaviour == "slow":
                    await anyio.sleep(0.02)
            found["done" if last.startswith(b"data: [DONE]") else "cut off"] += 1
    except (aiohttp.ClientError, TimeoutError) as error:
        found[type(error).__name__] += 1


async def load(url: str, given: argparse.Namespace, server: psutil.Process, console: Console) -> bool:
    """All rounds; whether everything ended as it should."""
    sound = True
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as http:
        for at in range(given.rounds):
            found: Counter[str] = Counter()
            begun = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                for stream in range(given.streams):
                    sampled = random.random()
                    behaviour = (
                        "leaves" if sampled < given.leave else "slow" if sampled < given.leave + given.slow else ""
                    )
                    body = {"prompt": f"Question {at} {stream}: what", "max_tokens": given.tokens, "ignore_eos": True, "stream": True}  # fmt: skip
                    tasks.start_soon(read_stream, http, body, found, behaviour)
            took = time.perf_counter() - begun
            await anyio.sleep(1.0)
            async with http.get("/metrics?format=json") as response:
                figures = orjson.loads(await response.read())
            model = next(iter(figures["models"].values()))
            ended = found["done"] + found["left"]
            sound &= ended == given.streams and not model["active_requests"] and model["kv_usage"] == 0
            console.print(
                f"round {at}: {took:.1f} s, {found['events'] / took:.0f} events/s, {dict(found)}, "
                f"server {server.memory_info().rss / 1e6:.0f} MB, {server.num_fds()} files, loop lag p99 {1e3 * (model['loop_lag_p99_s'] or 0):.1f} ms, "
                f"still active {model['active_requests']}, KV in use {model['kv_usage']:.0%}"
            )
    return sound


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--leave", type=float, default=0.0)
    parser.add_argument("--slow", type=float, default=0.0)
    given = parser.parse_args()
    console = Console()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "asurge.cli.main", "serve", given.model, "--port", str(port), "--no-access-log", "--set", f"max_queued_requests={given.streams}"]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        return 0 if anyio.run(_run, f"http://127.0.0.1:{port}", given, psutil.Process(process.pid), console) else 1
    finally:
        process.send_signal(signal.SIGTERM)
        console.print(f"the server's status: {process.wait(60)}")


async def _run(url: str, given: argparse.Namespace, server: psutil.Process, console: Console) -> bool:
    with anyio.fail_after(_READY_S):
        async with aiohttp.ClientSession(url) as http:
            while True:
                try:
                    async with http.get("/readiness") as response:
                        if response.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await anyio.sleep(0.2)
    return await load(url, given, server, console)


if __name__ == "__main__":
    sys.exit(main())
