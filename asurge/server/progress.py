"""Whether a client takes what it is sent."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress

import anyio
from aiohttp import web

try:
    import fcntl
    import termios
except ImportError:  # Windows, which has no such question
    fcntl = termios = None  # type: ignore[assignment]


class Progress:
    """Tells a reader that has stopped from one that is slow."""

    def __init__(self, request: web.Request, clock: Callable[[], float] = anyio.current_time) -> None:
        self._request, self._clock = request, clock
        self._taken, self._since_s = 0, 0.0

    def stalled_s(self) -> float | None:
        """For how many seconds nothing was taken, as far as one has looked; None: nothing waits to be taken."""
        waiting, now = _waiting(self._request.transport), self._clock()
        taken = self._request.writer.output_size - waiting
        # Under TLS what waits is more than was written: only growth is progress, and where nothing waits it begins anew.
        if not waiting or taken > self._taken:
            self._taken, self._since_s = taken, now
        return now - self._since_s if waiting else None


def _waiting(transport: asyncio.Transport | None) -> int:
    """Bytes on their way: those in the process, and those in the kernel where it tells, which may hold megabytes."""
    if transport is None:
        return 0
    waiting, sock = transport.get_write_buffer_size(), transport.get_extra_info("socket")
    if fcntl is not None and sock is not None:
        with suppress(OSError):  # it is closed, or the system has no such question for sockets
            waiting += struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    return waiting
