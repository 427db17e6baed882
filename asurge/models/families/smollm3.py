"""SmolLM3: Llama in which every fourth layer leaves positions out (NoPE; Kazemnejad et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asurge.models.config import ConfigReader, DecoderConfig, decoder_config, with_defaults
from asurge.models.families.qwen2 import sliding_windows

_DEFAULTS = dict(max_position_embeddings=32768, rope_theta=2e6, tie_word_embeddings=True)


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the config of a SmolLM3 model."""
    raw = with_defaults(raw, **_DEFAULTS)
    read = ConfigReader(raw)
    bias = read.flag("attention_bias")
    return decoder_config(
        raw,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=read.flag("mlp_bias"),
        no_rope=read.no_rope(),
        windows=sliding_windows(raw),
    )
