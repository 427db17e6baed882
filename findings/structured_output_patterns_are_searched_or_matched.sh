#!/usr/bin/env bash
# llguidance 1.9.1, outlines-core 0.2.14, lm-format-enforcer 0.11.3.
# JSON Schema searches a string for its "pattern": {"pattern": "b"} is about strings that contain a b. llguidance does so; outlines-core
# and lm-format-enforcer take the pattern for the whole string, so "b" is all that can be generated; and for "^a|b$", where each anchor
# belongs to one branch, outlines-core accepts nothing that the other two accept. Write ^(?:...)$ or .*(?:...).* to mean one thing everywhere.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet llguidance==1.9.1 outlines-core==0.2.14 lm-format-enforcer==0.11.3
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import json
import re
import sys
from importlib.metadata import version

from llguidance import LLMatcher, LLTokenizer
from lmformatenforcer import JsonSchemaParser
from outlines_core.json_schema import build_regex_from_schema

tokenizer = LLTokenizer("byte")


def llguidance(schema: dict, text: str) -> bool:
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)))
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def outlines(schema: dict, text: str) -> bool:
    return re.fullmatch(build_regex_from_schema(json.dumps(schema)), text) is not None


def enforcer(schema: dict, text: str) -> bool:
    parser = JsonSchemaParser(schema)
    for character in text:
        if character not in parser.get_allowed_characters():
            return False
        parser = parser.add_character(character)
    return parser.can_end()


for name in ("llguidance", "outlines-core", "lm-format-enforcer"):
    print(name, version(name))
cases = [("b", '"b"'), ("b", '"abc"'), ("^(?:b)$", '"b"'), ("^(?:b)$", '"abc"'), ("^a|b$", '"a"'), ("^a|b$", '"ax"'), ("^a|b$", '"xb"')]
seen = []
for pattern, text in cases:
    schema = {"type": "string", "pattern": pattern}
    seen.append((llguidance(schema, text), outlines(schema, text), enforcer(schema, text)))
    print(f"{pattern:8s} {text:6s} llguidance {seen[-1][0]}, outlines-core {seen[-1][1]}, lm-format-enforcer {seen[-1][2]}")
all_of, none, first = (True, True, True), (False, False, False), (True, False, False)
sys.exit(seen != [all_of, first, all_of, none, (True, False, True), first, first])
PYTHON
