"""The one decoder that every family composes (Llama, Mistral, Qwen2, Qwen3 and their kin).

Tokens come flat, as ``[tokens]``: which tokens belong together is the business of `attend`, so the same
module runs a packed serving step, a plain causal forward, and training.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from asurge.models.config import DecoderConfig
from asurge.models.layers import Int8Linear, Linear, PackedLinear, RMSNorm
from asurge.ops.attention import Heads
from asurge.ops.linear import linear
from asurge.ops.packed import take_rows
from asurge.ops.rotary import rotary
from asurge.ops.sampling import argmax
from asurge.ops.shaping import allow


class Attend(Protocol):
    """Attention over whatever came before; writes this step's keys and values where it keeps them."""

    def __call__(self, layer: int, heads: Heads) -> jax.Array:
        """Returns ``[tokens, num_heads, head_dim]`` in the dtype of ``heads.qkv``."""
        ...


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; queries, keys and values in one product."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.config = config
        width = config.q_size + 2 * config.kv_size
        self.qkv_proj = Linear(config.hidden_size, width, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.o_proj = Linear(config.q_size, config.hidden_size, bias=config.output_bias, dtype=dtype, rngs=rngs)
        eps = config.rms_norm_eps
        self.q_norm = RMSNorm(config.head_dim, eps=eps, dtype=dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, eps=eps, dtype=dtype) if config.qk_norm else None

    def __call__(
        self,
        x: jax.Array,
        norm: RMSNorm,
        rotary: tuple[jax.Array, jax.Array],
        attend: Attend,
        layer: int,
        live: jax.Array | None,
    ) -> jax.Array:
        """``x`` and what attention over ``norm(x)`` adds to it."""
        config = self.config
        heads = Heads(
            self.qkv_proj(x, norm=norm, live=live).reshape(x.shape[0], -1, config.head_dim),
            config.num_heads,
            config.num_kv_heads,
            *rotary,
            q_norm=None if self.q_norm is None else self.q_norm.weight[...],
            k_norm=None if self.k_norm is None else self.k_norm.weight[...],
            epsilon=config.rms_norm_eps,
        )
        return self.o_proj(attend(layer, heads).reshape(x.shape[0], config.q_size), residual=x, live=live)


class MLP(nnx.Module):
    """Gated feed-forward; gate and up in one product."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_up_proj = Linear(hidden, 2 * inner, bias=bias, dtype=dtype, rngs=rngs, gated=True)
        self.down_proj = Linear(inner, hidden, bias=bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, norm: RMSNorm, live: jax.Array | None) -> jax.Array:
        """``x`` and what the feed-forward of ``norm(x)`` adds to it."""
        return self.down_proj(self.gate_up_proj(x, norm=norm, live=live), residual=x, live=live)


class Block(nnx.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        eps = config.rms_norm_eps
        self.input_norm = RMSNorm(config.hidden_size, eps=eps, dtype=dtype)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.post_attention_norm = RMSNorm(config.hidden_size, eps=eps, dtype=dtype)
        self.mlp = MLP(config, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        rotary: tuple[jax.Array, jax.Array],
        attend: Attend,
        layer: int,
        live: jax.Array | None,
    ) -> jax.Array:
        x = self.attention(x, self.input_norm, rotary, attend, layer, live)
        return self.mlp(x, self.post_attention_norm, live)


class Decoder(nnx.Module):
    """A decoder-only language model. Layers are unrolled: on CPU `lax.scan` is 1.6x (jax 0.12) to 15x slower."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.config = config
        self.rotary = rotary(config.head_dim, config.rope_theta, config.max_position_embeddings, config.rope_scaling)
        init = nnx.initializers.normal(0.02)
        table = (config.vocab_size, config.hidden_size)
        self.embedding = nnx.Param(init(rngs.params(), table, dtype))
        self.layers = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.lm_head = None if config.tie_word_embeddings else nnx.Param(init(rngs.params(), table, dtype))
        # What conversion puts in the place of the head's matrix.
        self.head: PackedLinear | Int8Linear | None = nnx.data(None)

    def __call__(
        self, tokens: jax.Array, positions: jax.Array, attend: Attend, live: jax.Array | None = None
    ) -> jax.Array:
        """``tokens, positions [tokens]`` -> hidden states ``[tokens, hidden]``, before the last normalisation.

        Args:
            live: a hint, int32 ``[tokens / 16]`` rounded up: where 0, 16 tokens only pad.
        """
        x = take_rows(self.embedding[...], tokens)
        tables = self.rotary.tables(positions)
        for index, block in enumerate(self.layers):
            x = block(x, tables, attend, index, live)
        return x

    @property
    def skips_padding(self) -> bool:
        """Whether tokens that are not live cost next to nothing."""
        return isinstance(self.head, PackedLinear)

    def logits(self, hidden: jax.Array, live: jax.Array | None = None) -> jax.Array:
        """``[rows, hidden]`` -> float32 ``[rows, columns]``; columns from ``vocab_size`` on are padding."""
        if self.head is not None:
            return self.head(hidden, norm=self.norm, live=live, dtype=jnp.float32)
        head = self.embedding if self.lm_head is None else self.lm_head
        return linear(self.norm(hidden), head[...], dtype=jnp.float32)

    def greedy(self, hidden: jax.Array, live: jax.Array | None = None, allowed: jax.Array | None = None) -> jax.Array:
        """The most likely tokens, int32 ``[rows]``; of equal ones the first.

        Args:
            allowed: uint32 ``[rows, vocab / 32]``, rounded up: the tokens to choose from (`asurge.ops.shaping.allow`).
        """
        vocab = self.config.vocab_size
        if isinstance(self.head, PackedLinear):
            return self.head.argmax(hidden, norm=self.norm, live=live, candidates=vocab, allowed=allowed)
        logits = self.logits(hidden)[:, :vocab]
        return argmax(logits if allowed is None else allow(logits, allowed), vocab)
