"""Text from tokens as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6
_LONGEST_WAIT = 8
"""Tokens held back for an unfinished character. Four bytes are the most a character has."""


class Decoder(Protocol):
    """The interface of a tokenizer that decodes."""

    def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool = True, spaces_between_special_tokens: bool = True
    ) -> str: ...


class IncrementalDetokenizer:
    """Decodes a window at the end of a growing text, and emits what the window gained.

    The window begins with the tokens emitted last, so that spaces, byte pairs and merges come out as in the whole
    text; what ends in an unfinished character waits. Each token is decoded a bounded number of times, whatever the
    length of the text. (The scheme of Hugging Face's text-generation-inference, also vLLM's.)

    The pieces add up to the decoded whole, with one exception: sentencepiece decoders replace a whole run of byte
    tokens if any of it is invalid UTF-8; here the valid beginning of such a run stays.
    """

    def __init__(
        self,
        tokenizer: Decoder,
        prompt_token_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip, self._spaces = skip_special_tokens, spaces_between_special_tokens
        self._window = self._context(prompt_token_ids)
        self._emitted = len(self._window)
        self._before = self._decode(self._window)  # the text of what was emitted

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that has become final with these tokens."""
        return "".join([self._push(token) for token in token_ids])

    def flush(self) -> str:
        """End the text, and return what was held back; an unfinished character becomes U+FFFD."""
        before, after = self._before, self._decode(self._window)
        self._window, self._emitted, self._before = [], 0, ""
        return after[len(before) :]

    def _push(self, token: int) -> str:
        self._window.append(token)
        before, after = self._before, self._decode(self._window)
        waiting = len(self._window) - self._emitted
        unfinished = after.endswith(_REPLACEMENT) and waiting < _LONGEST_WAIT
        if unfinished:
            return ""
        if len(after) <= len(before):
            if waiting >= _LONGEST_WAIT:
                # No text at all, such as skipped special tokens: forget them, keep the context.
                del self._window[self._emitted :]
            return ""
        # From here on the piece just emitted is the context: it begins and ends with whole characters.
        self._window = self._window[self._emitted :]
        self._emitted = len(self._window)
        self._before = self._decode(self._window)
        return after[len(before) :]

    def _context(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """The end of the prompt, from the beginning of a character on."""
        for size in range(_CONTEXT_TOKENS, _CONTEXT_TOKENS + _LONGEST_WAIT):
            context = list(prompt_token_ids[-size:])
            if size >= len(prompt_token_ids) or _REPLACEMENT not in self._decode(context):
                break
        return context

    def _decode(self, token_ids: Sequence[int]) -> str:
        if not token_ids:
            return ""
        return self._tokenizer.decode(
            token_ids, skip_special_tokens=self._skip, spaces_between_special_tokens=self._spaces
        )
