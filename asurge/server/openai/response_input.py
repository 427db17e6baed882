"""The input of ``/v1/responses``: items, as the messages of a conversation."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from asurge.parsing.custom import INPUT
from asurge.server.errors import ApiError
from asurge.server.schema.chat import FunctionCall, Message, ToolCall
from asurge.server.schema.responses import Item
from asurge.text import message_text

_CALL, _RESULT = "_call", "_call_output"


def conversation_in(items: Sequence[Item]) -> list[Message]:
    """Convert the input of a response to a conversation.

    Reasoning, a text and the calls that go with them are one turn, as models write them. Items that belong to tools of others'
    servers are left out: nothing here can call those.

    Raises:
        ApiError, ChatTemplateError: a message has no role, or is not text.
    """
    found: list[Message] = []
    others = (at for at, item in enumerate(items) if item.type != "message" or item.role == "assistant")
    answered = max(others, default=0)
    for at, item in enumerate(items):
        if item.type == "message":
            _add_message(found, item, f"input[{at}]", past=at < answered)
        elif item.type == "reasoning":
            _turn(found).reasoning_content = _reasoning(item)
        elif item.type.endswith(_RESULT) and item.call_id is not None:
            text = _output(item.output, f"input[{at}].output")
            found.append(Message(role="tool", tool_call_id=item.call_id, content=text))
        elif item.type.endswith(_CALL) and item.call_id is not None:
            turn = _turn(found, reasoned=True, said=True)
            turn.tool_calls = [*(turn.tool_calls or ()), _call(item)]
    return found


def listed_items(given: str | Sequence[Item]) -> list[dict[str, Any]]:
    """The items of a request as ``input_items`` lists them: each with an id, and messages with their content in parts."""
    items = [Item(role="user", content=given)] if isinstance(given, str) else given
    found = list[dict[str, Any]]()
    for item in items:
        one = {name: value for name, value in msgspec.to_builtins(item).items() if value is not None}
        one.setdefault("id", f"{'msg' if item.type == 'message' else 'item'}_{secrets.token_hex(12)}")
        if item.type == "message":
            kind = "output_text" if item.role == "assistant" else "input_text"
            if isinstance(item.content, str):
                one["content"] = [{"type": kind, "text": item.content}]
            one["status"] = "completed"
        found.append(one)
    return found


def _add_message(found: list[Message], item: Item, where: str, *, past: bool) -> None:
    if item.role is None:
        raise ApiError(f"{where}.role is missing", param=f"{where}.role")
    text = message_text(where, msgspec.to_builtins(item.content), item.role, past=past)
    if item.role != "assistant":
        found.append(Message(role=item.role, content=text))
        return
    turn = _turn(found, reasoned=True, said=bool(found and found[-1].tool_calls))
    turn.content = text if turn.content is None else f"{turn.content}{text}"


def _turn(found: list[Message], *, reasoned: bool = False, said: bool = False) -> Message:
    """The assistant's turn that is going on, or else a new one.

    Args:
        reasoned, said: what is to be added may follow reasoning, or a text.
    """
    last = found[-1] if found else None
    fits = last is not None and last.role == "assistant"
    if last is None or not fits or (last.content is not None and not said) or (last.reasoning_content and not reasoned):
        last = Message(role="assistant")
        found.append(last)
    return last


def _reasoning(item: Item) -> str | None:
    parts = item.content if isinstance(item.content, list) else item.summary or ()
    return "\n".join(one.text for one in parts if one.text) or None


def _call(item: Item) -> ToolCall:
    name = item.name or item.type.removesuffix(_CALL)
    arguments = item.arguments
    if item.input is not None:
        arguments = {INPUT: item.input}
    elif item.action is not None or item.operation is not None:
        arguments = item.action or item.operation
    return ToolCall(id=item.call_id, function=FunctionCall(name=name, arguments=arguments))


def _output(output: Any, where: str) -> str:
    """What a tool returned, as text: parts of messages, or anything else as JSON."""
    if output is None or isinstance(output, str):
        return output or ""
    if isinstance(output, list) and all(isinstance(one, dict) and isinstance(one.get("type"), str) for one in output):
        return message_text(where, output, "tool")
    return json.dumps(output, ensure_ascii=False)
