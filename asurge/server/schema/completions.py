"""``/v1/completions``: what comes in and what goes out."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from asurge.server.schema.sampling import Sampling, Usage


class CompletionRequest(Sampling, kw_only=True):
    """Texts or token ids to continue."""

    prompt: str | list[str | int | list[int]]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None

    @property
    def tells_of_tokens(self) -> bool:
        return self.logprobs is not None or self.prompt_logprobs is not None

    @property
    def scores(self) -> bool:
        """Whether it asks only for the prompt's logprobs: the one token that has to be sampled is left out."""
        return bool(self.echo) and self.max_tokens == 0


class CompletionLogprobs(msgspec.Struct, kw_only=True):
    """Logprobs of tokens, as lists of equal length."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct, kw_only=True):
    """A completion; in a stream, what is new in it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: list[dict[int, Any] | None] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """Completions of a request; in a stream, one event of it."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: str | None = None
    usage: Usage | UnsetType | None = UNSET
