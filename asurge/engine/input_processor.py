"""`InputProcessor`: prompts and parameters to what the pipeline and the scheduler take. Slow work is done in worker threads."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, Unpack

from anyio import CapacityLimiter

from asurge.config import EngineConfig
from asurge.engine.assembly import EngineParts
from asurge.engine.constraints import Constraints
from asurge.engine.prompts import Prompt, Prompts, RenderedChat, check_prompt, check_tokens
from asurge.errors import InvalidRequestError
from asurge.guidance import RepetitionStop, SequenceConstraint
from asurge.params import MAX_SEED, EmbeddingParams, OutputKind, RequestOptions, SamplingParams, check_options
from asurge.pipeline import Completion, Generation, LogprobFormatter, PromptInfo, PromptLogprobs
from asurge.plan import LogitsShaping, RowSampling
from asurge.scheduler import Request
from asurge.text import (
    BLOCKING_CHARACTERS,
    FittedConversation,
    FittedPrompt,
    IncrementalDetokenizer,
    Rendering,
    StopMatcher,
)
from asurge.threads import run_in_thread

_log = logging.getLogger("asurge")

T = TypeVar("T")

_MOST_THREADS = 4
_MAX_TOP_K = 2**31 - 1
"""The most that a step's int32 array holds; beyond any vocabulary."""


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A request that is ready for the pipeline.

    Attributes:
        generation: its completions, and what their reader waits on.
        requests: a sequence for the scheduler, for each completion.
        constraints: what constrains the tokens of each, if anything does.
    """

    generation: Generation
    requests: Sequence[Request]
    constraints: Sequence[SequenceConstraint] = ()


class InputProcessor:
    """Prepares the requests of one engine. Everything refused here is refused before any device work.

    Attributes:
        end_token_ids: the tokens that end a text, unless a request ignores them.
    """

    def __init__(self, config: EngineConfig, parts: EngineParts) -> None:
        self._config, self._tokenizer, self._vocab_size = config, parts.tokenizer, parts.vocab_size
        limits = parts.runner.limits
        self._hidden_size = limits.hidden_size
        self.end_token_ids = _known_end_tokens(
            parts.tokenizer.eos_token_ids | frozenset(config.extra_eos_token_ids), parts.vocab_size
        )
        self._prompts = Prompts(config, parts.tokenizer, limits.max_model_len, parts.vocab_size)
        # One text that takes long must not hold up all others, whatever processors there are.
        self._threads = CapacityLimiter(min(_MOST_THREADS, parts.threads.budget.threads + 1))
        self._constraints = Constraints(parts.tokenizer, parts.vocab_size, self.end_token_ids)
        self._serial = itertools.count()

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams,
        **how: Unpack[Rendering],
    ) -> RenderedChat:
        """See `Prompts.rendered`."""
        return await self._threaded(lambda: self._prompts.rendered(messages, params, **how))

    async def fit(self, prompt: Prompt, params: SamplingParams) -> FittedPrompt:
        """See `Prompts.fit`."""
        return await self._threaded(lambda: self._prompts.fit(prompt, params))

    async def prepare(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        clock: Callable[[], float],
        options: RequestOptions,
        *,
        whole: bool,
    ) -> PreparedRequest:
        """Prepare a request for completions.

        Args:
            whole: whether its reader waits for the end, whatever the parameters' ``output_kind`` says.
        """
        arrival_s = clock()
        check_options(options)

        def work() -> tuple[FittedPrompt, frozenset[int]]:
            self._check_tokens(params)
            ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.end_token_ids)
            return self._prompts.fit(prompt, params), ends

        tokens = len(params.stop_token_ids) + len(params.allowed_token_ids or ())
        fitted, ends = await self._off_loop(_length(prompt) + tokens, work)
        count = params.best_of or params.n
        # If more completions run than are wanted, the likeliest are known only when all have ended.
        kind: OutputKind = "final" if whole or count > params.n else params.output_kind
        # A bare prompt may continue anything; in a conversation, an answer begins.
        thinks = prompt.thinks if isinstance(prompt, RenderedChat) else False
        constraints = await self._constraints.prepare(params, fitted.token_ids, ends, count, thinks=thinks)
        shaping = self._shaping(params, masked=bool(constraints))
        requests = [
            Request(
                sequence_id=self._sequence_id(request_id),
                prompt_token_ids=list(fitted.token_ids),
                max_tokens=fitted.max_tokens,
                sampling=_sampling(params, shaping, index),
                stop_token_ids=ends,
                prompt_logprobs=params.prompt_logprobs is not None and index == 0,
                streamed=kind != "final",
                **_request_options(options, arrival_s),
            )
            for index in range(count)
        ]
        generation = self._generation(request_id, requests, prompt, params, fitted, kind, clock)
        generation.relaxed = constraints[0].relaxed if constraints else ()
        return PreparedRequest(generation, requests, constraints)

    async def prepare_embedding(
        self,
        request_id: str,
        prompt: Prompt,
        params: EmbeddingParams,
        clock: Callable[[], float],
        options: RequestOptions,
    ) -> PreparedRequest:
        """Prepare a prompt that is to become a vector."""
        arrival_s = clock()
        check_options(options)
        if params.dimensions is not None and params.dimensions > self._hidden_size:
            raise InvalidRequestError(
                f"dimensions={params.dimensions} must be at most {self._hidden_size}, which is what the model gives",
                param="dimensions",
            )
        fitted = await self._off_loop(_length(prompt), lambda: self._prompts.fit_alone(prompt, params))
        request = Request(
            sequence_id=self._sequence_id(request_id),
            prompt_token_ids=list(fitted.token_ids),
            max_tokens=0,
            sampling=RowSampling(),
            pooling=params.pooling,
            **_request_options(options, arrival_s),
        )
        info = self.prompt_info(prompt, SamplingParams(), fitted)
        generation = Generation(request_id, info, [Completion(request.sequence_id)], arrival_s=arrival_s, clock=clock)
        return PreparedRequest(generation, [request])

    def _sequence_id(self, request_id: str) -> str:
        """The id the engine knows a sequence by. Request ids may be used again: late results of a sequence that has ended must
        not reach another."""
        return f"{request_id}/{next(self._serial)}"

    async def _off_loop(self, length: int, work: Callable[[], T]) -> T:
        """Long prompts and lists take a worker thread."""
        return await self._threaded(work) if length > BLOCKING_CHARACTERS else work()

    async def _threaded(self, work: Callable[[], T]) -> T:
        return await run_in_thread(work, self._threads)

    def _check_tokens(self, params: SamplingParams) -> None:
        for field in ("logit_bias", "allowed_token_ids", "stop_token_ids"):
            check_tokens(getattr(params, field) or (), self._vocab_size, field)

    def _shaping(self, params: SamplingParams, *, masked: bool) -> LogitsShaping | None:
        """What a request asks for beyond what the model's own step samples; None if nothing."""
        names = list(self._config.logits_processors)
        shaping = LogitsShaping(
            typical_p=params.typical_p,
            repetition_penalty=params.repetition_penalty,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            logit_bias=tuple(params.logit_bias.items()),
            processors=tuple((_processor(name, names), float(at)) for name, at in params.logits_processors.items()),
            logprobs=_num_logprobs(params),
            masked=masked,
        )
        return None if shaping == LogitsShaping() else shaping

    def prompt_info(self, prompt: Prompt, params: SamplingParams, fitted: FittedPrompt) -> PromptInfo:
        """Describe a prompt for outputs.

        Its text is that of the tokens that are left of it, unless the settings say otherwise.
        """
        ids = list(fitted.token_ids)
        chat = prompt.conversation if isinstance(prompt, RenderedChat) else FittedConversation(())
        truncated = fitted.truncated + chat.truncated_tokens
        text = prompt if isinstance(prompt, str) else None
        if isinstance(prompt, RenderedChat) or (
            text is not None and truncated and self._config.decode_truncated_prompt
        ):
            text = self._tokenizer.decode(ids, skip_special_tokens=False)
        logprobs = None
        if params.prompt_logprobs is not None:
            logprobs = PromptLogprobs(ids, LogprobFormatter(params.prompt_logprobs, self._decode_token))
        return PromptInfo(
            text,
            ids,
            num_truncated_tokens=truncated,
            num_dropped_messages=chat.dropped_messages,
            capped_max_tokens=fitted.max_tokens if fitted.capped else None,
            logprobs=logprobs,
        )

    def _generation(
        self,
        request_id: str,
        requests: Sequence[Request],
        prompt: Prompt,
        params: SamplingParams,
        fitted: FittedPrompt,
        kind: OutputKind,
        clock: Callable[[], float],
    ) -> Generation:
        return Generation(
            request_id,
            self.prompt_info(prompt, params, fitted),
            [self._completion(index, request, params) for index, request in enumerate(requests)],
            kept=params.n,
            output_kind=kind,
            max_tokens=fitted.max_tokens,
            arrival_s=requests[0].arrival_s,
            clock=clock,
        )

    def _completion(self, index: int, request: Request, params: SamplingParams) -> Completion:
        detokenizer = None
        if params.detokenize:
            detokenizer = IncrementalDetokenizer(
                self._tokenizer,
                request.prompt_token_ids,
                skip_special_tokens=params.skip_special_tokens,
                spaces_between_special_tokens=params.spaces_between_special_tokens,
            )
        stops, num_logprobs = params.stop_strings, _num_logprobs(params)
        return Completion(
            request.sequence_id,
            index,
            detokenizer=detokenizer,
            stops=StopMatcher(stops, params.include_stop_str_in_output) if stops else None,
            repetition=None if params.repetition_stop is None else RepetitionStop(params.repetition_stop),
            teller=None if num_logprobs is None else LogprobFormatter(num_logprobs, self._decode_token),
            silent_token_ids=request.stop_token_ids,
            echoed=self.decode(request.prompt_token_ids, params) if params.echo and params.detokenize else "",
        )

    def decode(self, token_ids: Sequence[int], params: SamplingParams) -> str:
        """The text of tokens, with or without special ones as the parameters say."""
        return self._tokenizer.decode(
            token_ids,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )

    def _decode_token(self, token: int) -> str:
        return self._tokenizer.decode([token], skip_special_tokens=False)


def _known_end_tokens(declared: frozenset[int], vocab_size: int) -> frozenset[int]:
    """The end tokens that are tokens: checkpoints name others, too."""
    known = frozenset(token for token in declared if 0 <= token < vocab_size)
    if others := sorted(declared - known):
        _log.warning("end tokens %s are outside the vocabulary of %d: they are ignored", others, vocab_size)
    return known


def _length(prompt: Prompt) -> int:
    """How much of a prompt is left to prepare: a conversation was tokenised when it was rendered.

    Raises:
        InvalidRequestError: it is not a prompt.
    """
    check_prompt(prompt)
    return 0 if isinstance(prompt, RenderedChat) else len(prompt)


def _processor(name: str, names: Sequence[str]) -> int:
    """The index of a logits processor."""
    if name not in names:
        known = ", ".join(names) or "none: pass logits_processors=... to the engine"
        raise InvalidRequestError(
            f"logits_processors names {name!r}, and the engine has {known}", param="logits_processors"
        )
    return names.index(name)


def _request_options(options: RequestOptions, arrival_s: float) -> dict[str, Any]:
    """What a request's options say, as fields of `asurge.scheduler.Request`."""
    deadline_s = options.get("deadline_s")
    return {
        "cache_salt": options.get("cache_salt", ""),
        "priority": options.get("priority", 0),
        "tenant": options.get("tenant", ""),
        "arrival_s": arrival_s,
        "deadline_s": None if deadline_s is None else arrival_s + deadline_s,
    }


def _num_logprobs(params: SamplingParams) -> int | None:
    """How many of the likeliest tokens to report beside each sampled one; None reports nothing. Where the likeliest of several
    completions are wanted, the sampled tokens must be reported."""
    ranks = params.best_of is not None and params.best_of > params.n
    return 0 if params.logprobs is None and ranks else params.logprobs


def _sampling(params: SamplingParams, shaping: LogitsShaping | None, index: int) -> RowSampling:
    """How one of a request's completions is sampled; each has a seed of its own."""
    seed = secrets.randbits(32) if params.seed is None else _fold_seed((params.seed + index) & MAX_SEED)
    top_k = min(max(params.top_k, 0), _MAX_TOP_K)
    return RowSampling(params.temperature, top_k, params.top_p, params.min_p, seed, shaping)


def _fold_seed(seed: int) -> int:
    """A seed of 64 bits as the 32 that sampling takes."""
    return (seed ^ (seed >> 32)) & 0xFFFFFFFF
