"""Small random checkpoints in Hugging Face's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from transformers import PreTrainedTokenizerFast

from asurge.models import family_for
from asurge.models.weights.checkpoint import checkpoint_table
from tests.text.families import FAMILIES

CONFIG: dict[str, Any] = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=400, hidden_size=32, intermediate_size=64,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=256,
    tie_word_embeddings=True, hidden_act="silu",
)  # fmt: skip
TEMPLATE = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"


def random_tokens(count: int, seed: int = 5) -> list[int]:
    """Ordinary tokens of `write_tiny`."""
    return [int(token) for token in np.random.default_rng(seed).integers(4, 390, count)]


def write_tiny(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Config, random weights and tokenizer."""
    raw = {**CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps(raw))
    rng = np.random.default_rng(seed)
    table = checkpoint_table(family_for(raw).config(raw))
    tensors = {
        source.name: (rng.normal(size=source.shape) * (0.3 if len(source.shape) > 1 else 0.1)).astype(np.float32)
        for sources in table.values()
        for source in sources
    }
    save_file(tensors, folder / "model.safetensors")
    fast = PreTrainedTokenizerFast(tokenizer_object=FAMILIES["byte-level BPE"](), bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder
