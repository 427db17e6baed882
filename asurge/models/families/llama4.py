"""Llama 4 (text): attention in chunks, layers without rotary embedding, and routed experts beside a shared one.

Some layers see everything and know no positions; the input of routed experts is scaled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from asurge.errors import ModelLoadError
from asurge.models.config import (
    CHUNKED,
    FULL,
    CheckpointLayout,
    ConfigReader,
    DecoderConfig,
    Experts,
    decoder_config,
    windows,
    with_defaults,
)
from asurge.models.keys import WatchedConfig
from asurge.ops.attention import Window
from asurge.ops.temperature_tuning import TemperatureTuning

_DEFAULTS = dict(
    rms_norm_eps=1e-5,
    rope_theta=500_000.0,
    head_dim=128,
    num_key_value_heads=8,
    attention_chunk_size=8192,
    max_position_embeddings=131072,
)

BESIDES = (
    "vision_config", "image_token_index", "boi_token_index", "eoi_token_index", "image_token_id", "boi_token_id",
    "eoi_token_id",
)  # fmt: skip
"""Keys beside ``text_config`` that tell of images."""


def config(raw: Mapping[str, Any]) -> DecoderConfig:
    """Read the config of a Llama 4 model."""
    raw = with_defaults(raw, **_DEFAULTS)
    read = ConfigReader(raw)
    bias, unit_norm = read.flag("attention_bias"), read.flag("use_qk_norm", True)
    # A list longer than there are layers is cut.
    no_rope = read.no_rope()
    no_rope = no_rope[: read.integer("num_hidden_layers")]
    theta, scaling = read.rope()
    if unit_norm and scaling is not None:
        scaling = {**scaling, "attention_factor": 1.0}  # heads are normalised after the rotation, which undoes it
    return decoder_config(
        raw,
        intermediate_size=read.integer("intermediate_size_mlp", 16384),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=bias,
        output_bias=bias,
        qk_unit_norm=unit_norm,
        windows=_windows(read, no_rope),
        no_rope=no_rope,
        temperature_tuning=_sharpening(read),
        experts=_experts(read),
        layout=CheckpointLayout(feed_forward="feed_forward", adjacent_pairs=True),
    )


def conditional(raw: Mapping[str, Any]) -> DecoderConfig:
    """The language model of a checkpoint that also has an image encoder, which is not read."""
    text = raw.get("text_config")
    if not isinstance(text, Mapping):
        raise ModelLoadError(f"config.json: text_config={text!r} must be an object")
    watched = WatchedConfig(text)
    inner = config(watched)
    watched.refuse_unread()
    layout = dataclasses.replace(
        inner.layout, prefix="language_model.", others=("vision_model.", "multi_modal_projector.")
    )
    return dataclasses.replace(inner, layout=layout)


def _windows(read: ConfigReader, no_rope: tuple[bool, ...]) -> tuple[Window | None, ...]:
    kinds = read.layer_kinds(CHUNKED) or [FULL if still else CHUNKED for still in no_rope]
    if read.raw["attention_chunk_size"] is None:
        return ()
    return windows(kinds, read.integer("attention_chunk_size"))


def _sharpening(read: ConfigReader) -> TemperatureTuning | None:
    tuned = read.raw.get("attn_temperature_tuning", True)
    if not isinstance(tuned, int):  # the first checkpoints have a number here, which means yes
        raise ModelLoadError(f"config.json: attn_temperature_tuning={tuned!r} must be true or false")
    temperature_tuning = TemperatureTuning(read.number("floor_scale", 8192), read.number("attn_scale", 0.1))
    return temperature_tuning if tuned else None


def _experts(read: ConfigReader) -> Experts | None:
    layers, sparse = range(read.integer("num_hidden_layers")), read.raw.get("moe_layers")
    step = read.integer("interleave_moe_layer_step", 1)
    if sparse is None:
        sparse = list(layers[step - 1 :: step])
    if not isinstance(sparse, list) or not all(one in layers for one in sparse):
        raise ModelLoadError(f"config.json: moe_layers={sparse!r} must be a list of layers")
    if not sparse:
        return None
    size = read.integer("intermediate_size")
    return Experts(
        count=read.integer("num_local_experts", 16),
        per_token=read.integer("num_experts_per_tok", 1),
        size=size,
        normalize=False,
        layers=tuple(layer in sparse for layer in layers),
        names=("feed_forward", "router", ("gate_up_proj", "down_proj")),
        stacked=True,
        sigmoid=True,
        weigh_input=True,
        shared=size,
    )
