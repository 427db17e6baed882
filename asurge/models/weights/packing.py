"""A model's weights in the order in which the CPU kernels read them, those of all layers together (`asurge.models.formats`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
from flax import nnx

from asurge.models.decoder import LINEARS, Decoder, PackedSparseMLP, SparseMLP
from asurge.models.formats import GROUPED, Parts, RawSource, WeightFormat
from asurge.models.formats.tiles import stacked
from asurge.models.layers import Linear, PackedLinear, PackedTable, RMSNorm
from asurge.models.weights.loading import Stored, value_of
from asurge.ops.packed import bit_patterns, interleave


def pack_model(model: Decoder, fmt: WeightFormat, *, as_stored: bool) -> None:
    """Pack a model's weights into one block, in place and one weight after another.

    Those that are still in a checkpoint go straight from there to where products read them.

    Args:
        fmt: of weights that are floating-point numbers in their checkpoint.
        as_stored: keep those that are quantised there as they are.
    """

    def format_of(weights: Sequence[jax.Array | RawSource]) -> WeightFormat:
        return GROUPED if as_stored and all(map(GROUPED.holds, weights)) else fmt

    _pack_head(model, format_of)  # the largest first, while it is held twice
    blocks = list(model.layers)
    sparse = [block.mlp for block in blocks if isinstance(block.mlp, SparseMLP)]
    for owner, name in LINEARS:
        if owner == "mlp" and sparse:
            continue
        owners = [getattr(block, owner) for block in blocks]
        layers: list[Linear] = [getattr(one, name) for one in owners]
        setattr(owners[0], name, _pack_layers(layers, format_of([layer.weight.get_value() for layer in layers])))
    if sparse:
        blocks[0].mlp = _pack_experts(sparse, format_of)
    for norms in zip(*map(_norms, blocks), strict=True):
        norms[0].weight = nnx.Param(stacked([value_of(norm.weight) for norm in norms]))
    model.layers = nnx.List(blocks[:1])


def _pack_head(model: Decoder, format_of: Callable[[Sequence[jax.Array | RawSource]], WeightFormat]) -> None:
    """Pack the head, and the embedding where it is the same or is quantised: one packed table serves both."""
    embedding, depth = model.embedding, model.config.hidden_size
    assert isinstance(embedding, nnx.Param)
    tied, table = model.lm_head is None, embedding.get_value()
    body = format_of([table])
    fmt, shared = body.head, None
    if fmt.looks_up and (tied or body is GROUPED):
        shared = _parameters(fmt.pack([table], gated=False))
        model.embedding = PackedTable(fmt, shared, depth)
    if tied and shared is not None:
        model.head = PackedLinear(fmt, shared, None)
        return
    plain = None if shared is not None else value_of(embedding)
    own = plain if model.lm_head is None else model.lm_head.get_value()
    assert own is not None
    fmt = format_of([own]).head
    model.head = PackedLinear(fmt, _parameters(fmt.pack([own], gated=False, free=not tied)), None)
    model.lm_head = None
    if plain is not None:
        model.embedding = nnx.Param(bit_patterns(plain).block_until_ready())
        plain.delete()


def _pack_layers(layers: Sequence[Linear], fmt: WeightFormat) -> PackedLinear:
    """Layers that do the same in different blocks."""
    first = layers[0]
    parts = _parameters(fmt.pack([layer.weight.get_value() for layer in layers], gated=first.gated))
    biases = [value_of(layer.bias) for layer in layers if layer.bias is not None]
    biases = [interleave(bias) if first.gated else bias for bias in biases]
    bias = nnx.Param(stacked(biases)) if biases else None
    return PackedLinear(fmt, parts, bias, gated=first.gated, activation=first.activation)


def _pack_experts(
    layers: Sequence[SparseMLP], format_of: Callable[[Sequence[jax.Array | RawSource]], WeightFormat]
) -> PackedSparseMLP:
    """The experts of all layers."""
    experts, activation = layers[0].experts, layers[0].activation

    def pack(name: str, *, gated: bool) -> PackedLinear:
        weights = [part for layer in layers for part in matrices(getattr(layer, name).get_value(), experts.count)]
        fmt = format_of(weights)
        parts = _parameters(fmt.pack(weights, gated=gated))
        for layer in layers:
            if isinstance(whole := getattr(layer, name).get_value(), jax.Array):
                whole.delete()
        return PackedLinear(fmt, parts, None, gated=gated, activation=activation)

    router = nnx.Param(stacked([value_of(layer.router) for layer in layers]))
    return PackedSparseMLP(experts, router, pack("gate_up", gated=True), pack("down", gated=False))


def matrices(value: jax.Array | Stored, count: int) -> list[jax.Array | RawSource]:
    """Matrices that lie one below the other in a parameter: those of its experts."""
    if isinstance(value, Stored):
        return list(value.split(count))
    return list(value.reshape(count, -1, value.shape[1]))


def _parameters(parts: Parts) -> nnx.Dict:
    return nnx.Dict({name: nnx.Param(array) for name, array in parts.items()})


def _norms(block: nnx.Module) -> list[RMSNorm]:
    """All of a block, in an order that is the same for all blocks."""
    return [module for _, module in nnx.iter_modules(block) if isinstance(module, RMSNorm)]
