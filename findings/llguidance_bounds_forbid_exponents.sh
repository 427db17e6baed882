#!/usr/bin/env bash
# llguidance 1.9.1.
# {"type": "number"} accepts 1e2 and -0.0. With a bound that they satisfy ("maximum": 100, or "minimum": 0) both are refused, as are all
# exponents: a bound changes which spellings there are, not only which values. A prompt whose examples are written with exponents
# then meets a mask that forbids them, and numbers below 1e-9 need all their zeros. Show bounded numbers in plain decimals.
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


SCHEMAS = [{"type": "number"}, {"type": "number", "minimum": 0}, {"type": "number", "maximum": 100}, {"type": "number", "minimum": -1}]
TEXTS = ["100", "100.0", "1e2", "1E+1", "5e-1", "-0.0"]
print("llguidance", version("llguidance"))
seen = []
for schema in SCHEMAS:
    seen.append({text: accepts(schema, text) for text in TEXTS})
    print(json.dumps(schema), seen[-1])
exponents = [any(row[text] for text in ("1e2", "1E+1", "5e-1")) for row in seen]
plain = [row["100"] and row["100.0"] for row in seen]
sys.exit(not (exponents == [True, False, False, False] and all(plain) and seen[0]["-0.0"] and not seen[1]["-0.0"]))
PYTHON
