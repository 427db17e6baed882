"""The mapping from checkpoint tensors to the parameters of the decoder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from asurge.models.config import DecoderConfig

ParameterPath = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint tensor, the shape it must have, and how the model has it instead.

    Attributes:
        heads: its first rows belong to this many heads, whose numbers the model has in another ``order``.
        order: `asurge.models.config.DecoderConfig.head_order`. Empty: as it is.
        transposed: it is ``[matrices, in, out]``, and the model has ``[matrices * out, in]``.
    """

    name: str
    shape: tuple[int, ...]
    heads: int = 0
    order: tuple[int, ...] = ()
    transposed: bool = False

    @property
    def filled(self) -> tuple[int, ...]:
        """The shape of what it fills."""
        if not self.transposed:
            return self.shape
        matrices, inputs, outputs = self.shape
        return (matrices * outputs, inputs)

    def row_order(self, count: int | None = None) -> npt.NDArray[np.int64]:
        """Indices of the checkpoint's rows in the model's order; of its first ``count`` rows (None: of all)."""
        size, order = len(self.order), np.arange(self.shape[0] if count is None else count)
        heads = order[: self.heads * size].reshape(self.heads, size)
        order[: self.heads * size] = heads[:, np.asarray(self.order)].reshape(-1)
        return order


Table = dict[ParameterPath, tuple[Source, ...]]
"""The tensors of each parameter: those that fill it, one below the other along the first axis."""

_IGNORED = re.compile(r".*\.rotary_emb\.inv_freq$")


def checkpoint_table(config: DecoderConfig) -> Table:
    """The tensors of a checkpoint in Hugging Face's naming, which most families take from Llama."""
    hidden, prefix = config.hidden_size, config.layout.prefix
    table: Table = {
        ("embedding",): (Source(f"{prefix}model.embed_tokens.weight", (config.vocab_size, hidden)),),
        ("norm", "weight"): (Source(f"{prefix}model.norm.weight", (hidden,)),),
    }
    if not config.tie_word_embeddings:
        table["lm_head",] = (Source(f"{prefix}lm_head.weight", (config.vocab_size, hidden)),)
    for layer in range(config.num_layers):
        for path, sources in _layer(config, layer).items():
            table["layers", layer, *path] = tuple(
                dataclasses.replace(source, name=f"{prefix}model.layers.{layer}.{source.name}") for source in sources
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
    return table | _feed_forward(config, ("mlp",), config.layout.feed_forward, config.intermediate_size)


def _feed_forward(config: DecoderConfig, path: ParameterPath, name: str, inner: int) -> Table:
    parts = [(f"{name}.gate_proj", inner), (f"{name}.up_proj", inner)]
    if config.layout.fused:
        parts = [(f"{name}.gate_up_proj", 2 * inner)]
    table = _linear((*path, "gate_up_proj"), parts, config.hidden_size, bias=config.mlp_bias)
    down = [(f"{name}.down_proj", config.hidden_size)]
    return table | _linear((*path, "down_proj"), down, inner, bias=config.mlp_bias)


def _norm_names(config: DecoderConfig) -> dict[str, str]:
    """A layer's norms by our names and by theirs: what a name means depends on what else is normalised."""
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
    if config.layout.fused:
        parts = [("self_attn.qkv_proj", sum(sizes))]
    table = _linear(("attention", "qkv_proj"), parts, config.hidden_size, bias=config.qkv_bias)
    if order := config.head_order:
        assert not config.qk_norm, "weights of norms would have to follow"
        heads = (config.num_heads, config.num_kv_heads, 0)
        turned = (sum(heads),) if config.layout.fused else heads
        for path, sources in table.items():
            table[path] = tuple(
                dataclasses.replace(part, heads=count, order=order) if count else part
                for part, count in zip(sources, turned, strict=True)
            )
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
    layer, router, parts = experts.names
    table: Table = {("mlp", "router"): (Source(f"{layer}.{router}.weight", (experts.count, hidden)),)}
    if experts.shared:
        table |= _feed_forward(config, ("mlp", "shared"), f"{layer}.shared_expert", experts.shared)
    if experts.stacked:
        both, down = (f"{layer}.experts.{part}" for part in parts)
        table["mlp", "gate_up"] = (Source(both, (experts.count, hidden, 2 * experts.size), transposed=True),)
        table["mlp", "down"] = (Source(down, (experts.count, experts.size, hidden), transposed=True),)
        return table
    gate, up, down = parts

    def of_all(parts: Sequence[str], shape: tuple[int, int]) -> tuple[Source, ...]:
        return tuple(
            Source(f"{layer}.experts.{index}.{part}.weight", shape) for index in range(experts.count) for part in parts
        )

    table["mlp", "gate_up"] = of_all((gate, up), (experts.size, hidden))
    table["mlp", "down"] = of_all((down,), (hidden, experts.size))
    return table


def is_ignored(name: str, config: DecoderConfig) -> bool:
    """Whether a tensor may be in a checkpoint although nothing uses it."""
    if _IGNORED.match(name) or name.startswith(config.layout.others):
        return True
    return config.tie_word_embeddings and name == f"{config.layout.prefix}lm_head.weight"
