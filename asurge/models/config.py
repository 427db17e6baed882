"""The configuration of a decoder, read once from a checkpoint's ``config.json``."""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

from asurge.errors import ModelLoadError
from asurge.models.keys import passed_over
from asurge.ops.attention import Window
from asurge.ops.norm import Activation
from asurge.ops.temperature_tuning import TemperatureTuning

RopeScaling = Mapping[str, Any]  # JSON from the checkpoint; `asurge.ops.rotary` validates it
Rope = tuple[float, RopeScaling | None]
"""Base and scaling of rotary positions."""


@dataclasses.dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts in place of the feed-forward.

    Attributes:
        count: experts in a layer.
        per_token: how many of them a token is sent to.
        size: of their inner layer.
        normalize: whether the weights of a token's experts add up to 1.
        layers: which layers have one; the others are dense.
        names: what the checkpoint calls the layer, its router, and the matrices of an expert: gate, up and down.
        stacked: the checkpoint has the matrices of all experts in one tensor, ``[experts, in, out]``, and gate and up
            side by side; then ``names`` has two of them.
        sigmoid: a token's weights are the sigmoid of its scores, not softmax.
        weigh_input: weights scale what goes into an expert, not what comes out.
        shared: inner size of one more expert, to which all tokens go, unweighted; 0: there is none.
    """

    count: int
    per_token: int
    size: int
    normalize: bool
    layers: tuple[bool, ...]
    names: tuple[str, str, tuple[str, ...]]
    stacked: bool = False
    sigmoid: bool = False
    weigh_input: bool = False
    shared: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class CheckpointLayout:
    """Names and layout of tensors in a checkpoint, where they differ from the model's.

    Attributes:
        prefix: what precedes the names of all tensors.
        others: how the names of tensors begin that belong to what is not served, such as an image encoder.
        feed_forward: the name of a layer's feed-forward.
        fused: queries, keys and values are in one tensor, and gate and up in another.
        adjacent_pairs: the numbers that are rotated together stand side by side, not half a head apart.
    """

    prefix: str = ""
    others: tuple[str, ...] = ()
    feed_forward: str = "mlp"
    fused: bool = False
    adjacent_pairs: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of one decoder-only transformer. Lengths are in tokens, sizes in elements."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rotary_dim: int | None = None
    """How many of the numbers in a head are rotated, the first ones; None: all."""
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    windows: tuple[Window | None, ...] = ()
    """Per layer: what a query sees of the tokens before it; None: all."""
    local_rope: Rope | None = None
    """Rotary positions of layers with a window, if they have one of their own."""
    no_rope: tuple[bool, ...] = ()
    """Per layer: whether positions are left out (NoPE)."""
    activation: Activation = "silu"
    pre_norm: bool = True
    post_norm: bool = False
    """Whether attention and feed-forward are normalised on their way in, and on their way back to the residual."""
    norm_offset: bool = False
    """Whether norms multiply by 1 + weight."""
    qk_norm_across_heads: bool = False
    """Whether ``qk_norm`` is over all heads at once."""
    qk_unit_norm: bool = False
    """Whether heads are normalised without weights, in layers that rotate."""
    temperature_tuning: TemperatureTuning | None = None
    """Temperature tuning of the queries of layers that do not rotate."""
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    """Factor on the scores; None: 1 / sqrt(head_dim)."""
    score_softcap: float | None = None
    logit_softcap: float | None = None
    experts: Experts | None = None
    layout: CheckpointLayout = CheckpointLayout()

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ModelLoadError(
                f"num_attention_heads={self.num_heads} is not a multiple of "
                f"num_key_value_heads={self.num_kv_heads}: the checkpoint's config.json is damaged"
            )
        if self.head_dim % 2:
            raise ModelLoadError(f"head_dim={self.head_dim} is odd: rotary embeddings need pairs")
        if self.rotates_in_each_head % 2 or not 0 < self.rotates_in_each_head <= self.head_dim:
            raise ModelLoadError(
                f"config.json: partial_rotary_factor leaves {self.rotary_dim} of the {self.head_dim} numbers in a head to be "
                "rotated: they must be pairs"
            )
        for name, values in (("layer_types", self.windows), ("no_rope_layers", self.no_rope)):
            if values and len(values) != self.num_layers:
                raise ModelLoadError(
                    f"{len(values)} {name} for {self.num_layers} layers: {name} and num_hidden_layers disagree in config.json"
                )

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def score_scale(self) -> float:
        """Factor on the scores."""
        return float(self.head_dim**-0.5) if self.attention_scale is None else self.attention_scale

    @property
    def rotates_in_each_head(self) -> int:
        """Number of dimensions of a head that rotary embedding rotates."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def head_order(self) -> tuple[int, ...]:
        """The order of the numbers in a query or key, for which any is as good as another.

        Those that are rotated together lie half a head apart (`asurge.ops.rotary.apply_rotary`), and so do those that are left as
        they are. Empty: as the checkpoint has them.
        """
        rotated = self.rotates_in_each_head
        if rotated == self.head_dim and not self.layout.adjacent_pairs:
            return ()
        turning, still = range(rotated), range(rotated, self.head_dim)
        half, rest = rotated // 2, len(still) // 2
        first, second = (
            (turning[::2], turning[1::2]) if self.layout.adjacent_pairs else (turning[:half], turning[half:])
        )
        return (*first, *still[:rest], *second, *still[rest:])

    def rotates(self, layer: int) -> bool:
        """Whether a layer knows positions."""
        return not (self.no_rope and self.no_rope[layer])

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer's feed-forward is a mixture of experts."""
        return self.experts is not None and self.experts.layers[layer]

    @property
    def seen(self) -> tuple[int | None, ...]:
        """Per layer: the most tokens that a query sees, itself included; None: all."""
        return tuple(None if window is None else window.size for window in map(self.window, range(self.num_layers)))

    def window(self, layer: int) -> Window | None:
        """The layer's window, or None for full attention."""
        return self.windows[layer] if self.windows else None


FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
"""Kinds of layers, as config.json calls them."""


class ConfigReader:
    """Typed reading of a parsed ``config.json``: a wrong or missing value is named."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.raw.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise ModelLoadError(f"config.json: {key}={value!r} must be a positive integer")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.raw.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ModelLoadError(f"config.json: {key}={value!r} must be a positive number")
        return float(value)

    def fraction(self, key: str, default: float) -> float:
        value = self.number(key, default)
        if value > 1:
            raise ModelLoadError(f"config.json: {key}={value!r} must be at most 1")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw.get(key, default)
        if not isinstance(value, bool):
            raise ModelLoadError(f"config.json: {key}={value!r} must be true or false")
        return value

    def optional_number(self, key: str) -> float | None:
        """None where it is missing or null."""
        return None if self.raw.get(key) is None else self.number(key, 1.0)

    def layer_kinds(self, local: str = SLIDING) -> list[str] | None:
        """``layer_types``: whether each layer's attention is full or ``local``; None where it is missing."""
        kinds, known = self.raw.get("layer_types"), (FULL, local)
        if kinds is not None and not (isinstance(kinds, list) and all(kind in known for kind in kinds)):
            raise ModelLoadError(f"config.json: layer_types={kinds!r} must be a list of {' and '.join(known)}")
        return kinds

    def full_every(self, count: int) -> list[str]:
        """Kinds of layers where every ``count``-th is full and the others have windows."""
        return [FULL if layer % count == 0 else SLIDING for layer in range(1, self.integer("num_hidden_layers") + 1)]

    def no_rope(self) -> tuple[bool, ...]:
        """Per layer: whether it leaves positions out, from ``no_rope_layers`` (where 0 says so) or its interval."""
        rotated, interval = self.raw.get("no_rope_layers"), self.integer("no_rope_layer_interval", 4)
        if rotated is None or rotated == []:
            rotated = [int((layer + 1) % interval != 0) for layer in range(self.integer("num_hidden_layers"))]
        if not isinstance(rotated, list) or not all(one in (0, 1) for one in rotated):
            raise ModelLoadError(f"config.json: no_rope_layers={rotated!r} must be a list of 0 and 1")
        return tuple(not one for one in rotated)

    def rope(self, kind: str | None = None) -> Rope:
        """Base and scaling, from the newer ``rope_parameters`` or the two older keys.

        Args:
            kind: of layer, where each kind has parameters of its own.
        """
        parameters, scaling = self.raw.get("rope_parameters"), self.raw.get("rope_scaling")
        theta, original = self.number("rope_theta", 10_000.0), self.raw.get(_ORIGINAL_LENGTH)
        if kind is not None and isinstance(parameters, Mapping) and kind in parameters:
            parameters = parameters[kind]
        if parameters is not None:
            if scaling is not None and scaling != parameters:
                raise ModelLoadError(
                    "config.json: rope_parameters and rope_scaling disagree: remove the one that is wrong"
                )
            scaling = parameters
        if scaling is None:
            return theta, None
        if not isinstance(scaling, Mapping):
            raise ModelLoadError(f"config.json: rope scaling {scaling!r} must be an object")
        theta = ConfigReader(scaling).number("rope_theta", theta)
        given = {key: value for key, value in scaling.items() if value is not None and key != "rope_theta"}
        # Beside the scaling, the original length takes priority over the one inside it (as in transformers).
        if original is not None and not _is_default(given):
            given[_ORIGINAL_LENGTH] = original
        return theta, scaled(given)

    def local_rope(self, theta: float) -> Rope:
        """Base and scaling of layers with windows: their own ones in ``rope_parameters``, or else this base, unscaled."""
        parameters = self.raw.get("rope_parameters")
        by_kind = isinstance(parameters, Mapping) and SLIDING in parameters
        return self.rope(SLIDING) if by_kind else (theta, None)


def _is_default(scaling: RopeScaling) -> bool:
    return bool(scaling.get("rope_type", scaling.get("type", "default")) == "default")


def scaled(scaling: RopeScaling) -> RopeScaling | None:
    """A scaling, or None if it does nothing, and says no more than that."""
    return None if _is_default(scaling) and scaling.keys() <= {"rope_type", "type"} else scaling


_ORIGINAL_LENGTH = "original_max_position_embeddings"
_ACTIVATIONS: dict[Any, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


def windows(kinds: Sequence[str], size: int) -> tuple[Window | None, ...]:
    """Per layer: the window, or None where attention is full."""
    return tuple(None if kind == FULL else Window(size, chunked=kind == CHUNKED) for kind in kinds)


def with_defaults(raw: Mapping[str, Any], **defaults: Any) -> Mapping[str, Any]:
    """A config in which keys that are missing have a value. Which keys are read is still seen."""
    return ChainMap(raw, defaults)  # type: ignore[arg-type]  # nothing writes to it


def decoder_config(raw: Mapping[str, Any], **family: Any) -> DecoderConfig:
    """The fields every Llama-like config shares; ``family`` fills in or overrides the rest.

    Raises:
        ModelLoadError: a value is missing or of the wrong kind, or the activation is unknown.
    """
    read = ConfigReader(raw)
    named, older = raw.get("hidden_activation"), raw.get("hidden_act", "silu")
    key, activation = ("hidden_activation", named) if named else ("hidden_act", older)
    if activation not in _ACTIVATIONS:
        raise ModelLoadError(f"config.json: {key}={activation!r} is not supported ({', '.join(_ACTIVATIONS)} are)")
    hidden, heads = read.integer("hidden_size"), read.integer("num_attention_heads")
    theta, scaling = read.rope(FULL)
    parameters = raw.get("rope_parameters")
    if isinstance(parameters, Mapping) and SLIDING in parameters and "local_rope" not in family:
        raise passed_over("rope_parameters", parameters)
    shared: dict[str, Any] = dict(
        vocab_size=read.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=read.integer("intermediate_size"),
        num_layers=read.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=read.integer("num_key_value_heads", heads),
        head_dim=read.integer("head_dim", hidden // heads),
        max_position_embeddings=read.integer("max_position_embeddings", 2048),
        rms_norm_eps=read.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=read.flag("tie_word_embeddings"),
        activation=_ACTIVATIONS[activation],
    )
    return DecoderConfig(**(shared | family))
