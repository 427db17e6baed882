"""Which checkpoint tensors fill which parameters of the decoder, and back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from asurge.models.config import DecoderConfig

ParameterPath = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """One checkpoint tensor, and the shape it must have."""

    name: str
    shape: tuple[int, ...]


Table = dict[ParameterPath, tuple[Source, ...]]
"""For each parameter, the tensors that fill it, one below the other along the first axis."""

_IGNORED = re.compile(r".*\.rotary_emb\.inv_freq$")


def checkpoint_table(config: DecoderConfig) -> Table:
    """The tensors of a checkpoint in Hugging Face's naming, which most families take from Llama."""
    hidden = config.hidden_size
    table: Table = {
        ("embedding",): (Source("model.embed_tokens.weight", (config.vocab_size, hidden)),),
        ("norm", "weight"): (Source("model.norm.weight", (hidden,)),),
    }
    if not config.tie_word_embeddings:
        table["lm_head",] = (Source("lm_head.weight", (config.vocab_size, hidden)),)
    for layer in range(config.num_layers):
        for path, sources in _layer(config, layer).items():
            table["layers", layer, *path] = tuple(
                Source(f"model.layers.{layer}.{source.name}", source.shape) for source in sources
            )
    return table


def _layer(config: DecoderConfig, layer: int) -> Table:
    """The tensors of one layer, named within it."""
    hidden = config.hidden_size
    table = _attention(config)
    for norm, name in _norm_names(config).items():
        table[norm, "weight"] = (Source(f"{name}.weight", (hidden,)),)
    if config.is_sparse(layer):
        return table | _experts(config)
    inner = config.intermediate_size
    mlp = [("mlp.gate_proj", inner), ("mlp.up_proj", inner)]
    table |= _linear(
        ("mlp", "gate_up_proj"),
        [("mlp.gate_up_proj", 2 * inner)] if config.fused_projections else mlp,
        hidden,
        bias=config.mlp_bias,
    )
    return table | _linear(("mlp", "down_proj"), [("mlp.down_proj", hidden)], inner, bias=config.mlp_bias)


def _norm_names(config: DecoderConfig) -> dict[str, str]:
    """Our norms of a layer, and theirs: what a name says depends on what else is normalised."""
    names = {}
    if config.pre_norm:
        names["input_norm"] = "input_layernorm"
        names["mlp_norm"] = "pre_feedforward_layernorm" if config.post_norm else "post_attention_layernorm"
    if config.post_norm:
        names["attention_output_norm"] = "post_attention_layernorm"
        names["mlp_output_norm"] = "post_feedforward_layernorm"
    return names


def _attention(config: DecoderConfig) -> Table:
    sizes = (config.q_size, config.kv_size, config.kv_size)
    parts = [(f"self_attn.{part}_proj", size) for part, size in zip("qkv", sizes, strict=True)]
    if config.fused_projections:
        parts = [("self_attn.qkv_proj", sum(sizes))]
    table = _linear(("attention", "qkv_proj"), parts, config.hidden_size, bias=config.qkv_bias)
    output = [("self_attn.o_proj", config.hidden_size)]
    table |= _linear(("attention", "o_proj"), output, config.q_size, bias=config.output_bias)
    if config.qk_norm:
        widths = sizes if config.qk_norm_across_heads else (config.head_dim,) * 2
        for part, width in zip("qk", widths, strict=False):
            table["attention", f"{part}_norm", "weight"] = (Source(f"self_attn.{part}_norm.weight", (width,)),)
    return table


def _linear(path: ParameterPath, parts: Sequence[tuple[str, int]], inputs: int, *, bias: bool) -> Table:
    table: Table = {(*path, "weight"): tuple(Source(f"{name}.weight", (size, inputs)) for name, size in parts)}
    if bias:
        table[*path, "bias"] = tuple(Source(f"{name}.bias", (size,)) for name, size in parts)
    return table


def _experts(config: DecoderConfig) -> Table:
    experts, hidden = config.experts, config.hidden_size
    assert experts is not None
    layer, router, (gate, up, down) = experts.names

    def of_all(parts: Sequence[str], shape: tuple[int, int]) -> tuple[Source, ...]:
        return tuple(
            Source(f"{layer}.experts.{index}.{part}.weight", shape) for index in range(experts.count) for part in parts
        )

    return {
        ("mlp", "router"): (Source(f"{layer}.{router}.weight", (experts.count, hidden)),),
        ("mlp", "gate_up"): of_all((gate, up), (experts.size, hidden)),
        ("mlp", "down"): of_all((down,), (hidden, experts.size)),
    }


def is_ignored(name: str, config: DecoderConfig) -> bool:
    """Whether a tensor may be in a checkpoint although nothing takes it."""
    return bool(_IGNORED.match(name)) or (config.tie_word_embeddings and name == "lm_head.weight")
