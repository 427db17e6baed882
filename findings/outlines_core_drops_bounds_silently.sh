#!/usr/bin/env bash
# outlines-core 0.2.14, llguidance 1.9.1.
# What outlines-core does not know it refuses (a format, a schema without a type), but bounds of numbers, "uniqueItems", "contains", "maxProperties"
# and required names without a property it drops without a word: the regex accepts what the schema forbids. llguidance obeys the
# bounds and names, and answers the two others with an error. Validate what was generated, whichever library constrained it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet outlines-core==0.2.14 llguidance==1.9.1
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import json
import re
import sys
from importlib.metadata import version

from llguidance import LLMatcher, LLTokenizer
from outlines_core.json_schema import build_regex_from_schema

tokenizer = LLTokenizer("byte")


def llguidance(schema: dict, text: str) -> str:
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    if matcher.is_error():
        return "error"
    tokens = tokenizer.tokenize_str(text)
    return "accepts" if matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting() else "refuses"


def outlines(schema: dict, text: str) -> str:
    try:
        regex = build_regex_from_schema(json.dumps(schema))
    except Exception:
        return "error"
    return "accepts" if re.fullmatch(regex, text) else "refuses"


integer = {"type": "integer"}
# Each text violates its schema.
cases = [
    (integer | {"minimum": 3}, "1"),
    (integer | {"exclusiveMinimum": 0, "maximum": 10}, "77"),
    ({"type": "array", "items": integer, "uniqueItems": True}, "[1,1]"),
    ({"type": "array", "items": integer, "contains": {"const": 1}}, "[2]"),
    ({"type": "object", "additionalProperties": integer, "maxProperties": 1}, '{"y":1,"z":2}'),
    ({"type": "object", "properties": {"a": integer}, "required": ["a", "z"]}, '{"a":1}'),
    ({"type": "string", "format": "ipv4"}, '"x"'),
]
print("outlines-core", version("outlines-core"), "llguidance", version("llguidance"))
seen = []
for schema, text in cases:
    seen.append((outlines(schema, text), llguidance(schema, text)))
    print(f"outlines-core {seen[-1][0]:8s} llguidance {seen[-1][1]:8s} {text:14s} {json.dumps(schema)}")
expected = [("accepts", "refuses")] * 2 + [("accepts", "error")] * 2 + [("accepts", "refuses")] * 2 + [("error", "refuses")]
sys.exit(seen != expected)
PYTHON
