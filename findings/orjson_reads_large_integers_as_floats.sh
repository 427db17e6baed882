#!/usr/bin/env bash
# orjson 3.13.0, msgspec 0.23.0.
# An integer of more than 64 bits is an int for json and msgspec, and silently a float for orjson: its last digits are lost, and it satisfies
# "type": "integer" no more. 2**64 comes back as 1.8446744073709552e+19, and orjson refuses to write the int itself. So a tool's arguments
# change their type on the way through two parsers. Use msgspec or json where digits matter.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet orjson==3.13.0 msgspec==0.23.0
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import json
import sys

import msgspec
import orjson

print("orjson", orjson.__version__, "msgspec", msgspec.__version__)
seen = {}
for text in (str(2**64 - 1), str(2**64), "123456789012345678901234567890"):
    seen[text] = [type(parse(text)).__name__ for parse in (json.loads, msgspec.json.decode, orjson.loads)]
    print(f"{text:31s} json {seen[text][0]}, msgspec {seen[text][1]}, orjson {seen[text][2]}; orjson writes it as {orjson.dumps(orjson.loads(text)).decode()}")
try:
    orjson.dumps(2**64)
    wrote = True
except TypeError as error:
    wrote = False
    print("orjson.dumps(2**64):", error)
sys.exit(list(seen.values()) != [["int", "int", "int"], ["int", "int", "float"], ["int", "int", "float"]] or wrote)
PYTHON
