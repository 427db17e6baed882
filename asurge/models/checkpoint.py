"""Which checkpoint tensors fill which parameters of the decoder, and back."""

from __future__ import annotations

import dataclasses
import re

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
    """The tensors of a checkpoint in Hugging Face's Llama naming."""
    hidden, head = config.hidden_size, config.head_dim
    table: Table = {
        ("embedding",): (Source("model.embed_tokens.weight", (config.vocab_size, hidden)),),
        ("norm", "weight"): (Source("model.norm.weight", (hidden,)),),
    }
    if not config.tie_word_embeddings:
        table["lm_head",] = (Source("lm_head.weight", (config.vocab_size, hidden)),)
    for layer in range(config.num_layers):
        ours, theirs = ("layers", layer), f"model.layers.{layer}"
        sizes = (config.q_size, config.kv_size, config.kv_size)
        attention = [(f"self_attn.{part}_proj", size) for part, size in zip("qkv", sizes, strict=True)]
        mlp = [(f"mlp.{part}_proj", config.intermediate_size) for part in ("gate", "up")]
        for path, parts, inputs, bias in (
            (("attention", "qkv_proj"), attention, hidden, config.qkv_bias),
            (("attention", "o_proj"), [("self_attn.o_proj", hidden)], config.q_size, config.output_bias),
            (("mlp", "gate_up_proj"), mlp, hidden, config.mlp_bias),
            (("mlp", "down_proj"), [("mlp.down_proj", hidden)], config.intermediate_size, config.mlp_bias),
        ):
            names = [(f"{theirs}.{part}", size) for part, size in parts]
            table[*ours, *path, "weight"] = tuple(Source(f"{name}.weight", (size, inputs)) for name, size in names)
            if bias:
                table[*ours, *path, "bias"] = tuple(Source(f"{name}.bias", (size,)) for name, size in names)
        norms = {("input_norm",): "input_layernorm", ("post_attention_norm",): "post_attention_layernorm"}
        for norm, name in norms.items():
            table[*ours, *norm, "weight"] = (Source(f"{theirs}.{name}.weight", (hidden,)),)
        for part in ("q", "k") if config.qk_norm else ():
            table[*ours, "attention", f"{part}_norm", "weight"] = (
                Source(f"{theirs}.self_attn.{part}_norm.weight", (head,)),
            )
    return table


def is_ignored(name: str, config: DecoderConfig) -> bool:
    """Whether a tensor may be in a checkpoint although nothing takes it."""
    return bool(_IGNORED.match(name)) or (config.tie_word_embeddings and name == "lm_head.weight")
