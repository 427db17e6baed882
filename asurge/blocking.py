"""The engine's verbs without async, for scripts and notebooks.

::

    from asurge.blocking import Engine

    with Engine("demo") as engine:
        for out in engine.stream("What does os.path.join do?"):
            print(out.delta_text, end="", flush=True)
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

from anyio.from_thread import BlockingPortal, start_blocking_portal

from asurge import engine as asynchronous
from asurge.config import EngineConfig
from asurge.errors import EngineNotRunningError, EngineStateError
from asurge.outputs import EmbeddingOutput, RequestOutput
from asurge.params import RequestOptions, SamplingParams
from asurge.prompts import Prompt
from asurge.stream import TokenStream

T = TypeVar("T")


class BlockingStream:
    """An iterator over one request's outputs. Leaving a ``with`` block, `close`, and dropping it abort the request; being
    interrupted (Ctrl-C) while it waits does not, and loses nothing."""

    def __init__(self, portal: BlockingPortal, stream: TokenStream) -> None:
        self._portal, self._stream = portal, stream
        self._coming: Future[RequestOutput | None] | None = None

    @property
    def request_id(self) -> str:
        return self._stream.request_id

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RequestOutput:
        coming = self._coming or self._portal.start_task_soon(_next, self._stream)
        self._coming = coming
        try:
            output = coming.result()
        except Exception:
            self._coming = None
            raise
        self._coming = None  # not earlier: a caller interrupted above asks again
        if output is None:
            raise StopIteration
        return output

    def close(self) -> None:
        """End the request if it still runs."""
        self._portal.call(self._stream.aclose)
        self._coming = None

    def __del__(self) -> None:
        if self._coming is not None:
            self._coming.cancel()  # it holds the stream, which would end the request when it is dropped

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _next(stream: TokenStream) -> RequestOutput | None:
    # StopAsyncIteration cannot cross the portal: a future refuses to carry it.
    return await anext(stream, None)


def _call(portal: BlockingPortal, work: Callable[[], Awaitable[T]]) -> T:
    """Do work that takes a while. If the wait for it is interrupted (Ctrl-C), it is cancelled, and has ended when this
    returns."""
    ended = threading.Event()

    async def do() -> T:
        try:
            return await work()
        finally:
            ended.set()

    future = portal.start_task_soon(do)
    try:
        return future.result()
    except BaseException:
        if future.cancel():
            ended.wait()
        raise


class Engine:
    """`asurge.Engine` on an event loop in a thread of its own. May be used from several threads."""

    def __init__(self, model: str = "demo", **settings: Any) -> None:
        self._engine = asynchronous.Engine(model, **settings)
        self._stack = ExitStack()
        self._open: BlockingPortal | None = None

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """An engine with these settings, not started yet."""
        return cls(**config.settings())

    def initiate(self) -> None:
        """Start the loop and the engine; see `asurge.Engine.initiate`."""
        if self._open is not None:
            raise EngineStateError(f"this engine is {self._engine.state}: make a new one to start another")
        self._open = self._stack.enter_context(start_blocking_portal("asyncio"))
        try:
            _call(self._open, self._engine.initiate)
        except BaseException:
            self.terminate()  # an interrupted one may have started all the same
            raise

    def terminate(self) -> None:
        """Stop the engine and its loop. Safe to call twice."""
        if self._open is not None:
            self._open.call(self._engine.terminate)
            self._open = None
            self._stack.close()

    def update_model_weights(self, model: str) -> None:
        """See `asurge.Engine.update_model_weights`."""
        _call(self._portal, lambda: self._engine.update_model_weights(model))

    def __enter__(self) -> Self:
        self.initiate()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        **options: Unpack[RequestOptions],
    ) -> BlockingStream:
        """See `asurge.Engine.stream`."""
        stream = self._engine.stream(prompt, sampling_params, request_id=request_id, **options)
        return BlockingStream(self._portal, stream)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        request_id: str | Sequence[str] | None = None,
        use_tqdm: bool = True,
        **options: Unpack[RequestOptions],
    ) -> list[RequestOutput]:
        """See `asurge.Engine.generate`."""

        async def generate() -> list[RequestOutput]:
            return await self._engine.generate(
                prompts, sampling_params, request_id=request_id, use_tqdm=use_tqdm, **options
            )

        return _call(self._portal, generate)

    def beam_search(self, prompt: Prompt, **options: Any) -> RequestOutput:
        """See `asurge.Engine.beam_search`; options are passed by name."""

        async def beam_search() -> RequestOutput:
            return await self._engine.beam_search(prompt, **options)

        return _call(self._portal, beam_search)

    def embed(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[EmbeddingOutput]:
        """See `asurge.Engine.embed`; options are passed by name."""

        async def embed() -> list[EmbeddingOutput]:
            return await self._engine.embed(prompts, **options)

        return _call(self._portal, embed)

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: SamplingParams | None = None,
        *,
        stream: Literal[False] = False,
        **options: Any,
    ) -> RequestOutput: ...

    @overload
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: SamplingParams | None = None,
        *,
        stream: Literal[True],
        **options: Any,
    ) -> BlockingStream: ...

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampling_params: SamplingParams | None = None,
        *,
        stream: bool = False,
        **options: Any,
    ) -> RequestOutput | BlockingStream:
        """See `asurge.Engine.chat`; other options are passed by name."""

        async def chat() -> TokenStream:
            return await self._engine.chat(messages, sampling_params, stream=True, **options)

        async def answer() -> RequestOutput:
            return await (await chat()).wait_finished()

        return BlockingStream(self._portal, _call(self._portal, chat)) if stream else _call(self._portal, answer)

    def abort_request(self, request_id: str) -> bool:
        """See `asurge.Engine.abort_request`."""
        return self._portal.call(self._engine.abort_request, request_id)

    @property
    def num_pending_requests(self) -> int:
        """Requests waiting for a slot."""
        return self._read(lambda: self._engine.num_pending_requests)

    @property
    def num_running_requests(self) -> int:
        """Requests that hold a slot."""
        return self._read(lambda: self._engine.num_running_requests)

    def get_metrics_summary(self) -> dict[str, float]:
        """See `asurge.Engine.get_metrics_summary`."""
        return self._read(self._engine.get_metrics_summary)

    def _read(self, read: Callable[[], T]) -> T:
        return self._portal.call(read)

    @property
    def _portal(self) -> BlockingPortal:
        if self._open is None:
            raise EngineNotRunningError("the engine is not running: use `with engine`, or call initiate()")
        return self._open
