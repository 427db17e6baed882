"""Outputs of requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FinishReason = Literal["stop", "length", "abort", "error", "tool_calls"]


@dataclasses.dataclass(frozen=True, slots=True)
class Logprob:
    """Probability of a token by the model itself, before temperature and all other options of the request.

    Attributes:
        logprob: natural logarithm of its probability.
        rank: among all tokens; 1 is the likeliest.
        decoded_token: its text alone.
    """

    logprob: float
    rank: int
    decoded_token: str


@dataclasses.dataclass(slots=True)
class CompletionOutput:
    """A completion of a request; ``finish_reason`` is None while it grows.

    Attributes:
        cumulative_logprob: the sum over all its tokens, if logprobs were asked for.
        logprobs: for each token, itself and the likeliest tokens in its place, by token id.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or token that ended the text, if one did."""


@dataclasses.dataclass(slots=True)
class RequestOutput:
    """A request's state at one moment of its stream, or its end. All times are in seconds.

    Attributes:
        prompt_logprobs: for each prompt token, as in ``CompletionOutput.logprobs``, if asked for; the first has none.
        delta_text: text of the first completion that is new since the previous output.
        accumulated_text: all text of the first completion so far.
        num_truncated_tokens: tokens of the prompt that were left out to make it fit; an estimate for texts of more than 32,768
            characters and more than 8 characters for each token of the context.
        num_dropped_messages: messages of the conversation that were left out; their tokens are counted there.
        capped_max_tokens: what the context left of max_tokens, if it was less.
        relaxed: what the JSON schemas of the request's structured output require and no grammar can express: keywords, with their
            places (``uniqueItems at /properties/tags``). The text may violate them.
        first_token_time: from arrival to the first token, or None before it.
        time_spent_generating: from the first token to now.
        processing_time: from arrival to now, waiting included.
        update_seq: counts the updates the engine made; a slow reader sees it skip.
        delta_seq: counts those that brought text.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = False
    prompt_logprobs: Sequence[Mapping[int, Logprob] | None] | None = None
    metrics: dict[str, Any] | None = None
    accumulated_text: str = ""
    delta_text: str = ""
    tokens_per_second: float = 0.0
    num_generated_tokens: int = 0
    num_cached_tokens: int = 0
    num_truncated_tokens: int = 0
    num_dropped_messages: int = 0
    capped_max_tokens: int | None = None
    time_spent_generating: float = 0.0
    first_token_time: float | None = None
    processing_time: float = 0.0
    update_seq: int = 0
    delta_seq: int = 0
    relaxed: Sequence[str] = ()

    @property
    def finish_reason(self) -> FinishReason | None:
        """The first completion's finish reason."""
        return self.outputs[0].finish_reason

    def get_text(self) -> str:
        """All text of the first completion so far."""
        return self.accumulated_text

    def get_summary(self) -> dict[str, Any]:
        """The key figures as a flat, JSON-ready mapping."""
        return {
            "request_id": self.request_id,
            "text": self.accumulated_text,
            "tokens_per_second": self.tokens_per_second,
            "num_generated_tokens": self.num_generated_tokens,
            "num_prompt_tokens": len(self.prompt_token_ids),
            "first_token_time": self.first_token_time,
            "time_spent_generating": self.time_spent_generating,
            "processing_time": self.processing_time,
            "finished": self.finished,
            "finish_reason": self.finish_reason,
        }


@dataclasses.dataclass(slots=True, eq=False)
class EmbeddingOutput:
    """A prompt as a vector.

    Attributes:
        embedding: float32 ``[dimensions]``.
        prompt: its text, or that of the tokens left of it; None if it was given as token ids.
        num_cached_tokens: tokens of the prompt that were found in the prefix cache.
        num_truncated_tokens: tokens of the prompt that were left out to make it fit; an estimate for texts of more than 32,768
            characters and more than 8 characters for each token of the context.
        num_dropped_messages: messages of the conversation that were left out; their tokens are counted there.
        processing_time: from arrival to the end, waiting included, in seconds.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    embedding: npt.NDArray[np.float32]
    num_cached_tokens: int = 0
    num_truncated_tokens: int = 0
    num_dropped_messages: int = 0
    processing_time: float = 0.0
