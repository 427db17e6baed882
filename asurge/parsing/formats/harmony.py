"""Tool calls of gpt-oss, whose text is a sequence of messages in channels."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from asurge.parsing.delimiters import Marks, marks_of
from asurge.parsing.events import Output
from asurge.parsing.formats.base import ToolFormat, Tools, functions
from asurge.parsing.lark import Lark
from asurge.parsing.reader import Reader, Wait
from asurge.parsing.schemas import text_value

MAX_HEADER = 256
"""Characters. What is longer is not a header."""

_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")


class GptOss(ToolFormat):
    """Format of gpt-oss: each message is a header, ``<|message|>``, a body and a mark after it.

    The channel ``analysis`` is reasoning; a message with a recipient, ``<|channel|>commentary to=functions.name
    <|constrain|>json<|message|>{...} <|call|>``, is a call, and the rest is content. A header in which the text ends is left out.

    Only one call can be forced: the mark after it ends the model's turn.

    After OpenAI's description of its harmony format and SGLang's gpt_oss_detector.py.

    Args:
        calls: whether calls are read as such; otherwise they are content.
    """

    hidden = (_START, _CHANNEL, _CONSTRAIN, _MESSAGE, *_ENDS)

    def __init__(self, *, calls: bool = True) -> None:
        self._calls = calls

    def read(self, reader: Reader, out: Output, hidden: frozenset[str], tools: Tools) -> Wait[None]:
        marks = marks_of(hidden.union(self.hidden))
        mark: str | None = yield from self._first(reader, out)
        while mark is not None:
            if mark in (_START, _CHANNEL):
                mark = yield from self._message(mark, reader, out, marks)
                continue
            if mark in _ENDS:
                out.mark()
            out.part()
            mark = yield from reader.until(marks, out.content)

    @staticmethod
    def _first(reader: Reader, out: Output) -> Wait[str]:
        """The prompt has begun the first header: the rest of it may be the recipient."""
        reader.keep()
        yield from reader.space()
        if (yield from reader.skip("to=")):
            reader.forget()
            reader.back(len("to="))
            return _START
        out.content(reader.kept())
        return ""

    def _message(self, begun: str, reader: Reader, out: Output, marks: Marks) -> Wait[str | None]:
        """Read a message; returns the mark after it, or the one that does not belong in its header."""
        header = _Header(begun, out)
        while True:
            mark = yield from reader.until(marks, header.add)
            if mark == _MESSAGE:
                break
            if mark is None or mark == _START or mark in _ENDS or header.is_over:
                if mark is not None:
                    header.refuse()
                return mark
            if mark in (_CHANNEL, _CONSTRAIN):
                header.add(mark)
        if header.is_over:
            return ""
        recipient = _RECIPIENT.search(header.text) if self._calls else None
        channel = _CHANNEL_NAME.search(header.text)
        name = "" if recipient is None else recipient[1].removeprefix("functions.")
        if name not in ("", "assistant"):
            out.start(name)
            mark = yield from self._body(reader, marks, out.arguments)
            out.end(whole=mark is not None)
            return mark
        out.mark()
        is_reasoning = channel is not None and channel[1] == "analysis"
        return (yield from self._body(reader, marks, out.reasoning if is_reasoning else out.content))

    @staticmethod
    def _body(reader: Reader, marks: Marks, sink: Callable[[str], None]) -> Wait[str | None]:
        """Read up to the mark after a message; others are left out."""
        while True:
            mark = yield from reader.until(marks, sink)
            if mark is None or mark in _ENDS or mark in (_START, _CHANNEL):
                return mark

    def tags(self, tools: Tools) -> dict[str, Any] | None:
        structures = [
            {"begin": f"to=functions.{name} {_CONSTRAIN}json{_MESSAGE}", "schema": schema, "end": ""}
            for name, schema in functions(tools)
        ]
        return {"structures": structures, "triggers": ["to=functions."]}

    def grammar(self, tools: Tools, *, parallel: bool) -> str | None:
        lark = Lark()
        analysis = lark.rule(
            f"{lark.text(f'{_CHANNEL}analysis{_MESSAGE}')} {text_value(lark, {}, '<|end|>')}"
            f" {lark.text(f'{_START}assistant')}"
        )
        heads = (
            (f"{_CHANNEL}commentary to=functions.{name} {_CONSTRAIN}json{_MESSAGE}", schema)
            for name, schema in functions(tools)
        )
        call = lark.rule(" | ".join(f"{lark.text(head)} {lark.json(schema)}" for head, schema in heads))
        return lark.build(f"({analysis})? {call}")


class _Header:
    """Collects a header; what is too long for one becomes content."""

    def __init__(self, begun: str, out: Output) -> None:
        self.text, self._out = begun, out
        self.is_over = False

    def add(self, text: str) -> None:
        if self.is_over:
            self._out.content(text)
            return
        self.text += text
        if len(self.text) > MAX_HEADER:
            self.refuse()

    def refuse(self) -> None:
        """It is content."""
        if not self.is_over:
            self.is_over = True
            self._out.refused(self.text)
