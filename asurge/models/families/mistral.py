"""Mistral: Llama with a sliding window in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asurge.models.config import SLIDING, ConfigReader, DecoderConfig, decoder_config, windows, with_defaults

_DEFAULTS = dict(sliding_window=4096, max_position_embeddings=131072)
"""Used where config.json has no such key, as in transformers; null is no window."""


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the config of a Mistral model."""
    return windowed(raw, _DEFAULTS)


def windowed(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> DecoderConfig:
    """Config with ``sliding_window`` in every layer, if it is given, and what a family has for missing keys."""
    raw = with_defaults(raw, **defaults)
    read = ConfigReader(raw)
    if raw["sliding_window"] is None:
        return decoder_config(raw)
    size = read.integer("sliding_window")
    return decoder_config(raw, windows=windows([SLIDING] * read.integer("num_hidden_layers"), size))
