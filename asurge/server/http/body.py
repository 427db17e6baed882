"""Request bodies in, JSON answers out."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TypeVar

import anyio
import msgspec
from aiohttp import web

from asurge.server.errors import ApiError
from asurge.server.http.disconnect import threaded
from asurge.server.http.encodings import encoding_of, inflate
from asurge.server.state import STATE

T = TypeVar("T", bound=msgspec.Struct)
R = TypeVar("R")

BODY_BYTES = web.RequestKey("asurge.body_bytes", int)
_AT = re.compile(r" - at `\$\.?([^`]*)`$")
_LARGE_BYTES = 32 << 10
"""Bodies up to this size are decoded and prepared in a few milliseconds at most: cheaper on the loop than the
hand-over to a thread, which takes 0.2 ms. With 8 MiB in small parts, the loop is held up for 20 to 130 ms instead of 60 to 680."""

_decoder = functools.cache(msgspec.json.Decoder)  # making one takes longer than reading with it


async def read(request: web.Request, kind: type[T]) -> T:
    """A request's body, checked. A large one is decoded in a worker thread.

    Raises:
        ApiError: it is not JSON, or not what it should be; ``param`` says where. Or it did not arrive in time.
        ConnectionResetError: the client is gone.
    """
    config = request.app[STATE].config
    most = config.max_body_bytes
    # Mounted in another application, requests come with that one's limit.
    source = request if request.client_max_size == most else request.clone(client_max_size=most)
    try:
        with anyio.fail_after(config.body_timeout_s):
            body = await source.read()
    except TimeoutError:
        raise ApiError(
            f"the body did not arrive within body_timeout_s={config.body_timeout_s}: send it faster, or less of it",
            status=408,
            code="body_timeout",
        ) from None
    except web.RequestPayloadError as error:
        raise ApiError("the body is not what its headers say", code="invalid_body") from error
    if (encoding := encoding_of(request)) is not None:
        body = await threaded(request, functools.partial(inflate, body, encoding, most))
    request[BODY_BYTES] = len(body)
    decode = functools.partial(_decoder(kind).decode, body)
    try:
        decoded = decode() if len(body) <= _LARGE_BYTES else await threaded(request, decode)
    except msgspec.ValidationError as error:
        where = _AT.search(str(error))
        param = where.group(1) if where else None
        said = _AT.sub("", str(error))[:300]
        raise ApiError(f"{param}: {said}" if param else said, param=param, code="invalid_value") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(f"the body is not valid JSON: {str(error)[:200]}", code="invalid_json") from None
    except RecursionError:
        raise ApiError("the body is nested too deeply", code="invalid_json") from None
    assert isinstance(decoded, kind)
    return decoded


def reply(body: msgspec.Struct | bytes) -> web.Response:
    """An answer as JSON."""
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return web.Response(body=data, content_type="application/json")


async def prepared(request: web.Request, work: Callable[[], R]) -> R:
    """Make something of a request's body: in a worker thread if it is large."""
    return work() if request.get(BODY_BYTES, 0) <= _LARGE_BYTES else await threaded(request, work)


async def tokenised(request: web.Request, work: Callable[[], R]) -> R:
    """Tokenise a request's body, or detokenise its tokens, in a worker thread.

    While it does, the tokenizer takes 160 bytes for each character of a text, all of which is counted, and not only what a
    context holds: so only few large bodies have their turn at a time.
    """
    large = request.get(BODY_BYTES, 0) > _LARGE_BYTES
    return await threaded(request, work, request.app[STATE].large_texts if large else None)
