"""What formats whose arguments are not JSON need to know of a tool's schema."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from asurge.parsing.formats.base import Tools, functions
from asurge.parsing.json_stream import is_json, whole
from asurge.parsing.lark import Lark

_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_HOPS = 16
"""From one reference to the next, at most."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """One of a tool's parameters; the schema is complete in itself."""

    name: str
    schema: Mapping[str, Any]
    required: bool

    @property
    def is_text(self) -> bool:
        """Whether the value is always a string: formats then write it without quotes."""
        schema = _resolved(self.schema)
        if "type" in schema:
            return bool(schema["type"] == "string")
        options = schema["enum"] if isinstance(schema.get("enum"), list) else [schema.get("const")]
        return bool(options) and all(isinstance(one, str) for one in options)

    @property
    def is_boolean(self) -> bool:
        schema = _resolved(self.schema)
        return schema.get("type") == "boolean" and not {"enum", "const"}.intersection(schema)


def _resolved(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema, after following its references into its own definitions."""
    found: Any = schema
    for _ in range(_HOPS):
        if not isinstance(found, Mapping) or not isinstance(found.get("$ref"), str):
            break
        path = found["$ref"].split("/")
        found = _mapping(schema.get(path[1])).get(path[2]) if len(path) == 3 and path[0] == "#" else {}
    return _mapping(found)


def _mapping(found: object) -> Mapping[str, Any]:
    """Part of a schema that should be an object; if it is anything else, nothing is known of it."""
    return found if isinstance(found, Mapping) else {}


def parameters(schema: Mapping[str, Any]) -> list[Parameter]:
    """The parameters of a tool, in the schema's order."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    resolved = _resolved(schema)
    known, listed = _mapping(resolved.get("properties")), resolved.get("required")
    required = [one for one in listed if isinstance(one, str)] if isinstance(listed, list | tuple) else []
    names = [*known, *(name for name in required if name not in known)]
    return [
        Parameter(name, {**shared, **one} if isinstance(one := known.get(name, {}), Mapping) else {}, name in required)
        for name in names
    ]


def texts(tools: Tools) -> dict[str, frozenset[str]]:
    """For each tool, the parameters that are always strings."""
    return {name: frozenset(one.name for one in parameters(schema) if one.is_text) for name, schema in functions(tools)}


def as_json(text: str, is_text: bool) -> str:
    """A value that was written without quotes, as JSON: what is not known to be text may be JSON already."""
    if not is_text:
        stripped = text.strip()
        stripped = _PYTHON_WORDS.get(stripped, stripped)
        if is_json(stripped):
            return stripped
    return quoted(text)


def quoted(text: str) -> str:
    return json.dumps(whole(text), ensure_ascii=False)


def text_value(lark: Lark, schema: Mapping[str, Any], end: str, before: str = "") -> str:
    """An expression for a string without quotes that fits a schema, and for the mark that ends it, with text before."""
    schema = _resolved(schema)
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(options, list | tuple) and options:
        choices = " | ".join(lark.text(one) for one in options)
        return f"({choices}) {lark.text(before + end)}"
    low, high = schema.get("minLength", 0), schema.get("maxLength", "")
    terms = [f"/(?s:.{{{low},{high}}})/"]
    if isinstance(pattern := schema.get("pattern"), str):
        terms.append(f"/{_searched(pattern)}/")
    without = lark.rule(f"/(?s:.*){_escaped(re.escape(end))}(?s:.*)/", terminal=True)
    body = lark.rule(" & ".join((*terms, f"~{without}")), terminal=True)
    return lark.rule(f"{body} {lark.text(before + end)}", attributes="[lazy]")


def _searched(pattern: str) -> str:
    """A pattern that may match anywhere, as one that matches the whole text."""
    begin = "" if pattern.startswith("^") else "(?s:.*)"
    end = "" if pattern.endswith("$") and not pattern.endswith("\\$") else "(?s:.*)"
    inner = pattern.removeprefix("^")
    return f"{begin}({_escaped(inner[:-1] if end == '' else inner)}){end}"


def _escaped(pattern: str) -> str:
    """A pattern between slashes."""
    return re.sub(r"\\.|/", lambda found: "\\/" if found[0] == "/" else found[0], pattern, flags=re.DOTALL)


def sequence(lark: Lark, items: Sequence[tuple[str, bool]], separator: str) -> str:
    """Expressions one after another, of which only the required ones must be there."""
    behind, alone = '""', '""'
    for one, required in reversed(items):
        skipped = ("", "") if required else (f" | {behind}", f" | {alone}")
        alone = lark.rule(f"{one} {behind}{skipped[1]}")
        behind = lark.rule(f"{lark.text(separator)} {one} {behind}{skipped[0]}")
    return alone
