"""A model's weights in the order in which the CPU kernels read them, those of all layers together (`asurge.ops.packed`)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from asurge.models.decoder import Decoder
from asurge.models.layers import Linear, PackedLinear, RMSNorm
from asurge.ops.linear import quantize_int8
from asurge.ops.native.memory import empty
from asurge.ops.packed import COLUMNS, bit_patterns, interleave, pack

Operands = tuple[jax.Array, jax.Array | None, jax.Array | None]
"""Weight, scale and bias, as `asurge.ops.packed.packed_linear` takes them."""


def pack_model(model: Decoder, *, int8: bool) -> None:
    """Make one block of a model's blocks, in place and one weight after another, so that memory peaks at one extra layer."""
    blocks = list(model.layers)
    for owner, name in (("attention", "qkv_proj"), ("attention", "o_proj"), ("mlp", "gate_up_proj"), ("mlp", "down_proj")):  # fmt: skip
        owners = [getattr(block, owner) for block in blocks]
        setattr(owners[0], name, _pack_layers([getattr(one, name) for one in owners], int8=int8))
    for norms in zip(*map(_norms, blocks), strict=True):
        norms[0].weight = nnx.Param(jnp.asarray(np.stack([np.asarray(norm.weight[...]) for norm in norms])))
    model.layers = nnx.List(blocks[:1])
    _pack_head(model, int8=int8)


def _pack_layers(layers: Sequence[Linear], *, int8: bool) -> PackedLinear:
    """Layers that do the same in different blocks; their weights are freed."""
    first = layers[0]
    stacks = _stack(
        [layer.weight for layer in layers], [layer.bias for layer in layers], gated=first.gated, int8=int8, free=True
    )
    return PackedLinear(*stacks, gated=first.gated, activation=first.activation)


def _pack_head(model: Decoder, *, int8: bool) -> None:
    table, head = model.embedding, model.lm_head
    weight, scale, _ = _stack([table if head is None else head], [None], gated=False, int8=int8, free=head is not None)
    model.head, model.lm_head = PackedLinear(weight, scale, None), None
    # One packed bf16 table serves both look-up and projection; beside an int8 head the plain table stays.
    shared = head is None and not int8
    model.embedding = weight if shared else nnx.Param(bit_patterns(table[...]).block_until_ready())
    table[...].delete()


def _stack(
    weights: Sequence[nnx.Param], biases: Sequence[nnx.Param | None], *, gated: bool, int8: bool, free: bool
) -> tuple[nnx.Param, nnx.Param | None, nnx.Param | None]:
    """What a `PackedLinear` is made of, ``[layers, ...]``, from ``[columns, depth]`` and ``[columns]`` of each layer."""
    made = jax.eval_shape(partial(_pack, gated=gated, int8=int8), weights[0][...], _value(biases[0]))
    stacks: Operands = jax.tree.map(lambda one: empty((len(weights), *one.shape), one.dtype), made)
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        stacks = _put(stacks, np.int32(index), weight[...], _value(bias), gated=gated, int8=int8)
        jax.block_until_ready(stacks)
        if free:
            weight[...].delete()
    packed, scale, bias_stack = stacks
    return (
        nnx.Param(packed),
        None if scale is None else nnx.Param(scale),
        None if bias_stack is None else nnx.Param(bias_stack),
    )


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


def _value(parameter: nnx.Param | None) -> jax.Array | None:
    return None if parameter is None else parameter[...]
