"""The pieces a decoder is made of. A linear layer includes what surrounds it, so that a kernel may do it all in one pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from asurge.models.formats.interface import WeightFormat
from asurge.ops.linear import linear, linear_int8, quantize_int8
from asurge.ops.norm import Activation, gate, rms_norm


def matrix(rngs: nnx.Rngs | None, shape: tuple[int, ...], dtype: jnp.dtype) -> nnx.Param:
    """Make a random matrix, with a standard deviation of 0.02; without ``rngs`` zeros.

    Zeros are for a module of which only shapes are wanted: in a trace, a key takes longer the more there is in it (the 121 of S
    half a second).
    """
    if rngs is None:
        return nnx.Param(jnp.zeros(shape, dtype))
    return nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape, dtype))


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis (Zhang and Sennrich, 2019).

    Args:
        offset: multiply by 1 + weight, in float32 (Gemma).

    Weights are ``[size]``; or ``[layers, size]``, and callers say which layer is meant.
    """

    def __init__(self, size: int, *, eps: float, dtype: jnp.dtype, offset: bool = False) -> None:
        self.weight = nnx.Param(jnp.ones((size,), dtype))
        self.eps, self.offset = eps, offset

    def factor(self, layer: int | jax.Array = 0) -> jax.Array:
        """The factor that it multiplies by, ``[size]``."""
        weight: jax.Array = self.weight[...]
        weight = weight if weight.ndim == 1 else weight[layer]
        return 1.0 + weight.astype(jnp.float32) if self.offset else weight

    def __call__(self, x: jax.Array, layer: int | jax.Array = 0) -> jax.Array:
        return rms_norm(x, self.factor(layer), self.eps)


class _Composed(nnx.Module):
    """``residual + act(norm(x) @ weight.T + bias)``, put together from its parts by plain JAX.

    Attributes:
        gated: the outputs are gate and up; the result is ``activation(gate) * up``.
    """

    gated: bool
    activation: Activation

    def __call__(
        self,
        x: jax.Array,
        *,
        norm: RMSNorm | None = None,
        residual: jax.Array | None = None,
        live: jax.Array | None = None,
        dtype: jnp.dtype | None = None,
        layer: int | jax.Array = 0,
    ) -> jax.Array:
        """``x [tokens, in]``, ``residual [tokens, out]`` -> ``[tokens, out]``, or half of it where gated.

        ``live`` (see `asurge.ops.packed.packed_linear`) is a hint that lets kernels leave padding out. ``layer`` is for parameters
        that many layers share.
        """
        out = self.product(x if norm is None else norm(x, layer), dtype)
        out = gate(out, self.activation) if self.gated else out
        return out if residual is None else residual + out

    def product(self, x: jax.Array, dtype: jnp.dtype | None) -> jax.Array:
        """``x @ weight.T + bias`` in ``dtype`` (default: that of ``x``)."""
        raise NotImplementedError


class Linear(_Composed):
    """A linear layer whose weight is ``[out, in]``, as checkpoints have it."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs | None,
        gated: bool = False,
        activation: Activation = "silu",
    ) -> None:
        self.weight = matrix(rngs, (outputs, inputs), dtype)
        self.bias = nnx.Param(jnp.zeros((outputs,), dtype)) if bias else None
        self.gated, self.activation = gated, activation

    def product(self, x: jax.Array, dtype: jnp.dtype | None) -> jax.Array:
        return linear(x, self.weight[...], _value(self.bias), dtype)


class Int8Linear(_Composed):
    """A `Linear` in 8 bits: weights per output channel, activations per token as they come (W8A8, dynamic)."""

    def __init__(
        self, weight: jax.Array, bias: nnx.Param | None, *, gated: bool = False, activation: Activation = "silu"
    ) -> None:
        quantized, scale = quantize_int8(weight)
        self.weight, self.scale, self.bias = nnx.Param(quantized), nnx.Param(scale), bias
        self.gated, self.activation = gated, activation

    def product(self, x: jax.Array, dtype: jnp.dtype | None) -> jax.Array:
        return linear_int8(x, self.weight[...], self.scale[...], _value(self.bias), dtype)


class PackedLinear(nnx.Module):
    """A `Linear` for the CPU kernels: everything in one pass over a weight in memory order.

    It stands for the layers that do the same in all blocks.

    Args:
        format: how weights are stored.
        parts: the arrays in which the format keeps them; the same may be a `PackedTable`'s.
        bias: ``[layers, ...]``.
    """

    def __init__(
        self,
        format: WeightFormat,
        parts: nnx.Dict,
        bias: nnx.Param | None,
        *,
        gated: bool = False,
        activation: Activation = "silu",
    ) -> None:
        self.format, self.parts, self.bias = format, parts, bias
        self.gated, self.activation = gated, activation

    def __call__(
        self,
        x: jax.Array,
        *,
        norm: RMSNorm | None = None,
        residual: jax.Array | None = None,
        live: jax.Array | None = None,
        dtype: jnp.dtype = jnp.bfloat16,
        layer: int | jax.Array = 0,
        row_layers: jax.Array | None = None,
    ) -> jax.Array:
        x, factor, epsilon = _to_normalise(x, norm, layer)
        return self.format.linear(
            x,
            _arrays(self.parts),
            norm=factor,
            epsilon=epsilon,
            bias=_value(self.bias),
            residual=residual,
            live=live,
            gated=self.gated,
            activation=self.activation,
            dtype=dtype,
            layer=layer,
            row_layers=row_layers,
        )

    def argmax(
        self,
        x: jax.Array,
        *,
        norm: RMSNorm,
        live: jax.Array | None,
        candidates: int,
        allowed: jax.Array | None = None,
    ) -> jax.Array:
        """The first of the ``candidates`` outputs, or of those ``allowed``, with the largest value, int32 ``[tokens]``."""
        x, factor, epsilon = _to_normalise(x, norm)
        return self.format.argmax(
            x,
            _arrays(self.parts),
            norm=factor,
            epsilon=epsilon,
            live=live,
            allowed=allowed,
            candidates=candidates,
        )


class PackedTable(nnx.Module):
    """An embedding in the order in which products read it, as is one that is also the head.

    Args:
        depth: numbers in a row.
    """

    def __init__(self, format: WeightFormat, parts: nnx.Dict, depth: int) -> None:
        self.format, self.parts, self.depth = format, parts, depth

    def take(self, tokens: jax.Array) -> jax.Array:
        """The rows of tokens, bf16 ``[tokens, depth]``."""
        return self.format.take(_arrays(self.parts), tokens, self.depth)


def _to_normalise(
    x: jax.Array, norm: RMSNorm | None, layer: int | jax.Array = 0
) -> tuple[jax.Array, jax.Array | None, float]:
    """What a kernel is given, and the weights, of all layers, and the epsilon of the norm that it is to do, if any."""
    if norm is None:
        return x, None, 0.0
    if norm.offset:  # the kernels round before they multiply by the weights
        return norm(x, layer), None, 0.0
    return x, norm.weight[...], norm.eps


def _value(parameter: nnx.Param | None) -> jax.Array | None:
    return None if parameter is None else parameter[...]


def _arrays(parts: nnx.Dict) -> dict[str, jax.Array]:
    return {name: parameter[...] for name, parameter in parts.items()}
