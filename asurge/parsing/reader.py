"""Reading text that comes in pieces, as if it were all there.

Parsers are generators that wait for more text where they cannot go on; what they do depends on the characters alone,
never on the pieces these come in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TypeVar

from asurge.parsing.delimiters import Marks

T = TypeVar("T")
Wait = Generator[None, None, T]
"""A parser: it yields when it needs more text."""

_SPACE = re.compile(r"\s*")


class MalformedError(Exception):
    """Text that was thought to be a call does not have its form, or ends within it."""


class Reader:
    """Text, and how far it is read. Each character is looked at a bounded number of times."""

    def __init__(self) -> None:
        self.text, self.at, self.closed = "", 0, False
        self._kept: list[str] | None = None
        self._kept_from = 0

    def feed(self, text: str) -> None:
        """More text."""
        if self._kept is not None:
            self._kept.append(self.text[self._kept_from : self.at])
            self._kept_from = 0
        self.text, self.at = self.text[self.at :] + text, 0

    def keep(self, begun: str = "") -> None:
        """Keep what is read from here on, after what has begun it, for `kept` to give back."""
        self._kept, self._kept_from = [begun], self.at

    def forget(self) -> None:
        """Drop the text that `keep` keeps."""
        self._kept = None

    def kept(self) -> str:
        """The text that was read since `keep`."""
        if self._kept is None:
            return ""
        text = "".join((*self._kept, self.text[self._kept_from : self.at]))
        self._kept = None
        return text

    def again(self) -> None:
        """Read once more what has been read since `keep`."""
        self.text, self.at = self.kept() + self.text[self.at :], 0

    def drop(self) -> None:
        """Skip all text there is, and drop what was kept of it."""
        self._kept, self.at = None, len(self.text)

    @property
    def is_kept(self) -> bool:
        """Whether what is read may have to be given back."""
        return self._kept is not None

    def back(self, size: int) -> None:
        """Read the last characters again; they have been read since the last wait."""
        self.at -= size

    def more(self) -> Wait[bool]:
        """Wait for more text; returns whether any can still come."""
        if self.closed:
            return False
        yield
        return True

    def peek(self) -> Wait[str]:
        """The next character; nothing at the end."""
        while self.at == len(self.text):
            if not (yield from self.more()):
                return ""
        return self.text[self.at]

    def run(self, pattern: re.Pattern[str], sink: Callable[[str], object] = lambda text: None) -> Wait[None]:
        """Read on as long as characters fit a pattern of the form ``[...]*``, passing them on as they come."""
        while True:
            found = pattern.match(self.text, self.at)
            assert found is not None
            if found.end() > self.at:
                self.at = found.end()
                sink(found[0])
            if self.at < len(self.text) or not (yield from self.more()):
                return

    def word(self, pattern: re.Pattern[str]) -> Wait[str]:
        """`run`, returning one text."""
        pieces = list[str]()
        yield from self.run(pattern, pieces.append)
        return "".join(pieces)

    def space(self) -> Wait[None]:
        """Skip white space."""
        yield from self.run(_SPACE)

    def skip(self, mark: str) -> Wait[bool]:
        """Read a mark if it stands here; waits only while it may."""
        while not self.text.startswith(mark, self.at):
            if not mark.startswith(self.text[self.at : self.at + len(mark)]) or not (yield from self.more()):
                return False
        self.at += len(mark)
        return True

    def take(self, size: int) -> Wait[str]:
        """Read a number of characters.

        Raises:
            MalformedError: the text ends before that.
        """
        while len(self.text) - self.at < size:
            if not (yield from self.more()):
                raise MalformedError("end")
        self.at += size
        return self.text[self.at - size : self.at]

    def need(self, mark: str) -> Wait[None]:
        """Read a text that must come next.

        Raises:
            MalformedError: something else stands here.
        """
        if not (yield from self.skip(mark)):
            raise MalformedError(mark)

    def upto(self, marks: Marks) -> Wait[str]:
        """Read the text before the first of some marks, and the mark too.

        Raises:
            MalformedError: there is none.
        """
        pieces = list[str]()
        if (yield from self.until(marks, pieces.append)) is None:
            raise MalformedError("end")
        return "".join(pieces)

    def until(self, marks: Marks, sink: Callable[[str], object]) -> Wait[str | None]:
        """Pass text on up to the first mark, and read that; None at the end of the text."""
        while True:
            end, mark = marks.find(self.text, self.at, self.closed)
            if end > self.at:
                sink(self.text[self.at : end])
            self.at = end + len(mark or "")
            if mark is not None:
                return mark
            if not (yield from self.more()):
                return None
