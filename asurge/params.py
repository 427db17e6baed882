"""What a request asks for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

from asurge.errors import InvalidRequestError

OutputKind = Literal["cumulative", "delta", "final"]
MAX_STOP_STRINGS = 64
MAX_SEED = 2**63 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request is sampled, and when it ends. Checked when made.

    Attributes:
        max_tokens: new tokens at most (``max_new_tokens`` is an alias); None means as many as fit the context.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p (Holtzman et al., 2019).
        seed: the same seed draws the same tokens in any company; None draws a fresh one.
        stop: strings that end the text (not part of it, unless ``include_stop_str_in_output``).
        stop_token_ids: tokens that end the text, besides the model's own end tokens.
        ignore_eos: go on past the model's end tokens.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: put spaces between special tokens in the text.
        output_kind: what ``text`` of a streamed output holds: all so far, the news, or nothing before the end.

    Raises:
        InvalidRequestError: a value is out of range; ``param`` names it.
    """

    max_tokens: int | None = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    output_kind: OutputKind = "cumulative"
    max_new_tokens: dataclasses.InitVar[int | None] = None

    def __post_init__(self, max_new_tokens: int | None) -> None:
        if max_new_tokens is not None:
            object.__setattr__(self, "max_tokens", max_new_tokens)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, None)
        _number("temperature", self.temperature, 0.0, 100.0)
        _integer("top_k", self.top_k, -1, None)
        _number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise InvalidRequestError("top_p=0.0 keeps no token: use a value in (0, 1]", param="top_p")
        if self.seed is not None:
            _integer("seed", self.seed, 0, MAX_SEED)
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids(self.stop_token_ids))
        if self.output_kind not in ("cumulative", "delta", "final"):
            raise InvalidRequestError(
                f"output_kind={self.output_kind!r} must be 'cumulative', 'delta' or 'final'", param="output_kind"
            )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def _number(name: str, value: Any, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidRequestError(f"{name}={value!r} must be a finite number", param=name)
    if not low <= value <= high:
        raise InvalidRequestError(f"{name}={value!r} must be in [{low:g}, {high:g}]", param=name)


def _integer(name: str, value: Any, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name}={value!r} must be an integer", param=name)
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise InvalidRequestError(f"{name}={value} must be at least {low}{upper}", param=name)


def _stop_strings(stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequestError(
            f"stop has {len(strings)} strings: at most {MAX_STOP_STRINGS} are allowed", param="stop"
        )
    for string in strings:
        if not isinstance(string, str) or not string:
            raise InvalidRequestError(f"stop holds {string!r}: each must be a non-empty string", param="stop")
    return strings


def _token_ids(token_ids: Any) -> tuple[int, ...]:
    ids = tuple(token_ids or ())
    for token in ids:
        _integer("stop_token_ids", token, 0, None)
    return ids
