"""Preparing a chat request for the engine: messages, tools, and the form that calls must have."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

import msgspec

from asurge.errors import InvalidRequestError
from asurge.params import SamplingParams
from asurge.parsing import TOOL_FORMATS, OutputParser, ReasoningFormat, ToolFormat
from asurge.parsing.custom import INPUT
from asurge.plan import MAX_LOGPROBS
from asurge.server.chat.tools import bound_form, listed, relaxed, tool_use
from asurge.server.config import ServerConfig
from asurge.server.errors import ApiError
from asurge.server.schema.chat import ChatCompletionRequest, Message, Tool
from asurge.server.state import Served
from asurge.text import Rendering, plain_messages, render_chat

_FALLBACK_FORMAT = "hermes"
_TAIL_TOKENS = 16
_DEVELOPER = re.compile("[\"']developer[\"']")
_WHOLE_CHARACTERS, _WHOLE_PER_TOKEN = 1 << 20, 8
"""What takes about a second to tokenise; more only where the context holds it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """A chat request as the engine and the parsers take it.

    Attributes:
        rendering: with the tools that the model is told of.
        parallel: whether an answer may have several calls.
        forced: an answer consists of calls.
        relaxed: what schemas ask for beyond what is held.
        custom: the names of tools that are called with a text.
    """

    messages: list[dict[str, Any]]
    rendering: Rendering
    params: SamplingParams
    tool_format: ToolFormat | None
    reasoning_format: ReasoningFormat | None
    parallel: bool = True
    forced: bool = False
    relaxed: Sequence[str] = ()
    custom: Set[str] = frozenset()

    @property
    def parses(self) -> bool:
        """Whether the texts hold more than text."""
        return self.tool_format is not None or self.reasoning_format is not None

    def parser(self, served: Served, prompt_token_ids: Sequence[int]) -> OutputParser:
        """Make a parser for one completion after a prompt, which may have begun the reasoning."""
        return OutputParser(
            self.tool_format,
            self.reasoning_format,
            reasoning_open=self._reasoning_open(served, prompt_token_ids),
            tools=self.rendering.get("tools") or (),
            special_tokens=() if self.params.skip_special_tokens else served.engine.tokenizer.special_texts,
        )

    def _reasoning_open(self, served: Served, prompt_token_ids: Sequence[int]) -> bool:
        if self.reasoning_format is None:
            return False
        if self.rendering.get("continue_final_message"):
            return self.reasoning_format.is_open_after(self.messages[-1]["content"])
        tail = served.engine.tokenizer.decode(prompt_token_ids[-_TAIL_TOKENS:], skip_special_tokens=False)
        return tail.rstrip().endswith(self.reasoning_format.begins)


def conversation_of(
    body: ChatCompletionRequest, served: Served, config: ServerConfig, switches: Mapping[str, Any] | None = None
) -> Conversation:
    """Prepare a request for a model.

    Args:
        switches: what the endpoint itself tells the chat template.

    Raises:
        ApiError, InvalidRequestError: the request asks for what does not exist, or for what does not go together.
    """
    body.check()
    if body.chat_template is not None:
        raise ApiError("chat_template is not taken from requests", param="chat_template")
    if body.echo:
        raise ApiError("echo is for /v1/completions", param="echo")
    if body.streams and body.prompt_logprobs is not None:
        raise ApiError(
            "prompt_logprobs cannot be streamed: leave out stream or prompt_logprobs", param="prompt_logprobs"
        )
    asked_kwargs = allowed_kwargs(body.chat_template_kwargs, config)
    kwargs = {**effort_switches(body.reasoning_effort), **(switches or {}), **asked_kwargs}
    rendering = rendering_of(kwargs, body.add_generation_prompt, body.continue_final_message)
    use = tool_use(body)
    tool_format = served.tool_format if use.tools else None
    if use.forced:
        tool_format = tool_format or TOOL_FORMATS[_FALLBACK_FORMAT]
    form = body.form() if tool_format is None else bound_form(body.form(), tool_format, use)
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    own: dict[str, Any] = {"max_tokens": most}
    if body.logprobs:
        own["logprobs"] = _top_logprobs(body.top_logprobs)
    elif body.top_logprobs:
        raise ApiError("top_logprobs needs logprobs=true", param="top_logprobs")
    formats = [one for one in (tool_format, served.reasoning_format) if one is not None]
    if body.skip_special_tokens is None and any(one.needs_special_tokens for one in formats):
        own["skip_special_tokens"] = False
    return Conversation(
        messages=template_messages(body.messages, served.engine.tokenizer.chat_template),
        rendering={**rendering, "tools": use.tools},
        params=body.params(served.engine.tokenizer.sampling_defaults, form, **own),
        tool_format=tool_format,
        reasoning_format=served.reasoning_format,
        parallel=use.parallel,
        forced=bool(use.forced),
        relaxed=relaxed(body.form(), use if tool_format is not None else None),
        custom=use.custom,
    )


def rendering_of(
    template_kwargs: Mapping[str, Any],
    add_generation_prompt: bool | None = None,
    continue_final_message: bool | None = None,
) -> Rendering:
    """Return the options with which a request has its conversation rendered, but for the tools.

    Raises:
        ApiError: the model is to answer with a message of its own and with the rest of the last one.
    """
    if add_generation_prompt and continue_final_message:
        raise ApiError(
            "continue_final_message=true goes on with the last message: set add_generation_prompt=false, or leave it out",
            param="continue_final_message",
        )
    return {
        "template_kwargs": template_kwargs,
        "add_generation_prompt": add_generation_prompt is not False,
        "continue_final_message": continue_final_message is True,
    }


def template_messages(messages: Sequence[Message], template: str | None) -> list[dict[str, Any]]:
    """Convert messages to those of the engine's chat, for a template.

    Most templates know one system message, at the beginning: of further ones there, they leave out some and refuse the rest.

    Raises:
        ChatTemplateError: one has no text.
    """
    knows_developers = _DEVELOPER.search(template or "") is not None
    found = plain_messages([_template_message(at, message, knows_developers) for at, message in enumerate(messages)])
    rules = list(itertools.takewhile(lambda one: one["role"] in ("system", "developer"), found))
    if len(rules) < 2:
        return found
    return [
        {**rules[0], "content": "\n\n".join(one["content"] for one in rules if one["content"])},
        *found[len(rules) :],
    ]


def _template_message(at: int, message: Message, knows_developers: bool) -> dict[str, Any]:
    """A message with the roles that templates know, and with calls in their one form."""
    found: dict[str, Any] = msgspec.to_builtins(message)
    if found["role"] == "function":
        found["role"] = "tool"
    if found["role"] == "developer" and not knows_developers:
        found["role"] = "system"
    refusal = found.pop("refusal")
    if found["content"] is None:
        found["content"] = refusal
    old_call = found.pop("function_call")
    calls = [{"type": "function", "function": old_call}] if old_call is not None else found["tool_calls"]
    found["tool_calls"] = [
        _function_call(f"messages[{at}].tool_calls[{number}]", call) for number, call in enumerate(calls or ())
    ]
    return found


def _function_call(where: str, call: dict[str, Any]) -> dict[str, Any]:
    """A call as that of a function: templates know no others."""
    function, custom = call.get("function"), call.pop("custom", None)
    if function is None and custom is None:
        raise ApiError(f"{where} must have a function", param=f"{where}.function")
    if function is None:
        function = {"name": custom["name"], "arguments": {INPUT: custom["input"]}}
    return {**call, "type": "function", "function": function}


def allowed_kwargs(given: Mapping[str, Any] | None, config: ServerConfig) -> dict[str, Any]:
    """Return the arguments that a request passes to the chat template.

    Raises:
        ApiError: the settings do not allow it.
    """
    if unknown := sorted((given or {}).keys() - set(config.template_kwargs)):
        raise ApiError(
            f"chat_template_kwargs has {unknown[0][:100]!r}: allowed are {', '.join(config.template_kwargs)}",
            param="chat_template_kwargs",
        )
    return dict(given or {})


def all_tokens(served: Served, text: str, param: str, *, special: bool) -> list[int]:
    """All tokens of a text, however many the context holds. Blocks.

    Raises:
        ApiError: it is too long to be tokenised whole.
    """
    most = max(_WHOLE_CHARACTERS, _WHOLE_PER_TOKEN * served.engine.max_model_len)
    if len(text) > most:
        raise ApiError(
            f"{param} has {len(text)} characters: at most {most} can be tokenised at once; send it in parts",
            param=param,
        )
    return served.engine.tokenizer.encode(text, add_special_tokens=special)


def conversation_tokens(
    served: Served,
    messages: Sequence[Message],
    tools: Sequence[Tool] | None,
    how: Rendering,
) -> list[int]:
    """The tokens of a conversation as the engine would get it, whole. Blocks; raises as `all_tokens` does."""
    given = template_messages(messages, served.engine.tokenizer.chat_template)
    whole: Rendering = {**how, "tools": listed(tools)}
    rendered = render_chat(served.engine.tokenizer, given, **whole)
    return all_tokens(served, rendered, "messages", special=False)


def effort_switches(effort: str | None) -> dict[str, Any]:
    """Template arguments for the effort of reasoning."""
    if effort is None:
        return {}
    return {"reasoning_effort": effort} | ({"enable_thinking": False} if effort == "none" else {})


def _top_logprobs(count: int | None) -> int:
    if count is not None and not 0 <= count <= MAX_LOGPROBS:
        raise InvalidRequestError(f"top_logprobs={count} must be in [0, {MAX_LOGPROBS}]", param="top_logprobs")
    return count or 0
