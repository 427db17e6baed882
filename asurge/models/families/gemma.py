"""Gemma 2 and 3 (text): norms on both sides, windows in most layers, soft caps or normalised heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asurge.models.config import ConfigReader, DecoderConfig, decoder_config, windows, with_defaults

_DEFAULT_WINDOW = 4096


def gemma2(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the config of a Gemma 2 model."""
    read = ConfigReader(raw)
    kinds = read.layer_kinds() or read.full_every(2)
    raw = with_defaults(raw, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    return _gemma(
        raw,
        score_softcap=ConfigReader(raw).optional_number("attn_logit_softcapping"),
        windows=windows(kinds, read.integer("sliding_window", _DEFAULT_WINDOW)),
    )


def gemma3(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the config of a Gemma 3 text model."""
    read = ConfigReader(raw)
    pattern = read.integer("sliding_window_pattern", read.integer("_sliding_window_pattern", 6))
    kinds = read.layer_kinds() or read.full_every(pattern)
    return _gemma(
        with_defaults(raw, max_position_embeddings=131072, rope_theta=1e6),
        windows=windows(kinds, read.integer("sliding_window", _DEFAULT_WINDOW)),
        local_rope=read.local_rope(read.number("rope_local_base_freq", 10_000.0)),
        qk_norm=True,
    )


def _gemma(raw: Mapping[str, Any], **own: Any) -> DecoderConfig:
    read = ConfigReader(raw)
    bias = read.flag("attention_bias")
    return decoder_config(
        with_defaults(raw, hidden_activation="gelu_pytorch_tanh", max_position_embeddings=8192),
        head_dim=read.integer("head_dim", 256),
        tie_word_embeddings=read.flag("tie_word_embeddings", True),
        qkv_bias=bias,
        output_bias=bias,
        post_norm=True,
        norm_offset=True,
        embedding_scale=read.integer("hidden_size") ** 0.5,
        attention_scale=read.number("query_pre_attn_scalar", 256.0) ** -0.5,
        logit_softcap=read.optional_number("final_logit_softcapping"),
        **own,
    )
