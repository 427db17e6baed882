"""Turns what a caller hands in into tokens that fit the context. Blocks: for worker threads."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any, SupportsIndex, Unpack, cast

from asurge.config import EngineConfig
from asurge.errors import InvalidRequestError, PromptTooLongError
from asurge.params import EmbeddingParams, RequestOptions, SamplingParams, all_natural, check_names
from asurge.structured import shown
from asurge.text import (
    CHARACTERS_PER_TOKEN,
    Allowance,
    FittedConversation,
    FittedPrompt,
    Rendering,
    Tokenizer,
    answer_room,
    cut,
    excerpt,
    fit_alone,
    fit_conversation,
    fit_prompt,
    plain_messages,
    render_chat,
)


@dataclasses.dataclass(frozen=True, slots=True)
class RenderedChat:
    """A conversation as a prompt: its tokens, and what was left out of it so that it fits.

    Attributes:
        thinks: whether its template was told to have the model reason; None: it was not told.
    """

    conversation: FittedConversation
    thinks: bool | None = None


class ChatOptions(Rendering, RequestOptions, total=False):
    """Options that turn a conversation into a request."""


Prompt = str | Sequence[int] | RenderedChat
_NO_LISTS = (str, bytes, bytearray, memoryview, Mapping, Set)


class Prompts:
    """Makes the prompts of one engine's requests fit, as its settings say."""

    def __init__(self, config: EngineConfig, tokenizer: Tokenizer, max_model_len: int, vocab_size: int) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._max_model_len, self._vocab_size = max_model_len, vocab_size
        self._cuts = config.auto_truncate_prompt and not config.strict_context

    def rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams,
        **how: Unpack[Rendering],
    ) -> RenderedChat:
        """The prompt of a conversation, without its oldest turns if it does not fit and the settings allow it.

        Raises:
            ChatTemplateError: malformed messages, no template, or one that fails.
            PromptTooLongError: it does not fit, and the settings forbid cutting it.
        """
        config, tokenizer, allowance = self._config, self._tokenizer, Allowance()
        thinks, messages = _thinks(how), plain_messages(messages)

        def text(some: Sequence[Mapping[str, Any]]) -> str:
            return render_chat(tokenizer, some, allowance=allowance, **how)

        if not self._cuts:
            whole = self._whole(text(messages), add_special_tokens=False)
            return RenderedChat(FittedConversation(tuple(whole)), thinks)
        prefer_prompt = config.prefer_preserve_prompt and config.auto_cap_new_tokens
        answer = answer_room(params.max_tokens, self._max_model_len, config.reserve_tokens, prefer_prompt=prefer_prompt)
        room = self._max_model_len - answer
        fitted = fit_conversation(messages, text, tokenizer, room, config.truncate_mode)
        return RenderedChat(fitted, thinks)

    def fit(self, prompt: Prompt, params: SamplingParams) -> FittedPrompt:
        """A prompt with room for its answer.

        Raises:
            PromptTooLongError: it does not fit, and the settings forbid what would make it fit.
            InvalidRequestError: it is not a prompt, is empty, is not Unicode, or holds something that is not a token.
        """
        config = self._config
        ids, left_out = self._tokens(prompt, params.truncate_prompt_tokens, self._max_model_len - 1)
        fitted = fit_prompt(
            ids,
            max_model_len=self._max_model_len,
            max_tokens=params.max_tokens,
            reserve_tokens=config.reserve_tokens,
            auto_truncate_prompt=config.auto_truncate_prompt,
            auto_cap_new_tokens=config.auto_cap_new_tokens,
            strict_context=config.strict_context,
            truncate_mode=config.truncate_mode,
            prefer_preserve_prompt=config.prefer_preserve_prompt,
        )
        return dataclasses.replace(fitted, truncated=left_out + fitted.truncated)

    def fit_alone(self, prompt: Prompt, params: EmbeddingParams) -> FittedPrompt:
        """A prompt that nothing follows; raises as `fit` does."""
        config = self._config
        ids, left_out = self._tokens(prompt, params.truncate_prompt_tokens, self._max_model_len)
        fitted = fit_alone(
            ids,
            max_model_len=self._max_model_len,
            auto_truncate_prompt=config.auto_truncate_prompt,
            strict_context=config.strict_context,
            truncate_mode=config.truncate_mode,
        )
        return dataclasses.replace(fitted, truncated=left_out + fitted.truncated)

    def _tokens(self, prompt: Prompt, most: int | None, room: int) -> tuple[Sequence[int], int]:
        """A prompt's last ``most`` tokens (-1: ``room``, None: as many as matter), and how many that leaves out."""
        beyond = self._max_model_len + 1  # with this many a prompt is cut or refused, just as with more
        wanted = None if most is None else room if most == -1 else min(most, beyond)
        left_out = 0
        check_prompt(prompt)
        if isinstance(prompt, RenderedChat):
            ids: Sequence[int] = prompt.conversation.token_ids
        elif not isinstance(prompt, str):
            ids = check_tokens(prompt, self._vocab_size, "prompt")
        elif wanted is None and not self._cuts:
            ids = self._whole(prompt)
        else:
            mode = self._config.truncate_mode if wanted is None else "left"
            found = excerpt(self._tokenizer, prompt, wanted or beyond, mode)
            ids, left_out = found.token_ids, found.left_out
        if not is_list(prompt):
            self._check_known(ids)
        if wanted is None:
            return ids, left_out
        kept = min(len(ids), wanted)
        return cut(ids, kept, "left"), left_out + len(ids) - kept

    def _check_known(self, ids: Sequence[int]) -> None:
        """Raises:
        InvalidRequestError: the tokenizer has made a token that the model does not know.
        """
        if max(ids, default=0) >= self._vocab_size:
            unknown = next(token for token in ids if token >= self._vocab_size)
            text = self._tokenizer.decode([unknown], skip_special_tokens=False)
            raise InvalidRequestError(
                f"prompt holds {shown(text)}, the token {unknown}, and the model has only {self._vocab_size}: leave it out",
                param="prompt",
            )

    def _whole(self, text: str, *, add_special_tokens: bool = True) -> Sequence[int]:
        """All tokens of a text that must not be cut.

        Raises:
            PromptTooLongError: it certainly has more tokens than the context holds. Much longer texts are not tokenised to
                find that out.
        """
        most = CHARACTERS_PER_TOKEN * self._max_model_len
        about = f"more than {self._max_model_len}"
        if len(text) <= most:
            found = excerpt(
                self._tokenizer, text, self._max_model_len + 1, "right", add_special_tokens=add_special_tokens
            )
            if found.left_out == 0:
                return found.token_ids
            about = f"about {len(found.token_ids) + found.left_out}"
        raise PromptTooLongError(
            f"prompt has {len(text)} characters, {about} tokens, and max_model_len={self._max_model_len}: shorten it, or "
            "set auto_truncate_prompt=True and strict_context=False",
            param="prompt",
        )


def split_options(options: ChatOptions) -> tuple[Rendering, RequestOptions]:
    """Split options into those of the prompt and those of the request.

    Raises:
        InvalidRequestError: one is for neither.
    """
    check_names(options, ChatOptions)
    how = {name: value for name, value in options.items() if name in Rendering.__annotations__}
    rest = {name: value for name, value in options.items() if name not in how}
    return cast("Rendering", how), cast("RequestOptions", rest)


def check_prompt(prompt: object) -> None:
    """Check that a prompt is a text, a conversation or a list.

    Raises:
        InvalidRequestError: it is neither a text, nor a conversation, nor a list of anything.
    """
    if not isinstance(prompt, str | RenderedChat) and not is_list(prompt):
        raise InvalidRequestError(
            f"prompt={shown(prompt)} must be a text (bytes have to be decoded) or a list of token ids", param="prompt"
        )


def is_list(value: object) -> bool:
    """Whether something holds others in order, as lists and arrays do; texts, bytes and mappings count as a whole."""
    if isinstance(value, _NO_LISTS) or not isinstance(value, Collection):
        return False
    try:
        len(value)
    except TypeError:  # an array without axes
        return False
    return True


def _thinks(how: Rendering) -> bool | None:
    """What a template is told about reasoning, under the names that templates use for it. An answer that has begun is past
    it."""
    if how.get("continue_final_message"):
        return False
    given = how.get("template_kwargs") or {}
    told = [given[name] for name in ("enable_thinking", "thinking") if given.get(name) is not None]
    return bool(told[0]) if told else None


def check_tokens(tokens: Collection[int], vocab_size: int, param: str) -> list[int]:
    """Return token ids as Python integers.

    Runs at the speed of C where they already are and nothing is wrong: there may be a million.

    Raises:
        InvalidRequestError: one is not a token.
    """
    ids = list(tokens)
    if all_natural(ids) and max(ids, default=0) < vocab_size:
        return ids
    found = []
    for given in ids:
        token = integer(given)
        if token is None or not 0 <= token < vocab_size:
            raise InvalidRequestError(
                f"{param} holds the token id {given!r}: ids must be integers in [0, {vocab_size})", param=param
            )
        found.append(token)
    return found


def integer(value: object) -> int | None:
    """The Python integer of a value that is an integer, as numpy's are; None for anything else, booleans included."""
    try:
        return None if isinstance(value, bool) else operator.index(cast("SupportsIndex", value))
    except TypeError:
        return None
