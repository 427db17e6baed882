"""``POST /v1/messages``: Anthropic's API, over the same conversations as OpenAI's."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import orjson
from aiohttp import web

from asurge.engine.stream import TokenStream
from asurge.outputs import RequestOutput
from asurge.parsing import Content, Reasoning, ToolCallArguments, ToolCallStart
from asurge.server.chat.converse import converse
from asurge.server.chat.output import ChoiceReaders, OutputEvent
from asurge.server.chat.request import (
    Conversation,
    conversation_of,
    conversation_tokens,
    effort_switches,
    rendering_of,
)
from asurge.server.errors import ApiError, failure_of
from asurge.server.exchange import REQUEST_ID, Exchange
from asurge.server.http.body import read, reply, tokenised
from asurge.server.http.sse import EventStream
from asurge.server.schema.chat import (
    ChatCompletionRequest,
    Function,
    FunctionCall,
    Message,
    Tool,
    ToolCall,
    ToolChoice,
)
from asurge.server.schema.messages import (
    CountMessagesRequest,
    CountMessagesResponse,
    MessagesRequest,
    MessagesResponse,
    MessagesUsage,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    TurnMessage,
)
from asurge.server.schema.sampling import JsonSchemaFormat, ResponseFormat
from asurge.server.state import STATE, Served
from asurge.text import message_text, part_text

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


async def create(request: web.Request) -> web.StreamResponse:
    """Continue a conversation."""
    body = await read(request, MessagesRequest)
    with Exchange(request) as exchange:
        served = exchange.state.find(body.model)
        own, config = await exchange.prepared(lambda: _as_chat(body, served)), exchange.state.config
        talk = await exchange.prepared(lambda: conversation_of(own, served, config, _switches(body)))
        answer = MessagesAnswer(body, talk, served, request[REQUEST_ID])
        return await converse(exchange, own, served, talk, answer)


async def count_tokens(request: web.Request) -> web.Response:
    """Count the tokens of a conversation."""
    body = await read(request, CountMessagesRequest)
    served = request.app[STATE].find(body.model)

    def count() -> int:
        messages = _conversation(body)
        how = rendering_of(_switches(body), continue_final_message=_begins_answer(messages))
        unused = body.tool_choice is not None and body.tool_choice.type == "none"
        return len(conversation_tokens(served, messages, None if unused else _tools(body), how))

    return reply(CountMessagesResponse(input_tokens=await tokenised(request, count)))


# ── what comes in ───────────────────────────────────────────────────────────────────────────────


def _as_chat(body: MessagesRequest, served: Served) -> ChatCompletionRequest:
    """The same request in OpenAI's terms."""
    choice, given = body.tool_choice, body.thinking
    names: dict[str, Any] = {"auto": "auto", "any": "required", "none": "none"}
    if choice is not None and choice.type == "tool":
        if choice.name is None:
            raise ApiError("tool_choice.name is missing", param="tool_choice")
        names["tool"] = ToolChoice(name=choice.name)
    messages = _conversation(body)
    found = ChatCompletionRequest(
        model=body.model,
        messages=messages,
        max_tokens=body.max_tokens,
        stream=body.stream,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=body.stop_sequences or None,
        tools=_tools(body),
        tool_choice=None if choice is None else names[choice.type],
        parallel_tool_calls=None if choice is None else not choice.disable_parallel_tool_use,
        continue_final_message=_begins_answer(messages),
    )
    if body.output_config is not None and (form := body.output_config.format) is not None:
        found.response_format = ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(schema=form.schema))
    if given is not None and given.type == "enabled" and served.engine.bounds_reasoning:
        found.thinking_budget = given.budget_tokens
    return found


def _begins_answer(messages: Sequence[Message]) -> bool:
    """Whether the last message is the beginning of the answer: a text of the assistant's."""
    last = messages[-1] if messages else None
    return last is not None and last.role == "assistant" and bool(last.content) and not last.tool_calls


def _switches(body: CountMessagesRequest) -> dict[str, Any]:
    """Template arguments for the reasoning that a request wants."""
    found = effort_switches(None if body.output_config is None else body.output_config.effort)
    if body.thinking is not None and body.thinking.type != "adaptive":
        found["enable_thinking"] = body.thinking.type == "enabled"
    return found


def _tools(body: CountMessagesRequest) -> list[Tool] | None:
    """The caller's own tools: Anthropic's run elsewhere, or need a model that knows them."""
    if body.tools is None:
        return None
    return [
        Tool(
            function=Function(
                name=one.name, description=one.description, parameters=one.input_schema, strict=one.strict
            )
        )
        for one in body.tools
        if one.name is not None and one.type in (None, "custom")
    ]


def _conversation(body: CountMessagesRequest) -> list[Message]:
    found: list[Message] = []
    if body.system:
        text = body.system if isinstance(body.system, str) else "\n".join(one.text for one in body.system)
        found.append(Message(role="system", content=text))
    answered = max((at for at, one in enumerate(body.messages) if one.role == "assistant"), default=0)
    for at, message in enumerate(body.messages):
        found += _messages(f"messages[{at}]", message, past=at < answered)
    return found


def _messages(where: str, message: TurnMessage, *, past: bool) -> list[Message]:
    """A turn: results of tools are messages of their own.

    Raises:
        ApiError, ChatTemplateError: a block cannot be read, or is not complete.
    """
    if isinstance(message.content, str):
        return [Message(role=message.role, content=message.content)]
    found: list[Message] = []
    turn = Message(role=message.role, content="" if message.role == "assistant" else None)
    texts = list[str]()
    for at, block in enumerate(message.content):
        place = f"{where}.content[{at}]"
        match block.type:
            case "thinking" | "redacted_thinking":
                text = block.thinking or ""
                turn.reasoning_content = f"{turn.reasoning_content}\n{text}" if turn.reasoning_content else text
            case "tool_use":
                if block.name is None:
                    raise ApiError(f"{place}.name is missing", param=f"{place}.name")
                call = ToolCall(id=block.id, function=FunctionCall(name=block.name, arguments=block.input))
                turn.tool_calls = [*(turn.tool_calls or ()), call]
            case "tool_result":
                text = message_text(place, block.content, "tool")
                found.append(Message(role="tool", tool_call_id=block.tool_use_id, content=text))
            case _:
                texts.append(part_text(place, {"type": block.type, "text": block.text}, message.role, past=past))
    if texts:
        turn.content = "\n".join(text for text in texts if text)
    if turn.content is not None or not found:
        found.append(turn)
    return found


# ── what goes out ───────────────────────────────────────────────────────────────────────────────


class MessagesAnswer:
    """Answer of a messages request, as blocks: one for each stretch of reasoning or text, and for each call."""

    def __init__(self, body: MessagesRequest, talk: Conversation, served: Served, request_id: str) -> None:
        self._request_id = request_id
        self._id, self._model = f"msg_{secrets.token_hex(12)}", body.model or served.name
        self._readers = ChoiceReaders(talk, served)
        self._index, self._open = -1, ""

    def whole(self, output: RequestOutput) -> MessagesResponse:
        one = output.outputs[0]
        reader = self._readers.of(one, output)
        blocks: list[TextBlock | ThinkingBlock | ToolUseBlock] = []
        arguments: dict[int, str] = {}
        for event in reader.read(one):
            match event:
                case Content(text):
                    if blocks and isinstance(last := blocks[-1], TextBlock):
                        last.text += text
                    else:
                        blocks.append(TextBlock(text=text))
                case Reasoning(text):
                    if blocks and isinstance(last := blocks[-1], ThinkingBlock):
                        last.thinking += text
                    else:
                        blocks.append(ThinkingBlock(thinking=text))
                case ToolCallStart():
                    blocks.append(ToolUseBlock(id=self._readers.call_id(event), name=event.name, input={}))
                    arguments[len(blocks) - 1] = ""
                case ToolCallArguments(text=text):
                    arguments[max(arguments)] += text
        for at, text in arguments.items():
            block = blocks[at]
            assert isinstance(block, ToolUseBlock)
            block.input = _arguments(text)
        reason, sequence = _reason(reader.finish_reason(one), one.stop_reason)
        return MessagesResponse(
            id=self._id,
            model=self._model,
            content=blocks,
            usage=_usage(output),
            stop_reason=reason,
            stop_sequence=sequence,
        )

    async def stream(self, exchange: Exchange, tokens: TokenStream, events: EventStream) -> None:
        """The message's beginning, its blocks as they come, its end."""
        begun = False
        async for output in exchange.outputs(tokens):
            one, data = output.outputs[0], []
            if not begun:
                begun = True
                message = MessagesResponse(id=self._id, model=self._model, content=[], usage=_usage(output))
                message.usage.output_tokens = 0
                data.append(_event("message_start", {"type": "message_start", "message": msgspec.to_builtins(message)}))
                data.append(_event("ping", {"type": "ping"}))
            reader = self._readers.of(one, output)
            data += self._blocks(reader.read(one))
            if output.finished:
                reason, sequence = _reason(reader.finish_reason(one), one.stop_reason)
                delta = {"stop_reason": reason, "stop_sequence": sequence}
                usage = {"output_tokens": output.num_generated_tokens}
                data.append(self._closed())
                data.append(_event("message_delta", {"type": "message_delta", "delta": delta, "usage": usage}))
                data.append(_event("message_stop", {"type": "message_stop"}))
            if data:
                await events.send(b"".join(data))

    def failed(self, error: BaseException) -> bytes:
        """An error as the last event."""
        return _event("error", failure_of(error).anthropic(self._request_id))

    def _blocks(self, events: Sequence[OutputEvent]) -> list[bytes]:
        data = []
        for event in events:
            match event:
                case Content(text):
                    data.append(self._opened("text", {"type": "text", "text": ""}))
                    delta = {"type": "text_delta", "text": text}
                case Reasoning(text):
                    data.append(self._opened("thinking", {"type": "thinking", "thinking": "", "signature": ""}))
                    delta = {"type": "thinking_delta", "thinking": text}
                case ToolCallStart():
                    begun = {"type": "tool_use", "id": self._readers.call_id(event), "name": event.name, "input": {}}
                    data.append(self._opened(f"call {event.index}", begun))
                    continue
                case ToolCallArguments(text=text):
                    delta = {"type": "input_json_delta", "partial_json": text}
            data.append(
                _event("content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": delta})
            )
        return data

    def _opened(self, kind: str, block: dict[str, Any]) -> bytes:
        """Begin a block, unless it is the one that is open."""
        if kind == self._open:
            return b""
        closed = self._closed()
        self._index, self._open = self._index + 1, kind
        begun = {"type": "content_block_start", "index": self._index, "content_block": block}
        return closed + _event("content_block_start", begun)

    def _closed(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event("content_block_stop", {"type": "content_block_stop", "index": self._index})


def _event(name: str, body: dict[str, Any] | bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), body if isinstance(body, bytes) else orjson.dumps(body))


def _arguments(text: str) -> dict[str, Any]:
    """Arguments as an object; an empty one where a length limit cut them off."""
    try:
        found = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _reason(finish_reason: str | None, stop_reason: str | int | None) -> tuple[StopReason, str | None]:
    if finish_reason == "tool_calls":
        return "tool_use", None
    if finish_reason == "length":
        return "max_tokens", None
    return ("stop_sequence", stop_reason) if isinstance(stop_reason, str) else ("end_turn", None)


def _usage(output: RequestOutput) -> MessagesUsage:
    cached = output.num_cached_tokens
    return MessagesUsage(
        input_tokens=len(output.prompt_token_ids) - cached,
        output_tokens=output.num_generated_tokens,
        cache_read_input_tokens=cached,
    )
