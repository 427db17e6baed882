#!/usr/bin/env bash
# tiktoken 0.14.0, tokenizers 0.23.3.
# Text that the pattern of a tiktoken encoding does not match is dropped: no token, no error. tokenizers' Split with the same pattern keeps what
# lies between matches as pieces of their own. A pattern that was shortened, or ported with one branch lost, thus loses punctuation
# or blanks in tiktoken alone. Test that decode(encode(text)) is the text.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet tiktoken==0.14.0 tokenizers==0.23.3
cd "$work" && "$work/env/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import tiktoken
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

PATTERN = r" ?\w+|\s+"  # no branch for punctuation
TEXT = "Well, this: (works)!"
ranks = {bytes([byte]): byte for byte in range(256)}
encoding = tiktoken.Encoding("finding", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
core = Tokenizer(models.BPE({letter: at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
core.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
)
core.decoder = decoders.ByteLevel()
seen = encoding.decode(encoding.encode(TEXT)), core.decode(core.encode(TEXT).ids)
print("tiktoken", version("tiktoken"), "tokenizers", version("tokenizers"))
print(f"{TEXT!r} comes back from tiktoken as {seen[0]!r}, from tokenizers as {seen[1]!r}")
sys.exit(seen != ("Well this works", TEXT))
PYTHON
