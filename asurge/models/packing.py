"""A model's weights in the order in which the CPU kernels read them, those of all layers together (`asurge.ops.packed`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from asurge.models.decoder import LINEARS, Decoder
from asurge.models.layers import Linear, PackedLinear, RMSNorm
from asurge.ops.linear import quantize_int8
from asurge.ops.native.memory import empty
from asurge.ops.packed import COLUMNS, bit_patterns, interleave, pack

Operands = tuple[jax.Array, jax.Array | None, jax.Array | None]
"""Weight, scale and bias, as `asurge.ops.packed.packed_linear` takes them."""


def pack_model(model: Decoder, *, int8: bool) -> None:
    """Make one block of a model's blocks, in place and one weight after another, so that memory peaks at one extra layer."""
    blocks = list(model.layers)
    for owner, name in LINEARS:
        owners = [getattr(block, owner) for block in blocks]
        setattr(owners[0], name, _pack_layers([getattr(one, name) for one in owners], int8=int8))
    for norms in zip(*map(_norms, blocks), strict=True):
        norms[0].weight = nnx.Param(jnp.asarray(np.stack([np.asarray(norm.weight[...]) for norm in norms])))
    model.layers = nnx.List(blocks[:1])
    _pack_head(model, int8=int8)


def _pack_layers(layers: Sequence[Linear], *, int8: bool) -> PackedLinear:
    """Layers that do the same in different blocks; their weights are freed."""
    first = layers[0]
    plain = [(layer.weight[...], None if layer.bias is None else layer.bias[...]) for layer in layers]
    stacks = _stack(plain, gated=first.gated, int8=int8, free=True)
    return PackedLinear(*stacks, gated=first.gated, activation=first.activation)


def _pack_head(model: Decoder, *, int8: bool) -> None:
    table, tied = model.embedding[...], model.lm_head is None
    weight, scale, bias = _stack([(model.output_table[...], None)], gated=False, int8=int8, free=not tied)
    model.head, model.lm_head = PackedLinear(weight, scale, bias), None
    # One packed bf16 table serves both look-up and projection; beside an int8 head the plain table stays.
    shared = tied and not int8
    model.embedding = weight if shared else nnx.Param(bit_patterns(table).block_until_ready())
    table.delete()


def _stack(
    layers: Sequence[tuple[jax.Array, jax.Array | None]], *, gated: bool, int8: bool, free: bool
) -> tuple[nnx.Param, nnx.Param | None, nnx.Param | None]:
    """What a `PackedLinear` is made of, ``[layers, ...]``, from each layer's ``[columns, depth]`` and ``[columns]``."""
    made = jax.eval_shape(partial(_pack, gated=gated, int8=int8), *layers[0])
    stacks: Operands = jax.tree.map(lambda one: empty((len(layers), *one.shape), one.dtype), made)
    for index, (weight, bias) in enumerate(layers):
        stacks = _put(stacks, np.int32(index), weight, bias, gated=gated, int8=int8)
        jax.block_until_ready(stacks)
        if free:
            weight.delete()
    parameters: tuple[nnx.Param, nnx.Param | None, nnx.Param | None] = jax.tree.map(nnx.Param, stacks)
    return parameters


@partial(jax.jit, static_argnames=("gated", "int8"), donate_argnums=0)
def _put(
    stacks: Operands, layer: jax.Array, weight: jax.Array, bias: jax.Array | None, *, gated: bool, int8: bool
) -> Operands:
    """One layer into its place among the others."""
    packed = _pack(weight, bias, gated=gated, int8=int8)
    put: Operands = jax.tree.map(lambda to, one: lax.dynamic_update_index_in_dim(to, one, layer, 0), stacks, packed)
    return put


def _pack(weight: jax.Array, bias: jax.Array | None, *, gated: bool, int8: bool) -> Operands:
    """One layer."""
    scale = None
    if gated:
        weight, bias = interleave(weight), None if bias is None else interleave(bias)
    if int8:
        weight, scale = quantize_int8(weight)
        scale = jnp.pad(scale, (0, -len(scale) % COLUMNS))
    return pack(weight), scale, bias


def _norms(block: nnx.Module) -> list[RMSNorm]:
    """All of a block, in an order that is the same for all blocks."""
    return [module for _, module in nnx.iter_modules(block) if isinstance(module, RMSNorm)]
