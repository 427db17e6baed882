"""Conversations as prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from asurge.errors import ChatTemplateError
from asurge.structured import shown
from asurge.text.template import Allowance
from asurge.text.tokenizer import Tokenizer

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MAY_BE_EMPTY = ("assistant", "tool")
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_NOTED_CHARACTERS = 40
_TOLD_CHARACTERS = 300
_OWN_KWARGS = frozenset(
    (
        "conversation",
        "messages",
        "chat_template",
        "tools",
        "tokenize",
        "add_generation_prompt",
        "continue_final_message",
        "return_dict",
    )
)
_HERE = "[asurge goes on here] "
"""Put behind a text to find where a template has put its end; its own space shows whether the template trims texts."""

Message = Mapping[str, Any]  # OpenAI's chat message: JSON


class Rendering(TypedDict, total=False):
    """Options that turn a conversation into a prompt.

    Attributes:
        tools: OpenAI's definitions, for the template to tell the model of.
        chat_template: Jinja's, instead of the model's own.
        template_kwargs: further names that the template knows, such as ``enable_thinking``.
        add_generation_prompt: whether an answer is asked for, as by the beginning of an assistant's message (the default).
        continue_final_message: the last message, which must be the assistant's, is the beginning of the answer; then there
            is no other prompt for it.
    """

    tools: Sequence[Mapping[str, Any]] | None
    chat_template: str | None
    template_kwargs: Mapping[str, Any] | None
    add_generation_prompt: bool
    continue_final_message: bool


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    allowance: Allowance | None = None,
    **how: Unpack[Rendering],
) -> str:
    """The prompt that a chat template makes of messages. Templates run in an immutable sandbox.

    Args:
        allowance: what it may take, together with other renderings; default: as much as a request may.

    Raises:
        ChatTemplateError: malformed messages, no template, or one that fails, takes too much, or tries to leave the sandbox;
            or the last message cannot be continued.
    """
    chat_template, template_kwargs, tools = how.get("chat_template"), how.get("template_kwargs") or {}, how.get("tools")
    continued = how.get("continue_final_message", False)
    if chat_template is None and tokenizer.chat_template is None:
        raise ChatTemplateError(
            "the model has no chat template: pass chat_template=..., or use a chat model", param="chat_template"
        )
    if taken := sorted(_OWN_KWARGS & template_kwargs.keys()):
        raise ChatTemplateError(
            f"template_kwargs must not hold {', '.join(taken)}: these are asurge's own", param="template_kwargs"
        )
    checked = plain_messages(messages)
    if continued:
        checked[-1] = _marked(len(checked) - 1, checked[-1])
    try:
        text = tokenizer.render(
            checked,
            chat_template,
            allowance or Allowance(),
            tools=None if tools is None else [dict(tool) for tool in tools],
            add_generation_prompt=not continued and how.get("add_generation_prompt", True),
            **template_kwargs,
        )
    except Exception as error:  # a template can raise anything, and every failure is its author's or the caller's
        raise ChatTemplateError(
            f"the chat template failed: {str(error)[:_TOLD_CHARACTERS]}", param="messages"
        ) from error
    return _up_to_mark(text) if continued else text


def _marked(index: int, message: dict[str, Any]) -> dict[str, Any]:
    """The last message, with a mark at its end."""
    if message["role"] != "assistant" or message.get("tool_calls"):
        raise ChatTemplateError(
            f"continue_final_message needs a last message of the assistant, with content and without calls, not "
            f"messages[{index}]",
            param="continue_final_message",
        )
    return {**message, "content": message["content"] + _HERE}


def _up_to_mark(text: str) -> str:
    """What comes before the mark, as transformers' ``continue_final_message`` has it: a template that trims texts trims this
    one too."""
    before, found, after = text.rpartition(_HERE.rstrip())
    if not found:
        raise ChatTemplateError(
            "the chat template leaves out the end of the last message: it cannot be continued",
            param="continue_final_message",
        )
    return before if after.startswith(" ") else before.rstrip()


def _listed(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ChatTemplateError(
            'messages must be a non-empty list such as [{"role": "user", "content": "Hello"}]', param="messages"
        )
    return messages


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Convert messages to the one form that templates take.

    Content becomes one string, arguments of calls objects, and there are no lists without members. What asurge or another server
    has answered is taken as it comes back, also without content.

    Raises:
        ChatTemplateError: one is malformed, or asks about something else than text.
    """
    listed = _listed(messages)
    answered = max((at for at, one in enumerate(listed) if _role(one) == "assistant"), default=0)
    return [_checked(at, one, past=at < answered) for at, one in enumerate(listed)]


def _role(message: object) -> object:
    return message.get("role") if isinstance(message, Mapping) else None


def _checked(index: int, message: Message, *, past: bool) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise ChatTemplateError(f"{where}={message!r} must be a mapping with role and content", param=where)
    role = message.get("role")
    if role not in _ROLES:
        raise ChatTemplateError(f"{where}: role={role!r} must be one of {', '.join(_ROLES)}", param=f"{where}.role")
    found = {**message, "content": message_text(where, message.get("content"), role, past=past)}
    calls = found.pop("tool_calls", None)
    return {**found, "tool_calls": [_checked_call(one) for one in calls]} if calls else found


def _checked_call(call: Any) -> Any:
    """A call whose arguments are an object: an empty one where they were cut off, or never were one."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    return {**call, "function": {**function, "arguments": arguments if isinstance(arguments, Mapping) else {}}}


def message_text(where: str, content: object, role: str, *, past: bool = False) -> str:
    """A message's content as one string, whether it was given as one or in parts. Answers and results of tools may have none.

    Args:
        past: it has been answered; see `part_text`.

    Raises:
        ChatTemplateError: it is not text, or missing; ``param`` is its place.
    """
    if isinstance(content, list):
        return "".join(part_text(f"{where}.content[{at}]", one, role, past=past) for at, one in enumerate(content))
    if content is None and role in _MAY_BE_EMPTY:
        return ""
    if content is None:
        raise ChatTemplateError(f"{where} has no content", param=f"{where}.content")
    if not isinstance(content, str):
        raise ChatTemplateError(f"{where}: content must be a string or text parts", param=f"{where}.content")
    return content


def part_text(where: str, part: object, role: str, *, past: bool = False) -> str:
    """Return the text of a part of a message.

    Only what comes last must be text: of pictures that a tool returned, or that were answered before, as of all that is ``past``,
    a note is left, so that a conversation can go on.

    Raises:
        ChatTemplateError: it is not text; ``param`` is its place.
    """
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and isinstance(kind, str):
        text = part.get("refusal" if kind == "refusal" else "text")
        if kind in _TEXT_PARTS and isinstance(text, str):
            return text
        if kind not in _TEXT_PARTS and (past or role in _MAY_BE_EMPTY):
            return "" if role == "assistant" else f"[{kind[:_NOTED_CHARACTERS]} left out: only text can be read]"
    raise ChatTemplateError(
        f'{where} must be {{"type": "text", "text": ...}}, and not of type {shown(kind)}', param=where
    )
