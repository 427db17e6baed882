"""Tokenizer endpoints: tokenize, detokenize, count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import orjson
from aiohttp import web

from asurge.server.chat.request import all_tokens, allowed_kwargs, conversation_tokens, rendering_of
from asurge.server.errors import ApiError
from asurge.server.http.body import read, reply, tokenised
from asurge.server.schema.chat import Message, Tool
from asurge.server.schema.models import (
    CountTokensRequest,
    CountTokensResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from asurge.server.state import STATE, Served
from asurge.text import Rendering

_MOST_TOKENS = 1 << 20
"""That are made text at once: the tokenizer holds the interpreter while it does."""


async def tokenize(request: web.Request) -> web.Response:
    """Tokenize a text or a conversation."""
    body = await read(request, TokenizeRequest)
    served = request.app[STATE].find(body.model)
    kwargs = allowed_kwargs(body.chat_template_kwargs, request.app[STATE].config)
    how = rendering_of(kwargs, body.add_generation_prompt, body.continue_final_message)
    tokens = _tokens(served, body.prompt, body.messages, body.tools, special=body.add_special_tokens, how=how)

    def answer() -> bytes:
        ids, decode = tokens(), served.engine.tokenizer.decode
        strings = [decode([one], skip_special_tokens=False) for one in ids] if body.return_token_strs else None
        return msgspec.json.encode(
            TokenizeResponse(count=len(ids), max_model_len=served.engine.max_model_len, tokens=ids, token_strs=strings)
        )

    return reply(await tokenised(request, answer))


async def detokenize(request: web.Request) -> web.Response:
    """Decode token ids into text."""
    body = await read(request, DetokenizeRequest)
    tokenizer = request.app[STATE].find(body.model).engine.tokenizer

    def answer() -> bytes:
        tokens = body.tokens
        if len(tokens) > _MOST_TOKENS:
            raise ApiError(f"tokens has {len(tokens)} ids: at most {_MOST_TOKENS} are allowed", param="tokens")
        if tokens and not (min(tokens) >= 0 and max(tokens) < tokenizer.vocab_size):
            wrong = next(token for token in tokens if not 0 <= token < tokenizer.vocab_size)
            raise ApiError(
                f"tokens holds the token id {wrong}: ids must be in [0, {tokenizer.vocab_size})", param="tokens"
            )
        return msgspec.json.encode(DetokenizeResponse(prompt=tokenizer.decode(tokens, skip_special_tokens=False)))

    return reply(await tokenised(request, answer))


async def count_tokens(request: web.Request) -> web.Response:
    """Count the tokens of a text or a conversation."""
    body = await read(request, CountTokensRequest)
    served = request.app[STATE].find(body.model)
    text = body.text if body.text is not None else body.prompt
    tokens = await tokenised(request, _tokens(served, text, body.messages, body.tools, special=True))
    return reply(CountTokensResponse(count=len(tokens), max_model_len=served.engine.max_model_len))


async def tokenizer_info(request: web.Request) -> web.Response:
    """Describe the tokenizer: its size, end tokens and chat template."""
    served = request.app[STATE].find(request.query.get("model"))
    tokenizer = served.engine.tokenizer
    info: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "eos_token_ids": sorted(tokenizer.eos_token_ids),
        "chat_template": tokenizer.chat_template,
        "max_model_len": served.engine.max_model_len,
    }
    return reply(orjson.dumps(info))


def _tokens(
    served: Served,
    text: str | None,
    messages: list[Message] | None,
    tools: list[Tool] | None,
    *,
    special: bool,
    how: Rendering | None = None,
) -> Callable[[], list[int]]:
    """A function that makes tokens of a text or a conversation, for a worker thread.

    Raises:
        ApiError: both are given, or neither.
    """
    if (text is None) == (messages is None):
        raise ApiError("give either a text or messages", param="prompt")

    def tokens() -> list[int]:
        if text is not None:
            return all_tokens(served, text, "prompt", special=special)
        return conversation_tokens(served, messages or (), tools, how or {})

    return tokens
