"""Paths, ports and bare connections, and a request that lasts."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
LONG: dict[str, Any] = {"prompt": "a", "max_tokens": 800, "ignore_eos": True, "stream": True}


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port_of(url))


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def head(path: str, size: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()


def post(path: str, body: dict[str, Any]) -> bytes:
    """A request, as it is sent."""
    data = json.dumps(body).encode()
    return head(path, len(data)) + data


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
