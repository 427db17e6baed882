"""Formats that put marks around the name and the value of each argument."""

from __future__ import annotations

import abc
import re
from typing import Any, ClassVar

from asurge.parsing.delimiters import marks_of
from asurge.parsing.events import Output
from asurge.parsing.formats.base import MarkedFormat, Tools, functions
from asurge.parsing.lark import NEWLINES, Lark
from asurge.parsing.reader import MalformedError, Reader, Wait
from asurge.parsing.schemas import Parameter, as_json, kinds_of, parameters, quoted, text_value


class TaggedFormat(MarkedFormat):
    """A format of values without quotes between marks.

    Each becomes JSON once it is complete: a string where the tool's schema says so, else whatever it is as JSON, and a string if
    it is not JSON.

    Attributes:
        value_end: the mark after a value.
    """

    value_end: ClassVar[str]

    def tags(self, tools: Tools) -> dict[str, Any] | None:
        return None

    def call(self, mark: str, reader: Reader, out: Output, tools: Tools) -> Wait[None]:
        name = yield from self.name(mark, reader)
        first = yield from self.next(reader)
        if not name:
            raise MalformedError("name")
        out.start(name)
        reader.forget()
        known = kinds_of(tools, name)
        separator, going = "{", first
        while going:
            key = yield from self.key(reader)
            value = self.trimmed((yield from reader.upto(marks_of(frozenset((self.value_end,))))))
            out.arguments(f"{separator}{quoted(key)}: {as_json(value, known.get(key))}")
            separator = ", "
            going = yield from self.next(reader)
        out.arguments("{}" if separator == "{" else "}")
        out.end()
        yield from self.behind(reader)

    @abc.abstractmethod
    def name(self, mark: str, reader: Reader) -> Wait[str]:
        """Read up to the first argument."""

    @abc.abstractmethod
    def next(self, reader: Reader) -> Wait[bool]:
        """Read the mark of another argument, or of the end of the call; returns whether there is another."""

    @abc.abstractmethod
    def key(self, reader: Reader) -> Wait[str]:
        """Read the name of an argument, up to its value."""

    @abc.abstractmethod
    def behind(self, reader: Reader) -> Wait[None]:
        """Read what follows a call."""

    def trimmed(self, value: str) -> str:
        """A value without what surrounds it."""
        return value

    def grammar(self, tools: Tools, *, parallel: bool) -> str | None:
        lark = Lark()
        calls = list[str]()
        for name, schema in functions(tools):
            head, tail = self.around_arguments(name)
            members = list[str]()
            for one in parameters(schema):
                body = f"{lark.text(self.before_value(one.name))} {self.value(lark, one)}"
                members.append(lark.rule(body) if one.required else f"({lark.rule(body)})?")
            calls.append(f"{lark.text(head)} {' '.join(members)} {lark.text(tail)}")
        call = lark.rule(" | ".join(calls))
        return lark.build(f"{call} ({NEWLINES} {call})*" if parallel else call)

    def value(self, lark: Lark, parameter: Parameter) -> str:
        """An expression for a value and what ends it."""
        before, behind = self.around_value
        if parameter.is_text:
            return f"{text_value(lark, parameter.schema, self.value_end, before)} {lark.text(behind)}"
        return f"{lark.json(parameter.schema)} {lark.text(before + self.value_end + behind)}"

    around_value: ClassVar[tuple[str, str]]
    """What grammars write before the mark after a value, and after that."""

    @abc.abstractmethod
    def around_arguments(self, name: str) -> tuple[str, str]:
        """Texts that grammars write before and after the arguments."""

    @abc.abstractmethod
    def before_value(self, key: str) -> str:
        """Text that grammars write before a value."""


class Glm45(TaggedFormat):
    """Format of GLM 4.5 and later: ``<tool_call>name``, then each argument, then ``</tool_call>``.

    An argument is ``<arg_key>key</arg_key><arg_value>value</arg_value>``, with line breaks between them or without.

    After vLLM's glm4_moe_tool_parser.py and glm47_moe_tool_parser.py.
    """

    begins = ("<tool_call>",)
    hidden = ("</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    value_end = "</arg_value>"
    around_value = ("", "\n")
    _name = re.compile(r"[^\s<>{}\"]*")

    def name(self, mark: str, reader: Reader) -> Wait[str]:
        yield from reader.space()
        return (yield from reader.word(self._name))

    def next(self, reader: Reader) -> Wait[bool]:
        yield from reader.space()
        if (yield from reader.skip("<arg_key>")):
            return True
        yield from reader.need("</tool_call>")
        return False

    def key(self, reader: Reader) -> Wait[str]:
        key = yield from reader.upto(marks_of(frozenset(("</arg_key>",))))
        yield from reader.space()
        yield from reader.need("<arg_value>")
        return key.strip()

    def behind(self, reader: Reader) -> Wait[None]:
        yield from reader.space()

    def around_arguments(self, name: str) -> tuple[str, str]:
        return f"<tool_call>{name}\n", "</tool_call>"

    def before_value(self, key: str) -> str:
        return f"<arg_key>{key}</arg_key>\n<arg_value>"


class Qwen3Coder(TaggedFormat):
    """Format of Qwen3-Coder: ``<tool_call><function=name>``, each argument, then ``</function></tool_call>``.

    An argument is ``<parameter=key>value</parameter>``; one line break on each side of a value is not part of it.

    After vLLM's qwen3coder_tool_parser.py.
    """

    begins = ("<tool_call>", "<function=")
    hidden = ("</tool_call>", "</function>", "<parameter=", "</parameter>")
    value_end = "</parameter>"
    around_value = ("\n", "\n")
    _name = re.compile(r"[^\s<>]*")
    _key = re.compile(r"[^<>\n]*")

    def name(self, mark: str, reader: Reader) -> Wait[str]:
        if mark == "<tool_call>":
            yield from reader.space()
            yield from reader.need("<function=")
        name = yield from reader.word(self._name)
        yield from reader.need(">")
        return name

    def next(self, reader: Reader) -> Wait[bool]:
        yield from reader.space()
        if (yield from reader.skip("<parameter=")):
            return True
        yield from reader.need("</function>")
        return False

    def key(self, reader: Reader) -> Wait[str]:
        key = yield from reader.word(self._key)
        yield from reader.need(">")
        return key.strip()

    def behind(self, reader: Reader) -> Wait[None]:
        yield from reader.space()
        yield from reader.skip("</tool_call>")

    def trimmed(self, value: str) -> str:
        return value.removeprefix("\n").removesuffix("\n")

    def around_arguments(self, name: str) -> tuple[str, str]:
        return f"<tool_call>\n<function={name}>\n", "</function>\n</tool_call>"

    def before_value(self, key: str) -> str:
        return f"<parameter={key}>\n"
