#!/usr/bin/env bash
# llguidance 1.9.1.
# Strings of llguidance's JSON take printable characters only as themselves: \u0041, \/ and surrogate pairs, which are JSON too, are refused.
# The character DEL is the other way round: JSON allows it as itself, llguidance as \u007f alone. A model that has learned to write é or an
# emoji as escapes (json.dumps does by default) is forced out of them in the middle of a word. Show it text made with ensure_ascii=False.
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


expected = {
    '"é"': True, json.dumps("é"): False, json.dumps("😀"): False, '"\\u0041"': False, '"a/b"': True, '"a\\/b"': False,
    '"\x7f"': False, '"\\u007f"': True, '"\\u0001"': True, '"\\n"': True, '"\\u000a"': True,
}
print("llguidance", version("llguidance"))
seen = {}
for text in expected:
    json.loads(text)  # all of them are JSON
    seen[text] = accepts({"type": "string"}, text)
    print(f"{ascii(text):18s} accepted: {seen[text]}")
sys.exit(seen != expected)
PYTHON
