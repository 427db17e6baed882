"""The engine's verbs without async, for scripts and notebooks.

```python
from asurge.blocking import Engine

with Engine("demo") as engine:
    for out in engine.stream("What does os.path.join do?"):
        print(out.delta_text, end="", flush=True)
```
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, Unpack, overload

import anyio
from anyio import CancelScope
from anyio.from_thread import BlockingPortal

from asurge import engine as asynchronous
from asurge.config import EngineConfig, EngineSettings
from asurge.engine.prompts import Prompt
from asurge.engine.stream import TokenStream
from asurge.errors import EngineNotRunningError, EngineStateError
from asurge.outputs import EmbeddingOutput, RequestOutput
from asurge.params import RequestOptions, SamplingParams

T = TypeVar("T")


class _LoopThread:
    """An event loop in a thread of its own, which other threads reach through a portal.

    anyio's `start_blocking_portal` would do, if it were left by its own thread alone. It is a generator: where a start is
    given up, or a process forks, the collector ends it, which waits for a loop that does not run there.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._ready: Future[BlockingPortal] = Future()
        # Not waited for when Python ends, before it calls `close`.
        self._thread = threading.Thread(target=self._run, name="asurge-loop", daemon=True)
        self._thread.start()
        # What ends without stopping it (a script that fails, a start that is given up) must not end in the middle of a
        # step. Registered now, it runs before what JAX registered when it was imported.
        atexit.register(self.close)

    @property
    def is_here(self) -> bool:
        """Whether it runs in this process; a fork has only the thread that forked."""
        return self._process == os.getpid()

    @property
    def portal(self) -> BlockingPortal:
        """Raises:
        EngineStateError: it runs in another process.
        """
        if not self.is_here:
            raise EngineStateError(
                f"this engine runs in process {self._process}, from which this one was forked: have processes spawned "
                "(multiprocessing.set_start_method('spawn')), or forked before an engine starts"
            )
        return self._ready.result()

    def close(self) -> None:
        """Cancel what still runs on the loop, and return when it has ended. May be called again; not from the loop."""
        self.close_soon()
        if self.is_here:
            self._thread.join()
            atexit.unregister(self.close)

    def close_soon(self) -> None:
        """`close`, without waiting: the collector may call this anywhere."""
        if self.is_here and self._ready.exception() is None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._close.set)

    def _run(self) -> None:
        try:
            anyio.run(self._serve)
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)  # no loop: too many open files, say

    async def _serve(self) -> None:
        self._loop, self._close = asyncio.get_running_loop(), asyncio.Event()
        async with BlockingPortal() as portal:
            self._ready.set_result(portal)
            await self._close.wait()
            await portal.stop(cancel_remaining=True)


class _Reader:
    """Read the next output of a stream on the loop: once, however often the thread that waits for it is interrupted."""

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream
        self._coming: asyncio.Task[RequestOutput | None] | None = None

    async def peek(self) -> RequestOutput | None:
        """The output that comes next, None after the last; the same one until it is taken."""
        if self._coming is None:  # in a task of its own, which outlives a wait that is interrupted
            self._coming = asyncio.get_running_loop().create_task(self._next())
        coming = self._coming
        await asyncio.wait([coming])
        return coming.result()

    def take(self) -> None:
        """Have `peek` go on."""
        self._coming = None

    def drop(self) -> None:
        """End the wait of `peek`, which holds the stream; from any thread."""
        if self._coming is not None and not self._coming.done():
            self._coming.get_loop().call_soon_threadsafe(self._coming.cancel)

    async def _next(self) -> RequestOutput | None:
        # StopAsyncIteration cannot cross the portal: a future refuses to carry it.
        return await anext(self._stream, None)


class BlockingStream:
    """An iterator over the outputs of a request.

    Leaving a ``with`` block, `close`, and dropping it abort the request; being interrupted (Ctrl-C) while it waits does not, and
    loses nothing.
    """

    def __init__(self, engine: Engine, stream: TokenStream) -> None:
        self._engine, self._stream, self._reader = engine, stream, _Reader(stream)

    @property
    def request_id(self) -> str:
        return self._stream.request_id

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RequestOutput:
        try:
            output = self._engine._portal.call(self._reader.peek)
        except Exception:
            self._reader.take()
            raise
        self._reader.take()  # not earlier: a caller interrupted above asks again
        if output is None:
            raise StopIteration
        return output

    def close(self) -> None:
        """End the request if it still runs."""
        loop = self._engine._open
        if loop is not None and loop.is_here:  # otherwise it has ended with the engine, or is another process's
            loop.portal.call(self._stream.aclose)
        self._reader.take()

    def __del__(self) -> None:
        loop = self._engine._open
        if loop is None or loop.is_here:
            self._reader.drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Work(Generic[T]):
    """Work on the loop that can be cancelled whether or not it has started. (The future that
    `BlockingPortal.start_task_soon` returns is lost if Ctrl-C comes while that waits for the loop.)"""

    def __init__(self, do: Callable[[], Awaitable[T]]) -> None:
        self._do = do
        self._scope: CancelScope | None = None

    async def run(self) -> T:
        self._ended = anyio.Event()
        try:
            with CancelScope() as self._scope:
                return await self._do()
            raise asyncio.CancelledError
        finally:
            self._ended.set()

    async def cancel(self) -> None:
        """Return when it has ended. Tasks start in the order of their creation: if it has not, it never will."""
        if self._scope is not None:
            self._scope.cancel()
            await self._ended.wait()


def _call(portal: BlockingPortal, do: Callable[[], Awaitable[T]]) -> T:
    """Do work that takes a while. If the wait for it is interrupted (Ctrl-C), it is cancelled, and has ended when this
    returns."""
    work = _Work(do)
    try:
        return portal.call(work.run)
    except Exception:  # the work's own
        raise
    except BaseException:
        portal.call(work.cancel)
        raise


class Engine:
    """`asurge.Engine` for code without an event loop: it runs on one in a thread of its own.

    May be used from several threads, and in the process that started it.
    """

    def __init__(self, model: str = "demo", **settings: Unpack[EngineSettings]) -> None:
        self._engine = asynchronous.Engine(model, **settings)
        self._open: _LoopThread | None = None

    @classmethod
    def from_config(cls, config: EngineConfig) -> Self:
        """An engine with these settings, not started yet."""
        return cls(**config.settings())

    def initiate(self) -> None:
        """Start the loop and the engine; see `asurge.Engine.initiate`."""
        if self._open is not None:
            raise EngineStateError(f"this engine is {self._engine.state}: make a new one to start another")
        loop = _LoopThread()
        weakref.finalize(self, loop.close_soon).atexit = False  # for who drops it without stopping it
        portal, self._open = loop.portal, loop
        try:
            _call(portal, self._engine.initiate)
        except BaseException:
            with suppress(EngineStateError):  # interrupted twice, it starts or ends after this
                self.terminate()  # interrupted once, it may have started all the same
            raise

    def terminate(self) -> None:
        """Stop the engine and its loop, in the process that started them. Safe to call twice."""
        if self._open is not None and self._open.is_here:
            self._open.portal.call(self._engine.terminate)
            self._open.close()
        self._open = None

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
        return BlockingStream(self, stream)

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

        return BlockingStream(self, _call(self._portal, chat)) if stream else _call(self._portal, answer)

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

    def metrics_history(self) -> dict[str, list[float]]:
        """See `asurge.Engine.metrics_history`."""
        return self._engine.metrics_history() if self._open is None else self._read(self._engine.metrics_history)

    def _read(self, read: Callable[[], T]) -> T:
        return self._portal.call(read)

    @property
    def _portal(self) -> BlockingPortal:
        if self._open is None:
            raise EngineNotRunningError("the engine is not running: use `with engine`, or call initiate()")
        return self._open.portal
