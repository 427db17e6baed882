"""Grammars in llguidance's dialect of Lark, written rule by rule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from asurge.guided import JSON_WHITESPACE

NEWLINES = r"/[\n ]{0,4}/"
"""Between marks."""


class Lark:
    """Builds a grammar. All methods but `rule` and `build` give expressions to put into rules."""

    def __init__(self) -> None:
        self._rules = list[str]()

    @staticmethod
    def text(text: str) -> str:
        """A literal; may be empty."""
        return json.dumps(text, ensure_ascii=False)

    @staticmethod
    def json(schema: Mapping[str, Any]) -> str:
        """A value that fits a schema."""
        return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": JSON_WHITESPACE}})

    def rule(self, body: str, *, attributes: str = "", terminal: bool = False) -> str:
        """Add a rule; returns its name."""
        name = f"{'T' if terminal else 'r'}{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def build(self, start: str) -> str:
        return "\n".join(["%llguidance {}", f"start: {start}", *self._rules])
