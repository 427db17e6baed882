"""Phi-3 and Phi-4-mini: Llama with fused projections."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from asurge.models import mistral
from asurge.models.config import CheckpointLayout, DecoderConfig


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    return dataclasses.replace(mistral.config({"sliding_window": None, **raw}), layout=CheckpointLayout(fused=True))
