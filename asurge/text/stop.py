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

    The match that ends first wins; of several ending together, the one that begins first.
    """

    def __init__(self, stop: tuple[str, ...], include: bool = False) -> None:
        self._stop, self._include = stop, include
        self._longest = max(map(len, stop), default=0)
        self._held = ""
        self._matched: str | None = None

    def push(self, delta: str) -> StopScan:
        """Take in a piece. After a match all further text is dropped."""
        if self._matched is not None:
            return StopScan("", self._matched)
        text = self._held + delta
        found = self._find(text)
        if found is not None:
            begin, self._matched = found
            end = begin + len(self._matched)
            self._held = ""
            return StopScan(text[: end if self._include else begin], self._matched)
        keep = self._held_back(text)
        self._held = text[len(text) - keep :]
        return StopScan(text[: len(text) - keep])

    def flush(self) -> str:
        """What was held back, at the end of the text: no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str) -> tuple[int, str] | None:
        hits = [(begin + len(stop), begin, stop) for stop in self._stop if (begin := text.find(stop)) >= 0]
        return min(hits)[1:] if hits else None

    def _held_back(self, text: str) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                return size
        return 0
