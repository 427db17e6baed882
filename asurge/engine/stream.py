"""`TokenStream`: what `Engine.stream` returns."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

import anyio

from asurge.outputs import RequestOutput
from asurge.pipeline import Generation

T = TypeVar("T")


class Submit(Protocol):
    """Admits a request; see `asurge.engine.admission.Admission.submit`."""

    def __call__(self, *, whole: bool) -> Awaitable[Generation]: ...


class TokenStream:
    """An asynchronous iterator over one request's `RequestOutput`s; the last one has ``finished`` set.

    The request is admitted by the first ``anext`` or by ``async with``, whichever comes first. Closing the stream,
    dropping it, or cancelling the task that waits on it aborts the request and frees its pages.
    """

    def __init__(self, request_id: str, submit: Submit, cancel: Callable[[Generation], object]) -> None:
        self.request_id = request_id
        self._submit, self._cancel = submit, cancel
        self._generation: Generation | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = self._whole = self._read = False

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens of the prompt, and tokens generated so far, of all completions; nothing before admission."""
        if self._generation is None:
            return 0, 0
        sampled = sum(len(completion.token_ids) for completion in self._generation.completions)
        return len(self._generation.prompt.token_ids), sampled

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestOutput:
        """The next output.

        Raises:
            StopAsyncIteration: after the finished output, or once closed.
            AsurgeError: the request was refused or failed.
        """
        if self._over:
            raise StopAsyncIteration
        try:
            generation = await self._admit()
            output = await generation.wait_output()
        except BaseException:
            self._close()
            raise
        self._over, self._read = self._over or output.finished, True
        return output

    async def __aenter__(self) -> Self:
        if not self._over:
            await self._admit()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    async def aclose(self) -> None:
        """End the request if it still runs. Safe to call at any time, from the engine's loop."""
        self._close()

    async def wait_finished(self) -> RequestOutput:
        """Read to the end and return the last output.

        If nothing was read before, that output is complete, whatever ``output_kind`` says.

        Raises:
            AsurgeError: the request was refused or failed.
        """
        last: RequestOutput | None = None
        self._whole = True
        if self._generation is not None and not self._read:
            self._generation.take_whole()
        async for output in self:
            last = output
        if last is None:
            raise RuntimeError(f"the stream of request {self.request_id!r} was closed before it finished")
        return last

    async def _admit(self) -> Generation:
        if self._generation is None:
            self._loop = asyncio.get_running_loop()
            self._generation = await self._submit(whole=self._whole)
            if self._over:  # closed by another task meanwhile
                self._cancel(self._generation)
        return self._generation

    def _close(self) -> None:
        if not self._over:
            self._over = True
            if self._generation is not None:
                self._cancel(self._generation)

    def __del__(self) -> None:
        # `break` in an `async for` drops the stream without closing it; the collector may run on any thread.
        if not self._over and self._generation is not None and self._loop is not None:
            self._over = True
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._cancel, self._generation)


async def finish_all(
    streams: Sequence[TokenStream], on_done: Callable[[], object] = lambda: None, at_most: int | None = None
) -> list[RequestOutput]:
    """Read all streams to their ends together; returns their last outputs, in order.

    Args:
        at_most: how many may be admitted and unfinished at a time; None: all.

    Raises:
        AsurgeError: the error of the first that was refused or failed. The others are aborted.
    """
    return await do_all([stream.wait_finished for stream in streams], on_done, at_most)


async def do_all(
    works: Sequence[Callable[[], Awaitable[T]]],
    on_done: Callable[[], object] = lambda: None,
    at_most: int | None = None,
) -> list[T]:
    """Run coroutines together, or at most ``at_most`` at a time; return their results in order.

    The first failure is raised, and the others are cancelled.
    """
    found: dict[int, T] = {}
    left = iter(range(len(works)))

    async def do_one_after_another() -> None:
        for index in left:
            found[index] = await works[index]()
            on_done()

    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(len(works) if at_most is None else min(at_most, len(works))):
                tasks.start_soon(do_one_after_another)
    except ExceptionGroup as group:
        raise group.exceptions[0] from group.exceptions[0].__cause__
    return [found[index] for index in range(len(works))]
