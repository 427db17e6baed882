"""Rotary position embeddings (RoFormer, Su et al., 2021) with every scaling that Llama-like configs use.

Scalings whose frequencies depend on the length of the text (``dynamic``, ``longrope``) are applied per
position, not per batch: a token is rotated as if it were the last one. This is what a cached decode
step does in transformers, and the only form in which a result does not depend on how a prompt was cut into chunks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from asurge.errors import ModelLoadError

Frequencies = npt.NDArray[np.float32]  # [head_dim / 2]


@dataclasses.dataclass(frozen=True, slots=True)
class Rotary:
    """Frequencies of one model. Tuples, not arrays: modules that hold one are compared when they are traced.

    Attributes:
        inverse: ``[pairs]``, radians per position.
        inverse_long: used from position ``switch_at`` on (``longrope``), or None.
        dynamic_factor: NTK-by-length factor (``dynamic``), effective from ``switch_at`` on, or None.
        amplitude: factor on cosine and sine (YaRN's and LongRoPE's attention factor).
        still: pairs of a head, behind the others, that are left as they are.
    """

    inverse: tuple[float, ...]
    theta: float
    inverse_long: tuple[float, ...] | None = None
    dynamic_factor: float | None = None
    switch_at: int = 0
    amplitude: float = 1.0
    still: int = 0

    def tables(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``positions [tokens]`` -> cosine and sine, float32 ``[tokens, 1, head_dim / 2]``."""
        at = positions.astype(jnp.float32)[:, None, None]
        inverse = jnp.asarray(self.inverse, jnp.float32)[None, None, :]
        if self.inverse_long is not None:
            inverse = jnp.where(at < self.switch_at, inverse, jnp.asarray(self.inverse_long, jnp.float32))
        if self.dynamic_factor is not None:
            size = 2 * len(self.inverse)
            length = jnp.maximum(at + 1, self.switch_at)
            stretch = self.dynamic_factor * length / self.switch_at - (self.dynamic_factor - 1)
            base = self.theta * stretch ** (size / (size - 2))
            inverse = base ** -(jnp.arange(0, size, 2, dtype=jnp.float32) / size)
        angle = at * inverse
        cos, sin = jnp.cos(angle) * self.amplitude, jnp.sin(angle) * self.amplitude
        if not self.still:
            return cos, sin
        widths = ((0, 0), (0, 0), (0, self.still))
        return jnp.pad(cos, widths, constant_values=1.0), jnp.pad(sin, widths)


def rotary(
    head_dim: int,
    theta: float,
    max_positions: int,
    scaling: Mapping[str, Any] | None = None,
    *,
    rotated: int | None = None,
) -> Rotary:
    """The frequencies for a config's ``rope_theta`` and ``rope_scaling`` (or ``rope_parameters``).

    Args:
        rotated: how many of the numbers in a head; None: all.

    Raises:
        ModelLoadError: the scaling is unknown, lacks a value it needs, or has one that it does not know.
    """
    size = head_dim if rotated is None else rotated
    exponent = np.arange(0, size, 2, dtype=np.float32) / size
    inverse = (1.0 / theta**exponent).astype(np.float32)
    if scaling is None:
        found = Rotary(_plain(inverse), theta)
    else:
        need = _Needed(scaling.get("rope_type", scaling.get("type", "default")), scaling)
        found = _scaled(inverse, theta, max_positions, need)
        need.refuse_unread()
    return dataclasses.replace(found, still=(head_dim - size) // 2)


def _scaled(inverse: Frequencies, theta: float, max_positions: int, need: _Needed) -> Rotary:
    match need.kind:
        case "default":
            return Rotary(_plain(inverse), theta)
        case "linear":
            return Rotary(_plain(inverse / need("factor")), theta)
        case "dynamic":
            return Rotary(_plain(inverse), theta, dynamic_factor=need("factor"), switch_at=max_positions)
        case "llama3":
            return Rotary(_plain(_llama3(inverse, need)), theta)
        case "yarn":
            return Rotary(_plain(_yarn(inverse, theta, need)), theta, amplitude=_yarn_amplitude(need))
        case "longrope" | "su":
            return _longrope(inverse, theta, max_positions, need)
    raise ModelLoadError(
        f"config.json: rope_type={need.kind!r} is not supported (default, linear, dynamic, llama3, yarn and longrope are)"
    )


def apply_rotary(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate ``x [tokens, heads, head_dim]`` in Hugging Face's half-split pairing."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
    return turned.astype(x.dtype)


def _plain(frequencies: Frequencies) -> tuple[float, ...]:
    return tuple(np.asarray(frequencies, np.float32).tolist())


_NOT_NEEDED = {"rope_type", "type", "rope_theta", "original_max_position_embeddings", "finetuned"}
"""Read before, or by those kinds alone whose frequencies depend on it; or said of the weights."""
_ONE_IS_NONE = ("partial_rotary_factor", "attention_factor")


class _Needed:
    """The numbers of a scaling entry; a missing or malformed one is named."""

    def __init__(self, kind: object, values: Mapping[str, Any]) -> None:
        self.kind, self.values = kind, values
        self._unread = set(values) - _NOT_NEEDED

    def get(self, key: str) -> Any:  # JSON
        """A value as it stands, or None."""
        self._unread.discard(key)
        return self.values.get(key)

    def refuse_unread(self) -> None:
        """Raise if there is a value that this kind does not use, and that could change something."""
        for key in sorted(self._unread):
            value = self.values[key]
            if value is not None and not (key in _ONE_IS_NONE and value == 1):
                raise ModelLoadError(
                    f"config.json: {key}={value!r} is not supported beside rope_type={self.kind!r}: take another checkpoint, or "
                    "remove the key if it changes nothing about what the model computes"
                )

    def __call__(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ModelLoadError(f"config.json: rope_type={self.kind!r} needs a number {key} above 0, got {value!r}")
        return float(value)

    def vector(self, key: str, size: int) -> Frequencies:
        value = self.get(key)
        if (
            not isinstance(value, list)
            or len(value) != size
            or not all(type(one) in (int, float) and 0 < one < math.inf for one in value)
        ):
            raise ModelLoadError(f"config.json: rope_type={self.kind!r} needs {key}, a list of {size} numbers above 0")
        return np.asarray(value, np.float32)


def _llama3(inverse: Frequencies, need: _Needed) -> Frequencies:
    """Llama 3.1: long wavelengths are divided by the factor, middle ones blended."""
    factor, length = need("factor"), need("original_max_position_embeddings")
    low, high = need("low_freq_factor"), need("high_freq_factor")
    wavelength = 2 * math.pi / inverse
    blend = np.clip((length / wavelength - low) / max(high - low, 1e-9), 0.0, 1.0)  # equal ones make a step
    return np.asarray(inverse * (blend + (1 - blend) / factor), np.float32)


def _yarn(inverse: Frequencies, theta: float, need: _Needed) -> Frequencies:
    """YaRN (Peng et al., 2023): interpolate low frequencies, keep high ones, ramp between."""
    factor, length = need("factor"), need("original_max_position_embeddings")
    size = 2 * len(inverse)

    def correction(rotations: float) -> float:
        return size * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = correction(need("beta_fast", 32)), correction(need("beta_slow", 1))
    if need.get("truncate") is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    high = high + 0.001 if low == high else high
    ramp = np.clip((np.arange(size // 2, dtype=np.float32) - low) / (high - low), 0.0, 1.0)
    return np.asarray(inverse / factor * ramp + inverse * (1 - ramp), np.float32)


def _yarn_amplitude(need: _Needed) -> float:
    def mscale(weight: float) -> float:
        factor = need("factor")
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    one, all_dims = need.get("mscale"), need.get("mscale_all_dim")
    if need.get("attention_factor") is not None:
        return need("attention_factor")
    if one and all_dims:
        return mscale(need("mscale")) / mscale(need("mscale_all_dim"))
    return mscale(1.0)


def _longrope(inverse: Frequencies, theta: float, max_positions: int, need: _Needed) -> Rotary:
    """LongRoPE (Ding et al., 2024): one set of divisors up to the original length, another beyond."""
    original = need("original_max_position_embeddings", max_positions)
    factor = need("factor", max_positions / original)
    natural = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Rotary(
        _plain(inverse / need.vector("short_factor", len(inverse))),
        theta,
        inverse_long=_plain(inverse / need.vector("long_factor", len(inverse))),
        switch_at=int(original),
        amplitude=need("attention_factor", natural),
    )
