"""``/v1/responses``: what comes in and what goes out."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from asurge.server.schema.chat import Part, ToolChoice
from asurge.server.schema.sampling import StreamOptions


class Item(msgspec.Struct, kw_only=True):
    """An item of a conversation: a message (also without a type), a call, its result, or reasoning.

    Or the id of such an item of an earlier answer. Items of other types are left out.
    """

    type: str = "message"
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    summary: list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: Any = None
    input: str | None = None
    action: dict[str, Any] | None = None
    operation: dict[str, Any] | None = None
    output: Any = None


class TextFormat(msgspec.Struct, kw_only=True):
    """The form an answer must have."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, kw_only=True):
    """About the text of an answer."""

    format: TextFormat | None = None


class ResponsesTool(msgspec.Struct, kw_only=True):
    """A function or a custom tool that the model may call."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: dict[str, Any] | UnsetType | None = UNSET


class ReasoningOptions(msgspec.Struct, kw_only=True):
    """About the reasoning of an answer."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """A conversation to continue: OpenAI's fields, and those of asurge's that are not about form."""

    input: str | list[Item] = []
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    prompt_cache_key: str | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    priority: int | None = None
    deadline_s: float | None = None


class InputDetails(msgspec.Struct, kw_only=True):
    """Input tokens found in the prefix cache."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, kw_only=True):
    """Output tokens of reasoning: as many as its text has."""

    reasoning_tokens: int = 0


class ResponsesUsage(msgspec.Struct, kw_only=True):
    """Usage of a response, in tokens."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputDetails
    output_tokens_details: OutputDetails


class Response(msgspec.Struct, kw_only=True):
    """A response, with the parameters of its request."""

    id: str
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    output: list[dict[str, Any]] = []
    usage: ResponsesUsage | None = None
    incomplete_details: dict[str, str] | None = None
    error: dict[str, str] | None = None
    instructions: str | None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = True
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    max_output_tokens: int | None = None
    previous_response_id: str | None = None
    tool_choice: Any = "auto"
    tools: list[ResponsesTool] = []
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    store: bool = True
    background: bool = False
    object: Literal["response"] = "response"


class InputItems(msgspec.Struct, kw_only=True):
    """A page of the items that a stored response was made from."""

    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


class InputTokens(msgspec.Struct, kw_only=True):
    """Number of tokens of a response's input."""

    input_tokens: int
    object: Literal["response.input_tokens"] = "response.input_tokens"


class DeletedResponse(msgspec.Struct, kw_only=True):
    """A response that was deleted."""

    id: str
    deleted: Literal[True] = True
    object: Literal["response"] = "response"
