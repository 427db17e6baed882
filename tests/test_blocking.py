"""The verbs without async."""

from __future__ import annotations

import dataclasses
import gc
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asurge import SamplingParams
from asurge.assembly import Parts, assemble
from asurge.blocking import Engine
from asurge.config import EngineConfig
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
    parts = engine._engine._parts
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


def test_a_start_that_is_interrupted_leaves_nothing_running(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def interrupting(config: EngineConfig) -> Parts:
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.1)
        return assemble(config)

    monkeypatch.setattr("asurge.engine.assemble", interrupting)
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
