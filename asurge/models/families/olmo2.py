"""OLMo 2: norms only after layers, and over all queries and all keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asurge.models.config import ConfigReader, DecoderConfig, decoder_config, with_defaults


def config(raw: Mapping[str, Any], **own: Any) -> DecoderConfig:
    """Read the config of an OLMo 2 model."""
    bias = ConfigReader(raw).flag("attention_bias")
    return decoder_config(
        with_defaults(raw, rms_norm_eps=1e-5),
        qkv_bias=bias,
        output_bias=bias,
        pre_norm=False,
        post_norm=True,
        qk_norm=True,
        qk_norm_across_heads=True,
        **own,
    )
