"""Turns what a caller hands in into what the scheduler takes. Slow work is done in worker threads."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, Unpack

from anyio import CapacityLimiter, get_cancelled_exc_class

from asurge.config import EngineConfig
from asurge.containment import contained
from asurge.engine.assembly import EngineParts
from asurge.engine.constraints import Constraints
from asurge.engine.prompts import Prompt, Prompts, RenderedChat, check_prompt, check_tokens
from asurge.errors import InvalidRequestError, RequestFailedError
from asurge.guidance import RepetitionStop, SequenceConstraint
from asurge.params import MAX_SEED, EmbeddingParams, OutputKind, RequestOptions, SamplingParams, check_options
from asurge.pipeline import Completion, Generation, LogprobFormatter, Pipeline, PromptInfo, PromptLogprobs
from asurge.plan import RowSampling, Shaping
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
class Admission:
    """A request as the pipeline takes it: the generation its texts grow in, and a sequence for each of them."""

    generation: Generation
    requests: Sequence[Request]
    constraints: Sequence[SequenceConstraint] = ()


@dataclasses.dataclass(slots=True, eq=False)
class Arrival:
    """A request that is being prepared."""

    request_id: str
    aborted: bool = False


class Intake:
    """Prepares requests. Everything refused here is refused before any device work.

    Attributes:
        end_token_ids: the tokens that end a text, unless a request ignores them.
        started_s: when the engine started, on the monotonic clock.
    """

    def __init__(self, config: EngineConfig, parts: EngineParts) -> None:
        self._config, self._tokenizer, self._vocab_size = config, parts.tokenizer, parts.vocab_size
        limits = parts.runner.limits
        self._hidden_size = limits.hidden_size
        self.end_token_ids = _ends(
            parts.tokenizer.eos_token_ids | frozenset(config.extra_eos_token_ids), parts.vocab_size
        )
        self._prompts = Prompts(config, parts.tokenizer, limits.max_model_len, parts.vocab_size)
        # One text that takes long must not hold up all others, whatever processors there are.
        self._threads = CapacityLimiter(min(_MOST_THREADS, parts.threads.budget.threads + 1))
        self._constraints = Constraints(parts.tokenizer, parts.vocab_size, self.end_token_ids)
        self._serial = itertools.count()
        self._arrivals: set[Arrival] = set()
        self.started_s = time.monotonic()

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams,
        **how: Unpack[Rendering],
    ) -> RenderedChat:
        """See `Prompts.rendered`."""
        with panics_reported():
            return await self._threaded(lambda: self._prompts.rendered(messages, params, **how))

    async def fit(self, prompt: Prompt, params: SamplingParams) -> FittedPrompt:
        """See `Prompts.fit`."""
        with panics_reported():
            return await self._threaded(lambda: self._prompts.fit(prompt, params))

    @contextmanager
    def arriving(self, request_id: str) -> Iterator[Arrival]:
        """Wraps the preparation of a request, so that `abort` finds it; see `admit`."""
        arrival = Arrival(request_id)
        self._arrivals.add(arrival)
        try:
            yield arrival
        finally:
            self._arrivals.discard(arrival)

    def abort(self, request_id: str) -> bool:
        """Mark as aborted what is being prepared under an id; False if there is nothing."""
        found = [one for one in self._arrivals if one.request_id == request_id]
        for one in found:
            one.aborted = True
        return bool(found)

    async def prepare(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        clock: Callable[[], float],
        options: RequestOptions,
        *,
        whole: bool,
    ) -> Admission:
        """Everything the pipeline needs of a request.

        Args:
            whole: its reader waits for the end, whatever the parameters' ``output_kind`` says.
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
        return Admission(generation, requests, constraints)

    async def prepare_embedding(
        self,
        request_id: str,
        prompt: Prompt,
        params: EmbeddingParams,
        clock: Callable[[], float],
        options: RequestOptions,
    ) -> Admission:
        """Everything the pipeline needs of a prompt that is to become a vector."""
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
        facts = self.facts(prompt, SamplingParams(), fitted)
        generation = Generation(request_id, facts, [Completion(request.sequence_id)], arrival_s=arrival_s, clock=clock)
        return Admission(generation, [request])

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

    def _shaping(self, params: SamplingParams, *, masked: bool) -> Shaping | None:
        """What a request asks for beyond what the model's own step draws; None if nothing."""
        names = list(self._config.logits_processors)
        shaping = Shaping(
            typical_p=params.typical_p,
            repetition_penalty=params.repetition_penalty,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            logit_bias=tuple(params.logit_bias.items()),
            processors=tuple((_processor(name, names), float(at)) for name, at in params.logits_processors.items()),
            logprobs=_told(params),
            masked=masked,
        )
        return None if shaping == Shaping() else shaping

    def facts(self, prompt: Prompt, params: SamplingParams, fitted: FittedPrompt) -> PromptInfo:
        """What outputs report about a prompt; the text is that of the tokens that are left, unless the settings say
        otherwise."""
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
            self.facts(prompt, params, fitted),
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
        stops, told = params.stop_strings, _told(params)
        return Completion(
            request.sequence_id,
            index,
            detokenizer=detokenizer,
            stops=StopMatcher(stops, params.include_stop_str_in_output) if stops else None,
            repetition=None if params.repetition_stop is None else RepetitionStop(params.repetition_stop),
            teller=None if told is None else LogprobFormatter(told, self._decode_token),
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


Running = Callable[[], tuple[Pipeline, Intake]]
"""The parts of an engine; raises if it is not running."""


@contextmanager
def panics_reported() -> Iterator[None]:
    """Wraps the preparation of a request: what its caller would not expect, the panics of libraries in Rust, are errors.

    Raises:
        RequestFailedError: one panicked.
    """
    try:
        yield
    except (Exception, GeneratorExit, get_cancelled_exc_class()):
        raise
    except BaseException as error:
        raise RequestFailedError(
            f"a request could not be prepared ({error!r}); the engine goes on: report this"
        ) from contained(error)


async def admit(
    running: Running, request_id: str, prepare: Callable[[Intake, Callable[[], float]], Awaitable[Admission]]
) -> Generation:
    """Have a request prepared, with the pipeline's clock, and submit it. If it is aborted meanwhile, it ends at once."""
    pipeline, intake = running()
    with intake.arriving(request_id) as arrival, panics_reported():
        admitted = await prepare(intake, pipeline.clock)
    pipeline, _ = running()  # the engine may have stopped meanwhile
    pipeline.submit(admitted.generation, admitted.requests, admitted.constraints)
    if arrival.aborted:
        pipeline.cancel(admitted.generation)
    return admitted.generation


def _ends(declared: frozenset[int], vocab_size: int) -> frozenset[int]:
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


def _told(params: SamplingParams) -> int | None:
    """How many of the likeliest tokens to report beside each drawn one; None reports nothing. Where the likeliest of several
    completions are wanted, the drawn tokens must be reported."""
    ranks = params.best_of is not None and params.best_of > params.n
    return 0 if params.logprobs is None and ranks else params.logprobs


def _sampling(params: SamplingParams, shaping: Shaping | None, index: int) -> RowSampling:
    """How one of a request's completions is drawn; each has a seed of its own."""
    seed = secrets.randbits(63) if params.seed is None else (params.seed + index) & MAX_SEED
    top_k = min(max(params.top_k, 0), _MAX_TOP_K)
    return RowSampling(params.temperature, top_k, params.top_p, params.min_p, seed, shaping)
