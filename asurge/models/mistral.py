"""Mistral: Llama with a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asurge.models.config import ConfigReader, DecoderConfig, decoder_config


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    read = ConfigReader(raw)
    if raw.get("sliding_window") is None:
        return decoder_config(raw)
    layers = read.integer("num_hidden_layers")
    return decoder_config(raw, sliding_windows=(read.integer("sliding_window"),) * layers)
