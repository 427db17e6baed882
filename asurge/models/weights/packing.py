"""A model's weights in the order in which the CPU kernels read them, those of all layers together (`asurge.ops.packed`)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asurge.models.decoder import LINEARS, Decoder
from asurge.models.layers import Linear, PackedLinear, RMSNorm
from asurge.models.weights.loading import Stored, room_for, value_of
from asurge.ops.native.huge_pages import zeros
from asurge.ops.packed import bit_patterns, interleave, pack, pack_into


def pack_model(model: Decoder, *, int8: bool) -> None:
    """Make one block of a model's blocks, in place and one weight after another. Those that are still in a checkpoint go
    straight from there to where products read them."""
    _pack_head(model, int8=int8)  # the largest first, while it is held twice
    blocks = list(model.layers)
    for owner, name in LINEARS:
        owners = [getattr(block, owner) for block in blocks]
        setattr(owners[0], name, _pack_layers([getattr(one, name) for one in owners], int8=int8))
    for norms in zip(*map(_norms, blocks), strict=True):
        norms[0].weight = nnx.Param(_stacked([value_of(norm.weight) for norm in norms]))
    model.layers = nnx.List(blocks[:1])


def _pack_head(model: Decoder, *, int8: bool) -> None:
    tied = model.lm_head is None
    if tied and not int8:  # one packed table serves both look-up and projection
        weight, _ = _pack_weights([model.embedding.get_value()], gated=False, int8=False)
        model.head, model.embedding = PackedLinear(weight, None, None), weight
        return
    table = value_of(model.embedding)
    plain = table if model.lm_head is None else model.lm_head.get_value()
    weight, scale = _pack_weights([plain], gated=False, int8=int8, free=not tied)
    model.head, model.lm_head = PackedLinear(weight, scale, None), None
    model.embedding = nnx.Param(bit_patterns(table).block_until_ready())
    table.delete()


def _pack_layers(layers: Sequence[Linear], *, int8: bool) -> PackedLinear:
    """Layers that do the same in different blocks."""
    first = layers[0]
    weight, scale = _pack_weights([layer.weight.get_value() for layer in layers], gated=first.gated, int8=int8)
    biases = [value_of(layer.bias) for layer in layers if layer.bias is not None]
    biases = [interleave(bias) if first.gated else bias for bias in biases]
    bias = nnx.Param(_stacked(biases)) if biases else None
    return PackedLinear(weight, scale, bias, gated=first.gated, activation=first.activation)


def _pack_weights(
    weights: Sequence[jax.Array | Stored], *, gated: bool, int8: bool, free: bool = True
) -> tuple[nnx.Param, nnx.Param | None]:
    """``[layers, ...]`` and with int8 their scales, from each layer's ``[columns, depth]``; those on the device are freed."""
    first = jax.eval_shape(pack, jax.ShapeDtypeStruct(weights[0].shape, jnp.int8 if int8 else jnp.bfloat16))
    stack, scales = zeros((len(weights), *first.shape), first.dtype), []
    host = room_for(weights[0].shape, jnp.dtype(jnp.bfloat16))
    for layer, weight in enumerate(weights):
        if isinstance(weight, Stored):
            weight.read_into(host)
        plain = host if isinstance(weight, Stored) else weight
        stack, scale = _put(stack, plain, np.int32(layer), gated=gated)
        scales.append(scale)
        stack.block_until_ready()  # what it was made of may go, or change
        if free and isinstance(weight, jax.Array):
            weight.delete()
    return nnx.Param(stack), nnx.Param(_stacked(scales)) if int8 else None


_put = jax.jit(pack_into, static_argnames="gated", donate_argnums=0)


def _stacked(small: Sequence[jax.Array]) -> jax.Array:
    """Stack arrays on the host: nothing is compiled."""
    return jnp.asarray(np.stack([np.asarray(one) for one in small]))


def _norms(block: nnx.Module) -> list[RMSNorm]:
    """All of a block, in an order that is the same for all blocks."""
    return [module for _, module in nnx.iter_modules(block) if isinstance(module, RMSNorm)]
