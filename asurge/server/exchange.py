"""An HTTP request that an engine works for: streaming to it, counting it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self, TypeVar

from aiohttp import web

from asurge.engine.stream import TokenStream
from asurge.errors import AsurgeError
from asurge.outputs import RequestOutput
from asurge.params import RequestOptions, SamplingParams
from asurge.server.config import ServerConfig
from asurge.server.errors import ApiError, cancelled
from asurge.server.http.body import prepared
from asurge.server.http.disconnect import only, threaded, while_connected
from asurge.server.http.sse import SENT, EventStream, openai_failure
from asurge.server.keys import ApiKey
from asurge.server.schema.sampling import EngineRequest
from asurge.server.state import STATE, Served

_log = logging.getLogger("asurge.server")

R = TypeVar("R")

KEY = web.RequestKey("asurge.key", ApiKey)
REQUEST_ID = web.RequestKey("asurge.request_id", str)
RELAXED = web.RequestKey("asurge.relaxed", str)
_RELAXED_CHARACTERS = 1000


class Exchange:
    """A request that engines work for.

    Within ``with``, the server counts it as under way; at the end the key is charged for what was done, however it ended.

    Attributes:
        charges_sampled: whether tokens that are sampled are charged.

    Raises:
        ApiError: the server takes no requests.
    """

    def __init__(self, request: web.Request) -> None:
        self.request, self.state, self.key = request, request.app[STATE], request[KEY]
        self._streams: list[tuple[Served, TokenStream]] = []
        self._named: list[tuple[Served, str]] = []
        self._tokens, self.charges_sampled = 0, True

    def __enter__(self) -> Self:
        self.state.enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.state.leave(self)
        if isinstance(error, ConnectionError | asyncio.CancelledError) and not self.request.get(SENT, False):
            self.state.disconnects += 1
        usages = [stream.usage for _, stream in self._streams]
        sampled = sum(sampled for _, sampled in usages) if self.charges_sampled else 0
        self.key.charge(self._tokens + sum(prompt for prompt, _ in usages), sampled)

    def follow(self, served: Served, stream: TokenStream) -> TokenStream:
        """An engine's stream that serves this request."""
        self._streams.append((served, stream))
        return stream

    def name(self, served: Served) -> str:
        """A new id for an embedding that an engine makes for this request."""
        self._named.append((served, f"embd-{secrets.token_hex(12)}"))
        return self._named[-1][1]

    def charge(self, prompt_tokens: int) -> None:
        """Count what was done without a stream."""
        self._tokens += prompt_tokens

    def abort(self) -> None:
        """End all that engines do for it; the client is told that the server is stopping."""
        for served, request_id in (*((served, stream.request_id) for served, stream in self._streams), *self._named):
            served.engine.abort_request(request_id)

    def relaxes(self, notes: Sequence[str]) -> None:
        """Say in the answer's head which wishes of its schemas are not held."""
        if notes:
            said = "; ".join(notes).encode("ascii", "backslashreplace").decode()
            self.request[RELAXED] = re.sub(r"[\x00-\x1f\x7f]", " ", said)[:_RELAXED_CHARACTERS]

    def options(self, body: EngineRequest) -> RequestOptions:
        """Options of the request for the engine: its tenant and the salt of its prefixes."""
        options = body.options()
        options["tenant"] = self.key.owner
        # Everybody's salts begin with a name of their own, also those without a key, so that nobody can spell another's.
        options["cache_salt"] = body.salt if self.state.config.share_prefix_cache else f"{self.key.owner}:{body.salt}"
        return options

    async def outputs(self, stream: TokenStream) -> AsyncIterator[RequestOutput]:
        """A stream's outputs.

        Raises:
            ApiError: the server has ended it.
        """
        async for output in stream:
            yield self.ended_well(output)

    def ended_well(self, output: RequestOutput) -> RequestOutput:
        """Check that the request was not ended by the server.

        Raises:
            ApiError: the server has ended the request.
        """
        if output.finished and any(one.finish_reason == "abort" for one in output.outputs):
            raise cancelled(self.state.config.drain_timeout_s)
        return output

    async def prepared(self, work: Callable[[], R]) -> R:
        """Do `prepared` for this request."""
        return await prepared(self.request, work)

    async def written(self, work: Callable[[], R], *, much: bool) -> R:
        """Make something of an answer: in a worker thread if that is much work."""
        return await threaded(self.request, work) if much else work()

    async def streamed(
        self,
        write: Callable[[EventStream], Awaitable[None]],
        failed: Callable[[BaseException], bytes] = openai_failure,
    ) -> web.StreamResponse:
        """Admit requests, then let ``write`` stream what comes of them.

        A refusal at admission is an answer of its own; a later failure becomes the last event, without a mark of success.

        Args:
            failed: an error as an event.
        """
        events = EventStream(self.request, self.state.config)

        async def work() -> None:
            async with AsyncExitStack() as admitted:
                for _, stream in self._streams:
                    await admitted.enter_async_context(stream)
                await events.open()
                try:
                    await write(events)
                except Exception as error:
                    error = only(error) if isinstance(error, ExceptionGroup) else error
                    if isinstance(error, ConnectionError):
                        raise error from None
                    if not isinstance(error, AsurgeError):
                        _log.exception("request %s failed", self.request[REQUEST_ID])
                    await events.send(failed(error))
                await events.close()

        await while_connected(self.request, work, events.tend)
        return events.response


def with_bounded_logprobs(
    params: SamplingParams, sizes: Sequence[int], served: Served, config: ServerConfig
) -> SamplingParams:
    """Bound how many logprobs a request could return: they take much more room than the text.

    Where it leaves open how long the text may be, the text may be as long as the bound allows.

    Args:
        sizes: of the prompts, in tokens or in characters, which are not fewer.

    Raises:
        ApiError: it asks for more.
    """
    longest, choices = served.engine.max_model_len, max(params.n, params.best_of or 1)
    count = 0
    if params.prompt_logprobs is not None:
        count += sum(min(size, longest) for size in sizes) * choices * (params.prompt_logprobs + 1)
    if params.logprobs is not None:
        of_each = len(sizes) * choices * (params.logprobs + 1)
        if params.max_tokens is None and (most := (config.max_request_logprobs - count) // of_each) < longest:
            params = dataclasses.replace(params, max_tokens=max(most, params.min_tokens, 1), max_new_tokens=None)
        count += of_each * min(params.max_tokens or longest, longest)
    if count > config.max_request_logprobs:
        raise ApiError(
            f"the request could return {count} logprobs: at most {config.max_request_logprobs} are allowed; "
            "lower logprobs, prompt_logprobs, n or max_tokens",
            param="logprobs",
        )
    return params
