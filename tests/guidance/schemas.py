"""Random JSON schemas of what is supported, whose texts end soon even when written at random."""

from __future__ import annotations

from typing import Any

import numpy as np

Schema = dict[str, Any]


def schema(rng: np.random.Generator, depth: int = 0) -> Schema:
    kinds = ["null", "boolean", "integer", "number", "string", "pattern", "enum", "const", "format"]
    if depth < 3:
        kinds += ["object", "object", "array", "tuple", "anyOf", "nullable"]
    if depth == 0:
        kinds = ["object", "array", "anyOf", "object", "tuple"]
    kind = kinds[rng.integers(len(kinds))]
    maker = globals().get(f"_{kind}")
    return maker(rng, depth) if maker is not None else {"type": kind}


def _integer(rng: np.random.Generator, depth: int) -> Schema:
    low = int(rng.integers(-1000, 1000))
    return {"type": "integer", "minimum": low, "maximum": low + int(rng.integers(0, 5000))}


def _number(rng: np.random.Generator, depth: int) -> Schema:
    low = float(rng.integers(-50, 50))
    return {"type": "number", "minimum": low, "exclusiveMaximum": low + float(rng.integers(1, 9))}


def _string(rng: np.random.Generator, depth: int) -> Schema:
    low = int(rng.integers(0, 4))
    return {"type": "string", "minLength": low, "maxLength": low + int(rng.integers(0, 12))}


def _pattern(rng: np.random.Generator, depth: int) -> Schema:
    patterns = ("^[a-z]{1,4}$", "^\\d{3}-\\d{4}$", "^(yes|no|maybe)$", "^[A-F0-9]{2,8}$", "^x?y{2}z*$")
    return {"type": "string", "pattern": patterns[rng.integers(len(patterns))]}


def _format(rng: np.random.Generator, depth: int) -> Schema:
    formats = ("date", "uuid", "ipv4")
    return {"type": "string", "format": formats[rng.integers(len(formats))]}


def _enum(rng: np.random.Generator, depth: int) -> Schema:
    values: list[Any] = ["red", "größe", 'q"uote', 1, -2.5, None, True, [1, "a"], {"k": "v"}]
    return {"enum": [values[at] for at in rng.permutation(len(values))[: rng.integers(1, 6)]]}


def _const(rng: np.random.Generator, depth: int) -> Schema:
    return {"const": ["a", 7, {"deep": [None, "b"]}][rng.integers(3)]}


def _object(rng: np.random.Generator, depth: int) -> Schema:
    names = [f"{name}{index}" for index, name in enumerate(rng.choice(["id", "name", "größe", "a b", 'q"'], rng.integers(0, 5)))]  # fmt: skip
    required = [name for name in names if rng.random() < 0.6]
    properties = {name: schema(rng, depth + 1) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(rng: np.random.Generator, depth: int) -> Schema:
    low = int(rng.integers(0, 3))
    return {
        "type": "array",
        "items": schema(rng, depth + 1),
        "minItems": low,
        "maxItems": low + int(rng.integers(0, 3)),
    }


def _tuple(rng: np.random.Generator, depth: int) -> Schema:
    items = [schema(rng, depth + 1) for _ in range(rng.integers(1, 4))]
    return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}


def _anyOf(rng: np.random.Generator, depth: int) -> Schema:  # noqa: N802 - named as the keyword
    return {"anyOf": [schema(rng, depth + 1) for _ in range(rng.integers(1, 4))]}


def _nullable(rng: np.random.Generator, depth: int) -> Schema:
    return {"type": ["string", "null"], "maxLength": int(rng.integers(0, 9))}
