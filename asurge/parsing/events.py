"""Events of a model's text: content, reasoning and tool calls, piece by piece."""

from __future__ import annotations

import dataclasses

from asurge.parsing.delimiters import Marks


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
    """A piece of the answer."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the reasoning before the answer."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A tool is called.

    Attributes:
        index: of the call, from 0 in each completion.
        call_id: where the format carries one; each at most once in a completion.
    """

    index: int
    name: str
    call_id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """A piece of a call's arguments, as JSON text."""

    index: int
    text: str


Event = Content | Reasoning | ToolCallStart | ToolCallArguments


class Output:
    """Collects events. Neighbouring pieces of one kind become one; blank text after a mark is left out.

    Attributes:
        hidden: marks that never reach the content.
        in_call: a call has begun and not ended.
        among_calls: within a call, or nothing but white space has come since a mark of calls.
    """

    def __init__(self, hidden: Marks) -> None:
        self.hidden = hidden
        self._events: list[Event] = []
        # Pieces of one kind, to be joined once: adding each to the text so far would copy that again and again.
        self._pieces = list[str]()
        self._kind: type[Content | Reasoning | ToolCallArguments] = Content
        self.num_calls = 0
        self._content, self._parted = "", False
        self._call_ids = set[str]()
        self._has_arguments = False
        self._after_mark = False
        self.in_call = self.among_calls = False

    def take(self) -> list[Event]:
        """Return the events since the last time."""
        self._join()
        events, self._events = self._events, []
        return events

    def mark(self, *, of_calls: bool = False) -> None:
        """A mark was read: white space up to the next text belongs to it.

        Args:
            of_calls: it stands around calls.
        """
        self._after_mark = self._parted = True
        self.among_calls = self.among_calls or of_calls

    def part(self) -> None:
        """A mark was left out within text."""
        self._parted = True

    def content(self, text: str) -> None:
        """Add text between marks. Halves of a mark around one that was left out are kept apart: they are no mark either."""
        text = self._unmarked(text)
        if not text:
            return
        if self._parted and self.hidden.joins(self._content, text):
            text = f" {text}"
        self._parted = False
        self._content = self.hidden.tail(self._content + text)
        self._add(Content, text)

    def refused(self, text: str) -> None:
        """Add text that was read as part of a call but is none, without the marks in it."""
        if text:
            self._after_mark = False
            for part in self.hidden.split(text):
                self._parted = True
                self.content(part)
        self._parted = True

    def reasoning(self, text: str) -> None:
        self._add(Reasoning, self._unmarked(text))

    def start(self, name: str, call_id: str | None = None) -> None:
        """A call begins."""
        self._join()
        if call_id in self._call_ids:
            call_id = None
        if call_id is not None:
            self._call_ids.add(call_id)
        self._events.append(ToolCallStart(self.num_calls, name, call_id))
        self.in_call = self.among_calls = True
        self._has_arguments = False

    def arguments(self, text: str) -> None:
        assert self.in_call
        self._has_arguments = self._has_arguments or text != ""
        self._add(ToolCallArguments, text)

    def end(self, *, whole: bool = True) -> None:
        """End a call; if it has no arguments, they are an empty object.

        If it is not ``whole``, no more of it can be read, and what there is of its arguments must not pass for all of them: it is
        no JSON.
        """
        if self.in_call:
            if not self._has_arguments:
                self.arguments("{}" if whole else "{")
            self._join()
            self.in_call = False
            self.num_calls += 1
        self.mark(of_calls=True)

    def _add(self, kind: type[Content | Reasoning | ToolCallArguments], text: str) -> None:
        if text:
            self.among_calls = kind is ToolCallArguments
            if kind is not self._kind:
                self._join()
                self._kind = kind
            self._pieces.append(text)

    def _join(self) -> None:
        if self._pieces:
            text, self._pieces = "".join(self._pieces), []
            if self._kind is ToolCallArguments:
                self._events.append(ToolCallArguments(self.num_calls, text))
            else:
                self._events.append(Content(text) if self._kind is Content else Reasoning(text))

    def _unmarked(self, text: str) -> str:
        if self._after_mark:
            text = text.lstrip()
            self._after_mark = not text
        return text
