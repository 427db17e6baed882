"""Fitting a prompt and its answer into the context."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from asurge.config import TruncateMode
from asurge.errors import InvalidRequestError, PromptTooLongError


@dataclasses.dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt that fits: ``len(token_ids) + max_tokens <= max_model_len``; nothing follows one that `fit_alone` made.

    ``truncated`` counts the tokens cut from the prompt; ``capped`` tells whether max_tokens was lowered.
    """

    token_ids: tuple[int, ...]
    max_tokens: int
    truncated: int = 0
    capped: bool = False


def answer_room(max_tokens: int | None, max_model_len: int, reserve_tokens: int | None, *, prefer_prompt: bool) -> int:
    """Return the number of context tokens that a prompt that is cut must leave for the answer."""
    reserve = _reserve(reserve_tokens, max_model_len)
    if max_tokens is None:
        return reserve
    return min(max_tokens, reserve) if prefer_prompt else min(max_tokens, max_model_len - 1)


def _reserve(reserve_tokens: int | None, max_model_len: int) -> int:
    """The least room that an answer gets: at least one token, and no more than the context leaves beside one of the prompt."""
    return min(max(reserve_tokens or 1, 1), max_model_len - 1)


def fit_prompt(
    token_ids: Sequence[int],
    *,
    max_model_len: int,
    max_tokens: int | None,
    reserve_tokens: int | None = None,
    auto_truncate_prompt: bool = True,
    auto_cap_new_tokens: bool = True,
    strict_context: bool = False,
    truncate_mode: TruncateMode = "left",
    prefer_preserve_prompt: bool = True,
) -> FittedPrompt:
    """Cut the prompt and cap the answer as the settings say.

    With ``prefer_preserve_prompt`` the answer is capped first, down to ``reserve_tokens`` (at least 1), and the prompt
    is cut only if that is not enough; without it the prompt is cut to leave room for all of ``max_tokens``.

    Raises:
        PromptTooLongError: it does not fit, and the settings forbid what would make it fit.
        InvalidRequestError: the prompt is empty.
    """
    size = _size(token_ids)
    reserve = _reserve(reserve_tokens, max_model_len)
    wanted = max_model_len - size if max_tokens is None else max_tokens
    if size + max(wanted, 1) <= max_model_len:
        return FittedPrompt(tuple(token_ids), max(wanted, 1))
    if strict_context:
        raise PromptTooLongError(
            f"prompt has {size} tokens, which with max_tokens={max_tokens} exceeds max_model_len={max_model_len}: shorten "
            "the prompt, lower max_tokens, or set strict_context=False",
            param="prompt",
        )
    answer = reserve if max_tokens is None else min(max_tokens, max_model_len - 1)
    if auto_cap_new_tokens and (prefer_preserve_prompt or not auto_truncate_prompt):
        answer = min(answer, max(reserve, max_model_len - size))
    kept = min(size, max_model_len - answer)
    if kept < size and not auto_truncate_prompt:
        raise PromptTooLongError(
            f"prompt has {size} tokens, and max_model_len={max_model_len} leaves {kept} beside the answer's {answer}: "
            "shorten it, or set auto_truncate_prompt=True",
            param="prompt",
        )
    if max_tokens is not None and answer < max_tokens and not auto_cap_new_tokens:
        raise PromptTooLongError(
            f"max_tokens={max_tokens} exceeds what max_model_len={max_model_len} leaves: lower it, or set "
            "auto_cap_new_tokens=True",
            param="max_tokens",
        )
    return FittedPrompt(
        cut(token_ids, kept, truncate_mode),
        answer,
        truncated=size - kept,
        capped=max_tokens is not None and answer < max_tokens,
    )


def fit_alone(
    token_ids: Sequence[int],
    *,
    max_model_len: int,
    auto_truncate_prompt: bool = True,
    strict_context: bool = False,
    truncate_mode: TruncateMode = "left",
) -> FittedPrompt:
    """Cut a prompt that needs no room for an answer.

    Raises:
        PromptTooLongError: it does not fit, and the settings forbid cutting it.
        InvalidRequestError: the prompt is empty.
    """
    size = _size(token_ids)
    if size > max_model_len and (strict_context or not auto_truncate_prompt):
        raise PromptTooLongError(
            f"prompt has {size} tokens, more than max_model_len={max_model_len}: shorten it, or have it cut "
            "(truncate_prompt_tokens)",
            param="prompt",
        )
    kept = min(size, max_model_len)
    return FittedPrompt(cut(token_ids, kept, truncate_mode), 0, truncated=size - kept)


def _size(token_ids: Sequence[int]) -> int:
    if len(token_ids) == 0:
        raise InvalidRequestError("prompt is empty: give at least one token", param="prompt")
    return len(token_ids)


def cut(token_ids: Sequence[int], kept: int, mode: TruncateMode) -> tuple[int, ...]:
    """``kept`` tokens of a prompt: ``left`` drops its beginning, ``right`` its end, ``middle`` what is between."""
    size = len(token_ids)
    if mode == "left":
        return tuple(token_ids[size - kept :])
    if mode == "right":
        return tuple(token_ids[:kept])
    head = (kept + 1) // 2
    return (*token_ids[:head], *token_ids[size - (kept - head) :])
