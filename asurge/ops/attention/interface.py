"""An attention backend: the owner of its page layout and of everything from projection to mixed values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from asurge.ops.norm import rms_norm
from asurge.ops.rotary import apply_rotary

LevelPages = tuple[jax.Array, ...]
"""Keys and values of the layers of one level; how many arrays there are and what they hold is up to the backend."""

Pages = tuple[LevelPages, ...]
"""Pages of all levels: one after another, or all in the same arrays, as a backend likes it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """The part of the tokens before them that a layer's queries see: one that slides along, or the chunk that they are in.

    Attributes:
        size: the most tokens that a query sees, itself included.
        chunked: the sequence is cut every ``size`` tokens, and a query sees its own chunk from its beginning (Llama 4).
    """

    size: int
    chunked: bool = False

    def begin(self, position: jax.Array) -> jax.Array:
        """The first position that queries at ``position`` see, int32."""
        if self.chunked:
            return position - lax.rem(position, jnp.full_like(position, self.size))
        return jnp.maximum(position - self.size + 1, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionShape:
    """Attention parameters that all layers of an engine share.

    Attributes:
        score_scale: on the scores; None: 1 / sqrt(head_dim).
        score_softcap: scaled scores are soft-capped by it (`asurge.ops.norm.soft_cap`); None leaves them alone.
        chunked: whether the window of any layer is chunked (`Window.chunked`).
        int8_pages: keys and values are kept in 8 bits, scaled by the largest number in each head of each token.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    dtype: jnp.dtype
    score_scale: float | None = None
    score_softcap: float | None = None
    chunked: bool = False
    int8_pages: bool = False

    @property
    def scale(self) -> float:
        """Factor on the scores."""
        return float(self.head_dim**-0.5) if self.score_scale is None else self.score_scale


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """Queries, keys and values as the projection gives them, and what remains to be done to them.

    Attributes:
        qkv: ``[tokens, num_heads + 2 * num_kv_heads, head_dim]``.
        cos, sin: float32 ``[tokens, 1, head_dim / 2]``.
        q_norm, k_norm: ``[head_dim]``, or None: heads are RMS-normalised before they are rotated.
        epsilon: of that normalisation.
    """

    qkv: jax.Array
    num_heads: int
    num_kv_heads: int
    cos: jax.Array
    sin: jax.Array
    q_norm: jax.Array | None = None
    k_norm: jax.Array | None = None
    epsilon: float = 1e-6

    def split(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Normalised and rotated: ``q [tokens, num_heads, head_dim]``, ``k, v [tokens, num_kv_heads, head_dim]``."""
        q, k, v = self._normalised()
        return apply_rotary(q, self.cos, self.sin), apply_rotary(k, self.cos, self.sin), v

    def normalised(self) -> Heads:
        """A copy with the q/k norm already applied."""
        if self.q_norm is None:
            return self
        qkv = jnp.concatenate(self._normalised(), axis=1)
        return dataclasses.replace(self, qkv=qkv, q_norm=None, k_norm=None)

    def _normalised(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = jnp.split(self.qkv, (self.num_heads, self.num_heads + self.num_kv_heads), axis=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = rms_norm(q, self.q_norm, self.epsilon), rms_norm(k, self.k_norm, self.epsilon)
        return q, k, v


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The layout of a step's flat tokens as rows of sequences.

    First ``decode`` rows of one token, each of a sequence that has no other, then ``prefill`` rows of up to ``prefill_len``, of
    which a sequence may have several; all take their full width among the tokens.

    Attributes:
        start: int32 ``[rows]``, position of a row's first token.
        length: int32 ``[rows]``, a row's real tokens; 0 where the row only pads.
        page_table: int32 ``[rows, columns]``.
    """

    decode: int
    prefill: int
    prefill_len: int
    start: jax.Array
    length: jax.Array
    page_table: jax.Array

    @property
    def tokens(self) -> int:
        """Flat tokens, padding included."""
        return self.decode + self.prefill * self.prefill_len

    @property
    def first(self) -> jax.Array:
        """Index of each row's first token among the tokens, int32 ``[rows]``."""
        prefill = self.decode + jnp.arange(self.prefill, dtype=jnp.int32) * self.prefill_len
        return jnp.concatenate((jnp.arange(self.decode, dtype=jnp.int32), prefill))

    @property
    def sections(self) -> tuple[tuple[slice, int], ...]:
        """Rows of equal width: which, and their width."""
        decode = (slice(0, self.decode), 1)
        return (decode, (slice(self.decode, None), self.prefill_len)) if self.prefill else (decode,)

    def split(self, q: jax.Array) -> list[tuple[jax.Array, jax.Array, jax.Array, jax.Array]]:
        """Split into sections: queries ``[rows, width, heads, head_dim]`` of ``q``, page table, start and length.

        ``q`` is ``[tokens, heads, head_dim]``. The results, flattened and in this order, are flat tokens again.
        """
        parts, at = [], 0
        for rows, width in self.sections:
            table = self.page_table[rows]
            size = table.shape[0] * width
            queries = q[at : at + size].reshape(-1, width, *q.shape[1:])
            parts.append((queries, table, self.start[rows], self.length[rows]))
            at += size
        return parts

    @property
    def positions(self) -> jax.Array:
        """Positions of tokens, int32 ``[tokens]``; those of padding continue from the row's real ones."""
        return self.by_token(lambda rows, at: self.start[rows, None] + at)

    @property
    def real(self) -> jax.Array:
        """Mask of tokens that are not padding, bool ``[tokens]``."""
        return self.by_token(lambda rows, at: at < self.length[rows, None])

    def last_of(self, chosen: jax.Array) -> jax.Array:
        """Mask of the last real token of each row in ``chosen``, bool ``[tokens]``; ``chosen`` is bool ``[rows]``."""
        return self.by_token(lambda rows, at: chosen[rows, None] & (at + 1 == self.length[rows, None]))

    def by_token(self, of: Callable[[slice, jax.Array], jax.Array]) -> jax.Array:
        """``[tokens]`` of what ``of`` makes, ``[rows, width]``, from a section's rows and the places ``[width]`` in each."""
        parts = [of(rows, jnp.arange(width, dtype=jnp.int32)).reshape(-1) for rows, width in self.sections]
        return jnp.concatenate(parts)


def up_to_last(flags: jax.Array, size: int) -> jax.Array:
    """``flags [n]`` -> int32 ``[n / size]``, rounded up: of each ``size`` neighbours, how many up to the last that is set."""
    padded = jnp.pad(flags, (0, -flags.shape[0] % size)).reshape(-1, size)
    return jnp.max(padded * jnp.arange(1, size + 1, dtype=jnp.int32), axis=1)


class AttentionBackend(Protocol):
    """Attention over pages on some kinds of devices.

    Attributes:
        kernels: the name its kernels have in the setting ``kernels``.
        platforms: those it runs on.
    """

    kernels: str
    platforms: frozenset[str]
    skips_padding: bool
    """Whether rows of padding cost next to nothing."""
    shares_arrays: bool
    """Whether all levels of pages are in the same arrays, so that one program can serve all layers."""

    def __init__(self, shape: AttentionShape) -> None: ...

    @staticmethod
    def unable(shape: AttentionShape) -> str | None:
        """Why it cannot serve a shape, or None."""
        ...

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, keys and values, in one layer."""
        ...

    def allocate(self, num_pages: int, levels: int = 1) -> Pages:
        """Empty pages. Each has a place at every level, for the keys and values of one layer."""
        ...

    def attend(
        self, heads: Heads, pages: Pages, rows: Rows, window: Window | None, level: int | jax.Array = 0
    ) -> tuple[jax.Array, Pages]:
        """Write a layer's keys and values at its level of the pages, then attend causally over what each row's pages have there.

        Nothing in a page that a query does not see, NaN included, reaches its result. Page 0 takes what padding writes and is
        never read.

        Args:
            window: of the layer; None: its queries see all before them.
            level: of the pages; traced only where all levels are in the same arrays (`shares_arrays`).

        Returns:
            ``[tokens, num_heads, head_dim]`` in the dtype of ``heads.qkv``, and the pages. Finite everywhere; or, if padding is
            skipped, in each group of 16 tokens with a real one, as products take them (`asurge.ops.packed.LIVE_ROWS`).
        """
        ...


class SeparateLevels:
    """Methods of backends that keep each level in arrays of its own."""

    shares_arrays = False

    def allocate(self, num_pages: int, levels: int = 1) -> Pages:
        return tuple(self.allocate_level(num_pages) for _ in range(levels))

    def attend(
        self, heads: Heads, pages: Pages, rows: Rows, window: Window | None, level: int | jax.Array = 0
    ) -> tuple[jax.Array, Pages]:
        assert isinstance(level, int)
        out, written = self.attend_level(heads, pages[level], rows, window)
        return out, (*pages[:level], written, *pages[level + 1 :])

    def allocate_level(self, num_pages: int) -> LevelPages:
        """`AttentionBackend.allocate` for one level."""
        raise NotImplementedError

    def attend_level(
        self, heads: Heads, pages: LevelPages, rows: Rows, window: Window | None
    ) -> tuple[jax.Array, LevelPages]:
        """`AttentionBackend.attend` over one level."""
        raise NotImplementedError
