"""Tiny random checkpoints of every family and variation, as transformers configs, and where they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_SIZES: dict[str, Any] = dict(
    vocab_size=160, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, eos_token_id=None, bos_token_id=None,
    pad_token_id=None, tie_word_embeddings=False,
)  # fmt: skip

_ORIGINAL = dict(original_max_position_embeddings=32)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2", dict(num_hidden_layers=3, head_dim=16, sliding_window=7, query_pre_attn_scalar=20, attn_logit_softcapping=2.0, final_logit_softcapping=5.0)),
    "gemma3": ("Gemma3Text", dict(num_hidden_layers=4, head_dim=16, sliding_window=7, query_pre_attn_scalar=20, layer_types=["sliding_attention", "full_attention"] * 2, rope_parameters=dict(full_attention=dict(rope_type="linear", factor=4.0, rope_theta=1e5), sliding_attention=dict(rope_type="default", rope_theta=500.0)))),
    "llama": ("Llama", {}),
    "llama-tied-biases": ("Llama", dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=20)),
    "llama-linear": ("Llama", dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=500.0))),
    "llama-dynamic": ("Llama", dict(rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e4))),
    "llama-llama3": ("Llama", dict(rope_parameters=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, rope_theta=1e4, **_ORIGINAL))),
    "llama-yarn": ("Llama", dict(rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=1e4, **_ORIGINAL))),
    "llama-longrope": ("Llama", dict(max_position_embeddings=64, rope_parameters=dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0 + 0.1 * i for i in range(6)], long_factor=[2.0 + i for i in range(6)], original_max_position_embeddings=128, factor=2.0))),
    "llama4": ("Llama4Text", dict(num_hidden_layers=4, head_dim=16, intermediate_size=32, intermediate_size_mlp=80, num_local_experts=4, interleave_moe_layer_step=2, no_rope_layer_interval=3, attention_chunk_size=12, floor_scale=10, attn_scale=0.5, rope_parameters=dict(rope_type="yarn", factor=4.0, rope_theta=1e4, **_ORIGINAL))),
    "llama4-chunks": ("Llama4Text", dict(head_dim=16, intermediate_size=24, intermediate_size_mlp=32, num_local_experts=3, num_experts_per_tok=2, moe_layers=[1], no_rope_layers=[1, 0], layer_types=["chunked_attention"] * 2, attention_chunk_size=16, use_qk_norm=False, attn_temperature_tuning=False, attention_bias=True, tie_word_embeddings=True, rope_parameters=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=1.0, rope_theta=1e4, **_ORIGINAL))),
    "mistral": ("Mistral", dict(sliding_window=None)),
    "mistral-window": ("Mistral", dict(sliding_window=7, head_dim=16)),
    "mixtral": ("Mixtral", dict(num_local_experts=4, num_experts_per_tok=2)),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", dict(num_hidden_layers=4, sliding_window=7)),
    "olmo3-yarn": ("Olmo3", dict(num_hidden_layers=4, sliding_window=7, layer_types=["full_attention", "sliding_attention"] * 2, rope_parameters=dict(full_attention=dict(rope_type="yarn", factor=4.0, rope_theta=1e4, **_ORIGINAL), sliding_attention=dict(rope_type="default", rope_theta=1e4)))),
    "phi3": ("Phi3", dict(sliding_window=9)),
    "phi3-longrope": ("Phi3", dict(max_position_embeddings=64, original_max_position_embeddings=128, rope_parameters=dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0 + 0.1 * i for i in range(6)], long_factor=[2.0 + i for i in range(6)]))),
    "phi3-partial": ("Phi3", dict(head_dim=16, rope_parameters=dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.75))),
    "phi3-partial-longrope": ("Phi3", dict(hidden_size=64, original_max_position_embeddings=128, rope_parameters=dict(rope_type="longrope", rope_theta=1e4, partial_rotary_factor=0.75, short_factor=[1.0 + 0.1 * i for i in range(6)], long_factor=[2.0 + i for i in range(6)]))),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True)),
    "qwen2-window": ("Qwen2", dict(use_sliding_window=True, sliding_window=6, max_window_layers=1)),
    "qwen3": ("Qwen3", dict(head_dim=20)),
    "qwen3-tied-window": ("Qwen3", dict(head_dim=16, tie_word_embeddings=True, use_sliding_window=True, sliding_window=5, max_window_layers=1, attention_bias=True)),
    "qwen3-moe": ("Qwen3Moe", dict(num_hidden_layers=3, head_dim=16, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=32, norm_topk_prob=True, mlp_only_layers=[1])),
    "qwen3-moe-raw": ("Qwen3Moe", dict(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=False, decoder_sparse_step=2)),
    "smollm3": ("SmolLM3", dict(num_hidden_layers=4, no_rope_layer_interval=2)),
}  # fmt: skip

GOLDEN = Path(__file__).parent / "golden"
PROMPT_TOKENS = 40
NEW_TOKENS = 64


def settings(case: str) -> tuple[str, dict[str, Any]]:
    """The family's name in transformers, and the arguments of its config."""
    family, changes = CASES[case]
    return family, {**_SIZES, **changes}
