"""Turns a request's parameters into what constrains its sequences. Grammars compile in worker threads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import anyio
from anyio import CapacityLimiter, from_thread

from asurge.errors import EngineOverloadedError, InvalidRequestError
from asurge.guidance import AllowedTokens, BadWords, Grammar, Grammars, MinTokens, SequenceConstraint, ThinkingTokens
from asurge.guidance.constraint import Rule
from asurge.params import SamplingParams
from asurge.parsing import REASONING_FORMATS
from asurge.plan import mask_words
from asurge.structured import GuidedDecodingParams
from asurge.text import Tokenizer
from asurge.threads import run_in_thread

COMPILE_TIMEOUT_S = 10.0
"""How long one grammar may take; each of its pieces is bounded by llguidance's limits."""

QUEUE_TIMEOUT_S = 10.0
"""How long a request waits for its turn to compile."""

COMPILING_THREADS = 2
_MANY_TOKENS = 1000
"""Lists up to this length take less time than a worker thread."""
_SPACE_TOKENS = 16
"""How many tokens of white space at the end of a prompt are looked past."""


class Constraints:
    """Makes the constraints of one engine's requests."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, ends: Iterable[int]) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._words = mask_words(vocab_size)
        self._grammars = Grammars(tokenizer, vocab_size, ends)
        self._thinking = thinking_tokens(tokenizer)
        template = tokenizer.chat_template or ""
        # Other models of a family may have the tokens and never use them.
        self._thinks_by_itself = any(mark in template for marks in _marks() for mark in marks)
        self._model_ends = frozenset(ends)
        # Hostile grammars take this many threads and no more; a turn ends with its work, not with the request waiting for it.
        self._turns, self._threads = CapacityLimiter(COMPILING_THREADS), CapacityLimiter(math.inf)
        self._listing = CapacityLimiter(COMPILING_THREADS)

    async def prepare(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        ends: frozenset[int],
        count: int,
        *,
        thinks: bool | None = False,
    ) -> list[SequenceConstraint]:
        """Prepare a constraint for each of ``count`` sequences; none if the request has no constraints.

        Args:
            thinks: whether the model is to reason before its answer; None: only if that is its habit. A request's thinking
                budget overrides it.

        Raises:
            InvalidRequestError: a grammar is wrong or too complex, or the model has no reasoning to bound.
        """
        if params.thinking_budget is not None and self._thinking is None:
            raise InvalidRequestError(
                "thinking_budget needs a model that marks its reasoning, as with <think>: leave it out",
                param="thinking_budget",
            )
        grammar = None if params.guided_decoding is None else await self._compile(params.guided_decoding)
        # With ignore_eos there may be nothing left that could end a text too early, and a mask of nothing still costs a
        # dispatch.
        asked = (params.min_tokens and ends) or params.bad_words or params.allowed_token_ids is not None
        if grammar is None and not asked and params.thinking_budget is None:
            return []
        if grammar is not None:
            ends |= self._model_ends  # a complete text must be able to end, even with ignore_eos

        def make() -> list[SequenceConstraint]:
            first = SequenceConstraint(
                ends,
                self._vocab_size,
                grammar=None if grammar is None else grammar.start(),
                rules=self._rules(params, ends),
                thinking=self._thinking,
                thinking_budget=params.thinking_budget,
                prompt=() if self._thinking is None else self._without_space(prompt),
                may_think=self._may_think(params, thinks),
            )
            return [first, *(first.fork() for _ in range(count - 1))]

        much = params.bad_words or len(ends) + len(params.allowed_token_ids or ()) > _MANY_TOKENS
        return await run_in_thread(make, self._listing) if much else make()

    def _may_think(self, params: SamplingParams, thinks: bool | None) -> bool:
        """Whether reasoning may come before the form. Where it must not, its mark stays forbidden: among the few tokens a form
        allows it may be the likeliest even for a model that was told not to reason."""
        if params.thinking_budget is not None:
            return params.thinking_budget > 0
        return self._thinks_by_itself if thinks is None else thinks

    def _without_space(self, prompt: Sequence[int]) -> Sequence[int]:
        """A prompt without white space at its end: templates put line breaks after the marks of reasoning."""
        end = len(prompt)
        while end > max(len(prompt) - _SPACE_TOKENS, 0):
            if self._tokenizer.decode([prompt[end - 1]], skip_special_tokens=False).strip():
                break
            end -= 1
        return prompt[:end]

    def _rules(self, params: SamplingParams, ends: frozenset[int]) -> list[Rule]:
        rules: list[Rule] = []
        if params.allowed_token_ids is not None:
            rules.append(AllowedTokens(params.allowed_token_ids, self._words))
        if bad := self._bad_words(params.bad_words):
            rules.append(BadWords(bad, self._words))
        if params.min_tokens:
            rules.append(MinTokens(params.min_tokens, ends | self._model_ends, self._words))
        return rules

    async def _compile(self, form: GuidedDecodingParams) -> Grammar:
        """Compile in a worker thread, in turn.

        Raises:
            InvalidRequestError: it is wrong or too complex, or takes too long.
            EngineOverloadedError: others' grammars take too long.
        """
        turn = object()
        try:
            with anyio.fail_after(QUEUE_TIMEOUT_S):
                await self._turns.acquire_on_behalf_of(turn)
        except TimeoutError as error:
            raise EngineOverloadedError(
                "too many grammars wait to be compiled: try again later", retry_after_s=QUEUE_TIMEOUT_S
            ) from error
        try:
            with anyio.fail_after(COMPILE_TIMEOUT_S):
                return await run_in_thread(
                    lambda: self._grammars.compile(form, from_thread.check_cancelled), self._threads
                )
        except TimeoutError as error:
            name = f"guided_decoding.{form.form}"
            raise InvalidRequestError(
                f"{name} took longer than {COMPILE_TIMEOUT_S:g} s to compile: make it simpler", param=name
            ) from error
        finally:
            self._turns.release_on_behalf_of(turn)

    def _bad_words(self, words: Sequence[str]) -> list[list[int]]:
        """Token sequences of words, at the beginning of a text and after a space (as in vLLM); of white space, as it is."""
        found: list[list[int]] = []
        for word in words:
            spellings = (body, " " + body) if (body := word.lstrip()) else (word,)
            for text in spellings:
                tokens = self._tokenizer.encode(text, add_special_tokens=False)
                found += [tokens] if tokens and tokens not in found[-1:] else []
        return found


def thinking_tokens(tokenizer: Tokenizer) -> ThinkingTokens | None:
    """Find the tokens that begin and end the model's reasoning, if its vocabulary has them."""
    for begin, end in _marks():
        if tokenizer.is_special_text(begin) and tokenizer.is_special_text(end):
            ids = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (begin, end))
            return ThinkingTokens(*ids)
    return None


def _marks() -> Iterator[tuple[str, str]]:
    """What begins and ends reasoning, in every format that answers are read in, also in those registered meanwhile."""
    return (pair for fmt in REASONING_FORMATS.values() for pair in fmt.pairs)
