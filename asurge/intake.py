"""From what a caller hands in to what the scheduler takes: tokenise, fit, validate. In worker threads."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anyio import CapacityLimiter, to_thread

from asurge.assembly import Parts
from asurge.config import EngineConfig
from asurge.errors import InvalidRequestError
from asurge.params import SamplingParams
from asurge.pipeline import Generation
from asurge.plan import RowSampling
from asurge.scheduler import Request
from asurge.text import FittedPrompt, IncrementalDetokenizer, StopMatcher, fit_prompt, render_chat

Prompt = str | Sequence[int]

_THREADS = 4
_BLOCKING_CHARACTERS = 2048
"""Texts up to this long tokenise in well under a millisecond: cheaper on the loop than a thread's hand-over."""


class RenderedChat(str):
    """A prompt that already holds its special tokens."""

    __slots__ = ()


class Intake:
    """Prepares requests. Everything refused here is refused before any device work."""

    def __init__(self, config: EngineConfig, parts: Parts) -> None:
        self._config, self._tokenizer, self._vocab_size = config, parts.tokenizer, parts.vocab_size
        self._max_model_len = parts.runner.limits.max_model_len
        self._eos = frozenset(parts.tokenizer.eos_token_ids) | frozenset(config.extra_eos_token_ids)
        self._threads = CapacityLimiter(_THREADS)
        self.started_s = time.monotonic()

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        chat_template: str | None,
        template_kwargs: Mapping[str, Any] | None,
    ) -> RenderedChat:
        """The prompt of a conversation."""

        def render() -> str:
            return render_chat(
                self._tokenizer, messages, tools=tools, chat_template=chat_template, template_kwargs=template_kwargs
            )

        return RenderedChat(await to_thread.run_sync(render, limiter=self._threads))

    async def prepare(
        self, request_id: str, prompt: Prompt, params: SamplingParams, clock: Callable[[], float]
    ) -> tuple[Request, Generation]:
        """A request ready for the scheduler, and the generation its text will grow in."""
        arrival_s = clock()
        if isinstance(prompt, str) and len(prompt) > _BLOCKING_CHARACTERS:
            fitted = await to_thread.run_sync(self._fit, prompt, params, limiter=self._threads)
        else:
            fitted = self._fit(prompt, params)
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos)
        sampling = RowSampling(
            temperature=params.temperature,
            top_k=max(params.top_k, 0),
            top_p=params.top_p,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
        )
        request = Request(
            request_id=request_id,
            prompt_token_ids=list(fitted.token_ids),
            max_tokens=fitted.max_tokens,
            sampling=sampling,
            stop_token_ids=ends,
            arrival_s=arrival_s,
        )
        return request, self._generation(request, prompt, params, fitted, clock)

    def _fit(self, prompt: Prompt, params: SamplingParams) -> FittedPrompt:
        config = self._config
        if isinstance(prompt, str):
            special = not isinstance(prompt, RenderedChat)
            ids = self._tokenizer.encode(prompt, add_special_tokens=special)
        else:
            ids = self._checked(prompt)
        return fit_prompt(
            ids,
            max_model_len=self._max_model_len,
            max_tokens=params.max_tokens,
            reserve_tokens=config.reserve_tokens,
            auto_truncate_prompt=config.auto_truncate_prompt,
            auto_cap_new_tokens=config.auto_cap_new_tokens,
            strict_context=config.strict_context,
            truncate_mode=config.truncate_mode,
            prefer_preserve_prompt=config.prefer_preserve_prompt,
        )

    def _checked(self, prompt: Sequence[int]) -> list[int]:
        for token in prompt:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < self._vocab_size:
                raise InvalidRequestError(
                    f"prompt holds the token id {token!r}: ids must be integers in [0, {self._vocab_size})",
                    param="prompt",
                )
        return list(prompt)

    def _generation(
        self, request: Request, prompt: Prompt, params: SamplingParams, fitted: FittedPrompt, clock: Callable[[], float]
    ) -> Generation:
        detokenizer = IncrementalDetokenizer(
            self._tokenizer,
            request.prompt_token_ids,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
        stops = params.stop_strings
        return Generation(
            request.request_id,
            prompt if isinstance(prompt, str) else None,
            list(request.prompt_token_ids),
            detokenizer=detokenizer,
            stops=StopMatcher(stops, params.include_stop_str_in_output) if stops else None,
            silent_token_ids=request.stop_token_ids,
            output_kind=params.output_kind,
            num_truncated_tokens=fitted.truncated,
            arrival_s=request.arrival_s,
            clock=clock,
        )
