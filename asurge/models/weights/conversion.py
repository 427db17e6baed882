"""Convert the weights of a checkpoint to the layout and precision that a platform multiplies fastest."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
from flax import nnx

from asurge.config import Kernels
from asurge.errors import ConfigError
from asurge.models.decoder import LINEARS, Decoder, SparseMLP
from asurge.models.formats import GROUPED, QUANTIZATIONS, WeightFormat
from asurge.models.layers import Int8Linear, Linear
from asurge.models.weights.loading import Stored, read_all, value_of
from asurge.models.weights.packing import pack_model
from asurge.ops import native
from asurge.ops.kernels import fall_back, wants_native_products
from asurge.ops.packed import COLUMNS

_log = logging.getLogger("asurge")


def convert(model: Decoder, *, kernels: Kernels, quantization: str | None) -> str | None:
    """Replace the linear layers of a model in place, one after another.

    Memory peaks at one extra layer. What is still in a checkpoint (`open_model`) is read. Weights that are quantised there stay
    as they are, where kernels multiply them.

    Returns:
        Why the products run in plain XLA although kernels were wanted, or None.

    Raises:
        ConfigError: the kernels asked for by name cannot serve the model.
    """
    fmt, as_stored = QUANTIZATIONS[quantization], quantization is None
    wanted = wants_native_products(kernels, jax.default_backend())
    reason = unable(model, fmt, as_stored=as_stored) if wanted else None
    if reason is not None:
        fall_back("matrix products", kernels, reason)
    packs = wanted and reason is None
    if quantization == "int4" and not packs:
        why = reason or "kernels other than the CPU's are wanted"
        raise ConfigError(
            f"quantization='int4' needs the CPU kernels, which do not serve this model ({why}): leave it out"
        )
    widened = sorted(stored_types(model, but_grouped=packs and as_stored))
    if widened:
        _log.warning("weights in %s are widened to the engine's dtype as they are read", ", ".join(widened))
    if packs:
        pack_model(model, fmt, as_stored=as_stored)
    elif quantization == "int8":
        if model.config.experts is not None:
            raise ConfigError("quantization='int8' covers mixtures of experts in the CPU kernels alone: leave it out")
        _quantize(model)
    read_all(model)
    return reason


def stored_types(model: Decoder, *, but_grouped: bool) -> set[str]:
    """The types in which weights are quantised in their checkpoint.

    Args:
        but_grouped: leave out those that kernels multiply as they are.
    """
    parameters = [node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)]
    stored = [value for one in parameters if isinstance(value := one.get_value(), Stored)]
    return {kind for value in stored if not (but_grouped and GROUPED.holds(value)) for kind in value.types()}


def unable(model: Decoder, fmt: WeightFormat, *, as_stored: bool) -> str | None:
    """Why the CPU kernels cannot multiply this model's weights, or None."""
    config = model.config
    dtype = model.output_table.get_value().dtype
    if dtype != jnp.bfloat16:
        return f"dtype={dtype.name} is not bfloat16"
    sizes = {"hidden_size": config.hidden_size, "num_attention_heads * head_dim": config.q_size}
    if config.experts is None:
        sizes["intermediate_size"] = config.intermediate_size
    elif (reason := _unable_experts(model)) is not None:
        return reason
    else:
        sizes["the experts' intermediate size"] = config.experts.size
    first = model.layers[0]
    weights = [
        getattr(getattr(first, owner), name).weight
        for owner, name in LINEARS
        if owner != "mlp" or config.experts is None
    ]
    if isinstance(first.mlp, SparseMLP):
        weights += [first.mlp.gate_up, first.mlp.down]
    grouped = as_stored and all(GROUPED.holds(weight.get_value()) for weight in weights)
    depth = GROUPED.depth if grouped else fmt.depth
    for name, size in sizes.items():
        if size % depth:
            return f"{name}={size} is not a multiple of {depth}"
    if (config.q_size + 2 * config.kv_size) % COLUMNS:
        return f"the projection to {config.q_size + 2 * config.kv_size} is not a multiple of {COLUMNS}"
    return native.unavailable()


def _unable_experts(model: Decoder) -> str | None:
    config = model.config
    assert config.experts is not None
    if config.experts.shared or not all(map(config.is_sparse, range(config.num_layers))):
        return "the model has experts beside others, or layers without them"
    for block in model.layers:
        value = block.mlp.gate_up.get_value()
        if isinstance(value, Stored) and value.splits % config.experts.count:
            return "the experts are one tensor in the checkpoint"
    return None


def _quantize(model: Decoder) -> None:
    """Quantize the linear layers to 8 bits, for plain XLA."""
    for block in model.layers:
        for owner, name in LINEARS:
            module = getattr(block, owner)
            setattr(module, name, _in_int8(getattr(module, name)))
    assert isinstance(model.embedding, nnx.Param)
    table = value_of(model.output_table)
    model.head = Int8Linear(table, None)
    jax.block_until_ready(nnx.state(model.head))
    if model.lm_head is None:
        model.embedding.set_value(table)
    else:
        table.delete()
        model.lm_head = None


def _in_int8(layer: Linear) -> Int8Linear:
    """The weight that it is made of is freed."""
    weight = value_of(layer.weight)
    new = Int8Linear(weight, layer.bias, gated=layer.gated, activation=layer.activation)
    jax.block_until_ready(nnx.state(new))
    weight.delete()
    return new
