"""Qwen3: normalised queries and keys, any head size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asurge.models.config import ConfigReader, DecoderConfig, decoder_config, with_defaults
from asurge.models.families.qwen2 import DEFAULTS, sliding_windows


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the config of a Qwen3 model."""
    read = ConfigReader(raw)
    bias = read.flag("attention_bias")
    return decoder_config(
        with_defaults(raw, **DEFAULTS),
        head_dim=read.integer("head_dim", 128),
        qk_norm=True,
        qkv_bias=bias,
        output_bias=bias,
        windows=sliding_windows(raw),
    )
