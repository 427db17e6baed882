"""Mixtral: Mistral with a mixture of experts in every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from asurge.models.config import ConfigReader, DecoderConfig, Experts
from asurge.models.families import mistral

_DEFAULTS = dict(sliding_window=None, max_position_embeddings=131072, rms_norm_eps=1e-5, rope_theta=1e6)


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the config of a Mixtral model."""
    read = ConfigReader(raw)
    layers = read.integer("num_hidden_layers")
    experts = Experts(
        count=read.integer("num_local_experts", 8),
        per_token=read.integer("num_experts_per_tok", 2),
        size=read.integer("intermediate_size"),
        normalize=True,
        layers=(True,) * layers,
        names=("block_sparse_moe", "gate", ("w1", "w3", "w2")),
    )
    return dataclasses.replace(mistral.windowed(raw, _DEFAULTS), experts=experts)
