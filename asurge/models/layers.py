"""The pieces a decoder is made of. A linear layer includes what surrounds it, so that a kernel may do it all in one pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from asurge.ops.linear import linear, linear_int8, quantize_int8
from asurge.ops.norm import Activation, gate, rms_norm
from asurge.ops.packed import packed_argmax, packed_linear


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis (Zhang and Sennrich, 2019).

    Args:
        offset: multiply by 1 + weight, in float32 (Gemma).

    Attributes:
        layer: the weights are those of many layers, ``[layers, size]``, and this is the one that counts; None: ``[size]``.
    """

    def __init__(self, size: int, *, eps: float, dtype: jnp.dtype, offset: bool = False) -> None:
        self.weight = nnx.Param(jnp.ones((size,), dtype))
        self.eps, self.offset = eps, offset
        self.layer: int | None = None

    @property
    def factor(self) -> jax.Array:
        """What it multiplies by, ``[size]``."""
        weight: jax.Array = self.weight[...] if self.layer is None else self.weight[self.layer]
        return 1.0 + weight.astype(jnp.float32) if self.offset else weight

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.factor, self.eps)


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
    ) -> jax.Array:
        """``x [tokens, in]``, ``residual [tokens, out]`` -> ``[tokens, out]``, or half of it where gated.

        ``live`` (see `asurge.ops.packed.packed_linear`) is a hint that lets kernels leave padding out.
        """
        out = self.product(x if norm is None else norm(x), dtype)
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
        rngs: nnx.Rngs,
        gated: bool = False,
        activation: Activation = "silu",
    ) -> None:
        init = nnx.initializers.normal(0.02)
        self.weight = nnx.Param(init(rngs.params(), (outputs, inputs), dtype))
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
    """A `Linear` for the CPU kernels, in bf16 or int8: everything in one pass over a weight in memory order.

    Layers that do the same in different blocks share their parameters, so that a call of a compiled step has few arrays.

    Attributes:
        weight, scale, bias: see `asurge.ops.packed.packed_linear`; all ``[layers, ...]``.
        layer: the one that this is.
    """

    def __init__(
        self,
        weight: nnx.Param,
        scale: nnx.Param | None,
        bias: nnx.Param | None,
        *,
        layer: int = 0,
        gated: bool = False,
        activation: Activation = "silu",
    ) -> None:
        self.weight, self.scale, self.bias, self.layer = weight, scale, bias, layer
        self.gated, self.activation = gated, activation

    def __call__(
        self,
        x: jax.Array,
        *,
        norm: RMSNorm | None = None,
        residual: jax.Array | None = None,
        live: jax.Array | None = None,
        dtype: jnp.dtype = jnp.bfloat16,
    ) -> jax.Array:
        x, factor, epsilon = self._to_normalise(x, norm)
        return packed_linear(
            x,
            self.weight[...],
            _value(self.scale),
            norm=factor,
            epsilon=epsilon,
            bias=_value(self.bias),
            residual=residual,
            live=live,
            gated=self.gated,
            activation=self.activation,
            dtype=dtype,
            layer=self.layer,
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
        x, factor, epsilon = self._to_normalise(x, norm)
        return packed_argmax(
            x,
            self.weight[...],
            _value(self.scale),
            norm=factor,
            epsilon=epsilon,
            live=live,
            allowed=allowed,
            candidates=candidates,
        )

    def _to_normalise(self, x: jax.Array, norm: RMSNorm | None) -> tuple[jax.Array, jax.Array | None, float]:
        """What a kernel is given, and the weights and the epsilon of the norm that it is to do, if any."""
        if norm is None:
            return x, None, 0.0
        if norm.offset:  # the kernels round before they multiply by the weights
            return norm(x), None, 0.0
        assert (norm.layer or 0) == self.layer
        return x, norm.weight[...], norm.eps


def _value(parameter: nnx.Param | None) -> jax.Array | None:
    return None if parameter is None else parameter[...]
