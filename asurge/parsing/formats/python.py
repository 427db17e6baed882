"""Formats whose calls look like function calls: Python's, and FunctionGemma's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from asurge.parsing.events import Output
from asurge.parsing.formats.base import MarkedFormat, Tools, functions
from asurge.parsing.lark import Lark
from asurge.parsing.literals import GemmaLiterals, Literals
from asurge.parsing.reader import MalformedError, Reader, Wait
from asurge.parsing.schemas import Parameter, parameters, quoted, sequence, text_value


class Pythonic(MarkedFormat):
    """Format of Llama 3.2, Llama 4, OLMo 3 and others: ``[f(a=1, b="x"), g()]``.

    It stands at the start of a text, or after ``<|python_start|>`` anywhere. Each argument becomes JSON once it is complete.

    After vLLM's pythonic_tool_parser.py and llama4_pythonic_tool_parser.py.
    """

    hidden = ("<|python_start|>", "<|python_end|>")
    begins = ("<|python_start|>",)
    around = ("<|python_end|>",)
    _name = re.compile(r"[\w.-]*")
    _key = re.compile(r"[\w.$-]*")
    _literals = Literals()

    def tags(self, tools: Tools) -> dict[str, Any] | None:
        return None

    def first(self, reader: Reader, out: Output) -> Wait[None] | None:
        return self._list(reader, out)

    def call(self, mark: str, reader: Reader, out: Output, tools: Tools) -> Wait[None]:
        yield from self._list(reader, out)

    def _list(self, reader: Reader, out: Output) -> Wait[None]:
        yield from reader.space()
        yield from reader.need("[")
        while True:
            yield from reader.space()
            yield from self._call(reader, out)
            reader.keep()
            yield from reader.space()
            if (yield from reader.skip("]")):
                return
            yield from reader.need(",")

    def _call(self, reader: Reader, out: Output) -> Wait[None]:
        name = yield from reader.word(self._name)
        if not name or name[0].isdecimal():
            raise MalformedError("name")
        yield from reader.space()
        yield from reader.need("(")
        yield from reader.space()
        yield from _arguments(reader, out, name, self._read_key, "=", ")", self._literals)

    def _read_key(self, reader: Reader) -> Wait[str]:
        key = yield from reader.word(self._key)
        return quoted(key) if key else ""

    def grammar(self, tools: Tools, *, parallel: bool) -> str | None:
        lark, calls = Lark(), list[str]()
        for name, schema in functions(tools):
            members = parameters(schema)
            if not self._name.fullmatch(name) or not all(self._key.fullmatch(one.name) for one in members):
                return None
            items = [
                (lark.rule(f"{lark.text(one.name + '=')} {self._value(lark, one)}"), one.required) for one in members
            ]
            calls.append(f'{lark.text(name + "(")} {sequence(lark, items, ", ")} ")"')
        call = lark.rule(" | ".join(calls))
        more = f'(", " {call})*' if parallel else ""
        return lark.build(f'"[" {call} {more} "]"')

    @staticmethod
    def _value(lark: Lark, parameter: Parameter) -> str:
        return '("True" | "False")' if parameter.is_boolean else lark.json(parameter.schema)


class Gemma(MarkedFormat):
    """Format of FunctionGemma: calls in Python's form, with ``<escape>`` around strings.

    ``<start_function_call>call:name{key:<escape>text<escape>,other:1}<end_function_call>``. Each argument becomes JSON once it is
    complete.

    After vLLM's functiongemma_tool_parser.py and Google's guide to the model's format.
    """

    begins = ("<start_function_call>",)
    around = ("<end_function_call>",)
    hidden = (
        *begins, *around, "<escape>", "<start_function_response>", "<end_function_response>", "<start_of_turn>",
        "<end_of_turn>", "<bos>", "<eos>",
    )  # fmt: skip
    _name = re.compile(r"[^\s{}<>:]*")
    _key = re.compile(r"[^\s,:{}\[\]()<>\"']+")
    _literals = GemmaLiterals()

    def tags(self, tools: Tools) -> dict[str, Any] | None:
        return None

    def call(self, mark: str, reader: Reader, out: Output, tools: Tools) -> Wait[None]:
        yield from reader.space()
        yield from reader.need("call:")
        name = yield from reader.word(self._name)
        yield from reader.need("{")
        yield from reader.space()
        if not name:
            raise MalformedError("name")
        yield from _arguments(reader, out, name, self._read_key, ":", "}", self._literals)

    def _read_key(self, reader: Reader) -> Wait[str]:
        return (yield from self._literals.key(reader, (yield from reader.peek())))

    def grammar(self, tools: Tools, *, parallel: bool) -> str | None:
        lark, calls = Lark(), list[str]()
        for name, schema in functions(tools):
            members = parameters(schema)
            if not self._name.fullmatch(name) or not all(self._key.fullmatch(one.name) for one in members):
                return None
            items = [
                (lark.rule(f"{lark.text(one.name + ':')} {self._value(lark, one)}"), one.required) for one in members
            ]
            calls.append(f'{lark.text(f"call:{name}{{")} {sequence(lark, items, ",")} "}}"')
        inner = lark.rule(" | ".join(calls))
        call = lark.rule(f"{lark.text(self.begins[0])} {inner} {lark.text(self.around[0])}")
        return lark.build(f"{call}+" if parallel else call)

    @staticmethod
    def _value(lark: Lark, parameter: Parameter) -> str:
        if parameter.is_text:
            return f"{lark.text('<escape>')} {text_value(lark, parameter.schema, '<escape>')}"
        return lark.json(parameter.schema)


def begin(reader: Reader, out: Output, name: str) -> None:
    """Begin the call, if it has not begun."""
    if not out.in_call:
        out.start(name)
        reader.forget()


def _arguments(
    reader: Reader,
    out: Output,
    name: str,
    read_key: Callable[[Reader], Wait[str]],
    joint: str,
    close: str,
    literals: Literals,
) -> Wait[None]:
    """Read a call's arguments, each a key, a joint and a value, up to what closes them; they become a JSON object.

    Raises:
        MalformedError: they break off, or a key is empty.
    """
    separator = "{"
    while not (yield from reader.skip(close)):
        key = yield from read_key(reader)
        yield from reader.space()
        yield from reader.need(joint)
        if not key:
            raise MalformedError("key")
        begin(reader, out, name)
        out.arguments(f"{separator}{key}: {(yield from literals.value(reader))}")
        separator = ", "
        yield from reader.space()
        if (yield from reader.skip(",")):
            yield from reader.space()
        elif (yield from reader.peek()) != close:
            raise MalformedError("arguments")
    begin(reader, out, name)
    out.arguments("{}" if separator == "{" else "}")
    out.end()
