"""``/v1/messages``, Anthropic's API: what comes in and what goes out."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class TextBlock(msgspec.Struct, kw_only=True, tag="text", tag_field="type"):
    """A text."""

    text: str


class ThinkingBlock(msgspec.Struct, kw_only=True, tag="thinking", tag_field="type"):
    """Reasoning. It is not signed: whoever sends it back is believed."""

    thinking: str
    signature: str = ""


class ToolUseBlock(msgspec.Struct, kw_only=True, tag="tool_use", tag_field="type"):
    """A call."""

    id: str
    name: str
    input: dict[str, Any]


class Block(msgspec.Struct, kw_only=True):
    """A piece of a turn: ``text``, ``thinking``, ``tool_use`` or ``tool_result``.

    Others are left out, or noted, where they need not be read.
    """

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    content: Any = None
    is_error: bool | None = None


class TurnMessage(msgspec.Struct, kw_only=True):
    """A turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class MessagesTool(msgspec.Struct, kw_only=True):
    """A tool of the caller's; those of other types are left out."""

    name: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None
    strict: bool | None = None


class MessagesToolChoice(msgspec.Struct, kw_only=True):
    """Choice among the tools."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(msgspec.Struct, kw_only=True):
    """Reasoning: whether, and for how many tokens."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class OutputFormat(msgspec.Struct, kw_only=True):
    """The form an answer must have."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True):
    """About the answer; ``effort`` is handed to the chat template."""

    format: OutputFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class CountMessagesRequest(msgspec.Struct, kw_only=True):
    """A conversation to count."""

    messages: list[TurnMessage]
    model: str | None = None
    system: str | list[TextBlock] | None = None
    tools: list[MessagesTool] | None = None
    tool_choice: MessagesToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountMessagesRequest, kw_only=True):
    """A conversation to continue."""

    max_tokens: int
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None


class CountMessagesResponse(msgspec.Struct, kw_only=True):
    """Number of tokens of a conversation."""

    input_tokens: int


class MessagesUsage(msgspec.Struct, kw_only=True):
    """Tokens; those found in the prefix cache are not among ``input_tokens``."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0


class MessagesResponse(msgspec.Struct, kw_only=True):
    """The answer."""

    id: str
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    usage: MessagesUsage
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None = None
    stop_sequence: str | None = None
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"
