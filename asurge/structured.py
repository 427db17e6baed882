"""The form that a request's text must have."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from asurge.errors import InvalidRequestError
from asurge.json_schema import MAX_JSON_DEPTH

MAX_GRAMMAR_BYTES = 256 << 10
MAX_CHOICE_OPTIONS = 4096
JSON_WHITESPACE = r"(\x20|\n{1,2}[\x20\t]{0,20})?"
"""Between the tokens of JSON: enough for what models write, and no endless blanks (llama.cpp's rule)."""

FORMS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GuidedDecodingParams:
    """Structured output: one form that the text must have.

    Checked for kind and size when made, compiled when the request is admitted.

    Attributes:
        json: a JSON schema, as a mapping or as text.
        json_object: any JSON object.
        regex: a regular expression (Rust's syntax; digits are ASCII) that the whole text matches.
        choice: one of these texts.
        grammar: a grammar in Lark's syntax, or llama.cpp's GBNF (recognised by its ``::=``).
        structural_tag: free text in which what follows a trigger has a form: ``{"structures": [{"begin": ..., "schema": ...,
            "end": ...}], "triggers": [...]}``, as a mapping or as text (the format of vLLM and XGrammar).
        whitespace_pattern: between the tokens of JSON; default: a space, or up to two line breaks and an indent.
        disable_any_whitespace: no whitespace between the tokens of JSON.
        alternative: a grammar like ``grammar``: the text may have its form instead, as calls of tools have it.

    Raises:
        InvalidRequestError: not exactly one form is given, or it is of the wrong kind, too large or too deep.
    """

    json: Mapping[str, Any] | str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    structural_tag: Mapping[str, Any] | str | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool = False
    alternative: str | None = None

    def __post_init__(self) -> None:
        given = [form for form in FORMS if getattr(self, form) not in (None, False)]
        if len(given) != 1:
            raise InvalidRequestError(
                f"guided_decoding gives {' and '.join(given) or 'no form'}: give exactly one of {', '.join(FORMS)}",
                param="guided_decoding",
            )
        for form in ("json", "structural_tag"):
            if getattr(self, form) is not None:
                object.__setattr__(self, form, _document(f"guided_decoding.{form}", getattr(self, form)))
        for form in ("regex", "grammar", "whitespace_pattern", "alternative"):
            if getattr(self, form) is not None:
                _text(f"guided_decoding.{form}", getattr(self, form))
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        if self.structural_tag is not None:
            _check_tag(self.structural_tag)

    @property
    def form(self) -> str:
        """Name of the form that is given."""
        return next(form for form in FORMS if getattr(self, form) not in (None, False))


StructuredOutputsParams = GuidedDecodingParams
"""vLLM's newer name of the same class."""


def shown(value: object) -> str:
    """A value in an error message, however large it is."""
    return reprlib.repr(value)


def check_unicode(name: str, text: str) -> None:
    """Check that a text can be encoded in UTF-8.

    Raises:
        InvalidRequestError: a text holds lone surrogates, which nothing can encode.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{name} is not valid Unicode at character {error.start}: replace lone surrogates", param=name
        ) from error


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"{name}={shown(value)} must be a non-empty string", param=name)
    check_unicode(name, value)
    _check_size(name, len(value.encode()))


def _check_size(name: str, size: int) -> None:
    if size > MAX_GRAMMAR_BYTES:
        raise InvalidRequestError(f"{name} has {size} bytes: at most {MAX_GRAMMAR_BYTES} are allowed", param=name)


def _document(name: str, value: Any) -> str:
    """JSON as text, its keys in the order given: the order of properties is part of a schema."""
    if isinstance(value, str):
        _text(name, value)
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{name} is not JSON: {error}", param=name) from error
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{name} must be a JSON object, not {type(value).__name__}", param=name)
    if _depth(value) > MAX_JSON_DEPTH:
        raise InvalidRequestError(f"{name} is nested deeper than {MAX_JSON_DEPTH}: make it flatter", param=name)
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{name} is not JSON: {error}", param=name) from error
    _check_size(name, len(text))
    return text


def _depth(value: Any) -> int:
    """How deep a document is nested; stops looking beyond the limit, so that no recursion can be provoked."""
    level, depth = [value], 0
    while level and depth <= MAX_JSON_DEPTH:
        depth += 1
        inner: list[Any] = []
        for one in level:
            inner.extend(one.values() if isinstance(one, Mapping) else one if isinstance(one, list | tuple) else ())
        level = inner
    return depth


def _choices(given: Any) -> tuple[str, ...]:
    name = "guided_decoding.choice"
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise InvalidRequestError(f"{name}={shown(given)} must be a non-empty list of strings", param=name)
    if len(given) > MAX_CHOICE_OPTIONS:
        raise InvalidRequestError(
            f"{name} has {len(given)} entries: at most {MAX_CHOICE_OPTIONS} are allowed", param=name
        )
    for index, one in enumerate(given):
        _text(f"{name}[{index}]", one)
    _check_size(name, sum(len(one) for one in given))
    return tuple(given)


def _check_tag(text: Any) -> None:
    name, tag = "guided_decoding.structural_tag", json.loads(text)
    structures, triggers = tag.get("structures"), tag.get("triggers")
    if not isinstance(structures, list) or not structures:
        raise InvalidRequestError(f"{name}.structures must be a non-empty list", param=f"{name}.structures")
    if not isinstance(triggers, list) or not all(isinstance(one, str) and one for one in triggers):
        raise InvalidRequestError(f"{name}.triggers must be a list of non-empty strings", param=f"{name}.triggers")
    for index, one in enumerate(structures):
        where = f"{name}.structures[{index}]"
        if not isinstance(one, dict) or not isinstance(one.get("begin"), str) or not isinstance(one.get("end"), str):
            raise InvalidRequestError(f"{where} must have the strings begin and end", param=where)
        if not isinstance(one.get("schema"), dict):
            raise InvalidRequestError(f"{where}.schema must be a JSON schema", param=f"{where}.schema")
        if not any(one["begin"].startswith(trigger) for trigger in triggers):
            raise InvalidRequestError(f"{where}.begin={one['begin']!r} starts with none of the triggers", param=where)
