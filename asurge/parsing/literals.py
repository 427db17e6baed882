"""Values that are not JSON, read as JSON: Python's literals, and those of FunctionGemma."""

from __future__ import annotations

import math
import re

from asurge.parsing.delimiters import marks_of
from asurge.parsing.json_stream import MAX_DEPTH
from asurge.parsing.reader import MalformedError, Reader, Wait
from asurge.parsing.schemas import quoted

_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_OTHER_NUMBER_SIZE = 64
"""Characters of numbers written in ways that JSON does not allow; they are few and short."""

_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "\n": ""}

_BODIES = {quote: re.compile(rf"(?:[^{quote}\\]+|\\.)*", re.DOTALL) for quote in "'\""}
"""Pattern of strings. The alternatives begin differently: there is one way to match."""
_ITEM = re.compile(r"([-+.\w]+)\s*,\s*(?=[^\s\])}])")
"""Item of a list, with another after it."""


class Literals:
    """Reads Python's literals: strings, numbers, constants, lists, tuples and dicts, to a bounded depth."""

    _scalar = re.compile(r"[-+.\w]*")

    def value(self, reader: Reader) -> Wait[str]:
        """Read one value; returns its JSON.

        Raises:
            MalformedError: it is not one, or not complete.
        """
        pieces, closers = list[str](), list[str]()
        while True:
            if closers and closers[-1] != "}":
                reader.at = self._listed(reader.text, reader.at, pieces)
            yield from reader.space()
            char = yield from reader.peek()
            if char and char in "[({":
                if len(closers) == MAX_DEPTH:
                    raise MalformedError("depth")
                yield from reader.take(1)
                closers.append({"[": "]", "(": ")", "{": "}"}[char])
                pieces.append("{" if char == "{" else "[")
                yield from reader.space()
                if (yield from reader.peek()) != closers[-1]:
                    pieces.append((yield from self._key(reader, closers[-1])))
                    continue
            else:
                pieces.append((yield from self.scalar(reader, char)))
            if (yield from self._another(reader, pieces, closers)):
                continue
            return "".join(pieces)

    def _listed(self, text: str, at: int, pieces: list[str]) -> int:
        """Read items of a list that are plain and already there, in one go; returns where reading ended."""
        while (found := _ITEM.match(text, at)) is not None:
            try:
                pieces.append(plain(found[1]) + ", ")
            except MalformedError:
                break
            at = found.end()
        return at

    def _another(self, reader: Reader, pieces: list[str], closers: list[str]) -> Wait[bool]:
        """Read on after a value, past closing brackets, to the next one; returns whether there is one."""
        while closers:
            yield from reader.space()
            comma = yield from reader.skip(",")
            yield from reader.space()
            if (yield from reader.skip(closers[-1])):
                pieces.append("}" if closers.pop() == "}" else "]")
            elif comma:
                pieces.append(", " + (yield from self._key(reader, closers[-1])))
                return True
            else:
                raise MalformedError("literal")
        return False

    def _key(self, reader: Reader, closer: str) -> Wait[str]:
        """Read the key of a member, if it is members that are read."""
        if closer != "}":
            return ""
        key = yield from self.key(reader, (yield from reader.peek()))
        yield from reader.space()
        yield from reader.need(":")
        return key + ": "

    def key(self, reader: Reader, char: str) -> Wait[str]:
        """Read a key that begins with a character; returns a JSON string."""
        key = yield from self.scalar(reader, char)
        return key if key.startswith('"') else quoted(key)

    def scalar(self, reader: Reader, char: str) -> Wait[str]:
        """Read a value without parts that begins with a character."""
        if char in _BODIES:
            return quoted((yield from self.string(reader)))
        word = yield from reader.word(self._scalar)
        if not (yield from reader.peek()):
            raise MalformedError("end")  # it may be half of a longer one
        return plain(word)

    def string(self, reader: Reader) -> Wait[str]:
        """Read a string in quotes, single or triple; returns what it says."""
        quote = yield from reader.take(1)
        end = quote
        if (yield from reader.skip(quote * 2)):
            end = quote * 3
        elif (yield from reader.skip(quote)):
            return ""
        pieces = list[str]()
        while not (yield from reader.skip(end)):
            yield from reader.run(_BODIES[quote], pieces.append)
            char = yield from reader.peek()
            if not char:
                raise MalformedError("string")
            if char == "\\":
                pieces.append((yield from reader.take(2)))
            elif end != quote and not (yield from self._ends(reader, end)):
                pieces.append((yield from reader.take(1)))
        return _ESCAPE.sub(_unescaped, "".join(pieces))

    @staticmethod
    def _ends(reader: Reader, end: str) -> Wait[bool]:
        if (yield from reader.skip(end)):
            reader.back(len(end))
            return True
        return False


class GemmaLiterals(Literals):
    """FunctionGemma's values: strings between ``<escape>``, keys without quotes, lists and objects as in JSON."""

    _scalar = re.compile(r"[^\s,:{}\[\]()<>\"']*")
    _escape = marks_of(frozenset(("<escape>",)))

    def scalar(self, reader: Reader, char: str) -> Wait[str]:
        if char == "<":
            yield from reader.need("<escape>")
            return quoted((yield from reader.upto(self._escape)))
        return (yield from super().scalar(reader, char))

    def key(self, reader: Reader, char: str) -> Wait[str]:
        if char == "<" or char in _BODIES:
            return (yield from self.scalar(reader, char))
        key = yield from reader.word(self._scalar)
        if not key:
            raise MalformedError("key")
        return quoted(key)


def plain(word: str) -> str:
    """A constant or a number, as JSON.

    Raises:
        MalformedError: it is neither.
    """
    if word in _WORDS:
        return _WORDS[word]
    if _JSON_NUMBER.fullmatch(word):
        return word
    if not word or len(word) > _OTHER_NUMBER_SIZE or not word.isascii():
        raise MalformedError("literal")
    try:
        return str(int(word, 0))
    except ValueError:
        pass
    try:
        number = float(word)
    except ValueError as error:
        raise MalformedError("literal") from error
    if not math.isfinite(number):
        raise MalformedError("literal")
    return repr(number)


def _unescaped(found: re.Match[str]) -> str:
    kind, code = found[0][1], found[0][2:]
    if kind in "xuU" and code:
        return chr(min(int(code, 16), 0x10FFFF))
    if kind in "01234567":
        return chr(int(kind + code, 8))
    if kind in "\\'\"/":
        return kind
    return _ESCAPED.get(kind, found[0])
