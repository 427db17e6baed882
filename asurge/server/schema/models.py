"""Models, tokens, and what the server says about itself."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from asurge.server.schema.chat import Message, Tool


class Model(msgspec.Struct, kw_only=True):
    """A model by its name.

    Attributes:
        meta: what a GGUF file says about itself; left out of other models.
    """

    id: str
    created: int
    max_model_len: int | None = None
    root: str | None = None
    parent: str | None = None
    owned_by: str = "asurge"
    meta: dict[str, str] | UnsetType = UNSET
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct, kw_only=True):
    """List of models."""

    data: list[Model]
    object: Literal["list"] = "list"


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A text or a conversation, as tokens."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class TokenizeResponse(msgspec.Struct, kw_only=True):
    """Token ids of a text or a conversation."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """Token ids, as text."""

    tokens: list[int]
    model: str | None = None


class DetokenizeResponse(msgspec.Struct, kw_only=True):
    """Their text."""

    prompt: str


class CountTokensRequest(msgspec.Struct, kw_only=True):
    """A text or a conversation to count."""

    model: str | None = None
    text: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class CountTokensResponse(msgspec.Struct, kw_only=True):
    """Number of tokens."""

    count: int
    max_model_len: int


class ErrorBody(msgspec.Struct, kw_only=True):
    """An error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(msgspec.Struct, kw_only=True):
    """An error in OpenAI's shape."""

    error: ErrorBody
