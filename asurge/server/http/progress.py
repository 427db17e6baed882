"""Whether a client takes what it is sent."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from typing import NamedTuple

import anyio
from aiohttp import web


class Progress:
    """Tells a reader that has stopped from one that is slow."""

    def __init__(self, request: web.Request, clock: Callable[[], float] = anyio.current_time) -> None:
        self._request, self._clock = request, clock
        self._taken, self._since_s = 0, 0.0

    def stalled_s(self) -> float | None:
        """Seconds for which nothing has been taken, as seen by calls of this; None: nothing is waiting to be taken."""
        transport, now = self._request.transport, self._clock()
        if transport is None:
            return None
        held = transport.get_write_buffer_size()
        kernel = _kernel(transport)
        # What the process holds says nothing about a reader while megabytes of it fit into the kernel.
        waits = held > 0 or (kernel is not None and kernel.waits)
        taken = self._request.writer.output_size - held if kernel is None else kernel.taken
        if not waits or taken != self._taken:
            self._taken, self._since_s = taken, now
        return now - self._since_s if waits else None


class _Kernel(NamedTuple):
    """What Linux reports of a connection: whether it holds bytes that the other end has not acknowledged, and how many that
    end has."""

    waits: bool
    taken: int


_TCP_INFO = struct.Struct("=24xI92xQ16xI")
"""Of Linux' ``struct tcp_info`` the fields ``tcpi_unacked``, ``tcpi_bytes_acked`` and ``tcpi_notsent_bytes``."""


def _kernel(transport: asyncio.Transport) -> _Kernel | None:
    sock = transport.get_extra_info("socket")
    if sys.platform != "linux" or sock is None:
        return None
    try:
        unacked, taken, unsent = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    except (OSError, struct.error):  # it is closed, or not TCP; or the kernel is older than 4.6
        return None
    return _Kernel(unacked + unsent > 0, taken)
