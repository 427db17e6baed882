"""The first of some marks in text that comes in pieces."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable


class Marks:
    """Marks that are searched for in a text: the first one counts, of those that begin at the same place the longest."""

    def __init__(self, marks: Iterable[str]) -> None:
        known = sorted(set(marks))
        assert "" not in known
        self._pattern = re.compile(_alternatives(known)) if known else None
        self._prefixes = frozenset(mark[:size] for mark in known for size in range(1, len(mark)))
        self._begun = self._prefixes.union(known)
        self._longest = max(map(len, known), default=1)

    def find(self, text: str, at: int, closed: bool) -> tuple[int, str | None]:
        """Find the end of free text from ``at`` on, and the mark that follows it.

        Without a mark, what follows may be the beginning of one; if the text is ``closed``, it no longer may.
        """
        if self._pattern is None:
            return len(text), None
        found = self._pattern.search(text, at)
        held = len(text) if closed else self._held(text, at)
        if found is not None and (closed or found.start() < held):
            return found.start(), found[0]
        return held, None

    def split(self, text: str) -> list[str]:
        """The parts of a whole text between the marks."""
        return self._pattern.split(text) if self._pattern is not None else [text]

    def tail(self, text: str) -> str:
        """Return the end of a text that is long enough for `joins`."""
        return text[max(0, len(text) - self._longest) :]

    def joins(self, before: str, after: str) -> bool:
        """Whether text that ends with half of a mark goes on with the next character of that."""
        ends = (before[begin:] for begin in range(max(0, len(before) - self._longest + 1), len(before)))
        return any(end in self._prefixes and end + after[:1] in self._begun for end in ends)

    def _held(self, text: str, at: int) -> int:
        """Where the longest end of the text that may grow into a mark starts."""
        for begin in range(max(at, len(text) - self._longest + 1), len(text)):
            if text[begin:] in self._prefixes:
                return begin
        return len(text)


@functools.lru_cache(maxsize=256)
def marks_of(marks: frozenset[str]) -> Marks:
    """Marks, prepared once."""
    return Marks(marks)


def _alternatives(words: list[str]) -> str:
    """A pattern of sorted words in which no character is tried twice: many marks begin alike."""
    shared = _shared_prefix(words)
    rest = [word[len(shared) :] for word in words]
    optional = rest[0] == ""
    groups: dict[str, list[str]] = {}
    for word in rest:
        if word:
            groups.setdefault(word[0], []).append(word)
    if not groups:
        return re.escape(shared)
    inner = "|".join(_alternatives(group) for group in groups.values())
    return f"{re.escape(shared)}(?:{inner}){'?' if optional else ''}"


def _shared_prefix(words: list[str]) -> str:
    first, last = words[0], words[-1]
    size = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:size]
