"""Phi-3 and Phi-4-mini: Llama with fused projections; a part of each head may be left no_rope."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from asurge.models.config import CheckpointLayout, ConfigReader, DecoderConfig, scaled
from asurge.models.families import mistral

_DEFAULTS = dict(
    sliding_window=None, max_position_embeddings=4096, original_max_position_embeddings=4096, rms_norm_eps=1e-5
)


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the config of a Phi-3 model."""
    read = ConfigReader(raw)
    config = mistral.windowed(raw, _DEFAULTS)
    parameters = dict(config.rope_scaling or {})
    beside = read.fraction("partial_rotary_factor", 1.0)
    rotated = ConfigReader(parameters).fraction("partial_rotary_factor", beside)
    parameters.pop("partial_rotary_factor", None)
    return dataclasses.replace(
        config,
        rope_scaling=scaled(parameters),
        rotary_dim=int(config.head_dim * rotated),
        layout=CheckpointLayout(fused=True),
    )
