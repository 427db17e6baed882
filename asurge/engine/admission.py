"""`Admission`: the way of a request into a running engine."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Unpack

from anyio import get_cancelled_exc_class

from asurge.containment import contained
from asurge.engine.input_processor import InputProcessor, PreparedRequest
from asurge.engine.prompts import Prompt, RenderedChat
from asurge.engine.stream import TokenStream
from asurge.errors import EngineNotRunningError, EngineStateError, RequestFailedError
from asurge.params import EmbeddingParams, RequestOptions, SamplingParams
from asurge.pipeline import Generation, Pipeline
from asurge.text import FittedPrompt, Rendering

ResolveParams = Callable[[str, Prompt, SamplingParams | None], SamplingParams]
"""The parameters a request is admitted with, from its id, its prompt and those that were given."""


@dataclasses.dataclass(slots=True, eq=False)
class _Arrival:
    """A request that is being prepared."""

    request_id: str
    aborted: bool = False


class Admission:
    """Prepares requests and submits them, while an engine runs and on the event loop it runs on.

    Attributes:
        pipeline: what they are submitted to.
        inputs: what prepares them.

    Args:
        admitted: is called after each request that was submitted.
    """

    def __init__(
        self, pipeline: Pipeline, inputs: InputProcessor, resolve_params: ResolveParams, admitted: Callable[[], None]
    ) -> None:
        self.inputs = inputs
        self.pipeline, self._resolve_params, self._admitted = pipeline, resolve_params, admitted
        self._loop = asyncio.get_running_loop()
        self._arrivals: set[_Arrival] = set()
        self._closed = False

    def stream(
        self, prompt: Prompt, params: SamplingParams | None, options: RequestOptions, request_id: str | None = None
    ) -> TokenStream:
        """Make a stream whose request is submitted when it is first awaited."""
        name = request_id or f"req-{secrets.token_hex(8)}"
        return TokenStream(name, partial(self.submit, name, prompt, params, options), self.cancel)

    async def submit(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None,
        options: RequestOptions,
        *,
        whole: bool = False,
    ) -> Generation:
        """Admit a request for completions.

        Args:
            whole: whether its reader waits for the end, whatever the parameters' ``output_kind`` says.

        Raises:
            InvalidRequestError, DuplicateRequestError, EngineOverloadedError, RequestFailedError: it is refused; nothing was
                queued.
            EngineNotRunningError, EngineDeadError, EngineStateError: see `check`.
        """
        with self._preparing(request_id) as arrival:
            resolved = self._resolve_params(request_id, prompt, params)
            prepared = await self.inputs.prepare(
                request_id, prompt, resolved, self.pipeline.clock, options, whole=whole
            )
        return self._submit(prepared, arrival)

    async def submit_embedding(
        self, request_id: str, prompt: Prompt, params: EmbeddingParams, options: RequestOptions
    ) -> Generation:
        """Admit a prompt that is to become a vector; raises as `submit` does."""
        with self._preparing(request_id) as arrival:
            prepared = await self.inputs.prepare_embedding(request_id, prompt, params, self.pipeline.clock, options)
        return self._submit(prepared, arrival)

    async def render(
        self, messages: Sequence[Mapping[str, Any]], params: SamplingParams, **rendering: Unpack[Rendering]
    ) -> RenderedChat:
        """Render a conversation as a prompt; see `asurge.engine.prompts.Prompts.rendered`."""
        with _panics_reported():
            return await self.inputs.render(messages, params, **rendering)

    async def fit(self, prompt: Prompt, params: SamplingParams) -> FittedPrompt:
        """Make a prompt fit beside its answer; see `asurge.engine.prompts.Prompts.fit`."""
        with _panics_reported():
            return await self.inputs.fit(prompt, params)

    def abort(self, request_id: str) -> bool:
        """End whatever has an id, also what is still being prepared; False if there is nothing."""
        arriving = [arrival for arrival in self._arrivals if arrival.request_id == request_id]
        for arrival in arriving:
            arrival.aborted = True
        return self.pipeline.abort(request_id) or bool(arriving)

    def cancel(self, generation: Generation) -> bool:
        """End this request, if it still runs."""
        return self.pipeline.cancel(generation)

    def close(self) -> None:
        """Refuse whatever comes from now on, and what is still being prepared."""
        self._closed = True

    def check(self) -> None:
        """Check that the engine accepts requests, on this event loop.

        Raises:
            EngineNotRunningError: the engine has stopped.
            EngineDeadError: it has failed.
            EngineStateError: it runs on another event loop, and its results would never arrive on this one.
        """
        if self._closed:
            raise EngineNotRunningError("the engine is not running (stopped): make a new one")
        if self.pipeline.failure is not None:
            raise self.pipeline.failure.again()
        self.check_loop()

    def check_loop(self) -> None:
        """Check that the caller is on the engine's event loop.

        Raises:
            EngineStateError: the engine runs on another event loop.
        """
        if self._loop is not asyncio.get_running_loop():
            raise EngineStateError(
                "this engine was started on another event loop: await it there (with pytest-asyncio: the same loop_scope for the "
                "fixture and its tests), or start another one here"
            )

    @contextmanager
    def _preparing(self, request_id: str) -> Iterator[_Arrival]:
        """Wraps the preparation of a request, so that `abort` finds it."""
        self.check()
        arrival = _Arrival(request_id)
        self._arrivals.add(arrival)
        try:
            with _panics_reported():
                yield arrival
        finally:
            self._arrivals.discard(arrival)

    def _submit(self, prepared: PreparedRequest, arrival: _Arrival) -> Generation:
        self.check()  # the engine may have stopped since the request arrived
        self.pipeline.submit(prepared.generation, prepared.requests, prepared.constraints)
        self._admitted()
        if arrival.aborted:
            self.pipeline.cancel(prepared.generation)
        return prepared.generation


@contextmanager
def _panics_reported() -> Iterator[None]:
    """Wraps the preparation of a request: what its caller would not expect, the panics of libraries in Rust, are errors.

    Raises:
        RequestFailedError: a library panicked.
    """
    try:
        yield
    except (Exception, GeneratorExit, get_cancelled_exc_class()):
        raise
    except BaseException as error:
        raise RequestFailedError(
            f"a request could not be prepared ({error!r}); the engine goes on: report this"
        ) from contained(error)
