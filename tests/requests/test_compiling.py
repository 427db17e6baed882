"""Turns to compile grammars: bounded threads, whoever gives up, and whoever waits."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from anyio import to_thread

from asurge import GuidedDecodingParams, SamplingParams
from asurge.engine import constraints
from asurge.engine.constraints import COMPILING_THREADS, Constraints
from asurge.errors import EngineOverloadedError, InvalidRequestError
from asurge.guidance import Grammars
from tests.guidance.walks import VOCAB
from tests.text.families import tokenizer

ENDS = tokenizer("byte-level BPE").eos_token_ids


class SlowCompiler:
    """Stands in for `Grammars.compile`: works in pieces until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running, self.most, self.go = 0, 0, threading.Event()
        self._lock = threading.Lock()
        real = Grammars.compile

        def compile_slowly(grammars: Grammars, form: GuidedDecodingParams, check: Callable[[], None]) -> Any:
            if form.regex != "slow":
                return real(grammars, form, check)
            with self._lock:
                self.running += 1
                self.most = max(self.most, self.running)
            try:
                while not self.go.wait(0.001):
                    check()
            finally:
                self.running -= 1

        monkeypatch.setattr(Grammars, "compile", compile_slowly)


async def prepare(made: Constraints, regex: str) -> None:
    params = SamplingParams(guided_decoding=GuidedDecodingParams(regex=regex))
    await made.prepare(params, [1], frozenset(ENDS), 1)


@pytest.fixture
def made() -> Constraints:
    return Constraints(tokenizer("byte-level BPE"), VOCAB, ENDS)


async def test_cancelled_requests_stop_compiling(made: Constraints, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowCompiler(monkeypatch)
    for _ in range(3):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(prepare, made, "slow")
            while slow.running < COMPILING_THREADS:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert slow.running == 0
    assert slow.most == COMPILING_THREADS
    await prepare(made, "fast")


async def test_requests_cancelled_by_asyncio_stop_compiling(made: Constraints, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowCompiler(monkeypatch)
    for _ in range(3):
        waiting = [asyncio.get_running_loop().create_task(prepare(made, "slow")) for _ in range(20)]
        while slow.running < COMPILING_THREADS:
            await anyio.lowlevel.checkpoint()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert all(task.cancelled() for task in waiting)
        assert slow.running == 0
    assert slow.most == COMPILING_THREADS
    await prepare(made, "fast")


async def test_a_long_wait_for_others_is_overload(made: Constraints, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowCompiler(monkeypatch)
    monkeypatch.setattr(constraints, "QUEUE_TIMEOUT_S", 0.02)
    async with anyio.create_task_group() as group:
        for _ in range(COMPILING_THREADS):
            group.start_soon(prepare, made, "slow")
        while slow.running < COMPILING_THREADS:
            await anyio.lowlevel.checkpoint()
        with pytest.raises(EngineOverloadedError, match="grammars wait"):
            await prepare(made, "fast")
        slow.go.set()
    await prepare(made, "fast")


async def test_a_grammar_that_takes_too_long_is_refused(made: Constraints, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowCompiler(monkeypatch)
    monkeypatch.setattr(constraints, "COMPILE_TIMEOUT_S", 0.02)
    with pytest.raises(InvalidRequestError, match="took longer than"):
        await prepare(made, "slow")
    assert await to_thread.run_sync(lambda: slow.running) == 0


async def test_min_tokens_with_ignore_eos_needs_no_masks(made: Constraints) -> None:
    params = SamplingParams(min_tokens=9, ignore_eos=True)
    assert not await made.prepare(params, [1], frozenset(), 1)
    assert await made.prepare(params, [1], frozenset({5}), 1)
    assert await made.prepare(dataclasses.replace(params, bad_words=["so"]), [1], frozenset(), 1)
