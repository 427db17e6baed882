"""Sampling and scheduling fields that the endpoints share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from asurge.errors import InvalidRequestError
from asurge.params import MAX_SEED, OutputKind, RequestOptions, SamplingParams
from asurge.server.errors import ApiError
from asurge.structured import GuidedDecodingParams

_PLAIN = (
    "n", "temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "stop", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "logit_bias", "min_tokens", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
    "bad_words", "allowed_token_ids", "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens",
    "prompt_logprobs", "thinking_budget", "repetition_stop", "logits_processors",
)  # fmt: skip
_GUIDED = {
    "guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar",
    "guided_whitespace_pattern": "whitespace_pattern",
}  # fmt: skip

NOT_SERVED = {"detokenize": "an answer over HTTP is text; `return_token_ids` adds its tokens"}
"""Parameters of `asurge.SamplingParams` that no request over HTTP can set, and why."""


class JsonSchemaFormat(msgspec.Struct, kw_only=True):
    """The ``json_schema`` of a response format."""

    name: str = "answer"
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """The form an answer must have."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchemaFormat | None = None
    schema: dict[str, Any] | None = None  # llama.cpp's and others' place for it
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None

    def form(self) -> dict[str, Any]:
        """The form as arguments of `asurge.GuidedDecodingParams`; empty for free text."""
        match self.type:
            case "json_object":
                return {"json_object": True} if self.schema is None else {"json": self.schema}
            case "json_schema":
                schema = self.schema if self.json_schema is None else self.json_schema.schema
                if schema is None:
                    raise ApiError("response_format.json_schema.schema is missing", param="response_format")
                return {"json": schema}
            case "structural_tag":
                return {"structural_tag": {"structures": self.structures or [], "triggers": self.triggers or []}}
        return {}


class StreamOptions(msgspec.Struct, kw_only=True):
    """Options of a stream besides the text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class EngineRequest(msgspec.Struct, kw_only=True):
    """Fields that all requests to an engine share: the model, and options beside other requests."""

    model: str | None = None
    user: str | None = None
    # Beyond OpenAI's.
    cache_salt: str | None = None
    priority: int | None = None
    deadline_s: float | None = None

    @property
    def salt(self) -> str:
        """Requests with different salts share nothing in the prefix cache."""
        return self.cache_salt or ""

    def options(self) -> RequestOptions:
        """Return the request's own priority and other options beside other requests."""
        options = RequestOptions()
        if self.priority is not None:
            options["priority"] = self.priority
        if self.deadline_s is not None:
            options["deadline_s"] = self.deadline_s
        return options


class Sampling(EngineRequest, kw_only=True):
    """OpenAI's sampling fields, and beyond them those of `asurge.SamplingParams` under vLLM's names."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None
    prompt_cache_key: str | None = None
    # Beyond OpenAI's.
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: list[str] | None = None
    allowed_token_ids: list[int] | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    thinking_budget: int | None = None
    repetition_stop: int | None = None
    logits_processors: dict[str, float] | None = None
    truncation_side: Literal["left", "right"] | None = None
    use_beam_search: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    guided_json: str | dict[str, Any] | bool | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    structured_outputs: dict[str, Any] | None = None

    @property
    def salt(self) -> str:
        return self.cache_salt or self.prompt_cache_key or ""

    @property
    def streams(self) -> bool:
        return bool(self.stream)

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def tells_usage_always(self) -> bool:
        """Whether every chunk of a stream has the usage so far."""
        return self.tells_usage and self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)

    @property
    def tells_of_tokens(self) -> bool:
        """Whether the answer says how likely tokens were."""
        return self.prompt_logprobs is not None

    def check(self) -> None:
        """Check that fields go together.

        Raises:
            ApiError: fields that do not go together.
        """
        if self.stream_options is not None and not self.stream:
            raise ApiError("stream_options are for streams: set stream=true", param="stream_options")
        if self.use_beam_search:
            raise ApiError(
                "use_beam_search=true is not served over HTTP: leave it out, or call Engine.beam_search",
                param="use_beam_search",
            )
        if self.truncation_side == "right":
            raise ApiError(
                "truncation_side='right' is not served: prompts keep their end, as with 'left'", param="truncation_side"
            )

    def params(
        self, defaults: Mapping[str, float], form: Mapping[str, Any] | None = None, **own: Any
    ) -> SamplingParams:
        """Make `asurge.SamplingParams` of the fields.

        Args:
            defaults: the model's own.
            form: arguments of `asurge.GuidedDecodingParams`; default: those of `form`.
            own: parameters that the endpoint sets itself.

        Raises:
            InvalidRequestError: a value is out of range.
        """
        given = {name: getattr(self, name) for name in _PLAIN if getattr(self, name) is not None}
        values = {**defaults, **given}
        if not -1 - MAX_SEED <= (seed := values.get("seed", 0)) <= MAX_SEED:
            raise InvalidRequestError(f"seed={seed} must be in [-2**63, 2**63 - 1]", param="seed")
        if seed < 0:  # OpenAI's and vLLM's have a sign
            values["seed"] = int(seed) & MAX_SEED
        form = self.form() if form is None else form
        if form:
            values["guided_decoding"] = GuidedDecodingParams(**form)
        kind: OutputKind = "delta" if self.streams else "final"
        return SamplingParams(output_kind=kind, **{**values, **own})

    def form(self) -> dict[str, Any]:
        """The form that the answer must have, as arguments of `asurge.GuidedDecodingParams`; empty for free text.

        Raises:
            ApiError: it is not known.
        """
        form = {} if self.response_format is None else self.response_format.form()
        form |= {_GUIDED[name]: value for name in _GUIDED if (value := getattr(self, name)) is not None}
        if self.structured_outputs is not None:
            known = {"json", "regex", "choice", "grammar", "json_object", "structural_tag", "whitespace_pattern", "disable_any_whitespace"}  # fmt: skip
            if unknown := self.structured_outputs.keys() - known:
                raise ApiError(
                    f"structured_outputs has unknown fields: {', '.join(sorted(unknown))}", param="structured_outputs"
                )
            form |= {name: value for name, value in self.structured_outputs.items() if value is not None}
        return form


class PromptTokensDetails(msgspec.Struct, kw_only=True):
    """Prompt tokens found in the prefix cache."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct, kw_only=True):
    """Completion tokens of reasoning: as many as its text has."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True):
    """Tokens; those of reasoning are given at the end of a chat."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET

    @classmethod
    def of(cls, prompt: int, completion: int, cached: int, reasoning: int | None = None) -> Usage:
        """Make the usage of a request; tokens of reasoning are never more than those of the completion."""
        details = UNSET if reasoning is None else CompletionTokensDetails(reasoning_tokens=min(reasoning, completion))
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
            completion_tokens_details=details,
        )
