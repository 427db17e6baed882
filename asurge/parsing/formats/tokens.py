"""Formats in which marks stand around the name and the arguments of a call."""

from __future__ import annotations

import abc
import re
from typing import Any, ClassVar

from asurge.parsing.events import Output
from asurge.parsing.formats.base import MarkedFormat, Tools, functions
from asurge.parsing.json_stream import call_with
from asurge.parsing.lark import Lark
from asurge.parsing.reader import MalformedError, Reader, Wait

_NAME = re.compile(r"[^\s<>{}\[\]()\"'`]*")


class SectionFormat(MarkedFormat):
    """Calls in a section: marks around all of them, and marks around each.

    Attributes:
        section: the marks around all of them.
    """

    section: ClassVar[tuple[str, str]]

    @abc.abstractmethod
    def head(self, name: str) -> str:
        """The text of a call up to its arguments."""

    @abc.abstractmethod
    def tail(self) -> str:
        """Its text after them."""

    def tags(self, tools: Tools) -> dict[str, Any] | None:
        begin, end = self.section
        structures = [
            {"begin": begin + self.head(name), "schema": schema, "end": self.tail() + end}
            for name, schema in functions(tools)
        ]
        return {"structures": structures, "triggers": [begin]}

    def grammar(self, tools: Tools, *, parallel: bool) -> str | None:
        lark = Lark()
        calls = [
            f"{lark.text(self.head(name))} {lark.json(schema)} {lark.text(self.tail())}"
            for name, schema in functions(tools)
        ]
        call = lark.rule(" | ".join(calls))
        begin, end = (lark.text(mark) for mark in self.section)
        return lark.build(f"{begin} {call}{'+' if parallel else ''} {end}")


class DeepSeekV3(SectionFormat):
    """DeepSeek V3 and R1: the arguments in a fenced block; DeepSeek V3.1's calls without one are read too.

    ``<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>name`` and a block of JSON, ``<｜tool▁call▁end｜>`` after
    each call, ``<｜tool▁calls▁end｜>`` after all. After vLLM's deepseekv3_tool_parser.py and deepseekv31_tool_parser.py.
    """

    begins = ("<｜tool▁call▁begin｜>",)
    section = around = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
    hidden = (
        *begins, *section, "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>",
    )  # fmt: skip

    def call(self, mark: str, reader: Reader, out: Output, tools: Tools) -> Wait[None]:
        yield from reader.space()
        name = yield from reader.word(_NAME)
        yield from reader.space()
        yield from reader.need("<｜tool▁sep｜>")
        yield from reader.space()
        if (yield from reader.peek()) != "{":
            name = yield from reader.word(_NAME)
            yield from reader.space()
            if (yield from reader.skip("```")):
                yield from reader.skip("json")
                yield from reader.space()
        if not name or (yield from reader.peek()) != "{":
            raise MalformedError("call")
        yield from call_with(reader, out, name)
        yield from reader.space()
        yield from reader.skip("```")
        yield from reader.space()
        yield from reader.skip("<｜tool▁call▁end｜>")

    def head(self, name: str) -> str:
        return f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n"

    def tail(self) -> str:
        return "\n```<｜tool▁call▁end｜>"


class DeepSeekV31(DeepSeekV3):
    """DeepSeek V3.1: as `DeepSeekV3`, but grammars and tags write ``<｜tool▁call▁begin｜>name<｜tool▁sep｜>{...}``."""

    def head(self, name: str) -> str:
        return f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>"

    def tail(self) -> str:
        return "<｜tool▁call▁end｜>"


class KimiK2(SectionFormat):
    """Format of Kimi K2, in which the id of a call names the function.

    ``<|tool_calls_section_begin|><|tool_call_begin|>functions.name:0<|tool_call_argument_begin|>{...}
    <|tool_call_end|><|tool_calls_section_end|>``.

    After vLLM's kimi_k2_tool_parser.py.
    """

    begins = ("<|tool_call_begin|>",)
    section = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")
    around = (*section, "<|tool_call_section_begin|>", "<|tool_call_section_end|>")
    hidden = (*begins, *around, "<|tool_call_argument_begin|>", "<|tool_call_end|>")

    def call(self, mark: str, reader: Reader, out: Output, tools: Tools) -> Wait[None]:
        yield from reader.space()
        call_id = yield from reader.word(_NAME)
        yield from reader.space()
        yield from reader.need("<|tool_call_argument_begin|>")
        yield from reader.space()
        name, colon, index = call_id.rpartition(":")
        if not colon or not index.isdecimal():
            name = call_id
        name = name.removeprefix("functions.")
        if not name or (yield from reader.peek()) != "{":
            raise MalformedError("call")
        yield from call_with(reader, out, name, call_id)
        yield from reader.space()
        yield from reader.skip("<|tool_call_end|>")

    def head(self, name: str) -> str:
        return f"<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>"

    def tail(self) -> str:
        return "<|tool_call_end|>"
