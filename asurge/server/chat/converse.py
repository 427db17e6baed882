"""Chat through any endpoint: a conversation goes to the engine, an answer comes out whole or as events."""

from __future__ import annotations

from typing import Protocol

import msgspec
from aiohttp import web

from asurge.engine.stream import TokenStream
from asurge.outputs import RequestOutput
from asurge.server.chat.request import Conversation
from asurge.server.exchange import Exchange, with_bounded_logprobs
from asurge.server.http.body import reply
from asurge.server.http.disconnect import while_connected
from asurge.server.http.sse import EventStream
from asurge.server.schema.chat import ChatCompletionRequest
from asurge.server.state import Served
from asurge.text import BLOCKING_CHARACTERS


class Answer(Protocol):
    """An API's way to present what a model says."""

    def whole(self, output: RequestOutput) -> msgspec.Struct:
        """A finished answer. May be called in a worker thread."""
        ...

    async def stream(self, exchange: Exchange, tokens: TokenStream, events: EventStream) -> None:
        """The same, as events."""
        ...

    def failed(self, error: BaseException) -> bytes:
        """The last event of an answer that failed."""
        ...


async def converse(
    exchange: Exchange, body: ChatCompletionRequest, served: Served, talk: Conversation, answer: Answer
) -> web.StreamResponse:
    """Submit a conversation to the engine, and answer the client."""
    sizes, config = [served.engine.max_model_len], exchange.state.config
    params = await exchange.prepared(lambda: with_bounded_logprobs(talk.params, sizes, served, config))
    options = exchange.options(body)
    exchange.relaxes(talk.relaxed)
    tokens = await while_connected(
        exchange.request,
        lambda: served.engine.chat(
            talk.messages,
            params,
            stream=True,
            **talk.rendering,
            **options,
        ),
    )
    exchange.follow(served, tokens)
    if body.streams:
        return await exchange.streamed(lambda events: answer.stream(exchange, tokens, events), answer.failed)
    output = exchange.ended_well(await while_connected(exchange.request, tokens.wait_finished))
    reasons = talk.reasoning_format is not None and sum(len(one.text) for one in output.outputs) > BLOCKING_CHARACTERS
    much = body.tells_of_tokens or reasons
    return reply(await exchange.written(lambda: msgspec.json.encode(answer.whole(output)), much=much))
