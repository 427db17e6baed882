"""OLMo 3: OLMo 2 with windows in three of four layers, whose positions are never scaled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asurge.models.config import ConfigReader, DecoderConfig, windows, with_defaults
from asurge.models.families import olmo2


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the config of an OLMo 3 model."""
    raw = with_defaults(raw, rope_theta=5e5)
    read = ConfigReader(raw)
    kinds = read.layer_kinds() or read.full_every(4)
    return olmo2.config(
        raw,
        windows=windows(kinds, read.integer("sliding_window", 4096)),
        local_rope=read.local_rope(read.number("rope_theta", 5e5)),
    )
