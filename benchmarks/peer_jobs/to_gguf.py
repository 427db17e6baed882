"""A checkpoint of `benchmarks.checkpoints` for llama.cpp, with llama.cpp's own converter:
``python to_gguf.py LLAMA_CPP_SOURCES FOLDER --outfile S.gguf --outtype bf16`` (or ``q8_0``), where torch and transformers are.

The converter knows tokenizers by a fingerprint, and these checkpoints' is in no list: it is told that theirs splits text
like GPT-2's, which makes no difference to prompts of token ids.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """The command."""
    sources = Path(sys.argv.pop(1))
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    import convert_hf_to_gguf
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    TextModel._set_vocab_sentencepiece = TextModel._set_vocab_gpt2  # tried first for Llama
    convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
