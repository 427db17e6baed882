"""The verbs without async."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from asurge import SamplingParams
from asurge.blocking import Engine
from asurge.config import EngineConfig
from asurge.errors import EngineNotRunningError, InvalidRequestError
from tests.conftest import TINY

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


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


def test_not_started_and_stopped() -> None:
    engine = Engine.from_config(EngineConfig())
    with pytest.raises(EngineNotRunningError):
        engine.generate("x")
    engine.terminate()


def test_a_failed_start_leaves_nothing_running() -> None:
    before = set(threading.enumerate())
    with pytest.raises(Exception, match="no such folder"):
        Engine("./nowhere").initiate()
    for thread in set(threading.enumerate()) - before:  # workers end on their own, a moment after their loop
        thread.join(timeout=30)
        assert not thread.is_alive()
