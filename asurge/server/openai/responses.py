"""``/v1/responses``: OpenAI's newer API, over the same conversations, with answers that are kept for a while."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from aiohttp import web

from asurge.engine.stream import TokenStream
from asurge.outputs import RequestOutput
from asurge.server.chat.converse import converse
from asurge.server.chat.output import ChoiceReaders
from asurge.server.chat.request import Conversation, all_tokens, conversation_of
from asurge.server.errors import ApiError, failure_of
from asurge.server.exchange import KEY, Exchange
from asurge.server.http.body import BODY_BYTES, prepared, read, reply, tokenised
from asurge.server.http.sse import EventStream
from asurge.server.openai.chat import logprobs_of
from asurge.server.openai.response_input import conversation_in, listed_items
from asurge.server.openai.response_items import Items
from asurge.server.openai.response_store import STORE, StoredResponse, page_of
from asurge.server.schema.chat import (
    ChatCompletionRequest,
    CustomTool,
    Function,
    Message,
    Tool,
)
from asurge.server.schema.responses import (
    DeletedResponse,
    InputDetails,
    InputItems,
    InputTokens,
    Item,
    OutputDetails,
    Response,
    ResponsesRequest,
    ResponsesUsage,
)
from asurge.server.schema.sampling import JsonSchemaFormat, ResponseFormat
from asurge.server.state import STATE, Served
from asurge.text import render_chat

_REFERENCE = "item_reference"
_LOGPROBS = "message.output_text.logprobs"
_METADATA_PAIRS, _METADATA_KEY, _METADATA_VALUE = 16, 64, 512
"""At most; keys and values in characters."""


async def create(request: web.Request) -> web.StreamResponse:
    """Create a response: continue a conversation."""
    body = await read(request, ResponsesRequest)
    with Exchange(request) as exchange:
        served = exchange.state.find(body.model)
        own, talk = await _prepared(request, body, served)
        answer = ResponseAnswer(body, own, talk, served, exchange)
        response = await converse(exchange, own, served, talk, answer)
        if not own.streams:
            answer.keep()
        return response


async def input_tokens(request: web.Request) -> web.Response:
    """Count the tokens of a request's input, with its instructions, its tools and the conversation before it."""
    body = await read(request, ResponsesRequest)
    served = request.app[STATE].find(body.model)
    _, talk = await _prepared(request, body, served)
    rendering, tokenizer = talk.rendering, served.engine.tokenizer

    def count() -> int:
        return len(all_tokens(served, render_chat(tokenizer, talk.messages, **rendering), "input", special=False))

    return reply(InputTokens(input_tokens=await tokenised(request, count)))


# ── answers that are kept ───────────────────────────────────────────────────────────────────────


async def retrieve(request: web.Request) -> web.Response:
    """Return a stored response."""
    return reply(_stored(request).body)


async def delete(request: web.Request) -> web.Response:
    """Delete a stored response."""
    name = request.match_info["response"]
    request.app[STORE].delete(name, request[KEY])
    return reply(DeletedResponse(id=name))


async def cancel(request: web.Request) -> web.Response:
    """Refuse to cancel a stored response: only those that run in the background can be, and none does here."""
    _stored(request)
    raise ApiError("only a response made with background=true can be cancelled: close the connection of others")


async def input_items(request: web.Request) -> web.Response:
    """List the items that a stored response was made from."""
    return reply(InputItems(**page_of(_stored(request).given, request.query)))


def _stored(request: web.Request) -> StoredResponse:
    return request.app[STORE].get(request.match_info["response"], request[KEY])


# ── what comes in ───────────────────────────────────────────────────────────────────────────────


async def _prepared(
    request: web.Request, body: ResponsesRequest, served: Served
) -> tuple[ChatCompletionRequest, Conversation]:
    """The conversation to keep, and the one the model sees, in worker threads where they are large."""
    store, key = request.app[STORE], request[KEY]
    before: tuple[Message, ...] = ()
    if body.previous_response_id is not None:
        kept = store.get(body.previous_response_id, key)
        before = kept.conversation
        request[BODY_BYTES] += kept.size  # it is prepared together with the body
    known: Mapping[str, Item] = {}
    if not isinstance(body.input, str) and any(item.type == _REFERENCE for item in body.input):
        known = store.items(key)
        request[BODY_BYTES] += store.size(key)
    own = await prepared(request, lambda: _as_chat(body, before, known))
    seen = own
    if body.instructions is not None:  # of this turn alone: not part of what is kept
        rules = Message(role="system", content=body.instructions)
        seen = msgspec.structs.replace(own, messages=[rules, *own.messages])
    return own, await prepared(request, lambda: conversation_of(seen, served, request.app[STATE].config))


def _as_chat(body: ResponsesRequest, before: Sequence[Message], known: Mapping[str, Item]) -> ChatCompletionRequest:
    """The same request in terms of chat, after the conversation before it.

    Args:
        known: items that may be named by their ids.
    """
    for name in ("background", "conversation", "prompt"):
        if getattr(body, name):
            raise ApiError(f"{name} is not supported: leave it out", param=name)
    _check_metadata(body.metadata or {})
    if not body.input and body.previous_response_id is None:
        raise ApiError("input is empty: say something, or name a previous_response_id", param="input")
    messages = list(before)
    if isinstance(body.input, str):
        messages.append(Message(role="user", content=body.input))
    else:
        messages += conversation_in(_resolved(body.input, known))
    names = ("model", "stream", "temperature", "top_p", "parallel_tool_calls", "user", "prompt_cache_key", "top_k", "min_p", "seed", "priority", "deadline_s")  # fmt: skip
    return ChatCompletionRequest(
        messages=messages,
        max_tokens=body.max_output_tokens,
        tools=_tools(body),
        tool_choice=body.tool_choice,
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        response_format=_format(body),
        logprobs=_LOGPROBS in (body.include or ()) or bool(body.top_logprobs),
        top_logprobs=body.top_logprobs,
        **{name: getattr(body, name) for name in names},
    )


def _check_metadata(metadata: Mapping[str, str]) -> None:
    """OpenAI's bounds: it comes back with each event that holds the response."""
    too_long = any(len(key) > _METADATA_KEY or len(value) > _METADATA_VALUE for key, value in metadata.items())
    if too_long or len(metadata) > _METADATA_PAIRS:
        raise ApiError(
            f"metadata must be at most {_METADATA_PAIRS} pairs of {_METADATA_KEY} and {_METADATA_VALUE} characters",
            param="metadata",
        )


def _tools(body: ResponsesRequest) -> list[Tool] | None:
    """The functions and custom tools: tools of other types run elsewhere, or need a model that knows them."""
    found = list[Tool]()
    for one in body.tools or ():
        if one.name is not None and one.type == "function":
            function = Function(
                name=one.name, description=one.description, parameters=one.parameters, strict=one.strict
            )
            found.append(Tool(function=function))
        elif one.name is not None and one.type == "custom":
            custom = CustomTool(name=one.name, description=one.description, format=one.format or None)
            found.append(Tool(type="custom", custom=custom))
    return found or None


def _format(body: ResponsesRequest) -> ResponseFormat | None:
    form = None if body.text is None else body.text.format
    if form is None:
        return None
    schema = JsonSchemaFormat(name=form.name or "answer", schema=form.schema) if form.type == "json_schema" else None
    return ResponseFormat(type=form.type, json_schema=schema)


def _resolved(items: Sequence[Item], known: Mapping[str, Item]) -> list[Item]:
    """Items, with ids replaced by the items they stand for.

    Raises:
        ApiError: an id is not known, or comes twice.
    """
    found, named = list[Item](), set[str]()
    for at, item in enumerate(items):
        if item.type == _REFERENCE:
            where, name = f"input[{at}].id", item.id or ""
            kept = known.get(name)
            if kept is None:
                raise ApiError(f"{where}: no item {name[:100]!r} is kept: send the item itself", param=where)
            if name in named:
                raise ApiError(f"{where}: the item {name!r} comes twice: send it once", param=where)
            named.add(name)
            found.append(kept)
        else:
            found.append(item)
    return found


# ── what goes out ───────────────────────────────────────────────────────────────────────────────


class ResponseAnswer:
    """Answer of a response request, streamed or whole."""

    def __init__(
        self,
        body: ResponsesRequest,
        own: ChatCompletionRequest,
        talk: Conversation,
        served: Served,
        exchange: Exchange,
    ) -> None:
        self._store, self._key = exchange.request.app[STORE], exchange.key
        self._own, self._readers, self._given = own, ChoiceReaders(talk, served), body.input
        self._tokenizer = served.engine.tokenizer
        self._items, self._begun = Items(self._readers.call_id), False
        names = (
            "instructions",
            "temperature",
            "top_p",
            "top_logprobs",
            "max_output_tokens",
            "previous_response_id",
            "text",
            "reasoning",
        )
        self._response = Response(
            id=f"resp_{secrets.token_hex(16)}",
            created_at=int(time.time()),
            model=body.model or served.name,
            metadata=body.metadata or {},
            parallel_tool_calls=talk.parallel,
            tool_choice="auto" if body.tool_choice is None else body.tool_choice,
            tools=body.tools or [],
            store=body.store is not False,
            truncation="auto" if served.engine.config.auto_truncate_prompt else "disabled",
            **{name: getattr(body, name) for name in names},
        )

    def whole(self, output: RequestOutput) -> Response:
        self._take(output)
        return self._end(output, self._readers.reasoning_tokens())

    async def stream(self, exchange: Exchange, tokens: TokenStream, events: EventStream) -> None:
        """The answer's beginning, its items as they come, its end."""
        async for output in exchange.outputs(tokens):
            data = self._begin() + self._take(output)
            if output.finished:
                reasoning = await exchange.written(self._readers.reasoning_tokens, much=self._readers.reasoned_much)
                data += self._items.close(_status(output))
                data.append(self._event(f"response.{self._end(output, reasoning).status}"))
                self.keep()  # before the client knows that it is there
            if data:
                await events.send(b"".join(data))

    def failed(self, error: BaseException) -> bytes:
        """The last event of an answer that failed, after the first ones, which clients wait for before any other."""
        begun, failure = self._begin(), failure_of(error)
        self._response.status, self._response.output = "failed", self._items.items
        self._response.error = {"code": failure.code or "server_error", "message": failure.message}
        return b"".join((*begun, self._event("response.failed")))

    def _begin(self) -> list[bytes]:
        """The first events of a stream, once."""
        if self._begun:
            return []
        self._begun = True
        return [self._event("response.created"), self._event("response.in_progress")]

    def _take(self, output: RequestOutput) -> list[bytes]:
        """Take in what is new; returns the events that report it."""
        one = output.outputs[0]
        logprobs = list[Any]()
        if self._own.logprobs:
            found = logprobs_of(one, self._own.top_logprobs or 0, self._tokenizer)
            logprobs = msgspec.to_builtins(found.content)
        return self._items.take(self._readers.of(one, output).read(one), logprobs)

    def keep(self) -> None:
        """Keep the finished answer, if that is wanted."""
        if self._response.store:
            items = msgspec.convert(self._response.output, list[Item])
            body = msgspec.json.encode(self._response)
            conversation = [*self._own.messages, *conversation_in(items)]
            self._store.put(self._response.id, body, conversation, self._key, items, listed_items(self._given))

    def _end(self, output: RequestOutput, reasoning: int) -> Response:
        """The finished answer."""
        response, prompt, generated = self._response, len(output.prompt_token_ids), output.num_generated_tokens
        response.status = _status(output)
        self._items.close(response.status)
        response.output = self._items.items
        response.incomplete_details = {"reason": "max_output_tokens"} if response.status == "incomplete" else None
        response.usage = ResponsesUsage(
            input_tokens=prompt,
            output_tokens=generated,
            total_tokens=prompt + generated,
            input_tokens_details=InputDetails(cached_tokens=output.num_cached_tokens),
            output_tokens_details=OutputDetails(reasoning_tokens=min(reasoning, generated)),
        )
        return response

    def _event(self, kind: str) -> bytes:
        return self._items.event(kind, response=msgspec.to_builtins(self._response))


def _status(output: RequestOutput) -> Literal["completed", "incomplete"]:
    return "incomplete" if output.finish_reason == "length" else "completed"
