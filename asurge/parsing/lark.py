"""Grammars in llguidance's dialect of Lark, written rule by rule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from asurge.errors import InvalidRequestError
from asurge.json_schema import Relaxed
from asurge.structured import JSON_WHITESPACE, MAX_GRAMMAR_BYTES

NEWLINES = r"/[\n ]{0,4}/"
"""Text between marks."""


class Lark:
    """Builds a grammar of tools' calls. All methods but `rule` and `build` give expressions to put into rules."""

    def __init__(self) -> None:
        self._rules, self._characters = list[str](), 0

    @staticmethod
    def text(text: str) -> str:
        """A literal; may be empty."""
        return json.dumps(text, ensure_ascii=False)

    @staticmethod
    def json(schema: Mapping[str, Any]) -> str:
        """A value that fits a schema, as far as grammars can say it."""
        options = {"whitespace_pattern": JSON_WHITESPACE, "lenient": True}
        return "%json " + json.dumps({**Relaxed(schema).schema, "x-guidance": options})

    def rule(self, body: str, *, attributes: str = "", terminal: bool = False) -> str:
        """Add a rule; returns its name.

        Raises:
            InvalidRequestError: the grammar is larger than any may be. (A small schema makes a large one if all parameters
                refer to the same definitions.)
        """
        name = f"{'T' if terminal else 'r'}{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        self._characters += len(self._rules[-1])
        if self._characters > MAX_GRAMMAR_BYTES:
            raise InvalidRequestError(
                f"tools make a grammar of more than {MAX_GRAMMAR_BYTES} bytes: use fewer tools, or smaller schemas",
                param="tools",
            )
        return name

    def build(self, start: str) -> str:
        return "\n".join(["%llguidance {}", f"start: {start}", *self._rules])
