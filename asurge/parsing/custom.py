"""The text that a custom tool is called with, out of the JSON arguments that stand for it."""

from __future__ import annotations

import json
import re

INPUT = "input"
"""The one argument of the function that stands for a custom tool."""

_BEGIN = re.compile(rf'\s*{{\s*"{INPUT}"\s*:\s*"')
_HIGH, _HEX = r"\\u[dD][89abAB][0-9a-fA-F]{2}", "[0-9a-fA-F]{4}"
# A surrogate is read together with what follows it: halves of a pair are no text.
_WHOLE = re.compile(
    rf'(?:[^"\\]|\\["\\/bfnrt]|{_HIGH}(?:\\u{_HEX}|(?=[^\\]|\\[^u]))|\\u(?![dD][89abAB]){_HEX})*', re.DOTALL
)


class CustomInput:
    """Decodes the argument ``input`` while it comes."""

    def __init__(self) -> None:
        self._rest, self._begun, self._ended = "", False, False

    def feed(self, arguments: str) -> str:
        """Take in a piece of the arguments; returns the text that it adds."""
        if self._ended:
            return ""
        self._rest += arguments
        if not self._begun:
            begin = _BEGIN.match(self._rest)
            if begin is None:
                return ""
            self._begun, self._rest = True, self._rest[begin.end() :]
        whole = _WHOLE.match(self._rest)
        assert whole is not None
        self._rest = self._rest[whole.end() :]
        self._ended = self._rest.startswith('"')
        return _decoded(whole[0])

    def finish(self) -> str:
        """Return the text that is still missing: all of it, where ``input`` is not the first argument.

        Arguments of other names stand for themselves; what was cut off before the text began has none.
        """
        if self._begun:
            return ""
        try:
            arguments = json.loads(self._rest)
        except (ValueError, RecursionError):
            return ""
        found = arguments.get(INPUT) if isinstance(arguments, dict) else None
        if isinstance(found, str):
            return _without_halves(found)
        return "" if arguments == {} else self._rest


def _decoded(escaped: str) -> str:
    return _without_halves(json.loads(f'"{escaped}"', strict=False))


def _without_halves(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
