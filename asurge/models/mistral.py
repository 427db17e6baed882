"""Mistral: Llama with a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asurge.models.config import SLIDING, ConfigReader, DecoderConfig, decoder_config, windows

_DEFAULT_WINDOW = 4096
"""Used where config.json has no ``sliding_window``, as in transformers; null is no window."""


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    read = ConfigReader(raw)
    if raw.get("sliding_window", _DEFAULT_WINDOW) is None:
        return decoder_config(raw)
    size = read.integer("sliding_window", _DEFAULT_WINDOW)
    return decoder_config(raw, windows=windows([SLIDING] * read.integer("num_hidden_layers"), size))
