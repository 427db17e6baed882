"""Phi-3 and Phi-4-mini: Llama with fused projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asurge.models.config import ConfigReader, DecoderConfig, decoder_config


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    read = ConfigReader(raw)
    window = None if raw.get("sliding_window") is None else read.integer("sliding_window")
    layers = read.integer("num_hidden_layers")
    return decoder_config(raw, fused_projections=True, sliding_windows=(window,) * layers if window else ())
