"""Reading completions: which parts of a model's text are answer, reasoning or call, and which of them are reported."""

from __future__ import annotations

import dataclasses
from collections.abc import Set

from asurge.outputs import CompletionOutput, RequestOutput
from asurge.parsing import Content, Event, OutputParser, Reasoning, ToolCallArguments, ToolCallStart
from asurge.parsing.custom import CustomInput
from asurge.server.chat.request import Conversation
from asurge.server.state import Served
from asurge.text import BLOCKING_CHARACTERS


@dataclasses.dataclass(frozen=True, slots=True)
class CustomCallStart(ToolCallStart):
    """A custom tool is called."""


@dataclasses.dataclass(frozen=True, slots=True)
class CustomCallInput:
    """A piece of the text that a custom tool is called with."""

    index: int
    text: str


OutputEvent = Event | CustomCallInput


class ChoiceReaders:
    """Readers of the completions of one request, by their index.

    Args:
        reasons: whether reasoning is reported.
        legacy: calls are OpenAI's old function calls: one at most.
    """

    def __init__(self, talk: Conversation, served: Served, *, reasons: bool = True, legacy: bool = False) -> None:
        self._talk, self._served, self._reasons, self._legacy = talk, served, reasons, legacy
        self._readers: dict[int, ChoiceReader] = {}

    @property
    def reasoned_much(self) -> bool:
        """Whether counting the tokens of the reasoning takes long."""
        return sum(reader.reasoned for reader in self._readers.values()) > BLOCKING_CHARACTERS

    def reasoning_tokens(self) -> int:
        """Number of tokens that the texts of all reasoning so far have, reported or not.

        Tokens themselves come in bunches that may hold the end of the reasoning, and a request's answer must not depend on the
        bunches. Blocks.
        """
        encode = self._served.engine.tokenizer.encode
        return sum(len(encode(reader.reasoning, add_special_tokens=False)) for reader in self._readers.values())

    def call_id(self, event: ToolCallStart) -> str:
        """The id under which a call is reported, and comes back."""
        assert self._talk.tool_format is not None
        return event.call_id or self._talk.tool_format.call_id()

    def has_begun(self, one: CompletionOutput) -> bool:
        """Whether any of a completion has been read."""
        return one.index in self._readers

    def of(self, one: CompletionOutput, output: RequestOutput) -> ChoiceReader:
        """The reader of a completion; its request's output has the prompt."""
        reader = self._readers.get(one.index)
        if reader is None:
            talk = self._talk
            reader = self._readers[one.index] = ChoiceReader(
                talk.parser(self._served, output.prompt_token_ids) if talk.parses else None,
                reasons=self._reasons,
                most_calls=1 if self._legacy or not talk.parallel else None,
                called="function_call" if self._legacy else "tool_calls",
                forced=talk.forced,
                custom=talk.custom,
            )
        return reader


class ChoiceReader:
    """Reads one completion.

    Args:
        forced: all of it is calls: other text is what is left of one that was cut off.
        custom: the names of tools that are called with a text.

    Attributes:
        reasoned: how many characters its reasoning has so far.
    """

    def __init__(
        self,
        parser: OutputParser | None,
        *,
        reasons: bool,
        most_calls: int | None,
        called: str,
        forced: bool = False,
        custom: Set[str] = frozenset(),
    ) -> None:
        self._parser, self._reasons, self._most_calls, self._called = parser, reasons, most_calls, called
        self._forced, self._custom = forced, custom
        self._input: tuple[int, CustomInput] | None = None
        self.finished, self._calls = False, False
        self.reasoned, self._reasoning = 0, list[str]()

    @property
    def reasoning(self) -> str:
        """All of its reasoning so far."""
        return "".join(self._reasoning)

    def read(self, one: CompletionOutput) -> list[OutputEvent]:
        """Return what is new in a completion, as far as it is reported."""
        self.finished = one.finish_reason is not None
        if self._parser is None:
            return [Content(one.text)] if one.text else []
        events = self._parser.feed(one.text) if one.text else []
        if self.finished:
            events += self._parser.finish()
        for event in events:
            if isinstance(event, Reasoning):
                self._reasoning.append(event.text)
                self.reasoned += len(event.text)
        reported = [event for event in events if self._is_reported(event)]
        self._calls |= any(isinstance(event, ToolCallStart) for event in reported)
        return self._with_inputs(reported) if self._custom else list(reported)

    def _with_inputs(self, events: list[Event]) -> list[OutputEvent]:
        """Events in which calls of custom tools have texts instead of arguments."""
        found = list[OutputEvent]()
        for event in events:
            if isinstance(event, ToolCallArguments) and self._input is not None:
                self._add_input(found, self._input[1].feed(event.text))
                continue
            self._end_input(found)
            if isinstance(event, ToolCallStart) and event.name in self._custom:
                self._input = event.index, CustomInput()
                event = CustomCallStart(event.index, event.name, event.call_id)
            found.append(event)
        if self.finished:
            self._end_input(found)
        return found

    def _end_input(self, found: list[OutputEvent]) -> None:
        if self._input is not None:
            self._add_input(found, self._input[1].finish())
            self._input = None

    def _add_input(self, found: list[OutputEvent], text: str) -> None:
        assert self._input is not None
        if text:
            found.append(CustomCallInput(self._input[0], text))

    def _is_reported(self, event: Event) -> bool:
        if isinstance(event, Reasoning):
            return self._reasons
        if isinstance(event, ToolCallStart | ToolCallArguments):
            return self._most_calls is None or event.index < self._most_calls
        return not (self._forced and isinstance(event, Content))

    def finish_reason(self, one: CompletionOutput) -> str | None:
        return self._called if self._calls and one.finish_reason == "stop" else one.finish_reason
