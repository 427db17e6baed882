"""Qwen2 and Qwen2.5: biases on queries, keys and values; a sliding window in the upper layers if asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asurge.errors import ModelLoadError
from asurge.models.config import FULL, SLIDING, ConfigReader, DecoderConfig, decoder_config, windows, with_defaults
from asurge.ops.attention import Window

DEFAULTS = dict(max_position_embeddings=32768)


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the config of a Qwen2 model."""
    return decoder_config(with_defaults(raw, **DEFAULTS), qkv_bias=True, windows=sliding_windows(raw))


def sliding_windows(raw: Mapping[str, Any]) -> tuple[Window | None, ...]:
    """Per layer, from ``layer_types``, or from ``max_window_layers`` in older configs."""
    read = ConfigReader(raw)
    kinds, first = read.layer_kinds(), raw.get("max_window_layers", 28)
    asked, size = read.flag("use_sliding_window"), raw.get("sliding_window")
    if not asked or size is None:
        return ()
    layers, size = read.integer("num_hidden_layers"), read.integer("sliding_window")
    if kinds is None:
        if isinstance(first, bool) or not isinstance(first, int):
            raise ModelLoadError(f"config.json: max_window_layers={first!r} must be an integer")
        kinds = [SLIDING if layer >= first else FULL for layer in range(layers)]
    return windows(kinds, size)
