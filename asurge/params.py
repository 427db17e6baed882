"""Parameters of requests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypedDict

from asurge.errors import InvalidRequestError
from asurge.plan import MAX_LOGIT_BIAS, MAX_LOGPROBS, Pooling
from asurge.structured import GuidedDecodingParams, check_unicode, shown

OutputKind = Literal["cumulative", "delta", "final"]
MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 1000
"""Characters in one stop string; each piece of new text is searched for the beginning of one."""

MAX_BAD_WORDS = 256
MAX_BAD_WORD_CHARACTERS = 1000
"""Characters in one word; each is tokenised twice."""

MAX_REPETITIONS = 1 << 20
MAX_N = 64
MAX_TOKEN_IDS = 1 << 20
MAX_SEED = 2**63 - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Parameters of a generation: how tokens are sampled, and when the text ends. Checked when made.

    Logits are changed in this order: allowed tokens, penalties, bias, logits processors, typical_p; then temperature,
    top_k, top_p and min_p. A request that uses none of penalties, bias, constraints, logprobs, processors or typical_p
    is sampled within the model's own step, the others in a dispatch after it.

    Attributes:
        n: completions of one prompt, which share the pages of its beginning.
        best_of: sample this many completions and return the ``n`` likeliest, at the end.
        max_tokens: the most new tokens (``max_new_tokens`` is an alias); None: as many as fit the context.
        min_tokens: no end token and no stop token is sampled before this many tokens.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p (Holtzman et al., 2019).
        min_p: keep tokens that have at least this share of the likeliest one's probability (Nguyen et al., 2024); 0 keeps all.
        typical_p: keep the tokens whose surprise is nearest to the expected one, until their probability reaches p (Meister et al., 2022).
        presence_penalty, frequency_penalty: subtracted from the logits of tokens generated so far, once or once per occurrence.
        repetition_penalty: divides positive logits of tokens in prompt and answer, multiplies negative ones (Keskar et al., 2019); 1 is
            neutral.
        logit_bias: added to logits, by token id; in [-100, 100].
        guided_decoding: the form the text must have.
        allowed_token_ids: the only tokens that may be sampled; end tokens only if they are among them.
        bad_words: texts that are never generated, including those that span several tokens.
        logits_processors: those of the engine's to apply, by name, each with its argument.
        seed: the same seed gives the same tokens, whatever else is in the batch (to the rounding of plain JAX, where no kernels run); None: a random one.
        logprobs: report the logprob of each token, and of this many of the likeliest tokens in its place.
        prompt_logprobs: the same for the tokens of the prompt.
        truncate_prompt_tokens: keep only this many tokens at the end of the prompt; -1: as many as the context holds.
        echo: the text begins with that of the prompt.
        stop: strings that end the text.
        include_stop_str_in_output: leave the string that ended the text at its end.
        stop_token_ids: tokens that end the text, besides the model's own end tokens.
        ignore_eos: continue after the model's end tokens.
        repetition_stop: end the text when a pattern of up to 64 tokens occurs this many times in a row.
        thinking_budget: the most tokens of reasoning, after which the model is made to answer. If it is above 0, reasoning may come
            before a form; without it, a chat's template decides.
        detokenize: turn tokens into text; stop strings need it.
        skip_special_tokens: leave special tokens out of the text.
        spaces_between_special_tokens: put spaces between special tokens in the text.
        output_kind: what a streamed output holds: all the text so far (``"cumulative"``), what is new (``"delta"``), or nothing until
            the end (``"final"``).

    Raises:
        InvalidRequestError: a value is out of range; ``param`` names it.
    """

    n: int = 1
    best_of: int | None = None
    max_tokens: int | None = 128
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    guided_decoding: GuidedDecodingParams | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] = ()
    logits_processors: Mapping[str, float] = dataclasses.field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    truncate_prompt_tokens: int | None = None
    echo: bool = False
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    repetition_stop: int | None = None
    thinking_budget: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    output_kind: OutputKind = "cumulative"
    max_new_tokens: dataclasses.InitVar[int | None] = None

    def __post_init__(self, max_new_tokens: int | None) -> None:
        if max_new_tokens is not None:
            object.__setattr__(self, "max_tokens", max_new_tokens)
        self._check_ends()
        self._check_distribution()
        for field, low, high in (
            ("logprobs", 0, MAX_LOGPROBS),
            ("prompt_logprobs", 0, MAX_LOGPROBS),
            ("seed", 0, MAX_SEED),
        ):
            check_optional_integer(field, getattr(self, field), low, high)
        if self.truncate_prompt_tokens != -1:
            check_optional_integer("truncate_prompt_tokens", self.truncate_prompt_tokens, 1, None)
        check_integer("n", self.n, 1, MAX_N)
        check_optional_integer("best_of", self.best_of, self.n, MAX_N)
        for field in ("echo", "include_stop_str_in_output", "ignore_eos", "detokenize", "skip_special_tokens", "spaces_between_special_tokens"):  # fmt: skip
            if not isinstance(getattr(self, field), bool):
                raise InvalidRequestError(f"{field}={shown(getattr(self, field))} must be True or False", param=field)
        if self.output_kind not in ("cumulative", "delta", "final"):
            raise InvalidRequestError(
                f"output_kind={shown(self.output_kind)} must be 'cumulative', 'delta' or 'final'", param="output_kind"
            )

    def _check_ends(self) -> None:
        check_optional_integer("max_tokens", self.max_tokens, 1, None)
        check_integer("min_tokens", self.min_tokens, 0, self.max_tokens)
        check_optional_integer("repetition_stop", self.repetition_stop, 2, MAX_REPETITIONS)
        check_optional_integer("thinking_budget", self.thinking_budget, 0, None)
        stop = _strings("stop", self.stop, MAX_STOP_STRINGS, MAX_STOP_CHARACTERS)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        if self.stop and not self.detokenize:
            raise InvalidRequestError("stop needs text: leave it out, or set detokenize=True", param="stop")

    def _check_distribution(self) -> None:
        check_number("temperature", self.temperature, 0.0, 100.0)
        check_integer("top_k", self.top_k, -1, None)
        check_number("min_p", self.min_p, 0.0, 1.0)
        for field in ("top_p", "typical_p"):
            check_number(field, getattr(self, field), 0.0, 1.0)
            if getattr(self, field) == 0.0:
                raise InvalidRequestError(f"{field}=0.0 keeps no token: use a value in (0, 1]", param=field)
        check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        check_number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        object.__setattr__(self, "logit_bias", _logit_bias(self.logit_bias))
        bad_words = _strings("bad_words", self.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_CHARACTERS)
        for word in bad_words:
            check_unicode("bad_words", word)
        object.__setattr__(self, "bad_words", bad_words)
        if self.allowed_token_ids is not None:
            allowed = _token_ids("allowed_token_ids", self.allowed_token_ids)
            if not allowed:
                raise InvalidRequestError(
                    "allowed_token_ids is empty: allow one token at least", param="allowed_token_ids"
                )
            object.__setattr__(self, "allowed_token_ids", allowed)
        if self.guided_decoding is not None and not isinstance(self.guided_decoding, GuidedDecodingParams):
            raise InvalidRequestError("guided_decoding must be GuidedDecodingParams", param="guided_decoding")
        if not isinstance(self.logits_processors, Mapping):
            raise InvalidRequestError("logits_processors must map names to numbers", param="logits_processors")
        for name, argument in self.logits_processors.items():
            check_number(f"logits_processors[{name!r}]", argument, -1e30, 1e30, param="logits_processors")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingParams:
    """Parameters of an embedding. Checked when made.

    Attributes:
        pooling: the ``"mean"`` of the normalised hidden states of all tokens, or that of the ``"last"`` token.
        normalize: make its length 1.
        dimensions: keep only this many of its first numbers.
        truncate_prompt_tokens: keep only this many tokens at the end of the prompt; -1: as many as the context holds.

    Raises:
        InvalidRequestError: a value is out of range; ``param`` names it.
    """

    pooling: Pooling = "mean"
    normalize: bool = True
    dimensions: int | None = None
    truncate_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.pooling not in ("mean", "last"):
            raise InvalidRequestError(f"pooling={shown(self.pooling)} must be 'mean' or 'last'", param="pooling")
        if not isinstance(self.normalize, bool):
            raise InvalidRequestError(f"normalize={shown(self.normalize)} must be True or False", param="normalize")
        check_optional_integer("dimensions", self.dimensions, 1, None)
        if self.truncate_prompt_tokens != -1:
            check_optional_integer("truncate_prompt_tokens", self.truncate_prompt_tokens, 1, None)


class RequestOptions(TypedDict, total=False):
    """Options of a request beside others: priority, tenant, deadline and cache salt.

    Attributes:
        priority: lower numbers come first, where the scheduler's policy is ``"priority"``.
        tenant: who is charged; waiting tenants are served in turns, by their weights.
        deadline_s: seconds from now after which the request fails, whatever state it is in.
        cache_salt: requests with different salts share nothing in the prefix cache.
    """

    priority: int
    tenant: str
    deadline_s: float | None
    cache_salt: str


MAX_PRIORITY = 2**31 - 1
MAX_DEADLINE_S = 1e6
MAX_NAME = 256


def check_options(options: RequestOptions) -> None:
    """Check the values of `RequestOptions`.

    Raises:
        InvalidRequestError: one is of the wrong kind or out of range; ``param`` names it.
    """
    check_names(options, RequestOptions)
    check_integer("priority", options.get("priority", 0), -MAX_PRIORITY, MAX_PRIORITY)
    deadline = options.get("deadline_s")
    if deadline is not None:
        check_number("deadline_s", deadline, 0.0, MAX_DEADLINE_S)
    for name in ("tenant", "cache_salt"):
        text = options.get(name, "")
        if not isinstance(text, str) or len(text) > MAX_NAME:
            raise InvalidRequestError(
                f"{name}={shown(text)} must be a string of at most {MAX_NAME} characters", param=name
            )
        check_unicode(name, text)


def check_names(options: Mapping[str, Any], kind: type[Any]) -> None:
    """Check that all names are keys of ``kind``, a typed dictionary.

    Raises:
        InvalidRequestError: one is not among those of ``kind``, a typed dictionary.
    """
    known = kind.__annotations__
    for name in options:
        if name not in known:
            raise InvalidRequestError(f"unknown option {name}: the options are {', '.join(known)}", param=name)


def check_number(name: str, value: Any, low: float, high: float, *, param: str | None = None) -> None:
    """Check that a value is a number in ``[low, high]``.

    Raises:
        InvalidRequestError: it is not a number in ``[low, high]``; ``param``, or else the name, is the parameter at fault.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidRequestError(f"{name}={shown(value)} must be a finite number", param=param or name)
    if not low <= value <= high:
        raise InvalidRequestError(f"{name}={shown(value)} must be in [{low:g}, {high:g}]", param=param or name)


def check_integer(name: str, value: Any, low: int, high: int | None) -> None:
    """Check that a value is an integer from ``low`` to ``high``.

    Raises:
        InvalidRequestError: it is not an integer from ``low`` to ``high``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name}={shown(value)} must be an integer", param=name)
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise InvalidRequestError(f"{name}={value} must be at least {low}{upper}", param=name)


def check_optional_integer(name: str, value: Any, low: int, high: int | None) -> None:
    """`check_integer`, unless it is None."""
    if value is not None:
        check_integer(name, value, low, high)


def _strings(name: str, given: Any, most: int, longest: int) -> tuple[str, ...]:
    if given is not None and not isinstance(given, str | Sequence):
        raise InvalidRequestError(f"{name}={shown(given)} must be a string or a list of strings", param=name)
    strings = (given,) if isinstance(given, str) else tuple(given or ())
    if len(strings) > most:
        raise InvalidRequestError(f"{name} has {len(strings)} strings: at most {most} are allowed", param=name)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise InvalidRequestError(f"{name} holds {shown(string)}: each must be a non-empty string", param=name)
        if len(string) > longest:
            raise InvalidRequestError(
                f"{name} holds a string of {len(string)} characters: at most {longest} are allowed", param=name
            )
    return strings


def all_natural(values: Collection[Any]) -> bool:
    """Whether all are Python's own integers, and none is below 0. Runs at the speed of C: there may be a million."""
    return set(map(type, values)) <= {int} and min(values, default=0) >= 0


def _token_ids(name: str, given: Any) -> tuple[int, ...]:
    if given is not None and (isinstance(given, str) or not isinstance(given, Sequence)):
        raise InvalidRequestError(f"{name}={shown(given)} must be a list of token ids", param=name)
    ids = tuple(given or ())
    if len(ids) > MAX_TOKEN_IDS:
        raise InvalidRequestError(f"{name} has {len(ids)} entries: at most {MAX_TOKEN_IDS} are allowed", param=name)
    if all_natural(ids):
        return ids
    for token in ids:
        check_integer(name, token, 0, None)
    return ids


def _logit_bias(given: Any) -> dict[int, float]:
    """OpenAI's clients send the ids as strings."""
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise InvalidRequestError(f"logit_bias={shown(given)} must map token ids to numbers", param="logit_bias")
    if len(given) > MAX_LOGIT_BIAS:
        raise InvalidRequestError(
            f"logit_bias has {len(given)} entries: at most {MAX_LOGIT_BIAS} are allowed", param="logit_bias"
        )
    bias: dict[int, float] = {}
    for token, value in given.items():
        if isinstance(token, str) and token.isascii() and token.isdigit():
            token = int(token[:20])
        check_integer("logit_bias", token, 0, None)
        check_number("logit_bias", value, -100.0, 100.0)
        bias[token] = float(value)
    return bias
