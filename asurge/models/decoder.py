"""The one decoder that every family composes; `DecoderConfig` says from what.

Tokens come flat, as ``[tokens]``: which tokens belong together is up to `attend`, so the same module runs a packed serving step,
a plain causal forward, and training.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from asurge.models.config import DecoderConfig, Experts, Rope
from asurge.models.layers import Int8Linear, Linear, PackedLinear, PackedTable, RMSNorm, matrix
from asurge.ops.attention import Heads
from asurge.ops.experts import mix, mix_placed, place_tokens, route
from asurge.ops.linear import linear
from asurge.ops.logits import allow
from asurge.ops.norm import soft_cap
from asurge.ops.packed import take_rows
from asurge.ops.rotary import Rotary, rotary
from asurge.ops.sampling import argmax


class Layer(NamedTuple):
    """A layer of a decoder; or, while a loop over layers is traced, any of those in it.

    Attributes:
        like: the number of a layer that differs from it by its weights, and what it attends to, alone.
        number: its own.
    """

    like: int
    number: int | jax.Array


class Attend(Protocol):
    """Attention over whatever came before; writes this step's keys and values where it keeps them."""

    state: Any
    """What calls change: arrays that a loop over layers carries along."""

    def kind(self, layer: int) -> Hashable:
        """Neighbours of the same kind may be attended to in a loop."""
        ...

    def __call__(self, layer: Layer, heads: Heads) -> jax.Array:
        """Returns ``[tokens, num_heads, head_dim]`` in the dtype of ``heads.qkv``."""
        ...


class Positions(NamedTuple):
    """The effect of the tokens' positions on one layer's queries and keys.

    Attributes:
        cos, sin: float32 ``[tokens, 1, head_dim / 2]``; 1 and 0 where the layer does not rotate.
        sharpness: float32 ``[tokens, 1]``, a factor on queries; None leaves them alone.
    """

    cos: jax.Array
    sin: jax.Array
    sharpness: jax.Array | None


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; queries, keys and values in one product."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs | None) -> None:
        self.config = config
        width = config.q_size + 2 * config.kv_size
        self.qkv_proj = Linear(config.hidden_size, width, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.o_proj = Linear(config.q_size, config.hidden_size, bias=config.output_bias, dtype=dtype, rngs=rngs)
        sizes = (config.q_size, config.kv_size) if config.qk_norm_across_heads else (config.head_dim,) * 2
        self.q_norm, self.k_norm = (_norm(config, dtype, size) if config.qk_norm else None for size in sizes)

    def __call__(
        self,
        x: jax.Array,
        norm: RMSNorm | None,
        residual: jax.Array | None,
        positions: Positions,
        attend: Attend,
        layer: Layer,
        live: jax.Array | None,
        read: jax.Array | None,
    ) -> jax.Array:
        """``residual`` and what attention over ``norm(x)`` adds to it."""
        config, qkv = self.config, self.qkv_proj(x, norm=norm, live=live, layer=layer.number)
        q_norm, k_norm = self.q_norm, self.k_norm
        if config.qk_norm_across_heads and q_norm is not None and k_norm is not None:
            q, k, v = jnp.split(qkv, (config.q_size, config.q_size + config.kv_size), axis=1)
            q, k = q_norm(q, layer.number), k_norm(k, layer.number)
            qkv, q_norm, k_norm = jnp.concatenate((q, k, v), axis=1), None, None
        if positions.sharpness is not None:
            q, rest = jnp.split(qkv, (config.q_size,), axis=1)
            qkv = jnp.concatenate(((q * positions.sharpness).astype(q.dtype), rest), axis=1)
        # Rotation preserves lengths: it does not matter that a norm without weights is meant to come after it.
        unit = jnp.ones((config.head_dim,), x.dtype) if config.qk_unit_norm and config.rotates(layer.like) else None
        heads = Heads(
            qkv.reshape(x.shape[0], -1, config.head_dim),
            config.num_heads,
            config.num_kv_heads,
            positions.cos,
            positions.sin,
            q_norm=unit if q_norm is None else q_norm.factor(layer.number),
            k_norm=unit if k_norm is None else k_norm.factor(layer.number),
            epsilon=config.rms_norm_eps,
        )
        out = attend(layer, heads).reshape(x.shape[0], config.q_size)
        return self.o_proj(out, residual=residual, live=read, layer=layer.number)


class MLP(nnx.Module):
    """Gated feed-forward of inner size ``inner``; gate and up in one product."""

    def __init__(self, config: DecoderConfig, inner: int, *, dtype: jnp.dtype, rngs: nnx.Rngs | None) -> None:
        hidden, bias = config.hidden_size, config.mlp_bias
        self.gate_up_proj = Linear(
            hidden, 2 * inner, bias=bias, dtype=dtype, rngs=rngs, gated=True, activation=config.activation
        )
        self.down_proj = Linear(inner, hidden, bias=bias, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        norm: RMSNorm | None,
        residual: jax.Array | None,
        live: jax.Array | None,
        layer: int | jax.Array,
    ) -> jax.Array:
        """``residual`` and what the feed-forward of ``norm(x)`` adds to it."""
        inner = self.gate_up_proj(x, norm=norm, live=live, layer=layer)
        return self.down_proj(inner, residual=residual, live=live, layer=layer)


class _Mixture(nnx.Module):
    """A mixture of gated feed-forwards, whatever its weights are kept as."""

    experts: Experts

    def __call__(
        self,
        x: jax.Array,
        norm: RMSNorm | None,
        residual: jax.Array | None,
        live: jax.Array | None,
        layer: int | jax.Array,
    ) -> jax.Array:
        """``residual`` and what the experts of ``norm(x)`` add to it."""
        experts = self.experts
        x = x if norm is None else norm(x, layer)
        weights, chosen = route(
            linear(x, self.router_of(layer), dtype=jnp.float32),
            experts.per_token,
            normalize=experts.normalize,
            sigmoid=experts.sigmoid,
        )
        out = self.mixed(x, weights, chosen, live, layer)
        return out if residual is None else residual + out

    def router_of(self, layer: int | jax.Array) -> jax.Array:
        """The router of a layer, ``[experts, hidden]``."""
        raise NotImplementedError

    def mixed(
        self, x: jax.Array, weights: jax.Array, chosen: jax.Array, live: jax.Array | None, layer: int | jax.Array
    ) -> jax.Array:
        """``x [tokens, hidden]`` through the experts of each token, weighted as `asurge.ops.experts.route` says."""
        raise NotImplementedError


class SparseMLP(_Mixture):
    """A mixture of gated feed-forwards. Matrices of all experts lie one below the other, as they are loaded."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs | None) -> None:
        assert config.experts is not None
        self.experts, self.activation = config.experts, config.activation
        hidden, count, size = config.hidden_size, config.experts.count, config.experts.size
        self.router = matrix(rngs, (count, hidden), dtype)
        self.gate_up = matrix(rngs, (count * 2 * size, hidden), dtype)
        self.down = matrix(rngs, (count * hidden, size), dtype)
        shared = config.experts.shared
        self.shared = MLP(config, shared, dtype=dtype, rngs=rngs) if shared else None

    def router_of(self, layer: int | jax.Array) -> jax.Array:
        router: jax.Array = self.router[...]
        return router

    def mixed(
        self, x: jax.Array, weights: jax.Array, chosen: jax.Array, live: jax.Array | None, layer: int | jax.Array
    ) -> jax.Array:
        experts, hidden = self.experts, x.shape[1]
        gate_up = self.gate_up[...].reshape(experts.count, 2 * experts.size, hidden)
        down = self.down[...].reshape(experts.count, hidden, experts.size)
        out = mix(x, weights, chosen, gate_up, down, self.activation, weigh_input=experts.weigh_input)
        return out if self.shared is None else self.shared(x, None, out, live, layer)


class PackedSparseMLP(_Mixture):
    """`SparseMLP` for the CPU kernels, of all layers: the experts' weights lie behind each other, those of a layer together.

    Args:
        router: ``[layers, experts, hidden]``.
        gate_up, down: of ``layers * experts``.
    """

    def __init__(self, experts: Experts, router: nnx.Param, gate_up: PackedLinear, down: PackedLinear) -> None:
        self.experts, self.router, self.gate_up, self.down = experts, router, gate_up, down

    def router_of(self, layer: int | jax.Array) -> jax.Array:
        router: jax.Array = lax.dynamic_index_in_dim(self.router[...], layer, keepdims=False)
        return router

    def mixed(
        self, x: jax.Array, weights: jax.Array, chosen: jax.Array, live: jax.Array | None, layer: int | jax.Array
    ) -> jax.Array:
        placed = place_tokens(chosen, live, self.experts.count)
        own = placed.experts + layer * self.experts.count
        return mix_placed(
            x,
            weights,
            placed,
            lambda rows: self.gate_up(rows, live=placed.live, row_layers=own),
            lambda rows: self.down(rows, live=placed.live, row_layers=own),
            weigh_input=self.experts.weigh_input,
        )


LINEARS = (("attention", "qkv_proj"), ("attention", "o_proj"), ("mlp", "gate_up_proj"), ("mlp", "down_proj"))
"""The linear layers of a `Block` without experts: whose they are, and their names."""


class Block(nnx.Module):
    """A transformer layer, with norms before, after, or on both sides of attention and feed-forward."""

    def __init__(self, config: DecoderConfig, layer: int, *, dtype: jnp.dtype, rngs: nnx.Rngs | None) -> None:
        before, behind = config.pre_norm, config.post_norm
        self.input_norm = _norm(config, dtype) if before else None
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.attention_output_norm = _norm(config, dtype) if behind else None
        self.mlp_norm = _norm(config, dtype) if before else None
        if config.is_sparse(layer):
            self.mlp: SparseMLP | PackedSparseMLP | MLP = SparseMLP(config, dtype=dtype, rngs=rngs)
        else:
            self.mlp = MLP(config, config.intermediate_size, dtype=dtype, rngs=rngs)
        self.mlp_output_norm = _norm(config, dtype) if behind else None

    def __call__(
        self,
        x: jax.Array,
        positions: Positions,
        attend: Attend,
        layer: Layer,
        live: jax.Array | None,
        read: jax.Array | None,
    ) -> jax.Array:
        """``x [tokens, hidden]`` after the layer, where it is ``read``; keys and values are there for all that is ``live``."""
        out = self.attention_output_norm
        residual = x if out is None else None
        added = self.attention(x, self.input_norm, residual, positions, attend, layer, live, read)
        x = added if out is None else x + out(added, layer.number)
        out = self.mlp_output_norm
        added = self.mlp(x, self.mlp_norm, x if out is None else None, read, layer.number)
        return added if out is None else x + out(added, layer.number)


def _norm(config: DecoderConfig, dtype: jnp.dtype, size: int | None = None) -> RMSNorm:
    return RMSNorm(size or config.hidden_size, eps=config.rms_norm_eps, dtype=dtype, offset=config.norm_offset)


def _rotary(config: DecoderConfig, rope: Rope) -> Rotary:
    rotated = config.rotates_in_each_head
    return rotary(config.head_dim, rope[0], config.max_position_embeddings, rope[1], rotated=rotated)


class Decoder(nnx.Module):
    """A decoder-only language model.

    ``layers`` has a block for each layer; or a single one, whose parameters are ``[layers, ...]``, for all of them
    (`asurge.models.weights.packing`). Then neighbours that are alike run in a loop, which is traced and compiled once: kernels are told the
    number of a layer. Blocks of plain JAX are unrolled: what a loop over them slices out of its arrays is copied, and on CPU
    `lax.scan` is 1.6x (jax 0.12) to 15x slower.
    """

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs | None) -> None:
        self.config = config
        self.rotary = _rotary(config, (config.rope_theta, config.rope_scaling))
        self.local_rotary = None if config.local_rope is None else _rotary(config, config.local_rope)
        table = (config.vocab_size, config.hidden_size)
        # Conversion may put a table in its place.
        self.embedding: nnx.Param | PackedTable = matrix(rngs, table, dtype)
        self.layers = nnx.List([Block(config, layer, dtype=dtype, rngs=rngs) for layer in range(config.num_layers)])
        self.norm = _norm(config, dtype)
        self.lm_head = None if config.tie_word_embeddings else matrix(rngs, table, dtype)
        # What conversion puts in place of the head's matrix.
        self.head: PackedLinear | Int8Linear | None = nnx.data(None)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        attend: Attend,
        live: jax.Array | None = None,
        read: jax.Array | None = None,
    ) -> jax.Array:
        """``tokens, positions [tokens]`` -> hidden states ``[tokens, hidden]``, before the last normalisation.

        Args:
            live: a hint, int32 ``[ceil(tokens / 16)]``: how many of each 16 tokens are real; all after them are padding.
            read: a hint of the same form: how many will have their hidden states read. Those of the others may come out as
                anything; in the last layer they need only keys and values.
        """
        embedding = self.embedding
        x = embedding.take(tokens) if isinstance(embedding, PackedTable) else take_rows(embedding[...], tokens)
        if self.config.embedding_scale != 1.0:
            x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
        of_layers = self._positions(positions)
        read = live if read is None else read
        for alike in self._alike(attend):
            last = alike[-1] == self.config.num_layers - 1
            x = self._through(alike, x, of_layers[alike[0]], attend, live, read if last else live)
        return x

    def _alike(self, attend: Attend) -> list[list[int]]:
        """All layers, neighbours together that one program can serve; the last apart, of which not everything is read."""

        def kind(layer: int) -> Hashable:
            if len(self.layers) > 1 or layer == self.config.num_layers - 1:
                return layer
            return self.config.window(layer), self.config.rotates(layer), attend.kind(layer)

        return [list(group) for _, group in itertools.groupby(range(self.config.num_layers), kind)]

    def _through(
        self,
        alike: Sequence[int],
        x: jax.Array,
        positions: Positions,
        attend: Attend,
        live: jax.Array | None,
        read: jax.Array | None,
    ) -> jax.Array:
        """``x [tokens, hidden]`` after these layers."""
        first, last = alike[0], alike[-1]
        block = self.layers[first if len(self.layers) > 1 else 0]

        def run(number: int | jax.Array, carried: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            x, attend.state = carried
            return block(x, positions, attend, Layer(first, number), live, read), attend.state

        start = (x, attend.state)
        x, attend.state = run(first, start) if first == last else lax.fori_loop(first, last + 1, run, start)
        return x

    def _positions(self, positions: jax.Array) -> list[Positions]:
        """Compute, for each layer, what its kind makes of ``positions [tokens]``."""
        config, (cos, sin) = self.config, self.rotary.tables(positions)
        own = Positions(cos, sin, None)
        local = own if self.local_rotary is None else Positions(*self.local_rotary.tables(positions), None)
        sharpness = None if config.temperature_tuning is None else config.temperature_tuning.factor(positions)
        still = Positions(jnp.ones_like(cos), jnp.zeros_like(sin), sharpness)
        kinds = [own if config.window(layer) is None else local for layer in range(config.num_layers)]
        return [kind if config.rotates(layer) else still for layer, kind in enumerate(kinds)]

    @property
    def skips_padding(self) -> bool:
        """Whether tokens that are not live cost next to nothing."""
        return isinstance(self.head, PackedLinear)

    @property
    def output_table(self) -> nnx.Param:
        """The head's matrix, as it is loaded: ``[vocab, hidden]``, its own or that of the embedding."""
        table = self.embedding if self.lm_head is None else self.lm_head
        assert isinstance(table, nnx.Param), "conversion has put a head in its place"
        return table

    def logits(self, hidden: jax.Array, live: jax.Array | None = None) -> jax.Array:
        """``[rows, hidden]`` -> float32 ``[rows, columns]``; columns from ``vocab_size`` on are padding."""
        if self.head is not None:
            logits = self.head(hidden, norm=self.norm, live=live, dtype=jnp.float32)
        else:
            logits = linear(self.norm(hidden), self.output_table[...], dtype=jnp.float32)
        return soft_cap(logits, self.config.logit_softcap)

    def greedy(self, hidden: jax.Array, live: jax.Array | None = None, allowed: jax.Array | None = None) -> jax.Array:
        """The most likely tokens, int32 ``[rows]``; of equal ones the first.

        Args:
            allowed: uint32 ``[rows, vocab / 32]``, rounded up: the tokens to choose from (`asurge.ops.logits.allow`).
        """
        vocab = self.config.vocab_size
        if isinstance(self.head, PackedLinear):
            return self.head.argmax(hidden, norm=self.norm, live=live, candidates=vocab, allowed=allowed)
        logits = self.logits(hidden)[:, :vocab]
        return argmax(logits if allowed is None else allow(logits, allowed), vocab)
