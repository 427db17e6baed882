"""Matrix products in the forms XLA runs at memory speed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

WEIGHT_LEFT_ROWS = 64
"""Up to this many rows a product is bound by reading the weight, so the weight is the left operand."""

_CONTRACT_LAST = (((1,), (1,)), ((), ()))


def linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None, dtype: jnp.dtype | None = None) -> jax.Array:
    """``x [rows, in]``, ``weight [out, in]`` -> ``[rows, out]`` in ``dtype`` (default: that of ``x``).

    Accumulates in float32: bf16 results make jax 0.10 on CPU convert the whole weight on each call.
    On CPU, few rows go through the weight-left form behind a barrier (1.3 to 1.7x at the layer sizes
    of small models: XLA otherwise folds the transpose back into the slow form), and never as one row
    (9x slower than two).
    """
    rows = x.shape[0]
    if jax.default_backend() == "cpu" and rows <= WEIGHT_LEFT_ROWS:
        padded = jnp.pad(x, ((0, 1), (0, 0))) if rows == 1 else x
        out = lax.dot_general(weight, padded, _CONTRACT_LAST, preferred_element_type=jnp.float32)
        out = lax.optimization_barrier(out).T[:rows]
    else:
        out = _product(x, weight)
    if bias is not None:
        out = out + bias.astype(jnp.float32)
    return out.astype(x.dtype if dtype is None else dtype)


@jax.custom_vjp
def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """``x @ weight.T`` in float32. Its gradients multiply in the operands' dtype: XLA would otherwise widen
    bf16 operands to meet the float32 gradient, at a quarter of the speed."""
    return lax.dot_general(x, weight, _CONTRACT_LAST, preferred_element_type=jnp.float32)


def _product_forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, weight), (x, weight)


def _product_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    gradient = gradient.astype(x.dtype)
    to_x = lax.dot_general(gradient, weight, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    to_weight = lax.dot_general(gradient, x, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32)
    return to_x.astype(x.dtype), to_weight.astype(weight.dtype)


_product.defvjp(_product_forward, _product_backward)


def quantize_int8(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Symmetric, scaled by the largest along the last axis: ``[..., in]`` -> int8 ``[..., in]`` and float32 scales ``[...]``."""
    wide = weight.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(wide).max(axis=-1), 1e-30) / 127.0
    return jnp.round(wide / scale[..., None]).astype(jnp.int8), scale


def linear_int8(
    x: jax.Array, weight: jax.Array, scale: jax.Array, bias: jax.Array | None = None, dtype: jnp.dtype | None = None
) -> jax.Array:
    """`linear` with an int8 ``weight [out, in]`` from `quantize_int8` and its ``scale [out]``.

    Rows of x are quantised as they come: int8 times float falls off XLA:CPU's fast path, int8 times int8 reads half as
    much as bf16.
    """
    rows = x.shape[0]
    quantized, x_scale = quantize_int8(jnp.pad(x, ((0, 1), (0, 0))) if rows == 1 else x)
    if jax.default_backend() == "cpu" and rows <= WEIGHT_LEFT_ROWS:
        product = lax.dot_general(weight, quantized, _CONTRACT_LAST, preferred_element_type=jnp.int32)
        product = lax.optimization_barrier(product).T
    else:
        product = lax.dot_general(quantized, weight, _CONTRACT_LAST, preferred_element_type=jnp.int32)
    out = (product.astype(jnp.float32) * (x_scale[:, None] * scale[None, :]))[:rows]
    if bias is not None:
        out = out + bias.astype(jnp.float32)
    return out.astype(x.dtype if dtype is None else dtype)
