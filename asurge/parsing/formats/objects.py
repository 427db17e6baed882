"""Formats whose calls are JSON objects with the members name and arguments."""

from __future__ import annotations

import json
import re
import secrets
import string
from typing import Any, ClassVar

from asurge.parsing.events import Output
from asurge.parsing.formats.base import MarkedFormat, Tools, functions
from asurge.parsing.json_stream import call_list, call_object, call_with
from asurge.parsing.lark import NEWLINES, Lark
from asurge.parsing.reader import MalformedError, Reader, Wait
from asurge.parsing.schemas import moved


class ObjectFormat(MarkedFormat):
    """A mark, one call or a list of calls, and maybe a mark after them.

    Attributes:
        ends: marks that may stand after the calls.
        opening, closing: how grammars and tags write what surrounds the calls.
        between: what they write between two calls; None if each call has its own marks.
        key: what they call the arguments.
        tail: what they write after the arguments.
    """

    ends: ClassVar[tuple[str, ...]] = ()
    opening: ClassVar[str]
    closing: ClassVar[str]
    between: ClassVar[str | None] = None
    key: ClassVar[str] = "arguments"
    tail: ClassVar[str] = "}"

    def call(self, mark: str, reader: Reader, out: Output, tools: Tools) -> Wait[None]:
        yield from reader.space()
        if (yield from reader.peek()) == "[":
            yield from call_list(reader, out)
        else:
            yield from self.objects(reader, out)
        yield from self.end(reader)

    def objects(self, reader: Reader, out: Output) -> Wait[None]:
        """Read objects one after another."""
        yield from call_object(reader, out)
        yield from reader.space()
        while (yield from reader.peek()) == "{":
            reader.keep()
            yield from call_object(reader, out)
            yield from reader.space()

    def end(self, reader: Reader) -> Wait[None]:
        """Skip the mark after calls, if there is one."""
        yield from reader.space()
        for mark in self.ends:
            if (yield from reader.skip(mark)):
                return

    def tags(self, tools: Tools) -> dict[str, Any] | None:
        structures = [
            {"begin": self.opening + self.head(name), "schema": schema, "end": self.tail + self.closing}
            for name, schema in functions(tools)
        ]
        return {"structures": structures, "triggers": [self.trigger]}

    def grammar(self, tools: Tools, *, parallel: bool) -> str | None:
        lark = Lark()
        tail = lark.text(self.tail)
        calls = [f"{lark.text(self.head(name))} {lark.json(schema)} {tail}" for name, schema in functions(tools)]
        call = lark.rule(" | ".join(calls))
        opening, closing = lark.text(self.opening), lark.text(self.closing)
        if self.between is None:
            one = lark.rule(f"{opening} {call} {closing}")
            return lark.build(f"{one} ({NEWLINES} {one})*" if parallel else one)
        more = f"({lark.text(self.between)} {call})*" if parallel else ""
        return lark.build(f"{opening} {call} {more} {closing}")

    @property
    def trigger(self) -> str:
        """The mark that every call begins with."""
        return self.begins[0]

    def head(self, name: str) -> str:
        """The text of a call up to its arguments."""
        return f'{{"name": {json.dumps(name, ensure_ascii=False)}, "{self.key}": '


class Hermes(ObjectFormat):
    """Hermes 2 Pro, Hermes 3, Qwen 2.5, Qwen 3 and others: ``<tool_call>{"name": ..., "arguments": ...}</tool_call>``.

    After vLLM's hermes_tool_parser.py and the chat template of Qwen 3.
    """

    begins = ("<tool_call>",)
    hidden = ends = ("</tool_call>",)
    opening, closing = "<tool_call>\n", "\n</tool_call>"


class Granite(ObjectFormat):
    """Granite 3: ``<|tool_call|>[{"name": ..., "arguments": ...}, ...]``, and the list alone at the start of a text.

    After vLLM's granite_tool_parser.py. Granite 4 writes as Hermes does.
    """

    begins = ("<|tool_call|>", "<tool_call>")
    hidden = ends = ("</tool_call>",)
    opening, closing, between = "<|tool_call|>[", "]", ", "

    def first(self, reader: Reader, out: Output) -> Wait[None] | None:
        return self._first(reader, out)

    def _first(self, reader: Reader, out: Output) -> Wait[None]:
        yield from reader.space()
        yield from call_list(reader, out, bare=True)


class Phi4Mini(ObjectFormat):
    """Phi-4-mini: ``functools[{"name": ..., "arguments": ...}, ...]``, or a list between ``<|tool_call|>`` marks.

    After vLLM's phi4mini_tool_parser.py and the model's chat template.
    """

    begins = ("functools[", "<|tool_call|>")
    hidden = ends = ("<|/tool_call|>",)
    opening, closing, between = "functools[", "]", ", "

    def call(self, mark: str, reader: Reader, out: Output, tools: Tools) -> Wait[None]:
        if mark == "functools[":
            reader.back(1)
            reader.keep("functools")
        yield from super().call(mark, reader, out, tools)


class Llama3Json(ObjectFormat):
    """Llama 3.1 and later: ``{"name": ..., "parameters": {...}}``, several with ``;`` between them.

    A text that begins with a brace is tried as a call, and so is what follows ``<|python_tag|>`` (Llama 4:
    ``<|python_start|>``) or begins with ``{"name":`` anywhere; it must have arguments to be one. After vLLM's llama_tool_parser.py.
    """

    hidden = ("<|python_start|>", "<|python_end|>")
    begins = ('{"name": "', "<|python_tag|>", '{"name":"', "<|python_start|>")
    around = ("<|python_end|>",)
    opening, closing, between, key = "", "", "; ", "parameters"

    def grammar(self, tools: Tools, *, parallel: bool) -> str | None:
        """Without a mark, calls are plain JSON: only as such can they stand beside other JSON in a grammar."""
        lark = Lark()
        calls = [
            {"type": "object", "properties": {"name": {"const": name}, self.key: moved(schema, f"#/properties/{self.key}")}, "required": ["name", self.key], "additionalProperties": False}
            for name, schema in functions(tools)
        ]  # fmt: skip
        call = lark.rule(" | ".join(map(lark.json, calls)))
        more = f"({lark.text(self.between or '')} {call})*" if parallel else ""
        return lark.build(f"{call} {more}")

    def first(self, reader: Reader, out: Output) -> Wait[None] | None:
        return self._first(reader, out)

    def _first(self, reader: Reader, out: Output) -> Wait[None]:
        yield from reader.space()
        yield from self.objects(reader, out)

    def call(self, mark: str, reader: Reader, out: Output, tools: Tools) -> Wait[None]:
        if mark.startswith("{"):
            reader.back(len(mark))
            reader.keep()
        yield from reader.space()
        yield from self.objects(reader, out)

    def objects(self, reader: Reader, out: Output) -> Wait[None]:
        yield from call_object(reader, out, bare=True)
        while True:
            reader.keep()
            yield from reader.space()
            if not (yield from reader.skip(";")):
                break
            yield from reader.space()
            if (yield from reader.peek()) != "{":
                raise MalformedError("object")
            yield from call_object(reader, out, bare=True)


class Mistral(ObjectFormat):
    """Format of Mistral: ``[TOOL_CALLS][{"name": ..., "arguments": ...}, ...]``.

    From version 11 of its tokenizer on ``[TOOL_CALLS]name[CALL_ID]id[ARGS]{...}`` for each call, with or without the two marks
    inside.

    After vLLM's mistral_tool_parser.py and mistral-common.
    """

    hidden = ("</s>", "[/TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[INST]", "[/INST]")
    begins = ("[TOOL_CALLS]",)
    opening, closing = "[TOOL_CALLS][", "]"
    between: ClassVar[str | None] = ", "

    def call_id(self) -> str:
        # The templates refuse conversations with ids of any other kind.
        return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))

    def objects(self, reader: Reader, out: Output) -> Wait[None]:
        if (yield from reader.peek()) == "{":
            yield from super().objects(reader, out)
            return
        name = yield from reader.word(_MISTRAL_NAME)
        call_id = None
        if (yield from reader.skip("[CALL_ID]")):
            call_id = yield from reader.word(_MISTRAL_NAME)
        yield from reader.skip("[ARGS]")
        yield from reader.space()
        if not name or (yield from reader.peek()) != "{":
            raise MalformedError("call")
        yield from call_with(reader, out, name, call_id)


class MistralNamed(Mistral):
    """Mistral's newer models: as `Mistral`, but what grammars and tags write is ``[TOOL_CALLS]name[ARGS]{...}``."""

    opening, closing = "[TOOL_CALLS]", ""
    between: ClassVar[str | None] = None
    tail = ""

    def head(self, name: str) -> str:
        return f"{name}[ARGS]"


_MISTRAL_NAME = re.compile(r"[^\s\[\]{}\"]*")
_ALPHANUMERIC = string.ascii_letters + string.digits
