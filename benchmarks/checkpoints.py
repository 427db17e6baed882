"""Checkpoints of real models' shapes with random weights, so that speed can be measured without a download:
``python -m benchmarks.checkpoints S|M|G FOLDER``.

S has the shape of SmolLM2-135M, M that of Qwen3-0.6B, G that of Gemma 3 270M. A folder is what Hugging Face
would hold: config.json, one safetensors file in bfloat16, and a byte-level BPE tokenizer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from asurge.models import family_for
from asurge.models.weights.checkpoint import checkpoint_table

TRAINED_TOKENS = 2048
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
TEXT = Path(__file__).parent.parent / "asurge" / "demo" / "questions.jsonl"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_COMMON: dict[str, Any] = dict(
    hidden_act="silu", attention_bias=False, attention_dropout=0.0, initializer_range=0.02, use_cache=True,
    tie_word_embeddings=True, torch_dtype="bfloat16", bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "S": dict(
        architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=49152, hidden_size=576, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536, max_position_embeddings=8192,
        rms_norm_eps=1e-5, rope_theta=100000.0, mlp_bias=False, **_COMMON,
    ),
    "M": dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", vocab_size=151936, hidden_size=1024,
        num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128, intermediate_size=3072,
        max_position_embeddings=40960, rms_norm_eps=1e-6, rope_theta=1000000.0, use_sliding_window=False,
        sliding_window=None, **_COMMON,
    ),
    "G": dict(
        architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", vocab_size=262144, hidden_size=640,
        num_hidden_layers=18, num_attention_heads=4, num_key_value_heads=1, head_dim=256, intermediate_size=2048,
        max_position_embeddings=32768, rms_norm_eps=1e-6, rope_theta=1000000.0, rope_local_base_freq=10000.0,
        sliding_window=512, sliding_window_pattern=6, query_pre_attn_scalar=256, hidden_activation="gelu_pytorch_tanh",
        **_COMMON,
    ),
}  # fmt: skip


def write_checkpoint(name: str, folder: Path, *, seed: int = 0) -> None:
    """Write the shape ``name`` of `CONFIGS` with seeded weights."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = CONFIGS[name]
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    write_tokenizer(folder, raw["vocab_size"])
    save_file(random_weights(raw, seed), folder / "model.safetensors", metadata={"format": "pt"})


def random_weights(raw: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Tensors by their names in the checkpoint: norms are ones, the rest normal with the config's deviation."""
    rng, tensors = np.random.default_rng(seed), {}
    for sources in checkpoint_table(family_for(raw).config(raw)).values():
        for source in sources:
            if len(source.shape) == 1:
                values = np.ones(source.shape, np.float32)
            else:
                values = rng.standard_normal(source.shape, dtype=np.float32)
                values *= raw["initializer_range"]
            tensors[source.name] = values.astype(ml_dtypes.bfloat16)
    return tensors


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level BPE of ``vocab_size`` entries.

    The first are learnt; the others are words without a merge, so that no text encodes to them but every id has a text. As
    vocabulary entries, 150 thousand of them load in 0.2 s, which added tokens would not.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TRAINED_TOKENS,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train([str(TEXT)], trainer)
    raw = json.loads(core.to_str())
    vocab = raw["model"]["vocab"]
    for number in range(len(vocab), vocab_size):
        vocab[f"Ġword{number}"] = number
    (folder / "tokenizer.json").write_text(json.dumps(raw, ensure_ascii=False))
    settings = dict(
        tokenizer_class="PreTrainedTokenizerFast", bos_token=START, eos_token=END, pad_token=PAD,
        clean_up_tokenization_spaces=False, model_max_length=8192, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Write a checkpoint with random weights.")
    parser.add_argument("name", choices=sorted(CONFIGS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_checkpoint(given.name, given.folder, seed=given.seed)


if __name__ == "__main__":
    main()
