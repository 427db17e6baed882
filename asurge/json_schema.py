"""JSON schemas as clients write them, in terms of what llguidance knows: the same where that can be said, else looser.

What is looser allows all that the schema allows, and is named, so that whoever asked can check the answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

from asurge.errors import InvalidRequestError

MAX_JSON_DEPTH = 64
"""Depth of nesting that a document may have."""
PLACE = "x-asurge-place"
"""A keyword of asurge's own: where a schema comes from, for errors."""

NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose members are named by the schema's author; each is a schema."""

DATA = ("const", "enum", "default", "examples", "example")
"""Keywords that hold no schemas."""

_LISTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NESTED = ("items", "additionalProperties", "not", "contains", "additionalItems", "propertyNames")
_UNKNOWN = (
    "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "contains", "minContains", "maxContains",
    "$dynamicRef", "$recursiveRef", "unevaluatedItems",
)  # fmt: skip
_FORMATS = frozenset(("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"))
_AS_PATTERNS = {
    "uri-reference": r"^[A-Za-z0-9\-._~:/?#@!$&'()*+,;=%\[\]]*$",
    "base64": r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    "base64url": r"^[A-Za-z0-9_-]*$",
    "byte": r"^[A-Za-z0-9+/_-]*={0,2}$",
    "json-pointer": r"^(?:/(?:[^~/]|~[01])*)*$",
}
_LOWEST, _HIGHEST, _FURTHEST, _FAR = -(2**62), 2**63 - 1, 10**18, 10**15
"""Bounds of integers, and of other numbers, that llguidance can write; the last one also where there is no other bound."""

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_HOPS = 16
_UNSAFE_IN_REFERENCES = "/%:@!$&'()*+,;=-._~?#"


class Relaxed:
    """A schema that llguidance can read.

    Attributes:
        schema: the readable schema.
        notes: what it leaves open that the original does not: keywords, with their places.

    Raises:
        InvalidRequestError: it is nested too deeply.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._added: dict[str, Any] = {}
        self.notes: list[str] = []
        self.schema: dict[str, Any] = self._object(schema, "", 1)
        if self._added:
            self.schema["$defs"] = {**self.schema.get("$defs", {}), **self._added}

    def _relax(self, keyword: str, place: str) -> None:
        self.notes.append(f"{keyword} at {place or '/'}")

    def _any(self, schema: Any, place: str, depth: int) -> Any:
        if not isinstance(schema, Mapping):
            return schema
        if schema.get("not") in (True, {}):
            return False
        return self._object(schema, place, depth)

    def _object(self, schema: Mapping[str, Any], place: str, depth: int) -> dict[str, Any]:
        if depth > MAX_JSON_DEPTH:
            raise InvalidRequestError(f"a schema is nested deeper than {MAX_JSON_DEPTH}: make it flatter", param="json")
        found = dict(schema)
        for change in _CHANGES:
            change(self, found, place)
        for key, value in found.items():
            within = f"{place}/{escaped(key)}"
            if key in NAMED and isinstance(value, Mapping):
                found[key] = {
                    name: self._any(one, f"{within}/{escaped(name)}", depth + 1) for name, one in value.items()
                }
            elif key in _LISTED and isinstance(value, list | tuple):
                found[key] = [self._any(one, f"{within}/{at}", depth + 1) for at, one in enumerate(value)]
            elif key in _NESTED:
                found[key] = self._any(value, within, depth + 1)
        return found

    # ── keyword by keyword ──────────────────────────────────────────────────────────────────────

    def _references(self, schema: dict[str, Any], place: str) -> None:
        ref = schema.get("$ref")
        if isinstance(ref, str) and ref.startswith("#"):
            schema["$ref"] = quote(ref, safe=_UNSAFE_IN_REFERENCES)

    def _property_names(self, schema: dict[str, Any], place: str) -> None:
        """Names of a kind become properties, or a pattern that they match."""
        names = schema.pop("propertyNames", None)
        resolved = self._resolved(names)
        known = resolved.keys() - {"type", "title", "description", "default", PLACE}
        if names in (None, True) or (not known and resolved.get("type", "string") == "string"):
            return
        value = schema.get("additionalProperties", True)
        listed = [resolved["const"]] if "const" in resolved else resolved.get("enum")
        low, high = resolved.get("minLength", 0), resolved.get("maxLength", "")
        if isinstance(listed, list) and known <= {"enum", "const"} and "patternProperties" not in schema:
            own = schema.get("properties") or {}
            schema["properties"] = {**{name: value for name in listed if isinstance(name, str)}, **own}
        elif known == {"pattern"} and isinstance(resolved["pattern"], str):
            schema["patternProperties"] = {**schema.get("patternProperties", {}), resolved["pattern"]: value}
        elif known <= {"minLength", "maxLength"}:
            schema["patternProperties"] = {**schema.get("patternProperties", {}), f"^(?s:.){{{low},{high}}}$": value}
        else:
            self._relax("propertyNames", place)
            return
        schema["additionalProperties"] = False

    def _one_of(self, schema: dict[str, Any], place: str) -> None:
        """Options that exclude each other by a tag may be any of them; others, too, but then two may fit at once."""
        options = schema.get("oneOf")
        if not isinstance(options, list) or "anyOf" in schema:
            return
        discriminator = schema.pop("discriminator", None)
        tag = discriminator.get("propertyName") if isinstance(discriminator, Mapping) else None
        resolved = [self._resolved(one) for one in options]
        if isinstance(tag, str) and _disjoint([_values(one, tag) for one in resolved]):
            # The tag may be optional, because it has a default. With it, the text says which option it is.
            schema["anyOf"] = [
                one if tag in (whole.get("required") or ()) else self._requiring(tag, one, whole)
                for one, whole in zip(options, resolved, strict=True)
            ]
        else:
            schema["anyOf"] = options
            kinds = [{one["type"]} if isinstance(one.get("type"), str) else None for one in resolved]
            shared = {name for one in resolved for name in one.get("required") or () if isinstance(name, str)}
            if not _disjoint(kinds) and not any(_tagged(resolved, name) for name in shared):
                self._relax("oneOf", place)
        del schema["oneOf"]

    def _requiring(self, tag: str, schema: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
        """A schema that also requires a property; behind a reference, which may lead back here, it is a new definition."""
        whole = {**resolved, "required": _with(resolved.get("required"), tag)}
        if "$ref" not in schema:
            return whole
        name = f"{schema['$ref'].rpartition('/')[2]} with {tag}"
        if name not in self._added:
            self._added[name] = {}
            self._added[name] = self._object(whole, f"/$defs/{escaped(name)}", 1)
        return {"$ref": f"#/$defs/{escaped(name)}"}

    def _numbers(self, schema: dict[str, Any], place: str) -> None:
        for name in _BOUNDS:
            bound = schema.get(name)
            if isinstance(bound, bool) or not isinstance(bound, int | float):
                continue
            is_integer = schema.get("type") == "integer"
            low, high = (_LOWEST, _HIGHEST) if is_integer else (-_FURTHEST, _FURTHEST)
            # A bound on the other side of what can be written still says something.
            if (bound < low and "inimum" in name) or (bound > high and "aximum" in name):
                del schema[name]
                self._relax(name, place)
            elif not low <= bound <= high:
                schema[name] = -_FAR if bound < low else _FAR
                self._relax(name, place)

    def _strings(self, schema: dict[str, Any], place: str) -> None:
        pattern, form = schema.get("pattern"), schema.get("format")
        if isinstance(pattern, str):
            plain = without_assertions(pattern)
            if plain != pattern:
                self._relax("pattern", place)
                schema["pattern"] = plain
            if plain is None:
                del schema["pattern"]
        if isinstance(form, str) and form not in _FORMATS:
            del schema["format"]
            if "pattern" in schema:  # zod's formats are names of its patterns
                return
            if form in _AS_PATTERNS and schema.get("type", "string") == "string":
                schema["pattern"] = _AS_PATTERNS[form]
            else:
                self._relax(f"format {form}", place)

    def _negations(self, schema: dict[str, Any], place: str) -> None:
        if "not" not in schema:
            return
        if schema.pop("not") is not False:
            self._relax("not", place)

    def _closed(self, schema: dict[str, Any], place: str) -> None:
        """Where nothing else evaluates properties, those that are unevaluated are the additional ones."""
        if "unevaluatedProperties" not in schema:
            return
        rest = schema.pop("unevaluatedProperties")
        if rest is True or rest == {}:
            return
        others = {"allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas", "additionalProperties"}
        if others & schema.keys():
            self._relax("unevaluatedProperties", place)
        else:
            schema["additionalProperties"] = rest

    def _others(self, schema: dict[str, Any], place: str) -> None:
        if schema.pop("uniqueItems", False):
            self._relax("uniqueItems", place)
        for name in _UNKNOWN:
            if name in schema:
                del schema[name]
                self._relax(name, place)

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        """A schema, after following its references into the document."""
        for _ in range(_HOPS):
            if not isinstance(schema, Mapping) or not isinstance(ref := schema.get("$ref"), str):
                break
            found = _at(self._root, ref)
            beside = {name: one for name, one in schema.items() if name != "$ref"}
            schema = {**found, **beside} if isinstance(found, Mapping) else {}
        return schema if isinstance(schema, Mapping) else {}


_CHANGES: tuple[Callable[[Relaxed, dict[str, Any], str], None], ...] = (
    Relaxed._references, Relaxed._property_names, Relaxed._closed, Relaxed._one_of, Relaxed._numbers, Relaxed._strings,
    Relaxed._negations, Relaxed._others,
)  # fmt: skip


def _at(root: Any, ref: str) -> Any:
    """What a local reference points to; None if there is nothing."""
    if not ref.startswith("#"):
        return None
    found = root
    for step in unquote(ref[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(name)
        elif isinstance(found, Sequence) and not isinstance(found, str) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found


def _values(schema: Mapping[str, Any], name: str) -> set[str] | None:
    """The values that a property may have, as text; None if it may have others."""
    known = schema.get("properties")
    part = known.get(name) if isinstance(known, Mapping) else None
    if not isinstance(part, Mapping):
        return None
    listed = [part["const"]] if "const" in part else part.get("enum")
    return {repr(one) for one in listed} if isinstance(listed, list) else None


def _tagged(options: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a property that all options require tells them apart."""
    required = all(isinstance(one.get("required"), list) and name in one["required"] for one in options)
    return required and _disjoint([_values(one, name) for one in options])


def _disjoint(sets: Sequence[set[str] | None]) -> bool:
    known = [one for one in sets if one is not None]
    all_of_them = set[str]().union(*known)
    apart = sum(map(len, known)) == len(all_of_them) and not {"integer", "number"} <= all_of_them
    return apart and len(known) == len(sets)


def _with(required: Any, name: str) -> list[Any]:
    names = list(required) if isinstance(required, list) else []
    return names if name in names else [*names, name]


def without_assertions(pattern: str) -> str | None:
    """Remove from a regular expression what no automaton knows: lookahead, lookbehind and word boundaries.

    The result matches all that the expression matched before. None if it refers to its own groups.
    """
    pieces, depth = list[str](), 0
    for kind, text in _tokens(pattern):
        if depth:
            depth += {"(": 1, ")": -1}.get(kind, 0)
        elif kind == "(" and text in ("(?=", "(?!", "(?<=", "(?<!"):
            depth = 1
        elif kind == "back":
            return None
        elif kind != "boundary":
            pieces.append(text)
    return "".join(pieces)


_TOKEN = re.compile(r"(?P<back>\\[1-9]|\\k<[^>]*>)|(?P<boundary>\\[bB])|(?P<escape>\\.)|(?P<open>\((?:\?(?:<[=!]|[=!]|:|<[^>]*>|[a-z-]+:))?)|(?P<close>\))|(?P<class>\[\^?\]?(?:[^\]\\]|\\.)*\])|(?P<other>.)", re.DOTALL)  # fmt: skip


def _tokens(pattern: str) -> Iterator[tuple[str, str]]:
    for found in _TOKEN.finditer(pattern):
        kind = found.lastgroup or ""
        yield {"open": "(", "close": ")"}.get(kind, kind), found[0]


def escaped(name: str) -> str:
    """A name in a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")
