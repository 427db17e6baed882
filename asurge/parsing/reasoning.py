"""Reasoning before the answer."""

from __future__ import annotations

import dataclasses

from asurge.parsing.delimiters import marks_of
from asurge.parsing.events import Output
from asurge.parsing.reader import Reader, Wait


@dataclasses.dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The marks of reasoning in the texts of a family of models.

    Reasoning comes first, after white space at most; anything later is not reasoning.

    Attributes:
        begins: marks, any of which begins it.
        ends: marks, any of which ends it, in the order of those that begin it; if none comes, all of the text is reasoning.
        breaks: marks that also end it and are part of what follows, such as those of a tool call.
        needs_special_tokens: the marks are special tokens: text must be decoded with them.
        channels: the text is in channels (gpt-oss): they are read with the tool calls.
    """

    begins: tuple[str, ...]
    ends: tuple[str, ...]
    breaks: tuple[str, ...] = ()
    needs_special_tokens: bool = False
    channels: bool = False

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Each mark that begins reasoning, with the one that ends it."""
        return tuple(zip(self.begins, self.ends, strict=False))

    def is_open_after(self, text: str) -> bool:
        """Whether a text has begun reasoning and not ended it."""
        begun, ended = (max(map(text.rfind, marks), default=-1) for marks in (self.begins, self.ends + self.breaks))
        return begun > ended

    def read(
        self, reader: Reader, out: Output, hidden: frozenset[str], is_open: bool, calls: tuple[str, ...] = ()
    ) -> Wait[bool]:
        """Read the reasoning, if there is any; returns whether something other than its end has ended it.

        Args:
            hidden: marks that are not text.
            is_open: the prompt has already begun it.
            calls: further ``breaks``: the marks of calls, which models write before the end of their reasoning.
        """
        reader.keep()
        yield from reader.space()
        begun = False
        for mark in self.begins:
            begun = begun or (yield from reader.skip(mark))
        if not begun and not is_open:
            reader.again()
            return False
        reader.forget()
        out.mark()
        broke, breaks = False, (*self.breaks, *calls)
        marks = marks_of(hidden.union(self.ends, breaks))
        while (found := (yield from reader.until(marks, out.reasoning))) is not None:
            if found in self.ends:
                break
            if found in breaks:
                reader.back(len(found))
                broke = True
                break
        out.mark()
        return broke
