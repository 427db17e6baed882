#!/usr/bin/env bash
# transformers 5.24.0 (tokenizers 0.23.3).
# AutoTokenizer takes only vocabulary and merges from a tokenizer.json if tokenizer_config.json names one of some classes, and builds
# normalizer and pre-tokenizer from the class, without a word: GPT2Tokenizer, Qwen2Tokenizer, GPTNeoXTokenizer, CohereTokenizer and
# GemmaTokenizer give other ids than the file itself does. LlamaTokenizer over a byte-level file is noticed, and the file is used.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/env"
"$work/env/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3
cd "$work" && HF_HUB_OFFLINE=1 "$work/env/bin/python" -W ignore - <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

transformers.logging.set_verbosity_error()
TEXT = "It's 2024: naïve ﬁne ＡＢＣ, and\n\n  12345 words"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
core = Tokenizer(models.BPE())
core.normalizer = normalizers.NFKC()
core.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
)
core.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
core.train_from_iterator([TEXT] * 9, trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False))
expected = {"GPT2Tokenizer": False, "Qwen2Tokenizer": False, "GPTNeoXTokenizer": False, "CohereTokenizer": False, "GemmaTokenizer": False,
            "LlamaTokenizer": True, "PreTrainedTokenizerFast": True}
kinds = {"GPT2Tokenizer": "gpt2", "Qwen2Tokenizer": "qwen2", "GPTNeoXTokenizer": "gpt_neox", "CohereTokenizer": "cohere",
         "GemmaTokenizer": "gemma2"}
seen = {}
print("transformers", transformers.__version__)
for name in expected:
    folder = Path(name)
    folder.mkdir()
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}))
    (folder / "config.json").write_text(json.dumps({"model_type": kinds.get(name, "llama")}))
    loaded = transformers.AutoTokenizer.from_pretrained(name)
    seen[name] = loaded.encode(TEXT, add_special_tokens=False) == core.encode(TEXT).ids
    print(f"{name:24s} loaded as {type(loaded).__name__:24s} ids equal the file's: {seen[name]}")
sys.exit(seen != expected)
PYTHON
