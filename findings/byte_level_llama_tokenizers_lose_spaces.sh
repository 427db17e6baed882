#!/usr/bin/env bash
# transformers 5.3.0 and 5.21.1, against 5.2.0 and 5.22.0.
# A byte-level tokenizer.json (as Llama 3's) whose tokenizer_config.json names LlamaTokenizer is read with SentencePiece's pre-tokenizer from
# 5.3.0 to 5.21.1: spaces are lost, and decoded text is not what was encoded. Before and after, the file is used as it is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/look.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

transformers.logging.set_verbosity_error()
TEXT = "Hello there, world of words"
core = Tokenizer(models.BPE())
core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
core.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
core.train_from_iterator([TEXT] * 9, trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False))
folder = Path("model")
folder.mkdir(exist_ok=True)
core.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}))
(folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
loaded = transformers.AutoTokenizer.from_pretrained("model")
text = loaded.decode(loaded.encode(TEXT, add_special_tokens=False), clean_up_tokenization_spaces=False)
print(f"transformers {transformers.__version__:8s} {type(loaded).__name__:24s} {TEXT!r} comes back as {text!r}")
sys.exit((text == TEXT) != (sys.argv[1] == "kept"))
PYTHON
for case in 5.2.0:kept 5.3.0:lost 5.21.1:lost 5.22.0:kept; do
    python3.11 -m venv --clear "$work/env"
    "$work/env/bin/pip" install --quiet "transformers==${case%:*}"
    ( cd "$work" && HF_HUB_OFFLINE=1 "$work/env/bin/python" -W ignore look.py "${case#*:}" )
done
