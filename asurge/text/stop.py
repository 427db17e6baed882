"""Stop strings that are never shown in part."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class StopScan:
    """Text that may be shown now, and the stop string that ended it, if one did."""

    text: str
    matched: str | None = None


class StopMatcher:
    """Looks for stop strings in text that comes in pieces; the result does not depend on the pieces.

    The match that ends first wins; of several ending together, the one that begins first. What may become one is held back.
    Takes time in proportion to the text, whatever the strings are.
    """

    def __init__(self, stop: tuple[str, ...], include: bool = False) -> None:
        self._stop, self._include = [_StopString(one) for one in stop], include
        self._held = ""
        self._matched: str | None = None

    def push(self, delta: str) -> StopScan:
        """Take in a piece. After a match all further text is dropped."""
        if self._matched is not None:
            return StopScan("", self._matched)
        end, length = len(delta) + 1, 0
        for stop in self._stop:
            found = stop.push(delta)
            if found and (found < end or (found == end and len(stop.text) > length)):
                end, length, self._matched = found, len(stop.text), stop.text
        text = self._held + delta
        if self._matched is not None:
            end += len(self._held)
            self._held = ""
            return StopScan(text[: end if self._include else end - length], self._matched)
        shown = len(text) - max([stop.begun for stop in self._stop], default=0)
        self._held = text[shown:]
        return StopScan(text[:shown])

    def flush(self) -> str:
        """End the text, and return what was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held


class _StopString:
    """Looks for one stop string, one character after another (Knuth, Morris and Pratt, 1977).

    Attributes:
        begun: how many characters of it the text so far ends with.
    """

    __slots__ = ("_borders", "begun", "text")

    def __init__(self, text: str) -> None:
        self.text, self.begun = text, 0
        # For each of its beginnings, by length: how long the longest shorter one is that it ends with. Made when the text gets
        # that far.
        self._borders = [0, 0]

    def push(self, delta: str) -> int:
        """How much of a piece there is up to the end of the string; 0 if it does not end there."""
        text, begun, borders = self.text, self.begun, self._borders
        begin = 0 if begun else delta.find(text[0])
        if begin < 0:
            return 0
        for at in range(begin, len(delta)):
            letter = delta[at]
            while begun and text[begun] != letter:
                begun = borders[begun]
            if text[begun] == letter:
                begun += 1
                if begun == len(text):
                    return at + 1
                if begun == len(borders):
                    borders.append(self._border(begun))
        self.begun = begun
        return 0

    def _border(self, length: int) -> int:
        text, last = self.text, self.text[length - 1]
        border = self._borders[length - 1]
        while border and text[border] != last:
            border = self._borders[border]
        return border + 1 if text[border] == last else border
