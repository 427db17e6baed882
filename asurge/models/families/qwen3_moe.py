"""Qwen3-MoE: Qwen3 with a mixture of experts in most layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from asurge.errors import ModelLoadError
from asurge.models.config import ConfigReader, DecoderConfig, Experts
from asurge.models.families import qwen3


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the config of a Qwen3 MoE model."""
    read = ConfigReader(raw)
    dense, step = raw.get("mlp_only_layers") or [], read.integer("decoder_sparse_step", 1)
    if not isinstance(dense, list) or not all(isinstance(one, int) for one in dense):
        raise ModelLoadError(f"config.json: mlp_only_layers={dense!r} must be a list of layers")
    layers = range(read.integer("num_hidden_layers"))
    experts = Experts(
        count=read.integer("num_local_experts" if "num_local_experts" in raw else "num_experts", 128),
        per_token=read.integer("num_experts_per_tok", 8),
        size=read.integer("moe_intermediate_size", 768),
        normalize=read.flag("norm_topk_prob"),
        layers=tuple(layer not in dense and (layer + 1) % step == 0 for layer in layers),
        names=("mlp", "gate", ("gate_proj", "up_proj", "down_proj")),
    )
    return dataclasses.replace(qwen3.config(raw), experts=experts)
