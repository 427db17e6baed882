"""From the weights of a checkpoint to the layout and precision that a platform multiplies fastest."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
from flax import nnx

from asurge.errors import ConfigError
from asurge.models.decoder import Decoder
from asurge.models.layers import Int8Linear, Linear, PackedLinear
from asurge.ops import native
from asurge.ops.packed import BF16_DEPTH, COLUMNS, INT8_DEPTH, bit_patterns

_log = logging.getLogger("asurge")


def convert(model: Decoder, *, kernels: str, quantization: str | None) -> str | None:
    """Replace the linear layers of a loaded model in place, one after another, so that memory peaks at one extra layer.

    Returns:
        Why the products run in plain XLA although kernels were wanted, or None.

    Raises:
        ConfigError: the kernels asked for by name cannot serve the model.
    """
    int8 = quantization == "int8"
    if int8 and model.config.experts is not None:
        raise ConfigError("quantization='int8' does not cover mixtures of experts: leave it out")
    # On accelerators, XLA's own products are wanted.
    wanted = kernels == "native" or (kernels == "auto" and jax.default_backend() == "cpu")
    reason = unable(model, int8=int8) if wanted else None
    if reason is not None:
        if kernels == "native":
            raise ConfigError(f"kernels='native' cannot serve this model: {reason}; use kernels='auto' or 'xla'")
        _log.warning("matrix products run in plain XLA: %s", reason)
    packed = wanted and reason is None
    if packed or int8:
        for block in model.layers:
            for owner, name in ((block.attention, "qkv_proj"), (block.attention, "o_proj"), (block.mlp, "gate_up_proj"), (block.mlp, "down_proj")):  # fmt: skip
                setattr(owner, name, _converted(getattr(owner, name), packed=packed, int8=int8))
        _convert_head(model, packed=packed, int8=int8)
    return reason


def unable(model: Decoder, *, int8: bool) -> str | None:
    """Why the CPU kernels cannot multiply this model's weights, or None."""
    config, depth = model.config, INT8_DEPTH if int8 else BF16_DEPTH
    if model.embedding[...].dtype != jnp.bfloat16:
        return f"dtype={model.embedding[...].dtype.name} is not bfloat16"
    if config.experts is not None:
        return "the model is a mixture of experts"
    sizes = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads * head_dim": config.q_size,
    }
    for name, size in sizes.items():
        if size % depth:
            return f"{name}={size} is not a multiple of {depth}"
    if (config.q_size + 2 * config.kv_size) % COLUMNS:
        return f"the projection to {config.q_size + 2 * config.kv_size} is not a multiple of {COLUMNS}"
    return native.unavailable()


def _converted(layer: Linear, *, packed: bool, int8: bool) -> PackedLinear | Int8Linear:
    weight = layer.weight[...]
    if packed:
        new: PackedLinear | Int8Linear = PackedLinear(
            weight, layer.bias, int8=int8, gated=layer.gated, activation=layer.activation
        )
    else:
        new = Int8Linear(weight, layer.bias, gated=layer.gated, activation=layer.activation)
    jax.block_until_ready(nnx.state(new))
    weight.delete()
    return new


def _convert_head(model: Decoder, *, packed: bool, int8: bool) -> None:
    tied, table = model.lm_head is None, model.embedding[...]
    weight = table if model.lm_head is None else model.lm_head[...]
    model.head = PackedLinear(weight, None, int8=int8) if packed else Int8Linear(weight, None)
    jax.block_until_ready(nnx.state(model.head))
    if not tied:
        weight.delete()
        model.lm_head = None
    if packed:
        # One packed bf16 table serves both look-up and projection; beside an int8 head the plain table stays.
        shared = tied and not int8
        model.embedding = model.head.weight if shared else nnx.Param(bit_patterns(table).block_until_ready())
        table.delete()
