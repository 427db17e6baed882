"""What is asked in chats, and what clients make of the answers."""

from __future__ import annotations

from typing import Any

ASK: list[Any] = [{"role": "user", "content": "What does math.sqrt do?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip


def merged(parts: list[Any], index: int = 0) -> dict[str, Any]:
    """What a client makes of a stream."""
    content, reasoning, reason, calls = "", "", None, list[dict[str, Any]]()
    for choice in (choice for part in parts for choice in part.choices if choice.index == index):
        delta = choice.delta
        content += delta.content or ""
        reasoning += getattr(delta, "reasoning_content", None) or ""
        reason = choice.finish_reason or reason
        for call in delta.tool_calls or ():
            if call.id is not None:
                assert call.index == len(calls)
                calls.append({"name": call.function.name, "arguments": ""})
            calls[call.index]["arguments"] += call.function.arguments
    return {"content": content, "reasoning": reasoning, "finish_reason": reason, "calls": calls}


def whole(choice: Any) -> dict[str, Any]:
    message = choice.message
    calls = [{"name": one.function.name, "arguments": one.function.arguments} for one in message.tool_calls or ()]
    reasoning = getattr(message, "reasoning_content", None) or ""
    return {"content": message.content or "", "reasoning": reasoning, "finish_reason": choice.finish_reason, "calls": calls}  # fmt: skip
