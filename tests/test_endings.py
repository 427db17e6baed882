"""Ends of engines and their processes: in the middle of a step, of a start, after a fork, with a device that hangs."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from asurge import Engine, SamplingParams, blocking
from asurge.config import EngineConfig
from asurge.engine.assembly import EngineParts, assemble
from asurge.errors import EngineStateError
from asurge.plan import StepHandle, StepPlan
from tests.conftest import TINY

LONG = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)

HEAD = """
import os, signal, sys, threading, time
import asurge.engine
from asurge import SamplingParams
from asurge.blocking import Engine
from asurge.errors import EngineStateError

SETTINGS = dict(dtype="float32", max_model_len=128, max_num_seqs=4, max_num_batched_tokens=32, page_size=8, silent_mode=True)  # compiled already
engine = Engine(sys.argv[1], **SETTINGS)
LONG = SamplingParams(max_tokens=100, ignore_eos=True)
"""


def ended(folder: Path, script: str) -> tuple[int, str]:
    """The exit status and the output of a script, which has to end by itself."""
    done = subprocess.run(
        [sys.executable, "-c", HEAD + textwrap.dedent(script), str(folder)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


# ── engines ─────────────────────────────────────────────────────────────────────────────────────


class Held:
    """A device whose next steps wait until they are let go."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        assert engine._life.parts is not None
        self.runner = engine._life.parts.runner
        self.reached, self.go = threading.Event(), threading.Event()
        dispatch = self.runner.dispatch

        def waiting(plan: StepPlan) -> StepHandle:
            self.reached.set()
            assert self.go.wait(30)
            return dispatch(plan)

        monkeypatch.setattr(self.runner, "dispatch", waiting)

    @property
    def is_freed(self) -> bool:
        return self.runner._leaves == ()  # type: ignore[attr-defined]


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_cancelled_stop_still_stops_the_engine(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(str(tiny_folder), **TINY)
    await engine.initiate()
    held, loop = Held(engine, monkeypatch), asyncio.get_running_loop()
    reading = loop.create_task(engine.stream("a", LONG).wait_finished())
    while not held.reached.is_set():
        await asyncio.sleep(0.001)
    stopping = loop.create_task(engine.terminate())
    await turns()
    for _ in range(3):
        stopping.cancel()
        await turns()
    again = loop.create_task(engine.terminate())
    await turns()
    assert (stopping.done(), again.done()) == (False, False)
    assert not held.is_freed, "the step in flight uses it"
    held.go.set()
    await asyncio.wait([stopping, again])
    assert stopping.cancelled()
    assert again.exception() is None
    assert held.is_freed
    assert (await reading).finish_reason == "abort"
    await engine.terminate()


async def test_a_stop_within_a_time_limit_stops_the_engine(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(str(tiny_folder), **TINY)
    await engine.initiate()
    held = Held(engine, monkeypatch)
    reading = asyncio.get_running_loop().create_task(engine.stream("a", LONG).wait_finished())
    while not held.reached.is_set():
        await asyncio.sleep(0.001)
    threading.Timer(0.2, held.go.set).start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.terminate(), 0.05)
    assert held.is_freed
    await reading


async def test_a_start_that_is_cancelled_ends_soon(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    def endless(config: EngineConfig, check: Callable[[], None]) -> EngineParts:
        begun.set()
        try:
            while True:
                check()
                time.sleep(0.001)
        finally:
            ended.set()

    monkeypatch.setattr("asurge.engine.life_cycle.assemble", endless)
    engine = Engine(str(tiny_folder), **TINY)
    starting = asyncio.get_running_loop().create_task(engine.initiate())
    while not begun.is_set():
        await asyncio.sleep(0.001)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert ended.is_set()
    assert engine.state == "stopped"


@pytest.mark.parametrize("at", [1, 5, 25])
def test_a_start_checks_often_for_cancellation(tiny_folder: Path, at: int) -> None:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == at:
            raise KeyError("not any more")

    with pytest.raises(KeyError):
        assemble(EngineConfig(model=str(tiny_folder), **TINY), check)
    assert asked == at


async def test_the_memory_of_a_hung_device_is_not_freed(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Engine(str(tiny_folder), **TINY, step_timeout_s=0.05) as engine:
        held = Held(engine, monkeypatch)
        with pytest.raises(Exception, match=r"step_timeout_s=0\.05"):
            await engine.generate("a", LONG, use_tqdm=False)
    assert engine.state == "stopped"
    assert not held.is_freed
    held.go.set()


# ── processes ───────────────────────────────────────────────────────────────────────────────────


def test_a_device_that_hangs_does_not_keep_the_process(tiny_folder: Path) -> None:
    status, said = ended(tiny_folder, """
        import asyncio
        from asurge import Engine
        from asurge.errors import EngineDeadError

        async def main():
            async with Engine(sys.argv[1], **SETTINGS, step_timeout_s=0.1) as engine:
                engine._life.parts.runner.dispatch = lambda plan: threading.Event().wait()
                try:
                    await engine.generate("a", use_tqdm=False)
                except EngineDeadError as error:
                    print(error)

        asyncio.run(main())
    """)  # fmt: skip
    assert status == 0, said
    assert "step_timeout_s=0.1" in said


def test_a_fork_ends_and_says_that_the_engine_is_elsewhere(tiny_folder: Path) -> None:
    """Up to the point where JAX takes itself apart, which it cannot in a fork: that crashes, with or without an engine."""
    status, said = ended(tiny_folder, """
        import atexit, warnings
        warnings.simplefilter("ignore")
        parent = os.getpid()
        atexit.register(lambda: os.getpid() == parent or os._exit(7))  # after what engines register, and before JAX
        with engine:
            stream = engine.stream("a", LONG)
            next(stream)
            for leave in (sys.exit, os._exit):
                if (child := os.fork()) == 0:
                    for use in (lambda: engine.generate("a"), lambda: next(stream), lambda: engine.num_running_requests,
                                lambda: engine.abort_request("a")):
                        try:
                            use()
                        except EngineStateError as error:
                            assert "forked" in str(error), error
                        else:
                            os._exit(9)
                    stream.close()
                    del stream
                    leave(7)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert len(list(stream)[-1].outputs[0].token_ids) == 100
            assert engine.generate("a", LONG, use_tqdm=False)[0].finished
        print("went on")
    """)  # fmt: skip
    assert status == 0, said
    assert said.startswith("went on\n")


@pytest.mark.parametrize("stop", ["", "engine.terminate()"], ids=["started", "terminated"])
def test_no_engine_starts_in_a_fork_of_a_process_that_had_one(tiny_folder: Path, stop: str) -> None:
    """JAX would wait for ever for threads that the fork does not have."""
    status, said = ended(tiny_folder, f"""
        import warnings
        warnings.simplefilter("ignore")
        engine.initiate()
        {stop or "pass"}
        if (child := os.fork()) == 0:
            signal.alarm(60)
            try:
                Engine(sys.argv[1], **SETTINGS).initiate()
            except EngineStateError as error:
                assert "forked" in str(error) and "spawn" in str(error), error
                os._exit(7)
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        if {bool(stop)}:
            engine = Engine(sys.argv[1], **SETTINGS)
            engine.initiate()
        assert engine.generate("a", LONG, use_tqdm=False)[0].finished
        engine.terminate()
        print("went on")
    """)  # fmt: skip
    assert status == 0, said
    assert said.startswith("went on\n")


def test_a_fork_of_a_process_that_has_only_imported_asurge_starts_an_engine(tiny_folder: Path) -> None:
    status, said = ended(tiny_folder, """
        import warnings
        warnings.simplefilter("ignore")
        for _ in range(2):
            if (child := os.fork()) == 0:
                signal.alarm(90)
                with engine:
                    finished = engine.generate("a", LONG, use_tqdm=False)[0].finished
                os._exit(7 if finished else 9)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        print("went on")
    """)  # fmt: skip
    assert status == 0, said
    assert said.startswith("went on\n")


def test_a_start_that_is_interrupted_twice_does_not_keep_the_process(tiny_folder: Path) -> None:
    status, said = ended(tiny_folder, """
        def interrupting(config, check):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.2)
            while True:
                check()
                time.sleep(0.01)

        asurge.engine.life_cycle.assemble = interrupting
        with engine:
            pass
    """)  # fmt: skip
    assert status == -signal.SIGINT, said
    assert said.strip().endswith("KeyboardInterrupt")


@pytest.mark.parametrize("leave", ["break", "raise SystemExit(3)", "os.kill(os.getpid(), signal.SIGINT)"])
def test_a_script_that_leaves_in_the_middle_of_a_step_ends_as_it_should(tiny_folder: Path, leave: str) -> None:
    """The steps are slow to be read, so that the last one is still on its way."""
    status, said = ended(tiny_folder, f"""
        with engine:
            runner = engine._engine._life.parts.runner
            dispatch = runner.dispatch

            def slow(plan):
                handle = dispatch(plan)
                wait = handle.wait
                def slowly():
                    time.sleep(0.3)
                    return wait()
                class Slow:
                    wait = staticmethod(slowly)
                return Slow

            for output in engine.stream("a", LONG):
                runner.dispatch = slow
                if len(output.outputs[0].token_ids) > 20:
                    {leave}
    """)  # fmt: skip
    assert status == {"break": 0, "raise SystemExit(3)": 3}.get(leave, -signal.SIGINT), said


def test_an_engine_that_is_dropped_ends(tiny_folder: Path) -> None:
    before = set(threading.enumerate())
    engine = blocking.Engine(str(tiny_folder), **TINY)
    engine.initiate()
    del engine
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_an_engine_whose_event_loop_cannot_start_reports_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("too many open files")

    engine = blocking.Engine("demo")
    with monkeypatch.context() as patched:
        patched.setattr("asurge.blocking.anyio.run", full)
        with pytest.raises(OSError, match="too many open files"):
            engine.initiate()
    with pytest.raises(EngineStateError):
        engine.generate("a")
