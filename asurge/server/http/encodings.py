"""Bodies that are sent compressed."""

from __future__ import annotations

import zlib

from aiohttp import hdrs, web

from asurge.server.errors import ApiError
from asurge.server.http.connection import ConnectionHandler

_GZIP, _ZLIB, _RAW = 31, 15, -15
"""What zlib calls a format."""


def encoding_of(request: web.Request) -> str | None:
    """Return the compression of a body that has been read; None where it is not, or aiohttp has decompressed it.

    Our own `ConnectionHandler` leaves that to us, because aiohttp decompresses on the event loop whatever arrives, also behind a request
    that was refused, without a bound. Where an application is mounted, the host's settings hold.

    Raises:
        ApiError: nobody here knows the encoding.
    """
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    if encoding == "identity" or not isinstance(request.protocol, ConnectionHandler):
        return None
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ApiError(
            f"Content-Encoding {encoding[:40]!r} is not supported: send gzip, deflate, or the body as it is",
            status=415,
            code="unsupported_encoding",
        )
    return encoding


def inflate(body: bytes, encoding: str, most: int) -> bytes:
    """A body, decompressed; no more than ``most`` bytes are ever made.

    Raises:
        ApiError: it is not what `encoding_of` says, or larger.
    """
    # Clients send deflate with and, wrongly, without a head.
    kind = _GZIP if encoding.endswith("gzip") else _ZLIB if body[:1] and body[0] & 0x0F == zlib.DEFLATED else _RAW
    source = zlib.decompressobj(kind)
    try:
        found = source.decompress(body, most + 1)
    except zlib.error:
        found = b""
    if len(found) > most:
        raise ApiError("the body is too large", status=413, code="body_too_large")
    if not source.eof:
        raise ApiError("the body is not what its headers say", code="invalid_body")
    return found
