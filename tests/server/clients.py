"""Paths, ports and bare connections, and a request that lasts."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG: dict[str, Any] = {"prompt": "a", "max_tokens": 800, "ignore_eos": True, "stream": True}


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
