"""Schemas as pydantic, zod and servers of MCP write them: what grammars can say of them is held, the rest is told."""

from __future__ import annotations

import datetime
import decimal
import enum
import ipaddress
import json
import pathlib
import uuid
from typing import Annotated, Any, Generic, Literal, TypeVar

import jsonschema
import pydantic
import pytest

from asurge.errors import InvalidRequestError
from asurge.guidance import SequenceConstraint
from asurge.json_schema import MAX_JSON_DEPTH, Relaxed, without_assertions
from tests.guidance.walks import VOCAB, start, walk
from tests.text.families import tokenizer

FAMILY = "byte-level BPE"
ENDS = tokenizer(FAMILY).eos_token_ids
TAGGED = {
    "$defs": {
        "A": {"type": "object", "properties": {"kind": {"const": "a", "default": "a"}, "x": {"type": "integer"}}, "required": ["x"]},
        "B": {"type": "object", "properties": {"kind": {"const": "b", "default": "b"}, "y": {"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}], "discriminator": {"propertyName": "kind"}}}},
    },
    "discriminator": {"propertyName": "kind"},
    "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
}  # fmt: skip
ONE: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
BIG = 2**63

CASES: dict[str, tuple[dict[str, Any], list[Any], list[Any], list[str]]] = {
    # a schema, values it takes, values it does not take, and what is told
    "a record": ({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "number"}}, [{}, {"x": 1.5}], [{"x": "y"}], []),
    "a record of known keys": ({"type": "object", "propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "integer"}}, [{}, {"a": 1}, {"a": 1, "b": 2}], [{"c": 1}, {"a": "x"}], []),
    "a record of keys elsewhere": ({"$defs": {"K": {"enum": ["a"], "type": "string"}}, "type": "object", "propertyNames": {"$ref": "#/$defs/K"}, "additionalProperties": {"type": "integer"}}, [{"a": 1}], [{"b": 1}], []),
    "a record of keys with a pattern": ({"type": "object", "propertyNames": {"pattern": "^x-"}, "additionalProperties": True}, [{"x-a": 1}], [{"y": 1}], []),
    "a record of keys of a length": ({"type": "object", "propertyNames": {"minLength": 1, "maxLength": 2}}, [{"ab": 1}], [{"abc": 1}], []),
    "a record of keys with a format": ({"type": "object", "propertyNames": {"format": "uuid"}}, [{"x": 1}], [], ["propertyNames at /"]),
    "options with a tag that has a default": (TAGGED, [{"kind": "a", "x": 1}, {"kind": "b", "y": {"kind": "a", "x": 2}}], [{"kind": "b", "x": "1", "y": 3}, {"x": 1}], []),
    "options of different types": ({"oneOf": [{"type": "string"}, {"type": "null"}]}, ["a", None], [1], []),
    "options that both require a tag": ({"oneOf": [{**ONE, "properties": {"a": {"const": 1}}}, {**ONE, "properties": {"a": {"const": 2}}}]}, [{"a": 1}, {"a": 2}], [{"a": 3}], []),
    "options that overlap": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, [1, 1.5], ["x"], ["oneOf at /"]),
    "64 bits": ({"type": "integer", "minimum": -BIG, "maximum": BIG - 1}, [0, BIG - 1, -BIG], [1.5], ["minimum at /"]),
    "64 bits without a sign": ({"type": "integer", "minimum": 0, "maximum": 2 * BIG - 1}, [0, BIG, 2 * BIG - 1], [-1], ["maximum at /"]),
    "the upper half": ({"type": "integer", "minimum": BIG, "maximum": 2 * BIG - 1}, [BIG, 2 * BIG - 1], [5, -1], ["minimum at /", "maximum at /"]),
    "53 bits": ({"type": "integer", "minimum": 1 - 2**53, "maximum": 2**53 - 1}, [2**53 - 1, 1 - 2**53], [2**53], []),
    "below nothing that can be written": ({"type": "integer", "exclusiveMaximum": -BIG}, [-2 * BIG], [1], ["exclusiveMaximum at /"]),
    "32 bits of a float": ({"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4028234663852886e38}, [0.5, -1e30], ["x"], ["minimum at /", "maximum at /"]),
    "a reference": ({"type": "string", "format": "uri-reference"}, ["/a?b=c#d", ""], ["a b"], []),
    "base64": ({"type": "string", "format": "base64"}, ["YWI="], ["YWI", "?"], []),
    "brackets in a name": ({"$defs": {"Page[int]": {"type": "integer"}}, "$ref": "#/$defs/Page[int]"}, [1], ["x"], []),
    "blanks and others in a name": ({"$defs": {"a b<c>|é": {"type": "integer"}}, "items": {"$ref": "#/$defs/a b<c>|é"}, "type": "array"}, [[1]], [["x"]], []),
    "a set": ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, [["a"]], [[1]], ["uniqueItems at /"]),
    "no set": ({"type": "array", "uniqueItems": False}, [[1, 1]], [], []),
    "a path": ({"properties": {"p/~": {"type": "string", "format": "path"}}, "type": "object"}, [{"p/~": "/x"}], [{"p/~": 1}], ["format path at /properties/p~1~0"]),
    "a format beside a pattern": ({"type": "string", "format": "starts_with", "pattern": "^a.*"}, ["ab"], ["b"], []),
    "never": ({"type": "object", "properties": {"a": {"not": {}}, "b": {"type": "integer"}}, "additionalProperties": False}, [{"b": 1}, {}], [{"a": 1}], []),
    "not": ({"type": "string", "not": {"const": "a"}}, ["b"], [1], ["not at /"]),
    "not nothing": ({"type": "string", "not": False}, ["b"], [1], []),
    "nothing unevaluated": ({**ONE, "unevaluatedProperties": False}, [{"a": 1}], [{"a": 1, "b": 2}], []),
    "nothing unevaluated beside others": ({"allOf": [ONE], "unevaluatedProperties": False}, [{"a": 1}], [{"a": "x"}], ["unevaluatedProperties at /"]),
    "if": ({**ONE, "if": {"required": ["a"]}, "then": {"required": ["b"]}}, [{"a": 1}], [{"a": "x"}], ["if at /", "then at /"]),
    "what depends": ({**ONE, "dependentRequired": {"a": ["b"]}}, [{"a": 1}], [{"a": "x"}], ["dependentRequired at /"]),
    "contains": ({"type": "array", "contains": {"type": "string"}, "minContains": 1}, [["a"]], ["a"], ["contains at /", "minContains at /"]),
    "looking ahead": ({"type": "string", "pattern": "^(?!x)[a-z]+$"}, ["ab"], ["1"], ["pattern at /"]),
    "its own groups": ({"type": "string", "pattern": r"^(a)\1$"}, ["aa"], [1], ["pattern at /"]),
    "words of an author": ({**ONE, "nullable": True, "example": {"a": 1}, "x-order": 1, "deprecated": True, "$comment": "c"}, [{"a": 1}], [{"a": "x"}], []),
    "a property of a keyword's name": ({"type": "object", "properties": {"not": {"type": "integer"}, "if": {"type": "string"}}, "required": ["not", "if"]}, [{"not": 1, "if": "x"}], [{"not": "x", "if": "x"}], []),
    "data of a keyword's name": ({"const": {"not": {}, "uniqueItems": True}}, [{"not": {}, "uniqueItems": True}], [{}], []),
}  # fmt: skip


def accepts(schema: dict[str, Any], value: Any) -> bool:
    state = start(FAMILY, json=schema)
    try:
        for token in tokenizer(FAMILY).encode(json.dumps(value, ensure_ascii=False), add_special_tokens=False):
            state.accept(token)
    except Exception:
        return False
    return state.is_accepting


@pytest.mark.parametrize("case", CASES)
def test_schemas_of_clients(case: str) -> None:
    schema, good, bad, notes = CASES[case]
    assert Relaxed(schema).notes == notes
    for value in good:
        assert accepts(schema, value), value
    for value in bad:
        assert not accepts(schema, value), value


@pytest.mark.parametrize("case", [case for case, (_, _, _, notes) in CASES.items() if not notes])
def test_what_is_not_told_is_held(case: str) -> None:
    schema = CASES[case][0]
    for seed in range(6):
        text = walk(SequenceConstraint(ENDS, VOCAB, grammar=start(FAMILY, json=schema)), seed, limit=4000)
        if text is not None:
            jsonschema.validate(json.loads(text), schema)


class Color(enum.Enum):
    RED, BLUE = "red", "blue"


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    friends: list[Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]] = []


T = TypeVar("T")


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


TYPES: list[Any] = [
    int, float, bool, str, bytes, None, Any, object, decimal.Decimal, datetime.datetime, datetime.date, datetime.time,
    datetime.timedelta, uuid.UUID, pathlib.Path, ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv6Address, complex, Color,
    set[str], frozenset[int], tuple[int, str], tuple[int, ...], dict[str, int], dict[Color, int], dict[Literal["a", "b"], str],
    dict[int, str], dict[uuid.UUID, int], dict[datetime.date, int], list[list[int]], Cat | None, Annotated[Cat | Dog, pydantic.Field(discriminator="kind")],
    Page[int], Page[Cat], pydantic.AnyUrl, pydantic.HttpUrl, pydantic.SecretStr, pydantic.Json, pydantic.Base64Bytes, pydantic.PositiveInt,
    pydantic.conint(ge=-(2**63), lt=2**63), pydantic.confloat(gt=0, lt=1e300),
    pydantic.conlist(int, min_length=1, max_length=3), pydantic.ByteSize, pydantic.AwareDatetime, pydantic.IPvAnyAddress, Literal[1, "a", None],
]  # fmt: skip


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_types_of_pydantic(kind: Any, mode: Any) -> None:
    made = pydantic.create_model("Made", value=(kind, ...))
    start(FAMILY, json=made.model_json_schema(mode=mode))


REFUSED = {
    "nothing behind a reference": {"$ref": "#/$defs/a"},
    "another document": {"$ref": "https://example.com/a.json"},
    "a type that is none": {"type": "strin"},
    "nothing can be": {"type": "object", "properties": {"a": {"not": {}}}, "required": ["a"]},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_approximated_is_refused(case: str) -> None:
    with pytest.raises(InvalidRequestError):
        start(FAMILY, json=REFUSED[case])


def test_depth_is_bounded() -> None:
    deep: dict[str, Any] = {}
    for _ in range(MAX_JSON_DEPTH):
        deep = {"items": deep}
    with pytest.raises(InvalidRequestError, match="deeper"):
        Relaxed(deep)


@pytest.mark.parametrize(
    ("pattern", "plain"),
    [
        ("^a(b|c)$", "^a(b|c)$"), (r"^(?!a(b)c)x(?=y)", "^x"), (r"\bfoo\B", "foo"), (r"[(?=]\(?!", r"[(?=]\(?!"), (r"(?<=a)b(?<!c)", "b"),
        (r"(a)\1", None), (r"(?<n>a)\k<n>", None), (r"\\1", r"\\1"), (r"(?:a)(?<n>b)", r"(?:a)(?<n>b)"), (r"[\b]", r"[\b]"),
    ],
)  # fmt: skip
def test_expressions_without_assertions(pattern: str, plain: str | None) -> None:
    assert without_assertions(pattern) == plain
