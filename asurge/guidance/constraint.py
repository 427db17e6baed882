"""All that constrains one sequence, and the masks of many at once."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import numpy.typing as npt

from asurge.containment import contained
from asurge.errors import GuidanceError
from asurge.guidance.rules import Mask, bits_of
from asurge.plan import mask_words

if TYPE_CHECKING:
    from llguidance import LLExecutor

    from asurge.guidance.grammar import GrammarState


class Rule(Protocol):
    """Takes tokens away (`asurge.guidance.rules`). What a copy shares with it never changes."""

    def accept(self, token: int, /) -> None: ...

    def narrow(self, mask: Mask, /) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class ThinkingTokens:
    """Token ids that begin and end a model's reasoning."""

    begin: tuple[int, ...]
    end: tuple[int, ...]

    def is_opened_by(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends with the beginning of reasoning. A mark further back may be anybody's words."""
        return tuple(prompt[-len(self.begin) :]) == self.begin

    def is_closed_by(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt ends with the end of reasoning, as when a template leaves reasoning out."""
        return tuple(prompt[-len(self.end) :]) == self.end


class _Thinking:
    """Follows a sequence into its reasoning and out again, and forces it out when the budget is spent.

    Args:
        may_begin: the first token may begin it, whatever the grammar says. Only where the mark is one token: the first of
            several may also be one of the grammar's.
    """

    def __init__(self, tokens: ThinkingTokens, prompt: Sequence[int], budget: int | None, *, may_begin: bool) -> None:
        self._tokens, self._left = tokens, budget
        self._window = max(len(tokens.begin), len(tokens.end))
        self._recent: list[int] = list(prompt[-self._window :])
        self.is_open = tokens.is_opened_by(prompt)
        self._forced = 0
        self._beginning = tokens.begin if may_begin and len(tokens.begin) == 1 else ()
        if self.is_open or tokens.is_closed_by(prompt):
            self._beginning = ()

    def begins_with(self, token: int) -> bool:
        """Whether a token begins the reasoning, and is not one of the grammar's."""
        return token in self._beginning

    def widen(self, mask: Mask) -> None:
        """Allow what may begin the reasoning."""
        if self._beginning:
            mask |= bits_of(self._beginning, len(mask))

    def accept(self, token: int) -> None:
        self._beginning = ()
        self._recent = [*self._recent, token][-self._window :]
        begin, end = self._tokens.begin, self._tokens.end
        if not self.is_open:
            self.is_open = tuple(self._recent[-len(begin) :]) == begin
            return
        self._forced = self._forced + 1 if self._forced < len(end) and token == end[self._forced] else 0
        if tuple(self._recent[-len(end) :]) == end:
            self.end()
        elif self._left is not None:
            self._left -= 1

    def end(self) -> None:
        """End the reasoning without its mark."""
        self.is_open, self._forced = False, 0

    def narrow(self, mask: Mask) -> None:
        if self.is_open and self._left is not None and self._left <= 0:
            mask[:] = bits_of([self._tokens.end[self._forced]], len(mask))


class SequenceConstraint:
    """The tokens that may come next in a sequence: those of its grammar, without those that its rules take away.

    A grammar holds for the answer: while the model reasons, it waits, but a text cannot end there unless its answer may be empty.
    A special token that the grammar begins with, such as the mark of a call, ends the reasoning: what follows is bound by it.
    Where the model may begin to reason, the mark that begins it is allowed. Where no token would be left, the end tokens are allowed:
    a sequence that cannot go on ends.

    Args:
        ends: the tokens that end the sequence; where the grammar may end, they are allowed; elsewhere they are not.
        prompt: without white space at its end.
        may_think: the model may begin its reasoning by itself, if the prompt has neither begun nor ended it.
    """

    def __init__(
        self,
        ends: Iterable[int],
        vocab_size: int,
        *,
        grammar: GrammarState | None = None,
        rules: Sequence[Rule] = (),
        thinking: ThinkingTokens | None = None,
        thinking_budget: int | None = None,
        prompt: Sequence[int] = (),
        may_think: bool = False,
    ) -> None:
        self._grammar, self._rules, self._ends = grammar, rules, frozenset(ends)
        self._end_bits = bits_of(self._ends, mask_words(vocab_size))
        self._thinking = None
        if thinking is not None:
            self._thinking = _Thinking(thinking, prompt, thinking_budget, may_begin=may_think)
        self._ended = self._cornered = False

    def fork(self) -> Self:
        """A copy for another sequence, which may continue differently from here."""
        other = copy.copy(self)
        other._grammar = None if self._grammar is None else self._grammar.fork()
        other._rules = [copy.copy(rule) for rule in self._rules]
        other._thinking = copy.copy(self._thinking)
        return other

    @property
    def grammar(self) -> GrammarState | None:
        """The grammar, if it has a say on the next token."""
        return None if self._thinking is not None and self._thinking.is_open else self._grammar

    @property
    def relaxed(self) -> tuple[str, ...]:
        """Requirements of the grammar's schemas that it does not hold."""
        return () if self._grammar is None else self._grammar.grammar.relaxed

    @property
    def finished(self) -> bool:
        """Whether the grammar is complete, or nothing but an end was left: nothing may follow."""
        return self._ended or (self._grammar is not None and self._grammar.is_stopped)

    def accept(self, token_ids: Sequence[int]) -> None:
        """Take in tokens the sequence has gained.

        Raises:
            GuidanceError: the grammar does not allow them, or its limits are reached.
        """
        for token in token_ids:
            if self.finished:
                return
            if self._thinking is not None and self._grammar is not None and self._grammar.is_begun_by(token):
                self._thinking.end()
            grammar = self.grammar
            if token in self._ends and (self._cornered or (grammar is not None and grammar.is_accepting)):
                self._ended = True
            elif grammar is not None and (self._thinking is None or not self._thinking.begins_with(token)):
                grammar.accept(token)
            for rule in self._rules:
                rule.accept(token)
            if self._thinking is not None:
                self._thinking.accept(token)

    def fill(self, mask: Mask) -> None:
        """Clear the bits of tokens that must not come next in a mask of ones.

        Raises:
            GuidanceError: the grammar's limits are reached, or nothing may come and nothing ends the sequence.
        """
        if self.grammar is not None:
            self.grammar.fill(mask)
        self.narrow(mask)

    def narrow(self, mask: Mask) -> None:
        """Apply to a mask all rules but the grammar, as `fill` does after it."""
        grammar = self.grammar
        if grammar is not None:
            grammar.check()
            if grammar.is_accepting:
                mask |= self._end_bits
            else:
                mask &= ~self._end_bits
            if self._thinking is not None:
                self._thinking.widen(mask)
        elif self._grammar is not None and not self._grammar.is_accepting:
            mask &= ~self._end_bits
        for rule in self._rules:
            rule.narrow(mask)
        if self._thinking is not None:
            self._thinking.narrow(mask)
        self._cornered = not mask.any()
        if self._cornered:
            if not self._ends:
                raise GuidanceError("no token may follow, and none ends the text: loosen the request's constraints")
            mask |= self._end_bits


def fill_masks(
    constraints: Sequence[SequenceConstraint], masks: npt.NDArray[np.uint32], threads: int = 1
) -> dict[int, BaseException]:
    """Fill ``masks [constraints, words]``, all ones; grammars in ``threads``, without the interpreter's lock. Blocks.

    Returns:
        The failures, by index; those masks allow everything.
    """
    matchers = [(one.grammar.matcher, at) for at, one in enumerate(constraints) if one.grammar is not None]
    alone = False
    if matchers:
        from llguidance.numpy import fill_next_token_bitmask_par

        try:
            fill_next_token_bitmask_par(_executor(threads), matchers, masks.view(np.int32))
        except BaseException as error:  # of one that panics: which one it is shows if each is filled by itself
            contained(error)
            masks[:] = 0xFFFFFFFF
            alone = True
    failed: dict[int, BaseException] = {}
    for index, constraint in enumerate(constraints):
        try:
            (constraint.fill if alone else constraint.narrow)(masks[index])
        except BaseException as error:
            failed[index] = contained(error)
            masks[index] = 0xFFFFFFFF
    return failed


@functools.cache
def _executor(threads: int) -> LLExecutor:
    from llguidance import LLExecutor

    return LLExecutor(min(max(threads * 4 // 5, 1), 32))  # its own share of the processors that it sees
