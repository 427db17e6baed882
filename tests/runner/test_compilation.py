"""Compiling in a pool: what the host process sees of it, and how it is given up."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from asurge.demo import CHECKPOINT
from asurge.errors import CompilationError
from asurge.models.weights.loading import open_model
from asurge.runner.compilation import compile_all, use_persistent_cache


class Program:
    """Stands for what JAX has lowered."""

    def __init__(self, compile_it: Callable[[], Any]) -> None:
        self.compile = compile_it


class Threads:
    """Python's threads, with the stack size each is started with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.size, self.sizes = 0, dict[str, int]()
        start = threading.Thread.start

        def started(thread: threading.Thread) -> None:
            self.sizes[thread.name] = self.size
            start(thread)

        monkeypatch.setattr(threading, "stack_size", self.stack_size)
        monkeypatch.setattr(threading.Thread, "start", started)

    def stack_size(self, size: int = 0) -> int:
        before, self.size = self.size, size
        return before


def test_only_the_pools_own_threads_have_large_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where several engines start at the same time, and end in another order than they began."""
    threads, both = Threads(monkeypatch), threading.Barrier(2)
    seen: list[int] = []

    def compiled() -> int:
        both.wait(30)
        seen.append(threads.size)
        return 1

    programs: Any = {"a": lambda: Program(compiled)}

    def start() -> None:
        both.wait(30)
        compile_all(programs, threads=2, silent=True)

    engines = [threading.Thread(target=start) for _ in range(2)]
    for engine in engines:
        engine.start()
    for engine in engines:
        engine.join(30)
    assert (threads.size, seen) == (0, [0, 0])
    large = [size for name, size in threads.sizes.items() if name.startswith("asurge-compile")]
    assert large
    assert set(large) == {64 << 20}


def test_the_stack_size_of_the_process_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = Threads(monkeypatch)
    threads.size = 1 << 20
    programs: Any = {"a": lambda: Program(lambda: 1)}
    assert compile_all(programs, threads=2, silent=True) == {"a": 1}
    assert threads.size == 1 << 20


def test_a_system_without_threads_is_an_error_and_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, start, begun = Threads(monkeypatch), threading.Thread.start, list[str]()

    def refused(thread: threading.Thread) -> None:
        if begun:
            raise RuntimeError("can't start new thread")
        begun.append(thread.name)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refused)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    programs: Any = {"a": lambda: Program(lambda: 1)}
    with pytest.raises(RuntimeError, match="new thread"):
        compile_all(programs, threads=2, silent=True)
    assert threads.size == 0


def test_cancelled_compilations_end(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, lowered, go = list[int](), list[int](), threading.Event()
    shutdown = ThreadPoolExecutor.shutdown

    def shut(pool: ThreadPoolExecutor, wait: bool = True, *, cancel_futures: bool = False) -> None:
        shutdown(pool, wait=False, cancel_futures=cancel_futures)
        go.set()
        shutdown(pool, wait=wait)

    def compile_one(at: int) -> int:
        assert go.wait(30)
        compiled.append(at)
        return at

    def lower(at: int) -> Any:
        lowered.append(at)
        return Program(lambda: compile_one(at))

    def check() -> None:
        if len(lowered) == 5:
            raise KeyError("given up")

    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shut)
    programs: Any = {at: lambda at=at: lower(at) for at in range(10)}
    with pytest.raises(KeyError, match="given up"):
        compile_all(programs, check, threads=2, silent=True)
    assert len(lowered) == 5
    assert compiled in ([], [0])  # the one that had begun


def test_shapes_that_fail_to_compile_are_named() -> None:
    def fail() -> int:
        raise ValueError("too deep")

    programs: Any = {"decode 4": lambda: Program(fail)}
    with pytest.raises(CompilationError, match="decode 4 does not compile: too deep"):
        compile_all(programs, threads=2, silent=True)


class Terminal(io.StringIO):
    """Standard error that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("stderr", [io.StringIO, Terminal])
def test_bars_are_for_terminals(monkeypatch: pytest.MonkeyPatch, stderr: type[io.StringIO], silent: bool) -> None:
    written = stderr()
    monkeypatch.setattr(sys, "stderr", written)
    compile_all({"a": lambda: Program(int)}, threads=1, silent=silent)  # type: ignore[dict-item, return-value]
    open_model(CHECKPOINT, dtype="float32", progress=not silent)
    shown = stderr is Terminal and not silent
    assert ("Compiling" in written.getvalue()) == shown
    assert ("Loading weights" in written.getvalue()) == shown


@pytest.fixture
def no_cache() -> Iterator[None]:
    """JAX without a folder for what it compiles."""
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("no_cache")
def test_a_cache_that_cannot_be_written_is_named_once_and_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    use_persistent_cache(str(tmp_path / "file" / "xla"))
    assert jax.config.jax_compilation_cache_dir is None  # type: ignore[attr-defined]
    (said,) = caplog.messages
    assert str(tmp_path / "file" / "xla") in said
    assert "cannot be written (Not a directory)" in said
    assert "\n" not in said


@pytest.mark.usefixtures("no_cache")
def test_a_cache_on_a_full_disk_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1 << 20))
    use_persistent_cache(str(tmp_path / "xla"))
    assert jax.config.jax_compilation_cache_dir is None  # type: ignore[attr-defined]
    assert "is on a full disk (1 MiB free)" in caplog.text


@pytest.mark.usefixtures("no_cache")
def test_a_cache_folder_is_made(tmp_path: Path) -> None:
    use_persistent_cache(str(tmp_path / "new" / "xla"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "new" / "xla")  # type: ignore[attr-defined]
    assert list((tmp_path / "new" / "xla").iterdir()) == []
