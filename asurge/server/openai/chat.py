"""``POST /v1/chat/completions``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import orjson
from aiohttp import web
from msgspec import UNSET, UnsetType

from asurge.engine.stream import TokenStream
from asurge.outputs import CompletionOutput, Logprob, RequestOutput
from asurge.parsing import Content, Reasoning, ToolCallArguments, ToolCallStart
from asurge.server.chat.converse import converse
from asurge.server.chat.output import ChoiceReaders, CustomCallInput, CustomCallStart, OutputEvent
from asurge.server.chat.request import Conversation, conversation_of
from asurge.server.exchange import Exchange
from asurge.server.http.body import read
from asurge.server.http.sse import EventStream, openai_failure
from asurge.server.openai.stop_reason import stop_reason_of
from asurge.server.schema.chat import (
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    OutCustom,
    OutFunction,
    OutMessage,
    OutToolCall,
    TokenLogprob,
    TopLogprob,
)
from asurge.server.schema.sampling import Usage
from asurge.server.state import Served
from asurge.text import Tokenizer


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Continue a conversation."""
    body = await read(request, ChatCompletionRequest)
    with Exchange(request) as exchange:
        served = exchange.state.find(body.model)
        talk = await exchange.prepared(lambda: conversation_of(body, served, exchange.state.config))
        return await converse(exchange, body, served, talk, ChatAnswer(body, talk, served))


class ChatAnswer:
    """Answer of a chat completion, streamed or whole: the same parser reads both."""

    def __init__(self, body: ChatCompletionRequest, talk: Conversation, served: Served) -> None:
        self._body, self._talk, self._served = body, talk, served
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self._model = body.model or served.name
        self._readers = ChoiceReaders(talk, served, reasons=body.include_reasoning, legacy=body.functions is not None)
        self._tell_usage_always = body.tells_usage_always
        self._streamed_tokens = 0
        head = {"id": self._id, "object": "chat.completion.chunk", "created": self._created, "model": self._model}
        # The frame of the chunks that most streams are made of; the rest goes through the schema.
        self._head = b"data: " + orjson.dumps({**head, "system_fingerprint": None})[:-1] + b',"choices":[{"index":'
        usage = b',"usage":null}\n\n' if body.tells_usage else b"}\n\n"
        self._tail = b'},"logprobs":null,"finish_reason":null}]' + usage

    # ── as a whole ──────────────────────────────────────────────────────────────────────────────

    def whole(self, output: RequestOutput) -> ChatCompletion:
        choices = []
        for one in output.outputs:
            reader = self._readers.of(one, output)
            events = reader.read(one)
            message = self._message(events)
            choices.append(
                ChatChoice(
                    index=one.index,
                    message=message,
                    logprobs=self._logprobs(one),
                    finish_reason=reader.finish_reason(one),
                    stop_reason=stop_reason_of(one, self._body),
                    token_ids=self._token_ids(one.token_ids),
                )
            )
        prompt_logprobs = output.prompt_logprobs
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage_of(output, self._readers.reasoning_tokens()),
            prompt_token_ids=self._token_ids(output.prompt_token_ids),
            prompt_logprobs=UNSET
            if prompt_logprobs is None
            else prompt_logprobs_of(prompt_logprobs, self._served.engine.tokenizer),
        )

    def _message(self, events: Sequence[OutputEvent]) -> OutMessage:
        message, content, reasoning = OutMessage(), "", ""
        calls: list[OutToolCall] = []
        for event in events:
            match event:
                case Content(text):
                    content += text
                case Reasoning(text):
                    reasoning += text
                case CustomCallStart():
                    custom = OutCustom(name=event.name, input="")
                    calls.append(OutToolCall(id=self._readers.call_id(event), type="custom", custom=custom))
                case CustomCallInput():
                    assert calls[-1].custom is not UNSET
                    calls[-1].custom.input += event.text
                case ToolCallStart():
                    function = OutFunction(name=event.name, arguments="")
                    calls.append(OutToolCall(id=self._readers.call_id(event), type="function", function=function))
                case ToolCallArguments():
                    assert calls[-1].function is not UNSET
                    calls[-1].function.arguments += event.text
        if content or not calls:
            message.content = content
        if reasoning and self._body.include_reasoning:
            message.reasoning = message.reasoning_content = reasoning
        if calls and self._body.functions is not None:
            message.function_call = calls[0].function
        elif calls:
            message.tool_calls = calls
        return message

    def failed(self, error: BaseException) -> bytes:
        """An error as the last event."""
        return openai_failure(error)

    # ── as it comes ─────────────────────────────────────────────────────────────────────────────

    async def stream(self, exchange: Exchange, tokens: TokenStream, events: EventStream) -> None:
        """Role first, then what comes, each finish reason once, the usage if wanted, and the mark of success."""
        last: RequestOutput | None = None
        async for output in exchange.outputs(tokens):
            chunks = b"".join(self._chunks(output))
            if chunks:
                await events.send(chunks)
            last = output
        if last is None:
            return
        end = b""
        if self._body.tells_usage:
            reasoning = await exchange.written(self._readers.reasoning_tokens, much=self._readers.reasoned_much)
            end = self._chunk([], usage=usage_of(last, reasoning))
        await events.send(end + b"data: [DONE]\n\n")

    def _chunks(self, output: RequestOutput) -> list[bytes]:
        chunks = []
        for one in output.outputs:
            begun = self._readers.has_begun(one)
            reader = self._readers.of(one, output)
            if reader.finished:
                continue
            if not begun:
                # The role comes before the tokens of this output: its usage is that of the outputs before.
                before = Usage.of(len(output.prompt_token_ids), self._streamed_tokens, output.num_cached_tokens)
                role = ChunkChoice(index=one.index, delta=Delta(role="assistant", content=""))
                prompt = self._token_ids(output.prompt_token_ids)
                chunks.append(self._chunk([role], usage=before if self._tell_usage_always else None, prompt=prompt))
            events, logprobs = reader.read(one), self._logprobs(one) if one.token_ids else None
            ids = self._token_ids(one.token_ids) if one.token_ids else UNSET
            for event in events:
                chunks.append(self._event(one.index, event, logprobs, ids, output))
                logprobs, ids = None, UNSET
            if logprobs is not None or ids is not UNSET:
                choice = ChunkChoice(index=one.index, delta=Delta(content=""), logprobs=logprobs, token_ids=ids)
                chunks.append(self._chunk([choice], output))
            if one.finish_reason is not None:
                reason = reader.finish_reason(one)
                choice = ChunkChoice(
                    index=one.index, delta=Delta(), finish_reason=reason, stop_reason=stop_reason_of(one, self._body)
                )
                chunks.append(self._chunk([choice], output))
            self._streamed_tokens = output.num_generated_tokens
        return chunks

    def _event(
        self,
        index: int,
        event: OutputEvent,
        logprobs: ChoiceLogprobs | None,
        token_ids: list[int] | UnsetType,
        output: RequestOutput,
    ) -> bytes:
        plain = logprobs is None and token_ids is UNSET and not self._tell_usage_always
        if plain and isinstance(event, Content):
            text = orjson.dumps(event.text)
            return self._head + b'%d,"delta":{"content":' % index + text + self._tail
        delta = self._delta(event)
        return self._chunk([ChunkChoice(index=index, delta=delta, logprobs=logprobs, token_ids=token_ids)], output)

    def _delta(self, event: OutputEvent) -> Delta:
        match event:
            case Content(text):
                return Delta(content=text)
            case Reasoning(text):
                return Delta(reasoning=text, reasoning_content=text)
            case CustomCallStart():
                custom = OutCustom(name=event.name, input="")
                call = OutToolCall(index=event.index, id=self._readers.call_id(event), type="custom", custom=custom)
                return Delta(tool_calls=[call])
            case CustomCallInput():
                return Delta(tool_calls=[OutToolCall(index=event.index, custom=OutCustom(input=event.text))])
            case ToolCallStart():
                function = OutFunction(name=event.name, arguments="")
                call = OutToolCall(
                    index=event.index, id=self._readers.call_id(event), type="function", function=function
                )
            case ToolCallArguments():
                function = OutFunction(arguments=event.text)
                call = OutToolCall(index=event.index, function=function)
        return Delta(function_call=function) if self._body.functions is not None else Delta(tool_calls=[call])

    def _chunk(
        self,
        choices: list[ChunkChoice],
        output: RequestOutput | None = None,
        usage: Usage | None = None,
        prompt: list[int] | UnsetType = UNSET,
    ) -> bytes:
        if usage is None and output is not None and self._tell_usage_always:
            usage = usage_of(output)
        reported = usage if usage is not None else None if self._body.tells_usage else UNSET
        chunk = ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=reported,
            prompt_token_ids=prompt,
        )
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def _logprobs(self, one: CompletionOutput) -> ChoiceLogprobs | None:
        tokenizer = self._served.engine.tokenizer
        if not self._body.logprobs:
            return None
        by_id = self._body.return_tokens_as_token_ids is True
        return logprobs_of(one, self._body.top_logprobs or 0, tokenizer, by_id=by_id)

    def _token_ids(self, ids: Sequence[int]) -> list[int] | UnsetType:
        """Token ids, where the request wants them."""
        return list(ids) if self._body.return_token_ids else UNSET


def usage_of(output: RequestOutput, reasoning: int | None = None) -> Usage:
    """Usage of a request so far."""
    return Usage.of(len(output.prompt_token_ids), output.num_generated_tokens, output.num_cached_tokens, reasoning)


def prompt_logprobs_of(logprobs: Sequence[Any], tokenizer: Tokenizer) -> list[dict[int, Any] | None]:
    """Logprobs of a prompt, in the shape of vLLM's API."""
    return [
        None
        if one is None
        else {
            token: msgspec.structs.asdict(_top(token, at, tokenizer)) | {"rank": at.rank} for token, at in one.items()
        }
        for one in logprobs
    ]


def logprobs_of(one: CompletionOutput, most: int, tokenizer: Tokenizer, *, by_id: bool = False) -> ChoiceLogprobs:
    """Logprobs of a completion's tokens, each beside the ``most`` likeliest in its place.

    Args:
        by_id: tokens are named by their ids.
    """
    content = []
    for token, logprobs in zip(one.token_ids, one.logprobs or (), strict=False):
        sampled = _top(token, logprobs[token], tokenizer, by_id=by_id)
        likeliest = [_top(other, at, tokenizer, by_id=by_id) for other, at in logprobs.items() if at.rank <= most]
        content.append(
            TokenLogprob(token=sampled.token, logprob=sampled.logprob, bytes=sampled.bytes, top_logprobs=likeliest)
        )
    return ChoiceLogprobs(content=content)


def id_text(token: int) -> str:
    """A token named by its id, as vLLM's ``return_tokens_as_token_ids`` has it."""
    return f"token_id:{token}"


def _top(token: int, at: Logprob, tokenizer: Tokenizer, *, by_id: bool = False) -> TopLogprob:
    data = tokenizer.token_bytes(token)
    name = id_text(token) if by_id else data.decode("utf-8", "replace")
    return TopLogprob(token=name, logprob=at.logprob, bytes=list(data))
