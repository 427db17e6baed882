#!/usr/bin/env bash
# llguidance 1.9.1.
# An integer of a schema that is beyond 2**53 passes through a float: {"const": 9007199254740993} accepts 9007199254740992 alone, and its
# own value never; "minimum" lets through what lies just below. Identifiers of 64 bits in "const" or "enum" thus come out wrong with the
# schema obeyed. Give such identifiers as strings, or refuse them before the schema is compiled.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet llguidance==1.9.1
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import json
import sys
from importlib.metadata import version

from llguidance import LLMatcher, LLTokenizer

tokenizer = LLTokenizer("byte")


def accepts(schema: dict, text: str) -> bool:
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


print("llguidance", version("llguidance"))
own, rounded = {}, {}
for number in (2**53 - 1, 2**53 + 1, 1234567890123456789):
    for form, schema in (("const", {"const": number}), ("enum", {"enum": [number]})):
        own[number, form] = accepts(schema, str(number))
        rounded[number, form] = accepts(schema, str(int(float(number))))
        print(f"{form:5s} {number}: accepts itself {own[number, form]}, accepts {int(float(number))} {rounded[number, form]}")
below = accepts({"type": "integer", "minimum": 2**53 + 1}, str(2**53))
print(f"minimum {2**53 + 1} accepts {2**53}: {below}")
as_seen = all(accepted == (number < 2**53) for (number, _), accepted in own.items()) and all(rounded.values()) and below
sys.exit(not as_seen)
PYTHON
