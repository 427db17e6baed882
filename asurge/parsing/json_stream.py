"""JSON that comes in pieces: where a value ends, and the members that make an object a call."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from asurge.parsing.events import Output
from asurge.parsing.reader import MalformedError, Reader, Wait

MAX_DEPTH = 128
"""Depth of nested values. Deeper ones are not a call: reading them would have no bounds."""

ARGUMENTS = ("arguments", "parameters")
_NAMES = ("name", "function")
_KEYS = (*ARGUMENTS, *_NAMES, "id", "type", "description")
"""Keys of what may be a call without a mark: an answer in JSON is held back only up to the first other key."""

_BLANK = re.compile(r"[ \t\r\n]*")
# Alternatives that begin differently: there is one way to match, and no backtracking.
_STRING = re.compile(r'(?:[^"\\]+|\\.)*', re.DOTALL)
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")

_VALUE, _ITEM, _KEY, _MEMBER, _COLON, _NEXT = range(6)
"""What may come: a value; a value or the end of a list; a key; a key or the end of an object; a colon; a comma or an end."""
_BETWEEN, _IN_STRING, _IN_ESCAPE, _IN_SCALAR = range(4)


class JsonScanner:
    """Finds the end of one JSON value. Brackets, commas and strings must be right; scalars are not looked into."""

    def __init__(self) -> None:
        self._closers = list[str]()
        self._wanted, self._place = _VALUE, _BETWEEN
        self.done = self.failed = False

    def scan(self, text: str, at: int) -> int:
        """Read on; returns where reading ended: at the end of the value or of the text, or where it is not JSON."""
        while at < len(text) and not self.done and not self.failed:
            if self._place == _BETWEEN:
                found = _BLANK.match(text, at)
                assert found is not None
                at = found.end()
                if at < len(text) and self._token(text, at):
                    at += 1
            elif self._place == _IN_SCALAR:
                at = self._run(_SCALAR, text, at)
                if at < len(text):
                    self._ended()
            elif self._place == _IN_ESCAPE:
                at, self._place = at + 1, _IN_STRING
            else:
                at = self._run(_STRING, text, at)
                if at < len(text):
                    self._string_stops(text[at])
                    at += 1
        return at

    def close(self) -> None:
        """No more text comes: a number or a word ends here.

        Raises:
            MalformedError: the value is not complete.
        """
        if self._place == _IN_SCALAR and not self._closers:
            self._ended()
        if not self.done:
            raise MalformedError("end")

    @staticmethod
    def _run(pattern: re.Pattern[str], text: str, at: int) -> int:
        found = pattern.match(text, at)
        assert found is not None
        return found.end()

    def _string_stops(self, char: str) -> None:
        if char == "\\":
            self._place = _IN_ESCAPE
        elif self._wanted == _COLON:
            self._place = _BETWEEN
        else:
            self._ended()

    def _token(self, text: str, at: int) -> bool:
        """Read one character, or else begin to read a scalar."""
        char, wanted = text[at], self._wanted
        if char == '"' and wanted != _NEXT and wanted != _COLON:
            self._place = _IN_STRING
            self._wanted = _COLON if wanted in (_KEY, _MEMBER) else _NEXT
        elif char in "}]":
            if not self._closers or self._closers[-1] != char or wanted not in (_NEXT, _ITEM, _MEMBER):
                self.failed = True
                return False
            self._closers.pop()
            self._ended()
        elif wanted == _COLON and char == ":":
            self._wanted = _VALUE
        elif wanted == _NEXT and char == ",":
            self._wanted = _KEY if self._closers[-1] == "}" else _VALUE
        elif wanted in (_VALUE, _ITEM) and char in "{[" and len(self._closers) < MAX_DEPTH:
            self._closers.append("}" if char == "{" else "]")
            self._wanted = _MEMBER if char == "{" else _ITEM
        elif wanted in (_VALUE, _ITEM) and self._run(_SCALAR, text, at) > at:
            self._place = _IN_SCALAR
            return False
        else:
            self.failed = True
            return False
        return True

    def _ended(self) -> None:
        """A value is complete."""
        self._place, self._wanted = _BETWEEN, _NEXT
        self.done = not self._closers


def json_value(reader: Reader, sink: Callable[[str], object] = lambda text: None) -> Wait[None]:
    """Read one value, passing its text on as it comes.

    Raises:
        MalformedError: it is not JSON, or not complete.
    """
    scanner = JsonScanner()
    while not scanner.done:
        if reader.at == len(reader.text) and not (yield from reader.more()):
            scanner.close()
            return
        end = scanner.scan(reader.text, reader.at)
        if end > reader.at:
            sink(reader.text[reader.at : end])
            reader.at = end
        if scanner.failed:
            raise MalformedError("value")


def json_string(reader: Reader) -> Wait[str]:
    """Read one string; returns what it says.

    Raises:
        MalformedError: it is not one.
    """
    if (yield from reader.peek()) != '"':
        raise MalformedError("string")
    pieces = list[str]()
    yield from json_value(reader, pieces.append)
    try:
        text = json.loads("".join(pieces), strict=False)
    except ValueError as error:
        raise MalformedError("string") from error
    return whole(str(text))


def whole(text: str) -> str:
    """Text that can be encoded: halves of a pair of surrogates joined, lone ones replaced."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_json(text: str) -> bool:
    """Whether a whole text is one JSON value, of bounded depth."""
    try:
        scanner = JsonScanner()
        if _BLANK.sub("", text[scanner.scan(text, 0) :]):
            return False
        scanner.close()
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse)
    except (MalformedError, ValueError):
        return False
    return True


def _refuse(constant: str) -> str:
    raise ValueError(constant)


def call_object(reader: Reader, out: Output, *, bare: bool = False) -> Wait[None]:
    """Read ``{"name": ..., "arguments": {...}}`` as a call; the members may come in any order, with others among them.

    The call starts once its name is known and its arguments begin; before that, what is read may turn out not to be one.

    Args:
        bare: no mark says that this is a call: it must have arguments, and these must be an object.

    Raises:
        MalformedError: it is no call, or breaks off.
    """
    call = _Call(reader, out)
    yield from reader.need("{")
    yield from reader.space()
    while not (yield from reader.skip("}")):
        key = yield from json_string(reader)
        yield from reader.space()
        yield from reader.need(":")
        yield from reader.space()
        first = yield from reader.peek()
        if key in _NAMES and first == '"' and call.name is None:
            call.named((yield from json_string(reader)))
        elif key in ARGUMENTS and not call.has_arguments and (first == "{" or not bare):
            call.has_arguments = True
            if call.name is not None:
                call.start()
            yield from _arguments(reader, call, quoted=first == '"')
        elif key == "id" and first == '"':
            call.call_id = yield from json_string(reader)
        elif bare and key not in _KEYS:
            raise MalformedError("key")
        else:
            yield from json_value(reader)
        yield from reader.space()
        if (yield from reader.skip(",")):
            yield from reader.space()
        elif (yield from reader.peek()) != "}":
            raise MalformedError("object")
    if not call.name or (bare and not call.has_arguments):
        raise MalformedError("call")
    call.start()
    out.end()


def _arguments(reader: Reader, call: _Call, *, quoted: bool) -> Wait[None]:
    """Read arguments as they are; an object that was put into a string is taken out of it."""
    if not quoted:
        yield from json_value(reader, call.arguments)
        return
    pieces = list[str]()
    yield from json_value(reader, pieces.append)
    text = "".join(pieces)
    try:
        inner = str(json.loads(text, strict=False))
    except ValueError:
        inner = ""
    call.arguments(whole(inner) if inner.lstrip().startswith("{") and is_json(inner) else text)


class _Call:
    """A call whose members are being read."""

    def __init__(self, reader: Reader, out: Output) -> None:
        self._reader, self._out = reader, out
        self._early = list[str]()
        self.name: str | None = None
        self.call_id: str | None = None
        self.has_arguments = False

    def named(self, name: str) -> None:
        if not name:
            raise MalformedError("name")
        self.name = name
        if self.has_arguments:
            self.start()

    def start(self) -> None:
        if self._out.in_call:
            return
        assert self.name is not None
        self._out.start(self.name, self.call_id)
        self._reader.forget()
        self._out.arguments("".join(self._early))

    def arguments(self, text: str) -> None:
        if self._out.in_call:
            self._out.arguments(text)
        else:
            self._early.append(text)


def call_with(reader: Reader, out: Output, name: str, call_id: str | None = None) -> Wait[None]:
    """Read one value as the arguments of a call whose name is known.

    Raises:
        MalformedError: it breaks off.
    """
    out.start(name, call_id)
    reader.forget()
    yield from json_value(reader, out.arguments)
    out.end()


def call_list(reader: Reader, out: Output, *, bare: bool = False) -> Wait[None]:
    """Read ``[{...}, {...}]`` as calls. What is wrong after the first one is content from there on.

    Raises:
        MalformedError: it is not a list of calls, or breaks off.
    """
    yield from reader.need("[")
    yield from reader.space()
    while True:
        yield from call_object(reader, out, bare=bare)
        reader.keep()
        yield from reader.space()
        if (yield from reader.skip("]")):
            reader.forget()
            return
        yield from reader.need(",")
        yield from reader.space()
