"""Llama 2 and 3, and the many models built like them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asurge.models.config import ConfigReader, DecoderConfig, decoder_config


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the config of a Llama model."""
    bias = ConfigReader(raw).flag("attention_bias")
    return decoder_config(raw, qkv_bias=bias, output_bias=bias, mlp_bias=ConfigReader(raw).flag("mlp_bias"))
