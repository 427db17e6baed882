#!/usr/bin/env bash
# tiktoken 0.14.0, tokenizers 0.23.3.
# tiktoken looks a whole piece up before it merges: a token that no merges lead to ("abc" without "ab" and "bc") is found where it is a piece by
# itself, and not inside a longer one. tokenizers' BPE from the same tokens and merges never finds it, unless ignore_merges is set. Many
# converted vocabularies have such tokens: set ignore_merges for those that come from tiktoken.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet tiktoken==0.14.0 tokenizers==0.23.3
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import tiktoken
from tokenizers import Tokenizer, models

ranks = {bytes([byte]): byte for byte in range(256)} | {b"abc": 256, b"de": 257}
encoding = tiktoken.Encoding("finding", pat_str=r"\w+", mergeable_ranks=ranks, special_tokens={})
vocabulary = {chr(byte): byte for byte in range(256)} | {"abc": 256, "de": 257}
merging, looking = (Tokenizer(models.BPE(vocabulary, [("d", "e")], ignore_merges=ignore)) for ignore in (False, True))
print("tiktoken", version("tiktoken"), "tokenizers", version("tokenizers"))
seen = {}
for text in ("de", "abc", "abcde"):
    seen[text] = [len(ids) for ids in (encoding.encode(text), merging.encode(text).ids, looking.encode(text).ids)]
    print(f"{text:6s} tokens: tiktoken {seen[text][0]}, tokenizers {seen[text][1]}, with ignore_merges {seen[text][2]}")
sys.exit(seen != {"de": [1, 1, 1], "abc": [1, 3, 1], "abcde": [4, 4, 4]})
PYTHON
