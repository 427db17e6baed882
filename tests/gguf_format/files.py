"""Tiny GGUF files, made from `tests.checkpoints.write_tiny`'s as llama.cpp's converter does it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, TokenType, get_tensor_name_map, quantize
from safetensors.numpy import load_file

from tests.checkpoints import TEMPLATE, write_tiny
from tests.text.families import FAMILIES

SHAPE: dict[str, Any] = dict(hidden_size=64, intermediate_size=96, head_dim=16, rms_norm_eps=1e-5)
"""Sizes that are multiples of 32: the types' blocks."""

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2ForCausalLM", dict(sliding_window=8, query_pre_attn_scalar=16, hidden_activation="gelu_pytorch_tanh")),
    "gemma3": ("Gemma3ForCausalLM", dict(sliding_window=8, query_pre_attn_scalar=16, hidden_activation="gelu_pytorch_tanh", num_hidden_layers=7)),
    "llama": ("LlamaForCausalLM", dict(tie_word_embeddings=False)),
    "mixtral": ("MixtralForCausalLM", dict(num_local_experts=3, num_experts_per_tok=2, sliding_window=None)),
    "olmo2": ("Olmo2ForCausalLM", dict(tie_word_embeddings=False)),
    "olmo3": ("Olmo3ForCausalLM", dict(num_hidden_layers=4, sliding_window=8, tie_word_embeddings=False)),
    "phi3": ("Phi3ForCausalLM", dict(sliding_window=9, tie_word_embeddings=False)),
    "qwen2": ("Qwen2ForCausalLM", {}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "qwen3moe": ("Qwen3MoeForCausalLM", dict(num_experts=3, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True)),
    "smollm3": ("SmolLM3ForCausalLM", dict(num_hidden_layers=4)),
}  # fmt: skip
"""Model families by llama.cpp's names: the hub's name, and what a config.json has beside `SHAPE`."""

_KEYS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "rope.dimension_count": "head_dim",
    "attention.sliding_window": "sliding_window",
    "expert_count": "num_local_experts num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_ARCHITECTURES = {"mixtral": "llama", "olmo3": "olmo2"}
"""By the names in `MODELS`, where llama.cpp has one architecture for two families."""

_PERMUTED = ("llama", "mixtral", "smollm3")

Tensors = dict[str, np.ndarray]


def write_hub(folder: Path, model: str) -> tuple[Path, dict[str, Any]]:
    """A folder in Hugging Face's form, and its config."""
    architecture, own = MODELS[model]
    folder.mkdir()
    changes = dict(architectures=[architecture], model_type=model, **SHAPE, **own)
    for name in ("hidden_act", "head_dim") if model == "phi3" else ():
        changes.pop(name, None)
    write_tiny(folder, **changes)
    return folder, json.loads((folder / "config.json").read_text())


def gguf_tensors(model: str, raw: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Tensors:
    """The tensors of a config.json's model as llama.cpp's converter names and orders them."""
    architecture = _ARCHITECTURES.get(model, model)
    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(numbers[architecture], raw["num_hidden_layers"])
    found: Tensors = {}
    stacks: dict[str, list[np.ndarray]] = {}
    for name, tensor in sorted(tensors.items()):
        if ".experts." in name:
            before, _, behind = name.partition(".experts.")
            number, _, part = behind.partition(".")
            own = names.get_name(f"{before}.experts.{part}", try_suffixes=(".weight",))
            stacks.setdefault(str(own), []).insert(int(number), tensor)
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert own is not None, name
        if model.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if model in _PERMUTED and f"{part}.weight" in name:
                count = raw[heads]
                tensor = tensor.reshape(count, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        found[own] = np.ascontiguousarray(tensor)
    return found | {name: np.stack(parts) for name, parts in stacks.items()}


def write_gguf(
    path: Path,
    model: str,
    raw: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    change: Callable[[GGUFWriter], None] = lambda _: None,
) -> Path:
    """A file with these tensors, matrices in ``kind``.

    Args:
        change: adds more metadata.
    """
    architecture = _ARCHITECTURES.get(model, model)
    writer = GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    writer.add_license("apache-2.0")
    for key, names in _KEYS.items():
        value = next((raw[name] for name in names.split() if raw.get(name) is not None), None)
        if value is not None:
            writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", raw["rms_norm_eps"])
    if model == "gemma3":
        writer.add_float32("gemma3.rope.freq_base", 1e6)
    if model == "smollm3":
        writer.add_float32("smollm3.rope.freq_base", 2e6)
    if model == "mixtral":
        writer.add_float32("llama.rope.freq_base", 1e6)
    if model == "olmo3":
        writer.add_float32("olmo2.rope.freq_base", 5e5)
    _add_tokenizer(writer)
    change(writer)
    for name, tensor in tensors.items():
        if (
            tensor.ndim > 1 and "ffn_gate_inp" not in name and kind != GGMLQuantizationType.F32
        ):  # routers keep their precision
            writer.add_tensor(name, quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: GGUFWriter) -> None:
    """Add the tokenizer of `write_tiny`."""
    parsed = json.loads(FAMILIES["byte-level BPE"]().to_str())
    vocabulary = sorted(parsed["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["id"] for token in parsed["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([text for text, _ in vocabulary])
    writer.add_token_types([TokenType.CONTROL if number in special else TokenType.NORMAL for _, number in vocabulary])
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in parsed["model"]["merges"]])
    ids = dict(vocabulary)
    writer.add_bos_token_id(ids["<s>"])
    writer.add_eos_token_id(ids["</s>"])
    writer.add_chat_template(TEMPLATE)


def converted(folder: Path, model: str, **how: Any) -> tuple[Path, Path]:
    """Write the same model in Hugging Face's form and in GGUF."""
    hub, raw = write_hub(folder / "hub", model)
    tensors = gguf_tensors(model, raw, load_file(hub / "model.safetensors"))
    return hub, write_gguf(folder / "tiny.gguf", model, raw, tensors, **how)
