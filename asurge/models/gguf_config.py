"""GGUF's metadata as the ``config.json`` that the same model has on the hub, so that one reader serves both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from asurge.errors import ModelLoadError, UnknownArchitectureError
from asurge.gguf.checkpoint import GgufCheckpoint
from asurge.gguf.file import GgufTensor
from asurge.models.config import DecoderConfig
from asurge.models.families.registry import family_for

Values = dict[str, Any]

_GEMMA2_27B_LAYERS, _GEMMA3_27B_LAYERS = 46, 62


class _Metadata:
    """The values of a checkpoint's own architecture, checked as they are read."""

    def __init__(self, checkpoint: GgufCheckpoint) -> None:
        self.checkpoint = checkpoint

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self._wrong(key, value, "a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self._wrong(key, value, "a positive number")
        return float(value)

    def has(self, key: str) -> bool:
        """Whether the file gives a value."""
        return self.checkpoint.get(key) is not None

    def tensor(self, name: str) -> GgufTensor | None:
        return self.checkpoint.tensors.get(name)

    def vector(self, name: str) -> list[float] | None:
        """The numbers of a small float32 tensor, or None where there is no such tensor."""
        tensor = self.tensor(name)
        if tensor is None:
            return None
        if tensor.type.name != "F32" or len(tensor.shape) != 1:
            raise ModelLoadError(
                f"{tensor.path}: tensor {name} is {tensor.type.name} {list(tensor.shape)}: it must be a vector in F32"
            )
        return tensor.data().view("<f4").tolist()

    def _value(self, key: str, default: Any) -> Any:
        value = self.checkpoint.get(key)
        if isinstance(value, np.ndarray):  # one number for each layer
            if len(value) == 0 or (value != value[0]).any():
                raise self._wrong(key, value.tolist()[:8], "the same in all layers")
            value = value[0].item()
        return default if value is None else value

    def _wrong(self, key: str, value: object, wanted: str) -> ModelLoadError:
        where = f"{self.checkpoint.architecture}.{key}"
        return ModelLoadError(f"{self.checkpoint.path}: {where}={value!r} must be {wanted}: fetch the file again")


@dataclasses.dataclass(frozen=True, slots=True)
class _Dialect:
    """What llama.cpp's converter makes of a family.

    Attributes:
        architecture: the family's name in a config.json.
        own: the keys of its config.json beside those that all families have.
        adjacent_pairs: queries and keys are reordered, so that numbers that are rotated together are neighbours.
    """

    architecture: str
    own: Callable[[_Metadata], Values] = lambda _: {}
    adjacent_pairs: bool = False


def gguf_config(checkpoint: GgufCheckpoint) -> DecoderConfig:
    """The shape of the model in a GGUF file.

    Raises:
        UnknownArchitectureError: no family for it.
        ModelLoadError: a value is missing, of a wrong kind, or not served.
    """
    dialect = _dialect(checkpoint)
    raw = config_json(checkpoint)
    config = family_for(raw).config(raw)
    layout = dataclasses.replace(config.layout, adjacent_pairs=dialect.adjacent_pairs)
    return dataclasses.replace(config, layout=layout)


def config_json(checkpoint: GgufCheckpoint) -> Values:
    """The model's config.json, as its family's reader expects it; raises what `gguf_config` does."""
    read, dialect = _Metadata(checkpoint), _dialect(checkpoint)
    hidden, heads = read.integer("embedding_length"), read.integer("attention.head_count")
    table = read.tensor("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise ModelLoadError(f"{checkpoint.path} has no token_embd.weight: it is not a whole model")
    return {
        "architectures": [dialect.architecture],
        "vocab_size": table.shape[0],
        "hidden_size": hidden,
        "intermediate_size": read.integer("feed_forward_length"),
        "num_hidden_layers": read.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": read.integer("attention.head_count_kv", heads),
        "head_dim": read.integer("attention.key_length", hidden // heads),
        "max_position_embeddings": read.integer("context_length"),
        "rms_norm_eps": read.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": read.number("rope.freq_base", 10_000.0),
        "rope_scaling": _rope_scaling(read),
        "tie_word_embeddings": read.tensor("output.weight") is None,
        **dialect.own(read),
    }


def _dialect(checkpoint: GgufCheckpoint) -> _Dialect:
    name = checkpoint.architecture
    if name == "llama" and checkpoint.get("expert_count"):
        return _MIXTRAL
    if name == "olmo2" and checkpoint.get("attention.sliding_window"):
        return _OLMO3
    if name not in DIALECTS:
        raise UnknownArchitectureError(
            f"{checkpoint.path}: general.architecture={name!r} is not supported in GGUF; these are: {', '.join(sorted(DIALECTS))}"
        )
    return DIALECTS[name]


def _rope_scaling(read: _Metadata) -> Values | None:
    """``rope_scaling``, whether the file gives it as metadata or, for Llama 3 and LongRoPE, as tensors of divisors."""
    if (divisors := read.vector("rope_freqs.weight")) is not None:
        # LongRoPE with one set of divisors for all lengths is what llama.cpp computes.
        length = read.integer("context_length")
        return {
            "rope_type": "longrope",
            "short_factor": divisors,
            "long_factor": divisors,
            "original_max_position_embeddings": length,
            "attention_factor": 1.0,
        }
    if (long := read.vector("rope_factors_long.weight")) is not None:
        return {
            "rope_type": "longrope",
            "short_factor": read.vector("rope_factors_short.weight"),
            "long_factor": long,
            "original_max_position_embeddings": read.integer("rope.scaling.original_context_length"),
            "attention_factor": read.number("rope.scaling.attn_factor", 1.0),
        }
    kind = read.checkpoint.get("rope.scaling.type")
    if kind is None and read.has("rope.scale_linear"):  # as files had it until 2023
        return {"rope_type": "linear", "factor": read.number("rope.scale_linear")}
    if kind in (None, "none"):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": read.number("rope.scaling.factor")}
    if kind == "yarn":
        return _yarn(read)
    raise ModelLoadError(
        f"{read.checkpoint.path}: rope.scaling.type={kind!r} is not supported (none, linear, yarn and tensors of divisors are)"
    )


def _yarn(read: _Metadata) -> Values:
    factor = read.number("rope.scaling.factor")
    scaling: Values = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": read.integer("rope.scaling.original_context_length"),
        "beta_fast": read.number("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": read.number("rope.scaling.yarn_beta_slow", 1.0),
    }
    if read.has("rope.scaling.attn_factor"):  # beside YaRN's own
        scaling["attention_factor"] = read.number("rope.scaling.attn_factor") * (0.1 * math.log(max(factor, 1.0)) + 1.0)
    return scaling


def _mixtral(read: _Metadata) -> Values:
    return {
        "num_local_experts": read.integer("expert_count"),
        "num_experts_per_tok": read.integer("expert_used_count"),
        "sliding_window": None,
    }


def _qwen3_moe(read: _Metadata) -> Values:
    return {
        "num_experts": read.integer("expert_count"),
        "num_experts_per_tok": read.integer("expert_used_count"),
        "moe_intermediate_size": read.integer("expert_feed_forward_length"),
        "norm_topk_prob": True,  # llama.cpp knows no other
    }


def _gemma2(read: _Metadata) -> Values:
    return {
        "sliding_window": read.integer("attention.sliding_window"),
        "attn_logit_softcapping": read.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": read.number("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _query_scalar(read, _GEMMA2_27B_LAYERS),
    }


def _gemma3(read: _Metadata) -> Values:
    values: Values = {
        "sliding_window": read.integer("attention.sliding_window"),
        "rope_local_base_freq": read.number("rope.freq_base_swa", 10_000.0),
        "query_pre_attn_scalar": _query_scalar(read, _GEMMA3_27B_LAYERS),
    }
    if read.has("final_logit_softcapping"):
        values["final_logit_softcapping"] = read.number("final_logit_softcapping")
    return values


def _olmo3(read: _Metadata) -> Values:
    return {
        "sliding_window": read.integer("attention.sliding_window")
    }  # in three of four layers: llama.cpp knows no other


def _query_scalar(read: _Metadata, layers_of_27b: int) -> int:
    """Scores are divided by the root of this: the size of a head, but in the largest models (no key says so)."""
    if read.integer("block_count") == layers_of_27b:
        return read.integer("embedding_length") // read.integer("attention.head_count")
    return read.integer("attention.key_length")


def _phi3(read: _Metadata) -> Values:
    plain = read.integer("embedding_length") // read.integer("attention.head_count")
    head = read.integer("attention.key_length", plain)
    values: Values = {
        "sliding_window": read.integer("attention.sliding_window") if read.has("attention.sliding_window") else None,
        "partial_rotary_factor": read.integer("rope.dimension_count", head) / head,
    }
    if read.has("rope.scaling.original_context_length"):
        values["original_max_position_embeddings"] = read.integer("rope.scaling.original_context_length")
    return values


_MIXTRAL = _Dialect("MixtralForCausalLM", _mixtral, adjacent_pairs=True)
_OLMO3 = _Dialect("Olmo3ForCausalLM", _olmo3)

DIALECTS = {
    "gemma2": _Dialect("Gemma2ForCausalLM", _gemma2),
    "gemma3": _Dialect("Gemma3ForCausalLM", _gemma3),
    "llama": _Dialect("LlamaForCausalLM", adjacent_pairs=True),
    "olmo2": _Dialect("Olmo2ForCausalLM"),
    "phi3": _Dialect("Phi3ForCausalLM", _phi3),
    "qwen2": _Dialect("Qwen2ForCausalLM"),
    "qwen3": _Dialect("Qwen3ForCausalLM"),
    "qwen3moe": _Dialect("Qwen3MoeForCausalLM", _qwen3_moe),
    "smollm3": _Dialect("SmolLM3ForCausalLM", adjacent_pairs=True),
}
"""Dialects by llama.cpp's names of architectures."""
