"""Parse the text of a completion into reasoning, content and tool calls, as it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from asurge.parsing.delimiters import marks_of
from asurge.parsing.events import Event, Output
from asurge.parsing.formats.base import SPECIAL_TOKENS, ToolFormat
from asurge.parsing.formats.harmony import GptOss
from asurge.parsing.reader import Reader, Wait
from asurge.parsing.reasoning import ReasoningFormat


class OutputParser:
    """Parses the text of one completion into reasoning, content and tool calls.

    The result does not depend on the pieces that the text is fed in.

    Text is passed on at once unless it may be the beginning of a mark. What begins like a call is held until it has its
    name, and is content if it turns out not to be one, but for the marks in it: no mark of the format reaches the content.
    White space after a mark is left out.

    Args:
        tool_format: None leaves calls in the content.
        reasoning_format: None leaves reasoning in the content.
        reasoning_open: the prompt ends within reasoning.
        tools: OpenAI's definitions; formats that write strings without quotes take types from them.
        special_tokens: further texts that must never be shown: the tokenizer's special tokens, if text is decoded with
            them.
    """

    def __init__(
        self,
        tool_format: ToolFormat | None,
        reasoning_format: ReasoningFormat | None,
        *,
        reasoning_open: bool = False,
        tools: Sequence[Mapping[str, Any]] = (),
        special_tokens: Sequence[str] = (),
    ) -> None:
        formats = [fmt for fmt in (tool_format, reasoning_format) if fmt is not None]
        hidden = {token for token in special_tokens if token}
        if any(fmt.needs_special_tokens for fmt in formats):
            hidden.update(SPECIAL_TOKENS)
        if tool_format is not None:
            hidden.update(tool_format.hidden, tool_format.marks)
        self._hidden = frozenset(hidden)
        self._reader, self._out = Reader(), Output(marks_of(self._hidden))
        self._tool_format, self._reasoning_format, self._tools = tool_format, reasoning_format, tools
        if reasoning_format is not None and reasoning_format.channels and not isinstance(tool_format, GptOss):
            self._tool_format = GptOss(calls=False)
        self._steps = self._read(reasoning_open)
        self._finished = False

    def feed(self, text: str) -> list[Event]:
        """Parse a further piece of the text, and return what it adds. Nothing, after `finish`."""
        if text and not self._finished:
            self._reader.feed(text)
            next(self._steps, None)
        return self._out.take()

    def finish(self) -> list[Event]:
        """End the text, and return what was held back.

        A call that has started ends as it stands, however incomplete its arguments are. What a mark has begun and the end cuts
        off is left out; without a mark it is content.
        """
        if not self._finished:
            if self._out.among_calls and not self._reader.is_kept:
                self._reader.drop()  # half of a mark: of one behind the call, or of the next one's
            self._finished = self._reader.closed = True
            next(self._steps, None)
        return self._out.take()

    def _read(self, reasoning_open: bool) -> Wait[None]:
        if self._reasoning_format is not None and not self._reasoning_format.channels:
            calls = () if self._tool_format is None else self._tool_format.marks
            fmt = self._reasoning_format
            if (yield from fmt.read(self._reader, self._out, self._hidden, reasoning_open, calls)):
                self._hidden = self._hidden.union(fmt.ends)  # which may still come, behind the calls
                self._out.hidden = marks_of(self._hidden)
        if self._tool_format is not None:
            yield from self._tool_format.read(self._reader, self._out, self._hidden, self._tools)
        marks = marks_of(self._hidden)
        while (yield from self._reader.until(marks, self._out.content)) is not None:
            self._out.part()
