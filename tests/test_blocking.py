"""The verbs without async."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal

from asurge import SamplingParams
from asurge.blocking import Engine
from asurge.config import EngineConfig
from asurge.engine.assembly import EngineParts, assemble
from asurge.errors import EngineNotRunningError, EngineStateError, InvalidRequestError
from asurge.params import OutputKind
from asurge.plan import StepHandle, StepPlan
from tests.conftest import TINY

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
LONG = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def engine(tiny_folder: Path) -> Iterator[Engine]:
    with Engine(str(tiny_folder), **TINY) as started:
        yield started


def test_stream_generate_and_chat_agree(engine: Engine) -> None:
    outputs = list(engine.stream("hello", GREEDY))
    (whole,) = engine.generate("hello", GREEDY, use_tqdm=False)
    assert "".join(output.delta_text for output in outputs) == whole.get_text()
    assert engine.beam_search("hello", beam_width=2, max_tokens=3).num_generated_tokens == 6
    assert [one.embedding.shape for one in engine.embed(["hello", "world"], dimensions=9, use_tqdm=False)] == [(9,)] * 2
    messages = [{"role": "user", "content": "hello"}]
    assert list(engine.chat(messages, GREEDY, stream=True))[-1].outputs == engine.chat(messages, GREEDY).outputs


def test_leaving_a_stream_aborts_it(engine: Engine) -> None:
    with engine.stream("hello", SamplingParams(max_tokens=100, ignore_eos=True)) as stream:
        next(stream)
        assert engine.num_running_requests == 1
    assert engine.num_running_requests == 0
    assert list(stream) == []


def test_errors_arrive(engine: Engine) -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        engine.generate("", use_tqdm=False)


def test_several_threads_may_use_it(engine: Engine) -> None:
    (expected,) = engine.generate("hello", GREEDY, use_tqdm=False)
    texts: list[str] = []

    def work() -> None:
        texts.append(engine.generate("hello", GREEDY, use_tqdm=False)[0].get_text())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [expected.get_text()] * 4
    assert engine.get_metrics_summary()["total_failed"] == 0


@pytest.fixture
def slow(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step takes a while."""
    parts = engine._engine._life.parts
    assert parts is not None
    dispatch = parts.runner.dispatch

    def slowly(plan: StepPlan) -> StepHandle:
        time.sleep(0.02)
        return dispatch(plan)

    monkeypatch.setattr(parts.runner, "dispatch", slowly)


@contextmanager
def interrupted(engine: Engine) -> Iterator[None]:
    """Ctrl-C as soon as a request runs."""
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        while not engine.num_running_requests:
            time.sleep(0.001)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        yield
    thread.join()


@pytest.mark.usefixtures("slow")
def test_an_interrupted_call_has_ended_its_requests(engine: Engine) -> None:
    for work in (
        lambda: engine.generate(["hello"] * 50, LONG, use_tqdm=False),
        lambda: engine.embed([[5] * 100] * 500, use_tqdm=False),
        lambda: engine.beam_search("hello", max_tokens=90),
        lambda: engine.chat([{"role": "user", "content": "hello"}], LONG),
    ):
        with interrupted(engine):
            work()
        assert (engine.num_running_requests, engine.num_pending_requests) == (0, 0)
    assert engine.generate("hello", GREEDY, use_tqdm=False)[0].finish_reason == "length"


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("kind", ["delta", "final"])
def test_an_interrupted_reader_loses_nothing(engine: Engine, kind: OutputKind) -> None:
    with engine.stream("hello", dataclasses.replace(LONG, output_kind=kind)) as stream:
        with interrupted(engine):
            next(stream)
        outputs = list(stream)
    (whole,) = engine.generate("hello", LONG, use_tqdm=False)
    assert "".join(output.delta_text for output in outputs) == whole.get_text()
    assert [output.finished for output in outputs[-2:]] == [False, True][-len(outputs) :]


@pytest.mark.usefixtures("slow")
def test_dropping_a_stream_whose_reader_was_interrupted_aborts_it(engine: Engine) -> None:
    stream = engine.stream("hello", dataclasses.replace(LONG, output_kind="final"))
    with interrupted(engine):
        next(stream)
    completed = engine.get_metrics_summary()["total_completed"]
    del stream
    gc.collect()
    while engine.num_running_requests:
        time.sleep(0.001)
    assert engine.get_metrics_summary()["total_completed"] == completed


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes while the next call waits for the loop to accept it."""
    start = BlockingPortal.start_task_soon
    calls = itertools.count()

    def interrupted_once(*arguments: Any, **named: Any) -> Any:
        future = start(*arguments, **named)
        if next(calls) == 0:
            raise KeyboardInterrupt
        return future

    monkeypatch.setattr(BlockingPortal, "start_task_soon", interrupted_once)


@pytest.mark.usefixtures("slow", "at_once")
def test_a_call_that_is_interrupted_before_it_has_begun_has_ended(engine: Engine) -> None:
    with pytest.raises(KeyboardInterrupt):
        engine.generate(["hello"] * 50, LONG, use_tqdm=False)
    assert (engine.num_running_requests, engine.num_pending_requests) == (0, 0)


def test_a_reader_that_is_interrupted_before_it_waits_loses_nothing(
    engine: Engine, request: pytest.FixtureRequest
) -> None:
    (whole,) = engine.generate("hello", LONG, use_tqdm=False)
    request.getfixturevalue("slow")
    request.getfixturevalue("at_once")
    with engine.stream("hello", LONG) as stream:
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        assert "".join(output.delta_text for output in stream) == whole.get_text()


@pytest.mark.usefixtures("at_once")
def test_a_start_that_is_interrupted_before_it_has_begun_leaves_nothing_running(tiny_folder: Path) -> None:
    engine = Engine(str(tiny_folder), **TINY)
    with pytest.raises(KeyboardInterrupt):
        engine.initiate()
    assert engine._open is None


def test_a_start_that_is_interrupted_twice_can_be_terminated_later(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = threading.main_thread().ident
    assert main is not None
    go_on = threading.Event()

    def interrupting(config: EngineConfig, check: Callable[[], None]) -> EngineParts:
        for _ in range(2):
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.2)
        go_on.wait(30)
        return assemble(config, check)

    monkeypatch.setattr("asurge.engine.life_cycle.assemble", interrupting)
    engine = Engine(str(tiny_folder), **TINY)
    with pytest.raises(KeyboardInterrupt):
        engine.initiate()
    with pytest.raises(EngineStateError, match="still starting"):
        engine.terminate()
    go_on.set()
    while engine._engine.state == "starting":
        time.sleep(0.01)
    engine.terminate()


def test_a_start_that_is_interrupted_leaves_nothing_running(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupting(config: EngineConfig, check: Callable[[], None]) -> EngineParts:
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.1)
        return assemble(config, check)

    monkeypatch.setattr("asurge.engine.life_cycle.assemble", interrupting)
    before, engine = set(threading.enumerate()), Engine(str(tiny_folder), **TINY)
    with pytest.raises(KeyboardInterrupt):
        engine.initiate()
    with pytest.raises(EngineNotRunningError):
        engine.generate("hello", GREEDY)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_not_started_and_stopped() -> None:
    engine = Engine.from_config(EngineConfig())
    with pytest.raises(EngineNotRunningError):
        engine.generate("x")
    engine.terminate()


def test_a_second_start_is_refused_and_changes_nothing(engine: Engine) -> None:
    with pytest.raises(EngineStateError, match="is running"):
        engine.initiate()
    assert engine.generate("hello", GREEDY, use_tqdm=False)[0].finished


def test_a_failed_start_leaves_nothing_running() -> None:
    before = set(threading.enumerate())
    with pytest.raises(Exception, match="no such folder"):
        Engine("./nowhere").initiate()
    for thread in set(threading.enumerate()) - before:  # workers end on their own, a moment after their loop
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_a_stream_that_outlives_its_engine(tiny_folder: Path) -> None:
    with Engine(str(tiny_folder), **TINY) as engine:
        stream = engine.stream("a", SamplingParams(max_tokens=100, ignore_eos=True))
        next(stream)
    with pytest.raises(EngineNotRunningError):
        next(stream)
    stream.close()


SCRIPT = """
import sys
from asurge.blocking import Engine

engine = Engine(sys.argv[1], max_num_seqs=2, page_size=16, max_model_len=128, max_num_batched_tokens=32, silent_mode=True)
engine.initiate()
assert engine.generate("a", use_tqdm=False)
raise ValueError("a mistake of the script's own")
"""


def test_a_script_that_fails_without_stopping_it_ends(tiny_folder: Path) -> None:
    """It would wait for the loop's thread for ever."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (1, "ValueError: a mistake of the script's own")
