"""``/v1/chat/completions``: what comes in and what goes out."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from asurge.server.schema.sampling import Sampling, Usage


class Part(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A piece of a message's content: ``text``, ``input_text``, ``output_text`` or ``refusal``.

    Others are noted where they need not be read.
    """

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(msgspec.Struct, kw_only=True):
    """A call, with its arguments as JSON text; an object, too. Whatever else they are, they stand for none."""

    name: str | None = None
    arguments: Any = ""


class CustomCall(msgspec.Struct, kw_only=True):
    """A call with a text of any form."""

    name: str
    input: str = ""


class ToolCall(msgspec.Struct, kw_only=True):
    """A call that a model made, as it comes back in a conversation."""

    id: str | None = None
    type: str | None = "function"
    function: FunctionCall | None = None
    custom: CustomCall | None = None


class Message(msgspec.Struct, kw_only=True):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class Function(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomTool(msgspec.Struct, kw_only=True):
    """A tool that is called with a text instead of arguments; its format may say which texts it takes."""

    name: str
    description: str | None = None
    format: dict[str, Any] | None = None


class Tool(msgspec.Struct, kw_only=True):
    """A tool: a function, or a custom one. Others are left out."""

    type: str = "function"
    function: Function | None = None
    custom: CustomTool | None = None


class NamedFunction(msgspec.Struct, kw_only=True):
    """A function by its name."""

    name: str


class NamedTool(msgspec.Struct, kw_only=True):
    """A tool by its name, as chat and responses write it."""

    type: str = "function"
    function: NamedFunction | None = None
    custom: NamedFunction | None = None
    name: str | None = None

    @property
    def named(self) -> str | None:
        """The name of the function or custom tool."""
        found = self.function or self.custom
        return self.name if found is None else found.name


class AllowedTools(msgspec.Struct, kw_only=True):
    """The tools to choose among."""

    mode: Literal["auto", "required"] | None = None
    tools: list[NamedTool] | None = None


class ToolChoice(NamedTool, kw_only=True):
    """The one tool to call; or the type ``allowed_tools``, ``auto``, ``none`` or ``required``.

    With the type ``allowed_tools`` come those to choose among.
    """

    mode: Literal["auto", "required"] | None = None
    tools: list[NamedTool] | None = None
    allowed_tools: AllowedTools | None = None


class ChatCompletionRequest(Sampling, kw_only=True):
    """A conversation to continue."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = None
    function_call: Literal["none", "auto"] | ToolChoice | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    include_reasoning: bool = True
    chat_template_kwargs: dict[str, Any] | None = None
    chat_template: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    echo: bool | None = None

    @property
    def tells_of_tokens(self) -> bool:
        return bool(self.logprobs) or self.prompt_logprobs is not None


class TopLogprob(msgspec.Struct, kw_only=True):
    """A token with its logprob."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob, kw_only=True):
    """The sampled token with its logprob, beside the likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(msgspec.Struct, kw_only=True):
    """Logprobs of a message's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class OutFunction(msgspec.Struct, kw_only=True):
    """A call on its way out; in a stream, a piece of it."""

    arguments: str
    name: str | UnsetType = UNSET


class OutCustom(msgspec.Struct, kw_only=True):
    """A call of a custom tool on its way out; in a stream, a piece of it."""

    input: str
    name: str | UnsetType = UNSET


class OutToolCall(msgspec.Struct, kw_only=True):
    """A call on its way out."""

    function: OutFunction | UnsetType = UNSET
    custom: OutCustom | UnsetType = UNSET
    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function", "custom"] | UnsetType = UNSET


class OutMessage(msgspec.Struct, kw_only=True):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[OutToolCall] | UnsetType = UNSET
    function_call: OutFunction | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    """A completion of a chat."""

    index: int
    message: OutMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    """Completions of a chat."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None
    prompt_logprobs: list[dict[int, Any] | None] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Delta(msgspec.Struct, kw_only=True):
    """New parts of a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[OutToolCall] | UnsetType = UNSET
    function_call: OutFunction | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, kw_only=True):
    """New parts of a completion of a chat."""

    index: int
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    """An event of a stream."""

    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    system_fingerprint: str | None = None
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
