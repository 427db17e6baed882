#!/usr/bin/env bash
# json-repair 0.64.6, partial-json-parser 0.2.1.1.post7.
# What a JSON text that is cut off means so far, as with a tool call's arguments while they stream, is read otherwise by the two: json-repair
# makes strings of half a word ("tru") and of a lone minus, which change their type with the next token, and a list of a half key; the other
# completes the word, and leaves out what is open. Show neither's last value to a user before it is closed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet json-repair==0.64.6 partial-json-parser==0.2.1.1.post7
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import json_repair
import partial_json_parser

expected = {
    '{"a": tru': ({"a": "tru"}, {"a": True}),
    '{"a": -': ({"a": ""}, {}),
    '{"a': (["a"], {}),
    '{"a": 12': ({"a": 12}, {"a": 12}),
}
print("json-repair", version("json-repair"), "partial-json-parser", version("partial-json-parser"))
seen = {}
for text in expected:
    seen[text] = json_repair.loads(text), partial_json_parser.loads(text)
    print(f"{text:12s} json-repair {seen[text][0]!r:16} partial-json-parser {seen[text][1]!r}")
sys.exit(seen != expected)
PYTHON
