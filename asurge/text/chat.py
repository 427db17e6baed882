"""Conversations as prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asurge.errors import ChatTemplateError
from asurge.text.template import Allowance
from asurge.text.tokenizer import Tokenizer

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TOLD_CHARACTERS = 300
_OWN_KWARGS = frozenset(
    ("conversation", "messages", "chat_template", "tools", "tokenize", "add_generation_prompt", "return_dict")
)

Message = Mapping[str, Any]  # OpenAI's chat message: JSON


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    add_generation_prompt: bool = True,
    template_kwargs: Mapping[str, Any] | None = None,
    allowance: Allowance | None = None,
) -> str:
    """The prompt that a chat template makes of messages. Templates run in an immutable sandbox.

    Args:
        allowance: what it may take, together with other renderings; default: as much as a request may.

    Raises:
        ChatTemplateError: malformed messages, no template, or one that fails, takes too much, or tries to leave the sandbox.
    """
    if chat_template is None and tokenizer.chat_template is None:
        raise ChatTemplateError(
            "the model has no chat template: pass chat_template=..., or use a chat model", param="chat_template"
        )
    if taken := sorted(_OWN_KWARGS & (template_kwargs or {}).keys()):
        raise ChatTemplateError(
            f"template_kwargs must not hold {', '.join(taken)}: these are asurge's own", param="template_kwargs"
        )
    checked = [_checked(index, message) for index, message in enumerate(_listed(messages))]
    try:
        return tokenizer.render(
            checked,
            chat_template,
            allowance or Allowance(),
            tools=None if tools is None else [dict(tool) for tool in tools],
            add_generation_prompt=add_generation_prompt,
            **(template_kwargs or {}),
        )
    except Exception as error:  # a template can raise anything, and every failure is its author's or the caller's
        raise ChatTemplateError(
            f"the chat template failed: {str(error)[:_TOLD_CHARACTERS]}", param="messages"
        ) from error


def _listed(messages: Sequence[Message]) -> Sequence[Message]:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise ChatTemplateError(
            'messages must be a non-empty list such as [{"role": "user", "content": "Hello"}]', param="messages"
        )
    return messages


def _checked(index: int, message: Message) -> dict[str, Any]:
    """A message with its content as one string."""
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise ChatTemplateError(f"{where}={message!r} must be a mapping with role and content", param=where)
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise ChatTemplateError(f"{where}: role={role!r} must be one of {', '.join(_ROLES)}", param=f"{where}.role")
    return {**message, "content": message_text(where, content, optional=bool(message.get("tool_calls")))}


def message_text(where: str, content: object, *, optional: bool) -> str | None:
    """A message's content as one string, whether it was given as one or in parts.

    Raises:
        ChatTemplateError: it is not text, or missing and not ``optional``; ``param`` is its place.
    """
    if isinstance(content, list):
        content = "".join(_part(f"{where}.content[{at}]", part) for at, part in enumerate(content))
    if content is None and not optional:
        raise ChatTemplateError(f"{where} has no content", param=f"{where}.content")
    if content is not None and not isinstance(content, str):
        raise ChatTemplateError(f"{where}: content must be a string or text parts", param=f"{where}.content")
    return content


def _part(where: str, part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise ChatTemplateError(
        f'{where} must be {{"type": "text", "text": ...}}: other parts are not supported', param=where
    )
