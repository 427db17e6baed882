"""`Engine`: the life cycle, and the verbs people use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self, Unpack, cast, overload

from anyio import CapacityLimiter
from tqdm import tqdm

from asurge.config import EngineConfig, EngineSettings
from asurge.engine import beam
from asurge.engine.embedding import embed_all
from asurge.engine.prompts import ChatOptions, Prompt, integer, is_list, split_options
from asurge.engine.status import EngineStatus
from asurge.engine.stream import TokenStream, finish_all
from asurge.errors import ConfigError, InvalidRequestError
from asurge.outputs import EmbeddingOutput, RequestOutput
from asurge.params import EmbeddingParams, RequestOptions, SamplingParams
from asurge.plan import Pooling
from asurge.structured import shown
from asurge.threads import run_in_thread

Message = Mapping[str, Any]  # OpenAI's chat messages: JSON
ParamsCallback = Callable[[SamplingParams, dict[str, Any]], SamplingParams | None]


class Engine(EngineStatus):
    """An LLM inference engine that lives in your event loop.

        async with Engine("demo") as engine:
            async for out in engine.stream("What does os.path.join do?"):
                print(out.delta_text, end="", flush=True)

    Settings are those of `EngineConfig`. All verbs must be called on the loop the engine was started on.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    def __init__(self, model: str = "demo", **settings: Unpack[EngineSettings]) -> None:
        _check_known(settings)
        super().__init__(EngineConfig(model=model, **cast(dict[str, Any], settings)))
        self._callback: ParamsCallback | None = self.config.sampling_params_callback

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """An engine with these settings, not started yet."""
        return cls(**config.settings())

    # ── life cycle ──────────────────────────────────────────────────────────────────────────────

    async def initiate(self) -> None:
        """Load the model, compile the steps and start serving. Use ``async with`` where you can.

        Raises:
            EngineStateError: the engine was started before.
            ModelLoadError, ConfigError, CompilationError: it cannot serve this checkpoint with these settings.
        """
        await self._life.start(self.config, self._params)

    async def terminate(self) -> None:
        """Abort whatever still runs, stop serving and free device memory.

        Waits for the steps in flight, also when it is cancelled. Safe to call twice.

        Raises:
            EngineStateError: it is still starting, in another task; or it runs on another event loop.
        """
        await self._life.stop()

    async def __aenter__(self) -> Self:
        await self.initiate()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.terminate()

    async def update_model_weights(self, model: str) -> None:
        """Continue with the weights of another checkpoint of the same shape, as after a training step.

        Both are in memory for a moment; requests may arrive while it is read, and nothing is compiled.

        Args:
            model: a folder, or a Hugging Face repository.

        Raises:
            EngineStateError: requests are running, before or after the checkpoint was read; nothing has changed.
            ConfigError, ModelLoadError: it has a different shape, or cannot be read.
        """
        if not model:
            raise ConfigError(f"model={model!r} must name a checkpoint")
        self._life.check_idle()
        parts, thread = self._life.started(), CapacityLimiter(1)
        put_in_place = await run_in_thread(partial(parts.load_weights, model), thread)
        self._life.check_idle()
        free_others = put_in_place()
        parts.scheduler.forget_cache()
        await run_in_thread(free_others, thread)

    # ── verbs ───────────────────────────────────────────────────────────────────────────────────

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> TokenStream:
        """Stream the completion of a text or of token ids. Admission happens when the stream is first awaited.

        Raises:
            EngineNotRunningError: the engine has not started or has stopped.
            EngineDeadError: it has failed.
        """
        admission = self._life.running()
        _check_params(sampling_params)
        return admission.stream(prompt, sampling_params, options, request_id)

    async def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        request_id: str | Sequence[str] | None = None,
        use_tqdm: bool = True,
        **options: Unpack[RequestOptions],
    ) -> list[RequestOutput]:
        """Complete all prompts together; outputs come in the order of the prompts.

        Nobody reads these as they grow, so steps may be as long as is most efficient (see `SchedulerConfig.max_mixed_step_s`).
        If there are more prompts than the queue holds, the later ones wait here, and their deadlines count from when they
        enter it.

        Raises:
            InvalidRequestError: a prompt or parameter is refused, or the lists differ in length.
            EngineOverloadedError: too many requests of other callers are waiting.
            DeadlineExceededError: one did not finish within its deadline.
            RequestFailedError, EngineDeadError: a step or the engine failed. The others are aborted.
        """
        batch = _batch(prompts)
        params = _params_of_each(sampling_params, len(batch))
        names = _ids_of_each(request_id, len(batch))
        streams = [
            self.stream(prompt, one, request_id=name, **options)
            for prompt, one, name in zip(batch, params, names, strict=True)
        ]
        with tqdm(
            total=len(batch),
            desc="Generating",
            unit="req",
            disable=not use_tqdm or self.config.silent_mode or None,
            leave=False,
        ) as bar:
            return await finish_all(streams, bar.update, _together(params, self.config.max_queued_requests))

    async def beam_search(
        self,
        prompt: Prompt,
        *,
        beam_width: int = 4,
        max_tokens: int = 64,
        length_penalty: float = 1.0,
        **options: Unpack[RequestOptions],
    ) -> RequestOutput:
        """The ``beam_width`` likeliest completions, best first, by logprob / length ** ``length_penalty``.

        Raises:
            InvalidRequestError: an argument is out of range.
        """
        return await beam.beam_search(
            self._life.running_here(),
            prompt,
            options,
            beam_width=beam_width,
            max_tokens=max_tokens,
            length_penalty=length_penalty,
            at_most=self.config.max_queued_requests,
        )

    async def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Pooling = "mean",
        normalize: bool = True,
        dimensions: int | None = None,
        truncate_prompt_tokens: int | None = None,
        request_id: str | Sequence[str] | None = None,
        use_tqdm: bool = True,
        **options: Unpack[RequestOptions],
    ) -> list[EmbeddingOutput]:
        """Turn each prompt into a vector, as `asurge.params.EmbeddingParams` says; they come in the order of the prompts.

        Raises:
            InvalidRequestError: a prompt or argument is refused.
            RequestAbortedError, RequestFailedError, EngineDeadError: one was ended, or failed. The others are aborted.
        """
        wish = EmbeddingParams(pooling=pooling, normalize=normalize, dimensions=dimensions, truncate_prompt_tokens=truncate_prompt_tokens)  # fmt: skip
        batch = _batch(prompts)
        names = _ids_of_each(request_id, len(batch))
        with tqdm(
            total=len(batch),
            desc="Embedding",
            unit="req",
            disable=not use_tqdm or self.config.silent_mode or None,
            leave=False,
        ) as bar:
            at_most = self.config.max_queued_requests
            return await embed_all(self._life.running_here(), batch, names, wish, options, bar.update, at_most)

    @overload
    async def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> RequestOutput: ...

    @overload
    async def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> TokenStream: ...

    async def chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        stream: bool = False,
        **options: Unpack[ChatOptions],
    ) -> RequestOutput | TokenStream:
        """Answer a conversation, rendered with the model's chat template (or the one given).

        Args:
            options: those of `asurge.text.Rendering` (``tools``, ``chat_template``, ``template_kwargs``,
                ``continue_final_message`` ...) and of `asurge.params.RequestOptions`.

        Raises:
            ChatTemplateError: malformed messages, no template, or one that fails.
        """
        admission = self._life.running_here()
        _check_params(sampling_params)
        how, rest = split_options(options)
        prompt = await admission.render(messages, sampling_params or SamplingParams(), **how)
        tokens = self.stream(prompt, sampling_params, request_id=request_id, **rest)
        return tokens if stream else await tokens.wait_finished()

    def abort_request(self, request_id: str) -> bool:
        """End a request now and free its pages; its stream finishes with reason ``abort``. False if unknown."""
        admission = self._life.admission
        return admission is not None and admission.abort(request_id)

    def set_sampling_params_callback(self, callback: ParamsCallback | None) -> None:
        """Set a function that sees the parameters of each request before it is admitted, and may replace them.

        It gets ``{"request_id", "prompt", "engine"}`` too; what it returns is used instead, unless that is None.
        """
        self._callback = callback

    def _params(self, request_id: str, prompt: Prompt, params: SamplingParams | None) -> SamplingParams:
        params = params or SamplingParams()
        if self._callback is not None:
            params = self._callback(params, {"request_id": request_id, "prompt": prompt, "engine": self}) or params
            _check_params(params)
        return params


def _check_known(settings: Mapping[str, Any]) -> None:
    known = {field.name for field in dataclasses.fields(EngineConfig)}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"unknown setting {name}={value!r}: the settings are {', '.join(sorted(known))}")


def _check_params(given: SamplingParams | None) -> None:
    if given is not None and not isinstance(given, SamplingParams):
        raise InvalidRequestError(
            f"sampling_params={shown(given)} must be SamplingParams, such as SamplingParams(max_tokens=64)",
            param="sampling_params",
        )


def _batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt, or several; anything else counts as one prompt, which admission refuses."""
    one = not is_list(prompts) or integer(next(iter(prompts), None)) is not None  # type: ignore[arg-type]
    return [prompts] if one else list(prompts)  # type: ignore[arg-type,list-item]


def _params_of_each(
    given: SamplingParams | Sequence[SamplingParams] | None, count: int
) -> Sequence[SamplingParams | None]:
    """One for all prompts, or one for each."""
    if given is None or isinstance(given, SamplingParams):
        return [given] * count
    if not isinstance(given, Sequence) or len(given) != count:
        raise InvalidRequestError(
            f"sampling_params must be SamplingParams, or a list with one for each of the {count} prompts",
            param="sampling_params",
        )
    return given


def _together(params: Sequence[SamplingParams | None], most: int) -> int:
    """How many requests of a batch may be in progress at a time, if the batch is not to fill a queue of ``most`` places by
    itself. Each of a request's completions takes one place."""
    places = [1 if one is None else one.best_of or one.n for one in params]
    return len(places) if sum(places) <= most else max(most // max(places), 1)


def _ids_of_each(given: str | Sequence[str] | None, count: int) -> Sequence[str | None]:
    if given is None:
        return [None] * count
    ids = [given] if isinstance(given, str) else given
    if not isinstance(ids, Sequence) or len(ids) != count:
        raise InvalidRequestError(
            f"request_id must be a list with one for each of the {count} prompts", param="request_id"
        )
    return ids
