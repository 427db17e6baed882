"""Mixtral: Mistral with a mixture of experts in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from asurge.models.config import ConfigReader, DecoderConfig, Experts, decoder_config


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    read = ConfigReader(raw)
    layers = read.integer("num_hidden_layers")
    window = None if raw.get("sliding_window") is None else read.integer("sliding_window")
    experts = Experts(
        count=read.integer("num_local_experts", 8),
        per_token=read.integer("num_experts_per_tok", 2),
        size=read.integer("intermediate_size"),
        normalize=True,
        layers=(True,) * layers,
        names=("block_sparse_moe", "gate", ("w1", "w3", "w2")),
    )
    return decoder_config(raw, experts=experts, sliding_windows=(window,) * layers if window else ())
