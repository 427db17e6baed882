"""What a decoder is made of, read once from a checkpoint's ``config.json``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from asurge.errors import ModelLoadError

RopeScaling = Mapping[str, Any]  # JSON from the checkpoint; `asurge.ops.rotary` validates it


@dataclasses.dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of one decoder-only transformer. Lengths are in tokens, sizes in elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_windows: tuple[int | None, ...] = ()
    """Per layer: how many tokens back a query sees, itself included; None sees all."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelLoadError(
                f"num_attention_heads={self.num_heads} is not a multiple of "
                f"num_key_value_heads={self.num_kv_heads}: the checkpoint's config.json is damaged"
            )
        if self.head_dim % 2:
            raise ModelLoadError(f"head_dim={self.head_dim} is odd: rotary embeddings need pairs")
        if self.sliding_windows and len(self.sliding_windows) != self.num_layers:
            raise ModelLoadError(
                f"{len(self.sliding_windows)} sliding windows for {self.num_layers} layers: "
                "layer_types and num_hidden_layers disagree in config.json"
            )

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def window(self, layer: int) -> int | None:
        """The sliding window of one layer, in tokens, or None."""
        return self.sliding_windows[layer] if self.sliding_windows else None


class ConfigReader:
    """Typed reading of a parsed ``config.json``: a wrong or missing value is named."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.raw.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ModelLoadError(f"config.json: {key}={value!r} must be a positive integer")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.raw.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ModelLoadError(f"config.json: {key}={value!r} must be a positive number")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw.get(key, default)
        if not isinstance(value, bool):
            raise ModelLoadError(f"config.json: {key}={value!r} must be true or false")
        return value

    def rope(self) -> tuple[float, RopeScaling | None]:
        """Base and scaling, from today's ``rope_parameters`` or yesterday's two keys."""
        parameters = self.raw.get("rope_parameters")
        scaling = parameters if parameters is not None else self.raw.get("rope_scaling")
        if scaling is None:
            return self.number("rope_theta", 10_000.0), None
        if not isinstance(scaling, Mapping):
            raise ModelLoadError(f"config.json: rope scaling {scaling!r} must be an object")
        theta = ConfigReader(scaling).number("rope_theta", self.number("rope_theta", 10_000.0))
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind == "default":
            return theta, None
        # Beside the scaling, the original length takes priority over the one inside it (as in transformers).
        key = "original_max_position_embeddings"
        return theta, {**scaling, key: self.raw[key]} if self.raw.get(key) is not None else dict(scaling)


def decoder_config(raw: Mapping[str, Any], **family: Any) -> DecoderConfig:
    """The fields every Llama-like config shares; ``family`` fills in or overrides the rest.

    Raises:
        ModelLoadError: a value is missing or of the wrong kind, or the activation is unknown.
    """
    read = ConfigReader(raw)
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelLoadError(f"config.json: hidden_act={activation!r} is not supported (silu is)")
    hidden, heads = read.integer("hidden_size"), read.integer("num_attention_heads")
    theta, scaling = read.rope()
    shared: dict[str, Any] = dict(
        vocab_size=read.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.integer("intermediate_size"),
        num_layers=read.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=read.integer("num_key_value_heads", heads),
        head_dim=read.integer("head_dim", hidden // heads),
        max_position_embeddings=read.integer("max_position_embeddings", 2048),
        rms_norm_eps=read.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=read.flag("tie_word_embeddings"),
    )
    return DecoderConfig(**(shared | family))
