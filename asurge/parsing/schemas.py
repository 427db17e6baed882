"""Types of tools' parameters, for formats whose arguments are not JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from asurge.json_schema import DATA, NAMED, PLACE, escaped, without_assertions
from asurge.parsing.formats.base import Tools, functions
from asurge.parsing.json_stream import is_json, whole
from asurge.parsing.lark import Lark

_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_TEXT = frozenset(("string",))
_KINDS: dict[type, str] = {
    str: "string", bool: "boolean", type(None): "null", int: "number", float: "number", list: "array", dict: "object"
}  # fmt: skip
_KINDS_BY_FIRST = {'"': "string", "{": "object", "[": "array", "t": "boolean", "f": "boolean", "n": "null"}
"""Kinds of a value in JSON, by its first character; of others numbers."""

_HOPS = 16
"""Most references that are followed, one to the next."""


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a tool; its schema is complete in itself."""

    name: str
    schema: Mapping[str, Any]
    required: bool

    @property
    def is_text(self) -> bool:
        """Whether the value is always a string: formats then write it without quotes."""
        return kinds(self.schema) == _TEXT

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
    shared, resolved = _shared(schema), _resolved(schema)
    known, listed = _mapping(resolved.get("properties")), resolved.get("required")
    required = [one for one in listed if isinstance(one, str)] if isinstance(listed, list | tuple) else []
    names = [*known, *(name for name in required if name not in known)]
    schemas = {name: _mapping(known.get(name)) for name in names}
    if PLACE in schema:
        schemas = {name: {**one, PLACE: f"{schema[PLACE]}/properties/{escaped(name)}"} for name, one in schemas.items()}
    return [
        Parameter(name, {**shared, **one} if shared and _refers(one) else one, name in required)
        for name, one in schemas.items()
    ]


def _shared(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Its definitions."""
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def _refers(schema: Mapping[str, Any]) -> bool:
    """Whether there is a reference anywhere in it."""
    within: list[object] = [schema]
    while within:
        part = within.pop()
        if isinstance(part, Mapping):
            if "$ref" in part:
                return True
            within += part.values()
        elif isinstance(part, list | tuple):
            within += part
    return False


def moved(schema: Any, place: str) -> Any:
    """A whole schema as a part of another one: its references follow it.

    Args:
        place: its JSON pointer there, as references write it.
    """
    if not isinstance(schema, Mapping):
        return [moved(one, place) for one in schema] if isinstance(schema, list | tuple) else schema
    found = dict[str, Any]()
    for name, value in schema.items():
        if name == "$ref" and isinstance(value, str) and value.startswith("#"):
            found[name] = place + value[1:]
        elif name in NAMED and isinstance(value, Mapping):
            found[name] = {inner: moved(one, place) for inner, one in value.items()}
        else:
            found[name] = value if name in DATA else moved(value, place)
    return found


def kinds(schema: Mapping[str, Any], *, is_option: bool = False) -> frozenset[str] | None:
    """The types of JSON that a schema allows, integers as numbers; None if it does not say.

    None too if an option among others has options of its own. (By references they might be its own again.)
    """
    resolved = _resolved(schema)
    named, listed = resolved.get("type"), resolved.get("enum", [resolved["const"]] if "const" in resolved else None)
    options = resolved.get("anyOf", resolved.get("oneOf"))
    if named is not None:
        names = named if isinstance(named, list | tuple) else [named]
    elif isinstance(listed, list | tuple):
        names = [_KINDS.get(type(one)) for one in listed]
    elif isinstance(options, list | tuple) and not is_option:
        found = [kinds({**_shared(schema), **_mapping(one)}, is_option=True) for one in options]
        names = [None if one is None else name for one in found for name in one or (None,)]
    else:
        names = []
    known = ["number" if name == "integer" else name for name in names if isinstance(name, str)]
    return frozenset(known) if known and len(known) == len(names) else None


def kinds_of(tools: Tools, name: str) -> dict[str, frozenset[str] | None]:
    """Find, for each parameter of a tool, its `kinds`."""
    return {
        one.name: kinds(one.schema) for tool, schema in functions(tools) if tool == name for one in parameters(schema)
    }


def as_json(text: str, allowed: frozenset[str] | None) -> str:
    """A value that was written without quotes, as JSON: what is not known to be text may be JSON already.

    Args:
        allowed: its `kinds`. What reads as another kind is text, if it may be: the 12345 of an optional string.
    """
    if allowed != _TEXT:
        stripped = text.strip()
        stripped = _PYTHON_WORDS.get(stripped, stripped)
        if is_json(stripped):
            kind = _KINDS_BY_FIRST.get(stripped[0], "number")
            if allowed is None or "string" not in allowed or kind in allowed:
                return stripped
    return quoted(text)


def quoted(text: str) -> str:
    """Write a text as a string of JSON."""
    return json.dumps(whole(text), ensure_ascii=False)


def text_value(lark: Lark, schema: Mapping[str, Any], end: str, before: str = "") -> str:
    """An expression for a string without quotes that fits a schema, and for the mark that ends it, with text before."""
    schema = _resolved(schema)
    options = schema.get("enum", [schema["const"]] if "const" in schema else None)
    # Null stands beside strings in what OpenAPI calls nullable; without quotes it would be one.
    if isinstance(options, list | tuple) and (among := [one for one in options if isinstance(one, str)]):
        choices = " | ".join(lark.text(one) for one in among)
        return f"({choices}) {lark.text(before + end)}"
    low, high = (
        one if type(one := schema.get(name)) is int and one >= 0 else "" for name in ("minLength", "maxLength")
    )
    terms = [f"/(?s:.{{{low or 0},{high}}})/"]
    if isinstance(pattern := schema.get("pattern"), str) and (known := without_assertions(pattern)) is not None:
        terms.append(f"/{_searched(known)}/")
    without = lark.rule(f"/(?s:.*){_escaped(re.escape(end))}(?s:.*)/", terminal=True)
    body = lark.rule(" & ".join((*terms, f"~{without}")), terminal=True)
    return lark.rule(f"{body} {lark.text(before + end)}", attributes="[lazy]")


def _searched(pattern: str) -> str:
    """A pattern that may match anywhere, as one that matches the whole text."""
    begin = "" if pattern.startswith("^") else "(?s:.*)"
    escapes = len(pattern) - 1 - len(pattern[:-1].rstrip("\\"))
    end = "" if pattern.endswith("$") and escapes % 2 == 0 else "(?s:.*)"
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
